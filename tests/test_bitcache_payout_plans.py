"""Payouts by threshold and by day, with a clock that is moved; on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bitcache import payout_plans, payout_targets
from bitcache.config import HostedConfig
from bitcache.payout_plans import Due, PayoutPlans, next_due
from bitcache.payout_targets import WALLET, Target, Targets, in_force
from bitcache.payout_views import payout_view
from bitcache.role import Role
from payments import books, ledger, payout_requests, payout_store
from payments.ledger import Booking, Code, Leg
from payments.money import Msat, Sat
from payments.outputs import Presence
from payments.payout import Kind, Payout, State
from payments.ports import Transaction
from payments.sendings import Sending
from tests.till import Till, open_nodeless_till, pretend_node_online

MINIMUM_SAT = 10_000
SCRIPT = bytes.fromhex("0014" + "ab" * 20)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("every", "now", "due"),
    [
        ("day", "2028-02-28T00:00:00", "2028-02-29"),
        ("day", "2028-02-29T23:59:59", "2028-03-01"),
        ("week", "2026-11-22T23:59:59", "2026-11-23"),
        ("week", "2026-11-23T00:00:00", "2026-11-30"),
        ("week", "2026-12-31T12:00:00", "2027-01-04"),
        ("month", "2026-12-31T23:59:59", "2027-01-01"),
        ("month", "2027-01-01T00:00:00", "2027-02-01"),
        ("month", "2027-01-31T12:00:00", "2027-02-01"),
    ],
)
def test_days_weeks_and_months_end_at_midnight_utc(every: Any, now: str, due: str) -> None:
    assert next_due(every, at(now)) == at(due)


def test_never_is_never_due() -> None:
    assert next_due("never", at("2026-01-01")) is None


class Row:
    def __init__(self, **columns: Any) -> None:
        self.address = self.script_pubkey = self.pending_address = None
        self.pending_script_pubkey = self.pending_until = None
        self.__dict__.update(columns)


def test_a_target_is_in_force_from_its_time_on() -> None:
    mine, other = Target("mine", b"1"), Target("other", b"2")
    assert in_force(None, has_wallet=True, now=0) == Targets(WALLET)
    assert in_force(None, has_wallet=False, now=0) == Targets(None)
    row: Any = Row(address="mine", script_pubkey=b"1", pending_address="other", pending_script_pubkey=b"2")
    row.pending_until = 100
    assert in_force(row, has_wallet=False, now=99) == Targets(mine, other, 100)
    assert in_force(row, has_wallet=False, now=100) == Targets(other)
    row = Row(address="mine", script_pubkey=b"1", pending_until=100)
    assert in_force(row, has_wallet=True, now=99) == Targets(mine, WALLET, 100)
    assert in_force(row, has_wallet=True, now=100) == Targets(WALLET)


def test_what_a_payout_shows_is_of_the_version_that_counts() -> None:
    payout = Payout(
        id="p",
        kind=Kind.SELLER,
        seller_id="s",
        invoice_id=None,
        account="seller:s",
        amount_sat=Sat(1_000),
        address="a",
        script_pubkey=SCRIPT,
        state=State.BATCHED,
        requested_at=1,
        ready_at=1,
        batch_id="b",
    )

    def sending(
        n: int, presence: Presence | None, height: int | None = None, *, batch_id: str = "b"
    ) -> Sending:
        return Sending(
            batch_id=batch_id,
            n=n,
            txid=f"txid {n}",
            presence=presence,
            height=height,
            arrives_sat=Sat(1_000 - n),
            fee_sat=Sat(n),
        )

    def shown(*versions: Sending) -> tuple[str, str | None, int, int | None]:
        view = payout_view(payout, list(versions), depth=6, tip_height=12)
        return view.state, view.txid, view.confirmations, view.network_fee_sat

    mined, replaced = sending(1, Presence.BLOCK, 10), sending(2, Presence.GONE)
    assert shown() == ("in_batch", None, 0, None)
    assert shown(sending(1, None)) == ("in_batch", "txid 1", 0, 1)
    assert shown(sending(1, Presence.MEMPOOL), sending(2, None)) == ("sent", "txid 1", 0, 1)
    assert shown(sending(1, Presence.CONFLICTED), sending(2, Presence.MEMPOOL)) == ("sent", "txid 2", 0, 2)
    assert shown(replaced, mined) == shown(mined, replaced) == ("sent", "txid 1", 3, 1)
    assert shown(sending(1, Presence.MISSING)) == ("in_batch", "txid 1", 0, 1)
    dead = sending(1, Presence.MEMPOOL, batch_id="dead")
    assert shown(dead, sending(1, None)) == ("in_batch", "txid 1", 0, 1)
    assert shown(dead) == ("in_batch", None, 0, None)


async def earn(till: Till, amount_sat: int, *, n: int = 0) -> None:
    """As a hosted sale that is deep; a negative amount as one that the chain took back."""
    seller = ledger.seller(till.account.account_id)
    debit, credit = (ledger.chain(), seller) if amount_sat > 0 else (seller, ledger.operator())
    booking = Booking(f"{n:064}", Leg.SELLER, debit, credit, Msat(abs(amount_sat) * 1_000), Code.SETTLED)

    async def book(tx: Transaction) -> None:
        await books.append_missing(tx, [booking], [], reference=f"sale {n}", now=till.server.clock())

    await till.server.services.database.write(book)


async def plan(till: Till, **changes: Any) -> None:
    services, account_id = till.server.services, till.account.account_id

    async def write(tx: Transaction) -> None:
        now = till.server.clock()
        target = Target("bcrt1qtarget", SCRIPT)
        await payout_targets.set_target(tx, account_id, target, delay_s=0, now=now)
        await payout_plans.set_plan(tx, services.config, account_id, **changes, now=now)

    await services.database.write(write)


async def paid(till: Till) -> list[int]:
    """The amounts of all the seller's payouts, after two turns, the newest first."""
    await pretend_node_online(till)
    await till.server.services.payout_plans.pay_due()
    await till.server.services.payout_plans.pay_due()
    return [payout.amount_sat for payout in await payouts_of(till)]


async def payouts_of(till: Till) -> list[Payout]:
    seller_id = till.account.account_id
    return await till.server.services.database.read(
        lambda tx: payout_store.page(tx, limit=50, seller_id=seller_id)
    )


async def next_at(till: Till) -> int | None:
    account_id = till.account.account_id
    found = await till.server.services.database.read(lambda tx: payout_plans.load_plan(tx, account_id))
    return found.next_at


async def until(till: Till, text: str) -> None:
    """So late is it now."""
    till.server.clock.advance(at(text) - till.server.clock())


HOSTED = HostedConfig(payout_min_sat=MINIMUM_SAT, depth=1)


async def test_a_week_pays_everything_once(tmp_path: Path, each_with_tables: str) -> None:
    url = each_with_tables if each_with_tables.startswith("postgresql") else ""
    async with open_nodeless_till(tmp_path, role=Role.WEB, hosted=HOSTED, database_url=url) as till:
        await until(till, "2030-01-02T12:00:00")
        await plan(till, every="week")
        await earn(till, 50_000, n=1)
        assert await paid(till) == []
        await until(till, "2030-01-06T23:59:00")
        assert await paid(till) == []
        await until(till, "2030-01-07T00:00:01")
        assert await paid(till) == [50_000]
        assert await next_at(till) == at("2030-01-14")
        # Down for weeks: one payout makes up for all that were missed.
        await earn(till, 12_345, n=2)
        await until(till, "2030-02-06T00:00:00")
        assert await paid(till) == [12_345, 50_000]
        assert await next_at(till) == at("2030-02-11")
        # Nothing, too little, or below zero: the next time comes all the same.
        await until(till, "2030-02-11T00:00:00")
        assert await paid(till) == [12_345, 50_000]
        await earn(till, MINIMUM_SAT - 1, n=3)
        await until(till, "2030-02-18T00:00:00")
        assert await paid(till) == [12_345, 50_000]
        await earn(till, -MINIMUM_SAT, n=4)
        await until(till, "2030-02-25T00:00:00")
        assert await paid(till) == [12_345, 50_000]
        assert await next_at(till) == at("2030-03-04")
        await plan(till, every="never")
        await earn(till, 90_000, n=5)
        await until(till, "2030-03-04T00:00:00")
        assert await paid(till) == [12_345, 50_000]
        await plan(till, threshold_sat=MINIMUM_SAT)
        assert await paid(till) == [90_000 - 1, 12_345, 50_000]
        async with till.server.session(till.account.token) as http:
            async with http.get("/api/v1/balance") as answer:
                assert (await answer.json())["reserved_sat"] == 90_000 - 1 + 12_345 + 50_000
            async with http.get("/api/v1/payouts") as answer:
                assert len((await answer.json())["items"]) == 3


async def test_a_threshold_pays_as_soon_as_it_is_reached(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path, role=Role.WEB, hosted=HOSTED) as till:
        await plan(till, threshold_sat=30_000)
        await earn(till, 29_999, n=1)
        assert await paid(till) == []
        await earn(till, 1, n=2)
        assert await paid(till) == [30_000]
        await earn(till, 40_000, n=3)
        till.server.clock.advance(1)
        assert await paid(till) == [40_000, 30_000]
        await plan(till, threshold_sat=None)
        await earn(till, 40_000, n=4)
        assert await paid(till) == [40_000, 30_000]


async def test_what_is_still_confirming_is_looked_at_once_a_block(tmp_path: Path) -> None:
    looks = []

    class Counting(PayoutPlans):
        async def _reached(self, tx: Transaction, due: Due) -> bool:
            looks.append(due.balance_msat)
            return False

    async with open_nodeless_till(tmp_path, role=Role.WEB, hosted=HOSTED) as till:
        await plan(till, threshold_sat=30_000)
        await earn(till, 50_000, n=1)
        services = till.server.services
        plans = Counting(
            config=services.config,
            store=services.database,
            desk=services.seller_payouts,
            clock=till.server.clock,
        )
        await pretend_node_online(till)
        for _ in range(3):
            await plans.pay_due()
        assert looks == [50_000_000]
        await earn(till, 1_000, n=2)
        await plans.pay_due()
        assert looks == [50_000_000, 51_000_000]


async def test_while_payouts_cannot_be_made_they_stay_due(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path, role=Role.WEB, hosted=HOSTED) as till:
        await until(till, "2030-01-02T12:00:00")
        await plan(till, every="day")
        await earn(till, 50_000)
        await until(till, "2030-01-03T00:00:00")
        await till.server.services.payout_plans.pay_due()  # no node yet
        assert (await payouts_of(till), await next_at(till)) == ([], at("2030-01-03"))
        assert await paid(till) == [50_000]


async def test_two_runners_and_a_crash_make_one_payout_of_one_day(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path, role=Role.WEB, hosted=HOSTED) as till:
        await until(till, "2030-01-02T12:00:00")
        await plan(till, every="day")
        await earn(till, 50_000)
        await until(till, "2030-01-03T00:00:00")
        await pretend_node_online(till)
        services, now = till.server.services, till.server.clock()
        (found,) = await services.database.read(lambda tx: payout_plans.due(tx, now))

        async def made(tx: Transaction) -> Payout | None:
            return await payout_plans.plan_due(tx, services.seller_payouts, found, now=now)

        async def crashing(tx: Transaction) -> None:
            assert await made(tx) is not None
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await services.database.write(crashing)
        assert (await payouts_of(till), await next_at(till)) == ([], at("2030-01-03"))
        first = await services.database.write(made)
        assert first is not None
        assert first.id == found.payout_id
        assert await services.database.write(made) is None
        # Not even a cancelled one is made again, nor one of a plan whose row was put back.
        await services.database.write(lambda tx: payout_requests.cancel(tx, first.id, now=now))
        assert await services.database.write(made) is None
        assert len(await payouts_of(till)) == 1


async def test_a_node_that_is_away_is_said(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path, role=Role.WEB, hosted=HOSTED) as till:
        await plan(till)
        await earn(till, 50_000)
        async with till.server.session(till.account.token) as http:
            async with http.post("/api/v1/payouts", json={"all": True}) as answer:
                assert answer.status == 503
                assert "Your balance is safe" in (await answer.json(content_type=None))["detail"]
            async with http.get("/api/v1/balance") as answer:
                assert "cannot see the chain" in (await answer.json())["blocked"]
        assert await payouts_of(till) == []
