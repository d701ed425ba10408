"""Files as encrypted chunks: Tink's streaming AEAD AES256_GCM_HKDF_1MB without key prefix, byte for byte.

Chunk i is exactly the ciphertext bytes [i MiB, (i+1) MiB), so ranges, parts and metering align on chunks:

    header  = 0x28 || salt[32] || nonce_prefix[7]
    key     = HKDF-SHA256(file_key, salt, info=associated_data)
    segment = AES-256-GCM(key, nonce_prefix || uint32_be(i) || last, plaintext_i) with its 16-byte tag
    chunk 0 = header || segment 0;  chunk i = segment i

Chunks are opened and sealed in any order. In a loop use the `_into` methods with one buffer: a fresh MiB each
time costs ten times what the encryption does.

A pair (file key, header) must never seal two different plaintexts under one index: that reuses a GCM nonce
and gives both away. Whoever resumes an upload compares digests before sending. Format: docs/FORMAT.md.
"""

import os
from typing import BinaryIO, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from storage.errors import (
    ChunkAuthenticationFailed,
    ChunkSizeWrong,
    CiphertextTruncated,
    HeaderInvalid,
    SecretSizeWrong,
    SizeImpossible,
)

Bytes: TypeAlias = bytes | bytearray | memoryview

CHUNK_SIZE_BYTES = 1 << 20
HEADER_SIZE_BYTES = 40
TAG_SIZE_BYTES = 16
FIRST_CHUNK_PLAINTEXT_BYTES = CHUNK_SIZE_BYTES - HEADER_SIZE_BYTES - TAG_SIZE_BYTES
NEXT_CHUNK_PLAINTEXT_BYTES = CHUNK_SIZE_BYTES - TAG_SIZE_BYTES
CONTENT_INFO = b"bitcache/v1/content"

FILE_KEY_SIZE_BYTES = 32
SALT_SIZE_BYTES = 32
# The index is four bytes of the nonce: a larger file would use a nonce twice.
CHUNK_COUNT_MAX = 1 << 32
PLAINTEXT_SIZE_MAX_BYTES = CHUNK_COUNT_MAX * NEXT_CHUNK_PLAINTEXT_BYTES - HEADER_SIZE_BYTES
CIPHERTEXT_SIZE_MIN_BYTES = HEADER_SIZE_BYTES + TAG_SIZE_BYTES
CIPHERTEXT_SIZE_MAX_BYTES = CHUNK_COUNT_MAX * CHUNK_SIZE_BYTES


# Sizes and places


def ciphertext_size(plaintext_bytes: int) -> int:
    """Length of the ciphertext of a file of `plaintext_bytes`. Raises SizeImpossible."""
    if plaintext_bytes < 0:
        raise SizeImpossible(plaintext_bytes, "it is negative")
    if plaintext_bytes > PLAINTEXT_SIZE_MAX_BYTES:
        raise SizeImpossible(plaintext_bytes, f"the most is {PLAINTEXT_SIZE_MAX_BYTES}")
    framed_bytes = HEADER_SIZE_BYTES + plaintext_bytes
    chunks = max(1, -(-framed_bytes // NEXT_CHUNK_PLAINTEXT_BYTES))
    return framed_bytes + chunks * TAG_SIZE_BYTES


def plaintext_size(ciphertext_bytes: int) -> int:
    """Length of the file inside `ciphertext_bytes` of ciphertext.

    Raises SizeImpossible for lengths that `ciphertext_size` never gives: only an empty file has a chunk
    without plaintext.
    """
    if ciphertext_bytes < CIPHERTEXT_SIZE_MIN_BYTES:
        raise SizeImpossible(ciphertext_bytes, f"a ciphertext has at least {CIPHERTEXT_SIZE_MIN_BYTES} bytes")
    if ciphertext_bytes > CIPHERTEXT_SIZE_MAX_BYTES:
        raise SizeImpossible(ciphertext_bytes, f"the most is {CIPHERTEXT_SIZE_MAX_BYTES}")
    chunks = -(-ciphertext_bytes // CHUNK_SIZE_BYTES)
    if chunks > 1 and 1 <= ciphertext_bytes % CHUNK_SIZE_BYTES <= TAG_SIZE_BYTES:
        raise SizeImpossible(ciphertext_bytes, "its last chunk has no room for a byte of plaintext")
    return ciphertext_bytes - HEADER_SIZE_BYTES - chunks * TAG_SIZE_BYTES


def chunk_count(ciphertext_bytes: int) -> int:
    """Number of chunks in `ciphertext_bytes` of ciphertext, at least 1. Raises SizeImpossible."""
    plaintext_size(ciphertext_bytes)
    return -(-ciphertext_bytes // CHUNK_SIZE_BYTES)


def chunk_span(index: int, ciphertext_bytes: int) -> tuple[int, int]:
    """(offset, length) of chunk `index` in the ciphertext. Raises SizeImpossible, IndexError."""
    if not 0 <= index < chunk_count(ciphertext_bytes):
        raise IndexError(f"no chunk {index} in {ciphertext_bytes} bytes of ciphertext")
    offset = index * CHUNK_SIZE_BYTES
    return offset, min(CHUNK_SIZE_BYTES, ciphertext_bytes - offset)


def plaintext_span(index: int, ciphertext_bytes: int) -> tuple[int, int]:
    """(offset, length) in the plain file of what chunk `index` holds. Raises SizeImpossible, IndexError."""
    _, length = chunk_span(index, ciphertext_bytes)
    if index == 0:
        return 0, length - HEADER_SIZE_BYTES - TAG_SIZE_BYTES
    return index * NEXT_CHUNK_PLAINTEXT_BYTES - HEADER_SIZE_BYTES, length - TAG_SIZE_BYTES


# One chunk at a time


def new_header() -> bytes:
    """A fresh random header, 40 bytes. One per encryption: never use it again for other bytes."""
    return bytes([HEADER_SIZE_BYTES]) + os.urandom(HEADER_SIZE_BYTES - 1)


def check_header(header: Bytes) -> bytes:
    """`header` as bytes. Raises HeaderInvalid unless it is 40 bytes starting with 0x28."""
    if len(header) != HEADER_SIZE_BYTES or header[0] != HEADER_SIZE_BYTES:
        raise HeaderInvalid(
            "The file does not begin with a Bitcache header. Check that it is the right file."
        )
    return bytes(header)


class ContentCipher:
    """Seals and opens the chunks of one file. Immutable, so threads may share it.

    Raises SecretSizeWrong, HeaderInvalid.
    """

    def __init__(self, file_key: bytes, header: bytes, *, associated_data: bytes = CONTENT_INFO) -> None:
        if len(file_key) != FILE_KEY_SIZE_BYTES:
            raise SecretSizeWrong("file key", length_bytes=len(file_key))
        self.header = check_header(header)
        salt = self.header[1 : 1 + SALT_SIZE_BYTES]
        self._nonce_prefix = self.header[1 + SALT_SIZE_BYTES :]
        self._gcm = AESGCM(HKDF(SHA256(), FILE_KEY_SIZE_BYTES, salt, associated_data).derive(file_key))

    def seal_chunk(self, index: int, plaintext: Bytes, *, last: bool) -> bytes:
        """The ciphertext chunk; chunk 0 begins with the header.

        Raises ChunkSizeWrong unless `plaintext` fills the chunk or, for the last one, fits it.
        """
        _check_plaintext_length(index, len(plaintext), last=last)
        segment = self._gcm.encrypt(self._nonce(index, last=last), plaintext, None)
        return self.header + segment if index == 0 else segment

    def seal_chunk_into(
        self, index: int, plaintext: Bytes, chunk: bytearray | memoryview, *, last: bool
    ) -> int:
        """`seal_chunk` into the front of `chunk` (1 MiB is always enough); the length written. No copy."""
        _check_plaintext_length(index, len(plaintext), last=last)
        start = _header_size(index)
        end = start + len(plaintext) + TAG_SIZE_BYTES
        view = memoryview(chunk)
        view[:start] = self.header[:start]
        self._gcm.encrypt_into(self._nonce(index, last=last), plaintext, None, view[start:end])
        return end

    def open_chunk(self, index: int, chunk: Bytes, *, last: bool) -> bytes:
        """The plaintext of a whole ciphertext chunk (chunk 0 with its header).

        Raises ChunkSizeWrong, HeaderInvalid (chunk 0 has another header), ChunkAuthenticationFailed.
        """
        segment = self._segment(index, chunk, last=last)
        try:
            return self._gcm.decrypt(self._nonce(index, last=last), segment, None)
        except InvalidTag:
            raise ChunkAuthenticationFailed(index) from None

    def open_chunk_into(
        self, index: int, chunk: Bytes, plaintext: bytearray | memoryview, *, last: bool
    ) -> int:
        """`open_chunk` into the front of `plaintext` (1 MiB is always enough); the length written. No copy.

        Nothing unauthenticated is left in `plaintext` after an error.
        """
        segment = self._segment(index, chunk, last=last)
        length = len(segment) - TAG_SIZE_BYTES
        target = memoryview(plaintext)[:length]
        try:
            return self._gcm.decrypt_into(self._nonce(index, last=last), segment, None, target)
        except InvalidTag:
            # AES-GCM decrypts before it compares tags: do not leave what it wrote.
            target[:] = bytes(length)
            raise ChunkAuthenticationFailed(index) from None

    def _segment(self, index: int, chunk: Bytes, *, last: bool) -> memoryview:
        """The part of `chunk` that is AES-GCM output, once its length and header are right."""
        _check_index(index)
        start = _header_size(index)
        least_bytes = start + TAG_SIZE_BYTES + (index > 0) if last else CHUNK_SIZE_BYTES
        if not least_bytes <= len(chunk) <= CHUNK_SIZE_BYTES:
            raise ChunkSizeWrong(
                index, length_bytes=len(chunk), expected=f"{least_bytes} to {CHUNK_SIZE_BYTES}"
            )
        view = memoryview(chunk)
        if view[:start] != self.header[:start]:
            raise HeaderInvalid(
                "The file begins with another header than its key belongs to. Download it again."
            )
        return view[start:]

    def _nonce(self, index: int, *, last: bool) -> bytes:
        return self._nonce_prefix + index.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


# Whole files


def encrypt(
    file_key: bytes, source: BinaryIO, sink: BinaryIO, *, associated_data: bytes = CONTENT_INFO
) -> None:
    """Encrypt all of `source` into `sink` under a fresh header, in constant memory.

    `sink.write` is lent its argument: it must copy what it keeps.
    Raises SecretSizeWrong, SizeImpossible, and what `source` and `sink` raise.
    """
    cipher = ContentCipher(file_key, new_header(), associated_data=associated_data)
    chunk = bytearray(CHUNK_SIZE_BYTES)
    current, following = bytearray(NEXT_CHUNK_PLAINTEXT_BYTES), bytearray(NEXT_CHUNK_PLAINTEXT_BYTES)
    index, length = 0, _fill(source, memoryview(current)[:FIRST_CHUNK_PLAINTEXT_BYTES])
    while True:
        # Only the end of the source tells which chunk is the last, so read one ahead.
        length_following = _fill(source, memoryview(following))
        last = length_following == 0
        written = cipher.seal_chunk_into(index, memoryview(current)[:length], chunk, last=last)
        _write(sink, memoryview(chunk)[:written])
        if last:
            return
        current, following = following, current
        index, length = index + 1, length_following


def decrypt(
    file_key: bytes, source: BinaryIO, sink: BinaryIO, *, associated_data: bytes = CONTENT_INFO
) -> None:
    """Decrypt all of `source` into `sink`, in constant memory.

    Every byte written is authentic, but only a normal return says that the file is whole: write to a
    temporary name. Raises SecretSizeWrong, HeaderInvalid, ChunkAuthenticationFailed, CiphertextTruncated,
    and what `source` and `sink` raise.
    """
    current, following = bytearray(CHUNK_SIZE_BYTES), bytearray(CHUNK_SIZE_BYTES)
    plaintext = bytearray(NEXT_CHUNK_PLAINTEXT_BYTES)
    index, length = 0, _fill(source, memoryview(current))
    if length < HEADER_SIZE_BYTES:
        raise CiphertextTruncated(0)
    cipher = ContentCipher(file_key, bytes(current[:HEADER_SIZE_BYTES]), associated_data=associated_data)
    while True:
        length_following = _fill(source, memoryview(following))
        last = length_following == 0
        if last and length < _header_size(index) + TAG_SIZE_BYTES + (index > 0):
            raise CiphertextTruncated(index)
        chunk = memoryview(current)[:length]
        try:
            opened = cipher.open_chunk_into(index, chunk, plaintext, last=last)
        except ChunkAuthenticationFailed:
            if last and _opens(cipher, index, chunk, last=False):
                raise CiphertextTruncated(index) from None
            raise
        _write(sink, memoryview(plaintext)[:opened])
        if last:
            return
        current, following = following, current
        index, length = index + 1, length_following


def _header_size(index: int) -> int:
    return HEADER_SIZE_BYTES if index == 0 else 0


def _check_plaintext_length(index: int, length_bytes: int, *, last: bool) -> None:
    _check_index(index)
    most_bytes = NEXT_CHUNK_PLAINTEXT_BYTES - _header_size(index)
    # Only an empty file has a chunk without plaintext, so that every file has one length of ciphertext.
    least_bytes = int(index > 0) if last else most_bytes
    if not least_bytes <= length_bytes <= most_bytes:
        expected = f"{least_bytes} to {most_bytes} of plaintext"
        raise ChunkSizeWrong(index, length_bytes=length_bytes, expected=expected)


def _check_index(index: int) -> None:
    if not 0 <= index < CHUNK_COUNT_MAX:
        raise SizeImpossible(index * CHUNK_SIZE_BYTES, f"the most is {CIPHERTEXT_SIZE_MAX_BYTES}")


def _opens(cipher: ContentCipher, index: int, chunk: memoryview, *, last: bool) -> bool:
    try:
        cipher.open_chunk(index, chunk, last=last)
    except (ChunkAuthenticationFailed, ChunkSizeWrong):
        return False
    return True


def _fill(source: BinaryIO, buffer: memoryview) -> int:
    """Read until `buffer` is full or the source ends: pipes and sockets give short reads. The length read."""
    readinto = getattr(source, "readinto", None)
    filled = 0
    while filled < len(buffer):
        rest = buffer[filled:]
        if readinto is not None:
            count = readinto(rest)
        else:
            piece = source.read(len(rest))
            count = None if piece is None else len(piece)
            if count:
                rest[:count] = piece
        if count is None:
            raise BlockingIOError("The source is non-blocking and has nothing yet. Open it in blocking mode.")
        if count == 0:
            break
        filled += count
    return filled


def _write(sink: BinaryIO, piece: memoryview) -> None:
    """Write all of `piece`: unbuffered sinks may take less at a time."""
    while piece:
        count = sink.write(piece)
        if count is None:
            raise BlockingIOError("The sink is non-blocking and full. Open it in blocking mode.")
        piece = piece[count:]
