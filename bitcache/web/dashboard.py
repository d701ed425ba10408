"""The seller's page: sign in with a token, see what was earned, and what needs attention.

GET  /dashboard
POST /dashboard/sign-in, /dashboard/sign-out
"""

from aiohttp import web

from bitcache import accounts
from bitcache.accounts import Seller
from bitcache.api.wire import EarningsView, InvoiceSummary
from bitcache.earnings import earnings, parse_period
from bitcache.errors import TokenInvalid
from bitcache.payout_wallet import GAP_LIMIT_WARNING, wallet
from bitcache.web import sessions
from bitcache.web.i18n import Words
from bitcache.web.render import sat_text
from bitcache.web.visit import Visit, page_route
from payments.invoice import Flag
from payments.ports import Transaction

SIGN_IN_FORM = "sign-in"
SIGN_OUT_FORM = "sign-out"
INVOICES_SHOWN = 20
PAGE = "/dashboard"
_TAKEN_BACK = {Flag.REORGED.value, Flag.CONFLICTED.value}


async def dashboard_page(visit: Visit) -> web.Response:
    services, now = visit.services, visit.now()
    session = sessions.session_of(visit.call.http, services.sealer, now)
    seller = await services.database.read(lambda tx: sessions.seller_of(tx, session)) if session else None
    if seller is None:
        return visit.page("sign_in.html", {"refused": False}, form=SIGN_IN_FORM)
    invoices = await services.purchases.page(seller.account_id, after=None, limit=INVOICES_SHOWN)
    earned = await services.database.read(lambda tx: _earned(tx, seller, now))
    return visit.page(
        "dashboard.html",
        {
            "seller_name": seller.name,
            "earned": earned,
            "invoices": invoices,
            "attention": [
                *await services.database.read(lambda tx: _wallet_lines(visit, tx, seller)),
                *_invoice_lines(visit.words, invoices),
            ],
        },
        form=SIGN_OUT_FORM,
    )


async def sign_in(visit: Visit) -> web.Response:
    fields, _ = await visit.form(SIGN_IN_FORM)
    token = fields.get("token", "").strip()
    services = visit.services
    try:
        seller = await services.database.read(lambda tx: accounts.seller_of_token(tx, token))
    except TokenInvalid:
        return visit.page("sign_in.html", {"refused": True}, form=SIGN_IN_FORM, status=401)
    response = visit.redirect(PAGE)
    sessions.keep(response, services.sealer, seller, now=visit.now(), secure=visit.forms.secure)
    return response


async def sign_out(visit: Visit) -> web.Response:
    await visit.form(SIGN_OUT_FORM)
    response = visit.redirect(PAGE)
    sessions.forget(response)
    return response


async def _earned(tx: Transaction, seller: Seller, now: int) -> EarningsView:
    return await earnings(tx, seller.account_id, parse_period(None, None, None, now=now))


async def _wallet_lines(visit: Visit, tx: Transaction, seller: Seller) -> list[str]:
    current = await wallet(tx, seller.account_id, now=visit.now())
    if current is None:
        return [visit.words("a_no_wallet")]
    usage = await visit.services.descriptors.usage(tx, current.descriptor_id)
    if usage.unused_streak < GAP_LIMIT_WARNING:
        return []
    return [visit.words("a_gap", count=usage.unused_streak)]


def _invoice_lines(words: Words, invoices: list[InvoiceSummary]) -> list[str]:
    owed = [
        words("a_owed", reference=invoice.reference, owed_sat=sat_text(invoice.owed_sat))
        for invoice in invoices
        if invoice.owed_sat
    ]
    taken_back = [
        words("a_suspended", reference=invoice.reference)
        for invoice in invoices
        if _TAKEN_BACK & set(invoice.flags)
    ]
    return owed + taken_back


ROUTES = (
    page_route("GET", PAGE, dashboard_page, "The seller's dashboard"),
    page_route("POST", f"{PAGE}/sign-in", sign_in, "Sign in", back=PAGE),
    page_route("POST", f"{PAGE}/sign-out", sign_out, "Sign out", back=PAGE),
)
