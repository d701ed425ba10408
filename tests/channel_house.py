"""Channels in a database without a node: what the watcher would write of the chain is put there by hand.

house = await House.build(database)
payer = await house.deposit(height=house.tip)
async with house.running() as registry:
    await registry.open(payer.id, payer.voucher(0))
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import select, update

from bitcache.db.engine import Database
from payments import chain_store, channel_store
from payments.chain_facts import BlockRef, PaidOutput, PayingTransaction
from payments.channel import ChannelState, Charge, CloseReason, Voucher
from payments.channel_exposure import Exposure
from payments.channel_pages import UNITS_PER_PAGE
from payments.channel_record import Agreed, ChannelRecord
from payments.channel_registry import ChannelRegistry
from payments.channel_script import Channel
from payments.money import Sat
from payments.outputs import OutPoint, Presence
from payments.ports import Transaction, WriteAtOnce
from payments.tables import channel_pages, channel_sales, channels, paying_transactions
from tests.channel_parts import EXPIRY_HEIGHT, contract, key

T = TypeVar("T")

NOW = 1_800_000_000
TIP = 800_000
PRICE_MSAT = 1_500
EXPOSURE = Exposure(
    unconfirmed_sat=Sat(500), unconfirmed_total_sat=Sat(800), one_sat=Sat(10_000), three_sat=Sat(50_000)
)


class WriteFailed(Exception):
    """What a database in trouble raises."""


class FrailStore:
    """A store whose next write can be made to fail, before anything is written or after its commit; and that
    can be held up.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.fails: str | None = None
        """`before`, `after`: the next write does."""
        self.open = asyncio.Event()
        self.open.set()
        self.writes = 0

    async def write(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._frail(partial(self._database.write, fn))

    @property
    def write_at_once(self) -> WriteAtOnce | None:
        return None if self._database.write_at_once is None else self._write_at_once

    async def _write_at_once(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        at_once = self._database.write_at_once
        assert at_once is not None
        return await self._frail(partial(at_once, fn))

    async def _frail(self, write: Callable[[], Awaitable[T]]) -> T:
        await self.open.wait()
        self.writes += 1
        fails, self.fails = self.fails, None
        if fails == "before":
            raise WriteFailed
        result = await write()
        if fails == "after":
            raise WriteFailed
        return result

    async def read(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._database.read(fn)


@dataclass(frozen=True)
class Payer:
    """Who has a channel: it signs what it is told to."""

    number: int
    channel: Channel

    @property
    def id(self) -> str:
        return self.channel.id

    def voucher(self, cumulative_sat: int) -> Voucher:
        return Voucher(self.id, cumulative_sat, self.channel.sign(key(self.number), cumulative_sat))

    def agreed(self, paid_sat: int, fee_sat: int) -> Agreed:
        signature = self.channel.sign(key(self.number), paid_sat, fee_sat)
        return Agreed(Sat(paid_sat), Sat(fee_sat), signature)


@dataclass
class House:
    database: Database
    store: FrailStore
    now: int = NOW
    tip: int = TIP
    exposure: Exposure = EXPOSURE
    numbers: int = 100
    hashes: Counter[int] = field(default_factory=Counter)

    @classmethod
    async def build(cls, database: Database) -> House:
        house = cls(database, FrailStore(database))
        await house.connect(TIP)
        return house

    def clock(self) -> int:
        return self.now

    def registry(self, holder: str | None = None) -> ChannelRegistry:
        return ChannelRegistry(
            store=self.store,
            at_once=self.store.write_at_once,
            exposure=self.exposure,
            clock=self.clock,
            holder=holder,
        )

    @asynccontextmanager
    async def running(self, holder: str | None = None) -> AsyncIterator[ChannelRegistry]:
        """A registry that has the channels, until the end of the block."""
        registry = self.registry(holder)
        await registry.poll_once()
        running = asyncio.create_task(registry.run())
        try:
            yield registry
        finally:
            running.cancel()
            await asyncio.wait([running])

    # The chain

    async def connect(self, height: int) -> None:
        self.hashes[height] += 1
        block = BlockRef(height, f"{height:032x}{self.hashes[height]:032x}")
        await self.database.write(lambda tx: chain_store.connect(tx, block, now=self.now))
        self.tip = height

    async def mine(self, count: int = 1) -> None:
        for height in range(self.tip + 1, self.tip + count + 1):
            await self.connect(height)

    async def disconnect_above(self, height: int) -> None:
        await self.database.write(lambda tx: chain_store.disconnect_above(tx, height))
        self.tip = height

    async def deposit(
        self, *, capacity_sat: int = 100_000, height: int | None = TIP, expiry_height: int = EXPIRY_HEIGHT
    ) -> Payer:
        """A contract and its deposit, in the block at `height` or in the mempool (None)."""
        self.numbers += 1
        agreed = contract(payer=key(self.numbers), expiry_height=expiry_height)
        outpoint = OutPoint(f"{self.numbers:064x}", 0)
        await self.database.write(
            lambda tx: channel_store.announce(tx, agreed, nonce=bytes(16), now=self.now, contracts_max=1_000)
        )
        await self.place(outpoint, agreed.script_pubkey, capacity_sat, height)
        return Payer(self.numbers, Channel(agreed, outpoint, Sat(capacity_sat)))

    async def place(
        self, outpoint: OutPoint, script_pubkey: bytes, amount_sat: int, height: int | None
    ) -> None:
        payment = PayingTransaction(
            txid=outpoint.txid,
            raw=b"raw",
            inputs=(OutPoint("f" * 64, int(outpoint.txid, 16)),),
            outputs=(PaidOutput(outpoint.vout, Sat(amount_sat), script_pubkey, None),),
            coinbase=False,
        )
        await self.database.write(
            lambda tx: chain_store.add_payment(
                tx, payment, height=height, first_seen_at=self.now, prefetch_fit=False
            )
        )

    async def confirm(self, payer: Payer, height: int) -> None:
        channel = payer.channel
        await self.place(channel.outpoint, channel.contract.script_pubkey, channel.capacity_sat, height)

    async def lose(self, payer: Payer) -> None:
        """A block has what double-spends its deposit."""

        async def write(tx: Transaction) -> None:
            closed = {"state": ChannelState.CLOSED, "close_reason": CloseReason.LOST, "closed_at": self.now}
            await tx.execute(update(channels).where(channels.c.id == payer.id).values(**closed))

        await self.database.write(write)

    async def set_presence(self, payer: Payer, presence: Presence) -> None:
        async def write(tx: Transaction) -> None:
            await tx.execute(
                update(paying_transactions)
                .where(paying_transactions.c.txid == payer.channel.outpoint.txid)
                .values(presence=presence, height=None)
            )

        await self.database.write(write)

    # What the disk says

    async def record(self, payer: Payer) -> ChannelRecord:
        return await self.database.read(lambda tx: channel_store.load(tx, payer.id))

    async def sales(self, payer: Payer) -> dict[str, tuple[int, int]]:
        """Subject -> units, msat."""

        async def read(tx: Transaction) -> dict[str, tuple[int, int]]:
            chosen = select(channel_sales).where(channel_sales.c.channel_id == payer.id)
            return {row.subject: (row.units, row.spent_msat) for row in (await tx.execute(chosen)).all()}

        return await self.database.read(read)

    async def paid_units(self, payer: Payer, item: str = "file") -> set[int]:
        async def read(tx: Transaction) -> set[int]:
            chosen = select(channel_pages).where(
                channel_pages.c.channel_id == payer.id, channel_pages.c.item == item
            )
            return {
                row.page * UNITS_PER_PAGE + 8 * place + bit
                for row in (await tx.execute(chosen)).all()
                for place, octet in enumerate(row.paid)
                for bit in range(8)
                if octet >> bit & 1
            }

        return await self.database.read(read)


def charge(first_unit: int, units: int = 1, **changes: Any) -> Charge:
    fields: dict[str, Any] = {
        "subject": "offer",
        "seller_id": "seller",
        "fee_ppm": 10_000,
        "item": "file",
        "first_unit": first_unit,
        "units": units,
        "price_msat": PRICE_MSAT,
    }
    return Charge(**{**fields, **changes})
