"""Closes of channels when something is in the way: crashes, reorgs, races, pinning, nodes that forget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from bitcoin.core import CMutableTransaction, CMutableTxIn, CMutableTxOut, COutPoint, lx
from bitcoin.core.script import CScript

from payments.bitcoind import Bitcoind, Broadcast
from payments.channel import ChannelState, CloseReason
from payments.channel_close_plan import ClosePolicy
from payments.channel_close_store import Version
from payments.outputs import Presence
from regtest.install import BitcoindInstallation
from regtest.node import sat
from regtest.world import RegtestWorld
from tests.closing_shop import (
    CAPACITY_SAT,
    CLOSE_FEE_SAT,
    DEPTH,
    ClosingShop,
    Paying,
    open_closing_shop,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
EAGER = ClosePolicy(2_000, 50_000, 1)


class PowerCut(Exception):
    """The machine stops here."""


class DyingNode(Bitcoind):
    """The machine stops before anything is sent."""

    async def send_raw_transaction(self, raw: bytes) -> Broadcast:
        raise PowerCut


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


async def closing(shop: ClosingShop, *, paid_sat: int = 8_000, life_blocks: int = 1_000) -> Paying:
    """A channel that is to be closed, and is not yet."""
    (channel,) = await shop.channels(life_blocks=life_blocks)
    await shop.pay(channel, paid_sat)
    await shop.close(channel)
    return channel


async def closed(shop: ClosingShop, channel: Paying, *, reason: CloseReason = CloseReason.OPERATOR) -> None:
    """It is, deeply; nothing is left under it, and every satoshi is explained."""
    await shop.mine(DEPTH)
    record = await shop.record(channel)
    assert (record.state, record.close_reason) == (ChannelState.CLOSED, reason)
    assert record.trouble is None
    assert await shop.channel_msat(channel) == 0
    assert (await shop.reconciled()).explained


async def test_a_crash_before_it_is_sent_loses_nothing(shop: ClosingShop) -> None:
    channel = await closing(shop)
    async with DyingNode(shop.world.server.rpc_url, cookie_file=shop.world.server.cookie_path) as dying:
        with pytest.raises(PowerCut):
            await shop.turn(shop.closer_with(node=dying))
    (close,) = await shop.closes(channel)
    assert close.newest.presence is Presence.MISSING
    assert close.newest.txid not in await shop.world.server.rpc("getrawmempool")
    # Whoever comes first after the restart: the watcher, here without any closer.
    shop.restart()
    await shop.seen()
    assert (await shop.sent(channel)).newest.txid == close.newest.txid
    await shop.turn()
    assert len(await shop.closes(channel)) == 1
    await closed(shop, channel)


async def test_a_close_that_every_mempool_forgot_is_sent_again(shop: ClosingShop) -> None:
    channel = await closing(shop)
    await shop.turn()
    txid = (await shop.sent(channel)).newest.txid
    await shop.world.evict(txid, everywhere=True)
    await shop.turn()
    close = await shop.sent(channel)
    assert (close.newest.txid, len(close.versions)) == (txid, 1)
    await closed(shop, channel)


async def test_a_close_that_a_reorg_took_out_is_mined_again(shop: ClosingShop) -> None:
    channel = await closing(shop)
    await shop.turn()
    txid = (await shop.sent(channel)).newest.txid
    await shop.mine()
    assert (await shop.record(channel)).state is ChannelState.CLOSED
    await shop.world.reorg(1, keep_transactions=False)
    await shop.seen()
    record = await shop.record(channel)
    assert (record.state, record.close_reason) == (ChannelState.CLOSING, CloseReason.OPERATOR)
    await shop.turn()
    assert (await shop.sent(channel)).newest.txid == txid
    await closed(shop, channel)


async def test_a_child_of_the_payers_change_pins_nothing(shop: ClosingShop) -> None:
    channel = await closing(shop, paid_sat=15_000)
    await shop.turn()
    first = (await shop.sent(channel)).newest
    pin = await pinning_child(shop, channel, first)
    await shop.world.mempool_wait(pin)
    await shop.empty_block()
    await shop.turn(shop.closer_with(EAGER))
    second = (await shop.sent(channel)).newest
    mempool = await shop.world.outside.rpc("getrawmempool")
    assert (second.n, pin in mempool, first.txid in mempool) == (2, False, False)
    # It had to pay for what it threw out, child included, and no more than 1,000 vB of that.
    assert second.fee_sat > first.fee_sat + 1_000
    await closed(shop, channel)
    assert await shop.change_sat(channel) == CAPACITY_SAT - CLOSE_FEE_SAT - 15_000


async def test_where_a_node_takes_no_replacement_a_child_pays(shop: ClosingShop) -> None:
    await shop.world.server.stop()
    await shop.world.server_in("-mempoolreplacement=0", "-minrelaytxfee=0.00003")
    try:
        channel = await closing(shop)
        await shop.turn()
        first = (await shop.sent(channel)).newest
        assert first.feerate_sat_kvb == 3_000, "the node takes nothing below"
        await shop.empty_block()
        await shop.turn(shop.closer_with(EAGER, signs=False))
        trouble = (await shop.record(channel)).trouble
        assert trouble is not None
        assert "set [hosted] `wallet`" in trouble
        await shop.empty_block()
        await shop.turn(shop.closer_with(EAGER))
        (close,) = await shop.closes(channel)
        parent = close.versions[0]
        assert (parent.txid, parent.presence) == (first.txid, Presence.MEMPOOL)
        assert parent.child_txid is not None
        assert (await shop.record(channel)).trouble is None
        await shop.world.mempool_wait(parent.child_txid, node=shop.world.outside)
        child = await shop.world.outside.rpc("getmempoolentry", parent.child_txid)
        together_sat_vb = sat(child["fees"]["ancestor"]) / child["ancestorsize"]
        assert together_sat_vb > first.feerate_sat_kvb / 1_000
        await closed(shop, channel)
        # What the child cost is the operator's, and stops nothing.
        assert await shop.unexplained_msat() == 0
    finally:
        await shop.world.server.stop()
        await shop.world.server_in()


async def test_close_and_refund_race_and_the_books_follow_whoever_wins(shop: ClosingShop) -> None:
    refunded, outbid = await shop.channels(2, life_blocks=158)
    for channel in (refunded, outbid):
        await shop.pay(channel, 8_000)
        await shop.close(channel)
    # Nobody closes for so long, as if the server had been away: from here on both may spend the deposit.
    await shop.mine(152)
    await shop.turn()
    await shop.sent(refunded)
    first = (await shop.sent(outbid)).newest
    txids = [await shop.refund(channel, feerate_sat_vb=20) for channel in (refunded, outbid)]
    await shop.seen()
    (close,) = await shop.closes(refunded)
    assert close.newest.presence is Presence.CONFLICTED
    await shop.world.mine_exactly(txids[:1])
    await shop.turn()
    second = (await shop.sent(outbid)).newest
    assert not {first.txid, *txids} & set(await shop.world.outside.rpc("getrawmempool"))
    assert second.feerate_sat_kvb > 20_000
    await closed(shop, outbid)
    await closed(shop, refunded, reason=CloseReason.REFUNDED)
    changes_sat = [await shop.change_sat(channel) for channel in (refunded, outbid)]
    assert changes_sat == [0, CAPACITY_SAT - CLOSE_FEE_SAT - 8_000]


async def test_above_the_maximum_only_in_the_last_blocks(shop: ClosingShop) -> None:
    thrifty = shop.closer_with(ClosePolicy(2_000, 2_000, 1))
    channel = await closing(shop, life_blocks=160)
    await shop.turn(thrifty)
    await shop.sent(channel)
    await shop.empty_block(10)
    await shop.turn(thrifty)
    trouble = (await shop.record(channel)).trouble
    assert trouble is not None
    assert "close_feerate_max_sat_vb" in trouble
    await shop.empty_block(74)
    await shop.turn(thrifty)
    assert (await shop.sent(channel)).newest.feerate_sat_kvb > 2_000
    await closed(shop, channel)


async def test_a_deposit_that_vanishes_sets_the_others_of_its_batch_free(shop: ClosingShop) -> None:
    gone, stays = (await shop.channels())[0], (await shop.channels())[0]
    for channel in (gone, stays):
        await shop.pay(channel, 8_000)
        await shop.close(channel)
    await shop.turn()
    close = await shop.sent(stays)
    assert set(close.channel_ids) == {gone.id, stays.id}
    # As if the payer had been faster: any spend that is not ours will do.
    theft = await shop.close_elsewhere(gone)
    await shop.world.mine_exactly([theft])
    await shop.turn()
    closes = await shop.closes(stays)
    assert [one.channel_ids == (stays.id,) for one in closes] == [False, True]
    await shop.world.mempool_wait(closes[-1].newest.txid, node=shop.world.outside)
    await closed(shop, stays)
    assert await shop.change_sat(stays) == CAPACITY_SAT - CLOSE_FEE_SAT - 8_000


async def pinning_child(shop: ClosingShop, channel: Paying, parent: Version) -> str:
    """As large as a node takes beside a version 3 parent, at the least feerate; its txid."""
    outputs = await shop.world.outside.rpc("decoderawtransaction", parent.raw.hex())
    (vout,) = [
        output["n"]
        for output in outputs["vout"]
        if output["scriptPubKey"].get("address") == channel.change_address
    ]
    change_sat = sat(outputs["vout"][vout]["value"])
    script = await shop.node.validate_address(await shop.payers.new_address())
    assert script is not None
    count = 29
    each_sat = (change_sat - 1_100) // count
    child = CMutableTransaction(
        [CMutableTxIn(COutPoint(lx(parent.txid), vout))],
        [CMutableTxOut(each_sat, CScript(script)) for _ in range(count)],
        0,
        3,
    )
    signed = await shop.payers.rpc("signrawtransactionwithwallet", child.serialize().hex())
    assert signed["complete"], signed
    return str(await shop.world.outside.rpc("sendrawtransaction", signed["hex"]))
