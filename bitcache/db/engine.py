"""The one way to read and to write the database, on SQLite and on PostgreSQL.

Writes come one after the other, so that what a function reads in its transaction is still true when it
commits. Each process has one writer connection; between processes, SQLite has BEGIN IMMEDIATE and PostgreSQL
a lock that every writer takes first and that is given in order. Concurrent SERIALIZABLE transactions would
not do: a stream of small ones lets a long one, such as the watcher's, be tried again for ever.

A write function's only effects are the rows it writes: the commit after it may fail. What a statement was
about is not in its error: errors are logged, and ids, addresses and people's words are not.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import event, make_url
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from bitcache.db import sqlite_driver
from bitcache.db.sqlite_at_once import AtOnce
from bitcache.errors import DatabaseDamaged, DatabaseUnavailable
from payments.ports import WriteAtOnce
from storage.errors import DiskFull

T = TypeVar("T")

DATABASE_TROUBLE = (DiskFull, DatabaseUnavailable, DBAPIError)
"""Its disk or its server, not a bug of ours."""
BUSY_TIMEOUT_S = 30
COMMITTED_MARK = "bitcache_events"
"""In a transaction's `info`: the events it appended. Who waits for them is told once it is committed."""
WRITER_LOCK = 0x62697463
"""PostgreSQL advisory lock. Any constant will do; all processes of one database use this one."""
TAKE_WRITER_LOCK = f"SELECT pg_advisory_xact_lock({WRITER_LOCK})"
FROZEN_WRITER_S = 60
"""A process that stops in the middle of a write, frozen or cut off, holds up the others no longer."""
READERS_MAX = 8
SQLITE_SETTINGS = ("PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON")
CONNECT_TIMEOUT_S = 10
"""For PostgreSQL: a host that is off says nothing, and requests wait."""
LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
DISK_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, "53100"}
"""Codes of SQLite (the second: no room for the index of its WAL), SQLSTATE of PostgreSQL."""
SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SQLITE_AWAY = LOCKED | {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}
"""Primary codes: the disk, or another process, does not let us."""
POSTGRESQL_AWAY = ("08", "53", "57P", "25P03")
"""Beginnings of SQLSTATEs: no connection, no resources, the server shuts down or starts, we were too slow."""


class Database:
    """Engines for one database URL: `sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.after_events: Callable[[Sequence[Any]], None] | None = None
        """Called after a commit with the events it appended."""
        self._running: set[asyncio.Future[Any]] = set()
        self._at_once: AtOnce | None = None
        if self.is_sqlite:
            self._at_once = AtOnce(partial(_sqlite_connection, self.url.database or ""))
            self._writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
            self._reader = _sqlite_engine(url, begin="BEGIN", pool_size=4)
        else:
            self._writer = _postgresql_engine(url, isolation_level="READ COMMITTED", pool_size=1)
            _run_at_begin(self._writer, TAKE_WRITER_LOCK)
            self._reader = _postgresql_engine(
                url, isolation_level="REPEATABLE READ", pool_size=READERS_MAX, read_only=True
            )

    async def write(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` in a transaction and commit it; nothing is written if it raises.

        The commit survives a crash of process and machine before this returns (SQLite synchronous=FULL).
        Raises DiskFull, DatabaseUnavailable (it may have been committed: the answer was lost), and what `fn`
        raises.
        """
        return await self._to_its_end(self._write(fn))

    async def read(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` on one consistent snapshot. It writes nothing. Raises DatabaseUnavailable."""
        return await self._to_its_end(self._read(fn))

    @property
    def write_at_once(self) -> WriteAtOnce | None:
        """As `write`, with sqlite3's own connection and in one trip; None: not on this database."""
        return None if self._at_once is None else self._write_at_once

    async def _to_its_end(self, transaction: Coroutine[Any, Any, T]) -> T:
        """Whoever is cancelled meanwhile, as all loops are at shutdown, leaves it to end by itself.

        Torn off on a slow disk, its connection would keep SQLite's lock from the next writer, and its thread
        would outlive the loop.
        """
        running = asyncio.ensure_future(transaction)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, transaction: asyncio.Future[Any]) -> None:
        self._running.discard(transaction)
        # Looked at here, since nobody may be waiting for it any more.
        if not transaction.cancelled():
            transaction.exception()

    async def _write(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        with trouble_named():
            async with self._writer.begin() as tx:
                # The mark lives with the pooled connection: a failed write may have left one.
                tx.info.pop(COMMITTED_MARK, None)
                result = await fn(tx)
                appended = tx.info.pop(COMMITTED_MARK, ())
        if appended and self.after_events is not None:
            self.after_events(appended)
        return result

    async def _write_at_once(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        assert self._at_once is not None
        return await self._to_its_end(self._named(self._at_once.write(fn)))

    async def _named(self, transaction: Coroutine[Any, Any, T]) -> T:
        with trouble_named():
            return await transaction

    async def _read(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        with trouble_named():
            async with self._reader.begin() as tx:
                return await fn(tx)

    async def close(self) -> None:
        """Waits for the transactions that are under way."""
        while self._running:
            await asyncio.wait(self._running)
        if self._at_once is not None:
            await self._at_once.close()
        await self._reader.dispose()
        await self._writer.dispose()

    @property
    def engine(self) -> AsyncEngine:
        """For migrations and start-up checks; everything else goes through `write` and `read`."""
        return self._writer


@contextmanager
def trouble_named() -> Iterator[None]:
    """Tells what passes by itself, or when the operator makes room, from bugs.

    Raises DiskFull, DatabaseUnavailable, DatabaseDamaged, and anything else as it came.
    """
    try:
        yield
    except Exception as failure:
        # Trouble while connecting comes in the driver's own classes, or the system's.
        code = _code_of(failure.orig if isinstance(failure, DBAPIError) else failure)
        if code in DISK_FULL:
            raise DiskFull from failure
        if isinstance(code, int) and code & 0xFF in SQLITE_DAMAGED:
            raise DatabaseDamaged from failure
        if _is_away(failure, code):
            raise DatabaseUnavailable from failure
        raise


def _code_of(failure: object) -> int | str | None:
    """SQLite's code or PostgreSQL's SQLSTATE, where the driver gives one."""
    code: int | str | None = getattr(failure, "sqlite_errorcode", None) or getattr(failure, "sqlstate", None)
    return code


def _is_away(failure: Exception, code: int | str | None) -> bool:
    match code:
        case int():
            return code & 0xFF in SQLITE_AWAY
        case str():
            return code.startswith(POSTGRESQL_AWAY)
        case None:
            cut = isinstance(failure, DBAPIError) and failure.connection_invalidated
            return cut or isinstance(failure, OSError | PoolTimeout)


def _postgresql_engine(
    url: str, *, isolation_level: IsolationLevel, pool_size: int, read_only: bool = False
) -> AsyncEngine:
    return create_async_engine(
        url,
        isolation_level=isolation_level,
        execution_options={"postgresql_readonly": read_only},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
        # The server may have been restarted since a connection was last used.
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "server_settings": {"idle_in_transaction_session_timeout": str(FROZEN_WRITER_S * 1000)},
        },
    )


def _sqlite_engine(url: str, *, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_S, "async_creator_fn": sqlite_driver.connect},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver must not begin transactions by itself: it would begin them deferred, and two writers that
        # both read first would overwrite each other's decision.
        connection.isolation_level = None
        cursor = connection.cursor()
        _switch_to_wal(cursor)
        for setting in SQLITE_SETTINGS:
            cursor.execute(setting)
        cursor.close()

    _run_at_begin(engine, begin)
    return engine


def _sqlite_connection(database: str) -> sqlite3.Connection:
    """For `AtOnce`. Some other connection has switched the database to WAL."""
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    for setting in SQLITE_SETTINGS:
        connection.execute(setting)
    return connection


def _switch_to_wal(cursor: Any) -> None:
    """The first connection ever switches, and needs the file to itself: SQLite does not wait for that."""
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF not in LOCKED or time.monotonic() > until:
                raise
        await_only(asyncio.sleep(0.01))


def _run_at_begin(engine: AsyncEngine, statement: str) -> None:
    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(statement)
