"""Memory of the browser's processes, as the system counts it (Linux)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_S = 0.1
MIB = 1 << 20


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def renderers_mib() -> float:
    """Proportional memory of all renderer processes that this program's browsers run."""
    total_kib = 0
    for pid in descendants(os.getpid()):
        try:
            if b"--type=renderer" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total_kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total_kib * 1024 / MIB


class PeakOfRenderers:
    """`with PeakOfRenderers() as peak: ...`; then `peak.growth_mib` above what there was at the start."""

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._start_mib = self._peak_mib = renderers_mib()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def growth_mib(self) -> float:
        return self._peak_mib - self._start_mib

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._peak_mib = max(self._peak_mib, renderers_mib())
