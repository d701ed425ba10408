"""The one way to read and to write the database, on SQLite and on PostgreSQL.

Writes are serialised so that what a function reads in its transaction is still true when it commits: on
SQLite by one writer connection and BEGIN IMMEDIATE, on PostgreSQL by SERIALIZABLE with retries. A write
function may therefore run more than once, and its only effects are the rows it writes.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

T = TypeVar("T")

BUSY_TIMEOUT_S = 30
COMMITTED_MARK = "bitcache_events"
"""In a transaction's `info`: it appended events, and who waits for them is told once it is committed."""
SERIALIZATION_FAILURES = {"40001", "40P01"}
RETRIES_MAX = 60


class Database:
    """Engines for one database URL: `sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.after_events: Callable[[], None] | None = None
        """Called after a commit that appended events."""
        if self.is_sqlite:
            self._writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
            self._reader = _sqlite_engine(url, begin="BEGIN", pool_size=4)
        else:
            self._writer = create_async_engine(
                url, isolation_level="SERIALIZABLE", pool_size=8, max_overflow=0
            )
            # A snapshot is enough to read, and unlike SERIALIZABLE it never asks to be tried again.
            self._reader = self._writer.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    async def write(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` in a transaction and commit it; nothing is written if it raises.

        The commit survives a crash of process and machine before this returns (SQLite synchronous=FULL).
        """
        for attempt in range(RETRIES_MAX):
            try:
                async with self._writer.begin() as tx:
                    # The mark lives with the pooled connection: a failed attempt may have left one.
                    tx.info.pop(COMMITTED_MARK, None)
                    result = await fn(tx)
                    told = tx.info.pop(COMMITTED_MARK, False)
                if told and self.after_events is not None:
                    self.after_events()
                return result
            except DBAPIError as failure:
                if not _may_retry(failure) or attempt == RETRIES_MAX - 1:
                    raise
            # Losers of a race wait a random while that grows, so that a crowd thins out.
            await asyncio.sleep(random.uniform(0, 0.002 * min(attempt + 1, 25)))  # noqa: S311
        raise AssertionError("unreachable")

    async def read(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` on one consistent snapshot. It writes nothing."""
        async with self._reader.begin() as tx:
            return await fn(tx)

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()

    @property
    def engine(self) -> AsyncEngine:
        """For migrations and start-up checks; everything else goes through `write` and `read`."""
        return self._writer


def _may_retry(failure: DBAPIError) -> bool:
    return getattr(failure.orig, "sqlstate", None) in SERIALIZATION_FAILURES


def _sqlite_engine(url: str, *, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver must not begin transactions by itself: it would begin them deferred, and two writers that
        # both read first would overwrite each other's decision.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
