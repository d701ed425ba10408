"""What was measured: one table on the terminal, and its sections of docs/PERFORMANCE.md."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
DOCUMENT = PROJECT / "docs" / "PERFORMANCE.md"
RESULTS = PROJECT / "build" / "bench"
HEADINGS = ("what", "measured", "reference", "ratio", "budget", "kept")


class CannotMeasure(Exception):
    """This machine lacks what the module needs; the message says what to install."""


@dataclass(frozen=True)
class Line:
    """`measured` and `reference` with their units; `kept`: whether what `budget` asks for was reached."""

    what: str
    measured: str
    reference: str = ""
    ratio: str = ""
    budget: str = ""
    kept: bool = True

    @property
    def cells(self) -> tuple[str, ...]:
        verdict = ("yes" if self.kept else "**NO**") if self.budget or not self.kept else ""
        return (self.what, self.measured, self.reference, self.ratio, self.budget, verdict)


def table(lines: Iterable[Line]) -> str:
    """Markdown, with columns that are aligned on a terminal too."""
    rows = [HEADINGS, *(line.cells for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(_row(row, widths) for row in rows)


def keep(
    name: str, command: str, lines: Sequence[Line], *, document: Path = DOCUMENT, results: Path = RESULTS
) -> None:
    """Write `lines` as JSON, and into the document between the markers of `name`."""
    machine = f"{_processor()}, {platform.system()}, Python {platform.python_version()}"
    results.mkdir(parents=True, exist_ok=True)
    kept = {"machine": machine, "lines": [asdict(line) for line in lines]}
    (results / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    heading = f"Measured {time.strftime('%Y-%m-%d')} with `{command}` on: {machine}."
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    written = document.read_text()
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(written):
        raise SystemExit(f"{document.name} has no markers {start} and {end}")
    section = f"{start}\n{heading}\n\n{table(lines)}\n{end}"
    document.write_text(pattern.sub(lambda _: section, written))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        cores = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        return platform.machine()
    return f"{found[1] if found else platform.machine()}, {cores} cores"
