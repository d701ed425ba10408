"""The hidden folder in which a download grows: what is there already, under which name, and only one process.

    N.part      file N of the parcel, in plain, growing       N.part.map    which chunks of it are there
    N.whole     the same, complete and durable                N.sealed      ciphertext, until the key is there
    release     the release secret of a parcel paid per chunk

A full map without part and whole says that the file was given its final name.
"""

import contextlib
import os
from types import TracebackType
from typing import Self

from bitcache.client.chunk_files import ChunkVerifier, PlainFile, SealedFile
from bitcache.client.errors import AlreadyRunning
from bitcache.client.parcel import ParcelFile
from bitcache.client.target import WORK_PREFIX, Target
from bitcache.file_lock import lock_or_refuse
from storage import stream
from storage.keys import SECRET_SIZE_BYTES

RELEASE_NAME = "release"


class WorkFolder:
    """Of one invoice, or one offer, in one target. Use `with`. Raises AlreadyRunning, TargetUnsafe."""

    def __init__(self, target: Target, name: str) -> None:
        self._target = target
        self._name = f"{WORK_PREFIX}{name}"
        self._names: set[str] = set()

    def __enter__(self) -> Self:
        self.descriptor = self._target.open_work_folder(self._name)
        try:
            lock_or_refuse(
                self.descriptor, AlreadyRunning("This download is already under way in another process.")
            )
        except AlreadyRunning:
            os.close(self.descriptor)
            raise
        self._names = set(os.listdir(self.descriptor))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        if error is not None:
            # Nothing arrived, so nothing is worth keeping: leave no trace.
            self._target.remove_empty_work_folder(self._name)

    def remove(self) -> None:
        """All files have their names: the folder goes."""
        self._target.remove_work_folder(self._name)

    def whole_name(self, file: ParcelFile) -> str:
        return f"{file.position}.whole"

    def is_whole(self, file: ParcelFile) -> bool:
        """It is complete and waits for its final name."""
        return self.whole_name(file) in self._names

    def is_placed(self, file: ParcelFile) -> bool:
        """It was complete and has got its final name."""
        if self.is_whole(file) or _part(file) in self._names or f"{_part(file)}.map" not in self._names:
            return False
        return self._claimed_chunks(file) == file.chunk_count

    def bytes_to_come(self, file: ParcelFile) -> int:
        """Roughly how much of the disk the plain file still takes."""
        if self.is_whole(file) or self.is_placed(file):
            return 0
        if _part(file) not in self._names:
            return file.plain_bytes
        return max(0, file.plain_bytes - self._claimed_chunks(file) * stream.CHUNK_SIZE_BYTES)

    def open_plain(self, file: ParcelFile, file_key: bytes, verifier: ChunkVerifier) -> PlainFile:
        """The growing plain file, with what earlier runs left, in plain or as ciphertext, proven. Blocks."""
        plain = PlainFile(self.descriptor, _part(file), file, file_key, verifier)
        plain.recheck()
        if _sealed(file) in self._names:
            sealed = SealedFile(self.descriptor, _sealed(file), file, verifier)
            try:
                plain.adopt(sealed)
            finally:
                sealed.close()
        return plain

    def open_sealed(self, file: ParcelFile, verifier: ChunkVerifier) -> SealedFile:
        """The growing ciphertext; what an earlier run left in it is proven. Blocks."""
        sealed = SealedFile(self.descriptor, _sealed(file), file, verifier)
        sealed.recheck()
        self._names.add(_sealed(file))
        return sealed

    def mark_whole(self, file: ParcelFile) -> None:
        """The plain file is complete and durable: rename it, and drop its ciphertext."""
        os.rename(_part(file), self.whole_name(file), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        self._names.add(self.whole_name(file))
        for name in (_sealed(file), f"{_sealed(file)}.map"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)

    def read_release_secret(self) -> bytes | None:
        """The one that was kept, to be proven again; None if none was."""
        try:
            descriptor = os.open(RELEASE_NAME, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.descriptor)
        except FileNotFoundError:
            return None
        try:
            return os.read(descriptor, SECRET_SIZE_BYTES)
        finally:
            os.close(descriptor)

    def keep_release_secret(self, secret: bytes) -> None:
        """Once all chunks are here nobody need ask, and pay, for one just to be told the secret again."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        descriptor = os.open(RELEASE_NAME, flags, 0o600, dir_fd=self.descriptor)
        try:
            os.write(descriptor, secret)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _claimed_chunks(self, file: ParcelFile) -> int:
        name = f"{_part(file)}.map"
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.descriptor)
        try:
            return os.pread(descriptor, file.chunk_count, 0).count(b"\x01")
        finally:
            os.close(descriptor)


def _part(file: ParcelFile) -> str:
    return f"{file.position}.part"


def _sealed(file: ParcelFile) -> str:
    return f"{file.position}.sealed"
