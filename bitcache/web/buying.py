"""The buyer's pages: an offer, its payment and receipt.

    GET  /d/{offer_id}               what is sold, for how much, and how to get it
    POST /d/{offer_id}/pay           without scripts: an invoice, and the receipt code, shown this once
    GET  /r/{invoice_id}             how the payment stands; with the receipt's secrets, the files
    POST /r/{invoice_id}/renew       today's price

Scripts make the claim secret themselves and go from the offer to the receipt, whose address in the browser is
the receipt. A link's fragment never reaches the server: names of files are put in place by scripts alone.
"""

import hashlib
from dataclasses import dataclass
from urllib.parse import urlencode

from aiohttp import web

from bitcache.api.wire import InvoiceView
from bitcache.config import Config
from bitcache.node_state import NodeState, node_state
from bitcache.offers import Offer
from bitcache.on_sale import SaleOffer, SaleState, load_sale_offer
from bitcache.web.render import msat_text, qr_code, sat_text
from bitcache.web.session_cookie import signed_in
from bitcache.web.states import FINAL, PAYABLE, RENEWABLE, UNDER_WAY, page_state, tone_of
from bitcache.web.visit import Visit, page_route
from payments.invoice import Mode
from payments.money import NOTHING_MSAT, Msat, sat_rounded_up
from payments.ports import Transaction
from storage import base64url

PAY_FORM = "pay"
RENEW_FORM = "renew"
HOLD_SHOWN_S = 300
"""The price's deadline is shown only when it is near: before that it would only hurry people."""
DEPOSIT_SPARE_SAT = 15_000
"""For the fee of the close, and for more than one download: a channel is no good for a single small one."""
DEPOSIT_STEP_SAT = 5_000


@dataclass(frozen=True, slots=True)
class Metered:
    """A price per chunk as it is shown."""

    amount: str
    unit: str
    """`sat` or `msat`."""
    chunks: int
    whole_sat: int
    """What all chunks come to."""
    deposit_sat: int
    """A deposit of a channel that pays for all of it, with some to spare."""
    available: bool


async def offer_page(visit: Visit) -> web.Response:
    services, offer_id = visit.services, visit.call.path("offer_id")

    async def read(tx: Transaction) -> tuple[Offer, SaleOffer, NodeState]:
        now = visit.now()
        offer = await services.offers.load(tx, offer_id, now=now)
        return offer, await load_sale_offer(tx, offer_id, now), await node_state(tx, now)

    offer, sale, node = await services.database.read(read)
    seller = await signed_in(visit.call.http, services)
    if seller is None or seller.account_id != sale.seller_id:
        services.views.count(offer_id)
    return visit.page(
        "offer.html",
        {
            "offer": offer,
            "sold_whole": sale.sold_whole,
            "price_sat": sat_rounded_up(sale.price_msat or NOTHING_MSAT),
            "metered": _metered(offer, services.config),
            "node_online": node.online,
            "seller_payable": services.hosted.enabled
            if sale.mode is Mode.HOSTED
            else sale.descriptor_id is not None,
            "retention_days": services.config.paid_retention_days,
            "public_url": services.config.public_url,
            "link": f"{services.config.public_url}/d/{offer_id}",
        },
        form=PAY_FORM,
        script_words=("e_", "js_offer_"),
    )


def _metered(offer: Offer, config: Config) -> Metered | None:
    """None for what is not sold per chunk."""
    price_msat, chunks = offer.terms.metered_msat, offer.chunks
    if price_msat is None or chunks is None:
        return None
    amount, unit = msat_text(price_msat)
    whole_sat = sat_rounded_up(Msat(price_msat * chunks))
    enough_sat = -(-(whole_sat + DEPOSIT_SPARE_SAT) // DEPOSIT_STEP_SAT) * DEPOSIT_STEP_SAT
    return Metered(
        amount=amount,
        unit=unit,
        chunks=chunks,
        whole_sat=whole_sat,
        deposit_sat=max(enough_sat, config.channels.deposit_min_sat),
        available=config.metered_sales,
    )


async def pay_page(visit: Visit) -> web.Response:
    """The claim secret follows from the form, so that a form sent twice is one invoice and one receipt."""
    services, offer_id = visit.services, visit.call.path("offer_id")
    _, nonce = await visit.form(PAY_FORM)
    claim_secret = visit.forms.secret(f"claim/{offer_id}", nonce)
    claim_hash = hashlib.sha256(claim_secret).digest()
    purchase = await services.purchases.buy(offer_id, claim_hash, visit.call.client)
    receipt = _receipt_url(visit, purchase.invoice) + f"#1.{base64url.encode(claim_secret)}."
    fields = _payment(visit, purchase.invoice, offer="open")
    return visit.page("receipt.html", {"receipt": receipt, **fields}, form=RENEW_FORM)


async def invoice_page(visit: Visit) -> web.Response:
    services, invoice_id = visit.services, visit.call.path("invoice_id")

    async def read(tx: Transaction) -> tuple[InvoiceView, Offer]:
        invoice = await services.purchases.view_in(tx, invoice_id)
        return invoice, await services.offers.load(tx, invoice.offer_id, now=visit.now())

    invoice, offer = await services.database.read(read)
    fields = _payment(visit, invoice, offer=offer.state)
    return visit.page(
        "invoice.html",
        {
            "receipt": _receipt_url(visit, invoice),
            "seller_name": offer.seller_name,
            "final": fields["state"] in FINAL,
            **_refund(invoice),
            **fields,
        },
        form=RENEW_FORM,
        script_words=("js_offer_", "js_receipt_", "js_get_", "js_refund_"),
    )


async def renew_page(visit: Visit) -> web.Response:
    await visit.form(RENEW_FORM)
    invoice = await visit.services.purchases.renew(visit.call.path("invoice_id"))
    return visit.redirect(f"/r/{invoice.invoice_id}")


def _receipt_url(visit: Visit, invoice: InvoiceView) -> str:
    return f"{visit.services.config.public_url}/r/{invoice.invoice_id}"


def _refund(invoice: InvoiceView) -> dict[str, object]:
    """What `refund.html` shows. A seller who has the address already need not be given it again."""
    refund = invoice.refund
    if refund is None:
        return {"refund_shown": False, "refund_askable": False}
    askable = refund.refundable_sat > 0 and (refund.paid_by == "operator" or refund.address is None)
    return {"refund_shown": askable or refund.address is not None, "refund_askable": askable}


def _payment(visit: Visit, invoice: InvoiceView, *, offer: SaleState) -> dict[str, object]:
    """What `payment.html` shows."""
    state = page_state(invoice, offer=offer)
    payable = state in PAYABLE and invoice.uri is not None
    wallet = visit.services.config.regtest_wallet_url
    return {
        "invoice": invoice,
        "state": state,
        "tone": tone_of(state),
        "under_way": UNDER_WAY,
        "payable": payable,
        "hold_ends": invoice.valid_until - invoice.now <= HOLD_SHOWN_S,
        "renewable": state in RENEWABLE,
        "qr": qr_code(invoice.uri) if payable and invoice.uri else "",
        "play_wallet": f"{wallet}?{urlencode({'uri': invoice.uri})}" if wallet and payable else "",
        "fields": {
            "due_sat": sat_text(invoice.due_sat),
            "received_sat": sat_text(invoice.received_sat),
            "owed_sat": sat_text(invoice.owed_sat),
            "confirmations": max(invoice.confirmations, 0),
            "wanted": max(invoice.policy.key_at, 1),
            "reference": invoice.reference,
        },
    }


ROUTES = (
    page_route("GET", "/d/{offer_id}", offer_page, "An offer"),
    page_route("POST", "/d/{offer_id}/pay", pay_page, "Ask to pay", back="/d/{offer_id}"),
    page_route("GET", "/r/{invoice_id}", invoice_page, "A payment"),
    page_route("POST", "/r/{invoice_id}/renew", renew_page, "Today's price", back="/r/{invoice_id}"),
)
