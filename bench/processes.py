"""Processor time and memory of processes, as the system counts them (Linux)."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

SAMPLE_S = 0.1
MIB = 1 << 20


@dataclass(frozen=True)
class Spent:
    """By one program from its start to its end."""

    cpu_s: float
    took_s: float
    peak_mib: float


def run(
    words: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, output: Path | None = None
) -> Spent:
    """Run a program to its end; what it prints goes into `output`. Raises CalledProcessError."""
    started_at = time.monotonic()
    with (output or Path(os.devnull)).open("wb") as out, TemporaryFile() as complaint:
        process = subprocess.Popen(
            [str(word) for word in words], env=environment, stdout=out, stderr=complaint
        )
        peak_mib = 0.0
        while True:
            # The usage has a maximum of its own, which begins with that of us, who started it.
            peak_mib = max(peak_mib, _status_mib(process.pid, "VmHWM"))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(SAMPLE_S / 10)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaint.seek(0)
            raise subprocess.CalledProcessError(
                process.returncode, process.args, stderr=complaint.read().decode(errors="replace")
            )
    return Spent(
        cpu_s=usage.ru_utime + usage.ru_stime, took_s=time.monotonic() - started_at, peak_mib=peak_mib
    )


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process and all below it have used, of those that still run."""
    return sum(_cpu_s(one) for one in (pid, *descendants(pid)))


def resident_mib(pid: int) -> float:
    return _status_mib(pid, "VmRSS")


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


class Peak:
    """`with Peak(renderers_mib) as peak: ...`; then the highest sample, and its growth above the first."""

    def __init__(self, sample_mib: Callable[[], float]) -> None:
        self._sample_mib = sample_mib

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._start_mib = self.peak_mib = self._sample_mib()
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
        return self.peak_mib - self._start_mib

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.peak_mib = max(self.peak_mib, self._sample_mib())


def _status_mib(pid: int, name: str) -> float:
    """0 of a process that ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    kib = (int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))
    return next(kib, 0) / 1024


def _cpu_s(pid: int) -> float:
    # What clock_getcpuclockid(3) makes of a process: its clock counts nanoseconds, /proc only ticks.
    clock = (~pid << 3) | 2
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0  # it ended meanwhile
