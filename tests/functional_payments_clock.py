"""A server whose clock is set, forward and back, by two hours at a time: nobody loses money or a price by it.

The node's clock is right throughout. One story per test; the watcher is driven by hand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from bitcache.node_state import node_state
from payments import tables
from payments.chain_facts import OUTAGE_S_MIN
from payments.invoice import Flag, Outage, Status
from payments.ledger import chain, direct
from payments.records import InvoiceRecord
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.money_shop import PRICE_SAT, SELLER, Shop, open_shop

PRICE_MSAT = PRICE_SAT * 1000
JUMP_S = 7_200


@pytest.fixture
async def shop(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(world, tmp_path) as shop:
        yield shop


@pytest.fixture
async def buyer(shop: Shop) -> BitWallet:
    return await BitWallet.create(shop.world)


def address_of(record: InvoiceRecord) -> str:
    assert record.address is not None
    return record.address


async def outages(shop: Shop) -> list[Outage]:
    rows = await shop.database.read(
        lambda tx: tx.execute(select(tables.outages).order_by(tables.outages.c.started_at))
    )
    return [Outage(row.started_at, row.ended_at) for row in rows.all()]


async def test_money_for_an_invoice_from_the_future_counts(shop: Shop, buyer: BitWallet) -> None:
    shop.offset_s = JUMP_S
    record = await shop.invoice()
    await shop.look(record)
    # Set right, and then wrong again the other way.
    shop.offset_s = -JUMP_S
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    assert (await shop.look(record)).standing.status is Status.SEEN
    await shop.world.mine()
    assert (await shop.look(record)).standing.status is Status.SETTLED
    assert await shop.balances() == {chain(): -PRICE_MSAT, direct(SELLER): PRICE_MSAT}


async def test_a_price_made_in_the_past_is_held_when_the_clock_is_set_right(
    shop: Shop, buyer: BitWallet
) -> None:
    record = await shop.invoice()
    await shop.look(record)
    shop.offset_s = -JUMP_S
    record = await shop.invoice()
    await shop.look(record)
    shop.offset_s = 0
    assert (await shop.look(record)).standing.status is Status.OPEN
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    record = await shop.look(record)
    assert record.standing.status is Status.SEEN
    assert Flag.LATE not in record.standing.flags


async def test_what_expired_in_the_future_is_open_again(shop: Shop) -> None:
    """The status that is kept for lists follows the clock back; what `doctor` would find is nothing."""
    shop.hold_s = OUTAGE_S_MIN // 2
    record = await shop.invoice()
    await shop.look(record)
    shop.offset_s = JUMP_S
    await shop.watcher.poll_once()  # two hours of which nobody saw anything: an outage
    shop.offset_s += OUTAGE_S_MIN - 1
    assert (await shop.look(record)).standing.status is Status.EXPIRED
    shop.offset_s = 0
    assert (await shop.look(record)).standing.status is Status.OPEN
    ids = [record.invoice.id]
    assert await shop.database.write(lambda tx: shop.registry.refresh(tx, ids, now=shop.clock())) == 0


async def test_two_outages_may_begin_at_one_time(shop: Shop) -> None:
    """A clock that is set back lives the same second twice."""
    now = shop.clock()
    shop.clock = lambda: now + shop.offset_s  # type: ignore[method-assign]
    shop.restart()
    await shop.watcher.poll_once()
    before = await outages(shop)
    for away_s in (JUMP_S, 2 * JUMP_S, OUTAGE_S_MIN + 1):
        shop.offset_s = away_s
        await shop.watcher.poll_once()
        shop.offset_s = 0
        await shop.watcher.poll_once()
    assert await outages(shop) == [*before, Outage(now, now + 2 * JUMP_S)]


async def test_a_sign_of_life_from_the_future_is_none(shop: Shop) -> None:
    shop.offset_s = JUMP_S
    await shop.watcher.poll_once()
    assert (await shop.database.read(lambda tx: node_state(tx, shop.clock()))).online
    shop.offset_s = 0
    assert not (await shop.database.read(lambda tx: node_state(tx, shop.clock()))).online
    await shop.watcher.poll_once()
    assert (await shop.database.read(lambda tx: node_state(tx, shop.clock()))).online
