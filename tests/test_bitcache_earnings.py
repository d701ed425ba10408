"""Earnings from the ledger: by parcel and day, in any time zone, reversals taken back on their own day."""

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from bitcache.earnings import Booked, Period, by_day, parse_period
from bitcache.errors import PeriodInvalid
from payments.money import Msat
from payments.tables import transfers
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.till import Till, open_nodeless_till, open_till

DAY_S = 86_400
# 2026-03-10 12:00 UTC, and half an hour before a midnight.
NOON = 1_773_144_000
LATE = 1_773_185_400


@pytest_asyncio.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


async def earned(till: Till, query: str = "", *, token: str | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token or till.account.token}"}
    async with till.http.get(f"/api/v1/earnings{query}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        view: dict[str, Any] = await answer.json()
        return view


# Pure.


def booked(at: int, sat: int, invoice: str = "i", parcel: str = "p") -> Booked:
    return Booked(at, invoice, parcel, Msat(sat * 1000))


def days(
    *entries: Booked, zone: str = "UTC", before: dict[str, Msat] | None = None
) -> list[tuple[str, str, int, int]]:
    period = parse_period("0", None, zone, now=LATE + 10 * DAY_S)
    return [
        (day.day, day.parcel_id, day.received_sat, day.sales)
        for day in by_day(list(entries), before or {}, period)
    ]


def test_parcels_and_days_are_kept_apart_newest_first() -> None:
    assert days(booked(NOON, 5, "a"), booked(NOON, 7, "b", "q"), booked(NOON + DAY_S, 9, "c")) == [
        ("2026-03-11", "p", 9, 1),
        ("2026-03-10", "p", 5, 1),
        ("2026-03-10", "q", 7, 1),
    ]


def test_a_reversal_is_taken_back_on_its_own_day() -> None:
    assert days(booked(NOON, 5), booked(NOON + DAY_S, -5), booked(NOON + 2 * DAY_S, 5)) == [
        ("2026-03-12", "p", 5, 1),
        ("2026-03-11", "p", -5, -1),
        ("2026-03-10", "p", 5, 1),
    ]


def test_an_amended_booking_is_no_second_sale() -> None:
    assert days(booked(NOON, 5), booked(NOON + 1, 2)) == [("2026-03-10", "p", 7, 1)]


def test_the_operators_fee_is_beside_the_earnings_and_a_sale_of_which_it_leaves_nothing_counts() -> None:
    hosted = [
        Booked(NOON, "a", "p", Msat(45_000), Msat(5_000)),
        Booked(NOON, "b", "p", Msat(0), Msat(7_000)),
        Booked(NOON + DAY_S, "a", "p", Msat(-45_000), Msat(-5_000)),
    ]
    listed = by_day(hosted, {}, parse_period("0", None, None, now=LATE + 10 * DAY_S))
    assert [(day.received_sat, day.fee_sat, day.sales) for day in listed] == [(-45, -5, -1), (45, 12, 2)]


def test_a_sale_from_before_the_period_is_not_counted_again() -> None:
    assert days(booked(NOON, 2), before={"i": Msat(5_000)}) == [("2026-03-10", "p", 2, 0)]
    assert days(booked(NOON, -5), before={"i": Msat(5_000)}) == [("2026-03-10", "p", -5, -1)]


@pytest.mark.parametrize(
    ("zone", "day"),
    [("UTC", "2026-03-10"), ("Europe/Paris", "2026-03-11"), ("America/New_York", "2026-03-10")],
)
def test_the_day_is_that_of_the_time_zone(zone: str, day: str) -> None:
    assert days(booked(LATE, 5), zone=zone) == [(day, "p", 5, 1)]


def test_a_day_of_the_clock_change_has_its_odd_length() -> None:
    period = parse_period("0", None, "Europe/Paris", now=NOON)
    # 2026-03-29 has 23 hours in Paris: from 23:00 UTC the day before to 22:00 UTC.
    assert period.day(1_774_738_800 - 1) == "2026-03-28"
    assert period.day(1_774_738_800) == "2026-03-29"
    assert period.day(1_774_738_800 + 23 * 3_600 - 1) == "2026-03-29"
    assert period.day(1_774_738_800 + 23 * 3_600) == "2026-03-30"


@pytest.mark.parametrize(
    ("since", "until", "zone", "field"),
    [
        ("x", None, None, "since"),
        ("-1", None, None, "since"),
        ("1.5", None, None, "since"),
        ("٣", None, None, "since"),
        ("9" * 30, None, None, "since"),
        (None, "", None, "until"),
        ("5", "5", None, "since"),
        (None, None, "Mars/Olympus", "tz"),
        (None, None, "../../etc/passwd", "tz"),
        (None, None, "/etc/localtime", "tz"),
        (None, None, "Europe", "tz"),
        (None, None, "UTC\x00", "tz"),
    ],
)
def test_nonsense_periods_are_refused_by_field(
    since: str | None, until: str | None, zone: str | None, field: str
) -> None:
    with pytest.raises(PeriodInvalid) as refusal:
        parse_period(since, until, zone, now=NOON)
    assert refusal.value.field == field


def test_the_period_is_thirty_days_by_default_this_second_included() -> None:
    assert parse_period(None, None, None, now=NOON) == Period(
        NOON + 1 - 30 * DAY_S, NOON + 1, parse_period(None, None, "UTC", now=0).zone
    )


# Over HTTP.


async def test_a_settled_sale_is_earned_once_a_pending_one_not_yet(till: Till) -> None:
    assert till.world is not None
    sold = await till.offer(price_sat=5_000)
    await till.paid(sold)
    await till.paid(sold)
    waiting = await till.buy(await till.offer(price_sat=3_000))
    await till.pay(waiting)
    await till.until(waiting, lambda view: view["status"] == "seen", "the payment")
    view = await earned(till)
    assert (view["received_sat"], view["sales"], view["pending_sat"], view["owed_sat"]) == (
        10_000,
        2,
        3_000,
        0,
    )
    assert [(day["parcel_id"], day["received_sat"], day["sales"]) for day in view["days"]] == [
        (sold.parcel_id, 10_000, 2)
    ]
    await till.world.mine()
    await till.until(waiting, lambda view: view["status"] == "settled", "the block")
    view = await earned(till)
    assert (view["received_sat"], view["pending_sat"]) == (13_000, 0)


async def test_a_surplus_is_owed_and_a_tip_is_earned(till: Till) -> None:
    assert till.world is not None
    over = await till.buy(await till.offer(price_sat=5_000))
    tipped = await till.buy(await till.offer(price_sat=5_000))
    await till.pay(over, amount_sat=8_000)
    await till.pay(tipped, amount_sat=5_999)
    await till.world.mine()
    for bought in (over, tipped):
        await till.until(bought, lambda view: view["status"] == "settled", "the block")
    view = await earned(till)
    assert (view["received_sat"], view["owed_sat"]) == (10_999, 3_000)
    assert (await till.invoice(over))["owed_sat"] == 3_000
    assert (await till.invoice(tipped))["owed_sat"] == 0


async def test_a_reorg_takes_the_earnings_back(own_world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(own_world, tmp_path) as till:
        payer = await BitWallet.create(own_world)
        await own_world.mine(3)
        bought = await till.buy(await till.offer(price_sat=5_000))
        await payer.pay([(bought.invoice["address"], 5_000)])
        await own_world.mine()
        await till.until(bought, lambda view: view["status"] == "settled", "the block")
        assert (await earned(till))["received_sat"] == 5_000
        await own_world.reorg(2, keep_transactions=False)
        await till.until(bought, lambda view: bool(view["suspended"]), "the reorg")
        view = await earned(till)
        assert (view["received_sat"], view["sales"]) == (0, 0)


async def test_periods_and_zones_cut_the_same_sales_differently(till: Till) -> None:
    await till.paid(await till.offer(price_sat=5_000))
    await till.server.services.database.write(
        lambda tx: tx.execute(update(transfers).values(created_at=LATE))
    )
    everything = "?since=0&until=4000000000"
    assert (await earned(till, everything))["days"][0]["day"] == "2026-03-10"
    assert (await earned(till, everything + "&tz=Europe/Paris"))["days"][0]["day"] == "2026-03-11"
    assert (await earned(till, f"?since={LATE}&until={LATE + 1}"))["received_sat"] == 5_000
    assert (await earned(till, f"?since={LATE + 1}&until={LATE + 2}"))["received_sat"] == 0
    assert (await earned(till, f"?since={LATE - 5}&until={LATE}"))["received_sat"] == 0


async def test_sellers_see_their_own_sales_only(till: Till) -> None:
    await till.paid(await till.offer(price_sat=5_000))
    other = await till.server.new_seller()
    view = await earned(till, token=other.token)
    assert (view["received_sat"], view["sales"], view["days"]) == (0, 0, [])


async def test_the_spreadsheet_has_the_same_numbers_and_nothing_to_run(till: Till) -> None:
    sold = await till.offer(price_sat=5_000)
    await till.paid(sold)
    headers = {"Authorization": f"Bearer {till.account.token}"}
    async with till.http.get("/api/v1/earnings.csv", headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/csv"
        assert "attachment" in answer.headers["Content-Disposition"]
        lines = list(csv.reader(io.StringIO(await answer.text())))
    assert lines[0] == ["day", "parcel_id", "received_sat", "sales", "fee_sat", "chunks"]
    assert lines[1][1:] == [sold.parcel_id, "5000", "1", "0", "0"]
    assert not any(cell[:1] in "=+@\t\r" for line in lines for cell in line if cell)


async def test_earnings_need_a_sellers_token_and_a_period_that_makes_sense(nodeless: Till) -> None:
    for path in ("/api/v1/earnings", "/api/v1/earnings.csv"):
        assert (await nodeless.status_of(path, {}))[0] == 401
        headers = {"Authorization": f"Bearer {nodeless.account.token}"}
        assert await nodeless.status_of(path + "?tz=Nowhere", headers) == (422, "invalid-value")
        assert (await nodeless.status_of(path + "?from=1", headers))[0] == 400


async def test_the_sellers_list_of_invoices_pages_newest_first(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0)
    ids = []
    for _ in range(5):
        ids.append((await nodeless.buy(sold)).id)
        nodeless.server.clock.advance(1)
    headers = {"Authorization": f"Bearer {nodeless.account.token}"}
    found: list[str] = []
    after = ""
    while True:
        async with nodeless.http.get(f"/api/v1/invoices?limit=2{after}", headers=headers) as answer:
            page = await answer.json()
        found += [item["invoice_id"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == ids[::-1]
    other = {"Authorization": f"Bearer {(await nodeless.server.new_seller()).token}"}
    async with nodeless.http.get(f"/api/v1/invoices?after={ids[0]}", headers=other) as answer:
        assert answer.status == 404
