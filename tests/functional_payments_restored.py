"""A database that forgot its newest addresses finds those in use, on a real node, before it gives more."""

from __future__ import annotations

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from bitcoin.base58 import CBase58Data
from coincurve import PrivateKey

from payments import restores, tables, unassigned
from payments.address_search import AddressSearch
from payments.addresses import AddressBook, PayoutDescriptor, normalise_descriptor
from payments.chain_facts import PaidOutput
from payments.descriptors import DescriptorStore
from payments.errors import AddressesInDoubt, StartIndexUsed
from payments.unassigned import INDEX_MARGIN
from payments.watcher import Watcher
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.money_shop import PRICE_SAT, Shop, open_shop

POLLS_MAX = 20


@dataclass
class RestoredShop:
    """A shop whose database gave out `known` addresses before the backup, and is put back now."""

    shop: Shop
    store: DescriptorStore
    book: AddressBook
    buyer: BitWallet

    def restart(self) -> None:
        """A new watcher, which knows what is in the database."""
        shop = self.shop
        search = AddressSearch(
            shop.node,
            shop.database,
            shop.registry,
            descriptors=self.store,
            addresses=self.book,
            clock=shop.clock,
        )
        shop.watcher = Watcher(
            shop.node, shop.database, shop.registry, network="regtest", clock=shop.clock, search=search
        )

    async def new_descriptor(self) -> PayoutDescriptor:
        """Of a fresh key, whose wallet is nobody's business here."""
        public_key = PrivateKey().public_key.format()
        key = bytes.fromhex("043587cf03") + bytes(8) + os.urandom(32) + public_key
        tpub = str(CBase58Data.from_bytes(key[1:], key[0]))
        return await normalise_descriptor(self.shop.node, tpub, "regtest")

    async def spellings(self) -> tuple[PayoutDescriptor, PayoutDescriptor]:
        """One wallet, by the key of its account and by that of its receive branch (BIP32, public)."""
        chain_code, public_key = os.urandom(32), PrivateKey().public_key
        mac = hmac.digest(chain_code, public_key.format() + bytes(4), "sha512")
        child = public_key.add(mac[:32]).format()
        account = _tpub(bytes(9) + chain_code + public_key.format())
        branch = _tpub(bytes(9) + mac[32:] + child)
        normalise = partial(normalise_descriptor, self.shop.node, network="regtest")
        return await normalise(f"wpkh({account}/0/*)"), await normalise(f"wpkh({branch}/*)")

    async def descriptor(self, *, start_index: int = 0) -> PayoutDescriptor:
        """As `new_descriptor`, registered with the shop."""
        found = await self.new_descriptor()
        await self.register(found, start_index=start_index)
        return found

    async def register(self, descriptor: PayoutDescriptor, *, start_index: int = 0) -> None:
        now = self.shop.clock()
        await self.shop.database.write(
            lambda tx: self.store.register(tx, descriptor, start_index=start_index, now=now)
        )

    async def put_back(self) -> None:
        """What the database holds now is a backup that was restored a minute from now."""
        taken_at = self.shop.clock()
        self.shop.offset_s += 60
        now = self.shop.clock()
        await self.shop.database.write(partial(restores.note_restore, taken_at=taken_at, now=now))
        self.restart()

    async def pay(self, descriptor: PayoutDescriptor, *indexes: int) -> None:
        """Pay what the lost server gave out: 1,000 sat and the index to each."""
        addresses = [
            (await self.book.derive(descriptor, start=index, count=1))[0].address for index in indexes
        ]
        payment = await self.buyer.pay(
            [(address, 1_000 + index) for address, index in zip(addresses, indexes, strict=True)],
            fee_sat=5_000,
        )
        await self.shop.world.mempool_wait(payment.txid)

    async def found(self) -> dict[int, int]:
        """Index -> sat of what is unassigned."""
        listed = await self.shop.database.read(unassigned.listed)
        return {one.address_index: one.output.amount_sat for one in listed}

    async def issue(self, descriptor: PayoutDescriptor) -> int:
        """The index of the next address for an invoice."""
        index = await self.shop.database.read(lambda tx: self.store.next_index(tx, descriptor.id))
        await self.book.ensure(descriptor, index)
        issued = await self.shop.database.write(lambda tx: self.store.issue(tx, descriptor.id, self.book))
        return issued.index

    async def search(self) -> None:
        """Poll until no search is left."""
        for _ in range(POLLS_MAX):
            await self.shop.watcher.poll_once()
            if not await self.shop.database.read(restores.searches):
                return
        raise AssertionError("the search has no end")


def _tpub(octets: bytes) -> str:
    key = bytes.fromhex("043587cf") + octets
    return str(CBase58Data.from_bytes(key[1:], key[0]))


@asynccontextmanager
async def open_restored(
    world: RegtestWorld, folder: Path, *, database_url: str | None = None
) -> AsyncIterator[RestoredShop]:
    async with open_shop(world, folder, database_url=database_url) as shop:
        store = DescriptorStore(seal=lambda text, _: text, unseal=lambda sealed, _: sealed)
        buyer = await BitWallet.create(world, coin_count=5)
        await shop.watcher.poll_once()
        yield RestoredShop(shop, store, AddressBook(shop.node), buyer)


@pytest_asyncio.fixture
async def restored(world: RegtestWorld, tmp_path: Path, each_database: str) -> AsyncIterator[RestoredShop]:
    async with open_restored(world, tmp_path, database_url=each_database) as restored:
        yield restored


async def test_used_addresses_are_found_and_never_given_again(restored: RestoredShop) -> None:
    descriptor = await restored.descriptor(start_index=7)
    await restored.put_back()
    await restored.pay(descriptor, 8, 20)
    await restored.shop.world.mine()
    await restored.pay(descriptor, 30)
    with pytest.raises(AddressesInDoubt):
        await restored.issue(descriptor)
    await restored.search()
    assert await restored.found() == {8: 1_008, 20: 1_020, 30: 1_030}
    assert (await restored.shop.balances())[f"unassigned:{descriptor.id}"] == 2_028_000
    # The seller's wallet must bridge what is skipped.
    usage = await restored.shop.database.read(lambda tx: restored.store.usage(tx, descriptor.id))
    assert usage.unused_streak == INDEX_MARGIN
    assert await restored.issue(descriptor) == 31 + INDEX_MARGIN

    # Later still: to a skipped address, and to one that lies before us.
    await restored.pay(descriptor, 29, 500)
    await restored.shop.world.mine()
    restored.restart()
    await restored.shop.watcher.poll_once()
    assert (await restored.found()).keys() == {8, 20, 29, 30, 500}
    # The payments of 1,030, 1,029 and 1,500 sat are mined too.
    assert (await restored.shop.balances())[f"unassigned:{descriptor.id}"] == 2_028_000 + 3_559_000
    assert await restored.issue(descriptor) == 501 + INDEX_MARGIN


async def test_old_blocks_are_read_again_for_addresses_far_ahead(restored: RestoredShop) -> None:
    """More was sold since the backup than is watched at first."""
    descriptor = await restored.descriptor()
    await restored.put_back()
    await restored.pay(descriptor, 3_000)
    await restored.shop.world.mine(2)
    await restored.pay(descriptor, 1_500, 2_400)
    await restored.shop.world.mine()
    await restored.search()
    assert (await restored.found()).keys() == {1_500, 2_400, 3_000}
    assert await restored.issue(descriptor) == 3_001 + INDEX_MARGIN
    balances = await restored.shop.balances()
    assert balances[f"unassigned:{descriptor.id}"] == (3_000 + 1_500 + 2_400 + 3_000) * 1_000


async def test_a_wallet_set_after_the_restore_may_not_be_new(restored: RestoredShop) -> None:
    descriptor = await restored.new_descriptor()
    await restored.put_back()
    await restored.pay(descriptor, 0, 4)
    await restored.shop.world.mine()
    await restored.pay(descriptor, 9)
    await restored.shop.watcher.poll_once()
    await restored.register(descriptor)
    with pytest.raises(AddressesInDoubt):
        await restored.issue(descriptor)
    new = await restored.descriptor(start_index=5)
    await restored.search()
    assert (await restored.found()).keys() == {0, 4, 9}, "9 was in the mempool, and no news"
    assert await restored.issue(descriptor) == 10 + INDEX_MARGIN
    assert await restored.issue(new) == 5, "nobody was ever paid there: a gap would be for nothing"


async def test_an_address_that_an_invoice_takes_later_pays_that_invoice(restored: RestoredShop) -> None:
    """It is watched already, as one that the lost server may have given out."""
    descriptor = await restored.descriptor()
    await restored.put_back()
    await restored.search()
    index = await restored.shop.database.read(lambda tx: restored.store.next_index(tx, descriptor.id))
    await restored.book.ensure(descriptor, index)
    shop = restored.shop
    issued = await shop.database.write(lambda tx: restored.store.issue(tx, descriptor.id, restored.book))
    record = await shop.invoice(issued=issued)
    # The watcher may look at a payment just before another process writes the invoice that it pays.
    seen_before = PaidOutput(0, PRICE_SAT, issued.script_pubkey, None)
    invoice_id = await shop.database.read(lambda tx: unassigned.invoice_of(tx, seen_before))
    assert invoice_id == record.invoice.id
    payment = await restored.buyer.pay([(issued.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    await shop.until(record, lambda r: r.standing.status == "seen", "seen")
    await shop.world.mine()
    settled = await shop.until(record, lambda r: r.standing.status == "settled", "settled")
    assert settled.standing.received_sat == PRICE_SAT
    assert await restored.found() == {}


async def test_without_blocks_the_operator_decides(restored: RestoredShop) -> None:
    """Here the backup knew no block; blocks that are pruned, and that no peer has, are alike."""
    descriptor = await restored.descriptor(start_index=3)
    await restored.put_back()
    blind = tables.address_searches.update().values(from_height=None)
    await restored.shop.database.write(lambda tx: tx.execute(blind))
    await restored.shop.watcher.poll_once()
    with pytest.raises(AddressesInDoubt):
        await restored.issue(descriptor)

    decide = partial(restores.decide, descriptor_ids=[descriptor.id])
    with pytest.raises(StartIndexUsed):
        await restored.shop.database.write(partial(decide, start_index=2))
    assert await restored.shop.database.write(partial(decide, start_index=40)) == 1
    await restored.search()
    assert await restored.issue(descriptor) == 40
    await restored.pay(descriptor, 39)
    await restored.shop.world.mine()
    await restored.shop.watcher.poll_once()
    assert (await restored.found()).keys() == {39}
