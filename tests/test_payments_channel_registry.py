"""Channels in the process that has them: what is charged, what is on the disk, and who may write it.

There is no node here: what the watcher would write of the chain is put into the database by hand.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from payments import channel_host
from payments.channel import LOST_S, RETRIES_FREE, RETRIES_S, ChannelState, CloseReason, Voucher
from payments.channel_errors import (
    ChannelClosed,
    ChannelNotFound,
    ChannelsElsewhere,
    ChannelSuspended,
    CloseRefused,
    ConfirmationsNeeded,
    DepositTooSmall,
    ExpiryTooNear,
    RetriesExhausted,
    SignatureInvalid,
    UnconfirmedCapReached,
    VoucherDustChange,
    VoucherOverDeposit,
    VoucherShort,
    VoucherStale,
)
from payments.channel_pages import UNITS_PER_PAGE, Page, PageKey, Pages, Retries, RetryKey
from payments.channel_registry import ChannelRegistry
from payments.outputs import Presence
from payments.ports import Transaction
from payments.tables import channels
from tests.channel_house import NOW, PRICE_MSAT, TIP, House, Payer, WriteFailed, charge
from tests.channel_parts import CLOSE_FEE_SAT


@pytest_asyncio.fixture
async def house(database: Database) -> House:
    return await House.build(database)


@pytest_asyncio.fixture
async def each_house(each_database: str) -> AsyncIterator[House]:
    """On SQLite, then on PostgreSQL."""
    database = Database(each_database)
    await upgrade(database)
    yield await House.build(database)
    await database.close()


async def opened(house: House, registry: ChannelRegistry, **deposit: Any) -> Payer:
    payer = await house.deposit(**deposit)
    await registry.open(payer.id, payer.voucher(0))
    return payer


async def refused(what: Awaitable[object], error: type[Exception]) -> Any:
    with pytest.raises(error) as raised:
        await what
    assert type(raised.value) is error
    return raised.value


# Opening and paying


async def test_a_channel_is_opened_by_its_first_voucher(house: House) -> None:
    async with house.running() as registry:
        payer = await house.deposit()
        await refused(registry.pay(payer.voucher(10), None), ChannelNotFound)
        await refused(registry.open("ab" * 32 + ":0", payer.voucher(0)), ChannelNotFound)
        wrong = payer.voucher(7)._replace(cumulative_sat=8)
        await refused(registry.open(payer.id, wrong), SignatureInvalid)
        await refused(registry.open(payer.id, payer.voucher(0), deposit_min_sat=100_001), DepositTooSmall)
        assert (await house.record(payer)).state is ChannelState.FUNDED

        first = await registry.open(payer.id, payer.voucher(0))
        assert (first.balance.accepted_sat, first.cost_msat, first.confirmations) == (0, 0, 1)
        record = await house.record(payer)
        assert (record.state, record.opened_at) == (ChannelState.OPEN, NOW)
        assert record.balance == first.balance

        again = await registry.open(payer.id, payer.voucher(25))
        assert again.balance.accepted_sat == 25
        assert (await house.record(payer)).opened_at == NOW


async def test_each_chunk_is_charged_once_and_its_copies_run_out(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry)
        paid = await registry.pay(payer.voucher(12), charge(0, 8))
        assert (paid.cost_msat, paid.balance.spent_msat) == (8 * PRICE_MSAT, 8 * PRICE_MSAT)
        # Half of it is new, and that alone is paid for.
        more = await registry.pay(payer.voucher(18), charge(4, 8))
        assert more.cost_msat == 4 * PRICE_MSAT
        for _ in range(RETRIES_FREE):
            assert (await registry.pay(payer.voucher(18), charge(0))).cost_msat == 0
        exhausted = await refused(registry.pay(payer.voucher(18), charge(0)), RetriesExhausted)
        assert exhausted.retry_after_s == RETRIES_S
        # A new chunk is not had beside an exhausted one, and is not charged.
        await refused(registry.pay(payer.voucher(20), charge(0, 13)), RetriesExhausted)
        house.now += RETRIES_S
        assert (await registry.pay(payer.voucher(18), charge(0))).cost_msat == 0
        # The same chunks of another file, or through another channel, are others.
        assert (await registry.pay(payer.voucher(20), charge(0, item="other"))).cost_msat == PRICE_MSAT
        assert await house.paid_units(payer) == set(range(12))
        assert await house.sales(payer) == {"offer": (13, 13 * PRICE_MSAT)}


async def test_pages_meet_where_one_ends(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry)
        last = UNITS_PER_PAGE - 1
        assert (await registry.pay(payer.voucher(10), charge(last, 2))).cost_msat == 2 * PRICE_MSAT
        assert (await registry.pay(payer.voucher(10), charge(last - 1, 4))).cost_msat == 2 * PRICE_MSAT
        assert await house.paid_units(payer) == {last - 1, last, last + 1, last + 2}


async def test_vouchers_that_do_not_pay_change_nothing(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry, height=TIP - 9)
        await registry.pay(payer.voucher(10), charge(0, 4))
        before = await house.record(payer)
        most_sat = 100_000 - CLOSE_FEE_SAT
        short = await refused(registry.pay(payer.voucher(11), charge(4, 4)), VoucherShort)
        assert (short.required_sat, short.accepted_sat, short.spent_msat) == (12, 10, 6_000)
        await refused(registry.pay(payer.voucher(9), charge(4, 4)), VoucherStale)
        other = payer.voucher(10)._replace(signature=payer.voucher(11).signature)
        await refused(registry.pay(other, charge(0)), SignatureInvalid)
        # What was accepted is spent by who can sign, and by nobody who knows the outpoint.
        await refused(registry.pay(other._replace(cumulative_sat=9), charge(4, 2)), SignatureInvalid)
        beyond = Voucher(payer.id, most_sat + 1, bytes(64))
        await refused(registry.pay(beyond, None), VoucherOverDeposit)
        await refused(registry.pay(beyond._replace(cumulative_sat=most_sat - 1), None), VoucherDustChange)
        assert (await house.record(payer)).balance == before.balance
        # A lower one, well signed, buys what the highest covers.
        assert (await registry.pay(payer.voucher(3), charge(4, 2))).balance.accepted_sat == 10
        drained = await registry.pay(payer.voucher(most_sat), None)
        assert drained.balance.accepted_sat == most_sat


async def test_requests_side_by_side_are_one_write_and_never_the_same_sat(each_house: House) -> None:
    house = each_house
    async with house.running() as registry:
        payers = [await opened(house, registry) for _ in range(3)]
        for payer in payers:  # the pages are in memory
            await registry.pay(payer.voucher(2), charge(0))
        # Each chunk costs 1.5 sat, and each voucher covers all chunks up to its own.
        wanted = [(payer, n) for payer in payers for n in range(1, 17)]
        random.Random(6).shuffle(wanted)
        house.store.open.clear()
        before = house.store.writes
        asked = [
            asyncio.create_task(registry.pay(payer.voucher(-(-(n + 1) * 3 // 2)), charge(n)))
            for payer, n in wanted
        ]
        _, waiting = await asyncio.wait(asked, timeout=0.05)
        assert len(waiting) == len(asked), "nobody is answered before the disk has it"
        house.store.open.set()
        paid = await asyncio.gather(*asked, return_exceptions=True)
        assert house.store.writes - before == 1
        for payer in payers:
            good = {
                n
                for (who, n), one in zip(wanted, paid, strict=True)
                if who is payer and not isinstance(one, BaseException)
            }
            # A low voucher that comes when the high ones have not is short, and charges nothing.
            record = await house.record(payer)
            assert await house.paid_units(payer) == good | {0}
            assert record.balance.spent_msat == (len(good) + 1) * PRICE_MSAT
            assert record.balance.accepted_sat == 26
            assert await house.sales(payer) == {"offer": (len(good) + 1, (len(good) + 1) * PRICE_MSAT)}
        errors = [one for one in paid if isinstance(one, BaseException)]
        assert all(isinstance(one, VoucherShort) for one in errors)


# Depth


async def test_how_much_is_accepted_follows_the_depth(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry, height=None)
        needed = await refused(registry.pay(payer.voucher(501), None), ConfirmationsNeeded)
        assert (needed.confirmations, needed.max_sat) == (0, 500)
        assert (await registry.pay(payer.voucher(500), None)).confirmations == 0
        # Together they may have paid no more than the operator risks.
        other = await opened(house, registry, height=None)
        await refused(registry.pay(other.voucher(301), None), UnconfirmedCapReached)
        await registry.pay(other.voucher(300), None)
        await refused(registry.pay(other.voucher(301), None), UnconfirmedCapReached)

        await house.mine()
        await house.confirm(payer, house.tip)
        await registry.poll_once()
        assert (await registry.pay(payer.voucher(10_000), None)).confirmations == 1
        await refused(registry.pay(payer.voucher(10_001), None), ConfirmationsNeeded)
        await registry.pay(other.voucher(500), None)
        await house.mine(2)
        await registry.poll_once()
        assert (await registry.pay(payer.voucher(50_000), None)).confirmations == 3
        await house.mine(3)
        await registry.poll_once()
        assert (await registry.pay(payer.voucher(99_000), None)).confirmations == 6


async def test_what_was_double_spent_counts_for_a_day(house: House) -> None:
    """Else who buys from themselves could have the operator pay as much again with every block."""
    async with house.running() as registry:
        first, second = await opened(house, registry, height=None), await opened(house, registry, height=None)
        await registry.pay(first.voucher(498), charge(0, 332))
        await registry.pay(second.voucher(300), charge(0, 8))
        for lost in (first, second):
            await house.lose(lost)
        await registry.poll_once()
        await house.mine()
        await registry.poll_once()
        # Of what was lost, what was charged counts: 498 and 12 sat of 800.
        again = await opened(house, registry, height=None)
        await refused(registry.pay(again.voucher(291), None), UnconfirmedCapReached)
        await registry.pay(again.voucher(290), None)
    async with house.running() as restarted:
        await refused(restarted.pay(again.voucher(291), None), UnconfirmedCapReached)
        house.now += LOST_S
        await house.mine()
        await restarted.poll_once()
        await restarted.pay(again.voucher(500), None)


async def test_what_a_channel_may_lose_counts_though_it_is_forgotten(house: House) -> None:
    """Between the write that fails, or finds it closed, and the next look at the database."""
    async with house.running() as registry:
        payer, other = await opened(house, registry, height=None), await opened(house, registry, height=None)
        await registry.pay(payer.voucher(500), charge(0, 300))
        await house.lose(payer)
        await refused(registry.pay(payer.voucher(500), charge(300)), ChannelClosed)
        await refused(registry.pay(other.voucher(301), None), UnconfirmedCapReached)
        house.store.fails = "before"
        await refused(registry.pay(other.voucher(300), None), WriteFailed)
        await registry.pay(other.voucher(300), None)


async def test_a_deposit_that_is_nowhere_does_not_count_for_ever(house: House) -> None:
    """A parent of it that was double-spent leaves it in no block, and unspent."""
    async with house.running() as registry:
        payer, other = await opened(house, registry, height=None), await opened(house, registry, height=None)
        await registry.pay(payer.voucher(500), None)
        await house.set_presence(payer, Presence.MISSING)
        for wait_s in (0, LOST_S - 1):
            house.now += wait_s
            await house.mine()
            await registry.poll_once()
            await refused(registry.pay(other.voucher(301), None), UnconfirmedCapReached)
        house.now += 1
        await house.mine()
        await registry.poll_once()
        await registry.pay(other.voucher(301), None)
        # It is back, and may be lost again.
        await house.set_presence(payer, Presence.MEMPOOL)
        await registry.poll_once()
        await refused(registry.pay(other.voucher(302), None), UnconfirmedCapReached)


async def test_a_deposit_that_left_the_chain_pays_for_nothing(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry)
        await registry.pay(payer.voucher(600), charge(0))
        await house.disconnect_above(TIP - 1)
        await registry.poll_once()
        await refused(registry.pay(payer.voucher(600), charge(0)), ChannelSuspended)
        # Back in the mempool it has accepted more than is risked there.
        await house.set_presence(payer, Presence.MEMPOOL)
        await registry.poll_once()
        await refused(registry.pay(payer.voucher(600), charge(1)), ChannelSuspended)
        await house.connect(TIP)
        await house.confirm(payer, TIP)
        await registry.poll_once()
        assert (await registry.pay(payer.voucher(600), charge(1))).confirmations == 1
        # The chain is as high as at the last look, and another one.
        await house.disconnect_above(TIP - 2)
        await house.mine(2)
        await house.confirm(payer, TIP - 1)
        await registry.poll_once()
        assert (await registry.pay(payer.voucher(600), charge(1))).confirmations == 2


async def test_what_others_write_of_channels_is_seen(house: House) -> None:
    async with house.running() as registry:
        payer, other = await opened(house, registry), await opened(house, registry)
        await registry.pay(other.voucher(3), charge(0))

        async def close(tx: Transaction) -> None:
            closed = {"state": ChannelState.CLOSED, "close_reason": CloseReason.LOST, "closed_at": NOW}
            await tx.execute(update(channels).where(channels.c.id == payer.id).values(**closed))

        await house.database.write(close)
        # Before the registry has heard of it: the write itself sees it, and the others' goes on.
        both = await asyncio.gather(
            registry.pay(payer.voucher(2), charge(0)),
            registry.pay(other.voucher(3), charge(1)),
            return_exceptions=True,
        )
        assert isinstance(both[0], ChannelClosed)
        assert not isinstance(both[1], BaseException)
        assert (await house.record(payer)).balance.spent_msat == 0
        assert await house.paid_units(payer) == set() == set(await house.sales(payer))
        await refused(registry.pay(payer.voucher(2), charge(0)), ChannelClosed)

        async def reopen(tx: Transaction) -> None:
            await tx.execute(
                update(channels).where(channels.c.id == payer.id).values(state=ChannelState.OPEN)
            )

        await house.database.write(reopen)
        registry.hear(payer.id)
        await registry.poll_once()
        assert (await registry.pay(payer.voucher(2), charge(0))).cost_msat == PRICE_MSAT


# Closing


async def test_channels_close_before_they_expire(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry, expiry_height=TIP + 151)
        late = await house.deposit(expiry_height=TIP + 151)
        await house.mine(2)
        await registry.poll_once()
        await refused(registry.open(late.id, late.voucher(0)), ExpiryTooNear)
        await registry.pay(payer.voucher(5), charge(0))
        await house.mine(5)
        await registry.poll_once()
        record = await house.record(payer)
        assert (record.state, record.close_reason) == (ChannelState.CLOSING, CloseReason.MARGIN)
        await refused(registry.pay(payer.voucher(6), None), ChannelClosed)
        assert (await house.record(late)).state is ChannelState.FUNDED, "nobody signed anything in it"


async def test_nothing_is_charged_once_the_close_is_asked_for(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry)
        await registry.pay(payer.voucher(9), charge(0, 4))
        await refused(registry.ask_close(payer.id, CloseReason.PAYER, payer.agreed(5, 200)), CloseRefused)
        forged = payer.agreed(6, 200)
        await refused(
            registry.ask_close(
                payer.id, CloseReason.PAYER, type(forged)(forged.paid_sat, forged.fee_sat, bytes(64))
            ),
            SignatureInvalid,
        )
        house.store.open.clear()
        before = asyncio.create_task(registry.pay(payer.voucher(9), charge(4)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(registry.ask_close(payer.id, CloseReason.PAYER, payer.agreed(8, 200)))
        await asyncio.sleep(0)
        after = asyncio.create_task(registry.pay(payer.voucher(9), charge(5)))
        await refused(after, ChannelClosed)
        house.store.open.set()
        await asyncio.gather(before, closing)
        record = await house.record(payer)
        assert (record.state, record.close_reason, record.close_asked_at) == (
            ChannelState.CLOSING,
            CloseReason.PAYER,
            NOW,
        )
        assert record.agreed == payer.agreed(8, 200)
        assert await house.paid_units(payer) == {0, 1, 2, 3, 4}
        # Asked again, by whom ever: it stays as it is.
        house.now += 50
        await registry.ask_close(payer.id, CloseReason.OPERATOR, payer.agreed(9, 300))
        assert (await house.record(payer)).agreed == record.agreed
        assert (await house.record(payer)).close_reason is CloseReason.PAYER


async def test_a_payer_may_agree_to_a_close_that_was_decided(house: House) -> None:
    async with house.running() as registry:
        payer, unopened = await opened(house, registry), await house.deposit()
        await registry.ask_close(payer.id, CloseReason.OPERATOR, None)
        await registry.ask_close(payer.id, CloseReason.PAYER, payer.agreed(0, 200))
        record = await house.record(payer)
        assert (record.close_reason, record.agreed) == (CloseReason.OPERATOR, payer.agreed(0, 200))
        await refused(registry.ask_close(unopened.id, CloseReason.OPERATOR, None), CloseRefused)
        await registry.ask_close(unopened.id, CloseReason.PAYER, unopened.agreed(0, 200))
        assert (await house.record(unopened)).state is ChannelState.CLOSING


# The disk


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_what_was_not_written_was_not_charged(each_house: House, fails: str) -> None:
    house = each_house
    async with house.running() as registry:
        payer, other = await opened(house, registry), await opened(house, registry)
        await registry.pay(payer.voucher(3), charge(0))
        await registry.pay(other.voucher(3), charge(0))
        house.store.open.clear()
        house.store.fails = fails
        first = [
            asyncio.create_task(registry.pay(payer.voucher(6), charge(1))),
            asyncio.create_task(registry.pay(other.voucher(3), charge(0))),
        ]
        await asyncio.sleep(0.02)
        # Decided on top of what is being written: it falls with it.
        second = asyncio.create_task(registry.pay(payer.voucher(6), charge(2)))
        await asyncio.sleep(0.02)
        house.store.open.set()
        for one in (*first, second):
            await refused(one, WriteFailed)
        on_disk = {0} if fails == "before" else {0, 1}
        assert await house.paid_units(payer) == on_disk

        # Memory is what the disk says: what it has is not charged again, what it has not is.
        again = await registry.pay(payer.voucher(6), charge(1))
        assert again.cost_msat == (PRICE_MSAT if fails == "before" else 0)
        assert (await registry.pay(payer.voucher(6), charge(2))).cost_msat == PRICE_MSAT
        assert await house.paid_units(payer) == {0, 1, 2}
        assert await house.sales(payer) == {"offer": (3, 3 * PRICE_MSAT)}
        assert (await house.record(payer)).balance.spent_msat == 3 * PRICE_MSAT
        # The failed retry of the other was none.
        for _ in range(RETRIES_FREE):
            await registry.pay(other.voucher(3), charge(0))
        await refused(registry.pay(other.voucher(3), charge(0)), RetriesExhausted)


async def test_who_went_away_has_paid(house: House) -> None:
    async with house.running() as registry:
        payer = await opened(house, registry)
        await registry.pay(payer.voucher(2), charge(0))
        house.store.open.clear()
        gone = asyncio.create_task(registry.pay(payer.voucher(3), charge(1)))
        stays = asyncio.create_task(registry.pay(payer.voucher(5), charge(2)))
        await asyncio.sleep(0.02)
        gone.cancel()
        house.store.open.set()
        assert (await stays).balance.spent_msat == 3 * PRICE_MSAT
        assert await house.paid_units(payer) == {0, 1, 2}
        assert (await registry.pay(payer.voucher(5), charge(1))).cost_msat == 0


async def test_pages_that_had_to_go_are_read_again(house: House) -> None:
    async with house.running() as registry:
        registry._live.pages = Pages(kept_max=1)
        payer = await opened(house, registry)
        for item in ("a", "b", "a", "b"):
            await registry.pay(payer.voucher(10), charge(0, item=item))
        both = [registry.pay(payer.voucher(10), charge(1, item=item)) for item in "abab"]
        paid = await asyncio.gather(*both)
        assert sum(one.cost_msat for one in paid) == 2 * PRICE_MSAT
        assert await house.sales(payer) == {"offer": (4, 4 * PRICE_MSAT)}
        assert len(registry._live.pages) <= 2, "the one that is being written stays"


# Processes


async def test_one_process_has_the_channels(each_house: House) -> None:
    house = each_house
    async with house.running("first") as first:
        payer = await opened(house, first)
        await first.pay(payer.voucher(3), charge(0))
        async with house.running("second") as second:
            await refused(second.pay(payer.voucher(3), charge(1)), ChannelsElsewhere)
            await refused(second.open(payer.id, payer.voucher(3)), ChannelsElsewhere)
            await refused(second.ask_close(payer.id, CloseReason.OPERATOR, None), ChannelsElsewhere)
            await refused(second.write(lambda tx: house.database.url), ChannelsElsewhere)  # type: ignore[arg-type,return-value]

            # The first sleeps until the other has taken over, and wakes up without knowing.
            house.now += channel_host.LEASE_S
            await second.poll_once()
            assert second.available
            assert (await second.pay(payer.voucher(3), charge(1))).balance.spent_msat == 2 * PRICE_MSAT
            assert first.available, "it has not heard of it"
            await refused(first.pay(payer.voucher(6), charge(1)), ChannelsElsewhere)
            assert not first.available
            await refused(first.pay(payer.voucher(6), charge(2)), ChannelsElsewhere)
            assert await house.paid_units(payer) == {0, 1}
        # A clean stop lets the next one have them at once, with all that the other did.
        await first.poll_once()
        assert (await first.pay(payer.voucher(3), charge(1))).cost_msat == 0


async def test_what_was_decided_before_a_loss_is_not_written_after_it(house: House) -> None:
    """Lost and taken again between a decision and its write: memory of before must not reach the disk."""
    async with house.running("first") as first:
        payer = await opened(house, first)
        await first.pay(payer.voucher(3), charge(0))
        house.store.open.clear()
        begun = asyncio.create_task(first.pay(payer.voucher(6), charge(1)))
        await asyncio.sleep(0.02)
        decided = asyncio.create_task(first.pay(payer.voucher(6), charge(2)))
        await asyncio.sleep(0.02)
        await house.database.write(lambda tx: channel_host.take(tx, "other", house.now + 6))
        await house.database.write(lambda tx: channel_host.release(tx, "other"))
        house.store.open.set()
        await refused(begun, ChannelsElsewhere)
        await refused(decided, ChannelsElsewhere)
        await first.poll_once()
        assert await house.paid_units(payer) == {0}
        assert (await first.pay(payer.voucher(3), charge(1))).balance.spent_msat == 2 * PRICE_MSAT


async def test_a_lease_from_a_clock_that_was_set_back_lapses(house: House) -> None:
    await house.database.write(lambda tx: channel_host.take(tx, "old", NOW + 100_000))
    async with house.running("new") as registry:
        assert registry.available


# In memory


def test_pages_and_retries_are_bounded() -> None:
    pages = Pages(kept_max=2)
    keys = [PageKey("c", "f", n) for n in range(4)]
    for key in keys[:2]:
        pages.put(key, b"")
    unsaved = pages.get(keys[0])
    assert unsaved is not None
    unsaved.unsaved = 1
    assert pages.get(keys[1]) is not None
    for key in keys[2:]:
        pages.put(key, b"")
    assert len(pages) == 2
    assert pages.get(keys[0]) is unsaved, "the database knows less than it"

    retries = Retries(kept_max=2)
    counted = [RetryKey("c", "f", n) for n in range(3)]
    for unit in counted:
        retries.count([unit] * RETRIES_FREE, NOW)
    assert len(retries) == 2
    retries.check(counted[:1], NOW)
    with pytest.raises(RetriesExhausted):
        retries.check(counted[1:], NOW)
    retries.give_back(counted[2:])
    retries.check(counted[2:], NOW)


@pytest.mark.parametrize("unit", [0, 7, 8, UNITS_PER_PAGE - 1])
def test_a_page_keeps_each_of_its_units(unit: int) -> None:
    page = Page()
    assert not page.paid(unit)
    page.pay(UNITS_PER_PAGE * 3 + unit)
    assert [n for n in range(UNITS_PER_PAGE) if page.paid(n)] == [unit]
    assert len(page.octets) == unit // 8 + 1
