"""Folders whose entries survive a power cut: a file that was synced is lost with a folder that was not."""

import os
from contextlib import suppress
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed and removed in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int) -> None:
    """Create `folder` and what is missing above it, each durably and with `mode`."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=True)
        # Whoever may make a folder in another need not be allowed to read that one.
        with suppress(PermissionError):
            sync_folder(path.parent)
