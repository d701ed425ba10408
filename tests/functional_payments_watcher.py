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
from payments.outputs import CLOCK_SKEW_S
from payments.records import InvoiceRecord
from regtest.node import wait_until
from regtest.processes import free_ports
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
    created_later = shop.clock() + CLOCK_SKEW_S + 3600
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


# --- many at once, and what events do not tell -------------------------------------------------------------


async def test_one_payment_is_found_in_a_burst_of_500_transactions(running: Shop, buyer: BitWallet) -> None:
    """As a busy network sends them: the payment is in the middle, and only events tell of it."""
    record = await running.invoice()
    assert record.address is not None
    crowd = await BitWallet.create(running.world, coin_sat=10_000, coin_count=500)
    burst = [
        await crowd.pay([(crowd.address, 9_000)], inputs=[coin], fee_sat=1_000, broadcast=False)
        for coin in crowd.coins
    ]
    ours = await buyer.pay([(record.address, PRICE_SAT)], broadcast=False)
    burst.insert(len(burst) // 2, ours)
    node = running.world.server
    for start in range(0, len(burst), 50):
        await asyncio.gather(*(node.rpc("sendrawtransaction", one.raw) for one in burst[start : start + 50]))
    await has_status(running, record, Status.SEEN)
    await running.world.mempool_wait(ours.txid, node=running.world.outside)
    await running.world.mine()
    await has_status(running, record, Status.SETTLED)


async def test_an_event_for_what_is_gone_by_then_costs_nothing(shop: Shop, buyer: BitWallet) -> None:
    """A transaction that was replaced, one that was mined and one that never was, before they are fetched."""
    replaced_for, mined_for = await shop.invoice(), await shop.invoice()
    assert replaced_for.address is not None
    assert mined_for.address is not None
    replaced = await buyer.pay([(replaced_for.address, PRICE_SAT)], fee_sat=500)
    replacing = await buyer.pay([(buyer.address, PRICE_SAT)], fee_sat=5_000, inputs=replaced.inputs)
    mined = await buyer.pay([(mined_for.address, PRICE_SAT)])
    await shop.world.mempool_wait(mined.txid)
    await shop.world.mine()
    await shop.watcher.look_at([replaced.txid, mined.txid, "00" * 32, replacing.txid])
    for record in (replaced_for, mined_for):
        assert (await shop.load(record)).standing.status is Status.OPEN
    assert (await shop.look(mined_for)).standing.status is Status.SETTLED
    assert (await shop.look(replaced_for)).standing.status is Status.OPEN


async def test_a_payment_that_comes_while_a_block_is_recorded_is_not_lost(
    running: Shop, buyer: BitWallet
) -> None:
    first, second = await running.invoice(), await running.invoice()
    assert first.address is not None
    assert second.address is not None
    early = await buyer.pay([(first.address, PRICE_SAT)])
    await has_status(running, first, Status.SEEN)
    late = await buyer.pay([(second.address, PRICE_SAT)], broadcast=False)
    # Neither waits for the other: the event of the payment comes before, while or after the block is read.
    await asyncio.gather(
        running.world.mine_exactly([early.txid], sync=False), buyer.send(late, node=running.world.server)
    )
    await has_status(running, first, Status.SETTLED)
    await has_status(running, second, Status.SEEN)


async def test_a_lost_event_of_a_payment_is_made_up_by_the_next_poll(shop: Shop, buyer: BitWallet) -> None:
    """The node's messages go nowhere, as on a line that is cut and not noticed; polls go on."""
    record = await shop.invoice()
    assert record.address is not None
    silent = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    running = asyncio.create_task(shop.watcher.run(events_endpoint=silent, poll_interval_s=0.2))
    try:
        await buyer.pay([(record.address, PRICE_SAT)])
        await has_status(shop, record, Status.SEEN)
        await shop.world.mine()
        await has_status(shop, record, Status.SETTLED)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
