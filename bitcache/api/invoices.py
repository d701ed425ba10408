"""Paying: ask for an invoice, watch it, claim what it opened.

    POST /offers/{offer_id}/invoices
    GET  /invoices/{invoice_id}, /invoices/{invoice_id}/events
    POST /invoices/{invoice_id}/claim, /invoices/{invoice_id}/renew
    GET  /invoices                                             the seller's list

Who holds an invoice's id sees its state and address, nothing else; claiming takes the secret.
"""

from aiohttp import web
from msgspec import UNSET, UnsetType

from bitcache.api import events_stream
from bitcache.api.bodies import octets
from bitcache.api.routing import PAGE_QUERY, Answer, Auth, Call, Header, Route
from bitcache.api.wire import API, ClaimRequest, ClaimView, InvoiceList, InvoiceRequest, InvoiceView
from bitcache.errors import ValueRefused
from bitcache.payment_scheme import is_payment
from bitcache.work import Solution


async def create_invoice(call: Call) -> Answer:
    """201, or 200 with the invoice that the same claim hash got before."""
    asked = call.body(InvoiceRequest)
    claim_hash = octets(asked.claim_hash, "claim_hash")
    solution = None
    if asked.work is not UNSET:
        solution = Solution(octets(asked.work.challenge, "work"), octets(asked.work.nonce, "work"))
    purchase = await call.services.purchases.buy(
        call.path("offer_id"), claim_hash, call.client, solution=solution
    )
    location = f"{API}/invoices/{purchase.invoice.invoice_id}"
    return Answer(201 if purchase.created else 200, purchase.invoice, {"Location": location})


async def get_invoice(call: Call) -> Answer:
    return Answer(200, await call.services.purchases.view(call.path("invoice_id")))


async def get_invoice_events(call: Call) -> web.StreamResponse:
    return await call.services.streams.serve(call.http, call.path("invoice_id"), call.client)


async def claim_invoice(call: Call) -> Answer:
    call.services.limits.claims.check(call.client)
    claim_secret = claim_secret_of(call, call.body(ClaimRequest).claim_secret)
    return Answer(200, await call.services.claims.claim(call.path("invoice_id"), claim_secret))


async def renew_invoice(call: Call) -> Answer:
    call.services.limits.invoices.check(call.client)
    return Answer(200, await call.services.purchases.renew(call.path("invoice_id")))


async def list_invoices(call: Call) -> Answer:
    after, limit = call.page()
    items = await call.services.purchases.page(call.seller.account_id, after=after, limit=limit + 1)
    more = len(items) > limit
    items = items[:limit]
    return Answer(200, InvoiceList(items=items, next=items[-1].invoice_id if more else None))


def claim_secret_of(call: Call, claim_secret: str | UnsetType) -> bytes:
    """The secret in the body or, for who paid a challenge, the one that the echoed challenge stands for."""
    if claim_secret is not UNSET:
        return octets(claim_secret, "claim_secret")
    authorization = call.http.headers.get("Authorization", "")
    if not is_payment(authorization):
        raise ValueRefused("Send the invoice's `claim_secret`, or a paid challenge.", field="claim_secret")
    return call.services.gate.claim_secret(authorization)


ROUTES = (
    Route(
        method="POST",
        path="/offers/{offer_id}/invoices",
        handler=create_invoice,
        operation_id="createInvoice",
        summary="Ask to pay: an address and an amount, held for a while",
        request=InvoiceRequest,
        responses={200: InvoiceView, 201: InvoiceView},
        problems=(
            "not-found",
            "metered-only",
            "seller-not-payable",
            "offer-unavailable",
            "proof-of-work-required",
            "too-many-invoices",
            "too-many-requests",
            "taken-down",
            "node-offline",
            "descriptor-invalid",
        ),
        response_headers=(Header("Location", "of the invoice"),),
    ),
    Route(
        method="GET",
        path="/invoices/{invoice_id}",
        handler=get_invoice,
        operation_id="getInvoice",
        summary="How an invoice stands now",
        responses={200: InvoiceView},
        problems=("not-found",),
    ),
    Route(
        method="GET",
        path="/invoices/{invoice_id}/events",
        handler=get_invoice_events,
        operation_id="getInvoiceEvents",
        summary="How an invoice stands, now and at every change, as server-sent events",
        responses={200: events_stream.CONTENT_TYPE},
        problems=("not-found", "too-many-requests"),
        request_headers=(Header("Last-Event-ID", "accepted; the full state comes first in any case"),),
    ),
    Route(
        method="POST",
        path="/invoices/{invoice_id}/claim",
        handler=claim_invoice,
        operation_id="claimInvoice",
        summary="A grant token and, when the payment allows it, the release secret",
        request=ClaimRequest,
        responses={200: ClaimView},
        problems=("not-found", "claim-refused", "too-many-requests", "credential-invalid", "taken-down"),
        request_headers=(Header("Authorization", "`Payment ...`, in place of `claim_secret`"),),
    ),
    Route(
        method="POST",
        path="/invoices/{invoice_id}/renew",
        handler=renew_invoice,
        operation_id="renewInvoice",
        summary="Today's price for an invoice whose price has expired",
        responses={200: InvoiceView},
        problems=("not-found", "invoice-not-renewable", "node-offline", "too-many-requests"),
    ),
    Route(
        method="GET",
        path="/invoices",
        handler=list_invoices,
        operation_id="listInvoices",
        summary="The seller's invoices, newest first",
        responses={200: InvoiceList},
        problems=("not-found",),
        auth=Auth.SELLER,
        query=PAGE_QUERY,
    ),
)
