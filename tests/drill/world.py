"""The drill's world: two nodes, the real server with a clock of its own and a small disk, and the ways to it.

    clients -> front (a proxy) -> server -> node        zmq (a proxy) <- node

Whoever changes one of them holds its lock, so that two faults never undo each other.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from regtest.errors import RegtestError, RpcRefused
from regtest.node import wait_until
from regtest.processes import GuardedProcess
from regtest.served import BITCACHE, ServedBitcache, ServerFailed
from regtest.world import RegtestWorld
from tests.drill.payer import Payer
from tests.drill.proxy import Proxy

ROOT = Path(__file__).parents[2]
DISK_BYTES = 512 << 20
NO_ROOM_RESERVE_BYTES = 1 << 60
PRICE_HOLD_S = 20
START_TIMEOUT_S = 60.0
CLIENT_TIMEOUT_S = 300.0


class DrillServer(ServedBitcache):
    """`bitcache serve` as a process, its data on a disk that can be full, its clock set by a file."""

    def __init__(self, world: RegtestWorld, front: Proxy, zmq: Proxy, disk: Path, *, tmpfs: bool) -> None:
        super().__init__(world, data_folder=disk / "data")
        self.tmpfs = tmpfs
        self.lock = asyncio.Lock()
        self.full = False
        self._clock_file = self.folder / "clock"
        self.set_clock(0)
        self._disk = disk
        disk.mkdir()
        if tmpfs:
            _mount(self._disk, f"size={DISK_BYTES}")
        front.target_port = self.port
        self.settings = {
            "PUBLIC_URL": f"http://localhost:{front.port}",
            "NODE_ZMQ_SEQUENCE_URL": f"tcp://127.0.0.1:{zmq.port}",
            "NODE_POLL_INTERVAL_S": "1",
            "PRICE_HOLD_S": str(PRICE_HOLD_S),
            "OPEN_INVOICES_PER_CLIENT_MAX": "100000",
            # All come from one address.
            "LIMITS_CLAIMS_PER_MINUTE": "100000",
            "ZERO_CONF_KEY_CAP_SAT": "10000000",
            "DISK_RESERVE_BYTES": "0",
        }

    @property
    def public_url(self) -> str:
        return self.settings["PUBLIC_URL"]

    def set_clock(self, ahead_s: int) -> None:
        draft = self._clock_file.with_suffix(".draft")
        draft.write_text(str(ahead_s))
        draft.replace(self._clock_file)

    async def start(self) -> None:
        """As a supervisor would: again, while the disk has no room for the start. Waits until it answers."""
        if not self.data_folder.exists():
            await self.command("init", str(self.data_folder))
        deadline = time.monotonic() + START_TIMEOUT_S
        self._spawn()
        while not await self._answers():
            assert self._process is not None
            if time.monotonic() > deadline or not (self._process.running or self.full):
                raise ServerFailed(f"the server did not start:\n{self._process.log_tail(lines=40)}")
            if not self._process.running:
                self._spawn()
            await asyncio.sleep(0.1)

    @property
    def exit_code(self) -> int | None:
        """Of a server that ended; None while it runs."""
        return None if self._process is None or self._process.running else self._process.kill()

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-40:])

    async def fill_disk(self) -> str:
        """Leave no room. Says how."""
        self.full = True
        if not self.tmpfs:
            self.settings["DISK_RESERVE_BYTES"] = str(NO_ROOM_RESERVE_BYTES)
            await self.restart()
            return "restarted with a reserve larger than the disk"
        for _ in range(10):
            # Never below what is used: the system refuses that, and somebody may be writing.
            used = os.statvfs(self._disk)
            used_bytes = (used.f_blocks - used.f_bfree) * used.f_frsize
            assert used_bytes, "the server's data is on another disk"
            if _mount(self._disk, f"remount,size={used_bytes + used.f_frsize}", may_fail=True):
                return f"a tmpfs shrunk to the {used_bytes >> 10:,} KiB in use"
        return "the tmpfs could not be shrunk: nothing was done"

    async def make_room(self) -> None:
        if self.tmpfs:
            _mount(self._disk, f"remount,size={DISK_BYTES}")
        else:
            self.settings["DISK_RESERVE_BYTES"] = "0"
            await self.restart()
        self.full = False

    async def close(self) -> None:
        await self.kill()
        if self.tmpfs:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(self._disk)], check=False)
        await super().close()

    def _spawn(self) -> None:
        environment = self.environment() | {"CLOCK_FILE": str(self._clock_file), "PYTHONPATH": str(ROOT)}
        self._process = GuardedProcess(
            [sys.executable, "-m", "tests.drill.clocked_serve", "serve", "--data", str(self.data_folder)],
            log=self.folder / "server.log",
            environment=environment,
            folder=self.folder,
        )

    async def _answers(self) -> bool:
        def ask() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5):
                    return True
            except OSError:
                return False

        return await asyncio.to_thread(ask)


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


def _mount(folder: Path, options: str, *, may_fail: bool = False) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise RegtestError(f"mount -o {options}: {done.stderr}")
    return done.returncode == 0
