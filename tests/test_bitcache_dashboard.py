"""The seller's earnings and offers, as a browser without JavaScript sees them; sales are on a real node."""

import asyncio
import csv
import datetime
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import event, insert, select, update

from bitcache.api import seller_streams
from bitcache.api.wire import EarningsDay
from bitcache.db.tables import offer_views, offers
from bitcache.db.tables import sessions as sessions_table
from bitcache.earnings import Period
from bitcache.funnel import Funnel, funnel, rate_percent
from bitcache.ids import new_id
from bitcache.offers import Changes
from bitcache.views import day_of
from bitcache.web.charts import HEIGHT, bar_chart
from bitcache.web.dashboard import ATTENTION_SHOWN, TONES, chart_of, funnel_steps, signed, top_parcels
from bitcache.web.offers_page import parse_sat
from bitcache.web.session_cookie import COOKIE
from bitcache.web.span import Span, chosen_span
from payments.attention import Attention, attention
from payments.invoice import Flag, Invoice, Mode, Policy, Standing, Status, Term
from payments.money import Sat
from payments.tables import invoices
from payments.tables import transfers as transfers_table
from regtest.node import wait_until
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.seller_browser import SellerBrowser, seller_browser, session_secret
from tests.till import Till, open_nodeless_till, open_till

DAY_S = 86_400
# 2026-03-10 12:00 UTC.
NOON = 1_773_144_000


@pytest_asyncio.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path, price_hold_s=60) as till:
        yield till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(nodeless: Till) -> AsyncIterator[SellerBrowser]:
    async with seller_browser(nodeless) as browser:
        yield browser


# Which days, pure.


def span(**query: str) -> tuple[str, str, str, str]:
    """(first, last, zone, what was wrong)."""
    chosen, wrong = chosen_span({name.rstrip("_"): text for name, text in query.items()}, now=NOON)
    return chosen.first.isoformat(), chosen.last.isoformat(), chosen.zone_name, wrong


def test_the_last_days_end_with_today_in_the_zone() -> None:
    assert span() == ("2026-02-09", "2026-03-10", "UTC", "")
    assert span(days="7", zone="Europe/Paris") == ("2026-03-04", "2026-03-10", "Europe/Paris", "")
    assert span(days="7", zone="Pacific/Kiritimati") == ("2026-03-05", "2026-03-11", "Pacific/Kiritimati", "")


def test_dates_go_before_a_number_of_days() -> None:
    assert span(days="7", from_="2026-01-01", to="2026-01-31") == ("2026-01-01", "2026-01-31", "UTC", "")
    assert span(from_="2026-03-01") == ("2026-03-01", "2026-03-10", "UTC", "")
    assert span(from_="", to="", days="7") == ("2026-03-04", "2026-03-10", "UTC", "")


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ({"zone": "Mars/Olympus"}, "span_zone_wrong"),
        ({"zone": "../../etc/passwd"}, "span_zone_wrong"),
        ({"zone": "UTC\x00"}, "span_zone_wrong"),
        ({"days": "8"}, "span_days_wrong"),
        ({"days": ""}, "span_days_wrong"),
        ({"days": "-7"}, "span_days_wrong"),
        ({"from_": "2026-02-30"}, "span_date_wrong"),
        ({"from_": "20260201"}, "span_date_wrong"),
        ({"from_": "2026-W10-1"}, "span_date_wrong"),
        ({"from_": "٢٠٢٦-٠١-٠١"}, "span_date_wrong"),
        ({"from_": "2009-01-02", "to": "2009-02-01"}, "span_date_wrong"),
        ({"from_": "2026-01-01", "to": "9999-12-31"}, "span_date_wrong"),
        ({"to": "2026-01-01"}, "span_date_wrong"),
        ({"from_": "2026-03-02", "to": "2026-03-01"}, "span_order_wrong"),
        ({"from_": "2015-01-01", "to": "2026-01-01"}, "span_too_long"),
    ],
)
def test_nonsense_gives_words_and_the_default_days(query: dict[str, str], wrong: str) -> None:
    assert span(**query) == ("2026-02-09", "2026-03-10", "UTC", wrong)


def test_days_of_the_clock_change_are_whole_and_the_days_before_as_many() -> None:
    # 2026-03-29 has 23 hours in Paris.
    chosen, _ = chosen_span({"from": "2026-03-29", "to": "2026-03-29", "zone": "Europe/Paris"}, now=NOON)
    assert (chosen.period.since, chosen.period.until - chosen.period.since) == (1_774_738_800, 23 * 3_600)
    assert chosen.with_before.since == chosen.period.since - 24 * 3_600
    week, _ = chosen_span({"from": "2026-03-23", "to": "2026-03-29"}, now=NOON)
    assert week.with_before.since == week.period.since - 7 * DAY_S


def test_a_shown_span_asks_for_itself() -> None:
    for query in (
        {"days": "90", "zone": "Asia/Tokyo"},
        {"from": "2026-01-01", "to": "2026-01-31", "zone": "UTC"},
    ):
        chosen, _ = chosen_span(query, now=NOON)
        asked = dict(pair.split("=") for pair in chosen.query().replace("%2F", "/").split("&"))
        assert chosen_span(asked, now=NOON)[0] == chosen


def test_long_spans_are_shown_by_calendar_week() -> None:
    def days(count: int) -> Span:
        last = datetime.date(2026, 3, 10)
        return Span(last - datetime.timedelta(days=count - 1), last, "UTC", None)

    assert len(days(92).bars()) == 92
    weeks = days(93).bars()
    assert sum(len(of) for _, of in weeks) == 93
    assert all(datetime.date.fromisoformat(label).weekday() == 0 for label, _ in weeks[1:])
    # New Year is within a week: it is not cut in two.
    turn = Span(datetime.date(2025, 12, 1), datetime.date(2026, 3, 31), "UTC", None).bars()
    assert (
        "2025-12-29",
        [f"2025-12-{day}" for day in (29, 30, 31)] + [f"2026-01-0{day}" for day in range(1, 5)],
    ) in turn


# Figures and pictures, pure.


def sold(day: str, sat: int, sales: int = 1, parcel: str = "p") -> EarningsDay:
    return EarningsDay(day=day, parcel_id=parcel, received_sat=sat, sales=sales)


def test_bars_fill_the_height_and_reversals_hang_below() -> None:
    chart = bar_chart([("a", 300, 1), ("b", 0, 0), ("c", -100, -1), ("d", 1, 1)])
    assert chart.zero_y == 75
    assert [(bar.y, bar.height, bar.taken_back) for bar in chart.bars] == [
        (0, 75, False),
        (75, 0, False),
        (75, 25, True),
        (74, 1, False),
    ]
    empty = bar_chart([("a", 0, 0)])
    assert (empty.zero_y, empty.amount_max, empty.bars[0].height) == (HEIGHT, 0, 0)
    assert bar_chart([]).width == 0


def test_days_without_sales_have_their_place() -> None:
    chosen = Span(datetime.date(2026, 3, 1), datetime.date(2026, 3, 3), "UTC", None)
    chart = chart_of(
        [sold("2026-03-03", 5), sold("2026-03-03", 7, parcel="q"), sold("2026-03-01", 2)], chosen
    )
    assert [(bar.label, bar.amount, bar.sales) for bar in chart.bars] == [
        ("2026-03-01", 2, 1),
        ("2026-03-02", 0, 0),
        ("2026-03-03", 12, 2),
    ]


def test_the_top_is_by_money_over_all_days() -> None:
    days = [
        sold("2026-03-03", 5, parcel="a"),
        sold("2026-03-02", 7, parcel="b"),
        sold("2026-03-01", 6, parcel="a"),
    ]
    assert [(one.parcel_id, one.received_sat, one.sales) for one in top_parcels(days)] == [
        ("a", 11, 2),
        ("b", 7, 1),
    ]


@pytest.mark.parametrize(
    ("part", "whole", "percent"),
    [(1, 3, 33), (0, 5, 0), (5, 5, 100), (0, 0, None), (3, 0, None), (6, 5, None)],
)
def test_rates_say_nothing_rather_than_nonsense(part: int, whole: int, percent: int | None) -> None:
    assert rate_percent(part, whole) == percent


def test_funnel_bars_are_of_the_longest_step() -> None:
    steps = funnel_steps(Funnel(views=5, invoices=10, paid=4, downloaded=1))
    assert [(step.bar_percent, step.rate) for step in steps] == [(50, None), (100, None), (40, 40), (10, 25)]
    assert [step.bar_percent for step in funnel_steps(Funnel(0, 0, 0, 0))] == [0, 0, 0, 0]


def test_changes_are_signed_with_signs_not_hyphens() -> None:
    assert [signed(number) for number in (3, -1_234, 0)] == ["+3", "−1\u202f234", "±0"]


@pytest.mark.parametrize(
    ("text", "amount_sat"),
    [
        ("5000", 5_000),
        ("21 000", 21_000),
        ("21\u202f000", 21_000),
        ("21'000", 21_000),
        ("0", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("5,000", None),
        ("٣", None),
        ("²", None),
        ("1e3", None),
        ("9" * 17, None),
    ],
)
def test_prices_are_whole_sats_as_people_type_them(text: str, amount_sat: int | None) -> None:
    assert parse_sat(text) == amount_sat


# What needs attention, pure.

OFFERED = Invoice("i", "BC", 0, "s", Mode.DIRECT, Policy(), (Term(Sat(5_000), 100),))


def needs(*, released: bool = False, revoked: bool = False, **facts: Any) -> Attention | None:
    usual: dict[str, Any] = {
        "status": Status.OPEN,
        "flags": frozenset(),
        "received_sat": Sat(0),
        "confirmed_sat": Sat(0),
        "price_sat": Sat(5_000),
        "due_sat": Sat(5_000),
        "surplus_sat": Sat(0),
        "covered": False,
        "covered_now": False,
        "depth": -1,
        "valid_until": 100,
    }
    invoice = Invoice("i", "BC", 0, "s", Mode.DIRECT, Policy(), OFFERED.terms, revoked=revoked)
    return attention(invoice, Standing(**{**usual, **facts}), released=released)


PAID: dict[str, Any] = {"covered": True, "covered_now": True, "due_sat": 0, "received_sat": 5_000}


def test_only_what_the_seller_can_see_to_needs_attention() -> None:
    partial, late = frozenset({Flag.PARTIAL}), frozenset({Flag.PARTIAL, Flag.LATE})
    assert needs() is None
    assert needs(status=Status.EXPIRED) is None
    assert needs(status=Status.SEEN, flags=partial, received_sat=2_000) is None  # the price still holds
    assert needs(status=Status.EXPIRED, flags=partial, received_sat=999) is None  # a tip
    assert needs(status=Status.EXPIRED, flags=partial, received_sat=1_000) is Attention.UNDERPAID
    assert needs(status=Status.EXPIRED, flags=late, received_sat=5_000) is Attention.LATE
    # Late, but settled at a new price.
    assert needs(status=Status.SETTLED, depth=1, released=True, flags=frozenset({Flag.LATE}), **PAID) is None
    over = {**PAID, "flags": frozenset({Flag.OVER}), "surplus_sat": 3_000}
    assert needs(status=Status.SETTLED, depth=1, released=True, **over) is Attention.OVERPAID
    assert needs(status=Status.SEEN, depth=0, **over) is None  # nothing is final yet
    assert needs(status=Status.EXPIRED, released=True) is Attention.SUSPENDED
    reorged = frozenset({Flag.REORGED})
    assert needs(status=Status.SEEN, depth=0, released=True, flags=reorged, **PAID) is Attention.SUSPENDED
    assert needs(revoked=True) is None
    assert needs(revoked=True, status=Status.SETTLED, depth=1, released=True, **PAID) is Attention.TAKEN_DOWN


# The funnel, from real sales.


async def passed(till: Till, seller_id: str | None = None, *, since: int = 0) -> tuple[int, int, int, int]:
    period = Period(since, till.server.clock() + DAY_S, datetime.UTC)
    found = await till.server.services.database.read(
        lambda tx: funnel(tx, seller_id or till.account.account_id, period)
    )
    return found.views, found.invoices, found.paid, found.downloaded


async def test_the_funnel_counts_real_sales(till: Till) -> None:
    assert till.world is not None
    sold_parcel = await till.offer(price_sat=5_000, sizes=(2_000,))
    for _ in range(5):
        async with till.http.get(f"/d/{sold_parcel.offer_id}") as answer:
            assert answer.status == 200
    bought, unconfirmed = await till.buy(sold_parcel), await till.buy(sold_parcel)
    await till.buy(sold_parcel)  # never paid
    await till.pay(bought)
    await till.world.mine()
    await till.until(bought, lambda view: bool(view["key_allowed"]), "the key")
    await till.pay(unconfirmed)
    await till.until(unconfirmed, lambda view: view["status"] == "seen", "the payment")
    await till.server.services.views.poll_once()
    assert await passed(till) == (5, 3, 1, 0)
    async with till.http.get(sold_parcel.content, headers=await till.token(bought)) as answer:
        assert answer.status == 200
        await answer.read()

    async def downloaded() -> bool:
        # The server counts what it sent after the buyer has it.
        await till.server.services.grants.flush()
        return await passed(till) == (5, 3, 1, 1)

    await wait_until(downloaded, "the download to be counted")
    other = await till.server.new_seller()
    assert await passed(till, other.account_id) == (0, 0, 0, 0)
    # Of another period, nothing; views are of whole UTC days.
    assert await passed(till, since=till.server.clock() + 2 * DAY_S - 1) == (0, 0, 0, 0)


async def test_the_page_shows_sums_with_the_days_before(till: Till) -> None:
    sold_parcel = await till.offer(price_sat=5_000)
    now_sold, before = await till.paid(sold_parcel), await till.paid(sold_parcel)
    at = till.server.clock() - 10 * DAY_S
    await till.server.services.database.write(
        lambda tx: tx.execute(
            update(transfers_table).where(transfers_table.c.reference == before.id).values(created_at=at)
        )
    )
    waiting = await till.buy(sold_parcel)
    await till.pay(waiting)
    await till.until(waiting, lambda view: view["status"] == "seen", "the payment")
    async with seller_browser(till) as browser:
        await browser.get("/dashboard?days=7")
        figures = browser.part("figures")
        assert "Received 5\u202f000 sat 0.00005000 BTC ±0, 5\u202f000 before" in figures
        assert "Downloads sold 1 ±0, 1 before" in figures
        assert "On its way 5\u202f000 sat" in figures
        assert f"{sold_parcel.parcel_id[:8]} 5\u202f000 sat 1 sold" in browser.part("top")
        await browser.get("/dashboard?days=30")
        assert "10\u202f000 sat 0.00010000 BTC +10\u202f000, 0 before" in browser.part("figures")
        payments = browser.part("payments")
        for words in (now_sold.invoice["reference"], waiting.invoice["reference"], "Paid", "Seen"):
            assert words in payments
        txid = (await till.invoice(now_sold))["outputs"][0]["txid"]
        assert f'title="{txid}"' in browser.text
        assert f"{txid[:8]}…{txid[-8:]}" in payments
        # The sheet is of the same days.
        await browser.get("/dashboard/earnings.csv?days=7")
        assert browser.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert "attachment" in browser.headers["Content-Disposition"]
        lines = list(csv.reader(io.StringIO(browser.text)))
        assert [line[1:] for line in lines[1:]] == [[sold_parcel.parcel_id, "5000", "1"]]
    other = await till.server.new_seller()
    async with seller_browser(till, other.account_id) as browser:
        await browser.get("/dashboard")
        for words in (sold_parcel.parcel_id[:8], now_sold.invoice["reference"], "5\u202f000 sat"):
            assert words not in browser.words
        await browser.get(f"/dashboard?after={now_sold.id}")
        assert browser.status == 200
        assert before.invoice["reference"] not in browser.words
        await browser.get("/dashboard/earnings.csv")
        assert browser.text.split() == ["day,parcel_id,received_sat,sales"]


async def pass_watched(till: Till, seconds: int) -> None:
    """Let time pass under the watcher's eyes: a leap would count as an outage, which moves deadlines."""
    for _ in range(0, seconds, 10):
        till.server.clock.advance(10)
        await till.server.services.watcher.poll_once()


async def test_payments_that_went_wrong_need_attention_until_they_are_seen_to(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path, price_hold_s=60) as till, seller_browser(till) as browser:
        await _went_wrong(own_world, till, browser)


async def _went_wrong(world: RegtestWorld, till: Till, browser: SellerBrowser) -> None:
    sold_parcel = await till.offer(price_sat=5_000)
    under, late, over = [await till.buy(sold_parcel) for _ in range(3)]
    await till.pay(under, amount_sat=2_000)
    await till.pay(over, amount_sat=8_000)
    for bought in (under, over):
        await till.until(bought, lambda view: view["received_sat"] > 0, "the payment")
    await world.mine()
    await till.until(over, lambda view: bool(view["key_allowed"]), "the key")
    await till.server.services.database.write(
        lambda tx: till.server.services.offers.change(
            tx, till.account.account_id, sold_parcel.offer_id, Changes(close=True), now=till.server.clock()
        )
    )
    await pass_watched(till, 80)
    # The node's clock says when a payment came.
    await world.server.rpc("setmocktime", till.server.clock())
    await till.pay(late)
    await till.until(late, lambda view: view["received_sat"] > 0, "the late payment")
    # Many newer ones do not push them out.
    free = await till.offer(price_sat=0)
    for _ in range(25):
        await till.buy(free)
    await browser.get("/dashboard")
    attention_words = browser.part("attention")
    assert attention_words.startswith("Needs attention 3")
    assert f"Pay 3\u202f000 sat back to who names the number {over.invoice['reference']}" in attention_words
    assert "Only 2\u202f000 of 5\u202f000 sat came before the price expired" in attention_words
    assert "5\u202f000 sat came after the price had expired" in attention_words
    assert over.invoice["reference"] not in browser.part("payments")
    # Another seller can see to nothing of it.
    other = await till.server.new_seller()
    async with seller_browser(till, other.account_id) as rival:
        await rival.get("/dashboard")
        assert "Needs attention 1" in rival.part("attention")  # no wallet
        await rival.send(f"/dashboard/payments/{over.id}/done")
        assert rival.status == 404
    await browser.send(f"/dashboard/payments/{over.id}/done?days=7")
    assert browser.status == 303
    assert "days=7" in browser.headers["Location"]
    await browser.get("/dashboard")
    assert browser.part("attention").startswith("Needs attention 2")
    assert over.invoice["reference"] not in browser.part("attention")
    await browser.get("/dashboard?lang=fr")
    assert "Seuls 2\u202f000 des 5\u202f000 sat" in browser.part("attention")


async def test_a_reorg_shows_until_the_payment_is_back(own_world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(own_world, tmp_path) as till, seller_browser(till) as browser:
        payer = await BitWallet.create(own_world)
        await own_world.mine(3)
        bought = await till.buy(await till.offer(price_sat=5_000))
        payment = await payer.pay([(bought.invoice["address"], 5_000)])
        await own_world.mine()
        await till.until(bought, lambda view: view["status"] == "settled", "the block")
        await browser.get("/dashboard")
        assert "Nothing." in browser.part("attention")
        await own_world.reorg(2, keep_transactions=False)
        await till.until(bought, lambda view: bool(view["suspended"]), "the reorg")
        await browser.get("/dashboard")
        assert "The chain took this payment back" in browser.part("attention")
        assert "Suspended" in browser.part("payments")
        await browser.send(f"/dashboard/payments/{bought.id}/done")
        await browser.get("/dashboard")
        assert "Nothing." in browser.part("attention")
        await payer.send(payment)
        await own_world.mempool_wait(payment.txid)
        await own_world.mine()
        await till.until(bought, lambda view: bool(view["key_allowed"]), "the payment to be back")
        # What was seen to is forgotten with it: another reorg would be shown again.
        row = await till.server.services.database.read(
            lambda tx: tx.execute(select(invoices.c.attention, invoices.c.attended))
        )
        assert row.one() == (None, None)


# The page on a server without a node.


async def test_the_node_and_the_wallet_are_named_with_what_to_do(
    nodeless: Till, browser: SellerBrowser
) -> None:
    await browser.get("/dashboard")
    words = browser.part("attention")
    assert "cannot judge payments now" in words
    assert "bitcache doctor" in words
    assert "No payout wallet is set" in words
    assert 'href="/account?lang=en"' in browser.text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("zone=Mars/Olympus", "no such time zone"),
        # Decoded into a header, it would end the connection without an answer.
        ("zone=Mars%0D%0ASet-Cookie:%20x=y", "no such time zone"),
        ("from=2026-02-30", "Dates are written like"),
        ("from=2026-03-02&to=2026-03-01", "first day is after the last"),
        ("from=2010-01-01", "at most five years"),
        ("days=1", "Choose 7, 30, 90 or 365 days"),
    ],
)
async def test_bad_days_are_words_on_the_page_and_no_sheet(
    browser: SellerBrowser, query: str, words: str
) -> None:
    await browser.get(f"/dashboard?{query}")
    assert browser.status == 200
    assert words in browser.part("span")
    assert "Received 0 sat" in browser.part("figures")
    await browser.get(f"/dashboard/earnings.csv?{query}")
    assert (browser.status, browser.headers["Location"].partition("?")[0]) == (303, "/dashboard")
    await browser.get(browser.headers["Location"])
    assert words in browser.part("span")


async def test_the_form_takes_dates_and_the_page_names_them(browser: SellerBrowser) -> None:
    await browser.get("/dashboard?lang=en&days=30&from=2026-01-01&to=2026-12-31&zone=Europe/Paris")
    assert "2026-01-01 to 2026-12-31 Europe/Paris" in browser.part("span")
    assert "Week by week" in browser.part("chart")
    for path in re.findall(r'href="(\?[^"]*)"', browser.text):
        await browser.get("/dashboard" + path.replace("&amp;", "&"))
        assert browser.status == 200
        assert 'role="alert"' not in browser.text


async def test_payments_page_back_to_the_first(nodeless: Till, browser: SellerBrowser) -> None:
    free = await nodeless.offer(price_sat=0)
    references = []
    for _ in range(45):
        references.append((await nodeless.buy(free)).invoice["reference"])
    seen: list[str] = []
    path = "/dashboard"
    while path:
        await browser.get(path)
        listed = re.findall(r"BC-[A-Z0-9]{4}-[A-Z0-9]{4}", browser.part("payments"))
        seen += dict.fromkeys(listed)
        older = re.search(r'id="older" href="([^"]*)"', browser.text)
        path = "/dashboard" + older[1].replace("&amp;", "&").partition("#")[0] if older else ""
    assert sorted(seen) == sorted(references)
    assert len(seen) == 45
    await browser.get("/dashboard?after=nonsense")
    assert (browser.status, seen[0] in browser.part("payments")) == (200, True)


async def test_a_page_costs_a_fixed_number_of_queries(nodeless: Till, browser: SellerBrowser) -> None:
    free = await nodeless.offer(price_sat=0)
    reader = nodeless.server.services.database._reader.sync_engine
    statements: list[str] = []
    event.listen(reader, "before_cursor_execute", lambda _c, _u, statement, *_: statements.append(statement))

    async def cost(path: str) -> int:
        statements.clear()
        await browser.get(path)
        assert browser.status == 200
        return len([statement for statement in statements if "FROM events" not in statement])

    await nodeless.buy(free)
    few = await cost("/dashboard"), await cost("/dashboard/offers")
    for _ in range(19):
        await nodeless.buy(free)
        await nodeless.offer()
    assert (await cost("/dashboard"), await cost("/dashboard/offers")) == few


async def test_attention_is_bounded_and_says_how_much_more_there_is(
    nodeless: Till, browser: SellerBrowser
) -> None:
    free = await nodeless.offer(price_sat=0)
    for _ in range(ATTENTION_SHOWN + 3):
        await nodeless.buy(free)
    await nodeless.server.services.database.write(
        lambda tx: tx.execute(update(invoices).values(attention="overpaid"))
    )
    await browser.get("/dashboard")
    words = browser.part("attention")
    assert words.startswith(f"Needs attention {ATTENTION_SHOWN + 3 + 2}")  # no node and no wallet either
    assert words.count("The buyer paid") == ATTENTION_SHOWN
    assert "And 3 older ones" in words


async def test_views_of_the_page_are_those_of_its_days(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcel = await nodeless.offer()
    now = nodeless.server.clock()
    for days_ago, views in ((0, 3), (6, 4), (7, 50)):
        await nodeless.server.services.database.write(
            lambda tx, at=now - days_ago * DAY_S, views=views: tx.execute(  # type: ignore[misc]
                insert(offer_views).values(offer_id=sold_parcel.offer_id, day=day_of(at), views=views)
            )
        )
    await browser.get("/dashboard?days=7")
    assert "Page views 7 Asked to pay 0 0 %" in browser.part("funnel")


def test_every_state_has_a_tone() -> None:
    assert {kind.value for kind in Attention} <= TONES.keys()


# Live.


async def next_event(stream: aiohttp.ClientResponse) -> str:
    async with asyncio.timeout(20):
        while True:
            line = (await stream.content.readline()).decode()
            if line.startswith("event:") or not line:
                return line.strip()


async def test_pages_hear_of_their_own_sellers_invoices(nodeless: Till) -> None:
    free = await nodeless.offer(price_sat=0)
    other = await nodeless.server.new_seller()
    cookies = [{COOKIE: await session_secret(nodeless, id_)} for id_ in (None, other.account_id)]
    async with (
        nodeless.http.get("/dashboard/events", cookies=cookies[0]) as own,
        nodeless.http.get("/dashboard/events", cookies=cookies[1]) as others,
    ):
        assert own.headers["Content-Type"].startswith("text/event-stream")
        await own.content.readline()
        await others.content.readline()
        await nodeless.buy(free)
        assert await next_event(own) == "event: changed"
        # The other one's own wallet is the first that it hears of.
        services = nodeless.server.services
        waiting = asyncio.ensure_future(next_event(others))
        await nodeless.buy(free)
        assert await next_event(own) == "event: changed"
        assert not waiting.done()
        services.stopping.set()
        assert await waiting == ""


async def test_streams_need_a_session_and_end_with_it(
    nodeless: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodeless.http.get("/dashboard/events") as answer:
        assert answer.status == 401
    monkeypatch.setattr(seller_streams, "PING_INTERVAL_S", 0.05)
    secret = await session_secret(nodeless)
    async with nodeless.http.get("/dashboard/events", cookies={COOKIE: secret}) as stream:
        for _ in range(6):
            assert await stream.content.readline() in (b": ping\n", b"\n")
        await nodeless.server.services.database.write(
            lambda tx: tx.execute(update(sessions_table).values(ended_at=1))
        )
        async with asyncio.timeout(20):
            assert (await stream.content.read()).replace(b": ping\n\n", b"") == b""


async def test_one_seller_cannot_take_all_streams(nodeless: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seller_streams, "STREAMS_PER_SELLER_MAX", 1)
    cookies = {COOKIE: await session_secret(nodeless)}
    other = await nodeless.server.new_seller()
    async with nodeless.http.get("/dashboard/events", cookies=cookies) as first:
        await first.content.readline()
        async with nodeless.http.get("/dashboard/events", cookies=cookies) as second:
            assert second.status == 429
        theirs = {COOKIE: await session_secret(nodeless, other.account_id)}
        async with nodeless.http.get("/dashboard/events", cookies=theirs) as third:
            assert third.status == 200


# Parcels and offers.


async def price_of(till: Till, offer_id: str) -> int:
    found = await till.server.services.database.read(
        lambda tx: tx.scalar(select(offers.c.price_msat).where(offers.c.id == offer_id))
    )
    return int(found or 0) // 1000


async def test_prices_are_edited_and_refusals_are_words_in_place(
    nodeless: Till, browser: SellerBrowser
) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000, max_downloads=10)
    place = f"/dashboard/offers/{sold_parcel.offer_id}/price"
    await browser.get("/dashboard/offers")
    assert f"{sold_parcel.parcel_id[:8]} 1.0 MB, 1 file(s)" in browser.words
    assert "5\u202f000 sat Open 0 of 10 sold 1 confirmation(s)" in browser.words
    for typed, words in (
        ("999", "The least price here is 1\u202f000 sat"),
        ("2100000000000001", "all the bitcoins there are"),
        ("ten", "whole number of sat"),
        ("<b>", "whole number of sat"),
        ("", "whole number of sat"),
    ):
        await browser.send(place, price_sat=typed)
        assert browser.status == 422
        assert words in browser.words
        assert "<b>" not in browser.text
        assert await price_of(nodeless, sold_parcel.offer_id) == 5_000
    await browser.send(place, price_sat="21 000")
    assert browser.status == 303
    assert await price_of(nodeless, sold_parcel.offer_id) == 21_000
    await browser.get(browser.headers["Location"])
    assert "The price is changed" in browser.words
    assert "21\u202f000 sat Open" in browser.words


async def test_unconfirmed_offers_keep_to_the_servers_cap(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000, key_at=0, bytes_at=0)
    await browser.get("/dashboard/offers")
    await browser.send(f"/dashboard/offers/{sold_parcel.offer_id}/price", price_sat="10001")
    assert (browser.status, "Above 10\u202f000 sat" in browser.words) == (422, True)
    await browser.send(
        f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", price_sat="10001", confirmations="0"
    )
    assert (browser.status, "Above 10\u202f000 sat" in browser.words) == (422, True)
    await browser.send(
        f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", price_sat="7000", confirmations="99"
    )
    assert browser.status == 422
    await browser.send(
        f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", price_sat="7000", confirmations="3"
    )
    assert browser.status == 303
    await browser.get("/dashboard/offers")
    assert "7\u202f000 sat Open 0 sold 3 confirmation(s)" in browser.words


async def test_a_closed_offer_and_a_deleted_parcel_sell_no_more(
    nodeless: Till, browser: SellerBrowser
) -> None:
    sold_parcel = await nodeless.offer(price_sat=0, sizes=(2_000,))
    bought = await nodeless.buy(sold_parcel)
    await browser.get("/dashboard/offers")
    await browser.send(f"/dashboard/offers/{sold_parcel.offer_id}/close")
    assert browser.status == 303
    await browser.get(browser.headers["Location"])
    assert "The offer is closed." in browser.words
    assert "Free Closed 1 sold" in browser.words
    await browser.send(f"/dashboard/offers/{sold_parcel.offer_id}/price", price_sat="2000")
    assert (browser.status, "closed for good" in browser.words) == (422, True)
    await browser.send(f"/dashboard/parcels/{sold_parcel.parcel_id}/delete")
    await browser.get(browser.headers["Location"])
    assert "The parcel is deleted." in browser.words
    assert sold_parcel.parcel_id[:8] not in browser.words
    async with nodeless.ask(sold_parcel, bytes(32)) as answer:
        assert answer.status == 410
    # Who bought it keeps the right to it.
    async with nodeless.http.get(sold_parcel.content, headers=await nodeless.token(bought)) as answer:
        assert (answer.status, await answer.read()) == (200, sold_parcel.blobs[sold_parcel.file_id])


async def test_nobody_touches_what_belongs_to_another(nodeless: Till) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000)
    other = await nodeless.server.new_seller()
    async with seller_browser(nodeless, other.account_id) as rival:
        await rival.get("/dashboard/offers")
        assert sold_parcel.parcel_id[:8] not in rival.text
        for action, fields in (
            (f"/dashboard/offers/{sold_parcel.offer_id}/price", {"price_sat": "2000"}),
            (f"/dashboard/offers/{sold_parcel.offer_id}/close", {}),
            (f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", {"price_sat": "2000"}),
            (f"/dashboard/parcels/{sold_parcel.parcel_id}/delete", {}),
            (f"/dashboard/offers/{new_id()}/close", {}),
        ):
            await rival.get("/dashboard/offers")
            await rival.send(action, **fields)
            assert rival.status == 404, action
        await rival.get(f"/dashboard/offers?after={sold_parcel.parcel_id}")
        assert rival.status == 404
    assert await price_of(nodeless, sold_parcel.offer_id) == 5_000
    async with nodeless.http.get(f"/api/v1/offers/{sold_parcel.offer_id}") as answer:
        assert (await answer.json())["state"] == "open"


async def test_forms_of_other_sites_change_nothing(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000)
    place = f"/dashboard/offers/{sold_parcel.offer_id}/price"
    async with nodeless.http.post(
        place, data={"price_sat": "2000"}, cookies={COOKIE: await session_secret(nodeless)}
    ) as answer:
        assert answer.status == 403
    async with nodeless.http.post(place, data={"price_sat": "2000"}) as answer:
        assert answer.status == 401
    assert await price_of(nodeless, sold_parcel.offer_id) == 5_000


async def test_parcels_page_newest_first(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcels = []
    for _ in range(23):
        sold_parcels.append((await nodeless.offer()).parcel_id)
        nodeless.server.clock.advance(1)
    await browser.get("/dashboard/offers")
    first = re.findall(r'<article class="parcel" id="at-([a-z2-7]{26})"', browser.text)
    assert first == sold_parcels[:2:-1]
    older = re.search(r'href="([^"]*after=[^"]*)">Older', browser.text)
    assert older is not None
    await browser.get(older[1].replace("&amp;", "&"))
    assert re.findall(r'<article class="parcel" id="at-([a-z2-7]{26})"', browser.text) == sold_parcels[2::-1]
    # A form comes back to the page on which it was.
    action = re.search(rf'action="([^"]*/parcels/{sold_parcels[0]}/offer[^"]*)"', browser.text)
    assert action is not None
    await browser.send(action[1].replace("&amp;", "&"), price_sat="3000")
    assert f"after={sold_parcels[3]}" in browser.headers["Location"]
