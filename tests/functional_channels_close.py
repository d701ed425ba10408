"""Closes of channels on real nodes: what each party gets, to the satoshi, in the chain and in the books."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bitcache import channel_operations
from payments.channel import ChannelState, CloseReason
from payments.channel_close_plan import ClosePolicy
from payments.channel_errors import BumpRefused, CloseNotFound
from payments.outputs import Presence
from regtest.install import BitcoindInstallation
from regtest.world import RegtestWorld
from tests.closing_shop import (
    CAPACITY_SAT,
    CLOSE_FEE_SAT,
    DEPTH,
    LIFE_BLOCKS,
    POLICY,
    ClosingShop,
    open_closing_shop,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(
    bitcoind: BitcoindInstallation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ClosingShop]:
    """One world, one database, one operator: each test has channels of its own."""
    folder: Path = tmp_path_factory.mktemp("closing")
    async with (
        RegtestWorld(installation=bitcoind, server_wallets=True) as world,
        open_closing_shop(world, folder) as shop,
    ):
        yield shop


async def test_a_cooperative_close_gives_each_what_was_agreed(shop: ClosingShop) -> None:
    (channel,) = await shop.channels()
    await shop.pay(channel, 5_000)
    await shop.close(channel, paid_sat=5_000, fee_sat=500)
    await shop.turn()
    close = await shop.sent(channel)
    version = close.newest
    # Alone, it pays the network what its payer agreed to: the payee gets what was paid.
    assert (version.fee_sat, version.payee_sat) == (500, 5_000)
    assert version.payee_vout is not None
    assert await shop.output_sat(version.txid, version.payee_vout) == 5_000
    await shop.mine(DEPTH)
    assert await shop.change_sat(channel) == CAPACITY_SAT - 5_000 - 500
    record = await shop.record(channel)
    assert (record.state, record.close_reason) == (ChannelState.CLOSED, CloseReason.PAYER)
    assert await shop.channel_msat(channel) == 0
    assert (await shop.balances_msat("seller:"))["seller:ada"] % 4_950_000 == 0


async def test_the_best_voucher_closes_without_the_payer(shop: ClosingShop) -> None:
    (channel,) = await shop.channels()
    earned = (await shop.balances_msat("seller:")).get("seller:ada", 0)
    await shop.pay(channel, 2_000)
    await shop.pay(channel, 9_000, spent_msat=1_500_500)
    await shop.close(channel)
    await shop.turn()
    version = (await shop.sent(channel)).newest
    assert version.fee_sat == 364  # 182 vB, to P2WPKH and P2TR, at 2 sat/vB
    assert version.payee_sat == 9_000 + CLOSE_FEE_SAT - version.fee_sat
    await shop.mine(DEPTH)
    assert await shop.change_sat(channel) == CAPACITY_SAT - 9_000 - CLOSE_FEE_SAT
    assert await shop.channel_msat(channel) == 0
    spent = 2_000_000 + 1_500_500
    assert (await shop.balances_msat("seller:"))["seller:ada"] - earned == spent - spent // 100
    assert (await shop.balances_msat("owed:"))[f"owed:channel:{channel.id}"] == 9_000_000 - spent
    assert (await shop.reconciled()).explained


async def test_ten_close_together_but_for_one_that_is_young(shop: ClosingShop) -> None:
    old = await shop.channels(9)
    (young,) = await shop.channels(depth=2)
    drained = old[0]
    for n, channel in enumerate([*old[1:], young]):
        await shop.pay(channel, 1_000 + n)
    await shop.pay(drained, drained.channel.paid_sat_max)
    for channel in [*old, young]:
        await shop.close(channel)
    await shop.turn()
    together, alone = await shop.sent(drained), await shop.sent(young)
    assert set(together.channel_ids) == {channel.id for channel in old}
    assert alone.channel_ids == (young.id,)
    vbytes = together.newest.fee_sat // 2
    assert vbytes < 9 * 135, "batched they cost little more than 129 vB each"
    await shop.mine(DEPTH)
    for channel in [*old, young]:
        record = await shop.record(channel)
        assert (record.state, await shop.channel_msat(channel)) == (ChannelState.CLOSED, 0)
        paid_sat = record.balance.accepted_sat
        assert await shop.change_sat(channel) == CAPACITY_SAT - CLOSE_FEE_SAT - paid_sat
    assert await shop.change_sat(drained) == 0


async def test_near_its_expiry_a_channel_is_closed_by_itself_and_bumped(shop: ClosingShop) -> None:
    (channel,) = await shop.channels(life_blocks=160)
    await shop.pay(channel, 8_000)
    await shop.turn()
    assert (await shop.record(channel)).state is ChannelState.OPEN
    await shop.empty_block(10)
    await shop.turn()
    record = await shop.record(channel)
    assert (record.state, record.close_reason) == (ChannelState.CLOSING, CloseReason.MARGIN)
    first = (await shop.sent(channel)).newest
    assert first.feerate_sat_kvb == 2_000
    await shop.empty_block(5)
    await shop.turn()
    assert (await shop.sent(channel)).newest.n == 1, "every six blocks, no sooner"
    await shop.empty_block()
    await shop.turn()
    second = (await shop.sent(channel)).newest
    assert (second.n, second.fee_sat > first.fee_sat) == (2, True)
    await shop.mine()
    assert (await shop.record(channel)).state is ChannelState.CLOSED
    assert await shop.change_sat(channel) == CAPACITY_SAT - CLOSE_FEE_SAT - 8_000


async def test_a_close_that_waits_is_replaced_and_the_older_one_may_be_mined(shop: ClosingShop) -> None:
    (channel,) = await shop.channels()
    await shop.pay(channel, 8_000)
    await shop.close(channel)
    await shop.turn()
    first = (await shop.sent(channel)).newest
    await shop.empty_block(POLICY.bump_after_blocks)
    await shop.turn()
    close = await shop.sent(channel)
    assert [version.n for version in close.versions] == [1, 2]
    assert close.newest.fee_sat >= first.fee_sat + 170
    # A miner may not have heard of the newer one.
    await shop.world.mine_exactly([first.raw.hex()])
    await shop.seen()
    (close,) = await shop.closes(channel)
    assert [version.presence for version in close.versions] == [Presence.BLOCK, Presence.GONE]
    await shop.mine(DEPTH)
    assert await shop.channel_msat(channel) == 0
    assert (await shop.reconciled()).explained


async def test_the_operator_bumps_a_close_within_the_maximum(shop: ClosingShop) -> None:
    (channel,) = await shop.channels()
    await shop.pay(channel, 8_000)
    await shop.close(channel)
    await shop.turn()
    close = await shop.sent(channel)
    with pytest.raises(CloseNotFound):
        await shop.closer.bump("nothing", feerate_sat_kvb=5_000)
    with pytest.raises(BumpRefused, match="close_feerate_max_sat_vb"):
        await shop.closer.bump(close.id, feerate_sat_kvb=POLICY.feerate_max_sat_kvb + 1)
    txid = await shop.closer.bump(close.id, feerate_sat_kvb=7_000)
    await shop.seen()
    newest = (await shop.sent(channel)).newest
    assert (newest.txid, newest.feerate_sat_kvb) == (txid, 7_000)
    await shop.mine()
    assert (await shop.record(channel)).state is ChannelState.CLOSED


async def test_what_is_not_worth_its_fee_waits_for_a_lower_one(shop: ClosingShop) -> None:
    dear = shop.closer_with(ClosePolicy(50_000, 50_000, 3))
    (channel,) = await shop.channels()
    await shop.pay(channel, 1_000)
    await shop.close(channel)
    await shop.turn(dear)
    trouble = (await shop.record(channel)).trouble
    assert trouble is not None
    assert "brings 3,000 sat and costs 9,100 sat" in trouble
    assert await shop.closes(channel) == []
    await shop.turn()
    assert (await shop.record(channel)).trouble is None
    await shop.sent(channel)
    await shop.mine()
    assert (await shop.record(channel)).state is ChannelState.CLOSED


async def test_what_is_never_worth_it_is_refunded_and_the_operator_bears_it(shop: ClosingShop) -> None:
    (channel,) = await shop.channels(life_blocks=160, close_fee_sat=0)
    earned = (await shop.balances_msat("seller:")).get("seller:ada", 0)
    await shop.pay(channel, 100)
    await shop.close(channel)
    await shop.turn()
    await shop.mine(100)
    await shop.turn()
    trouble = (await shop.record(channel)).trouble
    assert trouble is not None
    assert "brings 100 sat" in trouble
    await shop.mine(54)
    await shop.refund(channel)
    await shop.turn()
    assert await shop.closes(channel) == []
    await shop.mine(DEPTH)
    record = await shop.record(channel)
    assert (record.state, record.close_reason) == (ChannelState.CLOSED, CloseReason.REFUNDED)
    # Its seller has delivered: the operator bears what was never received.
    assert (await shop.balances_msat("seller:"))["seller:ada"] - earned == 99_000
    assert await shop.channel_msat(channel) == 0
    assert (await shop.reconciled()).explained


async def test_what_is_too_little_for_an_output_goes_to_the_network(shop: ClosingShop) -> None:
    (channel,) = await shop.channels(close_fee_sat=400)
    await shop.pay(channel, 100)
    await shop.close(channel)
    await shop.turn()
    version = (await shop.sent(channel)).newest
    assert (version.payee_vout, version.payee_sat, version.fee_sat) == (None, 0, 500)
    await shop.mine(DEPTH)
    assert await shop.change_sat(channel) == CAPACITY_SAT - 500
    assert (await shop.record(channel)).state is ChannelState.CLOSED
    assert await shop.channel_msat(channel) == 0
    assert (await shop.reconciled()).explained


async def test_what_a_close_brought_is_paid_out(shop: ClosingShop) -> None:
    (channel,) = await shop.channels(capacity_sat=200_000)
    await shop.pay(channel, 150_000)
    await shop.close(channel)
    await shop.turn()
    version = (await shop.sent(channel)).newest
    await shop.mine(DEPTH)
    address = await shop.payers.new_address()
    batch_id = await shop.pay_out(100_000, address)
    spent = (await shop.batch(batch_id)).inputs
    assert (version.txid, version.payee_vout) in [tuple(outpoint) for outpoint in spent]
    await shop.world.mine()
    await shop.seen()
    assert await shop.payers.received_sat(address, confirmations=1) > 95_000
    assert (await shop.reconciled()).explained


async def test_the_operator_closes_by_a_command_and_looks_at_it(shop: ClosingShop) -> None:
    first, second = await shop.channels(2)
    await shop.pay(first, 5_000)
    listed = json.loads(await shop.command("channels", "list", "--json"))
    assert [line["state"] for line in listed if line["channel_id"] in (first.id, second.id)] == ["open"] * 2
    asked = json.loads(await shop.command("channels", "close", first.id, "--yes", "--json"))
    assert asked == {"asked": [first.id]}
    assert f"{first.id}  open, to be closed" in await shop.command("channels", "list")
    # Until the process that has the channels has done it, nothing changes: what it remembers stays true.
    assert (await shop.record(first)).state is ChannelState.OPEN
    await shop.turn()
    version = (await shop.sent(first)).newest
    assert (await shop.record(second)).state is ChannelState.OPEN
    figures = await shop.database.read(channel_operations.figures)
    assert (figures.closing, figures.troubled) == (1, 0)
    assert figures.blocks_left_min == LIFE_BLOCKS - 6
    shown = await shop.command("channels", "show", first.id)
    assert version.txid in shown
    assert "5,000 sat to ada" in shown
    await shop.mine(DEPTH)
    assert first.id not in await shop.command("channels", "list")
    assert f"{first.id}  closed (operator)" in await shop.command("channels", "list", "--all")
    asked = json.loads(await shop.command("channels", "close", "--all", "--yes", "--json"))
    assert second.id in asked["asked"]
    await shop.turn()
    await shop.sent(second)
    await shop.mine()
