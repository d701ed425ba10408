"""The seller's page: what was earned, and what needs attention.

GET  /dashboard
"""

from aiohttp import web

from bitcache.accounts import Seller
from bitcache.api.wire import EarningsView, InvoiceSummary
from bitcache.earnings import earnings, parse_period
from bitcache.payout_wallet import GAP_LIMIT_WARNING, wallet
from bitcache.web.i18n import Words
from bitcache.web.render import sat_text
from bitcache.web.seller_visit import seller_route
from bitcache.web.sign_in import SELLER_FORM
from bitcache.web.visit import Visit
from payments.invoice import Flag
from payments.ports import Transaction

INVOICES_SHOWN = 20
PAGE = "/dashboard"
_TAKEN_BACK = {Flag.REORGED.value, Flag.CONFLICTED.value}


async def dashboard_page(visit: Visit, seller: Seller) -> web.Response:
    services, now = visit.services, visit.now()
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
        form=SELLER_FORM,
    )


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


ROUTES = (seller_route("GET", PAGE, dashboard_page, "The seller's dashboard"),)
