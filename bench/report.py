"""One table of what was measured: printed, kept as JSON, and put into docs/PERFORMANCE.md."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
DOCUMENT = PROJECT / "docs" / "PERFORMANCE.md"
RESULTS = PROJECT / "build" / "bench"


@dataclass(frozen=True)
class Line:
    """`measured` and `reference` with their units; `kept`: whether what `budget` asks for was reached."""

    what: str
    measured: str
    reference: str
    ratio: str
    budget: str
    kept: bool

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            self.what,
            self.measured,
            self.reference,
            self.ratio,
            self.budget,
            "yes" if self.kept else "**NO**",
        )


HEADINGS = ("what", "measured", "reference", "ratio", "budget", "kept")


def publish(name: str, command: str, lines: Sequence[Line]) -> None:
    """Print `lines`, and write them where `name` has its place."""
    table = _table([HEADINGS, tuple("---" for _ in HEADINGS), *(line.cells for line in lines)])
    machine = f"{_processor()}, {platform.system()}, Python {platform.python_version()}"
    text = f"Measured {time.strftime('%Y-%m-%d')} with `{command}` on: {machine}.\n\n{table}"
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "lines": [asdict(line) for line in lines]}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    written = DOCUMENT.read_text()
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(written):
        raise SystemExit(f"{DOCUMENT.name} has no markers {start} and {end}")
    DOCUMENT.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{end}", written))


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        cores = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        return platform.machine()
    return f"{found[1] if found else platform.machine()}, {cores} cores"
