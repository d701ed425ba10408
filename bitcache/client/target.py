"""Where a download lands. Nothing is written outside the folder the user named, whatever the paths say.

Everything is done relative to open folders, and no symbolic link below the user's folder is followed.
Unfinished files live in a hidden folder inside it: the same disk, so that the final step is a rename.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bitcache.client.errors import SpaceMissing, TargetExists, TargetUnsafe

WORK_PREFIX = ".bitcache-"
"""Of names of work folders. No file of a parcel may lie in one, to be taken for a part of a download."""
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a pipe of that name must not make us wait for its other end.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Target:
    """An open folder. Use `with`, or `close`. `renamed`: the name chosen for the only file of a parcel."""

    def __init__(self, folder: Path, *, renamed: str | None = None) -> None:
        """Creates `folder` if need be. The user may name a folder through symbolic links: it is theirs."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._renamed = renamed
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def free_bytes(self) -> int:
        figures = os.fstatvfs(self._descriptor)
        return figures.f_bavail * figures.f_frsize

    def check_room(self, needed_bytes: int) -> None:
        """Raises SpaceMissing, or TargetUnsafe if the folder cannot be written to."""
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._descriptor):
            raise TargetUnsafe(f"{self.folder} cannot be written to. Choose another folder with -o.")
        if needed_bytes > self.free_bytes():
            raise SpaceMissing(
                needed_bytes=needed_bytes, free_bytes=self.free_bytes(), folder=str(self.folder)
            )

    def shown(self, path: str) -> Path:
        """The final place of `path`, for people."""
        return self.folder / (self._renamed or path)

    def check_free(self, path: str) -> None:
        """Raises TargetExists if something is at the place of `path`, TargetUnsafe for a link on the way."""
        try:
            parent = self._open_parent(path, create=False)
        except FileNotFoundError:
            return
        try:
            os.stat(self._name(path), dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        finally:
            os.close(parent)
        raise TargetExists(str(self.shown(path)))

    def open_there(self, path: str, *, size_bytes: int) -> int | None:
        """A descriptor of the file at the place of `path`, to be closed; None if nothing is there.

        Raises TargetExists if it is anything else than a plain file of this size, TargetUnsafe.
        """
        try:
            self.check_free(path)
        except TargetExists:
            parent = self._open_parent(path, create=False)
        else:
            return None
        try:
            descriptor = os.open(self._name(path), _FILE_FLAGS, dir_fd=parent)
        except OSError as exc:
            raise TargetExists(str(self.shown(path))) from exc
        finally:
            os.close(parent)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            os.close(descriptor)
            raise TargetExists(str(self.shown(path)))
        return descriptor

    def place(self, work: int, name: str, path: str, *, force: bool) -> None:
        """Move `name` of the folder `work` to its final place. Raises TargetExists, TargetUnsafe."""
        parent = self._open_parent(path, create=True)
        final = self._name(path)
        try:
            if force:
                self._refuse_folder(parent, final, path)
                os.replace(name, final, src_dir_fd=work, dst_dir_fd=parent)
            else:
                _move_without_overwriting(name, final, work=work, parent=parent)
            os.fsync(parent)
        except FileExistsError as exc:
            raise TargetExists(str(self.shown(path))) from exc
        finally:
            os.close(parent)

    def open_work_folder(self, name: str) -> int:
        """Descriptor of the folder `name`, made for the user alone. Raises TargetUnsafe."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
        return _open_folder(name, self._descriptor)

    def remove_work_folder(self, name: str) -> None:
        """Remove the folder `name` and the plain files in it."""
        work = _open_folder(name, self._descriptor)
        try:
            for entry in os.listdir(work):
                os.unlink(entry, dir_fd=work)
        finally:
            os.close(work)
        os.rmdir(name, dir_fd=self._descriptor)

    def remove_empty_work_folder(self, name: str) -> None:
        """Remove the folder `name` if there is nothing in it."""
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self._descriptor)

    def _parts(self, path: str) -> Sequence[str]:
        parts = [self._renamed] if self._renamed is not None else path.split("/")
        if parts[0].casefold().startswith(WORK_PREFIX):
            raise TargetUnsafe(f"{self.shown(path)} is where unfinished downloads are kept. Ask the seller.")
        return parts

    def _name(self, path: str) -> str:
        return self._parts(path)[-1]

    def _open_parent(self, path: str, *, create: bool) -> int:
        descriptor = os.dup(self._descriptor)
        for part in self._parts(path)[:-1]:
            try:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                below = _open_folder(part, descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _refuse_folder(self, parent: int, name: str, path: str) -> None:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            raise TargetExists(str(self.shown(path)))


def choose_target(output: Path | None, paths: Sequence[str]) -> Target:
    """The target for `-o output`: a folder, or, for a parcel of one file, the file's new name.

    Without `output` the current folder. Raises OSError.
    """
    if output is None:
        return Target(Path())
    names_a_file = len(paths) == 1 and not output.is_dir() and not str(output).endswith("/")
    if names_a_file:
        return Target(output.parent, renamed=output.name)
    return Target(output)


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    except OSError as exc:
        if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise TargetUnsafe(
                f"{name} is a symbolic link or a file where a folder belongs. Remove it, or choose another "
                "place with -o."
            ) from exc
        raise


def _move_without_overwriting(name: str, final: str, *, work: int, parent: int) -> None:
    try:
        # A hard link, unlike a rename, never replaces what appeared there a moment ago.
        os.link(name, final, src_dir_fd=work, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        same = os.path.samestat(
            os.stat(name, dir_fd=work, follow_symlinks=False),
            os.stat(final, dir_fd=parent, follow_symlinks=False),
        )
        if not same:  # else we crashed between the two steps
            raise
    except OSError as exc:
        if exc.errno not in _NO_HARD_LINKS:
            raise
        if _exists(final, parent):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final) from None
        os.rename(name, final, src_dir_fd=work, dst_dir_fd=parent)
        return
    os.unlink(name, dir_fd=work)


def _exists(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
