"""The master key file: 32 random bytes that only their owner can read. Without it no sealed secret opens."""

import os
import stat
from pathlib import Path

from bitcache.errors import MasterKeyUnusable
from bitcache.sealing import MASTER_KEY_SIZE_BYTES
from storage.durable import sync_folder


def read_master_key(path: Path) -> bytes:
    """The 32 bytes of the master key file. Raises MasterKeyUnusable if others could have read it."""
    try:
        mode = path.stat().st_mode
        key = path.read_bytes()
    except OSError as exc:
        raise MasterKeyUnusable(
            f"The master key {path} cannot be read ({exc.strerror}). Restore it from your backup: without it "
            "no release secret opens."
        ) from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise MasterKeyUnusable(f"Others can read the master key. Run: chmod 600 {path}")
    if len(key) != MASTER_KEY_SIZE_BYTES:
        raise MasterKeyUnusable(
            f"The master key {path} is {len(key)} bytes, not {MASTER_KEY_SIZE_BYTES}. Restore your backup."
        )
    return key


def write_master_key(path: Path) -> None:
    """A fresh master key, for its owner alone. Never overwrites: that would lose every release secret."""
    create_private(path, os.urandom(MASTER_KEY_SIZE_BYTES))


def create_private(path: Path, octets: bytes) -> None:
    """A new file that only its owner can read, on disk when this returns. Raises FileExistsError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(octets)
        while rest:  # a disk that fills up takes a part, and complains about the rest
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)
    sync_folder(path.parent)
