"""Channels and their closes on real nodes, without the service around them: parts turned by hand.

    async with open_closing_shop(world, folder) as shop:
        (channel,) = await shop.channels(1)
        await shop.pay(channel, 5_000)
        await shop.close(channel)
        await shop.turn()

Payers are a wallet of the outside node; the operator's wallet is on the server's node, which can sign.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coincurve import PrivateKey
from typer.testing import CliRunner

from bitcache.cli.main import app
from bitcache.config import CONFIG_FILE_NAME, DATABASE_FILE_NAME
from bitcache.db.engine import Database
from payments import (
    batch_store,
    books,
    channel_close_store,
    channel_store,
    ledger,
    payout_requests,
    tables,
)
from payments.addresses import AddressBook, PayoutDescriptor, normalise_descriptor
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.channel import Charge, CloseReason, Voucher
from payments.channel_close import close_transaction, refund_transaction
from payments.channel_close_plan import ClosePolicy, claim_of
from payments.channel_close_store import Close
from payments.channel_closer import ChannelCloser
from payments.channel_exposure import Exposure
from payments.channel_follow import ChannelFollower
from payments.channel_keys import payee_key
from payments.channel_record import Agreed, ChannelRecord
from payments.channel_registry import ChannelRegistry
from payments.channel_script import Channel, Contract
from payments.descriptors import DescriptorStore
from payments.invoice import Standing, Term
from payments.money import Sat
from payments.payout import Payout, PayoutPolicy
from payments.payout_batches import PayoutBatches
from payments.payout_follow import PayoutFollower
from payments.ports import Transaction
from payments.reconcile_report import Report
from payments.reconciler import Reconciler
from payments.records import InvoiceRecord
from payments.registry import InvoiceRegistry
from payments.segwit_address import address_of
from payments.watcher import Watcher
from regtest.node import btc, sat, wait_until
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.channel_parts import contract, key
from tests.hosted_shop import approved_payout
from tests.service import blank_database

SEED = bytes(range(32))
SELLER = "ada"
FEE_PPM = 10_000
CAPACITY_SAT = 50_000
CLOSE_FEE_SAT = 2_000
LIFE_BLOCKS = 1_000
DEPTH = 2
UNWANTED_SAT = 10_000_000
POLICY = ClosePolicy(feerate_sat_kvb=2_000, feerate_max_sat_kvb=50_000, bump_after_blocks=3)
PAYOUT_POLICY = PayoutPolicy(depth=DEPTH, feerate_max_sat_kvb=100_000, fee_share_percent_max=50)
_numbers = itertools.count(1)


@dataclass
class Paying:
    """A channel as its payer holds it."""

    payer: PrivateKey
    contract: Contract
    change_address: str
    nonce: bytes
    channel: Channel = field(init=False)
    units: int = 0

    @property
    def id(self) -> str:
        return self.channel.id


@dataclass
class ClosingShop:
    world: RegtestWorld
    node: Bitcoind
    database: Database
    keys: OutsideWallet
    """The operator's wallet, on the server's node, mostly not loaded."""
    wallet: PayoutDescriptor
    payers: OutsideWallet
    folder: Path
    """A data folder, for the operator's commands."""

    def __post_init__(self) -> None:
        self.descriptors = DescriptorStore(seal=lambda text, _: text, unseal=lambda text, _: text)
        self.addresses = AddressBook(self.node)
        self.invoices = InvoiceRegistry(on_change=_no_change, quote=_no_quote)
        self.registry = ChannelRegistry(
            store=self.database,
            exposure=Exposure(Sat(10_000), Sat(100_000), Sat(100_000), Sat(1_000_000)),
            clock=clock,
        )
        self.closer = self.closer_with()
        self.batches = PayoutBatches(
            node=self.node,
            store=self.database,
            descriptors=self.descriptors,
            addresses=self.addresses,
            policy=PAYOUT_POLICY,
            clock=clock,
        )
        self.signer = PayoutWallet(self.node, self.keys.name)
        self.restart()

    def restart(self) -> None:
        """A watcher that knows only what is in the database."""
        self.watcher = Watcher(
            self.node,
            self.database,
            self.invoices,
            network="regtest",
            clock=clock,
            payouts=PayoutFollower(PAYOUT_POLICY),
            channels=ChannelFollower(depth=DEPTH),
        )

    def closer_with(
        self, policy: ClosePolicy = POLICY, *, node: Bitcoind | None = None, signs: bool = True
    ) -> ChannelCloser:
        async def wallet() -> PayoutDescriptor:
            return self.wallet

        return ChannelCloser(
            node=node or self.node,
            store=self.database,
            registry=self.registry,
            payee=lambda nonce: payee_key(SEED, nonce),
            wallet=wallet,
            descriptors=self.descriptors,
            addresses=self.addresses,
            signer=PayoutWallet(self.node, self.keys.name) if signs else None,
            policy=policy,
            clock=clock,
        )

    # Channels and what payers do.

    async def channels(
        self,
        count: int = 1,
        *,
        capacity_sat: int = CAPACITY_SAT,
        close_fee_sat: int = CLOSE_FEE_SAT,
        life_blocks: int = LIFE_BLOCKS,
        depth: int = 6,
    ) -> list[Paying]:
        """Deposits so deep, opened with vouchers over nothing."""
        tip_height = await self.world.server.rpc("getblockcount")
        made = [
            await self._contract(tip_height + life_blocks, close_fee_sat=close_fee_sat) for _ in range(count)
        ]
        addresses = {address_of(one.contract.script_pubkey, "regtest"): one for one in made}
        amounts = {address: btc(capacity_sat) for address in addresses}
        txid = await self.world.outside.rpc("sendmany", "", amounts, fee_rate=5, wallet=MINER)
        await self.world.mempool_wait(txid)
        if depth:
            await self.world.mine(depth)
        await self.seen()
        for one in made:

            async def read(tx: Transaction, one: Paying = one) -> list[ChannelRecord]:
                return await channel_store.of_script(tx, one.contract.script_pubkey)

            (record,) = await self.database.read(read)
            one.channel = record.channel
            await self.registry.open(one.id, self.voucher(one, 0))
        return made

    async def _contract(self, expiry_height: int, *, close_fee_sat: int) -> Paying:
        number = next(_numbers)
        nonce = number.to_bytes(16, "big")
        payer = key(number)
        address = await self.payers.new_address()
        script = await self.node.validate_address(address)
        assert script is not None
        agreed = contract(
            payer=payer,
            payee=payee_key(SEED, nonce),
            expiry_height=expiry_height,
            change=script,
            close_fee_sat=close_fee_sat,
        )

        async def announce(tx: Transaction) -> None:
            await channel_store.announce(tx, agreed, nonce=nonce, now=clock(), contracts_max=1_000)

        await self.database.write(announce)
        return Paying(payer, agreed, address, nonce)

    def voucher(self, paying: Paying, paid_sat: int) -> Voucher:
        return Voucher(paying.id, Sat(paid_sat), paying.channel.sign(paying.payer, paid_sat))

    async def pay(self, paying: Paying, paid_sat: int, *, spent_msat: int | None = None) -> None:
        """One voucher over so much in all; all of it is spent, or so many msat more."""
        before = (await self.record(paying)).balance.spent_msat
        cost = paid_sat * 1_000 - before if spent_msat is None else spent_msat
        charge = Charge(
            subject="offer",
            seller_id=SELLER,
            fee_ppm=FEE_PPM,
            item="file",
            first_unit=paying.units,
            units=1,
            price_msat=cost,
        )
        paying.units += 1
        await self.registry.pay(self.voucher(paying, paid_sat), charge)

    async def close(self, paying: Paying, *, paid_sat: int | None = None, fee_sat: int | None = None) -> None:
        """By the operator; or agreed with the payer, to these amounts."""
        agreed = None
        if paid_sat is not None and fee_sat is not None:
            signature = paying.channel.sign(paying.payer, paid_sat, fee_sat)
            agreed = Agreed(Sat(paid_sat), Sat(fee_sat), signature)
        reason = CloseReason.OPERATOR if agreed is None else CloseReason.PAYER
        await self.registry.ask_close(paying.id, reason, agreed)

    async def refund(self, paying: Paying, *, feerate_sat_vb: int = 5) -> str:
        """The payer takes the deposit back, from the outside node; the txid."""
        address = await self.payers.new_address()
        script = await self.node.validate_address(address)
        assert script is not None
        raw = refund_transaction(paying.channel, paying.payer, script, feerate_sat_kvb=feerate_sat_vb * 1_000)
        txid = str(await self.world.outside.rpc("sendrawtransaction", raw.hex()))
        await self.world.mempool_wait(txid)
        return txid

    async def close_elsewhere(self, paying: Paying) -> str:
        """A transaction that spends the deposit and that this server does not know, in hex; not sent."""
        record = await self.record(paying)
        claim = claim_of(record, payee_key(SEED, paying.nonce), last=False)
        assert claim is not None
        script = await self.node.validate_address(await self.world.new_miner_address())
        assert script is not None
        return close_transaction([claim], script, feerate_sat_kvb=2_000).raw.hex()

    async def pay_out(self, amount_sat: int, address: str) -> str:
        """A seller's payout in a batch of its own, signed by the node's wallet and sent; the batch's id."""
        script = await self.node.validate_address(address)
        assert script is not None
        now = clock()
        payout = approved_payout(SELLER, amount_sat, address=address, script_pubkey=script, now=now)

        async def request(tx: Transaction) -> Payout:
            return await payout_requests.request(tx, payout, depth=DEPTH, now=now)

        await self.database.write(request)
        batch_id = await self.batches.build(feerate_sat_kvb=2_000, wallet=self.wallet)
        assert batch_id is not None
        await self.batches.sign(batch_id, self.signer)
        assert await self.batches.offer(batch_id) is None
        txid = (await self.batch(batch_id)).newest.txid
        assert txid is not None
        await self.world.mempool_wait(txid, node=self.world.outside)
        return batch_id

    async def batch(self, batch_id: str) -> batch_store.Batch:
        return await self.database.read(lambda tx: batch_store.load_batch(tx, batch_id))

    async def command(self, *words: str) -> str:
        """What an operator's command prints; fails if it does."""
        result = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--data", str(self.folder)])
        assert result.exit_code == 0, result.output
        return str(result.output)

    # What there is.

    async def seen(self) -> None:
        await self.watcher.poll_once()
        await self.registry.poll_once()

    async def turn(self, closer: ChannelCloser | None = None) -> None:
        """One of the closer, on what the node has now; and what came of it."""
        await self.seen()
        await (closer or self.closer).poll_once()
        await self.seen()

    async def mine(self, blocks: int = 1) -> None:
        await self.world.mine(blocks)
        await self.seen()

    async def empty_block(self, count: int = 1) -> None:
        """Blocks that take nothing from the mempool: to the miner it seems to pay less than nothing."""
        waiting = await self.world.outside.rpc("getrawmempool")
        for txid in waiting:
            await self.world.outside.rpc("prioritisetransaction", txid=txid, fee_delta=-UNWANTED_SAT)
        await self.world.mine(count)
        for txid in waiting:
            await self.world.outside.rpc("prioritisetransaction", txid=txid, fee_delta=UNWANTED_SAT)
        await self.seen()

    async def record(self, paying: Paying) -> ChannelRecord:
        return await self.database.read(lambda tx: channel_store.load(tx, paying.id))

    async def closes(self, paying: Paying) -> list[Close]:
        return await self.database.read(lambda tx: channel_close_store.of_channel(tx, paying.id))

    async def sent(self, paying: Paying) -> Close:
        """Its one close, of which the newest version is on its way to the miner."""
        (close,) = await self.closes(paying)
        await self.world.mempool_wait(close.newest.txid)
        await self.world.mempool_wait(close.newest.txid, node=self.world.outside)
        return close

    async def output_sat(self, txid: str, vout: int) -> int:
        """Of an unspent output, in the chain or the mempool."""
        found = await self.world.outside.rpc("gettxout", txid, vout, True)
        return sat(found["value"])

    async def change_sat(self, paying: Paying) -> int:
        """What reached the payer's change address in the chain."""
        return await self.payers.received_sat(paying.change_address, confirmations=1)

    async def balances_msat(self, *likes: str) -> dict[str, int]:
        """Accounts of the ledger that begin so and are not at zero."""

        async def read(tx: Transaction) -> dict[str, int]:
            assert await books.wrong_balances(tx) == {}
            found: dict[str, int] = {}
            for like in likes or ("",):
                found |= await books.balances_like(tx, like)
            return {account: int(msat) for account, msat in found.items() if msat}

        return await self.database.read(read)

    async def channel_msat(self, paying: Paying) -> int:
        """What the books have under the channel now."""
        return (await self.balances_msat(f"channel:{paying.id}")).get(f"channel:{paying.id}", 0)

    async def unexplained_msat(self) -> int:
        """What left the wallet without anybody having said why: it stops all payouts."""
        return (await self.balances_msat(ledger.unexplained())).get(ledger.unexplained(), 0)

    async def reconciled(self) -> Report:
        report = await Reconciler(node=self.node, store=self.database, descriptors=self.descriptors).look()
        assert report is not None
        return report


def clock() -> int:
    return int(time.time())


async def _no_change(tx: Transaction, before: Standing, after: InvoiceRecord) -> None:
    raise AssertionError("there are no invoices here")


async def _no_quote(tx: Transaction, subject: str, now: int) -> Term | None:
    raise AssertionError("there are no invoices here")


@asynccontextmanager
async def open_closing_shop(world: RegtestWorld, folder: Path) -> AsyncIterator[ClosingShop]:
    """The world's server node must be able to load wallets."""
    (folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
    (folder / DATABASE_FILE_NAME).write_bytes(await blank_database())
    database = Database(f"sqlite+aiosqlite:///{folder / DATABASE_FILE_NAME}")
    name = f"operator {next(_numbers)}"
    await world.server.rpc("createwallet", wallet_name=name, load_on_startup=False)
    keys = OutsideWallet(world.server, name)
    text = await keys.descriptor("tr")
    await world.server.rpc("unloadwallet", name)
    payers = await OutsideWallet.create(world, f"payers {next(_numbers)}")
    async with Bitcoind(world.server.rpc_url, cookie_file=world.server.cookie_path) as node:
        wallet = await normalise_descriptor(node, text, "regtest")
        shop = ClosingShop(world, node, database, keys, wallet, payers, folder)

        async def register(tx: Transaction) -> None:
            await shop.descriptors.register(tx, wallet, start_index=0, now=clock())
            await tx.execute(tables.descriptors.update().values(hosted=True, gap_limit=1_000))

        await database.write(register)
        await shop.watcher.poll_once()
        running = asyncio.create_task(shop.registry.run())

        async def available() -> bool:
            return shop.registry.available

        await wait_until(available, "the channels to be here")
        try:
            yield shop
        finally:
            running.cancel()
            await asyncio.wait([running])
    await database.close()
