"""A server with hosted sales, and the operator's wallet with its keys.

    async with open_hosted_till(world, tmp_path) as shop:
        await shop.sell(price_sat=50_000)

`cold`: the keys are in a wallet of the outside node, which signs exported PSBTs. Else they are in a wallet of
the server's own node, which must be able to load one (`RegtestWorld(server_wallets=True)`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import update

from bitcache.config import HostedConfig
from bitcache.db.tables import accounts
from bitcache.ids import new_id
from payments import batch_store, books, coins, ledger, payout_requests, payout_store
from payments.money import Sat
from payments.outputs import OutPoint
from payments.payout import Kind, Payout, State
from payments.ports import Transaction
from regtest.node import RegtestNode, btc, sat
from regtest.wallet import DescriptorKind, OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.till import Bought, Till, open_till

FEERATE_SAT_KVB = 2_000
_names = count(1)


@dataclass
class HostedShop:
    till: Till
    world: RegtestWorld
    keys: OutsideWallet
    """The operator's wallet, wherever its keys are."""
    descriptor: str
    """Of that wallet."""

    @property
    def seller_id(self) -> str:
        return self.till.account.account_id

    @property
    def services(self) -> Any:
        return self.till.server.services

    async def sell(self, *, price_sat: int = 50_000, count: int = 1, depth: int = 1) -> list[Bought]:
        """Buy, pay and mine: so many sales, as many blocks deep."""
        sold = []
        for _ in range(count):
            bought = await self.till.buy(await self.till.offer(price_sat=price_sat))
            await self.till.pay(bought)
            sold.append(bought)
        await self.world.mine(depth)
        for bought in sold:
            await self.till.until(bought, lambda view: bool(view["status"] == "settled"), "the sale")
        await self.seen()
        return sold

    async def settle(self, mode: str) -> None:
        """What the seller chooses for new invoices: hosted or direct."""

        async def choose(tx: Transaction) -> None:
            of_seller = accounts.c.id == self.seller_id
            await tx.execute(update(accounts).where(of_seller).values(settlement=mode))

        await self.services.database.write(choose)

    async def seen(self) -> None:
        """The watcher has recorded everything that the node has now."""
        await self.services.watcher.poll_once()

    async def mine(self, blocks: int = 1) -> None:
        await self.world.mine(blocks)
        await self.seen()

    async def request(
        self, amount_sat: int, *, address: str | None = None, payout_id: str | None = None
    ) -> Payout:
        """A seller's payout, approved."""
        address = address or await self.new_address()
        now = self.till.server.clock()
        script = await self.services.node.validate_address(address)
        assert script is not None
        payout = approved_payout(
            self.seller_id, amount_sat, address=address, script_pubkey=script, now=now, payout_id=payout_id
        )
        depth = self.services.config.hosted.depth

        async def write(tx: Transaction) -> Payout:
            return await payout_requests.request(tx, payout, depth=depth, now=now)

        asked: Payout = await self.services.database.write(write)
        return asked

    async def build(self, *, feerate_sat_kvb: int = FEERATE_SAT_KVB) -> str:
        """A batch of what is ready; fails unless there is one."""
        wallet = await self.services.hosted.open()
        batch_id = await self.services.batches.build(feerate_sat_kvb=feerate_sat_kvb, wallet=wallet)
        assert batch_id is not None, "no payout could be batched"
        return str(batch_id)

    async def sign_outside(self, psbt: str) -> str:
        """What a hardware wallet, or another machine, does."""
        signed = await self.keys.rpc("walletprocesspsbt", psbt)
        assert signed["complete"], signed
        return str(signed["psbt"])

    async def send(self, batch_id: str) -> str:
        """Export, sign outside, import, broadcast; the txid."""
        psbt = await self.services.batches.export(batch_id)
        await self.services.batches.import_signed(batch_id, await self.sign_outside(psbt))
        assert await self.services.batches.offer(batch_id) is None
        return await self.sent(batch_id)

    async def sent(self, batch_id: str) -> str:
        """Its newest signed version is on its way to the miner; the txid."""
        await self.seen()
        signed = [str(one.txid) for one in (await self.batch(batch_id)).versions if one.txid is not None]
        await self.world.mempool_wait(signed[-1], node=self.world.outside)
        return signed[-1]

    async def batch(self, batch_id: str) -> batch_store.Batch:
        async def read(tx: Transaction) -> batch_store.Batch:
            return await batch_store.load_batch(tx, batch_id)

        found: batch_store.Batch = await self.services.database.read(read)
        return found

    async def payout(self, payout_id: str) -> Payout:
        async def read(tx: Transaction) -> Payout:
            return await payout_store.load_payout(tx, payout_id)

        found: Payout = await self.services.database.read(read)
        return found

    async def balances_sat(self) -> dict[str, int]:
        """As `balances_msat`, rounded down."""
        return {account: msat // 1_000 for account, msat in (await self.balances_msat()).items()}

    async def balances_msat(self) -> dict[str, int]:
        """Every account of the ledger that is not at zero; what is kept must be what the history says."""

        async def read(tx: Transaction) -> dict[str, int]:
            assert await books.wrong_balances(tx) == {}
            return {account: int(msat) for account, msat in (await books.balances_like(tx, "")).items()}

        found: dict[str, int] = await self.services.database.read(read)
        assert sum(found.values()) == 0
        return found

    async def agree(self) -> int:
        """What the wallet has in the chain, in sats: the node, our coins and the books say the same."""

        async def read(tx: Transaction) -> tuple[int, int]:
            return sum(coin.amount_sat for coin in await coins.unspent(tx)), -await books.balance(tx, "chain")

        ours_sat, booked_msat = await self.services.database.read(read)
        wanted = [{"desc": self.descriptor, "range": 999}]
        scan = await self.world.server.rpc("scantxoutset", "start", wanted)
        assert (ours_sat, booked_msat) == (sat(scan["total_amount"]), ours_sat * 1_000)
        return int(ours_sat)

    async def spend_otherwise(self, *outpoints: OutPoint, fee_sat: int = 20_000) -> str:
        """A transaction of the operator's own, in hex, that sends these coins elsewhere; not broadcast."""
        inputs = [{"txid": outpoint.txid, "vout": outpoint.vout} for outpoint in outpoints]
        amounts = [
            (await self.world.outside.rpc("gettransaction", one.txid, wallet=self.keys.name, verbose=True))[
                "decoded"
            ]["vout"][one.vout]["value"]
            for one in outpoints
        ]
        paid = [{await self.new_address(): btc(sum(map(sat, amounts)) - fee_sat)}]
        raw = await self.world.outside.rpc("createrawtransaction", inputs, paid)
        signed = await self.keys.rpc("signrawtransactionwithwallet", raw)
        assert signed["complete"], signed
        return str(signed["hex"])

    async def new_address(self) -> str:
        """Of somebody outside, who is neither the server nor its operator."""
        return str(await self.world.outside.rpc("getnewaddress", wallet=MINER))

    async def received_sat(self, address: str) -> int:
        """What reached this address in the chain, by the outside node."""
        return await OutsideWallet(self.world.outside, MINER).received_sat(address, confirmations=1)


def approved_payout(
    seller_id: str,
    amount_sat: int,
    *,
    address: str,
    script_pubkey: bytes,
    now: int,
    payout_id: str | None = None,
) -> Payout:
    """A seller's, not written yet."""
    return Payout(
        id=payout_id or new_id(),
        kind=Kind.SELLER,
        seller_id=seller_id,
        invoice_id=None,
        account=ledger.seller(seller_id),
        amount_sat=Sat(amount_sat),
        address=address,
        script_pubkey=script_pubkey,
        state=State.APPROVED,
        requested_at=now,
        ready_at=now,
    )


@asynccontextmanager
async def open_hosted_till(
    world: RegtestWorld,
    folder: Path,
    *,
    cold: bool = True,
    passphrase: str | None = None,
    kind: DescriptorKind = "wpkh",
    hosted: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[HostedShop]:
    """`hosted` are keys of [hosted] beside the wallet; `changes` those of the configuration.

    `passphrase`: the wallet's, which the server is not told by this.
    """
    node = world.outside if cold else world.server
    keys = await operator_wallet(node, passphrase=passphrase)
    descriptor = await keys.descriptor(kind)
    settings = {
        "descriptor": descriptor,
        "wallet": "" if cold else keys.name,
        **(hosted or {}),
    }
    if not cold:
        await node.rpc("unloadwallet", keys.name)
    config = HostedConfig(**settings)
    async with open_till(world, folder, hosted=config, **changes) as till:
        shop = HostedShop(till, world, keys, descriptor)

        await shop.settle("hosted")
        yield shop


async def operator_wallet(node: RegtestNode, *, passphrase: str | None = None) -> OutsideWallet:
    """A wallet of this node with keys of its own, open."""
    name = f"operator {next(_names)}"
    await node.rpc("createwallet", wallet_name=name, passphrase=passphrase, load_on_startup=False)
    return OutsideWallet(node, name)
