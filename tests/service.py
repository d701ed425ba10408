"""The real server for tests: SQLite and blobs in a temporary folder, real HTTP on a free loopback port.

    async with running_server(tmp_path) as server:
        async with server.session() as http:
            ...

It runs in the test's own process and loop. No bitcoin node is needed: pass `node=NodeConfig(..)` for one.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from msgspec import structs

from bitcache import VERSION, accounts
from bitcache.accounts import IssuedToken
from bitcache.api.openapi import openapi_document
from bitcache.api.table import ROUTES
from bitcache.app import run
from bitcache.config import DATABASE_FILE_NAME, Config, NodeConfig
from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from bitcache.master_key import write_master_key
from bitcache.role import Role
from bitcache.services import Services, now, open_services
from payments.ports import Transaction
from regtest.processes import free_ports
from tests.openapi_check import OpenApiCheck

START_S = 30
API_CHECK = OpenApiCheck(openapi_document(ROUTES, version=VERSION))
_blank: list[bytes] = []
"""What `blank_database` has made."""


@dataclass
class Clock:
    """A clock that tests move by hand."""

    ahead_s: int = 0

    def __call__(self) -> int:
        return now() + self.ahead_s

    def monotonic(self) -> float:
        """For limits: it goes on with the other."""
        return time.monotonic() + self.ahead_s

    def advance(self, seconds: int) -> None:
        self.ahead_s += seconds


@dataclass
class RunningServer:
    services: Services
    clock: Clock
    _sellers: int = field(default=0)

    @property
    def url(self) -> str:
        return f"http://{self.services.config.listen}"

    @property
    def api(self) -> str:
        return f"{self.url}/api/v1"

    def session(self, token: str | None = None, *, check: OpenApiCheck = API_CHECK) -> aiohttp.ClientSession:
        """An HTTP client, signed in with `token`; use with `async with`. Paths are relative to the server.

        A request whose answer is not in the API's document fails with `Undocumented`.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return aiohttp.ClientSession(self.url, headers=headers, middlewares=(check.middleware,))

    async def new_seller(self, name: str | None = None) -> IssuedToken:
        """A fresh account with a token."""
        self._sellers += 1
        chosen = name or f"seller {self._sellers}"

        async def made(tx: Transaction) -> IssuedToken:
            at = self.services.clock()
            account_id = await accounts.register(tx, name=chosen, now=at)
            return await accounts.issue_token(tx, account_id, label="test", now=at)

        return await self.services.database.write(made)


def test_config(folder: Path, **changes: object) -> Config:
    """A configuration for a server in `folder` on a free port; `changes` are fields of Config."""
    port = free_ports(1)[0]
    config = Config(
        data_folder=folder,
        network="regtest",
        # Nobody listens there: a server without a node.
        node=NodeConfig(rpc_url=f"http://127.0.0.1:{free_ports(1)[0]}", rpc_user="none", rpc_password="none"),
        listen=f"127.0.0.1:{port}",
        public_url=f"http://127.0.0.1:{port}",
        disk_reserve_bytes=0,
    )
    return structs.replace(config, **changes)


test_config.__test__ = False  # type: ignore[attr-defined]


async def blank_database() -> bytes:
    """An SQLite database as the migrations make it: they would be nine tenths of each server's start."""
    if not _blank:
        with tempfile.TemporaryDirectory(prefix="bitcache-blank-") as folder:
            file = Path(folder) / "blank.db"
            database = Database(f"sqlite+aiosqlite:///{file}")
            await upgrade(database)
            await database.close()
            _blank.append(file.read_bytes())
    return _blank[0]


@asynccontextmanager
async def running_server(
    folder: Path,
    *,
    role: Role = Role.ALL,
    prepare: Callable[[Config], Config] = lambda config: config,
    **changes: object,
) -> AsyncIterator[RunningServer]:
    """A server in `folder`, stopped at the end as SIGTERM would."""
    config = prepare(test_config(folder, **changes))
    if not config.master_key.exists():
        write_master_key(config.master_key)
    clock = Clock()
    file = config.data_folder / DATABASE_FILE_NAME
    copied = not config.database_url and not file.exists()
    if copied:
        file.touch(mode=0o600)
        file.write_bytes(await blank_database())
    async with open_services(config, clock=clock, monotonic=clock.monotonic) as services:
        if not copied:
            await upgrade(services.database)
        started = asyncio.Event()
        running = asyncio.create_task(run(services, role=role, ready=started.set))
        starting = asyncio.create_task(started.wait())
        await asyncio.wait({running, starting}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        try:
            if running.done():
                await running
            assert started.is_set(), "the server did not start"
            yield RunningServer(services, clock)
        finally:
            services.stopping.set()
            await running
