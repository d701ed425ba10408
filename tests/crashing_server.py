"""`bitcache` that kills itself with SIGKILL at a commit point it is told, and else behaves as ever.

    python crashing_server.py CONTROL serve --data FOLDER

A commit point is a moment around a write of the database or a step of the blob store. While there is a file
`armed` in the folder CONTROL, each one in its scope is noted in `passed`, a line with its name; and the one
that `armed` names, as (name, how often it comes), ends the process. Every write of the program goes through
what is wrapped here, so that no point needs to be listed anywhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from bitcache.cli.main import app
from bitcache.db.engine import COMMITTED_MARK, Database
from storage import local
from storage.local import LocalBlobStore

WATCHER = "payments.watcher"
# They write when they please, and none of it is anybody's request.
BACKGROUND = {
    WATCHER,
    "payments.address_search",
    "bitcache.grants",
    "bitcache.payout_runner",
    "bitcache.scrub",
    "bitcache.sweep",
    "bitcache.views",
}
REQUESTS, CHAIN = "requests", "chain"
"""Scopes: what requests write, and what the watcher writes of payments (not its heartbeats)."""

Write = Callable[[Any], Awaitable[Any]]


class Armed(NamedTuple):
    label: str
    scope: str
    name: str
    occurrence: int

    @classmethod
    def read(cls, control: Path) -> Armed | None:
        try:
            return cls(*json.loads((control / "armed").read_text()))
        except FileNotFoundError:
            return None

    def write(self, control: Path) -> None:
        draft = control / "draft"
        draft.write_text(json.dumps(self))
        draft.replace(control / "armed")


class Points:
    """Where this process is among its commit points."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._label = ""
        self._passed: Counter[str] = Counter()

    def reach(self, name: str, scope: str) -> None:
        """Blob steps come from threads, the database's from the loop."""
        with self._lock:
            armed = Armed.read(self._control)
            if armed is None or armed.scope != scope:
                return
            if armed.label != self._label:
                self._label = armed.label
                self._passed.clear()
            self._passed[name] += 1
            with (self._control / "passed").open("a") as noted:
                noted.write(f"{armed.label}\t{name}\n")
            if (name, self._passed[name]) == (armed.name, armed.occurrence):
                os.kill(os.getpid(), signal.SIGKILL)


def wrap_database(points: Points) -> None:
    write = Database.write

    async def written(database: Database, fn: Write, module: str, caller: str) -> Any:
        told = False

        def reach(moment: str) -> None:
            if module not in BACKGROUND:
                points.reach(f"{module}.{caller} {moment} commit", REQUESTS)
            elif module == WATCHER and told:
                # Whether an event or a poll comes first is chance; what is told comes in one order.
                points.reach(f"{module} {moment} commit", CHAIN)

        async def watched(tx: Any) -> Any:
            nonlocal told
            result = await fn(tx)
            told = bool(tx.info.get(COMMITTED_MARK))
            reach("before")
            return result

        result = await write(database, watched)
        reach("after")
        return result

    def wrapped(database: Database, fn: Write) -> Awaitable[Any]:
        frame = sys._getframe(1)
        return written(database, fn, frame.f_globals["__name__"], frame.f_code.co_name)

    Database.write = wrapped  # type: ignore[method-assign,assignment]


def wrap_blobs(points: Points) -> None:
    for name in ("_write_part", "_finish", "_delete"):
        wrap_step(points, name)
    write = local._write

    def torn(file: int, data: memoryview, offset: int) -> None:
        half = len(data) // 2
        write(file, data[:half], offset)
        points.reach("blob half written", REQUESTS)
        write(file, data[half:], offset + half)

    local._write = torn  # type: ignore[assignment]


def wrap_step(points: Points, name: str) -> None:
    step = getattr(LocalBlobStore, name)

    def stepped(*arguments: Any) -> None:
        points.reach(f"blob {name} before", REQUESTS)
        step(*arguments)
        points.reach(f"blob {name} after", REQUESTS)

    setattr(LocalBlobStore, name, stepped)


if __name__ == "__main__":
    reached = Points(Path(sys.argv.pop(1)))
    wrap_database(reached)
    wrap_blobs(reached)
    app()
