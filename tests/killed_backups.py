"""Backups and restores that are killed at every change of a name or a new file: a program for a test.

    python -m tests.killed_backups WORK BEFORE AFTER

BEFORE and AFTER are data folders of one server that nobody uses. Each round is a process of its own, forked,
and killed by SIGKILL from inside at the next such moment. After each, what is on disk must be a backup or
none. The last line is a JSON object with how many rounds there were.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

from bitcache import config_file
from bitcache.backup import back_up
from bitcache.config import CONFIG_FILE_NAME
from bitcache.db.dump import read_sqlite
from bitcache.restore import check, restore

NAMES_CHANGE = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}
NOW = 1_800_000_000

Work = Callable[[], Coroutine[Any, Any, object]]


def killed(work: Work, *, at: int) -> bool:
    """Run `work` in a process that is killed before its change number `at`; False if it ended before."""
    child = os.fork()
    if child == 0:
        os._exit(_run(work, at))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "see the traceback above"
    return False


def _run(work: Work, at: int) -> int:
    changes = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in NAMES_CHANGE or (event == "open" and arguments[2] & os.O_CREAT):
            changes += 1
            if changes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)
    try:
        asyncio.run(work())
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def blobs_of(data: Path) -> set[str]:
    return {path.name for path in data.glob("blobs/*/*")}


def backups_killed(work: Path, before: Path, after: Path) -> int:
    """The backup is of BEFORE, or of AFTER: whole in any case. How many rounds there were."""
    base = work / "base"
    assert not killed(lambda: _back_up(before, base), at=0)
    for at in count(1):
        folder = work / "backup"
        shutil.copytree(base, folder)
        whole = not killed(lambda: _back_up(after, folder), at=at)  # noqa: B023  # it runs at once
        checked = check(folder, work / "restored", after / "master.key", {})
        expected = [blobs_of(after)] if whole else [blobs_of(before), blobs_of(after)]
        assert {file.id for file in checked.files} in expected, f"killed at change {at}"
        # And the next backup is none the worse for it.
        asyncio.run(_back_up(after, folder))
        assert {path.name for path in folder.glob("blobs/*/*")} == blobs_of(after), f"killed at change {at}"
        shutil.rmtree(folder)
        if whole:
            return at - 1
    raise AssertionError


def restores_killed(work: Path, data: Path) -> int:
    """The data folder does not start, or is whole. How many rounds there were."""
    base = work / "base"
    for at in count(1):
        target = work / "restored"
        whole = not killed(lambda: _restore(base, data, target), at=at)  # noqa: B023  # it runs at once
        if whole or (target / CONFIG_FILE_NAME).exists():
            assert blobs_of(target) == blobs_of(data), f"killed at change {at}"
            assert (target / "master.key").read_bytes() == (data / "master.key").read_bytes()
            assert read_sqlite(target / "bitcache.db").execute(
                "SELECT count(*) FROM restores"
            ).fetchone() == (1,)
        shutil.rmtree(target, ignore_errors=True)
        if whole:
            return at - 1
    raise AssertionError


async def _back_up(data: Path, folder: Path) -> None:
    config = config_file.load(data, {})
    await back_up(config, folder, with_master_key=False, now=NOW)


async def _restore(folder: Path, data: Path, target: Path) -> None:
    await restore(folder, target, master_key_file=data / "master.key", environment={}, now=NOW)


if __name__ == "__main__":
    work, before, after = (Path(argument) for argument in sys.argv[1:])
    backups = backups_killed(work, before, after)
    print(json.dumps({"backups": backups, "restores": restores_killed(work, before)}))
