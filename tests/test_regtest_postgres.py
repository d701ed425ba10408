"""The private PostgreSQL that store tests run on."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


async def _execute(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()


class TestEmptyDatabase:
    """Both tests make the same table: the second fails unless each got a database of its own."""

    async def test_first(self, postgres_database: str) -> None:
        await _execute(postgres_database, "CREATE TABLE mine (id bigint)")

    async def test_second(self, postgres_database: str) -> None:
        await _execute(postgres_database, "CREATE TABLE mine (id bigint)")


async def test_speaks_a_supported_version(postgres_url: str) -> None:
    ((version,),) = await _execute(postgres_url, "SHOW server_version_num")
    assert int(str(version)) >= 150000
