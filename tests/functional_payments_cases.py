"""Every way a payment can go, on a real node: what the chain did, and where invoice and books stand then.

One story per test. The watcher is driven by hand, so that each test knows what was looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from payments.invoice import Flag, Status
from payments.ledger import chain, direct, owed
from payments.money import Msat, Sat
from payments.outputs import Presence
from payments.records import InvoiceRecord
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.money_shop import PRICE_SAT, SELLER, Shop, open_shop

PRICE_MSAT = PRICE_SAT * 1000


ON_BOTH_DATABASES = pytest.mark.parametrize("shop", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def shop(world: RegtestWorld, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    on_postgres = getattr(request, "param", "sqlite") == "postgresql"
    database_url = request.getfixturevalue("postgres_database") if on_postgres else None
    async with open_shop(world, tmp_path, database_url=database_url) as shop:
        yield shop


@pytest.fixture
async def buyer(shop: Shop) -> BitWallet:
    return await BitWallet.create(shop.world, coin_count=3)


@pytest.fixture
async def own_shop(own_world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Shop]:
    """For stories in which nodes stop, forget, or have their clocks moved."""
    async with open_shop(own_world, tmp_path) as shop:
        yield shop


@pytest.fixture
async def own_buyer(own_shop: Shop) -> BitWallet:
    return await BitWallet.create(own_shop.world, coin_count=3)


def address_of(record: InvoiceRecord) -> str:
    assert record.address is not None
    return record.address


async def seen(shop: Shop, record: InvoiceRecord, txid: str) -> InvoiceRecord:
    """The invoice once the server's node has the payment in its mempool."""
    await shop.world.mempool_wait(txid)
    return await shop.look(record)


@ON_BOTH_DATABASES
async def test_paid_in_full(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice(key_at=2)
    assert (await shop.look(record)).standing.status is Status.OPEN

    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    record = await seen(shop, record, payment.txid)
    assert record.standing.status is Status.SEEN
    assert await shop.balances() == {}, "the mempool is never booked"

    await shop.world.mine()
    record = await shop.look(record)
    assert (record.standing.status, record.standing.depth) == (Status.CONFIRMING, 1)
    assert await shop.balances() == {chain(): -PRICE_MSAT, owed(record.invoice.id): PRICE_MSAT}

    await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert record.released_at is not None
    assert await shop.balances() == {chain(): -PRICE_MSAT, direct(SELLER): PRICE_MSAT}
    assert await shop.seller.received_sat(address_of(record)) == PRICE_SAT
    assert [after.standing.status for _, after in shop.changes] == [
        Status.SEEN,
        Status.CONFIRMING,
        Status.SETTLED,
    ]


async def test_underpaid_and_topped_up(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    part = await buyer.pay([(address_of(record), PRICE_SAT - 20_000)])
    record = await seen(shop, record, part.txid)
    assert Flag.PARTIAL in record.standing.flags
    assert record.standing.due_sat == 20_000

    rest = await buyer.pay([(address_of(record), 20_000)])
    record = await seen(shop, record, rest.txid)
    assert record.standing.status is Status.SEEN
    assert record.standing.due_sat == 0
    await shop.world.mine()
    assert (await shop.look(record)).standing.status is Status.SETTLED
    assert await shop.balances() == {chain(): -PRICE_MSAT, direct(SELLER): PRICE_MSAT}


@ON_BOTH_DATABASES
async def test_overpaid(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), PRICE_SAT + 7_000)])
    await seen(shop, record, payment.txid)
    await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert Flag.OVER in record.standing.flags
    assert record.standing.surplus_sat == 7_000
    assert await shop.balances() == {
        chain(): -(PRICE_MSAT + 7_000_000),
        direct(SELLER): PRICE_MSAT,
        owed(record.invoice.id): 7_000_000,
    }


async def test_a_small_surplus_is_a_tip(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    await buyer.pay([(address_of(record), PRICE_SAT + 999)])
    await shop.world.mine()
    record = await shop.look(record)
    assert Flag.OVER not in record.standing.flags
    assert await shop.balances() == {chain(): -(PRICE_MSAT + 999_000), direct(SELLER): PRICE_MSAT + 999_000}


async def test_two_outputs_of_one_transaction(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    await buyer.pay([(address_of(record), 30_000), (address_of(record), 20_000)])
    await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert len(record.outputs) == 2


async def test_two_invoices_paid_by_one_transaction(shop: Shop, buyer: BitWallet) -> None:
    first, second = await shop.invoice(), await shop.invoice()
    await buyer.pay([(address_of(first), PRICE_SAT), (address_of(second), PRICE_SAT)])
    await shop.world.mine()
    assert (await shop.look(first)).standing.status is Status.SETTLED
    assert (await shop.look(second)).standing.status is Status.SETTLED
    assert (await shop.balances())[direct(SELLER)] == 2 * PRICE_MSAT


async def test_late_and_still_for_sale_gets_todays_price(own_shop: Shop, own_buyer: BitWallet) -> None:
    record = await own_shop.invoice()
    await own_shop.pass_time(own_shop.hold_s + 60)
    assert (await own_shop.look(record)).standing.status is Status.EXPIRED
    own_shop.price_sat = Sat(PRICE_SAT + 5_000)

    payment = await own_buyer.pay([(address_of(record), PRICE_SAT)])
    record = await seen(own_shop, record, payment.txid)
    assert len(record.invoice.terms) == 2
    assert Flag.LATE in record.standing.flags
    assert record.standing.due_sat == 5_000
    rest = await own_buyer.pay([(address_of(record), 5_000)])
    await seen(own_shop, record, rest.txid)
    await own_shop.world.mine()
    record = await own_shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert len(record.invoice.terms) == 2, "looking again appends nothing"


async def test_late_and_no_longer_for_sale_is_owed(own_shop: Shop, own_buyer: BitWallet) -> None:
    record = await own_shop.invoice()
    await own_shop.pass_time(own_shop.hold_s + 60)
    await own_shop.look(record)
    own_shop.price_sat = None

    payment = await own_buyer.pay([(address_of(record), PRICE_SAT)])
    await seen(own_shop, record, payment.txid)
    await own_shop.world.mine()
    record = await own_shop.look(record)
    assert record.standing.status is Status.EXPIRED
    assert not record.standing.covered
    assert await own_shop.balances() == {chain(): -PRICE_MSAT, owed(record.invoice.id): PRICE_MSAT}


async def test_our_outage_moves_the_deadline(own_shop: Shop, own_buyer: BitWallet) -> None:
    record = await own_shop.invoice()
    # Nobody looked for longer than the price was held; the buyer paid in that time.
    await own_shop.pass_time(own_shop.hold_s + 60, watched=False)
    payment = await own_buyer.pay([(address_of(record), PRICE_SAT)])
    record = await seen(own_shop, record, payment.txid)
    assert record.standing.status is Status.SEEN
    assert Flag.LATE not in record.standing.flags
    assert len(record.invoice.terms) == 1


@ON_BOTH_DATABASES
async def test_fee_bump_that_still_pays(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), PRICE_SAT)], fee_sat=500)
    await seen(shop, record, payment.txid)
    bumped = await buyer.pay([(address_of(record), PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    record = await seen(shop, record, bumped.txid)
    assert record.standing.status is Status.SEEN
    assert record.standing.received_sat == PRICE_SAT, "never counted twice"
    assert Flag.REPLACED not in record.standing.flags
    first_seen = {output.first_seen_at for output in record.outputs}
    assert len(first_seen) == 1, "raising the fee never makes a payment late"
    await shop.world.mine()
    assert (await shop.look(record)).standing.status is Status.SETTLED
    assert (await shop.balances())[direct(SELLER)] == PRICE_MSAT


async def test_replacement_that_no_longer_pays(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), PRICE_SAT)], fee_sat=500)
    await seen(shop, record, payment.txid)
    stolen = await buyer.pay([(buyer.address, PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    record = await seen(shop, record, stolen.txid)
    assert record.standing.status is Status.OPEN
    assert Flag.REPLACED in record.standing.flags
    assert record.standing.received_sat == 0


async def test_double_spend_in_a_block(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    await seen(shop, record, payment.txid)
    rival = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=payment.inputs, broadcast=False)
    await shop.world.mine_exactly([rival.raw])
    record = await shop.look(record)
    assert record.standing.status is Status.OPEN
    assert Flag.CONFLICTED in record.standing.flags
    assert [output.presence for output in record.outputs] == [Presence.GONE]
    assert await shop.balances() == {}


async def test_double_spend_undone_by_a_reorg(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    await seen(shop, record, payment.txid)
    rival = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=payment.inputs, broadcast=False)
    await shop.world.mine_exactly([rival.raw])
    await shop.look(record)
    await shop.world.reorg(1, drop=[rival.txid])
    record = await shop.until(record, lambda r: Flag.CONFLICTED not in r.standing.flags, "the conflict to go")
    assert record.standing.status is not Status.SETTLED


async def test_evicted_and_resubmitted(own_shop: Shop, own_buyer: BitWallet) -> None:
    record = await own_shop.invoice()
    payment = await own_buyer.pay([(address_of(record), PRICE_SAT)])
    await seen(own_shop, record, payment.txid)
    await own_shop.world.evict(payment.txid, everywhere=True)
    assert payment.txid not in await own_shop.world.server.rpc("getrawmempool")
    record = await own_shop.look(record)
    assert record.standing.status is Status.SEEN
    assert payment.txid in await own_shop.world.server.rpc("getrawmempool"), (
        "its bytes were kept and sent again"
    )


@ON_BOTH_DATABASES
async def test_reorg_after_settling_and_back(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    await seen(shop, record, payment.txid)
    await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED

    await shop.world.reorg(1, drop=[payment.txid])
    record = await shop.look(record)
    assert record.standing.status is Status.SEEN
    assert Flag.REORGED in record.standing.flags
    assert await shop.balances() == {}

    await shop.world.mempool_wait(payment.txid, node=shop.world.outside)
    await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert record.standing.flags == frozenset()
    assert await shop.balances() == {chain(): Msat(-PRICE_MSAT), direct(SELLER): PRICE_MSAT}


async def test_reorg_that_keeps_the_payment_never_flickers(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    await shop.world.mine(3)  # the buyer's coins themselves are not undone
    await buyer.pay([(address_of(record), PRICE_SAT)])
    await shop.world.mine()
    record = await shop.look(record)
    before = len(shop.changes)
    await shop.world.reorg(3)
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert all(after.standing.status is Status.SETTLED for _, after in shop.changes[before:])


async def test_node_out_and_back(own_shop: Shop, own_buyer: BitWallet) -> None:
    record = await own_shop.invoice()
    await own_shop.world.server_out()
    await own_shop.watcher.poll_once()
    assert not own_shop.watcher.condition.online
    assert own_shop.watcher.condition.trouble is not None
    await own_buyer.pay([(address_of(record), PRICE_SAT)])
    await own_shop.world.mine(sync=False)
    await own_shop.world.server_in()
    record = await own_shop.look(record)
    assert own_shop.watcher.condition.online
    assert record.standing.status is Status.SETTLED


async def test_paid_while_we_were_down_and_50_blocks_later(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    await buyer.pay([(address_of(record), PRICE_SAT)])
    await shop.world.mine(50)
    shop.restart()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert record.standing.depth == 50


async def test_started_with_the_payment_in_a_full_mempool(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    shop.restart()
    for _ in range(20):
        await shop.world.faucet(await shop.world.new_miner_address(), 10_000, confirmations=0)
    payment = await buyer.pay([(address_of(record), PRICE_SAT)])
    record = await seen(shop, record, payment.txid)
    assert record.standing.status is Status.SEEN


async def test_dust_changes_no_status(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    payment = await buyer.pay([(address_of(record), 300)])
    record = await seen(shop, record, payment.txid)
    assert record.standing.status is Status.OPEN
    await shop.world.mine()
    await shop.look(record)
    assert (await shop.balances())[owed(record.invoice.id)] == 300_000, "but it is money"


async def test_coinbase_counts_at_100_confirmations(shop: Shop) -> None:
    record = await shop.invoice()
    await shop.world.mine(1, to=address_of(record))
    record = await shop.look(record)
    assert record.standing.status is Status.OPEN
    assert await shop.balances() == {}
    await shop.world.mine(99)
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED


async def test_the_status_kept_is_the_status_derived(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    await buyer.pay([(address_of(record), PRICE_SAT)])
    await shop.world.mine()
    await shop.look(record)
    changes = len(shop.changes)
    now = shop.clock()
    ids = await shop.database.read(shop.registry.all_ids)
    await shop.database.write(lambda tx: shop.registry.refresh(tx, ids, now=now))
    assert len(shop.changes) == changes
