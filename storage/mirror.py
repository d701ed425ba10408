"""Copies finished blobs from one local folder to another, for backups: what is there already is left alone.

A finished blob is never written again, so on one file system a copy is a hard link. Elsewhere it is written
under another name, flushed, and renamed: a file with a blob's name is whole, whatever was interrupted.
"""

import os
import shutil
import stat
from collections.abc import Set
from pathlib import Path

from storage.durable import sync_folder
from storage.local import FILE_MODE, FOLDER_MODE, blob_paths

_COPYING_SUFFIX = ".copying"


def mirror_blob(source: Path, target: Path, file_id: str, size_bytes: int) -> bool:
    """Have the finished blob in the folder `target` too, as in `source`; whether it had to be copied.

    Its folder's entry is on disk only after `sync_shards`. Raises FileNotFoundError: there is no whole blob
    in `source`; FileIdInvalid.
    """
    there, here = (blob_paths(folder, file_id)[0] for folder in (source, target))
    if is_whole(target, file_id, size_bytes):
        return False
    if not is_whole(source, file_id, size_bytes):
        raise FileNotFoundError(f"{there} does not have {size_bytes} bytes")
    here.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
    copy_durably(there, here, link=True)
    return True


def is_whole(folder: Path, file_id: str, size_bytes: int) -> bool:
    """Whether the folder holds the finished blob with this size, and no link to something else.

    Raises FileIdInvalid.
    """
    try:
        found = blob_paths(folder, file_id)[0].lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size_bytes


def copy_durably(source: Path, target: Path, *, link: bool = False) -> None:
    """Make or replace the file `target`, for its owner alone; it has all bytes, on disk, or is not there.

    `link`: a hard link will do, where the file system has them.
    """
    copying = target.with_name(target.name + _COPYING_SUFFIX)
    copying.unlink(missing_ok=True)
    if not (link and _linked(source, copying)):
        with source.open("rb") as octets, open(copying, "xb", opener=_private) as copy:
            shutil.copyfileobj(octets, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
    copying.rename(target)


def forget_blobs_but(folder: Path, file_ids: Set[str]) -> int:
    """Delete every file in a mirror's shards that is none of these blobs; how many."""
    gone = 0
    for path in folder.glob("*/*"):
        if path.name not in file_ids:
            path.unlink()
            gone += 1
    return gone


def sync_shards(folder: Path) -> None:
    """Put all names in a mirror on disk."""
    for shard in folder.iterdir():
        sync_folder(shard)
    sync_folder(folder)


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        # Another file system, one without links, or a kernel that lets only a file's owner link it.
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, FILE_MODE)
