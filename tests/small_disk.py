"""A real file system of a few MiB that a test can fill to the last byte, for a server to live on.

A tmpfs, mounted for the test: that takes root. Where it cannot be had, the test is skipped and says why.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

STEPS_BYTES = (1 << 20, 4096, 1)


@dataclass(frozen=True)
class SmallDisk:
    folder: Path

    @property
    def filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Leave not a byte."""
        with self.filler.open("ab", buffering=0) as file:
            for step in STEPS_BYTES:
                try:
                    while file.write(bytes(step)):
                        pass
                except OSError:
                    continue
        free = os.statvfs(self.folder)
        assert free.f_bavail == 0, free

    def make_room(self) -> None:
        self.filler.unlink()


@contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """A file system of `size_bytes` at `folder`, which is made."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here, which takes root: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
