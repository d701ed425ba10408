"""All that stands in a soak: two nodes, the server as a process, two admins, the operator's keys.

The admins are what the operator's commands are: they open the server's database themselves. Keys of the
operator's wallet are in a wallet of the server's node, and on the outside node too, for who signs elsewhere.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

from bitcache import config_file
from bitcache.config import Config
from bitcache.services import open_services
from regtest.errors import RegtestError
from regtest.node import wait_until
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.drill.payer import Payer
from tests.payout_soak.server import WALLET, SoakServer
from tests.payout_soak.steps import REORG_DEPTH_MAX
from tests.service import RunningServer

ADMINS = 2
SETTLED_TIMEOUT_S = 60.0
TRIES_MAX = 100
RETRY_S = 0.05
"""A request that found the server dead is made again."""


class House:
    """What was done, and what was not as it should be."""

    def __init__(
        self,
        world: RegtestWorld,
        server: SoakServer,
        keys: OutsideWallet,
        payer: Payer,
        admins: list[RunningServer],
        *,
        depth: int,
        loud: bool,
    ) -> None:
        self.world = world
        self.server = server
        self.keys = keys
        self.payer = payer
        self.admins = admins
        self.depth = depth
        self.wrong: list[str] = []
        self.node_down_for = 0
        """Steps; 0: it is there."""
        self.kills = 0
        self._loud = loud
        self.first_height = 0
        """Of the blocks that may hold what happens in this soak."""
        self._began_at = time.monotonic()

    @property
    def node_there(self) -> bool:
        return self.node_down_for == 0

    def say(self, line: str) -> None:
        if self._loud:
            print(f"{time.monotonic() - self._began_at:7.1f} s  {line}", flush=True)

    def blame(self, line: str) -> None:
        """Something that must not be, whatever the faults."""
        self.wrong.append(line)
        self.say(f"WRONG: {line}")

    def now(self) -> int:
        return self.server.clock()

    async def new_address(self) -> str:
        """Of somebody outside."""
        return str(await self.world.outside.rpc("getnewaddress", wallet=MINER))

    async def supervise(self) -> None:
        """Start a server again that has died, as it was told to and not by itself."""
        code = self.server.exit_code
        if code is None:
            return
        if code != -9:
            self.blame(f"the server ended by itself with code {code}:\n{self.server.log()[-4000:]}")
        self.kills += 1
        self.server.spare()
        await self.server.start()
        self.say("      the server was dead and is there again")

    async def settled(self) -> None:
        """Wait until the server has scanned the tip, by the time that it is now; it may die meanwhile."""
        if not self.node_there:
            return
        tip = await self.world.outside.rpc("getbestblockhash")

        async def seen() -> bool:
            await self.supervise()
            tips = self.rows("SELECT hash FROM blocks WHERE active ORDER BY height DESC LIMIT 1")
            # Nor does it take the time that was skipped for an outage of its node that goes on.
            beats = self.rows("SELECT 1 FROM watcher_state WHERE online_at >= ?", self.server.moved_at)
            return tips == [(tip,)] and beats != []

        await wait_until(seen, "the server to have seen the tip", timeout_s=SETTLED_TIMEOUT_S, poll_s=0.03)

    async def seen(self, txid: str, *, timeout_s: float = 5.0) -> bool:
        """Whether the server comes to know this transaction in time."""
        if not self.node_there:
            return False

        async def there() -> bool:
            await self.supervise()
            return bool(
                self.rows(
                    "SELECT 1 FROM paying_transactions WHERE txid = ? AND presence IN ('mempool', 'block')",
                    txid,
                )
            )

        try:
            await wait_until(there, "the transaction to be seen", timeout_s=timeout_s, poll_s=0.03)
        except RegtestError:
            return False
        return True

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Of the server's database, by the standard library."""
        with closing(sqlite3.connect(self.server.database_file, timeout=30)) as database:
            return database.execute(query, values).fetchall()

    async def node_in(self) -> None:
        self.node_down_for = 0
        if not self.world.server.running:
            # By its own clock the tip could lie in the future, and it would not start.
            await self.world.server.start(f"-mocktime={self.now()}")
        await self.world.reconnect()

    async def tell_time(self) -> None:
        """Blocks are dated by the nodes: the same time has to pass for them."""
        for node in (self.world.server, self.world.outside):
            if node.running:
                await node.rpc("setmocktime", self.now())

    async def calm(self) -> None:
        """Every fault is over."""
        self.server.spare()
        await self.node_in()
        await self.supervise()
        await self.settled()


@asynccontextmanager
async def open_house(*, buyers: int, depth: int, loud: bool) -> AsyncIterator[House]:
    async with AsyncExitStack() as opened:
        world = RegtestWorld(server_wallets=True)
        for node in (world.server, world.outside):
            # Else they part for silence whenever the clock moves.
            with (node.folder / "bitcoin.conf").open("a") as configuration:
                configuration.write("peertimeout=999999999\n")
        await opened.enter_async_context(world)
        keys = await _operator_wallet(world)
        server = SoakServer(world, await keys.descriptor(), depth=depth)
        opened.push_async_callback(server.close)
        payer = await Payer.create(world, buyers=max(1, buyers))
        await server.start()
        admins = [await opened.enter_async_context(_admin(server)) for _ in range(ADMINS)]
        height = await world.outside.rpc("getblockcount")
        house = House(world, server, keys, payer, admins, depth=depth, loud=loud)
        # A reorg may put what is paid at first into a block in place of an older one.
        house.first_height = height + 1 - REORG_DEPTH_MAX
        await house.settled()
        yield house


@asynccontextmanager
async def _admin(server: SoakServer) -> AsyncIterator[RunningServer]:
    config: Config = config_file.load(server.data_folder, server.environment())
    async with open_services(config, clock=server.clock) as services:
        yield RunningServer(services, server.clock)


async def _operator_wallet(world: RegtestWorld) -> OutsideWallet:
    """The same keys on both nodes: in a wallet that the server's node opens to sign, and outside."""
    await world.outside.rpc("createwallet", wallet_name=WALLET, load_on_startup=True)
    copy = world.outside.folder / "operator-keys"
    await world.outside.rpc("backupwallet", str(copy), wallet=WALLET)
    await world.server.rpc("restorewallet", WALLET, str(copy), False)
    await world.server.rpc("unloadwallet", WALLET)
    os.unlink(copy)
    return OutsideWallet(world.outside, WALLET)
