"""The seller's page: what was earned, from looking to downloading, and what needs attention.

    GET  /dashboard?days=30&zone=Europe/Paris      or from=2026-01-01&to=2026-01-31; after= pages the payments
    GET  /dashboard/earnings.csv                   the same days
    GET  /dashboard/events                         tells the open page to read itself again
    POST /dashboard/payments/{invoice_id}/done     what needed attention was seen to

Every figure is read in one snapshot, in a fixed number of queries. Titles are the browser's: the server has
none.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiohttp import web

from bitcache import accounts
from bitcache.accounts import Seller
from bitcache.api.routing import Call, Route
from bitcache.api.wire_money import EarningsDay
from bitcache.earnings import days_of, earnings, earnings_csv, owed_of, pending_sat, unassigned_sat
from bitcache.funnel import Funnel, funnel, rate_percent
from bitcache.metered_earnings import in_channels_msat
from bitcache.node_state import node_state
from bitcache.payout_wallet import GAP_LIMIT_HEADROOM, is_gap_near, wallet
from bitcache.seller_payments import SellerPayment, attend, needing_attention, payments_page
from bitcache.services import Services
from bitcache.web.charts import Chart, bar_chart
from bitcache.web.render import sat_text
from bitcache.web.seller_visit import seller_route
from bitcache.web.session_cookie import signed_in
from bitcache.web.sign_in import SELLER_FORM
from bitcache.web.span import LENGTHS, Span, chosen_span
from bitcache.web.visit import Visit, see_other
from payments import books, ledger
from payments.money import sat_rounded_down
from payments.ports import Transaction

PAGE = "/dashboard"
PAYMENTS_SHOWN = 20
ATTENTION_SHOWN = 50
TOP_SHOWN = 10
TONES = {
    **dict.fromkeys(("paid", "free"), "ok"),
    **dict.fromkeys(("waiting", "seen", "confirming"), "info"),
    **dict.fromkeys(
        ("partial", "overpaid", "underpaid", "late", "missing", "replaced", "taken_down"), "warn"
    ),
    "suspended": "bad",
    **dict.fromkeys(("expired", "cancelled"), ""),
}
"""The colour of a payment's state, as a class of the style sheet."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What settled within a span."""

    received_sat: int
    fee_sat: int
    """The operator's, of hosted sales; not part of what was received."""
    sales: int
    """Of the whole."""
    chunks: int
    """Sold per chunk, in channels whose close counts since then."""


@dataclass(frozen=True, slots=True)
class TopParcel:
    parcel_id: str
    received_sat: int
    sales: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the funnel."""

    name: str
    count: int
    bar_percent: int
    """Of the longest bar."""
    rate: int | None
    """How many in a hundred came here from the step before."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything the page shows, of one moment."""

    days: list[EarningsDay]
    """Of the span and of as many days before it."""
    pending_sat: int
    in_channels_sat: int
    owed_sat: int
    held_sat: int
    """By the operator, for the seller."""
    passed: Funnel
    attention: list[SellerPayment]
    attention_count: int
    notices: list[tuple[str, dict[str, object]]]
    """(key of the words, their fields) of what concerns no single payment."""
    payments: list[SellerPayment]

    @property
    def to_see_to(self) -> int:
        return self.attention_count + len(self.notices)


async def dashboard_page(visit: Visit, seller: Seller) -> web.Response:
    span, wrong = chosen_span(visit.call.http.query, now=visit.now())
    after = visit.after()
    read = await visit.services.database.read(
        lambda tx: _overview(tx, visit.services, seller.account_id, span, after, visit.now())
    )
    shown, before = _split(read.days, span)
    now_sum, before_sum = _sum(shown), _sum(before)
    listed = read.payments[:PAYMENTS_SHOWN]
    more = len(read.payments) > PAYMENTS_SHOWN
    return visit.page(
        "dashboard.html",
        {
            "place": PAGE,
            "seller_name": seller.name,
            "span": span,
            "lengths": LENGTHS,
            "wrong": wrong,
            "now_sum": now_sum,
            "before_sum": before_sum,
            "changes": {
                "received_sat": signed(now_sum.received_sat - before_sum.received_sat),
                "sales": signed(now_sum.sales - before_sum.sales),
            },
            "tones": TONES,
            "read": read,
            "steps": funnel_steps(read.passed),
            "chart": chart_of(shown, span),
            "top": top_parcels(shown),
            "payments": listed,
            "after": after,
            "older": listed[-1].id if more else None,
        },
        form=SELLER_FORM,
        script_words=("js_dash_",),
    )


async def earnings_sheet(visit: Visit, seller: Seller) -> web.Response:
    span, wrong = chosen_span(visit.call.http.query, now=visit.now())
    if wrong:
        # The page says what is wrong with the dates. As it came: decoded, it may hold a line break.
        return see_other(f"{PAGE}?{visit.call.http.rel_url.raw_query_string}")
    view = await visit.services.database.read(lambda tx: earnings(tx, seller.account_id, span.period))
    return web.Response(
        text=earnings_csv(view),
        content_type="text/csv",
        charset="utf-8",
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": f'attachment; filename="earnings_{span.first}_{span.last}.csv"',
        },
    )


async def attention_done(visit: Visit, seller: Seller) -> web.Response:
    await visit.form(SELLER_FORM)
    invoice_id = visit.call.path("invoice_id")
    await visit.services.database.write(lambda tx: attend(tx, seller.account_id, invoice_id))
    span, _ = chosen_span(visit.call.http.query, now=visit.now())
    return see_other(f"{PAGE}?{span.query(lang=visit.words.language)}#attention")


async def dashboard_events(call: Call) -> web.StreamResponse:
    services, request = call.services, call.http

    async def seller_now() -> Seller | None:
        return await signed_in(request, services)

    seller = await seller_now()
    if seller is None:
        return web.Response(status=401)
    account_id = seller.account_id

    async def still_signed_in() -> bool:
        present = await seller_now()
        return present is not None and present.account_id == account_id

    return await services.seller_streams.serve(request, account_id, still_signed_in)


async def _overview(
    tx: Transaction, services: Services, seller_id: str, span: Span, after: str | None, now: int
) -> Overview:
    attention, attention_count = await needing_attention(tx, seller_id, limit=ATTENTION_SHOWN)
    return Overview(
        days=await days_of(tx, seller_id, span.with_before),
        pending_sat=await pending_sat(tx, seller_id),
        in_channels_sat=sat_rounded_down(await in_channels_msat(tx, seller_id)),
        owed_sat=(await owed_of(tx, seller_id)).sum_sat,
        held_sat=sat_rounded_down(await books.balance(tx, ledger.seller(seller_id))),
        passed=await funnel(tx, seller_id, span.period),
        attention=attention,
        attention_count=attention_count,
        notices=await _notices(tx, services, seller_id, now),
        payments=await payments_page(tx, seller_id, after=after, limit=PAYMENTS_SHOWN + 1),
    )


async def _notices(
    tx: Transaction, services: Services, seller_id: str, now: int
) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    if not (await node_state(tx, now)).online:
        found.append(("n_offline", {}))
    current = await wallet(tx, seller_id, now=now)
    if current is None:
        if (await accounts.load(tx, seller_id)).settlement == "hosted":
            return found
        return [*found, ("n_no_wallet", {})]
    usage = await services.descriptors.usage(tx, current.descriptor_id)
    if is_gap_near(usage.unused_streak, usage.gap_limit):
        limit = usage.unused_streak + GAP_LIMIT_HEADROOM
        found.append(("n_gap", {"count": usage.unused_streak, "limit": limit}))
    lost_sat = await unassigned_sat(tx, seller_id)
    if lost_sat:
        found.append(("n_unassigned", {"amount": sat_text(lost_sat)}))
    return found


def signed(difference: int) -> str:
    """+3, \N{MINUS SIGN}3, \N{PLUS-MINUS SIGN}0. Pure."""
    sign = "+" if difference > 0 else "\N{MINUS SIGN}" if difference < 0 else "\N{PLUS-MINUS SIGN}"
    return sign + sat_text(abs(difference))


def _split(days: Iterable[EarningsDay], span: Span) -> tuple[list[EarningsDay], list[EarningsDay]]:
    """(those of the span, those before it)."""
    first = span.first.isoformat()
    shown: list[EarningsDay] = []
    before: list[EarningsDay] = []
    for day in days:
        (shown if day.day >= first else before).append(day)
    return shown, before


def _sum(days: Sequence[EarningsDay]) -> Sum:
    return Sum(
        received_sat=sum(day.received_sat for day in days),
        fee_sat=sum(day.fee_sat for day in days),
        sales=sum(day.sales for day in days),
        chunks=sum(day.chunks for day in days),
    )


def chart_of(days: Iterable[EarningsDay], span: Span) -> Chart:
    """A bar for each day or week of the span, those without sales too. Pure."""
    received, sales = Counter[str](), Counter[str]()
    for day in days:
        received[day.day] += day.received_sat
        sales[day.day] += day.sales
    return bar_chart(
        (label, sum(received[day] for day in of), sum(sales[day] for day in of)) for label, of in span.bars()
    )


def top_parcels(days: Iterable[EarningsDay]) -> list[TopParcel]:
    """The parcels that earned most, the first one first. Pure."""
    received, sales, chunks = Counter[str](), Counter[str](), Counter[str]()
    for day in days:
        received[day.parcel_id] += day.received_sat
        sales[day.parcel_id] += day.sales
        chunks[day.parcel_id] += day.chunks
    most_first = sorted(received.items(), key=lambda item: (-item[1], item[0]))[:TOP_SHOWN]
    return [
        TopParcel(parcel_id, amount, sales[parcel_id], chunks[parcel_id]) for parcel_id, amount in most_first
    ]


def funnel_steps(passed: Funnel) -> list[Step]:
    """Pure."""
    counts = (passed.views, passed.invoices, passed.paid, passed.downloaded)
    longest = max(*counts, 1)
    rates = (None, *(rate_percent(part, whole) for whole, part in itertools.pairwise(counts)))
    return [
        Step(name, count, count * 100 // longest, rate)
        for name, count, rate in zip(("views", "invoices", "paid", "downloaded"), counts, rates, strict=True)
    ]


ROUTES = (
    seller_route("GET", PAGE, dashboard_page, "The seller's dashboard"),
    seller_route("GET", f"{PAGE}/earnings.csv", earnings_sheet, "Earnings for a spreadsheet", back=PAGE),
    seller_route("POST", f"{PAGE}/payments/{{invoice_id}}/done", attention_done, "Seen to", back=PAGE),
    Route(
        method="GET",
        path=f"{PAGE}/events",
        handler=dashboard_events,
        operation_id="dashboardEvents",
        summary="Tells the open dashboard that something changed",
        responses={200: "text/event-stream"},
        documented=False,
    ),
)
