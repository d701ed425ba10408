"""What a second restore, two spellings of one wallet, or a slip of the operator's must not break."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from payments import restores, tables
from payments.errors import AddressesInDoubt, StartIndexTooHigh
from payments.restores import INDEXES_SKIPPED_MAX
from payments.unassigned import INDEX_MARGIN
from regtest.world import RegtestWorld
from tests.functional_payments_restored import RestoredShop, open_restored


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


async def test_an_index_far_beyond_any_sale_is_a_slip(restored: RestoredShop) -> None:
    descriptor = await restored.descriptor(start_index=3)
    await restored.put_back()
    decide = partial(restores.decide, descriptor_ids=[descriptor.id])
    with pytest.raises(StartIndexTooHigh):
        await restored.shop.database.write(partial(decide, start_index=3 + INDEXES_SKIPPED_MAX + 1))
    assert await restored.shop.database.write(partial(decide, start_index=3 + INDEXES_SKIPPED_MAX)) == 1
