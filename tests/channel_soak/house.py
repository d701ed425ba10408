"""All that stands in a soak of channels: two nodes, the server as a process, two sellers' goods, the books.

The server is started again whenever it died; while it is dead, its database is held against what the payers
have on paper.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

from bitcache import config_file
from bitcache.services import Services, now, open_services
from regtest.node import wait_until
from regtest.world import RegtestWorld
from storage.stream import CHUNK_SIZE_BYTES
from tests.channel_soak.plan import PRICES_MSAT, Size, Task
from tests.channel_soak.server import ChannelServer
from tests.hosted_shop import operator_wallet
from tests.service import Clock, RunningServer
from tests.till import Sold, Till

TIMEOUT_S = 120.0
SMALL_BYTES = (20, 3_000)


@dataclass(frozen=True)
class Goods:
    """What one seller has on offer: a larger file, then small ones."""

    seller_id: str
    price_msat: int
    sold: Sold

    @property
    def file_ids(self) -> list[str]:
        return list(self.sold.blobs)

    def sha256(self, task: Task) -> str:
        blob = memoryview(self.sold.blobs[self.file_ids[task.file]])
        end = (task.first + task.chunks) * CHUNK_SIZE_BYTES
        return hashlib.sha256(blob[task.first * CHUNK_SIZE_BYTES : end]).hexdigest()


class House:
    def __init__(
        self,
        world: RegtestWorld,
        server: ChannelServer,
        services: Services,
        goods: list[Goods],
        *,
        lease_lapses: bool,
        loud: bool,
    ) -> None:
        self.world = world
        self.server = server
        self.services = services
        """The operator's, beside the server."""
        self.goods = goods
        self.wrong: list[str] = []
        self.kills = 0
        self.on_death: Callable[[], None] = lambda: None
        """Looks at what a dead server has left."""
        self._lease_lapses = lease_lapses
        self._loud = loud
        self._began_at = time.monotonic()

    def say(self, line: str) -> None:
        if self._loud:
            print(f"{time.monotonic() - self._began_at:7.1f} s  {line}", flush=True)

    def blame(self, line: str) -> None:
        """Something that must not be, whatever the faults."""
        self.wrong.append(line)
        self.say(f"WRONG: {line}")

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Of the server's database, by the standard library."""
        with closing(sqlite3.connect(self.server.database_file, timeout=30)) as database:
            return database.execute(query, values).fetchall()

    async def supervise(self) -> None:
        """Start a server again that was killed."""
        code = self.server.exit_code
        if code is None:
            return
        if code != -9:
            self.blame(f"the server ended by itself with code {code}:\n{self.server.log()[-4000:]}")
        self.kills += 1
        self.server.spare()
        self.on_death()
        await self.start()

    async def start(self) -> None:
        if not self._lease_lapses:
            with closing(sqlite3.connect(self.server.database_file, timeout=30)) as database, database:
                database.execute("UPDATE channel_host SET held_until = 0")
        await self.server.start()

    async def until(self, query: str, *values: object, what: str) -> None:
        """Wait for the server, which may die meanwhile, to have written something."""

        async def there() -> bool:
            await self.supervise()
            return self.rows(query, *values) != []

        await wait_until(there, what, timeout_s=TIMEOUT_S, poll_s=0.05)

    async def seen(self) -> None:
        """Wait until the server has scanned the tip."""
        tip = await self.world.outside.rpc("getbestblockhash")
        query = (
            "SELECT 1 FROM (SELECT hash FROM blocks WHERE active ORDER BY height DESC LIMIT 1) WHERE hash = ?"
        )
        await self.until(query, tip, what="the server to have seen the tip")


@asynccontextmanager
async def open_house(size: Size, rng: random.Random, *, loud: bool) -> AsyncIterator[House]:
    """The server runs, and has the channels."""
    async with AsyncExitStack() as opened:
        world = await opened.enter_async_context(RegtestWorld())
        keys = await operator_wallet(world.outside)
        server = ChannelServer(world, await keys.descriptor("wpkh"), life_blocks=size.life_blocks)
        opened.push_async_callback(server.close)
        await server.prepare()
        config = config_file.load(server.data_folder, server.environment())
        services = await opened.enter_async_context(open_services(config, clock=now, with_channels=False))
        beside = RunningServer(services, Clock())
        goods = [await _goods(beside, price_msat, size, rng) for price_msat in PRICES_MSAT]
        house = House(world, server, services, goods, lease_lapses=size.lease_lapses, loud=loud)
        await house.server.start()
        await house.seen()
        await house.until("SELECT 1 FROM channel_host", what="the server to have the channels")
        yield house


async def _goods(beside: RunningServer, price_msat: int, size: Size, rng: random.Random) -> Goods:
    till = Till(beside, await beside.new_seller())
    sizes = (
        (size.chunks - 1) * CHUNK_SIZE_BYTES + 100,
        *(rng.randint(*SMALL_BYTES) for _ in range(size.small_files)),
    )
    sold = await till.offer(
        price_sat=1_000, sizes=sizes, meterable=True, metered_msat=price_msat, sold_whole=False
    )
    return Goods(till.account.account_id, price_msat, sold)
