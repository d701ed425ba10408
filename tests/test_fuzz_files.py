"""What sellers say of their files, hurt: sealed descriptions, paths, digests. FUZZ_EXAMPLES sets how many.

A seller may be hostile to the buyer's disk and terminal, so what is accepted is held against other readers'
rules: those of Windows and POSIX as Python's `pathlib` knows them, and of a terminal.
"""

import json
import ntpath
import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given
from hypothesis import strategies as st

from storage import base64url, digests
from storage.errors import (
    DigestsInvalid,
    MetadataAuthenticationFailed,
    MetadataInvalid,
    PathRefused,
    RootMismatch,
)
from storage.keys import METADATA_INFO, NONCE_SIZE_BYTES, metadata_key
from storage.metadata import (
    FILE_COUNT_MAX,
    SEALED_SIZE_MAX_BYTES,
    FileEntry,
    ParcelMetadata,
    Preview,
    encode_metadata,
    open_metadata,
    seal_metadata,
)
from storage.paths import check_path, check_paths
from tests.fuzz.mutation import fuzzed, hurt_octets, hurt_text, outcome

LINK_SECRET = bytes(range(32))
PATHS = (
    "report.pdf",
    "photos/2024/a b.jpg",
    "é/ü.txt",
    "a",
    "x" * 250 + ".txt",
    "con/aux",
    ".hidden",
    "a.b.c",
)
ALIKE = ("a", "A", "a/b", "ß", "SS", "e\u0301", "é", "K", "\u212a")
FILE = FileEntry(
    path="a/b.txt",
    media_type="text/plain",
    size_bytes=5,
    modified_at=1_700_000_000,
    header=b"\x28" + bytes(39),
    root=bytes(32),
)
METADATA = ParcelMetadata(
    title="Title",
    note="Two\nlines",
    preview=Preview(media_type="image/png", image=b"\x89PNG\r\n\x1a\n" + bytes(20)),
    files=(FILE,),
    release_commitment=bytes(32),
    key_check=bytes(32),
)

# --- paths ------------------------------------------------------------------------------------------


@fuzzed
@given(hurt_text(st.sampled_from(PATHS)))
@example("a/" * 500 + "b")
@example("\u0130" * 400)
@example("\u1e9b\u0323" * 200)
def test_path_means_one_plain_file_below_the_folder_everywhere(path: str) -> None:
    checked = outcome(PathRefused, check_path, path)
    if isinstance(checked, PathRefused):
        assert checked.reason
        return
    assert check_path(checked) == checked
    assert len(checked.encode()) <= 1024
    for kind in (PurePosixPath, PureWindowsPath):
        read = kind(checked)
        assert read.anchor == ""
        assert ".." not in read.parts
        assert "/".join(read.parts) == checked, "another reader leaves out a part of it"
    assert not _is_reserved(checked)
    assert os.path.normpath(f"/target/{checked}") == f"/target/{checked}"
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in checked)


def _is_reserved(path: str) -> bool:
    """A device on Windows. The method is the function's from Python 3.13 on."""
    function = getattr(ntpath, "isreserved", None)
    return bool(function(path)) if function else PureWindowsPath(path).is_reserved()


@fuzzed
@given(st.lists(hurt_text(st.sampled_from(ALIKE)), max_size=8))
def test_paths_together_are_as_many_files(paths: list[str]) -> None:
    checked = outcome(PathRefused, check_paths, paths)
    if isinstance(checked, PathRefused):
        return
    # As a file system of Windows or macOS would compare them.
    names = {unicodedata.normalize("NFD", path.casefold()) for path in checked}
    assert len(names) == len(paths)
    folders = {str(parent) for path in names for parent in PurePosixPath(path).parents}
    assert not folders & names


# --- sealed descriptions ------------------------------------------------------------------------------


def _sealed(document: bytes) -> bytes:
    nonce = bytes(NONCE_SIZE_BYTES)
    return nonce + AESGCM(metadata_key(LINK_SECRET)).encrypt(nonce, document, METADATA_INFO)


@st.composite
def _documents(draw: st.DrawFn) -> bytes:
    """The JSON of a description with a member or two that a hostile seller would try, or hurt as text."""
    document: dict[str, Any] = json.loads(encode_metadata(METADATA))
    strange: st.SearchStrategy[Any] = st.one_of(
        hurt_text(st.sampled_from(("Title", "a/b.txt", "image/png", base64url.encode(bytes(32))))),
        st.integers(-(2**70), 2**70),
        st.none() | st.booleans() | st.floats(),
        st.lists(st.just({}), max_size=2),
    )
    for _ in range(draw(st.integers(0, 2))):
        place: Any = document
        keys = ["title", "note", "preview", "files", "version", "key_check", "release_commitment", "more"]
        key: Any = draw(st.sampled_from(keys))
        entries = document["files"]
        if key == "files" and isinstance(entries, list) and entries and draw(st.booleans()):
            place, key = entries[0], draw(st.sampled_from(FILE.__struct_fields__))
        if key == "files" and isinstance(entries, list) and draw(st.booleans()):
            document["files"] = entries * draw(st.sampled_from((0, 2, 3)))
        elif isinstance(place, dict):
            place[key] = draw(strange)
    text = json.dumps(document)
    return draw(hurt_text(st.just(text)) | st.just(text)).encode("utf-8", "surrogatepass")


@fuzzed
@given(_documents())
@example(b"[" * 100_000)
@example(b'{"version":1,"title":"' + b"x" * 4_000_000 + b'"}')
@example(encode_metadata(METADATA).replace(b"Two\\nlines", b"x" * 4_000_000))
@example(encode_metadata(METADATA).replace(b"a/b.txt", b"a/" * 1_900_000 + b"b"))
@example(encode_metadata(METADATA).replace(b"Two\\nlines", b"\\u001b]0;owned\\u0007"))
@example(b'{"version":' + b"9" * 100_000 + b"}")
def test_description_is_harmless_or_refused(document: bytes) -> None:
    try:
        read = open_metadata(LINK_SECRET, _sealed(document))
    except (MetadataInvalid, PathRefused):
        return
    assert open_metadata(LINK_SECRET, seal_metadata(LINK_SECRET, read)) == read
    assert 1 <= len(read.files) <= FILE_COUNT_MAX
    shown = [read.title, read.note.replace("\n", "").replace("\t", ""), *(file.path for file in read.files)]
    assert not any(unicodedata.category(mark) == "Cc" for text in shown for mark in text)
    assert [check_path(file.path) for file in read.files] == [file.path for file in read.files]


@fuzzed
@given(hurt_octets(st.just(_sealed(encode_metadata(METADATA)))))
@example(bytes(SEALED_SIZE_MAX_BYTES + 1))
@example(b"")
def test_hurt_seal_opens_nothing(sealed: bytes) -> None:
    if sealed == _sealed(encode_metadata(METADATA)):
        return
    try:
        open_metadata(LINK_SECRET, sealed)
    except (MetadataAuthenticationFailed, MetadataInvalid):
        return
    raise AssertionError("a hurt seal opened")


# --- digests, binary as text ----------------------------------------------------------------------------


@fuzzed
@given(hurt_octets(st.binary(min_size=32, max_size=32)) | st.binary(max_size=70), st.integers(0, 3))
def test_list_of_digests_is_whole_or_refused(listed: bytes, count: int) -> None:
    split = outcome(DigestsInvalid, digests.split, listed)
    if isinstance(split, DigestsInvalid):
        assert not listed or len(listed) % 32
        return
    assert b"".join(split) == listed
    root = digests.root(listed)
    try:
        digests.verify_root(listed, root, chunk_count=count)
        assert len(split) == count
    except DigestsInvalid:
        assert len(split) != count
    assert (
        isinstance(
            outcome(RootMismatch, digests.verify_root, listed, root[::-1], chunk_count=len(split)),
            RootMismatch,
        )
        or root == root[::-1]
    )


@fuzzed
@given(hurt_text(st.binary(max_size=40).map(base64url.encode)))
def test_binary_as_text_has_one_spelling(text: str) -> None:
    decoded = outcome(ValueError, base64url.decode, text)
    if not isinstance(decoded, ValueError):
        assert base64url.encode(decoded) == text
