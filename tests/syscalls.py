"""What a program asked of the kernel, in order: strace's record of it, read.

SIGKILL leaves the page cache in place, so no test that only kills can tell what a power cut would leave. The
order of calls can: what was synced before the answer went out is on disk, whatever comes then.

    program = traced(tmp_path / "trace", [BITCACHE, "serve"])
    ... run it, end it ...
    calls = read_trace(tmp_path / "trace")
    check_order(calls[..], [wrote(".uploading"), synced(".uploading"), ...])
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

OUT = {"write", "writev", "sendto", "sendmsg"}
IN = {"read", "recvfrom"}
ABOUT_DESCRIPTOR = OUT | IN | {"pwrite64", "pwritev", "fsync", "fdatasync"}
ABOUT_PATH = {"?rename", "renameat", "?renameat2", "?unlink", "unlinkat", "?mkdir", "mkdirat"}
"""The marked ones do not exist on every machine."""
TRACED = ",".join(sorted(ABOUT_DESCRIPTOR | ABOUT_PATH))
TEXT_CHARACTERS = 300
TOLD_MAX = 60

_LINE = re.compile(r"(\d+) +(.*)")
_WHOLE = re.compile(r"(\w+)\((.*)\) += (-?\w+.*)")
_BEGUN = re.compile(r"(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)\) += (-?\w+.*)")
_DESCRIPTOR = re.compile(r"^\d+<(.*?)>")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Call:
    """One call that succeeded. `began` and `ended` are places in the record: threads overlap."""

    name: str
    arguments: str
    began: int
    ended: int

    @property
    def path(self) -> str:
        """Of the descriptor that it is about; else the last path it names."""
        on = _DESCRIPTOR.match(self.arguments)
        if on and self.name in ABOUT_DESCRIPTOR:
            return on[1]
        named = _QUOTED.findall(self.arguments)
        return str(named[-1]) if named else ""

    @property
    def text(self) -> str:
        """The beginning of what was sent or received."""
        quoted = _QUOTED.search(self.arguments)
        return quoted[1] if quoted else ""

    @property
    def is_stream(self) -> bool:
        """About a socket or a pipe."""
        return self.path.startswith(("socket:", "pipe:"))

    def __str__(self) -> str:
        return f"{self.began}-{self.ended} {self.name}({self.arguments[:160]})"


Step = tuple[str, Callable[[Call], bool]]
"""What is expected next, in words, and how it looks."""


def traced(record: Path, program: Sequence[str | Path]) -> list[str | Path]:
    """The program under strace, in a process of its own beside it. Skips where there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed, which is for Linux alone (Debian: apt-get install strace)")
    return [
        strace,
        "-D",
        "-f",
        "-q",
        "-y",
        "-s",
        str(TEXT_CHARACTERS),
        "-e",
        f"trace={TRACED}",
        "-o",
        record,
        *program,
    ]


def read_trace(record: Path) -> list[Call]:
    """Every call of every thread that succeeded, in the order in which they ended."""
    begun: dict[str, tuple[int, str]] = {}
    calls = []
    for number, line in enumerate(record.read_text(errors="replace").splitlines()):
        split = _LINE.match(line)
        if split is None:
            continue
        thread, said = split[1], split[2]
        if match := _BEGUN.match(said):
            begun[thread] = (number, match[2])
            continue
        if match := _RESUMED.match(said):
            began, first = begun.pop(thread, (number, ""))
            name, arguments, result = match[1], first + match[2], match[3]
        elif match := _WHOLE.match(said):
            began, name, arguments, result = number, match[1], match[2], match[3]
        else:
            continue
        if not result.startswith("-"):
            calls.append(Call(name, arguments, began, number))
    return calls


def wrote(path: str) -> Step:
    """A write to a file whose path has this pattern in it; so do the other steps."""
    return _step("write to", {"write", "pwrite64", "writev", "pwritev"}, path)


def synced(path: str) -> Step:
    """A file or a folder."""
    return _step("sync of", {"fsync", "fdatasync"}, path)


def renamed_to(path: str) -> Step:
    return _step("rename to", {"rename", "renameat", "renameat2"}, path)


def removed(path: str) -> Step:
    return _step("removal of", {"unlink", "unlinkat"}, path)


def made_folder(path: str) -> Step:
    return _step("folder", {"mkdir", "mkdirat"}, path)


def _step(what: str, names: set[str], path: str) -> Step:
    return f"{what} {path}", lambda call: call.name in names and re.search(path, call.path) is not None


def find(calls: Iterable[Call], matches: Callable[[Call], bool], what: str) -> Call:
    """The first that matches."""
    found = next((call for call in calls if matches(call)), None)
    assert found is not None, f"there is no {what} in the record"
    return found


def sent(calls: Iterable[Call], text: str) -> Call:
    """The first of what went out through a socket or a pipe with this in it."""
    return find(calls, lambda call: call.name in OUT and call.is_stream and text in call.text, text)


def exchange(calls: Sequence[Call], request: str, status: int) -> tuple[list[Call], Call]:
    """What happened between the last request that begins so and its answer; and the answer.

    The calls all ended before the answer began to be sent.
    """
    asked = [call for call in calls if call.name in IN and call.text.startswith(request)]
    assert asked, f"no request {request} in the record"
    later = [call for call in calls if call.began > asked[-1].ended]
    answer = sent(later, f"HTTP/1.1 {status} ")
    return [call for call in later if call.ended < answer.began], answer


def check_order(calls: Sequence[Call], steps: Sequence[Step]) -> None:
    """Each step ends before one like the next begins."""
    done = -1
    for what, matches in steps:
        found = next((call for call in calls if call.began > done and matches(call)), None)
        if found is None:
            told = [str(call) for call in calls if call.name not in IN and not call.is_stream]
            happened = "\n".join(told[-TOLD_MAX:])
            raise AssertionError(f"no {what} where it belongs, among\n{happened}")
        done = found.ended
