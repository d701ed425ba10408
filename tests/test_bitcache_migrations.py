"""Migrations make exactly the tables that the code has, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text

from bitcache.db.engine import Database
from bitcache.db.migrate import differences, upgrade
from bitcache.errors import DatabaseOutdated


@pytest_asyncio.fixture
async def database(each_database: str) -> AsyncIterator[Database]:
    database = Database(each_database)
    yield database
    await database.close()


async def test_an_empty_database_gets_every_table(database: Database) -> None:
    assert await differences(database) != []
    await upgrade(database)
    assert await differences(database) == []


async def test_upgrading_again_changes_nothing(database: Database) -> None:
    await upgrade(database)
    await database.write(
        lambda tx: tx.execute(text("INSERT INTO accounts (id, name, created_at) VALUES ('a', 'b', 1)"))
    )
    await upgrade(database)
    assert await database.read(lambda tx: tx.scalar(text("SELECT count(*) FROM accounts"))) == 1


async def test_servers_that_start_together_do_not_collide(database: Database) -> None:
    others = [Database(database.url.render_as_string(hide_password=False)) for _ in range(3)]
    await asyncio.gather(*(upgrade(each) for each in [database, *others]))
    assert await differences(database) == []
    for other in others:
        await other.close()


async def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    await upgrade(database)
    await database.write(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(DatabaseOutdated, match="newer version"):
        await upgrade(database)
