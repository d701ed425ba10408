"""Money back: a buyer asks with the receipt's secret, and the seller decides.

    POST /invoices/{invoice_id}/refund
    GET  /refunds                                        the seller's list
    POST /refunds/{refund_id}/approve, /refunds/{refund_id}/decline

How a refund stands is part of its invoice.
"""

from bitcache.api.invoices import claim_secret_of
from bitcache.api.routing import PAGE_QUERY, Answer, Auth, Call, Header, Route
from bitcache.api.wire import InvoiceView
from bitcache.api.wire_money import RefundDecline, RefundList, RefundRequest, RefundSummary


async def claim_refund(call: Call) -> Answer:
    call.services.limits.claims.check(call.client)
    asked = call.body(RefundRequest)
    claim_secret = claim_secret_of(call, asked.claim_secret)
    refunds = call.services.refunds
    return Answer(200, await refunds.claim(call.path("invoice_id"), claim_secret, asked.address))


async def list_refunds(call: Call) -> Answer:
    after, limit = call.page()
    items = await call.services.refunds.page(call.seller.account_id, after=after, limit=limit + 1)
    more = len(items) > limit
    items = items[:limit]
    return Answer(200, RefundList(items=items, next=items[-1].refund_id if more else None))


async def approve_refund(call: Call) -> Answer:
    refunds = call.services.refunds
    return Answer(200, await refunds.approve(call.seller.account_id, call.path("refund_id")))


async def decline_refund(call: Call) -> Answer:
    reason = call.body(RefundDecline).reason
    refunds = call.services.refunds
    return Answer(200, await refunds.decline(call.seller.account_id, call.path("refund_id"), reason))


ROUTES = (
    Route(
        method="POST",
        path="/invoices/{invoice_id}/refund",
        handler=claim_refund,
        operation_id="claimRefund",
        summary="Ask back what is owed; the first address is final",
        request=RefundRequest,
        responses={200: InvoiceView},
        problems=(
            "not-found",
            "claim-refused",
            "credential-invalid",
            "nothing-owed",
            "refund-address-invalid",
            "refund-address-final",
            "node-offline",
            "too-many-requests",
        ),
        request_headers=(Header("Authorization", "`Payment ...`, in place of `claim_secret`"),),
    ),
    Route(
        method="GET",
        path="/refunds",
        handler=list_refunds,
        operation_id="listRefunds",
        summary="What buyers asked back, newest first",
        responses={200: RefundList},
        problems=("not-found",),
        auth=Auth.SELLER,
        query=PAGE_QUERY,
    ),
    Route(
        method="POST",
        path="/refunds/{refund_id}/approve",
        handler=approve_refund,
        operation_id="approveRefund",
        summary="Let a refund be paid",
        responses={200: RefundSummary},
        problems=("not-found", "refund-decided", "nothing-owed"),
        auth=Auth.SELLER,
    ),
    Route(
        method="POST",
        path="/refunds/{refund_id}/decline",
        handler=decline_refund,
        operation_id="declineRefund",
        summary="Refuse a refund, with a reason that the buyer reads",
        request=RefundDecline,
        responses={200: RefundSummary},
        problems=("not-found", "refund-decided"),
        auth=Auth.SELLER,
    ),
)
