"""`bitcache` with a clock that a file sets, which kills itself with SIGKILL at a moment that a file names.

    CLOCK_FILE=path DOOM_FILE=path python -m tests.payout_soak.doomed serve --data DIR

A moment is before or after a write of the database is committed; for a command that is no server also before
or after a call of the node. The file says `<serial> <n>`: the n-th moment from when this serial is first met.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.drill.clocked_serve import Clock

Write = Callable[[Any], Awaitable[Any]]


class Doom:
    """Counts moments down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._serial = ""
        self._left = 0

    def reach(self) -> None:
        try:
            serial, left = self._path.read_text().split()
        except (FileNotFoundError, ValueError):
            return
        if serial != self._serial:
            self._serial, self._left = serial, int(left)
        self._left -= 1
        if self._left == 0:
            self._path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def wrap_writes(doom: Doom) -> None:
    from bitcache.db.engine import Database

    write = Database.write

    async def written(database: Database, fn: Write) -> Any:
        async def watched(tx: Any) -> Any:
            result = await fn(tx)
            doom.reach()
            return result

        result = await write(database, watched)
        doom.reach()
        return result

    at_once = Database._write_at_once

    async def written_at_once(database: Database, fn: Callable[[Any], Any]) -> Any:
        def watched(connection: Any) -> Any:
            result = fn(connection)
            doom.reach()
            return result

        result = await at_once(database, watched)
        doom.reach()
        return result

    Database.write = written  # type: ignore[method-assign,assignment]
    Database._write_at_once = written_at_once  # type: ignore[method-assign,assignment]


def wrap_calls(doom: Doom) -> None:
    from payments.bitcoind_rpc import BitcoindRpc

    call = BitcoindRpc.call

    async def called(rpc: BitcoindRpc, method: str, *params: Any, **named: Any) -> Any:
        doom.reach()
        result = await call(rpc, method, *params, **named)
        doom.reach()
        return result

    BitcoindRpc.call = called  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    # Before anything is imported that may keep the function.
    time.time = Clock(Path(os.environ["CLOCK_FILE"]))

    reached = Doom(Path(os.environ["DOOM_FILE"]))
    wrap_writes(reached)
    if sys.argv[1:2] != ["serve"]:
        wrap_calls(reached)

    from bitcache.cli.main import main

    main()
