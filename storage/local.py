"""Blobs in a local folder: one file per blob, each part at its own offset.

    <folder>/<first two characters of the id>/<id>.uploading     while parts arrive
    <folder>/<first two characters of the id>/<id>               finished, never written again

A part is acknowledged after fsync of the file and of the folder that names it; `finish` is one rename.
All disk work runs in threads of its own: a slow disk starves neither the event loop nor its default executor.
"""

import asyncio
import errno
import fcntl
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage.durable import make_folder, sync_folder
from storage.errors import (
    BlobIncomplete,
    BlobMissing,
    DiskFull,
    FileIdInvalid,
    PartConflict,
    PartSizeWrong,
    RangeOutside,
    StoreUnavailable,
)
from storage.ports import PART_SIZE_BYTES, BlobInfo, BlobState, LocalRange
from storage.stream import CIPHERTEXT_SIZE_MAX_BYTES, Bytes

FILE_MODE = 0o600
FOLDER_MODE = 0o700
GROUP_FILE_MODE = 0o640
GROUP_FOLDER_MODE = 0o750
DIRECT_BLOCK_BYTES = 4096
"""What is written past the page cache begins and ends at such blocks, in the file and in memory."""
WORKER_COUNT = 4
REMEMBERED_SIZES_MAX = 10_000
PART_COUNT_MAX = CIPHERTEXT_SIZE_MAX_BYTES // PART_SIZE_BYTES

_FILE_ID = re.compile(r"[a-z2-7]{26}")
_UPLOADING_SUFFIX = ".uploading"
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Broken, read-only, over a limit of the file system or the process, unplugged, another's, or far away.
_DISK_FAILS = frozenset(
    {errno.EIO, errno.EROFS, errno.EFBIG, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EACCES}
    | {errno.EMFILE, errno.ENFILE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}
)

T = TypeVar("T")


class LocalBlobStore:
    """A BlobStore in `folder`, which is created if need be and belongs to this store alone.

    Writing stops while fewer than `reserve_bytes` would stay free on the disk: the database lives there too.
    `group_readable`: finished blobs are for the folder's group too, such as a web server that sends them.
    """

    def __init__(self, folder: Path, *, reserve_bytes: int = 0, group_readable: bool = False) -> None:
        make_folder(folder, mode=FOLDER_MODE)
        self._group_readable = group_readable
        if group_readable:
            folder.chmod(GROUP_FOLDER_MODE)
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._workers = ThreadPoolExecutor(WORKER_COUNT, thread_name_prefix="blob")
        self._durable_shards: set[Path] = set()
        self._finished_sizes: dict[str, int] = {}
        # Held while names appear or change, never while bytes are written.
        self._names_lock = threading.Lock()

    async def write_part(self, file_id: str, part_no: int, data: Bytes) -> None:
        await self._run(lambda: self._write_part(file_id, part_no, data))

    async def finish(self, file_id: str, size_bytes: int) -> None:
        await self._run(lambda: self._finish(file_id, size_bytes))

    async def open_range(self, file_id: str, offset: int, length: int) -> LocalRange:
        finished, _ = self._paths(file_id)
        # A finished blob keeps its size, and asking a thread costs more than all other checks of a request.
        size_bytes = self._finished_sizes.get(file_id)
        if size_bytes is None:
            size_bytes = await self._run(lambda: _finished_size(finished, file_id))
            if len(self._finished_sizes) >= REMEMBERED_SIZES_MAX:
                self._finished_sizes.clear()
            self._finished_sizes[file_id] = size_bytes
        if offset < 0 or length < 1 or offset + length > size_bytes:
            raise RangeOutside(offset=offset, length=length, size_bytes=size_bytes)
        return LocalRange(finished, offset, length)

    async def check(self, file_id: str) -> None:
        self._finished_sizes.pop(file_id, None)
        await self._run(self._check)

    async def delete(self, file_id: str) -> None:
        await self._run(lambda: self._delete(file_id))
        self._finished_sizes.pop(file_id, None)

    async def list(self) -> AsyncIterator[BlobInfo]:
        for shard in await self._run(lambda: [path for path in self._folder.iterdir() if path.is_dir()]):
            for blob in await self._run(partial(_blobs_in, shard)):
                yield blob

    async def free_bytes(self) -> int:
        return max(0, await self._run(self._disk_free_bytes) - self._reserve_bytes)

    async def close(self) -> None:
        await asyncio.to_thread(self._workers.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._workers, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread goes on: nobody may reuse its buffer, or write the part again, before it ends.
            await asyncio.wait({future})
            raise

    def _write_part(self, file_id: str, part_no: int, data: Bytes) -> None:
        finished, uploading = self._paths(file_id)
        if not 1 <= len(data) <= PART_SIZE_BYTES or not 0 <= part_no < PART_COUNT_MAX:
            raise PartSizeWrong(part_no, length_bytes=len(data))
        offset = part_no * PART_SIZE_BYTES
        with _disk_trouble_named(), self._names_lock:
            file = None if finished.exists() else self._open_uploading(uploading, len(data))
        if file is None:
            if _read(finished, offset, len(data)) != data:
                raise PartConflict(file_id, part_no)
            return
        with _disk_trouble_named(), _closing(file):
            _write(file, data, offset)
            os.fsync(file)
            sync_folder(uploading.parent)

    def _finish(self, file_id: str, size_bytes: int) -> None:
        finished, uploading = self._paths(file_id)
        with _disk_trouble_named(), self._names_lock:
            # A crash may have come between the rename and the caller's note of it.
            present = finished if finished.exists() else uploading
            try:
                stored_bytes = present.stat().st_size
            except FileNotFoundError as exc:
                self._check_still_there()
                raise BlobMissing(file_id) from exc
            if stored_bytes != size_bytes:
                raise BlobIncomplete(file_id, size_bytes=size_bytes, stored_bytes=stored_bytes)
            if self._group_readable:
                # Explicit, since services run with a umask that takes the group's rights away.
                present.chmod(GROUP_FILE_MODE)
                present.parent.chmod(GROUP_FOLDER_MODE)
            present.rename(finished)
        with _disk_trouble_named():
            sync_folder(finished.parent)

    def _delete(self, file_id: str) -> None:
        finished, uploading = self._paths(file_id)
        with self._names_lock:
            finished.unlink(missing_ok=True)
            uploading.unlink(missing_ok=True)
        if finished.parent.exists():
            sync_folder(finished.parent)

    def _paths(self, file_id: str) -> tuple[Path, Path]:
        return blob_paths(self._folder, file_id)

    def _open_uploading(self, uploading: Path, length: int) -> int:
        """A descriptor to write `length` bytes to, in a shard that a power cut leaves in place."""
        free_bytes = self._disk_free_bytes()
        if free_bytes - length < self._reserve_bytes:
            raise DiskFull(free_bytes=free_bytes, reserve_bytes=self._reserve_bytes)
        shard = uploading.parent
        self._check_still_there()
        if shard not in self._durable_shards or not shard.exists():
            shard.mkdir(mode=FOLDER_MODE, exist_ok=True)
            sync_folder(self._folder)
            self._durable_shards.add(shard)
        return os.open(uploading, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)

    def _check(self) -> None:
        """A disk that is not mounted leaves an empty folder; a blob that is lost leaves its shard."""
        with _disk_trouble_named():
            try:
                if any(path.is_dir() for path in self._folder.iterdir()):
                    return
            except FileNotFoundError:
                pass
        raise StoreUnavailable

    def _check_still_there(self) -> None:
        """What would be written under a disk that was unmounted is hidden when it comes back."""
        if self._durable_shards:
            self._check()

    def _disk_free_bytes(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize


def blob_paths(folder: Path, file_id: str) -> tuple[Path, Path]:
    """(finished, uploading) of a blob in a store's folder. The only place where an id becomes a path.

    Raises FileIdInvalid.
    """
    if not _FILE_ID.fullmatch(file_id):
        raise FileIdInvalid("A file id is 26 characters of a-z and 2-7. Use the id that the server gave.")
    finished = folder / file_id[:2] / file_id
    return finished, finished.with_name(file_id + _UPLOADING_SUFFIX)


def _finished_size(finished: Path, file_id: str) -> int:
    try:
        with _disk_trouble_named():
            return finished.stat().st_size
    except FileNotFoundError as exc:
        raise BlobMissing(file_id) from exc


def _blobs_in(shard: Path) -> list[BlobInfo]:
    blobs = []
    for path in shard.iterdir():
        file_id = path.name.removesuffix(_UPLOADING_SUFFIX)
        if not _FILE_ID.fullmatch(file_id):
            continue
        try:
            stat = path.lstat()
        except FileNotFoundError:
            continue  # deleted or finished meanwhile
        state = BlobState.FINISHED if path.name == file_id else BlobState.UPLOADING
        blobs.append(BlobInfo(file_id, state, stat.st_size, int(stat.st_mtime)))
    return blobs


@contextmanager
def _closing(file: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(file)


def _write(file: int, data: Bytes, offset: int) -> None:
    rest = memoryview(data)
    written = _write_direct(file, rest, offset)
    rest, offset = rest[written:], offset + written
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _write_direct(file: int, data: memoryview, offset: int) -> int:
    """How many bytes went past the page cache, straight to the disk where they are wanted next.

    Copying them into the cache would cost more processor time than all else of an upload, and push out what
    buyers are reading. 0 where the file system or the place of `data` in memory does not allow it.
    """
    length = len(data) - len(data) % DIRECT_BLOCK_BYTES
    if not length or not hasattr(os, "O_DIRECT"):
        return 0
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        return os.pwrite(file, data[:length], offset)
    except OSError as exc:
        if exc.errno not in _NOT_DIRECT:
            raise
        return 0
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@contextmanager
def _disk_trouble_named() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _OUT_OF_SPACE:
            raise DiskFull from exc
        if exc.errno in _DISK_FAILS:
            raise StoreUnavailable from exc
        raise
