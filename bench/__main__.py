"""Run benchmarks and print one table: `python -m bench [names]`, by default all. `make bench BENCH=names`.

Each name is a module of this package with `lines() -> list[Line]`, async or not, and maybe a keyword `tiny`
for a form of a few seconds whose numbers mean nothing. Each runs in a process of its own, so that neither
memory nor loops mix, one after the other, so that they do not take each other's processor. A missed budget is
exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.report import PROJECT, CannotMeasure, Line, keep, table

NAMES = ("transfer", "channels", "chain", "listeners", "growth", "statements", "payouts", "pages")
CANNOT_MEASURE = 77


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, side by side.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; by default all")
    parser.add_argument("--tiny", action="store_true", help="small and fast; nothing is written")
    parser.add_argument("--into", type=Path, help="run one name in this process, its lines into this file")
    options = parser.parse_args()
    names = options.names or list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if options.into is not None:
        return _run_here(names[0], options.into, tiny=options.tiny)
    command = "make bench" if not options.names else f"make bench BENCH={' '.join(names)}"
    measured: list[Line] = []
    broken = False
    for name in names:
        code, lines = _run_apart(name, tiny=options.tiny)
        if code == 0 and not options.tiny:
            keep(name, command, lines)
        measured += lines
        broken = broken or code not in {0, CANNOT_MEASURE}
    print(table(measured))
    missed = not options.tiny and not all(line.kept for line in measured)
    return 1 if broken or missed else 0


def _run_apart(name: str, *, tiny: bool) -> tuple[int, list[Line]]:
    """(exit code, lines)."""
    print(f"bench: {name} ...", file=sys.stderr, flush=True)
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bitcache-bench-") as folder:
        into = Path(folder) / "lines.json"
        words = [sys.executable, "-m", "bench", name, "--into", str(into), *(["--tiny"] if tiny else [])]
        code = subprocess.run(words, cwd=PROJECT, check=False).returncode
        print(f"bench: {name} took {time.monotonic() - started_at:.0f} s", file=sys.stderr, flush=True)
        if code == 0:
            return code, [Line(**fields) for fields in json.loads(into.read_text())]
        if code == CANNOT_MEASURE:
            return code, [Line(name, f"not measured: {into.read_text()}")]
    return code, [Line(name, f"failed with exit code {code}", kept=False)]


def _run_here(name: str, into: Path, *, tiny: bool) -> int:
    try:
        measured = lines_of(name, tiny=tiny)
    except CannotMeasure as lacking:
        into.write_text(str(lacking))
        return CANNOT_MEASURE
    into.write_text(json.dumps([asdict(line) for line in measured]))
    return 0


def lines_of(name: str, *, tiny: bool) -> Sequence[Line]:
    """What one benchmark measures, in this process."""
    measure = importlib.import_module(f"bench.{name}").lines
    takes_tiny = "tiny" in inspect.signature(measure).parameters
    found: Any = measure(tiny=True) if tiny and takes_tiny else measure()
    lines: Sequence[Line] = asyncio.run(found) if inspect.iscoroutine(found) else found
    return lines


if __name__ == "__main__":
    sys.exit(main())
