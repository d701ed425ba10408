"""SQLite in a thread, one trip a statement.

aiosqlite goes to its thread four times for each: for the cursor, the statement, the rows, and to close. Each
trip costs some 60 us, more than SQLite takes to find a row, and a payment's transaction has twenty statements
that a buyer waits for.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Self

import aiosqlite

Parameters = Sequence[Any] | dict[str, Any]
ROWS_PER_TRIP = 5_000
"""So many at once are here when `execute` returns; of more, who asks for all gets them in one more trip."""


class OneTripCursor:
    """What SQLAlchemy uses of a cursor. A stream of rows holds no more than a trip's."""

    def __init__(self, connection: "OneTripConnection") -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self._rest: sqlite3.Cursor | None = None
        """Where there are more rows."""
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Parameters = ()) -> None:
        await self._connection.run(self._execute, statement, parameters)

    async def executemany(self, statement: str, parameters: Iterable[Parameters]) -> None:
        await self._connection.run(self._executemany, statement, parameters)

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        if self._rest is not None:
            await self._connection.run(self._fetch, -1)
            rows += self._rows
            self._rows = []
        return rows

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        wanted = size or self.arraysize
        if not self._rows and self._rest is not None:
            await self._connection.run(self._fetch, wanted)
        rows, self._rows = self._rows[:wanted], self._rows[wanted:]
        return rows

    async def close(self) -> None:
        self._rows = []
        if self._rest is not None:
            await self._connection.run(self._end)

    def _execute(self, connection: sqlite3.Connection, statement: str, parameters: Parameters) -> None:
        cursor = connection.execute(statement, parameters)
        self.description = cursor.description
        self._rest = cursor
        self._fetch(connection, ROWS_PER_TRIP if cursor.description else 0)
        self.rowcount, self.lastrowid = cursor.rowcount, cursor.lastrowid

    def _fetch(self, connection: sqlite3.Connection, count: int) -> None:
        """Up to `count` rows of the rest; all of them, if it is -1."""
        assert self._rest is not None
        self._rows = self._rest.fetchall() if count < 0 else self._rest.fetchmany(count) if count else []
        if count < 0 or len(self._rows) < count or not count:
            self._end(connection)

    def _end(self, connection: sqlite3.Connection) -> None:
        if self._rest is not None:
            self._rest.close()
            self._rest = None

    def _executemany(
        self, connection: sqlite3.Connection, statement: str, parameters: Iterable[Parameters]
    ) -> None:
        cursor = connection.executemany(statement, parameters)
        self.rowcount, self.lastrowid = cursor.rowcount, cursor.lastrowid
        cursor.close()


class OneTripConnection(aiosqlite.Connection):
    """An aiosqlite connection with other cursors."""

    def cursor(self) -> OneTripCursor:  # type: ignore[override]
        return OneTripCursor(self)

    async def run(self, function: Any, *arguments: Any) -> None:
        """Call `function(connection, *arguments)` in this connection's thread."""
        await self._execute(function, self._conn, *arguments)  # type: ignore[no-untyped-call]


def connect(*arguments: Any, **options: Any) -> OneTripConnection:
    """As `sqlite3.connect`; await what it returns. For SQLAlchemy's `async_creator_fn`."""
    connection = OneTripConnection(lambda: sqlite3.connect(*arguments, **options), ROWS_PER_TRIP)
    # As SQLAlchemy sets it for its own: a connection that nobody closed must not keep the process.
    connection._thread.daemon = True
    return connection
