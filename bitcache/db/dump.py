"""A database as one file, taken while others write to it, and put back.

SQLite: another SQLite database, without the free pages and what was deleted in them. PostgreSQL: pg_dump's
custom format; its programs must be on the PATH.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import inspect, text

from bitcache.db.engine import BUSY_TIMEOUT_S, Database
from bitcache.errors import BackupRefused, RestoreRefused
from bitcache.master_key import create_private
from payments.ports import Transaction

SQLITE_FILE_NAME = "bitcache.db"
POSTGRESQL_FILE_NAME = "database.dump"
REVISION = "SELECT version_num FROM alembic_version"
FILES = """
SELECT id, size_bytes, completed_at IS NOT NULL FROM files
WHERE completed_at IS NOT NULL OR EXISTS (SELECT 1 FROM file_parts WHERE file_id = files.id)
"""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the dumped database says is stored, whole or in part."""

    id: str
    size_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Dump:
    path: Path
    revision: str
    files: tuple[NamedFile, ...]


async def dump(database: Database, folder: Path) -> Dump:
    """The database as it is at one moment, in a new file in `folder`. Raises BackupRefused."""
    if database.is_sqlite:
        return await asyncio.to_thread(_dump_sqlite, Path(database.url.database or ""), folder)
    return await database.read(lambda tx: _dump_postgresql(tx, database, folder))


async def put_back(path: Path, database: Database) -> None:
    """Fill an empty PostgreSQL database from its dump. Raises RestoreRefused."""
    fault = await _run(
        "pg_restore",
        *("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges"),
        f"--dbname={database.url.database}",
        str(path),
        database=database,
    )
    if fault is not None:
        raise RestoreRefused(f"The database was not restored: {fault}")


async def is_empty(database: Database) -> bool:
    """Whether there is no table in it."""
    async with database.engine.connect() as connection:
        return not await connection.run_sync(lambda sync: inspect(sync).get_table_names())


def read_sqlite(path: Path) -> sqlite3.Connection:
    """A dumped database, which nobody writes to. Raises sqlite3.Error when it is used, if it is none."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _dump_sqlite(source: Path, folder: Path) -> Dump:
    path = folder / SQLITE_FILE_NAME
    create_private(path, b"")
    try:
        # "rw": to open must not make a database that is not there.
        live = sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)
        with closing(live):
            live.execute("VACUUM INTO ?", (str(path),))
        with closing(read_sqlite(path)) as copy:
            revision = copy.execute(REVISION).fetchone()[0]
            found = _files(copy.execute(FILES).fetchall())
    except sqlite3.Error as exc:
        raise BackupRefused(f"The database {source} cannot be copied: {exc}. Run `bitcache doctor`.") from exc
    _sync(path)
    return Dump(path, revision, found)


async def _dump_postgresql(tx: Transaction, database: Database, folder: Path) -> Dump:
    # While pg_dump works, this transaction, whose snapshot it shares, has nothing to say.
    await tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    snapshot = await tx.scalar(text("SELECT pg_export_snapshot()"))
    path = folder / POSTGRESQL_FILE_NAME
    create_private(path, b"")
    fault = await _run(
        "pg_dump",
        *("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", f"--file={path}"),
        database=database,
    )
    if fault is not None:
        raise BackupRefused(f"The database was not copied: {fault}")
    _sync(path)
    rows = (await tx.execute(text(FILES))).all()
    return Dump(path, str(await tx.scalar(text(REVISION))), _files(rows))


async def _run(program: str, *arguments: str, database: Database) -> str | None:
    """Run one of PostgreSQL's programs on the database; what went wrong, or None."""
    found = shutil.which(program)
    if found is None:
        return (
            f"{program} is not on the PATH. Install PostgreSQL's client programs of the server's version or "
            "newer (Debian: apt-get install postgresql-client)."
        )
    process = await asyncio.create_subprocess_exec(
        found,
        *arguments,
        env=os.environ | _environment(database),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said.decode(errors="replace").strip() or program if process.returncode else None


def _environment(database: Database) -> dict[str, str]:
    """Where the programs find the database: others see a program's arguments, not its environment."""
    url = database.url
    found = {
        "PGHOST": url.host or str(url.query.get("host", "")),
        "PGPORT": str(url.port or ""),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    }
    return {name: value for name, value in found.items() if value}


def _files(rows: Sequence[Sequence[object]]) -> tuple[NamedFile, ...]:
    return tuple(NamedFile(str(row[0]), int(str(row[1])), bool(row[2])) for row in rows)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
