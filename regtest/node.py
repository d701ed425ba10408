"""One bitcoind on regtest: start, ask, stop, crash, restart.

Methods are coroutines bound to no event loop: each call runs in a thread with a connection of its own, so one
node may serve tests that have a loop each. The RPC client here is deliberately not the product's: tests that
use it are a second opinion.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regtest.errors import NodeFailed, NodeUnreachable, RpcRefused, WaitedTooLong
from regtest.install import BitcoindInstallation, find_bitcoind
from regtest.processes import GuardedProcess, free_ports, remove_folder

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
RPC_TIMEOUT_S = 120.0
SAT_PER_BTC = 100_000_000
# Of the usual 1000 keys of each kind a wallet would take half a second to make or load. It must still reach
# over the addresses that a restored server leaves out.
KEYPOOL = 200

# In the file, a node that does not know an option says so and goes on; on the command line it would refuse to
# start. The options of the last three lines are those of Knots, which fills blocks to 300 kB by default and
# does not hold transactions of version 3 to their limits (BIP431) as Bitcoin Core does.
CONFIGURATION = f"""\
regtest=1
[regtest]
server=1
listen=1
connect=0
dnsseed=0
fixedseeds=0
discover=0
natpmp=0
listenonion=0
i2pacceptincoming=0
# Without it, transactions trickle between nodes with delays of seconds.
whitelist=noban,in,out@127.0.0.1
fallbackfee=0.00002
keypool={KEYPOOL}
dbcache=16
maxmempool=50
par=1
rpcthreads=4
shrinkdebugfile=0
blockmaxweight=4000000
blockmaxsize=4000000
mempooltruc=enforce
"""


class RegtestNode:
    """A node with its own temporary data folder and free ports. `await start()` first, `await close()` last.

    `data_from`: a data folder to start from (copied). `wallets`: whether the node has wallets.
    """

    def __init__(
        self,
        *,
        installation: BitcoindInstallation | None = None,
        data_from: Path | None = None,
        wallets: bool = True,
        name: str = "node",
    ) -> None:
        self.installation = installation or find_bitcoind()
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"bitcache-{name}-"))
        self.rpc_port, self.p2p_port, self.zmq_port = free_ports(3)
        self._wallets = wallets
        self._process: GuardedProcess | None = None
        if data_from is not None:
            left_out = shutil.ignore_patterns(*(() if wallets else ("wallets",)))
            shutil.copytree(data_from, self.folder, dirs_exist_ok=True, ignore=left_out)
        (self.folder / "bitcoin.conf").write_text(CONFIGURATION)

    @property
    def rpc_url(self) -> str:
        """Base of RPC and REST, without a trailing slash."""
        return f"http://{LOOPBACK}:{self.rpc_port}"

    @property
    def zmq_url(self) -> str:
        return f"tcp://{LOOPBACK}:{self.zmq_port}"

    @property
    def cookie_path(self) -> Path:
        """`user:password`, new at each start of the node; absent while it is stopped."""
        return self.folder / "regtest" / ".cookie"

    @property
    def mempool_path(self) -> Path:
        """Where a node that stops keeps its mempool for the next start."""
        return self.folder / "regtest" / "mempool.dat"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Raises NodeUnreachable when the node was never started."""
        if self._process is None:
            raise NodeUnreachable(f"{self.name} was not started")
        return self._process.pid

    async def start(self, *options: str) -> None:
        """Start and wait until RPC answers. `options` hold for this start only.

        Raises NodeFailed with the node's last words.
        """
        await asyncio.to_thread(self.start_now, *options)

    async def stop(self) -> None:
        """Shut down cleanly; the data folder and ports stay for the next `start`."""
        await asyncio.to_thread(self.stop_now)

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        await asyncio.to_thread(self.kill_now)

    async def restart(self, *options: str) -> None:
        await self.stop()
        await self.start(*options)

    async def close(self) -> None:
        """Stop for good and remove the data folder."""
        await asyncio.to_thread(self.close_now)

    async def rpc(self, method: str, *params: Any, wallet: str | None = None, **named: Any) -> Any:
        """The result of one call. Numbers with a point come back as Decimal; Decimals are sent exactly.

        Raises RpcRefused with the node's error, NodeUnreachable when it does not answer.
        """
        return await asyncio.to_thread(self.call, method, params, named, wallet)

    async def connect(self, other: RegtestNode) -> None:
        """Connect to `other`, and wait until both have shaken hands."""
        address = f"{LOOPBACK}:{other.p2p_port}"
        peers_before = [len(await node.rpc("getpeerinfo")) for node in (self, other)]
        await self.rpc("addnode", address, "onetry")

        async def connected() -> bool:
            for node, before in zip((self, other), peers_before, strict=True):
                peers = await node.rpc("getpeerinfo")
                if len(peers) <= before or any(peer["version"] == 0 for peer in peers):
                    return False
                if any("pong" not in peer["bytesrecv_per_msg"] for peer in peers):
                    return False
            return True

        await wait_until(connected, f"{self.name} to be connected to {other.name}")

    async def disconnect(self) -> None:
        """Drop all peers."""
        for peer in await self.rpc("getpeerinfo"):
            try:
                await self.rpc("disconnectnode", nodeid=peer["id"])
            except RpcRefused:
                continue  # it left in the meantime

        async def alone() -> bool:
            return not await self.rpc("getpeerinfo")

        await wait_until(alone, f"{self.name} to be alone")

    def call(self, method: str, params: Any = (), named: Any = None, wallet: str | None = None) -> Any:
        """Like `rpc`, but blocking."""
        arguments = {**named, "args": list(params)} if named else list(params)
        body = json.dumps({"id": 0, "method": method, "params": arguments}, default=_exact).encode()
        path = f"/wallet/{quote(wallet)}" if wallet is not None else "/"
        connection = http.client.HTTPConnection(LOOPBACK, self.rpc_port, timeout=RPC_TIMEOUT_S)
        try:
            cookie = base64.b64encode(self.cookie_path.read_bytes()).decode()
            connection.request("POST", path, body, {"Authorization": f"Basic {cookie}"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise NodeUnreachable(f"{self.name} does not answer {method}: {exc}") from exc
        finally:
            connection.close()
        if response.status in (401, 403, 503) or not answer.startswith(b"{"):
            raise NodeUnreachable(f"{self.name} answers {method} with HTTP {response.status}")
        document = json.loads(answer, parse_float=Decimal)
        if document.get("error") is not None:
            raise RpcRefused(method, document["error"]["code"], document["error"]["message"])
        return document["result"]

    def start_now(self, *options: str) -> None:
        """Like `start`, but blocking; so are the next ones."""
        if self.running:
            raise NodeFailed(f"{self.name} is running already", "")
        command = [
            self.installation.path,
            f"-datadir={self.folder}",
            f"-rpcport={self.rpc_port}",
            f"-bind={LOOPBACK}:{self.p2p_port}",
            f"-zmqpubsequence={self.zmq_url}",
            "-rest=1",
            "-printtoconsole=0",
            *(() if self._wallets else ("-disablewallet=1",)),
            *options,
        ]
        # A cookie that a killed node left would only be refused.
        self.cookie_path.unlink(missing_ok=True)
        self._process = GuardedProcess(command, log=self.folder / "output.log", doomed_folder=self.folder)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if not self._process.running:
                self._process.kill()
                raise NodeFailed(f"{self.name} did not start", self._process.log_tail())
            try:
                self.call("getblockchaininfo")
                return
            except (NodeUnreachable, RpcRefused) as exc:  # not listening yet, or warming up
                if time.monotonic() > deadline:
                    self._process.kill()
                    raise NodeFailed(f"{self.name} did not answer in time", str(exc)) from exc
            time.sleep(0.05)

    def stop_now(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill_now(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close_now(self) -> None:
        # Nobody will read this data again, so a clean shutdown would be time lost.
        self.kill_now()
        remove_folder(self.folder)


async def wait_until(
    condition: Callable[[], Awaitable[bool]], what: str, *, timeout_s: float = 30, poll_s: float = 0.02
) -> None:
    """Ask `condition` again and again until it holds. Raises WaitedTooLong after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            raise WaitedTooLong(f"waited {timeout_s:g} s for {what}")
        await asyncio.sleep(poll_s)


def btc(amount_sat: int) -> Decimal:
    """The amount as RPC wants it."""
    return Decimal(amount_sat) / SAT_PER_BTC


def sat(amount_btc: Decimal) -> int:
    """The amount as RPC gives it, in sat. Raises ValueError for a fraction of one."""
    amount_sat = amount_btc * SAT_PER_BTC
    if amount_sat != int(amount_sat):
        raise ValueError(f"{amount_btc} BTC is not a whole number of sat")
    return int(amount_sat)


def _exact(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:.8f}"
    raise TypeError(f"cannot send {value!r} to the node")
