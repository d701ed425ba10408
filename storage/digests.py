"""Digests of ciphertext: SHA-256 of each chunk, and one root over them.

    root = SHA-256(digest_0 || digest_1 || ...)

A list of digests is always the concatenation, n * 32 bytes, as it is sent and stored.
"""

import hashlib

from storage.errors import DigestMismatch, DigestsInvalid, RootMismatch
from storage.stream import CHUNK_SIZE_BYTES, Bytes

DIGEST_SIZE_BYTES = 32


def chunk_digest(chunk: Bytes) -> bytes:
    """SHA-256 of one ciphertext chunk, 32 bytes; of chunk 0 with its header."""
    return hashlib.sha256(chunk).digest()


def chunk_digests(ciphertext: Bytes) -> bytes:
    """The list of the digests of consecutive chunks; `ciphertext` begins where a chunk does."""
    view = memoryview(ciphertext)
    return b"".join(
        chunk_digest(view[at : at + CHUNK_SIZE_BYTES]) for at in range(0, len(view), CHUNK_SIZE_BYTES)
    )


def root(digests: Bytes) -> bytes:
    """The root, 32 bytes, of the concatenated digests of all chunks in order. Raises DigestsInvalid."""
    _check_whole(digests)
    return hashlib.sha256(digests).digest()


def split(digests: Bytes) -> list[bytes]:
    """The digests one by one. Raises DigestsInvalid."""
    _check_whole(digests)
    return [bytes(digests[at : at + DIGEST_SIZE_BYTES]) for at in range(0, len(digests), DIGEST_SIZE_BYTES)]


def verify_chunk(index: int, chunk: Bytes, digests: Bytes) -> None:
    """Raises DigestMismatch unless `chunk` has digest `index` of the list; IndexError beyond the list."""
    at = index * DIGEST_SIZE_BYTES
    expected = bytes(digests[at : at + DIGEST_SIZE_BYTES])
    if index < 0 or len(expected) != DIGEST_SIZE_BYTES:
        raise IndexError(f"no digest for chunk {index}")
    actual = chunk_digest(chunk)
    if actual != expected:
        raise DigestMismatch(index, expected=expected, actual=actual)


def verify_root(digests: Bytes, expected_root: bytes, *, chunk_count: int) -> None:
    """Raises DigestsInvalid if there are not `chunk_count` digests, RootMismatch if their root differs."""
    _check_whole(digests)
    if len(digests) != chunk_count * DIGEST_SIZE_BYTES:
        count = len(digests) // DIGEST_SIZE_BYTES
        raise DigestsInvalid(f"There are {count} digests for {chunk_count} chunks. Ask for the whole list.")
    actual = root(digests)
    if actual != expected_root:
        raise RootMismatch(expected=expected_root, actual=actual)


def _check_whole(digests: Bytes) -> None:
    if not digests or len(digests) % DIGEST_SIZE_BYTES:
        raise DigestsInvalid(
            f"A list of digests is a multiple of 32 bytes, at least 32, not {len(digests)}. Send all of it."
        )
