"""A seller's money: who holds it, what can be paid out, what buyers ask back, statements.

    GET  /dashboard/money?after=...
    GET  /dashboard/statement.csv?since=...&until=...     Unix seconds
    GET  /dashboard/ledger.csv?since=...&until=...
    POST /dashboard/money/payout                   amount_sat; empty for all that is payable
    POST /dashboard/money/payouts/{payout_id}/cancel
    POST /dashboard/money/settlement               settlement
    POST /dashboard/money/target                   address; empty for the seller's own wallet
    POST /dashboard/money/plan                     every, threshold_sat
    POST /dashboard/money/refunds/{refund_id}/approve
    POST /dashboard/money/refunds/{refund_id}/decline     reason

A form that is refused comes back with the page, its words beside it. What the domain says of a refusal is
shown in its own words, which are English.
"""

import datetime
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import get_args
from urllib.parse import urlencode

from aiohttp import web
from msgspec import Struct

from bitcache import payout_views
from bitcache.accounts import Seller
from bitcache.api.accounts import change_account
from bitcache.api.statements import ledger_sheet, statement_sheet
from bitcache.api.wire import AccountPatch, PayoutEvery, Settlement
from bitcache.api.wire_money import BalanceView, PayoutView
from bitcache.errors import BitcacheError, NotFound
from bitcache.payout_views import balance_view
from bitcache.seller_payouts import payout_id_of
from bitcache.web.offers_page import parse_sat
from bitcache.web.seller_visit import seller_route
from bitcache.web.sign_in import SELLER_FORM
from bitcache.web.visit import Visit, see_other
from payments import payout_store
from payments.errors import PaymentsError
from payments.payout import Kind
from payments.ports import Transaction

PAGE = "/dashboard/money"
PAYOUTS_SHOWN = 20
REFUNDS_SHOWN = 50
MONTHS_SHOWN = 12
SETTLEMENTS: tuple[Settlement, ...] = get_args(Settlement)
EVERY: tuple[PayoutEvery, ...] = get_args(PayoutEvery)
TONES = {
    **dict.fromkeys(("done", "attended"), "ok"),
    **dict.fromkeys(("approved", "in_batch", "batched", "sent"), "info"),
    **dict.fromkeys(("waiting", "requested", "owed"), "warn"),
    **dict.fromkeys(("cancelled", "declined"), ""),
}
"""The colour of a state, as a class of the style sheet."""
PAYOUT_FORM, SETTLEMENT_FORM, TARGET_FORM, PLAN_FORM = "payout", "settlement", "target", "plan"


class Refused(Struct, frozen=True):
    """Why the form `form` was not taken, and what was typed into it."""

    form: str = ""
    """One of those above, or the id of a payout or refund."""
    key: str = ""
    """Of the catalogue; empty: `detail` says it, in English."""
    detail: str = ""
    typed: Mapping[str, str] = {}


class Shown(Struct, frozen=True):
    """Everything the page shows, of one moment."""

    balance: BalanceView
    payouts: list[PayoutView]


async def money_page(visit: Visit, seller: Seller, refused: Refused | None = None) -> web.Response:
    services, now, after = visit.services, visit.now(), visit.after()

    async def read(tx: Transaction) -> Shown:
        desk = services.seller_payouts
        found = await payout_store.page(
            tx, after=after, limit=PAYOUTS_SHOWN + 1, seller_id=seller.account_id, kind=Kind.SELLER
        )
        return Shown(
            balance=await balance_view(tx, services.config, desk, seller.account_id, now=now),
            payouts=await payout_views.payout_views(tx, found, depth=desk.depth, now=now),
        )

    try:
        shown = await services.database.read(read)
    except PaymentsError:
        return see_other(f"{PAGE}?{urlencode({'lang': visit.words.language})}")  # `after` is nobody's
    refunds = await services.refunds.page(seller.account_id, after=None, limit=REFUNDS_SHOWN)
    done = visit.call.query("done") or ""
    is_hosted = _is_hosted(shown.balance, shown.payouts)
    # What was refused may have no form on the page: then it is said above all.
    with_forms = {refund.refund_id for refund in refunds}
    if is_hosted:
        with_forms |= {PAYOUT_FORM, *(payout.payout_id for payout in shown.payouts)}
    if services.hosted.enabled or shown.balance.settlement == "hosted":
        with_forms.add(SETTLEMENT_FORM)
    if is_hosted or services.hosted.enabled:
        with_forms |= {TARGET_FORM, PLAN_FORM}  # a target comes first
    listed = shown.payouts[:PAYOUTS_SHOWN]
    return visit.page(
        "money.html",
        {
            "place": "/dashboard",
            "seller_name": seller.name,
            "balance": shown.balance,
            "is_hosted": is_hosted,
            "with_forms": with_forms,
            "payouts": listed,
            "older": listed[-1].payout_id if len(shown.payouts) > PAYOUTS_SHOWN else None,
            "after": after,
            "refunds": refunds,
            "refund_delay_h": -(-services.config.hosted.refund_delay_s // 3600),
            "months": months_back(now, MONTHS_SHOWN),
            "settlements": SETTLEMENTS,
            "every": EVERY,
            "tones": TONES,
            "refused": refused or Refused(),
            "done": done if f"m_done_{done}" in visit.words else "",
        },
        form=SELLER_FORM,
        status=422 if refused else 200,
    )


async def show_money(visit: Visit, seller: Seller) -> web.Response:
    return await money_page(visit, seller)


async def ask_payout(visit: Visit, seller: Seller) -> web.Response:
    fields, nonce = await visit.form(SELLER_FORM)
    typed = fields.get("amount_sat", "").strip()
    amount_sat = parse_sat(typed) if typed else None
    if typed and amount_sat is None:
        return await money_page(visit, seller, Refused(PAYOUT_FORM, "o_e_number", "", fields))
    desk, account_id = visit.services.seller_payouts, seller.account_id
    # A form that is sent twice is one payout.
    payout_id = payout_id_of(account_id, f"form {nonce}")

    async def make(tx: Transaction) -> None:
        await desk.request(tx, account_id, payout_id=payout_id, amount_sat=amount_sat, now=visit.now())

    return await _done(visit, seller, PAYOUT_FORM, "payout", fields, partial(desk.with_addresses, make))


async def cancel_payout(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    payout_id = visit.call.path("payout_id")

    async def cancel(tx: Transaction) -> None:
        desk = visit.services.seller_payouts
        await desk.cancel(tx, seller.account_id, payout_id, now=visit.now())

    return await _done(
        visit, seller, payout_id, "cancelled", fields, partial(visit.services.database.write, cancel)
    )


async def set_settlement(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    chosen = fields.get("settlement", "")
    for settlement in SETTLEMENTS:
        if settlement == chosen:
            patch = AccountPatch(settlement=settlement)
            return await _patched(visit, seller, SETTLEMENT_FORM, "settlement", fields, patch)
    return await money_page(visit, seller, Refused(SETTLEMENT_FORM, "m_e_settlement", "", fields))


async def set_target(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    patch = AccountPatch(payout_address=fields.get("address", "").strip() or None)
    return await _patched(visit, seller, TARGET_FORM, "target", fields, patch)


async def set_plan(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    threshold = fields.get("threshold_sat", "").strip()
    threshold_sat = parse_sat(threshold) if threshold else None
    if threshold and threshold_sat is None:
        return await money_page(visit, seller, Refused(PLAN_FORM, "o_e_number", "", fields))
    every: PayoutEvery = next((one for one in EVERY if one == fields.get("every")), "never")
    patch = AccountPatch(payout_threshold_sat=threshold_sat, payout_every=every)
    return await _patched(visit, seller, PLAN_FORM, "plan", fields, patch)


async def approve_refund(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    refund_id = visit.call.path("refund_id")
    approve = partial(visit.services.refunds.approve, seller.account_id, refund_id)
    return await _done(visit, seller, refund_id, "approved", fields, approve)


async def decline_refund(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    refund_id, reason = visit.call.path("refund_id"), fields.get("reason", "")
    decline = partial(visit.services.refunds.decline, seller.account_id, refund_id, reason)
    return await _done(visit, seller, refund_id, "declined", fields, decline)


async def statement_file(visit: Visit, seller: Seller) -> web.StreamResponse:
    return await statement_sheet(visit.call, seller.account_id)


async def ledger_file(visit: Visit, seller: Seller) -> web.StreamResponse:
    return await ledger_sheet(visit.call, seller.account_id)


async def _patched(
    visit: Visit, seller: Seller, form: str, done: str, fields: Mapping[str, str], patch: AccountPatch
) -> web.Response:
    change = partial(change_account, visit.services, seller.account_id, patch)
    return await _done(visit, seller, form, done, fields, change)


async def _done(
    visit: Visit,
    seller: Seller,
    form: str,
    done: str,
    fields: Mapping[str, str],
    act: Callable[[], Awaitable[object]],
) -> web.Response:
    """Back to the page with what was done said, or the page with why not. Raises NotFound."""
    try:
        await act()
    except NotFound:
        raise
    except (BitcacheError, PaymentsError) as exc:
        return await money_page(visit, seller, Refused(form, "", str(exc), fields))
    return see_other(f"{PAGE}?{urlencode({'lang': visit.words.language, 'done': done})}")


def months_back(now: int, count: int) -> list[tuple[str, int, int]]:
    """(YYYY-MM, first second, first second after it) of so many months, UTC, the present one first. Pure."""
    months = []
    first = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    after = (first + datetime.timedelta(days=32)).replace(day=1)
    for _ in range(count):
        months.append((first.strftime("%Y-%m"), int(first.timestamp()), int(after.timestamp())))
        first, after = (first - datetime.timedelta(days=1)).replace(day=1), first
    return months


def _is_hosted(balance: BalanceView, payouts: list[PayoutView]) -> bool:
    """Whether the operator holds, or may soon hold, money of the seller's. Pure."""
    held_sat = balance.balance_sat or balance.reserved_sat or balance.in_channels_sat
    return bool(balance.settlement == "hosted" or held_sat or payouts)


ROUTES = (
    seller_route("GET", PAGE, show_money, "Balance, payouts, refunds, statements", back="/dashboard"),
    seller_route("GET", "/dashboard/statement.csv", statement_file, "A statement", back=PAGE),
    seller_route("GET", "/dashboard/ledger.csv", ledger_file, "Double entries", back=PAGE),
    seller_route("POST", f"{PAGE}/payout", ask_payout, "Ask for a payout", back=PAGE),
    seller_route("POST", f"{PAGE}/payouts/{{payout_id}}/cancel", cancel_payout, "Call it off", back=PAGE),
    seller_route("POST", f"{PAGE}/settlement", set_settlement, "Who buyers pay", back=PAGE),
    seller_route("POST", f"{PAGE}/target", set_target, "Where payouts go", back=PAGE),
    seller_route("POST", f"{PAGE}/plan", set_plan, "When payouts go by themselves", back=PAGE),
    seller_route("POST", f"{PAGE}/refunds/{{refund_id}}/approve", approve_refund, "Approve", back=PAGE),
    seller_route("POST", f"{PAGE}/refunds/{{refund_id}}/decline", decline_refund, "Decline", back=PAGE),
)
