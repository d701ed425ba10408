"""Writing to SQLite in one trip: a whole transaction in a thread of its own.

A transaction of SQLAlchemy's goes to SQLite's thread and back for each of its statements, which costs more
than they do. What is written hundreds of times a second, the vouchers of payment channels, goes by here. It
is a second connection for writing: SQLite gives the lock to one of them at a time.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class AtOnce:
    """`connect` opens a connection that begins no transactions by itself; called in the thread."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-at-once")

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` between BEGIN IMMEDIATE and COMMIT; nothing is written if it raises.

        Whoever is cancelled meanwhile leaves it to end by itself.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, fn)

    async def close(self) -> None:
        """Waits for what is under way."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    def _in_thread(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = fn(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
