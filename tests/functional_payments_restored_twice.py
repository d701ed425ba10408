"""What a second restore, two spellings of one wallet, or a slip of the operator's must not break."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from payments import restores, tables, unassigned
from payments.address_search import NEW_WALLETS_PER_PASS
from payments.errors import AddressesInDoubt, StartIndexTooHigh
from payments.restores import INDEXES_SKIPPED_MAX
from payments.unassigned import INDEX_MARGIN
from regtest.world import RegtestWorld
from tests.functional_payments_restored import RestoredShop, open_restored
from tests.money_shop import PRICE_SAT


@pytest_asyncio.fixture
async def restored(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[RestoredShop]:
    async with open_restored(world, tmp_path) as restored:
        yield restored


async def test_what_was_found_after_one_restore_ends_no_search_after_the_next(restored: RestoredShop) -> None:
    descriptor = await restored.descriptor()
    await restored.put_back()
    await restored.pay(descriptor, 5)
    await restored.search()
    first = await restored.issue(descriptor)
    assert first == 6 + INDEX_MARGIN
    await restored.put_back()
    await restored.pay(descriptor, first + 40)
    await restored.shop.world.mine()
    await restored.search()
    assert (await restored.found()).keys() == {5, first + 40}
    assert await restored.issue(descriptor) == first + 41 + INDEX_MARGIN
    await restored.put_back()
    await restored.search()
    assert await restored.issue(descriptor) == first + 42 + 2 * INDEX_MARGIN, (
        "nobody knows what was given out"
    )


async def test_a_search_that_a_second_restore_met_goes_on_from_its_old_blocks(restored: RestoredShop) -> None:
    """The server that was restored first is backed up in the middle of its search, and lost too."""
    descriptor = await restored.descriptor()
    await restored.put_back()
    await restored.pay(descriptor, 1_500)
    await restored.shop.world.mine(2)
    await restored.pay(descriptor, 3_400)
    await restored.shop.world.mine()
    await restored.shop.watcher.poll_once()  # has scanned all blocks, for the first addresses only
    assert (await restored.found()).keys() == {1_500}
    await restored.put_back()
    await restored.search()
    assert (await restored.found()).keys() == {1_500, 3_400}
    assert await restored.issue(descriptor) == 3_401 + INDEX_MARGIN


async def test_a_wallet_of_the_server_that_was_lost_first_is_searched_in_its_blocks(
    restored: RestoredShop,
) -> None:
    descriptor = await restored.new_descriptor()
    await restored.put_back()
    await restored.pay(descriptor, 4)
    await restored.shop.world.mine()
    await restored.shop.watcher.poll_once()
    await restored.put_back()
    await restored.register(descriptor)
    await restored.search()
    assert await restored.issue(descriptor) == 5 + INDEX_MARGIN


async def test_a_wait_for_the_operator_outlasts_a_second_restore(restored: RestoredShop) -> None:
    descriptor = await restored.descriptor()
    await restored.put_back()
    blind = tables.address_searches.update().values(from_height=None)
    await restored.shop.database.write(lambda tx: tx.execute(blind))
    await restored.shop.watcher.poll_once()
    await restored.put_back()
    for _ in range(3):
        await restored.shop.watcher.poll_once()
    with pytest.raises(AddressesInDoubt):
        await restored.issue(descriptor)


async def test_a_wallet_that_was_set_while_the_backup_was_taken_was_in_use(restored: RestoredShop) -> None:
    """The time of a backup is that of its begin; its database may be hours younger."""
    descriptor = await restored.descriptor()
    taken_at = restored.shop.clock() - 3_600
    restored.shop.offset_s += 60
    note = partial(restores.note_restore, taken_at=taken_at, now=restored.shop.clock())
    await restored.shop.database.write(note)
    restored.restart()
    await restored.search()
    assert await restored.issue(descriptor) == INDEX_MARGIN, "addresses may have been given out and not paid"


async def test_two_spellings_of_one_wallet_end_their_searches(restored: RestoredShop) -> None:
    """The same addresses by two descriptors: one of the account's key, one of its receive branch's."""
    account, branch = await restored.spellings()
    for descriptor in (account, branch):
        await restored.register(descriptor)
    await restored.put_back()
    await restored.pay(account, 7)
    await restored.shop.world.mine()
    await restored.search()
    first, second = await restored.issue(account), await restored.issue(branch)
    assert min(first, second) >= 8 + INDEX_MARGIN


async def test_a_seller_who_sets_wallet_after_wallet_keeps_nobody_waiting(restored: RestoredShop) -> None:
    """Each is searched, since the lost server may have known it, but only a few while payments wait."""
    await restored.put_back()
    for _ in range(NEW_WALLETS_PER_PASS + 1):
        await restored.descriptor()
    counted = select(func.count(tables.unassigned_addresses.c.descriptor_id.distinct()))
    await restored.shop.watcher.poll_once()
    assert await restored.shop.database.read(lambda tx: tx.scalar(counted)) == NEW_WALLETS_PER_PASS
    await restored.search()
    assert await restored.shop.database.read(lambda tx: tx.scalar(counted)) == NEW_WALLETS_PER_PASS + 1


async def test_an_index_far_beyond_any_sale_is_a_slip(restored: RestoredShop) -> None:
    descriptor = await restored.descriptor(start_index=3)
    await restored.put_back()
    decide = partial(restores.decide, descriptor_ids=[descriptor.id])
    with pytest.raises(StartIndexTooHigh):
        await restored.shop.database.write(partial(decide, start_index=3 + INDEXES_SKIPPED_MAX + 1))
    assert await restored.shop.database.write(partial(decide, start_index=3 + INDEXES_SKIPPED_MAX)) == 1


async def test_money_without_an_invoice_is_booked_while_the_chain_has_it(restored: RestoredShop) -> None:
    """One transaction to an invoice and to a lost one; a reorg, a double spend; newly mined coins."""
    shop, world = restored.shop, restored.shop.world
    descriptor = await restored.descriptor()
    account = f"unassigned:{descriptor.id}"
    await restored.put_back()
    await restored.search()
    index = await shop.database.read(lambda tx: restored.store.next_index(tx, descriptor.id))
    await restored.book.ensure(descriptor, index)
    issued = await shop.database.write(lambda tx: restored.store.issue(tx, descriptor.id, restored.book))
    record = await shop.invoice(issued=issued)
    addresses = [one.address for one in await restored.book.derive(descriptor, start=3, count=3)]
    first = await restored.buyer.pay(
        [(issued.address, PRICE_SAT), (addresses[0], 7_000), (addresses[1], 600)]
    )
    await world.mempool_wait(first.txid)
    await shop.watcher.poll_once()
    assert await shop.balances() == {}, "a payment that is in no block is nobody's yet"
    await world.mine()
    await shop.until(record, lambda r: r.standing.status == "settled", "settled")
    booked = {"chain": -(PRICE_SAT + 7_600) * 1000, "direct:seller": PRICE_SAT * 1000, account: 7_600_000}
    assert await shop.balances() == booked

    # A reorg without it, and its coins go to a third skipped address instead.
    rival = await restored.buyer.pay(
        [(addresses[2], 9_000)], fee_sat=50_000, inputs=first.inputs, broadcast=False
    )
    await world.reorg(1, drop=[first.txid])
    await shop.watcher.poll_once()
    assert await shop.balances() == {}
    await restored.buyer.send(rival)
    await world.mempool_wait(rival.txid)
    await shop.watcher.poll_once()
    await world.mine()
    await shop.until(record, lambda r: r.standing.status != "settled", "not settled")
    assert await shop.balances() == {"chain": -9_000_000, account: 9_000_000}
    assert await shop.database.write(partial(unassigned.book, now=shop.clock())) is False

    # Newly mined coins are no money for 100 blocks.
    await world.mine(to=addresses[0])
    await shop.watcher.poll_once()
    assert (await shop.balances())[account] == 9_000_000
    await world.mine(99)
    await shop.watcher.poll_once()
    assert (await shop.balances())[account] > 9_000_000
    assert await restored.issue(descriptor) > 5 + INDEX_MARGIN
