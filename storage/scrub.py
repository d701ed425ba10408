"""Is stored ciphertext still what was stored? Every chunk's SHA-256 against the digest that was kept of it.

Disks lose bytes without a word, and a buyer would be the first to hear of it.
"""

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from storage.digests import DIGEST_SIZE_BYTES, chunk_digests
from storage.errors import BlobMissing, RangeOutside, StoreUnavailable
from storage.ports import BlobStore, LocalRange, StreamRange
from storage.stream import CHUNK_SIZE_BYTES, chunk_count

_BYTES_LOST = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EISDIR, errno.ENOTDIR, errno.ENOENT})
"""What disks say of bad sectors and file systems of themselves, and what something else in a blob's place."""


class Pace:
    """`await pace(n)` after each `n` bytes, and no more than `bytes_per_s` are read."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._due_at = monotonic()

    async def __call__(self, length_bytes: int) -> None:
        # Time that was not used is not saved up: after a pause the disk is not read at full speed.
        self._due_at = max(self._due_at, self._monotonic()) + length_bytes / self._bytes_per_s
        await self._sleep(max(0.0, self._due_at - self._monotonic()))


async def damaged_chunks(
    blobs: BlobStore, file_id: str, *, size_bytes: int, digests: bytes, pace: Pace
) -> list[int]:
    """Numbers of the chunks of a finished blob that are not as they were: altered, unreadable or missing.

    `digests`: 32 bytes for each chunk, in order. Raises StoreUnavailable where it is not the file's fault
    that its bytes cannot be had.
    """
    damaged = []
    for chunk_no in range(chunk_count(size_bytes)):
        offset = chunk_no * CHUNK_SIZE_BYTES
        length = min(CHUNK_SIZE_BYTES, size_bytes - offset)
        kept = digests[chunk_no * DIGEST_SIZE_BYTES : (chunk_no + 1) * DIGEST_SIZE_BYTES]
        if await _digest(blobs, file_id, offset, length) != kept:
            damaged.append(chunk_no)
        await pace(length)
    return damaged


async def _digest(blobs: BlobStore, file_id: str, offset: int, length: int) -> bytes | None:
    """The SHA-256 of one chunk as it is stored now; None if its bytes cannot be had."""
    try:
        source = await blobs.open_range(file_id, offset, length)
        match source:
            case LocalRange():
                return await asyncio.to_thread(_local_digest, source.path, offset, length)
            case StreamRange():
                return chunk_digests(b"".join([piece async for piece in source.pieces]))
    except (BlobMissing, RangeOutside):
        return None
    except (StoreUnavailable, OSError) as exc:
        cause = exc.__cause__ if isinstance(exc, StoreUnavailable) else exc
        if isinstance(cause, OSError) and cause.errno in _BYTES_LOST:
            return None
        raise StoreUnavailable from exc


def _local_digest(path: Path, offset: int, length: int) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        _forget_cached(file, offset, length)
        chunk = os.pread(file, length, offset)
        _forget_cached(file, offset, length)
    finally:
        os.close(file)
    return chunk_digests(chunk)


def _forget_cached(file: int, offset: int, length: int) -> None:
    """What is asked is the disk and not memory's copy; and buyers' pages should not make room for a scrub."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)
