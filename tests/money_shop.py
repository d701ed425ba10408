"""The money side alone, on a real node: a registry and a watcher that sell a thing without any files."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from sqlalchemy import select

from bitcache.db.engine import Database
from payments import ledger, tables
from payments.bitcoind import Bitcoind
from payments.books import transfer_of
from payments.invoice import Invoice, Mode, Policy, Standing, Term
from payments.money import Msat, Sat
from payments.ports import Transaction
from payments.records import InvoiceRecord, IssuedAddress
from payments.registry import InvoiceRegistry
from payments.watcher import Watcher
from regtest.node import wait_until
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld

SELLER = "seller"
PRICE_SAT = Sat(50_000)

# Making a wallet takes the node most of a second, and a seller's addresses are fresh anyway.
_sellers: WeakKeyDictionary[RegtestWorld, OutsideWallet] = WeakKeyDictionary()


@dataclass
class Shop:
    """Sells one thing at PRICE_SAT. `offset_s` moves its clock; `price_sat` None takes it off the shelf."""

    world: RegtestWorld
    node: Bitcoind
    database: Database
    seller: OutsideWallet
    offset_s: int = 0
    price_sat: Sat | None = PRICE_SAT
    hold_s: int = 900
    changes: list[tuple[Standing, InvoiceRecord]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.registry = InvoiceRegistry(on_change=self._on_change, quote=self._quote)
        self.restart()

    def restart(self) -> None:
        """A new watcher that knows only what is in the database."""
        self.watcher = Watcher(self.node, self.database, self.registry, network="regtest", clock=self.clock)

    def clock(self) -> int:
        return int(time.time()) + self.offset_s

    async def pass_time(self, seconds: int, *, watched: bool = True) -> None:
        """Move our clock and our node's; unless `watched`, nobody looked at the chain meanwhile."""
        self.offset_s += seconds
        now = self.clock()
        await self.world.server.rpc("setmocktime", now)
        if watched:
            beat = tables.watcher_state.update().values(beat_at=now, online_at=now)
            await self.database.write(lambda tx: tx.execute(beat))

    async def invoice(
        self,
        *,
        key_at: int = 1,
        bytes_at: int = 1,
        price_sat: Sat = PRICE_SAT,
        issued: IssuedAddress | None = None,
    ) -> InvoiceRecord:
        """At an address of the seller's wallet, if none is given."""
        number = next(self._numbers)
        issued = issued or await self._issued(number)
        now = self.clock()
        invoice = Invoice(
            id=f"invoice-{number}",
            reference=f"BC-{number}",
            created_at=now,
            seller_id=SELLER,
            mode=Mode.DIRECT,
            policy=Policy(bytes_at=bytes_at, key_at=key_at),
            terms=(Term(price_sat, now + self.hold_s),),
        )

        async def create(tx: Transaction) -> InvoiceRecord:
            await _descriptor(tx)
            return await self.registry.create(
                tx,
                invoice,
                subject="thing",
                frozen="{}",
                claim_hash=number.to_bytes(32, "big"),
                issued=issued,
                now=now,
            )

        record = await self.database.write(create)
        self.watcher.watch(issued.script_pubkey, record.invoice.id)
        return record

    async def _issued(self, number: int) -> IssuedAddress:
        address = await self.seller.new_address()
        script_pubkey = await self.node.validate_address(address)
        assert script_pubkey is not None
        return IssuedAddress("wallet", number, address, script_pubkey)

    async def look(self, record: InvoiceRecord) -> InvoiceRecord:
        """Poll, then load. The status kept for lists must be what the facts say."""
        await self.watcher.poll_once()
        return await self.load(record)

    async def load(self, record: InvoiceRecord) -> InvoiceRecord:
        now = self.clock()
        return await self.database.read(lambda tx: self.registry.load(tx, record.invoice.id, now=now))

    async def until(
        self, record: InvoiceRecord, holds: Callable[[InvoiceRecord], bool], what: str
    ) -> InvoiceRecord:
        """Poll until it holds; fails after some seconds."""
        latest = record

        async def check() -> bool:
            nonlocal latest
            latest = await self.look(record)
            return holds(latest)

        await wait_until(check, what)
        return latest

    async def balances(self) -> dict[str, Msat]:
        """Account -> balance, without empty ones; they sum to zero."""
        rows = (await self.database.read(lambda tx: tx.execute(select(tables.transfers)))).all()
        totals = ledger.balances(transfer_of(row) for row in rows)
        assert sum(totals.values()) == 0
        return {account: amount for account, amount in totals.items() if amount}

    async def _on_change(self, tx: Transaction, before: Standing, after: InvoiceRecord) -> None:
        self.changes.append((before, replace(after)))

    async def _quote(self, tx: Transaction, subject: str, now: int) -> Term | None:
        return None if self.price_sat is None else Term(self.price_sat, now + self.hold_s)


async def _descriptor(tx: Transaction) -> None:
    if await tx.scalar(select(tables.descriptors.c.id)) is None:
        await tx.execute(
            tables.descriptors.insert().values(id="wallet", sealed_text=b"", next_index=0, created_at=0)
        )


@asynccontextmanager
async def open_shop(
    world: RegtestWorld, folder: Path, *, database_url: str | None = None
) -> AsyncIterator[Shop]:
    """`database_url` is that of an empty database; by default a new SQLite one in `folder`."""
    database = Database(database_url or f"sqlite+aiosqlite:///{folder / 'money.db'}")
    async with database.engine.begin() as connection:
        await connection.run_sync(tables.metadata.create_all)
    if world not in _sellers:
        _sellers[world] = await OutsideWallet.create(world, "money-shop-seller")
    async with Bitcoind(world.server.rpc_url, cookie_file=world.server.cookie_path) as node:
        shop = Shop(world=world, node=node, database=database, seller=_sellers[world])
        await shop.watcher.poll_once()
        yield shop
    await database.close()
