"""Every benchmark runs in a form of a few seconds, so that it cannot rot. Its numbers mean nothing.

One runs as its user runs it, in a process of its own; of the others only what they measure.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMES, lines_of
from bench.report import Line, keep, table

PROJECT = Path(__file__).parent.parent
TOLD = {
    "transfer": ("paid download in ranges", "upload in parts", "bitcache get, memory"),
    "channels": ("a voucher verified", "50 open channels read at start", "metered download"),
    "chain": ("broadcast to", "the key", "3,900 transactions", "2,000 mempool", "SQLite"),
    "listeners": ("200 listeners", "while 100 listeners open"),
    "statements": ("statement of 1,000 transfers", "every line as CSV", "a balance"),
    "payouts": ("10 payouts built and checked", "the same, signed by the node"),
    "growth": ("start to ready, with 300 invoices", "the sweep, with 300 invoices"),
}
"""Of each benchmark some lines. The pages are driven alike by tests of their own."""


def test_the_table_is_aligned_and_tells_what_was_missed() -> None:
    lines = [
        Line("a download", "1.00 s/GiB", "0.50 s/GiB (nginx)", "2.00", "<= 1.5x", kept=False),
        Line("its memory", "3 MiB"),
    ]
    rows = table(lines).splitlines()
    assert len({len(row) for row in rows}) == 1
    assert rows[2].endswith("**NO** |")
    assert [cell.strip() for cell in rows[3].strip("|").split("|")] == ["its memory", "3 MiB", "", "", "", ""]


def test_a_section_is_written_where_its_name_stands(tmp_path: Path) -> None:
    document = tmp_path / "PERFORMANCE.md"
    document.write_text("before\n<!-- one -->\nold\n<!-- end of one -->\nafter\n")
    keep("one", "make bench", [Line("what", "7 s")], document=document, results=tmp_path / "results")
    written = document.read_text()
    assert written.startswith("before\n<!-- one -->\nMeasured ")
    assert written.endswith("<!-- end of one -->\nafter\n")
    assert "| 7 s " in written
    assert "old" not in written
    with pytest.raises(SystemExit, match="no markers"):
        keep("two", "make bench", [], document=document, results=tmp_path / "results")


def test_every_benchmark_has_a_form_of_a_few_seconds() -> None:
    assert {*TOLD, "pages"} == set(NAMES)


def test_a_benchmark_that_is_not_there_is_told_by_the_exit_code() -> None:
    words = [sys.executable, "-m", "bench", "nonsense"]
    refused = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "there are transfer" in refused.stderr


@pytest.mark.usefixtures("bitcoind")
@pytest.mark.parametrize(("name", "told"), TOLD.items())
def test_it_runs(name: str, told: tuple[str, ...]) -> None:
    shown = table(lines_of(name, tiny=True))
    for what in told:
        assert what in shown


def test_the_command_shows_the_same() -> None:
    words = [sys.executable, "-m", "bench", "statements", "--tiny"]
    ended = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for what in TOLD["statements"]:
        assert what in ended.stdout
