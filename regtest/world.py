"""Two connected nodes: the server's own, and the outside, where miners and people live.

The server's has no wallets, unless it is to sign payouts.

Both start from one chain of 200 blocks that is built once per user and copied, so a world stands in about a
second, with more than 100 mature coins in the miner's wallet.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from regtest.errors import RpcRefused
from regtest.install import BitcoindInstallation, cache_folder, exclusively, find_bitcoind
from regtest.node import KEYPOOL, RegtestNode, btc, wait_until

CHAIN_BLOCKS = 200
CHAIN_AGE_S = 86_400
MINER = "miner"
# Only these: peers, fee history, logs and mempool of the node that built the chain are none of ours.
CHAIN_PARTS = ("blocks", "chainstate", "indexes", "wallets")
FAUCET_FEERATE_SAT_VB = 2


class RegtestWorld:
    """`async with RegtestWorld() as world:` or `start` and `close`. Bound to no event loop.

    `server_wallets`: the server's node can load wallets, as one that signs payouts must.
    """

    def __init__(
        self, *, installation: BitcoindInstallation | None = None, server_wallets: bool = False
    ) -> None:
        self._installation = installation or find_bitcoind()
        chain = _cached_chain(self._installation)
        self.server = RegtestNode(
            installation=self._installation, data_from=chain, wallets=server_wallets, name="server"
        )
        self.outside = RegtestNode(installation=self._installation, data_from=chain, name="outside")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start both nodes, connected, with a tip a moment old: an old one means "initial block download"."""
        try:
            await self.outside.start()
            await self.server.start()
            await self.outside.rpc("loadwallet", MINER, load_on_startup=True)
            await self.reconnect()
            await self.mine(1)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self.server.close()
        await self.outside.close()

    async def mine(self, blocks: int = 1, *, to: str | None = None, sync: bool = True) -> list[str]:
        """Mine on the outside node, to nobody or to `to`; the block hashes.

        Waits until the server's node has them, unless it is parted or stopped, or `sync` is false.
        """
        if to is None:
            hashes: list[str] = await self.outside.rpc("generatetodescriptor", blocks, _nobody())
        else:
            hashes = await self.outside.rpc("generatetoaddress", blocks, to)
        if sync and await self._connected():
            await self.wait_synced()
        return hashes

    async def mine_exactly(self, transactions: Sequence[str], *, sync: bool = True) -> str:
        """Mine one block with exactly these, parents first; its hash.

        Each is the txid of a transaction in the outside mempool, or a raw transaction in hex (which need not
        be in any mempool: this is how a double spend gets mined).
        """
        block = await self.outside.rpc("generateblock", _nobody(), list(transactions))
        if sync and await self._connected():
            await self.wait_synced()
        return str(block["hash"])

    async def wait_synced(self) -> None:
        """Wait until both nodes have the same tip."""

        async def same_tip() -> bool:
            ours, theirs = await asyncio.gather(
                self.server.rpc("getbestblockhash"), self.outside.rpc("getbestblockhash")
            )
            return bool(ours == theirs)

        await wait_until(same_tip, "both nodes to have the same tip")

    async def mempool_wait(self, txid: str, *, node: RegtestNode | None = None) -> None:
        """Wait until `txid` is in the mempool of `node`, by default the server's."""
        where = node or self.server

        async def there() -> bool:
            return txid in await where.rpc("getrawmempool")

        await wait_until(there, f"{txid} in the mempool of {where.name}")

    async def faucet(self, address: str, amount_sat: int, *, confirmations: int = 1) -> str:
        """Send coins of the miner to `address` and mine `confirmations` blocks; the txid."""
        txid: str = await self.outside.rpc(
            "sendtoaddress",
            address=address,
            amount=btc(amount_sat),
            fee_rate=FAUCET_FEERATE_SAT_VB,
            wallet=MINER,
        )
        if confirmations:
            await self.mine(confirmations)
        return txid

    async def reorg(
        self, depth: int, *, keep_transactions: bool = True, drop: Collection[str] = ()
    ) -> list[str]:
        """Replace the last `depth` blocks by `depth + 1` others; their hashes. Both nodes end on them.

        With `keep_transactions` the first new block holds what the old ones held, and the mempool, but for
        `drop` and its descendants. Without, none: all go back to the mempools, unconfirmed.
        Coinbase outputs of the old blocks are gone for ever.
        """
        height = await self.outside.rpc("getblockcount")
        first_undone = await self.outside.rpc("getblockhash", height - depth + 1)
        await self.outside.rpc("invalidateblock", first_undone)
        back = set(await self.outside.rpc("getrawmempool"))
        kept = back - await self._with_descendants(drop) if keep_transactions else set()
        hashes = [await self.mine_exactly(await self._parents_first(kept), sync=False)]
        hashes += [await self.mine_exactly((), sync=False) for _ in range(depth)]
        if await self._connected():
            await self.wait_synced()
        return hashes

    async def partition(self) -> None:
        """Part the nodes: neither hears of the other's transactions and blocks until `reconnect`."""
        await self.server.disconnect()

    async def reconnect(self) -> None:
        """Connect the nodes again (also after a restart), and wait until the tips agree."""
        if not await self._connected():
            await self.server.connect(self.outside)
        await self.wait_synced()

    async def server_out(self, *, crash: bool = False) -> None:
        """The server's node goes down, cleanly or by SIGKILL."""
        await (self.server.kill() if crash else self.server.stop())

    async def server_in(self, *options: str) -> None:
        """The server's node comes back, connected and synced."""
        await self.server.start(*options)
        await self.reconnect()

    async def evict(self, txid: str, *, everywhere: bool = False) -> None:
        """The server's node forgets its whole mempool, `txid` with it; `everywhere`: the outside does too.

        Nodes do not announce old transactions to a new peer: it stays forgotten until it is sent again.
        """
        await self.server.stop()
        self.server.mempool_path.unlink(missing_ok=True)
        if everywhere:
            # A wallet puts what it knows back into the mempool at each start, so wallets must let go of it.
            await self.outside.stop()
            self.outside.mempool_path.unlink(missing_ok=True)
            await self.outside.start("-walletbroadcast=0")
            for wallet in await self.outside.rpc("listwallets"):
                with suppress(RpcRefused):  # it never knew the transaction
                    await self.outside.rpc("abandontransaction", txid, wallet=wallet)
            await self.outside.restart()
        await self.server.start()
        await self.reconnect()

    async def new_miner_address(self) -> str:
        # A fresh one each time: the same block mined again within a second would be the same, invalid, block.
        return str(await self.outside.rpc("getnewaddress", wallet=MINER))

    async def _connected(self) -> bool:
        return self.server.running and bool(await self.server.rpc("getconnectioncount"))

    async def _parents_first(self, txids: set[str]) -> list[str]:
        mempool: dict[str, Any] = await self.outside.rpc("getrawmempool", True)
        return sorted(txids, key=lambda txid: int(mempool[txid]["ancestorcount"]))

    async def _with_descendants(self, txids: Collection[str]) -> set[str]:
        found = set(txids)
        for txid in txids:
            found |= set(await self.outside.rpc("getmempooldescendants", txid))
        return found


def _cached_chain(installation: BitcoindInstallation) -> Path:
    """The `CHAIN_BLOCKS`-block data folder for this version of the node, built at the first call.

    Its name holds all that it depends on: what an earlier version of this module built may still be there.
    """
    folder = cache_folder()
    chain = folder / f"chain-{CHAIN_BLOCKS}-{KEYPOOL}-{installation.version}"
    with exclusively(folder, chain.name):
        if chain.exists():
            return chain
        with tempfile.TemporaryDirectory(prefix="chain-", dir=folder) as name:
            built = Path(name) / "data"
            _build_chain(installation, built)
            built.rename(chain)
    return chain


def _build_chain(installation: BitcoindInstallation, target: Path) -> None:
    node = RegtestNode(installation=installation, name="chain")
    try:
        node.start_now()
        # Blocks made at once are dated ahead of the clock, a second for each six: leave room for them.
        # First of all, since a wallet takes no notice of blocks older than itself.
        node.call("setmocktime", [int(time.time()) - CHAIN_AGE_S])
        node.call("createwallet", [MINER])
        address = node.call("getnewaddress", wallet=MINER)
        node.call("generatetoaddress", [CHAIN_BLOCKS, address])
        node.stop_now()
        for part in CHAIN_PARTS:
            source = node.folder / "regtest" / part
            if source.exists():
                shutil.copytree(source, target / "regtest" / part)
    finally:
        node.close_now()


def _nobody() -> str:
    """The descriptor of a script that no wallet has, another one each time.

    A wallet takes 0.1 s for each block that pays it, and the miner has coins enough. Two blocks of one
    height, second and script would be the same block.
    """
    return f"raw(0014{secrets.token_hex(20)})"
