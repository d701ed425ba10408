"""The commands that tests run as forks of one process are what the installed program would be."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from regtest.node import wait_until
from regtest.served import BITCACHE
from tests.command_server import quick_bitcache

WORDS = (
    ("--version",),
    ("init", "data", "--network", "regtest", "--json"),
    ("login", "--help"),
    ("get", "-"),
    ("offers", "--json"),
    ("no-such-command",),
)


@pytest.mark.parametrize("words", WORDS)
def test_it_says_and_leaves_what_the_installed_one_does(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Both in a folder of their own, told by the environment that it is their home."""
    found: list[object] = []
    for program in (BITCACHE, quick_bitcache()):
        home = tmp_path / str(len(found))
        home.mkdir()
        done = subprocess.run(
            [program, *words],
            input="not a link\n",
            capture_output=True,
            text=True,
            cwd=home,
            env={**os.environ, "HOME": str(home)},
        )
        left = {
            (str(path.relative_to(home)), path.stat().st_mode)
            for path in home.rglob("*")
            if not path.name.endswith((".db-wal", ".db-shm"))
        }
        out, err = (text.replace(str(home), "HOME") for text in (done.stdout, done.stderr))
        found.append((done.returncode, out, err, left))
    assert found[0] == found[1]


async def test_a_caller_that_is_killed_takes_its_command_along(tmp_path: Path) -> None:
    """It waits for a link that never comes."""
    process = await asyncio.create_subprocess_exec(
        quick_bitcache(),
        *("get", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )

    async def inside() -> bool:
        return len(_in_folder(tmp_path)) == 2

    await wait_until(inside, "the command to be in the folder of its caller")
    process.kill()
    await process.wait()

    async def gone() -> bool:
        return not _in_folder(tmp_path)

    await wait_until(gone, "the command to end")


def _in_folder(folder: Path) -> list[str]:
    """Processes whose working directory it is."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if place.readlink() == folder:
                found.append(place.parent.name)
        except OSError:
            continue  # it ended meanwhile
    return found
