"""The drill's world: two nodes, the real server with a clock of its own and a small disk, and the ways to it.

    clients -> front (a proxy) -> server -> node        zmq (a proxy) <- node

Whoever changes one of them holds its lock, so that two faults never undo each other.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from regtest.errors import RpcRefused
from regtest.node import wait_until
from regtest.served import BITCACHE
from regtest.world import RegtestWorld
from tests.drill.payer import Payer
from tests.drill.proxy import Proxy
from tests.drill.server import DrillServer

CLIENT_TIMEOUT_S = 300.0


class Chain:
    """Blocks on the outside node, one maker at a time."""

    def __init__(self, world: RegtestWorld) -> None:
        self._world = world
        self._outside = world.outside
        self.lock = asyncio.Lock()

    async def mine(self, blocks: int = 1) -> None:
        async with self.lock:
            await self._world.mine(blocks, sync=False)

    async def reorg(self, depth: int, *, keeps: bool, drop: Sequence[str], rivals: Sequence[str]) -> str:
        """Replace `depth` blocks by one more; hold `lock`. `rivals` (raw) are mined in place of `drop`.

        With `keeps` the first new block holds all else that the mempool then holds. Says what it did.
        """
        height = await self._outside.rpc("getblockcount")
        await self._outside.rpc(
            "invalidateblock", await self._outside.rpc("getblockhash", height - depth + 1)
        )
        mempool = await self._outside.rpc("getrawmempool", True)
        kept = set(mempool) - set(drop) if keeps else set()
        ordered = sorted(kept, key=lambda txid: int(mempool[txid]["ancestorcount"]))
        try:
            await self._world.mine_exactly([*ordered, *rivals], sync=False)
        except RpcRefused:
            # Something among them spends what was dropped.
            await self._world.mine_exactly(rivals, sync=False)
            ordered = []
        for _ in range(depth):
            await self._world.mine_exactly((), sync=False)
        return f"{len(mempool)} payments undone, {len(ordered)} mined again, {len(rivals)} robbed"


class Drill:
    """All there is, what was done, and what was not as it should be."""

    def __init__(
        self,
        world: RegtestWorld,
        server: DrillServer,
        front: Proxy,
        zmq: Proxy,
        folder: Path,
        *,
        seed: int,
    ) -> None:
        self.seed = seed
        self.world = world
        self.server = server
        self.front = front
        self.zmq = zmq
        self.folder = folder
        self.chain = Chain(world)
        self.node_lock = asyncio.Lock()
        self.over = asyncio.Event()
        """No more buyers and faults: what was paid is fetched, nothing else is begun."""
        self.clients: dict[str, asyncio.subprocess.Process] = {}
        """Commands of sellers and buyers that run now, by what they are."""
        self.wrong: list[str] = []
        self.payer: Payer
        self._started_at = time.monotonic()

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self._started_at:7.1f} s  {line}", flush=True)

    def blame(self, line: str) -> None:
        """Something that must not be, whatever the faults."""
        self.wrong.append(line)
        self.say(f"WRONG: {line}")

    def begin(self) -> None:
        """The schedule's time starts now."""
        self._started_at = time.monotonic()

    async def at(self, moment_s: float) -> None:
        await asyncio.sleep(max(0.0, self._started_at + moment_s - time.monotonic()))

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the drill."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return

    async def client(
        self, who: str, *words: str, home: Path, token: str | None = None
    ) -> tuple[int, str, str]:
        """Run a `bitcache` command that faults may kill, a seller's with `token`; (exit code, out, err)."""
        signed_in = {"BITCACHE_SERVER": self.server.public_url, "BITCACHE_TOKEN": token} if token else {}
        process = await asyncio.create_subprocess_exec(
            BITCACHE,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.server.environment(home) | signed_in,
            cwd=home,
        )
        self.clients[who] = process
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S):
                out, err = await process.communicate()
        finally:
            self.clients.pop(who, None)
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    async def supervise(self) -> None:
        """Start a server again that ended by itself, which only a full disk excuses."""
        while True:
            await asyncio.sleep(0.2)
            async with self.server.lock:
                code = self.server.exit_code
                if code is None:
                    continue
                if not self.server.full:
                    self.blame(f"the server ended by itself with code {code}:\n{self.server.log_tail()}")
                await self.server.start()

    async def node_in(self) -> None:
        """The server's node is there and connected; hold `node_lock`."""
        node = self.world.server
        if not node.running:
            await node.start()
        if not await node.rpc("getconnectioncount"):
            await node.connect(self.world.outside)

    async def calm(self) -> None:
        """Lift every fault, start the server anew, and wait until it has seen all that the nodes have."""
        self.front.delay_s, self.front.bytes_per_s = 0.0, None
        self.zmq.mute = False
        self.zmq.cut()
        async with self.node_lock:
            await self.node_in()
        async with self.server.lock:
            self.server.set_clock(0)
            if self.server.full:
                await self.server.make_room()
            await self.server.restart()
        await self.chain.mine(8)
        await self.world.wait_synced()
        await self.settled()

    async def settled(self) -> None:
        """Wait until the server has scanned the tip and nothing waits for a block."""

        async def nothing_waits() -> bool:
            if await self.world.outside.rpc("getrawmempool"):
                await self.chain.mine()
                return False
            tip, health = await self.world.outside.rpc("getblockcount"), await self._metrics()
            return health.get("bitcache_node_online") == 1 and health.get("bitcache_tip_height") == tip

        await wait_until(nothing_waits, "the server to have seen every block", timeout_s=120, poll_s=0.5)

    async def _metrics(self) -> dict[str, float]:
        def ask() -> dict[str, float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}/metrics", timeout=30) as page:
                lines = page.read().decode().splitlines()
            pairs = (line.split() for line in lines if line.count(" ") == 1 and "{" not in line)
            return {name: float(value) for name, value in pairs}

        return await asyncio.to_thread(ask)
