"""Fixtures that all tests share: real nodes, a real PostgreSQL, free ports.

Nodes and clusters are processes bound to no event loop, so session-wide ones (one per test worker) serve
tests that have a loop each. Tests on the shared `world` leave it running, connected and synced; whoever stops
nodes, parts them or reorganises the chain takes `own_world`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from regtest.chromium import HOW_TO_INSTALL, find_chromium
from regtest.errors import BitcoindMissing
from regtest.install import BitcoindInstallation, find_bitcoind
from regtest.processes import free_ports
from regtest.served import ServedBitcache
from regtest.world import RegtestWorld
from tests.browser import NewVisitor, Visitor, open_chromium
from tests.command_server import quick_bitcache
from tests.postgres import PostgresCluster, find_programs
from tests.service import blank_database

T = TypeVar("T")

_database_numbers = count(1)

ServedBitcache.command_program = staticmethod(quick_bitcache)


def pytest_collection_finish() -> None:
    """What was imported stays: it is not looked at again whenever garbage is collected, which is seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session")
def bitcoind() -> BitcoindInstallation:
    try:
        return find_bitcoind()
    except BitcoindMissing as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def bitcoind_path(bitcoind: BitcoindInstallation) -> Path:
    return bitcoind.path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(bitcoind: BitcoindInstallation) -> AsyncIterator[RegtestWorld]:
    """Two connected nodes, shared by the tests of this worker."""
    async with RegtestWorld(installation=bitcoind) as world:
        yield world


@pytest_asyncio.fixture
async def own_world(bitcoind: BitcoindInstallation) -> AsyncIterator[RegtestWorld]:
    """Two connected nodes for one test, which may do to them what it likes."""
    async with RegtestWorld(installation=bitcoind) as world:
        yield world


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[PostgresCluster]:
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    cluster = PostgresCluster(programs)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def postgres_url(postgres_cluster: PostgresCluster) -> str:
    """SQLAlchemy URL of the cluster's maintenance database."""
    return postgres_cluster.url()


@pytest.fixture
def postgres_database(postgres_cluster: PostgresCluster) -> Iterator[str]:
    """SQLAlchemy URL of an empty database for one test."""
    name = f"test_{next(_database_numbers)}"
    postgres_cluster.create_database(name)
    yield postgres_cluster.url(name)
    postgres_cluster.drop_database(name)


@pytest.fixture(scope="session")
def migrated_database(postgres_cluster: PostgresCluster) -> str:
    """Name of a database that has all tables, to be copied."""

    async def migrate() -> None:
        database = Database(postgres_cluster.url("migrated"))
        await upgrade(database)
        await database.close()

    postgres_cluster.create_database("migrated")
    _in_a_loop_of_its_own(migrate())
    return "migrated"


@pytest.fixture
def postgres_tables(postgres_cluster: PostgresCluster, migrated_database: str) -> Iterator[str]:
    """SQLAlchemy URL of a database for one test, which has all tables."""
    name = f"test_{next(_database_numbers)}"
    postgres_cluster.create_database(name, like=migrated_database)
    yield postgres_cluster.url(name)
    postgres_cluster.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def each_with_tables(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `each_database`, but with the tables that the migrations make: they take longer than many a test."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_tables"))
    file = tmp_path / "test.db"
    file.write_bytes(_in_a_loop_of_its_own(blank_database()))
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def each_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy URL of an empty database: the test runs once on SQLite, once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/test.db"
    return str(request.getfixturevalue("postgres_database"))


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """On SQLite, with the tables that the migrations make."""
    file = tmp_path / "test.db"
    file.write_bytes(await blank_database())
    database = Database(f"sqlite+aiosqlite:///{file}")
    yield database
    await database.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One real browser for this worker; its tests share the session's loop."""
    path = find_chromium()
    if path is None:
        pytest.skip(HOW_TO_INSTALL)
    async with open_chromium(path) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def new_visitor(chromium: Browser) -> AsyncIterator[NewVisitor]:
    """Opens profiles that know nothing of each other; at the end each is asked what went wrong in it."""
    visitors: list[Visitor] = []

    async def new(**options: object) -> Visitor:
        visitors.append(await Visitor.open(chromium, **options))
        return visitors[-1]

    yield new
    for visitor in visitors:
        await visitor.close()
    for visitor in visitors:
        visitor.check()


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    return free_ports(1)[0]


def _in_a_loop_of_its_own(work: Coroutine[None, None, T]) -> T:
    """For fixtures that have no loop, or must not be bound to the one they are asked from."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
