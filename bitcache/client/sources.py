"""What is to be uploaded: plain readable files, given one by one or as folders, with their paths in it.

A folder keeps its own name as the first part of the paths. Symbolic links and special files are refused: what
they lead to is rarely what the seller means to sell.
"""

import mimetypes
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitcache.client.errors import SourceRefused
from storage.metadata import FILE_COUNT_MAX, MODIFIED_AT_MAX
from storage.paths import check_paths

DEFAULT_MEDIA_TYPE = "application/octet-stream"
_KINDS = {
    stat.S_IFLNK: "it is a symbolic link; name what it points to",
    stat.S_IFIFO: "it is a pipe; write it to a file first",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


@dataclass(frozen=True)
class Source:
    """A file on disk (`file`, absolute) and its `path` in the parcel."""

    file: Path
    path: str
    size_bytes: int
    modified_ns: int

    @property
    def modified_at(self) -> int:
        return max(0, min(self.modified_ns // 1_000_000_000, MODIFIED_AT_MAX))

    @property
    def media_type(self) -> str:
        guessed, encoding = mimetypes.guess_type(self.path)
        return guessed.lower() if guessed and encoding is None else DEFAULT_MEDIA_TYPE


def collect(paths: Sequence[Path]) -> list[Source]:
    """All files of `paths`, in the order of their paths in the parcel.

    Raises SourceRefused (missing, link, special, unreadable, none or too many), storage's PathRefused.
    """
    found: list[Source] = []
    for path in paths:
        absolute = Path(os.path.abspath(path))
        for file in _walk(absolute):
            found.append(_source(file, absolute.parent))
            if len(found) > FILE_COUNT_MAX:
                raise SourceRefused(
                    str(path), f"more than {FILE_COUNT_MAX} files; put them into an archive first"
                )
    if not found:
        raise SourceRefused(", ".join(map(str, paths)), "there is no file in it")
    checked = check_paths(source.path for source in found)
    named = [
        Source(source.file, path, source.size_bytes, source.modified_ns)
        for source, path in zip(found, checked, strict=True)
    ]
    return sorted(named, key=lambda source: source.path)


def open_source(source: Source) -> int:
    """Descriptor of the file. Raises SourceRefused if it is not the file that was collected any more."""
    try:
        descriptor = os.open(source.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise SourceRefused(str(source.file), exc.strerror or "it cannot be opened") from exc
    try:
        check_same(source, descriptor)
    except SourceRefused:
        os.close(descriptor)
        raise
    return descriptor


def check_same(source: Source, descriptor: int) -> None:
    """Raises SourceRefused if the open file has changed since it was collected."""
    status = os.fstat(descriptor)
    same = (status.st_size, status.st_mtime_ns) == (source.size_bytes, source.modified_ns)
    if not same or not stat.S_ISREG(status.st_mode):
        raise SourceRefused(str(source.file), "it changed while it was uploaded; run the command again")


def _walk(path: Path) -> Iterator[Path]:
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            yield path
            return
        entries = sorted(path.iterdir())
    except OSError as exc:
        raise SourceRefused(str(path), exc.strerror or "it cannot be read") from exc
    for entry in entries:
        yield from _walk(entry)


def _source(file: Path, parent: Path) -> Source:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise SourceRefused(str(file), _KINDS.get(stat.S_IFMT(status.st_mode), "it is not a plain file"))
    if not os.access(file, os.R_OK):
        raise SourceRefused(str(file), "it may not be read; change its permissions")
    return Source(file, file.relative_to(parent).as_posix(), status.st_size, status.st_mtime_ns)
