"""The bytes of a parcel, written a second time from docs/FORMAT.md alone; no line is shared with our code.

What the page does not say this module cannot know, so a mistake in the page becomes a red test. Whole files
are held in memory: it is a proof, not a product.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CHUNK_BYTES = 1_048_576
PLAIN_BYTES = 1_048_560
HEADER_BYTES = 40
TAG_BYTES = 16
NONCE_BYTES = 12
CIPHERTEXT_BYTES_MAX = 2**52

Kind = Literal[
    "secret-size-wrong",
    "header-invalid",
    "size-impossible",
    "chunk-authentication-failed",
    "ciphertext-truncated",
    "key-unwrap-failed",
    "release-secret-wrong",
    "metadata-authentication-failed",
    "metadata-invalid",
    "path-refused",
    "value-error",
]


class Refused(Exception):
    """Something is not as FORMAT.md has it. `kind` is a word of its section 14."""

    def __init__(self, kind: Kind, *, chunk_index: int | None = None) -> None:
        super().__init__(kind if chunk_index is None else f"{kind} at chunk {chunk_index}")
        self.kind = kind
        self.chunk_index = chunk_index


@dataclass(frozen=True)
class Sealed:
    """A file's ciphertext, with the key and header it was made under."""

    key: bytes
    header: bytes
    chunks: list[bytes]

    @property
    def digests(self) -> list[bytes]:
        return [hashlib.sha256(chunk).digest() for chunk in self.chunks]

    @property
    def root(self) -> bytes:
        return hashlib.sha256(b"".join(self.digests)).digest()

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.chunks))


def encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text) or len(text) % 4 == 1:
        raise Refused("value-error")
    octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(octets) != text:
        raise Refused("value-error")
    return octets


def derive(secret: bytes, info: bytes, salt: bytes = b"") -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def parcel_key(link_secret: bytes, release_secret: bytes) -> bytes:
    _require_secrets(link_secret, release_secret)
    return derive(link_secret + release_secret, b"bitcache/v1/parcel-key")


def metadata_key(link_secret: bytes) -> bytes:
    _require_secrets(link_secret)
    return derive(link_secret, b"bitcache/v1/metadata")


def key_check(key: bytes) -> bytes:
    return derive(key, b"bitcache/v1/key-check")


def release_commitment(release_secret: bytes) -> bytes:
    return hashlib.sha256(b"bitcache/v1/release" + release_secret).digest()


def proven_key(link_secret: bytes, release_secret: bytes, *, commitment: bytes, check: bytes) -> bytes:
    """The parcel key, if the release secret is the one the seller committed to."""
    key = parcel_key(link_secret, release_secret)
    if release_commitment(release_secret) != commitment or key_check(key) != check:
        raise Refused("release-secret-wrong")
    return key


def ciphertext_size(plaintext_bytes: int) -> int:
    chunks = max(1, -(-(plaintext_bytes + HEADER_BYTES) // PLAIN_BYTES))
    return plaintext_bytes + HEADER_BYTES + TAG_BYTES * chunks


def plaintext_size(ciphertext_bytes: int) -> int:
    chunks = -(-ciphertext_bytes // CHUNK_BYTES)
    stub = chunks > 1 and 1 <= ciphertext_bytes % CHUNK_BYTES <= TAG_BYTES
    if ciphertext_bytes < HEADER_BYTES + TAG_BYTES or ciphertext_bytes > CIPHERTEXT_BYTES_MAX or stub:
        raise Refused("size-impossible")
    return ciphertext_bytes - HEADER_BYTES - TAG_BYTES * chunks


def seal_content(plaintext: bytes, *, key: bytes | None = None, header: bytes | None = None) -> Sealed:
    """Encrypt a file, by default under a fresh key and header."""
    key = key or os.urandom(32)
    header = header or b"\x28" + os.urandom(39)
    first_bytes = PLAIN_BYTES - HEADER_BYTES
    rest = range(first_bytes, len(plaintext), PLAIN_BYTES)
    pieces = [plaintext[:first_bytes], *(plaintext[at : at + PLAIN_BYTES] for at in rest)]
    cipher = _content_cipher(key, header)
    segments = [
        cipher.encrypt(_content_nonce(header, index, last=index == len(pieces) - 1), piece, None)
        for index, piece in enumerate(pieces)
    ]
    return Sealed(key, header, [header + segments[0], *segments[1:]])


def open_content(ciphertext: bytes, *, key: bytes) -> bytes:
    """Decrypt a file from its first chunk to its last."""
    if len(ciphertext) < HEADER_BYTES:
        raise Refused("ciphertext-truncated", chunk_index=0)
    header = checked_header(ciphertext[:HEADER_BYTES])
    cipher = _content_cipher(key, header)
    chunks = [ciphertext[at : at + CHUNK_BYTES] for at in range(0, len(ciphertext), CHUNK_BYTES)]
    pieces = []
    for index, chunk in enumerate(chunks):
        segment = chunk[HEADER_BYTES:] if index == 0 else chunk
        if len(segment) < TAG_BYTES or (index > 0 and len(segment) == TAG_BYTES):
            raise Refused("ciphertext-truncated", chunk_index=index)
        last = index == len(chunks) - 1
        piece = _opened(cipher, _content_nonce(header, index, last=last), segment)
        if piece is None:
            # A chunk that opens as one in the middle of the file is good: what follows it was cut off.
            cut = last and _opened(cipher, _content_nonce(header, index, last=False), segment) is not None
            raise Refused("ciphertext-truncated" if cut else "chunk-authentication-failed", chunk_index=index)
        pieces.append(piece)
    return b"".join(pieces)


def wrap(parcel_key: bytes, file_key: bytes, header: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(parcel_key).encrypt(nonce, file_key, b"bitcache/v1/file-key" + header)


def unwrap(parcel_key: bytes, wrapped: bytes, header: bytes) -> bytes:
    checked_header(header)
    if len(wrapped) != 60:
        raise Refused("key-unwrap-failed")
    try:
        return AESGCM(parcel_key).decrypt(
            wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], b"bitcache/v1/file-key" + header
        )
    except InvalidTag as exc:
        raise Refused("key-unwrap-failed") from exc


def checked_header(header: bytes) -> bytes:
    """The header itself, if it is one."""
    if len(header) != HEADER_BYTES or header[0] != 0x28:
        raise Refused("header-invalid")
    return header


def _require_secrets(*secrets: bytes) -> None:
    if any(len(secret) != 32 for secret in secrets):
        raise Refused("secret-size-wrong")


def _content_cipher(key: bytes, header: bytes) -> AESGCM:
    return AESGCM(derive(key, b"bitcache/v1/content", salt=header[1:33]))


def _content_nonce(header: bytes, index: int, *, last: bool) -> bytes:
    return header[33:40] + index.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


def _opened(cipher: AESGCM, nonce: bytes, segment: bytes) -> bytes | None:
    try:
        return cipher.decrypt(nonce, segment, None)
    except InvalidTag:
        return None
