"""Buyers who cheat, chains that turn, and a node that answers at the worst moment.

One attack per test, on a real node. Where timing matters, `MeddledNode` is the server's real node with
something put between its answers and us: an event that comes just then, a failure, an answer nobody can read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import delete

from payments import chain_facts, chain_store, tables
from payments.bitcoind import Bitcoind, MempoolEntry, MempoolSnapshot
from payments.errors import InvoiceNotRenewable, NodeRefused, NodeUnavailable
from payments.invoice import Flag, OutPoint, Status
from payments.ledger import chain, direct, owed
from payments.node_fitness import ChainInfo
from payments.outputs import MISSING_LAPSES_S, Presence
from payments.records import InvoiceRecord
from payments.watcher import Watcher
from regtest.wallet import BitWallet, Payment
from regtest.world import RegtestWorld
from tests.money_shop import PRICE_SAT, SELLER, Shop, open_shop

PRICE_MSAT = PRICE_SAT * 1000


class MeddledNode(Bitcoind):
    """`before` and `failing` are keyed by method; a hook runs once."""

    def __init__(self, world: RegtestWorld) -> None:
        super().__init__(world.server.rpc_url, cookie_file=world.server.cookie_path)
        self.before: dict[str, Callable[[], Awaitable[object]]] = {}
        self.failing: dict[str, Exception] = {}
        self.unreadable: set[str] = set()
        self.unfetchable: set[str] = set()
        self.entryless: set[str] = set()
        self.unlisted: set[str] = set()
        self.feerate_sat_kvb: int | None = None

    async def _meddle(self, method: str) -> None:
        if (hook := self.before.pop(method, None)) is not None:
            await hook()
        if (failure := self.failing.pop(method, None)) is not None:
            raise failure

    async def chain_info(self) -> ChainInfo:
        await self._meddle("chain_info")
        return await super().chain_info()

    async def block_hash(self, height: int) -> str | None:
        await self._meddle("block_hash")
        return await super().block_hash(height)

    async def raw_block(self, block_hash: str) -> bytes:
        await self._meddle("raw_block")
        return await super().raw_block(block_hash)

    async def raw_mempool(self) -> MempoolSnapshot:
        await self._meddle("raw_mempool")
        seen = await super().raw_mempool()
        return MempoolSnapshot(
            txids=[txid for txid in seen.txids if txid not in self.unlisted], sequence=seen.sequence
        )

    async def raw_transactions(self, txids: Sequence[str]) -> dict[str, bytes | None]:
        await self._meddle("raw_transactions")
        found = await super().raw_transactions(txids)
        changed: dict[str, bytes | None] = dict.fromkeys(self.unreadable, b"\x02\x00\x00\x00")
        changed |= dict.fromkeys(self.unfetchable)
        return found | {txid: raw for txid, raw in changed.items() if txid in found}

    async def mempool_entry(self, txid: str) -> MempoolEntry | None:
        await self._meddle("mempool_entry")
        return None if txid in self.entryless else await super().mempool_entry(txid)

    async def estimate_feerate(self, blocks: int) -> int | None:
        await self._meddle("estimate_feerate")
        return self.feerate_sat_kvb or await super().estimate_feerate(blocks)

    async def spending_transactions(self, outpoints: Sequence[OutPoint]) -> list[str]:
        await self._meddle("spending_transactions")
        return await super().spending_transactions(outpoints)


@pytest.fixture
async def shop(world: RegtestWorld, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    on_postgres = getattr(request, "param", "sqlite") == "postgresql"
    database_url = request.getfixturevalue("postgres_database") if on_postgres else None
    async with open_shop(world, tmp_path, database_url=database_url) as shop:
        yield shop


@pytest.fixture
async def buyer(shop: Shop) -> BitWallet:
    return await BitWallet.create(shop.world, coin_count=4)


@pytest.fixture
async def node(shop: Shop) -> AsyncIterator[MeddledNode]:
    """Between the shop and its node from now on."""
    async with MeddledNode(shop.world) as node:
        shop.node = node
        shop.restart()
        await shop.watcher.poll_once()
        yield node


async def paid(shop: Shop, buyer: BitWallet, amount_sat: int = PRICE_SAT) -> tuple[InvoiceRecord, Payment]:
    """An invoice and a payment to it, seen in the mempool."""
    record = await shop.invoice()
    assert record.address is not None
    payment = await buyer.pay([(record.address, amount_sat)], fee_sat=500)
    await shop.world.mempool_wait(payment.txid)
    return await shop.look(record), payment


async def presences(shop: Shop, record: InvoiceRecord) -> dict[str, Presence]:
    return {output.outpoint.txid: output.presence for output in (await shop.load(record)).outputs}


# --- the buyer who replaces --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_sat", "then_sat", "inherits"),
    [
        (330, PRICE_SAT, False),
        (PRICE_SAT - 1, PRICE_SAT, False),
        (PRICE_SAT, PRICE_SAT, True),
        (PRICE_SAT + 1, PRICE_SAT, True),
    ],
)
async def test_little_money_in_time_buys_no_option_on_the_price(
    shop: Shop, buyer: BitWallet, first_sat: int, then_sat: int, inherits: bool
) -> None:
    shop.offset_s = -60
    record, payment = await paid(shop, buyer, first_sat)
    first_seen_at = record.outputs[0].first_seen_at
    shop.offset_s = 0
    assert record.address is not None
    bumped = await buyer.pay([(record.address, then_sat)], fee_sat=5_000, inputs=payment.inputs)
    await shop.world.mempool_wait(bumped.txid)
    record = await shop.look(record)
    then = next(output for output in record.outputs if output.outpoint.txid == bumped.txid)
    assert (then.first_seen_at == first_seen_at) is inherits


async def test_a_payment_to_another_invoice_lends_no_time(shop: Shop, buyer: BitWallet) -> None:
    shop.offset_s = -60
    first, payment = await paid(shop, buyer, PRICE_SAT * 2)
    second = await shop.invoice()
    shop.offset_s = 0
    assert second.address is not None
    moved = await buyer.pay([(second.address, PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    await shop.world.mempool_wait(moved.txid)
    second = await shop.look(second)
    assert second.outputs[0].first_seen_at > first.outputs[0].first_seen_at


async def test_a_double_spent_payment_takes_no_last_copy(shop: Shop, buyer: BitWallet) -> None:
    record, payment = await paid(shop, buyer)
    assert await sold(shop) == 1
    stolen = await buyer.pay([(buyer.address, PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    await shop.world.mempool_wait(stolen.txid)
    await shop.look(record)
    assert await sold(shop) == 0


async def test_the_first_of_three_rivals_is_mined_after_all(shop: Shop, buyer: BitWallet) -> None:
    record, first = await paid(shop, buyer)
    assert record.address is not None
    for fee_sat in (5_000, 15_000):
        rival = await buyer.pay([(record.address, PRICE_SAT)], fee_sat=fee_sat, inputs=first.inputs)
        await shop.world.mempool_wait(rival.txid)
        record = await shop.look(record)
        assert record.standing.received_sat == PRICE_SAT
    await shop.world.mine_exactly([first.raw])
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert record.standing.flags == frozenset()
    placed = await presences(shop, record)
    assert placed.pop(first.txid) is Presence.BLOCK
    assert list(placed.values()) == [Presence.GONE, Presence.GONE]
    assert await shop.balances() == {chain(): -PRICE_MSAT, direct(SELLER): PRICE_MSAT}


async def test_a_double_spend_mined_while_we_were_down(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    assert record.address is not None
    payment = await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    await shop.watcher.look_at([payment.txid])
    assert (await shop.load(record)).standing.status is Status.SEEN

    shop.restart()
    rival = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=payment.inputs, broadcast=False)
    await shop.world.mine_exactly([rival.raw])
    record = await shop.look(record)
    assert record.standing.status is Status.OPEN
    assert await presences(shop, record) == {payment.txid: Presence.GONE}


async def test_events_tell_of_a_replacement_that_pays_another_invoice(shop: Shop, buyer: BitWallet) -> None:
    first, payment = await paid(shop, buyer)
    second = await shop.invoice()
    assert second.address is not None
    moved = await buyer.pay([(second.address, PRICE_SAT)], fee_sat=5_000, inputs=payment.inputs)
    await shop.world.mempool_wait(moved.txid)
    await shop.watcher.look_at([moved.txid])
    assert (await shop.load(first)).standing.status is Status.OPEN
    assert (await shop.load(second)).standing.status is Status.SEEN


async def test_unconfirmed_parents_make_a_payment_unfit_for_prefetch(
    shop: Shop, buyer: BitWallet, node: MeddledNode
) -> None:
    node.feerate_sat_kvb = 1_000
    record, payment = await paid(shop, buyer)
    assert record.prefetch_fit
    child_of_payment = await shop.invoice()
    assert child_of_payment.address is not None
    assert payment.change is not None
    child = await buyer.pay([(child_of_payment.address, PRICE_SAT)], inputs=[payment.change])
    await shop.world.mempool_wait(child.txid)
    record = await shop.look(child_of_payment)
    assert record.standing.status is Status.SEEN
    assert not record.prefetch_fit

    # The parent is replaced: our node sees the child go, and no more.
    stolen = await buyer.pay([(buyer.address, PRICE_SAT)], fee_sat=15_000, inputs=payment.inputs)
    await shop.world.mempool_wait(stolen.txid)
    record = await shop.look(record)
    assert Flag.MISSING in record.standing.flags
    assert not record.standing.covered_now, "nothing new is given for it"
    await shop.world.mine()
    assert Presence.MISSING in (await presences(shop, record)).values()
    assert await shop.balances() == {}

    # It cannot come back, which nobody can know; but it does not hold the last copy for ever.
    assert await sold(shop) == 1
    await let_the_price_run_out(shop)
    assert (await shop.look(record)).standing.status is Status.SEEN
    await let_the_price_run_out(shop, seconds=MISSING_LAPSES_S)
    assert (await shop.look(record)).standing.status is Status.EXPIRED
    assert await sold(shop) == 0


@pytest.mark.parametrize("fair", [True, False])
async def test_a_low_feerate_makes_a_payment_unfit_for_prefetch(
    shop: Shop, buyer: BitWallet, node: MeddledNode, fair: bool
) -> None:
    node.feerate_sat_kvb = 1_500 if fair else 15_000  # a payment of 500 sat for some 220 vbytes has 2,200
    record, _ = await paid(shop, buyer)
    assert record.prefetch_fit is fair


# --- the buyer and the clock -------------------------------------------------------------------------------


async def sold(shop: Shop) -> int:
    """Copies that count against an offer's limit."""
    return await shop.database.read(lambda tx: shop.registry.sold(tx, "thing"))


async def let_the_price_run_out(shop: Shop, *, seconds: int = 0) -> None:
    """Our clock goes on, the node's does not; nobody was looking away."""
    shop.offset_s += seconds or shop.hold_s + 60
    now = shop.clock()
    beat = tables.watcher_state.update().values(beat_at=now, online_at=now)
    await shop.database.write(lambda tx: tx.execute(beat))


@pytest.mark.parametrize("mined", [False, True], ids=["in the mempool", "in a block"])
async def test_in_time_by_the_node_though_we_look_late(shop: Shop, buyer: BitWallet, mined: bool) -> None:
    record = await shop.invoice()
    assert record.address is not None
    payment = await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    if mined:
        await shop.world.mine()
    await let_the_price_run_out(shop)
    record = await shop.look(record)
    assert record.standing.covered
    assert Flag.LATE not in record.standing.flags
    assert len(record.invoice.terms) == 1


async def test_while_nobody_looks_no_price_runs_out(shop: Shop) -> None:
    record = await shop.invoice()
    shop.offset_s += shop.hold_s + 60
    assert (await shop.load(record)).standing.status is Status.OPEN


async def test_time_alone_ends_an_invoice_and_the_buyer_may_renew_it(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()

    async def renewed() -> InvoiceRecord:
        now = shop.clock()
        return await shop.database.write(lambda tx: shop.registry.renew(tx, record.invoice.id, now=now))

    async def open_unpaid() -> int:
        return await shop.database.read(lambda tx: shop.registry.open_unpaid(tx, SELLER))

    with pytest.raises(InvoiceNotRenewable, match="still holds its price"):
        await renewed()
    assert await open_unpaid() == 1
    await let_the_price_run_out(shop)
    before = len(shop.changes)
    await shop.watcher.poll_once()
    assert [after.standing.status for _, after in shop.changes[before:]] == [Status.EXPIRED]
    assert await open_unpaid() == 0

    record = await renewed()
    assert (record.standing.status, len(record.invoice.terms)) == (Status.OPEN, 2)
    assert record.address is not None
    payment = await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    await shop.look(record)
    with pytest.raises(InvoiceNotRenewable, match="is paid"):
        await renewed()


async def test_a_cancelled_invoice_is_watched_all_the_same(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice()
    now = shop.clock()
    record = await shop.database.write(lambda tx: shop.registry.cancel(tx, record.invoice.id, now=now))
    assert record.standing.status is Status.CANCELLED
    with pytest.raises(InvoiceNotRenewable, match="cancelled"):
        await shop.database.write(lambda tx: shop.registry.renew(tx, record.invoice.id, now=now))
    shop.restart()
    assert record.address is not None
    payment = await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    assert (await shop.look(record)).standing.status is Status.SEEN


# --- the chain that turns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shop", ["sqlite", "postgresql"], indirect=True)
async def test_a_reorg_onto_a_double_spend(shop: Shop, buyer: BitWallet) -> None:
    record, payment = await paid(shop, buyer)
    rival = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=payment.inputs, broadcast=False)
    [block] = await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED

    await shop.world.outside.rpc("invalidateblock", block)
    await shop.world.mine_exactly([rival.raw], sync=False)
    await shop.world.mine()
    record = await shop.look(record)
    assert record.standing.status is Status.OPEN
    assert record.standing.flags == {Flag.CONFLICTED}
    assert record.released_at is not None, "what was given out is not forgotten"
    assert await shop.balances() == {}


async def test_the_first_of_two_branches_wins_after_all(shop: Shop, buyer: BitWallet) -> None:
    record, _ = await paid(shop, buyer)
    [first] = await shop.world.mine()
    await shop.look(record)
    outside = shop.world.outside
    await outside.rpc("invalidateblock", first)
    second = await shop.world.mine_exactly([], sync=False)
    await shop.world.mine_exactly([])
    assert (await shop.look(record)).standing.status is Status.SEEN

    await outside.rpc("invalidateblock", second)
    await outside.rpc("reconsiderblock", first)
    await shop.world.mine(3)
    record = await shop.look(record)
    assert (record.standing.status, record.standing.depth) == (Status.SETTLED, 4)
    assert await shop.balances() == {chain(): -PRICE_MSAT, direct(SELLER): PRICE_MSAT}


async def test_a_payment_robbed_twice_stays_robbed_when_one_thief_is_undone(
    shop: Shop, buyer: BitWallet
) -> None:
    record = await shop.invoice()
    assert record.address is not None
    coins = buyer.coins[:2]
    payment = await buyer.pay([(record.address, PRICE_SAT)], inputs=coins)
    await shop.world.mempool_wait(payment.txid)
    await shop.look(record)
    thieves = [
        await buyer.pay([(buyer.address, PRICE_SAT)], inputs=[coin], broadcast=False) for coin in coins
    ]
    for thief in thieves:
        await shop.world.mine_exactly([thief.raw])
    await shop.look(record)
    await shop.world.reorg(1, drop=[thieves[1].txid])
    await shop.look(record)
    assert await presences(shop, record) == {payment.txid: Presence.GONE}
    # Without either thief it concerns its invoice again, wherever it is found.
    assert await shop.database.write(lambda tx: chain_store.disconnect_above(tx, 0)) == {record.invoice.id}
    assert await presences(shop, record) == {payment.txid: Presence.MISSING}


async def test_an_event_overtakes_the_poll_that_records_a_reorg(shop: Shop, buyer: BitWallet) -> None:
    record, payment = await paid(shop, buyer)
    await shop.world.mine()
    await shop.look(record)
    await shop.world.reorg(1, drop=[payment.txid])
    await shop.world.mempool_wait(payment.txid)
    await shop.watcher.look_at([payment.txid])
    record = await shop.look(record)
    assert record.standing.status is Status.SEEN
    assert Flag.REORGED in record.standing.flags


async def test_a_reorg_during_a_look_is_told_once(shop: Shop, buyer: BitWallet, node: MeddledNode) -> None:
    record, payment = await paid(shop, buyer)
    await shop.world.mine()
    await shop.look(record)
    before = len(shop.changes)
    await shop.world.reorg(1, drop=[payment.txid])
    await shop.world.mempool_wait(payment.txid, node=shop.world.outside)
    node.before["raw_mempool"] = shop.world.mine
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert {after.standing.status for _, after in shop.changes[before:]} <= {Status.SETTLED}


async def test_a_block_during_a_look_makes_nothing_missing(
    shop: Shop, buyer: BitWallet, node: MeddledNode
) -> None:
    record, _ = await paid(shop, buyer)
    node.before["raw_mempool"] = shop.world.mine
    record = await shop.look(record)
    assert record.standing.status is Status.SETTLED
    assert all(Flag.MISSING not in after.standing.flags for _, after in shop.changes)


async def test_a_reorg_below_all_that_we_know_is_loud(shop: Shop) -> None:
    await shop.world.mine(2)
    await shop.watcher.poll_once()
    known = await shop.database.read(chain_facts.tip)
    assert known is not None
    below = delete(tables.blocks).where(tables.blocks.c.height < known.height)
    await shop.database.write(lambda tx: tx.execute(below))
    await shop.world.reorg(1)
    await shop.watcher.poll_once()
    assert not shop.watcher.condition.online
    assert "not the node used before" in str(shop.watcher.condition.trouble)


async def test_paid_160_blocks_ago(shop: Shop, buyer: BitWallet, node: MeddledNode) -> None:
    record = await shop.invoice()
    assert record.address is not None
    await shop.world.mine(10)
    await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mine(150)
    troubles: list[str | None] = []

    async def note_trouble() -> None:
        state = await shop.database.read(chain_facts.watcher_state_of)
        assert state is not None
        troubles.append(state.trouble)

    node.before["raw_mempool"] = note_trouble
    record = await shop.look(record)
    assert (record.standing.status, record.standing.depth) == (Status.SETTLED, 150)
    assert troubles == ["catching up with the chain: wait"]
    await note_trouble()
    assert troubles[-1] is None


async def test_each_of_six_confirmations_is_told_and_none_after(shop: Shop, buyer: BitWallet) -> None:
    record, _ = await paid(shop, buyer)
    released_at = set()
    for _ in range(8):
        await shop.world.mine()
        shop.offset_s += 10
        released_at.add((await shop.look(record)).released_at)
    assert len(released_at) == 1, "when the key was first allowed is never moved"
    assert [after.standing.depth for _, after in shop.changes] == [0, 1, 2, 3, 4, 5, 6]
    tip = await shop.database.read(chain_facts.tip)
    assert tip is not None
    moving = await shop.database.read(
        lambda tx: chain_facts.moving(tx, from_height=tip.height - 144, told_from_height=tip.height - 6)
    )
    assert moving == set(), "a block costs nothing for what is settled"


async def test_a_policy_deeper_than_six_is_followed(shop: Shop, buyer: BitWallet) -> None:
    record = await shop.invoice(key_at=9)
    assert record.address is not None
    await buyer.pay([(record.address, PRICE_SAT)])
    for _ in range(9):
        await shop.world.mine()
        record = await shop.look(record)
    assert [after.standing.depth for _, after in shop.changes] == list(range(1, 10))
    assert record.standing.status is Status.SETTLED
    assert record.released_at is not None


async def test_an_operator_who_shortens_the_chain_lowers_every_depth(shop: Shop, buyer: BitWallet) -> None:
    record, _ = await paid(shop, buyer)
    blocks = await shop.world.mine(8)
    await shop.look(record)
    for node in (shop.world.outside, shop.world.server):
        await node.rpc("invalidateblock", blocks[4])
    await shop.look(record)
    assert shop.changes[-1][1].standing.depth == 4
    await shop.world.mine(5)
    assert (await shop.look(record)).standing.depth == 9


async def test_new_coins_to_a_settled_invoice_ripen(shop: Shop, buyer: BitWallet) -> None:
    record, _ = await paid(shop, buyer)
    await shop.world.mine(1, to=record.address)
    assert (await shop.look(record)).standing.status is Status.SETTLED
    await shop.world.mine(10)
    await shop.look(record)
    assert owed(record.invoice.id) not in await shop.balances()
    await shop.world.mine(89)
    await shop.look(record)
    assert (await shop.balances())[owed(record.invoice.id)] > 0


# --- the node at the worst moment --------------------------------------------------------------------------


async def test_an_unreadable_transaction_stops_no_other(
    shop: Shop, buyer: BitWallet, node: MeddledNode
) -> None:
    record = await shop.invoice()
    assert record.address is not None
    unreadable = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=buyer.coins[:1])
    node.unreadable.add(unreadable.txid)
    payment = await buyer.pay([(record.address, PRICE_SAT)], inputs=buyer.coins[:1])
    await shop.world.mempool_wait(payment.txid)
    await shop.watcher.look_at([unreadable.txid])
    record = await shop.look(record)
    assert record.standing.status is Status.SEEN
    assert shop.watcher.condition.online


@pytest.mark.parametrize("gone_from", ["unfetchable", "entryless"])
async def test_a_payment_that_left_for_a_moment_is_looked_at_again(
    shop: Shop, buyer: BitWallet, node: MeddledNode, gone_from: str
) -> None:
    record = await shop.invoice()
    assert record.address is not None
    payment = await buyer.pay([(record.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    gone: set[str] = getattr(node, gone_from)
    gone.add(payment.txid)
    await shop.watcher.look_at([payment.txid])
    assert (await shop.look(record)).standing.status is Status.OPEN
    gone.clear()
    assert (await shop.look(record)).standing.status is Status.SEEN


async def test_a_transaction_once_looked_at_is_not_fetched_again(
    shop: Shop, buyer: BitWallet, node: MeddledNode
) -> None:
    polled = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=buyer.coins[:1])
    await shop.world.mempool_wait(polled.txid)
    await shop.watcher.poll_once()
    heard = await buyer.pay([(buyer.address, PRICE_SAT)], inputs=buyer.coins[:1])
    await shop.world.mempool_wait(heard.txid)
    await shop.watcher.look_at([heard.txid])
    node.failing["raw_transactions"] = AssertionError("a full mempool would be fetched with every poll")
    await shop.watcher.look_at([polled.txid, heard.txid])
    await shop.watcher.poll_once()


async def test_a_node_out_for_longer_than_the_price_is_held(shop: Shop, node: MeddledNode) -> None:
    record = await shop.invoice()
    for _ in range(3):
        shop.offset_s += shop.hold_s // 2
        node.failing["chain_info"] = NodeUnavailable("no answer")
        await shop.watcher.poll_once()
    record = await shop.look(record)
    assert shop.watcher.condition.online
    assert record.standing.status is Status.OPEN
    assert record.standing.valid_until >= shop.clock()


async def test_a_payment_that_comes_back_during_a_look_is_no_rival_of_itself(
    shop: Shop, buyer: BitWallet, node: MeddledNode
) -> None:
    record, payment = await paid(shop, buyer)
    node.unlisted.add(payment.txid)
    record = await shop.look(record)
    assert record.standing.status is Status.SEEN
    assert record.standing.flags == frozenset()
    assert await presences(shop, record) == {payment.txid: Presence.MEMPOOL}


@pytest.mark.parametrize(
    "failure",
    [NodeUnavailable("no answer"), NodeRefused("a method", -1, "no")],
    ids=["unavailable", "refused"],
)
async def test_a_call_that_fails_half_way_costs_time_only(
    shop: Shop, buyer: BitWallet, node: MeddledNode, failure: Exception
) -> None:
    first, lost = await paid(shop, buyer)
    second = await shop.invoice()
    assert second.address is not None
    # Two: for one alone nobody asks which hash has what height.
    await shop.world.mine_exactly([])
    await shop.world.mine_exactly([])
    await buyer.pay([(buyer.address, PRICE_SAT)], fee_sat=5_000, inputs=lost.inputs)
    payment = await buyer.pay([(second.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    for method in (
        "chain_info",
        "block_hash",
        "raw_block",
        "raw_mempool",
        "raw_transactions",
        "mempool_entry",
        "estimate_feerate",
        "spending_transactions",
    ):
        node.failing[method] = failure
        await shop.watcher.poll_once()
        assert not node.failing, f"{method} was not called"
        assert not shop.watcher.condition.online
        state = await shop.database.read(chain_facts.watcher_state_of)
        assert state is not None
        assert state.trouble is not None, "other processes read it there"
        assert (await shop.load(first)).standing.status is Status.SEEN, "nothing is written by halves"
        assert (await shop.load(second)).standing.status is Status.OPEN
    await shop.watcher.poll_once()
    assert (await shop.load(first)).standing.status is Status.OPEN
    assert (await shop.load(second)).standing.status is Status.SEEN
    assert shop.watcher.condition.online


# --- many at once ------------------------------------------------------------------------------------------


async def test_a_watcher_learns_of_invoices_that_another_process_makes(shop: Shop, buyer: BitWallet) -> None:
    elsewhere = Watcher(shop.node, shop.database, shop.registry, network="regtest", clock=shop.clock)
    await elsewhere.poll_once()
    polled, heard, mined = [await shop.invoice() for _ in range(3)]
    assert polled.address is not None
    payment = await buyer.pay([(polled.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    await elsewhere.poll_once()
    assert (await shop.load(polled)).standing.status is Status.SEEN

    assert heard.address is not None
    payment = await buyer.pay([(heard.address, PRICE_SAT)])
    await shop.world.mempool_wait(payment.txid)
    await elsewhere.look_at([payment.txid])
    assert (await shop.load(heard)).standing.status is Status.SEEN

    assert mined.address is not None
    await buyer.pay([(mined.address, PRICE_SAT)])
    await shop.world.mine()
    await elsewhere.poll_once()
    assert (await shop.load(mined)).standing.status is Status.SETTLED


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
async def test_buyers_ask_while_the_watcher_writes(shop: Shop, buyer: BitWallet) -> None:
    paid_before = [await shop.invoice() for _ in range(3)]
    await buyer.pay([(str(record.address), PRICE_SAT) for record in paid_before])
    await shop.world.mine()
    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(shop.invoice()) for _ in range(10)]
        for _ in range(5):
            tasks.create_task(shop.watcher.poll_once())
    assert len({task.result().invoice.id for task in made}) == 10
    for record in paid_before:
        assert (await shop.load(record)).standing.status is Status.SETTLED
    assert await shop.balances() == {chain(): -3 * PRICE_MSAT, direct(SELLER): 3 * PRICE_MSAT}
