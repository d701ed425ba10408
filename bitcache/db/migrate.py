"""The database's schema: brought up to date at start, by Alembic, on SQLite and PostgreSQL alike.

`python -m bitcache.db.migrate MESSAGE` writes the next revision from what the tables in the code have and the
revisions do not.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from bitcache.db.engine import Database, trouble_named
from bitcache.db.tables import metadata as bitcache_metadata
from bitcache.errors import DatabaseOutdated
from payments.tables import metadata as payments_metadata

MIGRATIONS_FOLDER = Path(__file__).parent / "migrations"
METADATAS = [bitcache_metadata, payments_metadata]


async def upgrade(database: Database, *, to: str = "head") -> None:
    """Apply every revision the database lacks, or those up to one, in one transaction.

    Raises DatabaseOutdated, DatabaseUnavailable, DiskFull.

    It is a writer like any other: servers of one database that start together wait for each other.
    """
    with trouble_named():
        async with database.engine.begin() as connection:
            await connection.run_sync(_upgrade, to)


async def is_blank(database: Database) -> bool:
    """Whether no revision was ever applied: the database was just made, or is not the one that was meant."""
    with trouble_named():
        async with database.engine.connect() as connection:
            return await connection.run_sync(_revision) is None


async def revision(database: Database) -> str | None:
    """The newest revision that was applied; None for a blank database."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(_revision)


def knows(revision: str) -> bool:
    """Whether this version can bring a database of that revision up to date."""
    script = ScriptDirectory(str(MIGRATIONS_FOLDER))
    return revision in {known.revision for known in script.walk_revisions()}


async def differences(database: Database) -> list[Any]:
    """What the tables in the code have that the database has not, and the other way round.

    Raises DatabaseUnavailable, DatabaseDamaged.
    """
    with trouble_named():
        async with database.engine.connect() as connection:
            return await connection.run_sync(_differences)


def _upgrade(connection: Connection, to: str) -> None:
    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = _revision(connection)
    if current is not None and current not in known:
        raise DatabaseOutdated(
            f"The database is at revision {current}, which this version does not know. Run the newer version."
        )
    command.upgrade(config, to)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, METADATAS))  # type: ignore[arg-type]


def _config(connection: Connection) -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


async def _write_revision(message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite+aiosqlite:///{folder}/empty.db")
        await upgrade(database)
        async with database.engine.begin() as connection:
            await connection.run_sync(
                lambda sync: command.revision(
                    _config(sync), message, autogenerate=True, rev_id=_next_revision(sync)
                )
            )
        await database.close()


def _next_revision(connection: Connection) -> str:
    revisions = list(ScriptDirectory.from_config(_config(connection)).walk_revisions())
    return f"{len(revisions) + 1:04}"


if __name__ == "__main__":
    asyncio.run(_write_revision(sys.argv[1]))
