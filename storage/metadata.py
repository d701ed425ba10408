"""What a parcel says about itself, sealed so that only who holds the link reads it.

    sealed = nonce[12] || AES-256-GCM(metadata_key(link_secret), nonce, JSON, aad="bitcache/v1/metadata")

The JSON is written in one way only (sorted keys, no spaces), so one ParcelMetadata gives one document.
Readers ignore members they do not know and trust nothing: a seller may be hostile to the buyer's terminal,
disk and memory.
"""

import os
import re
import unicodedata

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage import base64url
from storage.digests import DIGEST_SIZE_BYTES
from storage.errors import HeaderInvalid, MetadataAuthenticationFailed, MetadataInvalid, PathRefused
from storage.keys import METADATA_INFO, NONCE_SIZE_BYTES, SECRET_SIZE_BYTES, metadata_key
from storage.paths import check_paths
from storage.stream import HEADER_SIZE_BYTES, PLAINTEXT_SIZE_MAX_BYTES, TAG_SIZE_BYTES, check_header

METADATA_VERSION = 1
SEALED_SIZE_MAX_BYTES = 4 << 20
FILE_COUNT_MAX = 10_000
PREVIEW_SIZE_MAX_BYTES = 256 << 10
TITLE_SIZE_MAX_BYTES = 512
NOTE_SIZE_MAX_BYTES = 16 << 10
# Unix seconds of the years 1 to 9999, which every date library can show.
MODIFIED_AT_MIN = -62_135_596_800
MODIFIED_AT_MAX = 253_402_300_799

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Marks, embeddings, overrides and isolates reorder the text around them; other format characters do not.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a parcel.

    `path` as `storage.paths` wants it, `size_bytes` of the plain file, `modified_at` in Unix seconds,
    `header` the 40 bytes its ciphertext begins with, `root` the 32 bytes that stand for its digests.
    """

    path: str
    media_type: str
    size_bytes: int
    modified_at: int
    header: bytes
    root: bytes


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A small picture to see before paying: image/png, image/jpeg or image/webp, at most 256 KiB."""

    media_type: str
    image: bytes


class ParcelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """All the buyer may know before paying. Entry i of `files` describes file i of the parcel.

    `title` is one line of at most 512 bytes, `note` text of at most 16 KiB, both may be empty.
    `release_commitment` and `key_check` are 32 bytes each, from `storage.keys`.
    """

    title: str
    note: str
    preview: Preview | None
    files: tuple[FileEntry, ...]
    release_commitment: bytes
    key_check: bytes


def seal_metadata(link_secret: bytes, metadata: ParcelMetadata) -> bytes:
    """The sealed document, at most 4 MiB. Raises SecretSizeWrong, MetadataInvalid, PathRefused."""
    _check(metadata)
    document = encode_metadata(metadata)
    nonce = os.urandom(NONCE_SIZE_BYTES)
    sealed = nonce + AESGCM(metadata_key(link_secret)).encrypt(nonce, document, METADATA_INFO)
    if len(sealed) > SEALED_SIZE_MAX_BYTES:
        raise MetadataInvalid("it is larger than 4 MiB; use fewer files, shorter names or a smaller preview")
    return sealed


def open_metadata(link_secret: bytes, sealed: bytes) -> ParcelMetadata:
    """The metadata inside, every field checked.

    Raises SecretSizeWrong, MetadataAuthenticationFailed, MetadataInvalid, PathRefused.
    """
    if len(sealed) > SEALED_SIZE_MAX_BYTES:
        raise MetadataInvalid("it is larger than 4 MiB")
    if len(sealed) < NONCE_SIZE_BYTES + TAG_SIZE_BYTES:
        raise MetadataAuthenticationFailed("The parcel's description is cut off. Load it again.")
    nonce, ciphertext = sealed[:NONCE_SIZE_BYTES], sealed[NONCE_SIZE_BYTES:]
    try:
        document = AESGCM(metadata_key(link_secret)).decrypt(nonce, ciphertext, METADATA_INFO)
    except InvalidTag:
        raise MetadataAuthenticationFailed(
            "This link does not open the parcel's description. Copy the whole link again, all after # too."
        ) from None
    metadata = _decode(document)
    _check(metadata)
    return metadata


def encode_metadata(metadata: ParcelMetadata) -> bytes:
    """The JSON document of `metadata`: UTF-8, sorted keys, no spaces, binary as base64url."""
    return msgspec.json.encode(_to_wire(metadata), order="sorted")


# The document as it is on the wire: the same members, binary as text.


class _WireFile(msgspec.Struct, frozen=True):
    path: str
    media_type: str
    size_bytes: int
    modified_at: int
    header: str
    root: str


class _WirePreview(msgspec.Struct, frozen=True):
    media_type: str
    image: str


class _WireMetadata(msgspec.Struct, frozen=True):
    version: int
    title: str
    note: str
    preview: _WirePreview | None
    files: tuple[_WireFile, ...]
    release_commitment: str
    key_check: str


_wire_decoder = msgspec.json.Decoder(_WireMetadata)


def _to_wire(metadata: ParcelMetadata) -> _WireMetadata:
    preview = metadata.preview
    return _WireMetadata(
        version=METADATA_VERSION,
        title=metadata.title,
        note=metadata.note,
        preview=_WirePreview(preview.media_type, base64url.encode(preview.image)) if preview else None,
        files=tuple(
            _WireFile(
                path=file.path,
                media_type=file.media_type,
                size_bytes=file.size_bytes,
                modified_at=file.modified_at,
                header=base64url.encode(file.header),
                root=base64url.encode(file.root),
            )
            for file in metadata.files
        ),
        release_commitment=base64url.encode(metadata.release_commitment),
        key_check=base64url.encode(metadata.key_check),
    )


def _decode(document: bytes) -> ParcelMetadata:
    try:
        wire = _wire_decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MetadataInvalid(f"it is not the expected JSON ({exc})") from exc
    if wire.version != METADATA_VERSION:
        raise MetadataInvalid(f"version is not {METADATA_VERSION}; a newer Bitcache may read it")
    return ParcelMetadata(
        title=wire.title,
        note=wire.note,
        preview=_preview(wire.preview) if wire.preview else None,
        files=tuple(
            FileEntry(
                path=file.path,
                media_type=file.media_type,
                size_bytes=file.size_bytes,
                modified_at=file.modified_at,
                header=_binary("header", file.header),
                root=_binary("root", file.root),
            )
            for file in wire.files
        ),
        release_commitment=_binary("release_commitment", wire.release_commitment),
        key_check=_binary("key_check", wire.key_check),
    )


def _preview(wire: _WirePreview) -> Preview:
    return Preview(media_type=wire.media_type, image=_binary("preview", wire.image))


def _binary(name: str, text: str) -> bytes:
    try:
        return base64url.decode(text)
    except ValueError as exc:
        raise MetadataInvalid(f"{name}: {exc}") from exc


def _check(metadata: ParcelMetadata) -> None:
    _check_text("title", metadata.title, size_max_bytes=TITLE_SIZE_MAX_BYTES, allowed="")
    _check_text("note", metadata.note, size_max_bytes=NOTE_SIZE_MAX_BYTES, allowed="\n\t")
    if metadata.preview is not None:
        _check_preview(metadata.preview)
    _check_length("release_commitment", metadata.release_commitment, DIGEST_SIZE_BYTES)
    _check_length("key_check", metadata.key_check, SECRET_SIZE_BYTES)
    if not 1 <= len(metadata.files) <= FILE_COUNT_MAX:
        raise MetadataInvalid(f"a parcel has 1 to {FILE_COUNT_MAX} files, not {len(metadata.files)}")
    for file in metadata.files:
        _check_file(file)
    paths = [file.path for file in metadata.files]
    for given, normal in zip(paths, check_paths(paths), strict=True):
        if given != normal:
            raise PathRefused(given, "it is not in Unicode normalization form C")


def _check_file(file: FileEntry) -> None:
    if not _MEDIA_TYPE.fullmatch(file.media_type):
        raise MetadataInvalid(
            "media_type is not of the form type/subtype, in lower case and without parameters"
        )
    if not 0 <= file.size_bytes <= PLAINTEXT_SIZE_MAX_BYTES:
        raise MetadataInvalid(f"size_bytes is not between 0 and {PLAINTEXT_SIZE_MAX_BYTES}")
    if not MODIFIED_AT_MIN <= file.modified_at <= MODIFIED_AT_MAX:
        raise MetadataInvalid("modified_at is not in Unix seconds of the years 1 to 9999")
    try:
        check_header(file.header)
    except HeaderInvalid as exc:
        raise MetadataInvalid(f"header is not {HEADER_SIZE_BYTES} bytes starting with 0x28") from exc
    _check_length("root", file.root, DIGEST_SIZE_BYTES)


def _check_preview(preview: Preview) -> None:
    if len(preview.image) > PREVIEW_SIZE_MAX_BYTES:
        raise MetadataInvalid("preview is larger than 256 KiB")
    if preview.media_type != preview_media_type(preview.image):
        raise MetadataInvalid("preview is not what its media_type says; image/png, image/jpeg or image/webp")


def preview_media_type(image: bytes) -> str | None:
    """The media type that the first bytes of a picture tell, or None where it cannot be a preview."""
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "image/webp"
    return None


def _check_text(name: str, text: str, *, size_max_bytes: int, allowed: str) -> None:
    for character in text:
        refused = character in _BIDI_CONTROLS or unicodedata.category(character) in _REFUSED_CATEGORIES
        if refused and character not in allowed:
            raise MetadataInvalid(f"{name} contains the control character U+{ord(character):04X}")
    if len(text.encode()) > size_max_bytes:
        raise MetadataInvalid(f"{name} is longer than {size_max_bytes} bytes")


def _check_length(name: str, octets: bytes, length_bytes: int) -> None:
    if len(octets) != length_bytes:
        raise MetadataInvalid(f"{name} has {len(octets)} bytes instead of {length_bytes}")
