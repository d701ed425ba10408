"""Sealed metadata: what goes in comes out, and a hostile document is refused by name."""

import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage import base64url, keys
from storage.errors import (
    MetadataAuthenticationFailed,
    MetadataInvalid,
    PathRefused,
    SecretSizeWrong,
    StorageError,
)
from storage.metadata import (
    FILE_COUNT_MAX,
    PREVIEW_SIZE_MAX_BYTES,
    SEALED_SIZE_MAX_BYTES,
    FileEntry,
    ParcelMetadata,
    Preview,
    encode_metadata,
    open_metadata,
    seal_metadata,
)

LINK_SECRET = bytes([1]) * 32
HEADER = b"\x28" + bytes(39)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
WEBP = b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20)


def entry(path: str = "folder/file one.txt") -> FileEntry:
    return FileEntry(
        path=path,
        media_type="text/plain",
        size_bytes=7,
        modified_at=1_700_000_000,
        header=HEADER,
        root=bytes(32),
    )


def parcel(**changes: Any) -> ParcelMetadata:
    plain = ParcelMetadata(
        title="Résumé — “holiday” 👨‍👩‍👧",
        note="Two lines\nand a\ttab",
        preview=Preview(media_type="image/png", image=PNG),
        files=(entry(),),
        release_commitment=bytes([2]) * 32,
        key_check=bytes([3]) * 32,
    )
    return msgspec.structs.replace(plain, **changes)


def forge(document: bytes) -> bytes:
    """Seal any bytes, as a hostile seller can."""
    nonce = bytes(12)
    key = keys.metadata_key(LINK_SECRET)
    return nonce + AESGCM(key).encrypt(nonce, document, b"bitcache/v1/metadata")


def document(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(encode_metadata(parcel()))
    return plain | changes


def test_what_goes_in_comes_out() -> None:
    for preview in (None, PNG, JPEG, WEBP):
        kinds = {PNG: "image/png", JPEG: "image/jpeg", WEBP: "image/webp"}
        metadata = parcel(preview=preview and Preview(media_type=kinds[preview], image=preview))
        assert open_metadata(LINK_SECRET, seal_metadata(LINK_SECRET, metadata)) == metadata


def test_sealing_is_fresh_but_the_document_is_one() -> None:
    assert seal_metadata(LINK_SECRET, parcel()) != seal_metadata(LINK_SECRET, parcel())
    assert encode_metadata(parcel()) == encode_metadata(parcel())
    text = encode_metadata(parcel()).decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_the_document_is_what_the_format_says() -> None:
    assert document() == {
        "version": 1,
        "title": "Résumé — “holiday” 👨‍👩‍👧",
        "note": "Two lines\nand a\ttab",
        "preview": {"media_type": "image/png", "image": base64url.encode(PNG)},
        "files": [
            {
                "path": "folder/file one.txt",
                "media_type": "text/plain",
                "size_bytes": 7,
                "modified_at": 1_700_000_000,
                "header": base64url.encode(HEADER),
                "root": "A" * 43,
            }
        ],
        "release_commitment": base64url.encode(bytes([2]) * 32),
        "key_check": base64url.encode(bytes([3]) * 32),
    }


def test_only_the_link_opens_it() -> None:
    sealed = seal_metadata(LINK_SECRET, parcel())
    with pytest.raises(MetadataAuthenticationFailed):
        open_metadata(bytes(32), sealed)
    with pytest.raises(SecretSizeWrong):
        open_metadata(bytes(31), sealed)


@pytest.mark.parametrize("at", [0, 12, 100, -17, -1])
def test_an_altered_document(at: int) -> None:
    sealed = bytearray(seal_metadata(LINK_SECRET, parcel()))
    sealed[at] ^= 1
    with pytest.raises(MetadataAuthenticationFailed):
        open_metadata(LINK_SECRET, bytes(sealed))


@pytest.mark.parametrize("length", [0, 12, 27])
def test_a_cut_document(length: int) -> None:
    with pytest.raises(MetadataAuthenticationFailed):
        open_metadata(LINK_SECRET, bytes(length))


def test_a_document_over_the_limit_is_not_even_decrypted() -> None:
    with pytest.raises(MetadataInvalid, match="4 MiB"):
        open_metadata(LINK_SECRET, bytes(SEALED_SIZE_MAX_BYTES + 1))


def test_a_document_over_the_limit_is_not_sealed() -> None:
    files = tuple(entry(f"{number:05}/" + "x" * 250 + "/" + "y" * 250) for number in range(FILE_COUNT_MAX))
    with pytest.raises(MetadataInvalid, match="4 MiB"):
        seal_metadata(LINK_SECRET, parcel(files=files))


def test_as_many_files_as_allowed_fit() -> None:
    files = tuple(entry(f"{number:05}/" + "x" * 100) for number in range(FILE_COUNT_MAX))
    sealed = seal_metadata(LINK_SECRET, parcel(files=files))
    assert len(open_metadata(LINK_SECRET, sealed).files) == FILE_COUNT_MAX
    with pytest.raises(MetadataInvalid, match="10000 files"):
        seal_metadata(LINK_SECRET, parcel(files=(*files, entry("one more"))))


def test_unknown_members_are_ignored() -> None:
    files = [document()["files"][0] | {"colour": "blue"}]
    richer = document(later={"any": ["thing"]}, files=files)
    assert open_metadata(LINK_SECRET, forge(json.dumps(richer).encode())) == parcel()


INVALID_MEMBERS = [
    ("version", 0, "version is not 1"),
    ("version", 2, "version is not 1"),
    ("version", "1", "version"),
    ("title", "x" * 513, "title is longer"),
    ("title", "two\nlines", "U+000A"),
    ("title", "\x1b]0;gotcha\x07", "U+001B"),
    ("title", "abc\u202edef", "U+202E"),
    ("title", None, "title"),
    ("note", "x" * (16 * 1024 + 1), "note is longer"),
    ("note", "a\rb", "U+000D"),
    ("note", "a\u2067b", "U+2067"),
    ("files", [], "1 to 10000 files"),
    ("files", {}, "files"),
    ("release_commitment", "A" * 42, "release_commitment"),
    ("release_commitment", "A" * 44, "release_commitment"),
    ("key_check", "A" * 42 + "B", "key_check"),
    ("key_check", "A" * 42 + "=", "key_check"),
    ("preview", {"media_type": "image/png", "image": base64url.encode(JPEG)}, "preview"),
    ("preview", {"media_type": "image/svg+xml", "image": base64url.encode(b"<svg/>")}, "preview"),
    ("preview", {"media_type": "image/webp", "image": base64url.encode(b"RIFF\0\0\0\0WAVE")}, "preview"),
    ("preview", {"media_type": "image/png", "image": ""}, "preview"),
    (
        "preview",
        {"media_type": "image/png", "image": base64url.encode(PNG.ljust(PREVIEW_SIZE_MAX_BYTES + 1, b"\0"))},
        "256 KiB",
    ),
]


@pytest.mark.parametrize(("member", "wrong", "reason"), INVALID_MEMBERS)
def test_an_invalid_member(member: str, wrong: object, reason: str) -> None:
    with pytest.raises(MetadataInvalid) as refused:
        open_metadata(LINK_SECRET, forge(json.dumps(document(**{member: wrong})).encode()))
    assert reason in refused.value.reason


@pytest.mark.parametrize("member", sorted(document()))
def test_a_missing_member(member: str) -> None:
    incomplete = document()
    del incomplete[member]
    with pytest.raises(MetadataInvalid, match=member):
        open_metadata(LINK_SECRET, forge(json.dumps(incomplete).encode()))


@pytest.mark.parametrize(
    ("member", "wrong", "reason"),
    [
        ("media_type", "text", "media_type"),
        ("media_type", "text/plain; charset=utf-8", "media_type"),
        ("media_type", "Text/Plain", "media_type"),
        ("media_type", "text/plain\n", "media_type"),
        ("size_bytes", -1, "size_bytes"),
        ("size_bytes", 1 << 52, "size_bytes"),
        ("size_bytes", 1.5, "size_bytes"),
        ("modified_at", 253_402_300_800, "modified_at"),
        ("modified_at", -62_135_596_801, "modified_at"),
        ("header", base64url.encode(bytes(40)), "header"),
        ("header", base64url.encode(HEADER[:39]), "header"),
        ("root", base64url.encode(bytes(31)), "root"),
        ("root", 5, "root"),
    ],
)
def test_an_invalid_file(member: str, wrong: object, reason: str) -> None:
    files = [document()["files"][0] | {member: wrong}]
    with pytest.raises(MetadataInvalid) as refused:
        open_metadata(LINK_SECRET, forge(json.dumps(document(files=files)).encode()))
    assert reason in refused.value.reason


@pytest.mark.parametrize(
    "paths", [["../x"], ["/x"], ["a\0"], ["nul"], ["a", "A"], ["a", "a/b"], ["e\u0301"], [""]]
)
def test_hostile_paths(paths: list[str]) -> None:
    files = [document()["files"][0] | {"path": path} for path in paths]
    with pytest.raises(PathRefused):
        open_metadata(LINK_SECRET, forge(json.dumps(document(files=files)).encode()))
    with pytest.raises(PathRefused):
        seal_metadata(LINK_SECRET, parcel(files=tuple(entry(path) for path in paths)))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"title":"\xff"}',
        b'{"title":"\\ud800"}',
        b'{"later":' + b"[" * 1_000_000,
        b'{"version":' + b"9" * 1_000_000 + b"}",
        b'{"version":NaN}',
    ],
    ids=["empty", "null", "list", "open", "utf16", "utf8", "surrogate", "deep", "digits", "nan"],
)
def test_bytes_that_are_no_document(text: bytes) -> None:
    with pytest.raises(MetadataInvalid):
        open_metadata(LINK_SECRET, forge(text))


@pytest.mark.parametrize("member", ["version", "size_bytes", "modified_at"])
@pytest.mark.parametrize("digits", [20, 4_000, 5_000])
def test_integers_too_long_for_any_field(member: str, digits: int) -> None:
    plain = {"version": "1", "size_bytes": "7", "modified_at": "1700000000"}[member]
    text = encode_metadata(parcel()).decode().replace(f'"{member}":{plain}', f'"{member}":{"9" * digits}')
    with pytest.raises(MetadataInvalid) as refused:
        open_metadata(LINK_SECRET, forge(text.encode()))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("wrong", [{"title": "a\nb"}, {"files": ()}, {"key_check": b""}])
def test_nothing_is_sealed_that_would_not_open(wrong: dict[str, Any]) -> None:
    with pytest.raises(StorageError):
        seal_metadata(LINK_SECRET, parcel(**wrong))
