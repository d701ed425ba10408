"""The watcher's own promises: nothing depends on having heard an event, and an event is heard at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from payments import tables
from payments.invoice import Status
from payments.node_fitness import fitness
from payments.records import InvoiceRecord
from regtest.node import wait_until
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.money_shop import PRICE_SAT, Shop, open_shop

# Longer than any test may take: what happens within it was not found by polling.
NEVER_S = 600.0


@pytest.fixture
async def shop(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(world, tmp_path) as shop:
        yield shop


@pytest.fixture
async def buyer(shop: Shop) -> BitWallet:
    return await BitWallet.create(shop.world, coin_count=3)


async def has_status(shop: Shop, record: InvoiceRecord, status: Status) -> None:
    async def check() -> bool:
        return (await shop.load(record)).standing.status is status

    await wait_until(check, f"{record.invoice.id} to be {status}")


@pytest.fixture
async def running(shop: Shop) -> AsyncIterator[Shop]:
    """The watcher runs on events alone."""
    running = asyncio.create_task(
        shop.watcher.run(events_endpoint=shop.world.server.zmq_url, poll_interval_s=NEVER_S)
    )
    yield shop
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_events_alone_carry_a_payment(running: Shop, buyer: BitWallet) -> None:
    record = await running.invoice()
    assert record.address is not None
    payment = await buyer.pay([(record.address, PRICE_SAT)], fee_sat=500)
    await has_status(running, record, Status.SEEN)
    await buyer.pay([(buyer.address, PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    await has_status(running, record, Status.OPEN)
    await buyer.pay([(record.address, PRICE_SAT)])
    await has_status(running, record, Status.SEEN)
    await running.world.mine()
    await has_status(running, record, Status.SETTLED)


async def test_missed_events_are_made_up_by_a_poll(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    assert record.address is not None
    # Nobody listens: payment, replacement and block all go unheard.
    payment = await buyer.pay([(record.address, PRICE_SAT)], fee_sat=500)
    await buyer.pay([(record.address, PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    await shop.world.mine(2)
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert record.standing.received_sat == PRICE_SAT


async def test_every_block_hash_since_the_first_start_is_kept(shop: Shop) -> None:
    await shop.look(await shop.invoice())
    undone = await shop.world.mine(2)
    await shop.watcher.poll_once()
    await shop.world.reorg(2)
    await shop.watcher.poll_once()

    kept = select(tables.blocks.c.active).where(tables.blocks.c.hash.in_(undone))
    assert list((await shop.database.read(lambda tx: tx.scalars(kept))).all()) == [False, False]
    active_per_height = (
        select(func.count())
        .where(tables.blocks.c.active)
        .group_by(tables.blocks.c.height)
        .order_by(func.count().desc())
        .limit(1)
    )
    assert await shop.database.read(lambda tx: tx.scalar(active_per_height)) == 1


async def test_an_older_payment_to_the_same_address_never_counts(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    assert record.address is not None
    await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mine()
    created_later = shop.clock() + 3 * 3600
    await shop.database.write(
        lambda tx: tx.execute(tables.invoices.update().values(created_at=created_later))
    )
    record = await shop.look(record)
    assert len(record.outputs) == 1
    assert record.standing.received_sat == 0
    assert await shop.balances() == {}


async def test_the_node_of_another_network_is_refused(shop: Shop) -> None:
    info = await shop.node.node_info()
    verdict = fitness(info, shop.clock(), "signet")
    assert not verdict.usable
    assert "regtest" in verdict.words
