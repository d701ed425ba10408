"""A server whose clock is set, forward and back, by two hours at a time: nobody loses money or a price by it.

The node's clock is right throughout. One story per test; the watcher is driven by hand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bitcache.node_state import node_state
from payments.chain_facts import OUTAGE_S_MIN
from payments.invoice import Flag, Status
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


async def test_money_after_the_clock_was_set_right_counts(shop: Shop, buyer: BitWallet) -> None:
    """The price ends with the past it was made in; money that comes has today's, and is in time for it."""
    await shop.look(await shop.invoice())
    shop.offset_s = -JUMP_S
    record = await shop.invoice()
    await shop.look(record)
    shop.offset_s = 0
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    assert (await shop.look(record)).standing.status is Status.SEEN
    await shop.world.mine()
    assert (await shop.look(record)).standing.status is Status.SETTLED


async def test_what_was_late_stays_late(own_world: RegtestWorld, tmp_path: Path) -> None:
    """No outage is noted between a clock that was behind and the right time: it would reach into the past."""
    async with open_shop(own_world, tmp_path) as shop:
        buyer = await BitWallet.create(own_world)
        shop.hold_s = OUTAGE_S_MIN // 2
        record = await shop.invoice()
        await shop.look(record)
        await shop.pass_time(OUTAGE_S_MIN - 1)
        payment = await buyer.pay([(address_of(record), PRICE_SAT)])
        await shop.world.mempool_wait(payment.txid)
        before = (await shop.look(record)).standing
        assert Flag.LATE in before.flags
        for offset_s in (-JUMP_S, OUTAGE_S_MIN - 1):
            shop.offset_s = offset_s
            await shop.watcher.poll_once()
        ids = [record.invoice.id]
        assert await shop.database.write(lambda tx: shop.registry.refresh(tx, ids, now=shop.clock())) == 0
        assert (await shop.load(record)).standing == before


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


async def test_a_sign_of_life_from_the_future_is_none(shop: Shop) -> None:
    shop.offset_s = JUMP_S
    await shop.watcher.poll_once()
    assert (await shop.database.read(lambda tx: node_state(tx, shop.clock()))).online
    shop.offset_s = 0
    assert not (await shop.database.read(lambda tx: node_state(tx, shop.clock()))).online
    await shop.watcher.poll_once()
    assert (await shop.database.read(lambda tx: node_state(tx, shop.clock()))).online
