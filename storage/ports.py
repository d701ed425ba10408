"""Where ciphertext is kept. A blob is one file's ciphertext, written in parts, then finished, then only read.

One contract test suite runs on every adapter. Adapters do not inherit from the protocol.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from storage.stream import CHUNK_SIZE_BYTES, Bytes

PART_SIZE_BYTES = 8 * CHUNK_SIZE_BYTES


class BlobState(Enum):
    UPLOADING = "uploading"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One stored blob as a sweep sees it. `modified_at` is the last write, Unix seconds."""

    file_id: str
    state: BlobState
    stored_bytes: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class LocalRange:
    """`length` bytes from `offset` in a local file that never changes: send them with sendfile.

    The blob may be deleted before you open it: FileNotFoundError then means what BlobMissing does.
    """

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StreamRange:
    """`length` bytes as an iterator of pieces. Close it if you stop early."""

    pieces: AsyncIterator[bytes]
    length: int


class BlobStore(Protocol):
    """All methods raise FileIdInvalid for an id that is not 26 lower-case base32 characters."""

    async def write_part(self, file_id: str, part_no: int, data: Bytes) -> None:
        """Store part `part_no` (0, 1, ...), the bytes from `part_no` * 8 MiB; the first part starts the blob.

        Returns once the bytes survive a power cut. Until the blob is finished a part may be written again,
        whole, but never twice at once; who needs "same bytes or refuse" compares digests before calling. On a
        finished blob the same bytes are accepted and nothing is written.
        Raises PartSizeWrong, PartConflict (finished, other bytes), DiskFull and StoreUnavailable (what was
        acknowledged is safe).
        """

    async def finish(self, file_id: str, size_bytes: int) -> None:
        """Make the blob readable and unchangeable, durably. Again is harmless.

        The caller knows that every part was acknowledged. Raises BlobMissing, BlobIncomplete, DiskFull,
        StoreUnavailable.
        """

    async def open_range(self, file_id: str, offset: int, length: int) -> LocalRange | StreamRange:
        """Bytes [offset, offset + length) of a finished blob.

        Raises BlobMissing, RangeOutside, StoreUnavailable.
        """

    async def check(self, file_id: str) -> None:
        """To be called when a finished blob was missed, or was short: what is remembered of it is forgotten.

        Raises StoreUnavailable if the store itself is not there: then no blob is lost.
        """

    async def delete(self, file_id: str) -> None:
        """Forget the blob, finished or not. Deleting what is not there is harmless."""

    def list(self) -> AsyncIterator[BlobInfo]:
        """Every blob, finished or not, in no order; what changes meanwhile may be missed."""

    async def free_bytes(self) -> int | None:
        """Bytes that parts may still take before DiskFull, or None where the store has no bound."""

    async def close(self) -> None:
        """Wait for what is under way, then let go of threads and connections."""
