"""What the dashboard reckons: days, sums, pictures, and what needs attention. Pure."""

import datetime
from typing import Any

import pytest

from bitcache.api.wire_money import EarningsDay
from bitcache.funnel import Funnel, rate_percent
from bitcache.web.charts import HEIGHT, bar_chart
from bitcache.web.dashboard import chart_of, funnel_steps, signed, top_parcels
from bitcache.web.offers_page import parse_sat
from bitcache.web.span import Span, chosen_span
from payments.attention import Attention, attention
from payments.invoice import Flag, Invoice, Mode, Policy, Standing, Status, Term
from payments.money import Sat

DAY_S = 86_400
# 2026-03-10 12:00 UTC.
NOON = 1_773_144_000


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
    return EarningsDay(day=day, parcel_id=parcel, received_sat=sat, fee_sat=0, sales=sales)


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
