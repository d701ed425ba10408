"""The chain's side of channels on a real node, without the HTTP, the registry or the closer: deposits, closes
and refunds are made here, and the watcher and the books of the real services follow them.

    async with open_deposits(world, tmp_path) as shop:
        channel = await shop.deposit(await shop.announce(), 20_000)

No loop runs: `shop.seen` polls the watcher.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

from coincurve import PrivateKey
from sqlalchemy import insert, update

from bitcache.backup import back_up
from bitcache.channel_seed import copy_channel_seed, read_channel_seed, write_channel_seed
from bitcache.config import CONFIG_FILE_NAME, DATABASE_FILE_NAME, ChannelsConfig, Config, HostedConfig
from bitcache.ids import new_id
from bitcache.master_key import write_master_key
from bitcache.restore import restore
from bitcache.services import open_services
from payments import channel_close_store, channel_store, restores
from payments.channel import ChannelState, CloseReason
from payments.channel_close import Claim, close_transaction, refund_transaction
from payments.channel_close_plan import Planned
from payments.channel_close_store import unused_address
from payments.channel_follow import book_spending
from payments.channel_record import ChannelRecord
from payments.channel_script import Channel, Contract
from payments.own_addresses import fresh_address
from payments.ports import Transaction
from payments.segwit_address import address_of
from payments.tables import channel_sales, channels
from payments.unassigned import Purpose
from regtest.node import wait_until
from regtest.world import RegtestWorld
from tests.channel_parts import contract, key
from tests.hosted_shop import HostedShop, operator_wallet
from tests.service import Clock, RunningServer, blank_database, test_config
from tests.till import Till, node_config

CAPACITY_SAT = 20_000
FEE_PPM = 100_000
CLOSE_FEERATE_SAT_KVB = 2_000
_keys = count(1)


@dataclass
class Deposits(HostedShop):
    """Contracts whose keys are all kept here: those of payers and of payees."""

    payers: dict[bytes, PrivateKey] = field(default_factory=dict)
    payees: dict[bytes, PrivateKey] = field(default_factory=dict)

    async def announce(
        self,
        *,
        life_blocks: int = 1_000,
        change: bytes | None = None,
        watch: bool = True,
        written: bool = True,
    ) -> Contract:
        """A contract; without `watch`, as another process would announce it."""
        payer, payee = (key(2**128 + next(_keys)) for _ in range(2))
        change = change or await self.new_script()
        tip_height = int(await self.world.outside.rpc("getblockcount"))
        agreed = contract(payer=payer, payee=payee, expiry_height=tip_height + life_blocks, change=change)
        self.payers[agreed.script_pubkey], self.payees[agreed.script_pubkey] = payer, payee
        if written:
            await self.write_contract(agreed)
        if written and watch:
            self.services.watcher.watch(agreed.script_pubkey, None)
        return agreed

    async def write_contract(self, contract: Contract) -> None:
        await self.services.database.write(
            partial(
                channel_store.announce, contract=contract, nonce=bytes(16), now=self.now, contracts_max=1_000
            )
        )

    async def new_script(self) -> bytes:
        """Of an address of somebody outside."""
        script: bytes | None = await self.services.node.validate_address(await self.new_address())
        assert script is not None
        return script

    async def output_script(self, txid: str, vout: int) -> bytes:
        """Of an unspent output."""
        output = await self.world.outside.rpc("gettxout", txid, vout)
        return bytes.fromhex(output["scriptPubKey"]["hex"])

    async def seen(self) -> None:
        """The watcher has recorded everything that the node has now."""
        watcher = self.services.watcher

        async def online() -> bool:
            await watcher.poll_once()
            return bool(watcher.condition.online)

        # A node that has just started may still load its mempool.
        await wait_until(online, "the watcher to see the node")

    @property
    def now(self) -> int:
        return int(self.till.server.clock())

    async def deposit(
        self, contract: Contract, amount_sat: int = CAPACITY_SAT, *, confirmations: int = 1
    ) -> ChannelRecord:
        """Pay it and have it seen; the channel."""
        before = {record.id for record in await self.of(contract)}
        txid = await self.world.faucet(
            address_of(contract.script_pubkey, "regtest"), amount_sat, confirmations=0
        )
        await self.world.mempool_wait(txid)
        if confirmations:
            await self.world.mine(confirmations)
        await self.seen()
        (new,) = [record for record in await self.of(contract) if record.id not in before]
        return new

    async def of(self, contract: Contract) -> list[ChannelRecord]:
        read = partial(channel_store.of_script, script_pubkey=contract.script_pubkey)
        found: list[ChannelRecord] = await self.services.database.read(read)
        return found

    async def load(self, channel_id: str) -> ChannelRecord:
        found: ChannelRecord = await self.services.database.read(
            partial(channel_store.load, channel_id=channel_id)
        )
        return found

    async def charge(self, record: ChannelRecord, *, accepted_sat: int, spent_msat: int) -> None:
        """What the registry writes: a voucher for so much in all, and so much of it charged now."""
        channel = record.channel
        signature = channel.sign(self.payers[channel.contract.script_pubkey], accepted_sat)

        async def write(tx: Transaction) -> None:
            of_channel = channels.c.id == record.id
            await tx.execute(
                update(channels)
                .where(of_channel)
                .values(
                    state=ChannelState.OPEN,
                    opened_at=self.now,
                    accepted_sat=accepted_sat,
                    signature=signature,
                    spent_msat=channels.c.spent_msat + spent_msat,
                )
            )
            bought = (channel_sales.c.channel_id == record.id) & (channel_sales.c.subject == "offer")
            more = {"spent_msat": channel_sales.c.spent_msat + spent_msat, "last_at": self.now}
            if not (await tx.execute(update(channel_sales).where(bought).values(**more))).rowcount:
                await tx.execute(
                    insert(channel_sales).values(
                        channel_id=record.id,
                        subject="offer",
                        seller_id=self.seller_id,
                        fee_ppm=FEE_PPM,
                        first_at=self.now,
                        last_at=self.now,
                        units=1,
                        spent_msat=spent_msat,
                        booked_msat=0,
                        bookings=0,
                    )
                )

        await self.services.database.write(write)

    async def book_spending(self) -> None:
        await self.services.database.write(partial(book_spending, channel_ids=None, now=self.now))

    async def close(
        self,
        records: Sequence[ChannelRecord],
        *,
        close_id: str | None = None,
        n: int = 1,
        feerate_sat_kvb: int = CLOSE_FEERATE_SAT_KVB,
        kept: bool = True,
        send: bool = True,
    ) -> Planned:
        """A close by the best vouchers; `kept` false: by a server whose database was lost later."""
        claims = []
        for record in [await self.load(record.id) for record in records]:
            assert record.balance.signature is not None
            payee = self.payees[record.channel.contract.script_pubkey]
            claims.append(Claim(record.channel, record.balance.accepted_sat, record.balance.signature, payee))
        services = self.services
        address = await fresh_address(
            services.database,
            services.descriptors,
            services.addresses,
            await services.hosted.open(),
            Purpose.CHANNEL,
            unused=unused_address,
        )
        made = close_transaction(claims, address.script_pubkey, feerate_sat_kvb=feerate_sat_kvb)
        planned = Planned(made, tuple(claims), feerate_sat_kvb)
        tip_height = int(await self.world.outside.rpc("getblockcount"))

        async def keep(tx: Transaction) -> None:
            ids = [record.id for record in records]
            asked = {"state": ChannelState.CLOSING, "close_reason": CloseReason.MARGIN}
            await tx.execute(
                update(channels).where(channels.c.id.in_(ids)).values(close_asked_at=self.now, **asked)
            )
            await channel_close_store.add_version(
                tx,
                close_id=close_id or new_id(),
                n=n,
                planned=planned,
                payee_script_pubkey=address.script_pubkey,
                tip_height=tip_height,
                now=self.now,
            )

        if kept:
            await services.database.write(keep)
        if send:
            await self.broadcast(made.raw)
        return planned

    def refund(self, channel: Channel, script_pubkey: bytes) -> bytes:
        payer = self.payers[channel.contract.script_pubkey]
        return refund_transaction(channel, payer, script_pubkey, feerate_sat_kvb=CLOSE_FEERATE_SAT_KVB)

    async def broadcast(self, raw: bytes) -> str:
        """To the outside node, and have the server's node see it; the txid."""
        txid = str(await self.world.outside.rpc("sendrawtransaction", raw.hex()))
        await self.world.mempool_wait(txid)
        return txid


@asynccontextmanager
async def open_deposits(world: RegtestWorld, folder: Path, *, depth: int = 2) -> AsyncIterator[Deposits]:
    keys = await operator_wallet(world.outside)
    descriptor = await keys.descriptor("wpkh")
    config = _config(world, folder, HostedConfig(descriptor=descriptor, depth=depth))
    write_master_key(config.master_key)
    write_channel_seed(config.channel_seed)
    file = config.data_folder / DATABASE_FILE_NAME
    file.touch(mode=0o600)
    file.write_bytes(await blank_database())
    clock = Clock()
    async with open_services(config, clock=clock, monotonic=clock.monotonic) as services:
        server = RunningServer(services, clock)
        till = Till(server, await server.new_seller(), world)
        shop = Deposits(till, world, keys, descriptor)
        await services.hosted.open()
        await shop.seen()
        yield shop


async def back_up_to(shop: Deposits, folder: Path) -> None:
    config = shop.services.config
    (config.data_folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
    await back_up(config, folder, with_master_key=True, now=shop.now)


@asynccontextmanager
async def risen(lost: Deposits, backup: Path, folder: Path) -> AsyncIterator[Deposits]:
    """The shop on what `backup` holds, once it has found the addresses that the backup does not know."""
    await restore(backup, folder, master_key_file=None, environment={}, now=lost.now)
    old = lost.services.config
    config = _config(lost.world, folder, old.hosted)
    if not config.channel_seed.exists():
        copy_channel_seed(read_channel_seed(old.channel_seed), config.channel_seed)
    clock = Clock()
    async with open_services(config, clock=clock, monotonic=clock.monotonic) as services:
        till = Till(RunningServer(services, clock), lost.till.account, lost.world)
        shop = replace(lost, till=till)
        await services.hosted.open()
        for _ in range(20):
            await shop.seen()
            if not await services.database.read(restores.searches):
                break
        yield shop


def _config(world: RegtestWorld, folder: Path, hosted: HostedConfig) -> Config:
    channels = ChannelsConfig(enabled=True)
    return test_config(folder, node=node_config(world), hosted=hosted, channels=channels)
