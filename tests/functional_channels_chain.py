"""Channels in the chain, on real nodes: deposits, closes, refunds and double spends come, go and come again.

After each step the ledger sums to zero, and a reconciliation with the node explains every satoshi.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest_asyncio
from msgspec import structs
from sqlalchemy import update

from bitcache.channel_bookkeeping import TOPIC
from bitcache.config import ChannelsConfig
from bitcache.db.tables import events
from bitcache.doctor import Verdict, recompute
from bitcache.doctor_channels import check_channel_books
from bitcache.services import open_services
from payments import chain_facts, chain_store, channel_store, ledger
from payments.chain_facts import PaidOutput, PayingTransaction
from payments.channel import ChannelState, CloseReason
from payments.channel_follow import ChannelFollower
from payments.channel_record import ChannelRecord
from payments.channel_script import Channel
from payments.channel_store import DEPOSIT_SAT_MIN
from payments.outputs import OutPoint, Presence
from payments.ports import Transaction
from payments.reconcile_report import LineKind
from payments.segwit_address import address_of
from payments.tables import channels
from payments.transaction import parse_transaction
from payments.watcher import LOOKS_AGAIN_MAX, Watcher
from regtest.install import BitcoindInstallation
from regtest.node import btc, sat
from regtest.world import MINER, RegtestWorld
from tests.channel_deposits import (
    CAPACITY_SAT,
    Deposits,
    back_up_to,
    open_deposits,
    risen,
)
from tests.channel_parts import CLOSE_FEE_SAT
from tests.functional_reconcile import found, look

T = TypeVar("T")
DEPTH = 2


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shaky(bitcoind: BitcoindInstallation) -> AsyncIterator[RegtestWorld]:
    """Two nodes whose chain the tests here turn as they like."""
    async with RegtestWorld(installation=bitcoind) as world:
        yield world


@pytest_asyncio.fixture
async def shop(shaky: RegtestWorld, tmp_path: Path) -> AsyncIterator[Deposits]:
    async with open_deposits(shaky, tmp_path, depth=DEPTH) as shop:
        yield shop


async def explained(shop: Deposits) -> dict[str, int]:
    """The balances, in msat, once node, coins and ledger say the same."""
    report = await look(shop)
    assert report.explained, report.lines
    assert report.node_sat == report.coins_sat == sum(report.liabilities_sat.values())
    return await shop.balances_msat()


async def states(shop: Deposits, record: ChannelRecord) -> tuple[ChannelState, CloseReason | None, Presence]:
    now = await shop.load(record.id)
    assert (now.state is ChannelState.CLOSED) == (now.closed_at is not None)
    return now.state, now.close_reason, now.funding


async def two_spends(shop: Deposits, address: str, amount_sat: int) -> tuple[bytes, bytes]:
    """One coin of the miner's sent to this address, and the same coin sent elsewhere; neither broadcast."""
    outside = shop.world.outside
    coin = max(await outside.rpc("listunspent", 1, wallet=MINER), key=lambda one: one["amount"])
    inputs = [{"txid": coin["txid"], "vout": coin["vout"]}]
    whole_sat = sat(coin["amount"])
    both = []
    for outputs in (
        [{address: btc(amount_sat)}, {await shop.new_address(): btc(whole_sat - amount_sat - 2_000)}],
        [{await shop.new_address(): btc(whole_sat - 5_000)}],
    ):
        raw = await outside.rpc("createrawtransaction", inputs, outputs)
        signed = await outside.rpc("signrawtransactionwithwallet", raw, wallet=MINER)
        both.append(bytes.fromhex(signed["hex"]))
    return both[0], both[1]


async def test_every_deposit_to_a_contract_is_a_channel(shop: Deposits) -> None:
    """Seen in the mempool and in its block; announced here, or by another process that tells nobody."""
    contract = await shop.announce()
    first = await shop.deposit(contract, confirmations=0)
    assert await states(shop, first) == (ChannelState.FUNDED, None, Presence.MEMPOOL)
    assert (first.confirmations(10_000), first.channel.capacity_sat) == (0, CAPACITY_SAT)
    await shop.mine()
    assert (await shop.load(first.id)).funding is Presence.BLOCK
    second = await shop.deposit(contract, 30_000)
    elsewhere = await shop.announce(watch=False)
    third = await shop.deposit(elsewhere, confirmations=0)
    assert third.funding is Presence.MEMPOOL
    unheard = await shop.announce(watch=False)
    await shop.world.faucet(address_of(unheard.script_pubkey, "regtest"), 40_000)
    await shop.seen()
    (fourth,) = await shop.of(unheard)
    assert fourth.confirmations(fourth.funding_height or 0) == 1
    live = await shop.services.database.read(channel_store.live)
    assert {record.id for record in live} == {first.id, second.id, third.id, fourth.id}
    of_payer = partial(channel_store.of_payer, payer_key=contract.payer_key)
    # Seen within a second they are in any order.
    assert {one.id for one in await shop.services.database.read(of_payer)} == {first.id, second.id}
    assert await explained(shop) == {}


async def test_neither_dust_nor_newly_mined_coins_are_a_deposit(shop: Deposits) -> None:
    contract = await shop.announce()
    address = address_of(contract.script_pubkey, "regtest")
    for amount_sat in (DEPOSIT_SAT_MIN - 1, DEPOSIT_SAT_MIN):
        raw, _ = await two_spends(shop, address, amount_sat)
        await shop.world.mine_exactly([raw.hex()])
    await shop.world.mine(1, to=address)
    await shop.seen()
    assert [one.channel.capacity_sat for one in await shop.of(contract)] == [DEPOSIT_SAT_MIN]


class Racing:
    """A store before each of whose writes something else is committed by another process."""

    def __init__(self, shop: Deposits, race: Callable[[], Awaitable[object]]) -> None:
        self._database = shop.services.database
        self._race = race

    async def write(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        await self._race()
        written: T = await self._database.write(fn)
        return written

    async def read(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        read: T = await self._database.read(fn)
        return read


def racing_watcher(shop: Deposits, race: Callable[[], Awaitable[object]]) -> Watcher:
    return Watcher(
        shop.services.node,
        Racing(shop, race),
        shop.services.registry,
        network="regtest",
        clock=shop.till.server.clock,
        channels=ChannelFollower(depth=DEPTH),
    )


async def test_a_contract_announced_while_a_block_is_read_is_not_missed(shop: Deposits) -> None:
    """The payer sent before announcing: the block was read without the contract, and is read again."""
    contract = await shop.announce(written=False)
    await shop.world.faucet(address_of(contract.script_pubkey, "regtest"), CAPACITY_SAT)

    async def announce() -> None:
        await shop.write_contract(contract)

    await racing_watcher(shop, announce).poll_once()
    (record,) = await shop.of(contract)
    assert record.funding is Presence.BLOCK
    # However many come, blocks go on.
    tried = 0

    async def announce_another() -> None:
        nonlocal tried
        tried += 1
        await shop.announce(watch=False)

    await shop.world.mine(1)
    watcher = racing_watcher(shop, announce_another)
    await watcher.poll_once()
    assert watcher.condition.online
    assert tried == 1 + LOOKS_AGAIN_MAX
    height = int(await shop.world.outside.rpc("getblockcount"))
    assert watcher.condition.tip_height == height


async def test_a_deposit_recorded_while_the_block_is_read_that_spends_it(shop: Deposits) -> None:
    """Another process records one that is older than its contract: its refund is in the block being read."""
    contract = await shop.announce(life_blocks=2, written=False)
    txid = await shop.world.faucet(address_of(contract.script_pubkey, "regtest"), CAPACITY_SAT)
    block_hash = await shop.world.outside.rpc("getbestblockhash")
    raw = bytes.fromhex(await shop.world.outside.rpc("getrawtransaction", txid, 0, block_hash))
    await shop.mine(2)
    parsed = parse_transaction(raw)
    (paid,) = [one for one in parsed.outputs if one.script_pubkey == contract.script_pubkey]
    output = PaidOutput(paid.vout, paid.amount_sat, paid.script_pubkey, None)
    payment = PayingTransaction(txid, raw, parsed.inputs, (output,), coinbase=False)
    channel = Channel(contract, OutPoint(txid, paid.vout), paid.amount_sat)
    height = int((await shop.world.outside.rpc("getblock", block_hash))["height"])
    await shop.write_contract(contract)
    await shop.world.mine_exactly([shop.refund(channel, await shop.new_script()).hex()])
    done = False

    async def adopt() -> None:
        nonlocal done
        if done:
            return
        done = True
        add = partial(chain_store.add_payment, payment=payment, height=height, first_seen_at=shop.now)
        await shop.services.database.write(partial(add, prefetch_fit=True))

    await racing_watcher(shop, adopt).poll_once()
    record = await shop.load(channel.id)
    assert await states(shop, record) == (ChannelState.CLOSED, CloseReason.REFUNDED, Presence.BLOCK)


async def test_a_deposit_goes_with_its_block_and_comes_with_the_next(shop: Deposits) -> None:
    record = await shop.deposit(await shop.announce())
    await shop.world.reorg(1, drop=[record.channel.outpoint.txid])
    await shop.seen()
    gone = await shop.load(record.id)
    assert (gone.state, gone.funding, gone.funding_height) == (ChannelState.FUNDED, Presence.MEMPOOL, None)
    await shop.mine()
    assert (await shop.load(record.id)).funding is Presence.BLOCK


async def test_the_node_is_offered_a_deposit_that_it_forgot(shop: Deposits) -> None:
    record = await shop.deposit(await shop.announce(), confirmations=0)
    await shop.world.evict(record.channel.outpoint.txid, everywhere=True)
    await shop.seen()
    await shop.world.mempool_wait(record.channel.outpoint.txid, node=shop.world.outside)
    await shop.mine()
    assert (await shop.load(record.id)).funding is Presence.BLOCK


async def test_of_a_double_spent_deposit_the_operator_bears_what_was_spent(shop: Deposits) -> None:
    """And nothing of it once a reorg brings the deposit back."""
    contract = await shop.announce()
    pays, takes = await two_spends(shop, address_of(contract.script_pubkey, "regtest"), CAPACITY_SAT)
    await shop.broadcast(pays)
    await shop.seen()
    (record,) = await shop.of(contract)
    await shop.charge(record, accepted_sat=500, spent_msat=499_500)
    await shop.book_spending()
    mine, seller = ledger.channel(record.id), ledger.seller(shop.seller_id)
    waiting = {mine: -499_500, ledger.pending(shop.seller_id): 499_500}
    assert await explained(shop) == waiting
    await shop.world.mine_exactly([takes.hex()])
    await shop.seen()
    lost = (ChannelState.CLOSED, CloseReason.LOST, Presence.GONE)
    assert await states(shop, record) == lost
    assert await explained(shop) == waiting
    await shop.mine(DEPTH - 1)
    assert await states(shop, record) == lost
    assert await shop.balances_msat() == {seller: 449_550, "operator": -449_550}
    report = await look(shop)
    assert (report.explained, list(found(report))) == (True, [LineKind.OPERATOR_OWES])
    await shop.world.reorg(DEPTH, keep_transactions=False)
    await shop.seen()
    assert (await shop.load(record.id)).state is ChannelState.OPEN
    assert await explained(shop) == waiting
    await shop.world.mine_exactly([pays.hex()])
    await shop.seen()
    assert await states(shop, record) == (ChannelState.OPEN, None, Presence.BLOCK)
    assert await explained(shop) == waiting


async def test_a_close_goes_with_its_block_and_another_version_is_mined(shop: Deposits) -> None:
    """Its money is payable once it is deep, and is paid out."""
    record = await shop.deposit(await shop.announce())
    mine, owed = ledger.channel(record.id), ledger.owed_of_channel(record.id)
    await shop.charge(record, accepted_sat=9_000, spent_msat=7_000_250)
    await shop.charge(record, accepted_sat=10_000, spent_msat=1_000_000)
    open_balances = {mine: -8_000_250, ledger.pending(shop.seller_id): 8_000_250}
    first = await shop.close([record], close_id="close")
    await shop.seen()
    assert (await shop.load(record.id)).state is ChannelState.CLOSING
    await shop.book_spending()
    assert await explained(shop) == open_balances
    second = await shop.close([record], close_id="close", n=2, feerate_sat_kvb=4_000)
    await shop.seen()
    closed = (ChannelState.CLOSED, CloseReason.MARGIN, Presence.BLOCK)
    for planned in (first, second):
        close = planned.close
        await shop.world.mine_exactly([close.raw.hex()])
        await shop.seen()
        assert await states(shop, record) == closed
        spends = await shop.services.database.read(partial(channel_store.spends_of, channel_ids=[record.id]))
        assert spends[record.id][0] == close.txid
        assert await explained(shop) == {
            "chain": -close.payee_sat * 1_000,
            mine: close.payee_sat * 1_000 - 8_000_250,
            ledger.pending(shop.seller_id): 8_000_250,
        }
        await shop.mine(DEPTH - 1)
        # Of the close fee: what the network did not take; and the fraction of the last satoshi.
        surplus_msat = close.payee_sat * 1_000 - 10_000_000
        assert surplus_msat == (CLOSE_FEE_SAT - close.fee_sat) * 1_000
        assert await explained(shop) == {
            "chain": -close.payee_sat * 1_000,
            ledger.seller(shop.seller_id): 7_200_225,
            "operator": 800_025 + surplus_msat,
            owed: 1_999_750,
        }
        if planned is first:
            await shop.world.reorg(DEPTH, keep_transactions=False)
            await shop.seen()
            assert (await shop.load(record.id)).state is ChannelState.CLOSING
            assert await explained(shop) == open_balances
    payout = await shop.request(7_200)
    batch_id = await shop.build()
    await shop.send(batch_id)
    await shop.mine(DEPTH)
    after = await explained(shop)
    assert after[ledger.seller(shop.seller_id)] == 225
    assert await shop.received_sat(payout.address) > 0


async def test_one_close_of_two_channels_and_what_others_add(shop: Deposits) -> None:
    """A payer has their change sent to an address that an earlier close was paid to: it is the operator's."""
    before = await shop.deposit(await shop.announce())
    await shop.charge(before, accepted_sat=3_000, spent_msat=3_000_000)
    ours = (await shop.close([before])).close
    await shop.mine(DEPTH)
    balances = await explained(shop)
    script = await shop.output_script(ours.txid, ours.payee_vout or 0)
    records = [
        await shop.deposit(await shop.announce()),
        await shop.deposit(await shop.announce(change=script), 50_000),
    ]
    for record in records:
        await shop.charge(record, accepted_sat=5_000, spent_msat=4_000_000)
    close = (await shop.close(records)).close
    await shop.mine()
    await explained(shop)
    await shop.mine(DEPTH - 1)
    after = await explained(shop)
    assert [after[ledger.owed_of_channel(one.id)] for one in records] == [1_000_000, 1_000_000]
    assert after[ledger.seller(shop.seller_id)] == balances[ledger.seller(shop.seller_id)] + 7_200_000
    assert not any(account.startswith(("channel:", "pending:")) for account in after)
    change_sat = 50_000 - CLOSE_FEE_SAT - 5_000
    got_sat = close.payee_sat + change_sat - 10_000
    assert after["operator"] == balances["operator"] + 800_000 + got_sat * 1_000
    # And a gift to that address is one.
    await shop.world.faucet(address_of(script, "regtest"), 12_345)
    await shop.seen()
    assert (await explained(shop))["operator"] == after["operator"] + 12_345_000


async def test_a_deposit_whose_parent_was_double_spent_is_lost_at_its_expiry(shop: Deposits) -> None:
    """No block ever spends what it spends: nothing but the time says that it does not come."""
    outside = shop.world.outside
    contract = await shop.announce(life_blocks=4)
    own = await outside.rpc("getnewaddress", address_type="bech32", wallet=MINER)
    parent, rival = await two_spends(shop, own, 60_000)
    paid = (await outside.rpc("decoderawtransaction", parent.hex()))["vout"][0]
    previous = {"txid": parse_transaction(parent).txid, "vout": 0}
    raw = await outside.rpc(
        "createrawtransaction",
        [previous],
        [{address_of(contract.script_pubkey, "regtest"): btc(59_000)}],
    )
    spent = {**previous, "scriptPubKey": paid["scriptPubKey"]["hex"], "amount": btc(60_000)}
    signed = await outside.rpc("signrawtransactionwithwallet", raw, [spent], wallet=MINER)
    await shop.broadcast(parent)
    txid = await shop.broadcast(bytes.fromhex(signed["hex"]))
    await shop.world.mempool_wait(txid)
    await shop.seen()
    (record,) = await shop.of(contract)
    await shop.charge(record, accepted_sat=500, spent_msat=500_000)
    await shop.world.mine_exactly([rival.hex()])
    await shop.mine(2)
    assert await states(shop, record) == (ChannelState.OPEN, None, Presence.MISSING)
    await shop.mine()
    assert await states(shop, record) == (ChannelState.CLOSED, CloseReason.LOST, Presence.MISSING)
    unconfirmed = await shop.services.database.read(chain_facts.unconfirmed)
    assert [one.offered for one in unconfirmed if one.txid == txid] == [False], "not for ever"
    await shop.mine(DEPTH)
    assert await shop.balances_msat() == {ledger.seller(shop.seller_id): 450_000, "operator": -450_000}
    assert (await look(shop)).explained
    # A reorg in which the parent is mined after all: what was signed is good again.
    await shop.world.reorg(DEPTH + 4, keep_transactions=False)
    await shop.world.mine_exactly([parent.hex(), signed["hex"]])
    await shop.seen()
    assert await states(shop, record) == (ChannelState.OPEN, None, Presence.BLOCK)
    assert await explained(shop) == {
        ledger.channel(record.id): -500_000,
        ledger.pending(shop.seller_id): 500_000,
    }


async def test_a_refund_after_expiry_wins_over_the_close(shop: Deposits) -> None:
    """What was charged is the operator's loss; a reorg turns it into the close."""
    record = await shop.deposit(await shop.announce(life_blocks=3), confirmations=0)
    await shop.mine()
    await shop.charge(record, accepted_sat=2_000, spent_msat=1_500_000)
    close = (await shop.close([record], send=False)).close
    await shop.mine(2)
    refund = shop.refund(record.channel, await shop.new_script())
    await shop.world.mine_exactly([refund.hex()])
    await shop.seen()
    assert await states(shop, record) == (ChannelState.CLOSED, CloseReason.REFUNDED, Presence.BLOCK)
    mine, seller = ledger.channel(record.id), ledger.seller(shop.seller_id)
    pending = {mine: -1_500_000, ledger.pending(shop.seller_id): 1_500_000}
    assert await explained(shop) == pending
    await shop.mine(DEPTH - 1)
    assert await shop.balances_msat() == {seller: 1_350_000, "operator": -1_350_000}
    assert (await look(shop)).explained
    await shop.world.reorg(DEPTH, keep_transactions=False)
    await shop.seen()
    assert (await shop.load(record.id)).state is ChannelState.CLOSING
    await shop.world.mine_exactly([close.raw.hex()])
    await shop.mine(DEPTH - 1)
    state, reason, _ = await states(shop, record)
    assert (state, reason) == (ChannelState.CLOSED, CloseReason.MARGIN)
    after = await explained(shop)
    assert (after[seller], mine in after) == (1_350_000, False)
    assert after[ledger.owed_of_channel(record.id)] == 500_000


async def test_a_refund_that_pays_the_operator_is_explained(shop: Deposits) -> None:
    record = await shop.deposit(await shop.announce(life_blocks=2))
    before = await shop.deposit(await shop.announce())
    await shop.charge(before, accepted_sat=3_000, spent_msat=3_000_000)
    ours = (await shop.close([before])).close
    await shop.mine(DEPTH)
    balances = await explained(shop)
    script = await shop.output_script(ours.txid, ours.payee_vout or 0)
    txid = await shop.broadcast(shop.refund(record.channel, script))
    await shop.mine(DEPTH)
    assert (await shop.load(record.id)).close_reason is CloseReason.REFUNDED
    arrived = await shop.world.outside.rpc("gettxout", txid, 0)
    assert (await explained(shop))["operator"] == balances["operator"] + sat(arrived["value"]) * 1_000


async def test_what_happened_is_told_with_the_block(shop: Deposits) -> None:
    record = await shop.deposit(await shop.announce())
    await shop.charge(record, accepted_sat=2_000, spent_msat=2_000_000)
    await shop.close([record])
    for _ in range(DEPTH):
        await shop.mine()
    # Deeper ones change nothing.
    await shop.mine()

    async def told(tx: Transaction) -> list[Any]:
        chosen = events.select().where(events.c.topic == TOPIC).order_by(events.c.seq)
        return [(row.subject, row.json) for row in (await tx.execute(chosen)).all()]

    closed = (record.id, '{"state":"closed"}')
    assert await shop.services.database.read(told) == [closed] * 2


async def test_the_doctor_repairs_states_and_names_channels_that_nobody_closes(shop: Deposits) -> None:
    services = shop.services
    record = await shop.deposit(await shop.announce())
    await shop.charge(record, accepted_sat=2_000, spent_msat=2_000_000)
    await shop.close([record])
    await shop.mine(DEPTH)
    after = await explained(shop)
    damage = update(channels).values(state=ChannelState.CLOSING, closed_at=None, close_reason=None)
    await services.database.write(lambda tx: tx.execute(damage))
    off = structs.replace(services.config, channels=ChannelsConfig())
    async with open_services(off) as without:
        (finding,) = [one async for one in check_channel_books(without)]
        assert (finding.check, finding.verdict) == ("money in channels", Verdict.WRONG)
    assert [one async for one in check_channel_books(services)] == []
    await recompute(services)
    assert (await shop.load(record.id)).state is ChannelState.CLOSED
    assert await explained(shop) == after
    async with open_services(off) as without:
        assert [one async for one in check_channel_books(without)] == []


async def test_a_backup_older_than_a_channel_loses_vouchers_and_explains_the_rest(
    shop: Deposits, tmp_path: Path
) -> None:
    """Closed by the server that was lost: what the backup knows is its sellers', what it forgot the payer's.
    Of a channel that it never knew, the money is there, and nobody's yet."""
    known = await shop.deposit(await shop.announce())
    waiting = await shop.deposit(await shop.announce())
    for record in (known, waiting):
        await shop.charge(record, accepted_sat=3_000, spent_msat=2_500_000)
    await shop.book_spending()
    await back_up_to(shop, tmp_path / "backup")
    await shop.charge(known, accepted_sat=9_000, spent_msat=6_500_000)
    unknown = await shop.deposit(await shop.announce())
    await shop.charge(unknown, accepted_sat=4_000, spent_msat=4_000_000)
    closes = [(await shop.close([record])).close for record in (known, unknown)]
    late = (await shop.close([waiting], kept=False, send=False)).close
    await shop.mine(DEPTH)
    assert shop.services.hosted.known is not None
    async with risen(shop, tmp_path / "backup", tmp_path / "restored") as restored:
        assert await states(restored, known) == (
            ChannelState.CLOSED,
            CloseReason.OPERATOR,
            Presence.BLOCK,
        )
        assert (await restored.load(waiting.id)).balance.accepted_sat == 3_000
        findings = [one async for one in check_channel_books(restored.services)]
        assert [(one.check, one.verdict) for one in findings] == [("money in channels", Verdict.WARNING)]
        received_sat = [close.payee_sat for close in closes]
        assert await explained(restored) == {
            "chain": -sum(received_sat) * 1_000,
            ledger.seller(shop.seller_id): 2_250_000,
            ledger.owed_of_channel(known.id): 6_500_000,
            "operator": 250_000 + (received_sat[0] - 9_000) * 1_000,
            ledger.unassigned(shop.services.hosted.known.id): received_sat[1] * 1_000,
            ledger.channel(waiting.id): -2_500_000,
            ledger.pending(shop.seller_id): 2_500_000,
        }
        # What the lost server signed is mined at last, to an address that the backup does not know.
        await restored.world.mine_exactly([late.raw.hex()])
        await restored.mine(DEPTH - 1)
        after = await explained(restored)
        assert after[ledger.unassigned(shop.services.hosted.known.id)] == received_sat[1] * 1_000
        assert (ledger.channel(waiting.id) in after, after[ledger.seller(shop.seller_id)]) == (
            False,
            4_500_000,
        )
