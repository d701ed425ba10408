"""Chunks of a file as they arrive on disk, in any order, and what survives a crash of them.

Beside each file `NAME` a map `NAME.map` has one byte per chunk, set after the chunk is written. Neither is
synced on the way: at the next start every chunk that the map claims is read back and proven against its
digest, so a map that says too much after a power cut costs a download, never a wrong file.

Only verified chunks are written: `SealedFile` keeps ciphertext until the key is there, `PlainFile` plaintext.
All methods block: call them in threads. Different chunks may be put at the same time.
"""

import os
import threading
from typing import Protocol

from bitcache.client.errors import FileAltered
from bitcache.client.parcel import ParcelFile
from storage import digests as digest_list
from storage import stream
from storage.errors import (
    ChunkAuthenticationFailed,
    DigestMismatch,
    DigestsInvalid,
    HeaderInvalid,
    RootMismatch,
)
from storage.stream import Bytes, ContentCipher

_HERE = b"\x01"
_thread = threading.local()


class ChunkSink(Protocol):
    """What a transfer fills."""

    def put(self, index: int, chunk: Bytes) -> None:
        """Verify and keep ciphertext chunk `index`. Raises FileAltered, OSError."""

    def missing(self) -> list[int]:
        """Indices of the chunks that are not there, ascending."""

    def recheck(self) -> None:
        """Forget every claimed chunk that is not on disk as it should be."""

    def close(self) -> None: ...


class _MappedFile:
    """A file in the work folder `folder` (a descriptor) with its map."""

    def __init__(self, folder: int, name: str, *, chunk_count: int, mode: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._map = os.open(f"{name}.map", flags, 0o600, dir_fd=folder)
        self._file = os.open(name, flags, mode, dir_fd=folder)
        self._here = bytearray(os.pread(self._map, chunk_count, 0).ljust(chunk_count, b"\x00"))

    def close(self) -> None:
        os.close(self._file)
        os.close(self._map)

    def claimed(self) -> list[int]:
        return [index for index, here in enumerate(self._here) if here]

    def missing(self) -> list[int]:
        return [index for index, here in enumerate(self._here) if not here]

    def write(self, index: int, offset: int, octets: Bytes) -> None:
        _pwrite_all(self._file, octets, offset)
        os.pwrite(self._map, _HERE, index)
        self._here[index] = 1

    def forget(self, index: int) -> None:
        os.pwrite(self._map, b"\x00", index)
        self._here[index] = 0

    def read(self, offset: int, length: int) -> bytes:
        """What is there, which may be less than `length`."""
        return os.pread(self._file, length, offset)

    def sync(self) -> None:
        os.fsync(self._file)
        os.fsync(self._map)

    def set_modified_at(self, modified_at: int) -> None:
        os.utime(self._file, (modified_at, modified_at))


class ChunkVerifier:
    """Proves the chunks of `file` by its list of digests, or, where there is only one chunk, by the root."""

    def __init__(self, file: ParcelFile, digests: bytes | None) -> None:
        """`digests` is the whole list, n * 32 bytes; None only for a single chunk. Raises FileAltered."""
        try:
            if digests is not None:
                digest_list.verify_root(digests, file.root, chunk_count=file.chunk_count)
        except (DigestsInvalid, RootMismatch) as exc:
            raise FileAltered(file.path, exc) from exc
        assert digests is not None or file.chunk_count == 1
        self._file = file
        self._digests = digests

    def check(self, index: int, chunk: Bytes) -> None:
        """Raises DigestMismatch."""
        if self._digests is not None:
            digest_list.verify_chunk(index, chunk, self._digests)
            return
        digest = digest_list.chunk_digest(chunk)
        if digest_list.root(digest) != self._file.root:
            raise DigestMismatch(index, expected=self._file.root, actual=digest_list.root(digest))


class SealedFile:
    """Ciphertext of one file, kept until the key comes."""

    def __init__(self, folder: int, name: str, file: ParcelFile, verifier: ChunkVerifier) -> None:
        self._source = file
        self._verifier = verifier
        self._mapped = _MappedFile(folder, name, chunk_count=file.chunk_count, mode=0o600)

    def close(self) -> None:
        self._mapped.close()

    def missing(self) -> list[int]:
        return self._mapped.missing()

    def put(self, index: int, chunk: Bytes) -> None:
        """Raises FileAltered."""
        try:
            self._verifier.check(index, chunk)
        except DigestMismatch as exc:
            raise FileAltered(self._source.path, exc) from exc
        self._mapped.write(index, index * stream.CHUNK_SIZE_BYTES, chunk)

    def recheck(self) -> None:
        """Forget every claimed chunk that is not on disk as it should be."""
        for index in self._mapped.claimed():
            if self.get(index) is None:
                self._mapped.forget(index)

    def get(self, index: int) -> bytes | None:
        """Chunk `index`, proven again, or None if it is not there."""
        chunk = self._mapped.read(*stream.chunk_span(index, self._source.cipher_bytes))
        try:
            self._verifier.check(index, chunk)
        except DigestMismatch:
            return None
        return chunk

    def claimed(self) -> list[int]:
        return self._mapped.claimed()


class PlainFile:
    """Plaintext of one file, growing under a temporary name."""

    def __init__(
        self, folder: int, name: str, file: ParcelFile, file_key: bytes, verifier: ChunkVerifier
    ) -> None:
        self._source = file
        self._verifier = verifier
        self._cipher = ContentCipher(file_key, file.header)
        self._mapped = _MappedFile(folder, name, chunk_count=file.chunk_count, mode=0o666)

    def close(self) -> None:
        self._mapped.close()

    def missing(self) -> list[int]:
        return self._mapped.missing()

    def put(self, index: int, chunk: Bytes) -> None:
        """Raises FileAltered."""
        last = index == self._source.chunk_count - 1
        try:
            self._verifier.check(index, chunk)
            plaintext = _scratch()
            length = self._cipher.open_chunk_into(index, chunk, plaintext, last=last)
        except (DigestMismatch, ChunkAuthenticationFailed, HeaderInvalid) as exc:
            raise FileAltered(self._source.path, exc) from exc
        offset, _ = stream.plaintext_span(index, self._source.cipher_bytes)
        self._mapped.write(index, offset, plaintext[:length])

    def recheck(self) -> None:
        """Forget every claimed chunk that is not on disk as it should be: sealed again it has its digest."""
        for index in self._mapped.claimed():
            offset, length = stream.plaintext_span(index, self._source.cipher_bytes)
            plaintext = self._mapped.read(offset, length)
            if len(plaintext) != length or not self._is_genuine(index, plaintext):
                self._mapped.forget(index)

    def adopt(self, sealed: SealedFile) -> None:
        """Decrypt what `sealed` has and this file has not."""
        missing = set(self.missing())
        for index in sealed.claimed():
            chunk = sealed.get(index) if index in missing else None
            if chunk is not None:
                self.put(index, chunk)

    def finish(self) -> None:
        """Make the whole file durable, with the seller's modification time."""
        self._mapped.set_modified_at(self._source.modified_at)
        self._mapped.sync()

    def _is_genuine(self, index: int, plaintext: bytes) -> bool:
        chunk = self._cipher.seal_chunk(index, plaintext, last=index == self._source.chunk_count - 1)
        try:
            self._verifier.check(index, chunk)
        except DigestMismatch:
            return False
        return True


def is_genuine(descriptor: int, file: ParcelFile, file_key: bytes) -> bool:
    """Whether the plain file open in `descriptor` is the seller's: sealed again it has its root. Blocks."""
    cipher = ContentCipher(file_key, file.header)
    listed = bytearray()
    for index in range(file.chunk_count):
        offset, length = stream.plaintext_span(index, file.cipher_bytes)
        plaintext = os.pread(descriptor, length, offset)
        if len(plaintext) != length:
            return False
        chunk = cipher.seal_chunk(index, plaintext, last=index == file.chunk_count - 1)
        listed += digest_list.chunk_digest(chunk)
    return digest_list.root(listed) == file.root


def _scratch() -> memoryview:
    """1 MiB that this thread uses again and again: fresh memory costs more than decrypting into it."""
    if not hasattr(_thread, "scratch"):
        _thread.scratch = memoryview(bytearray(stream.CHUNK_SIZE_BYTES))
    scratch: memoryview = _thread.scratch
    return scratch


def _pwrite_all(descriptor: int, octets: Bytes, offset: int) -> None:
    rest = memoryview(octets)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
