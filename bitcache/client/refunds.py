"""Asking for money back with a receipt, and a seller's answers."""

from bitcache.api import wire, wire_money
from bitcache.client.api import ServerApi
from bitcache.client.errors import ServerAnswerWrong
from bitcache.client.invoices import checked
from bitcache.client.link import Receipt
from storage import base64url


async def ask_back(api: ServerApi, receipt: Receipt, address: str) -> wire.InvoiceView:
    """The invoice, its refund under way. Asking twice is as asking once.

    Raises ServerProblem, and ServerAnswerWrong where the server names another address.
    """
    order = wire_money.RefundRequest(address=address, claim_secret=base64url.encode(receipt.claim_secret))
    path = f"/invoices/{receipt.invoice_id}/refund"
    answer = await api.post(path, order, wire.InvoiceView, repeatable=True)
    invoice = checked(answer, receipt.invoice_id)
    named = None if invoice.refund is None else invoice.refund.address
    # Addresses of some kinds may be written in upper case, as QR codes like it.
    if named is None or named.casefold() != address.casefold():
        raise ServerAnswerWrong(
            f"The server says that the money goes to {named or 'no address'}, and not to the one you named. "
            "Tell its operator."
        )
    return invoice


async def approve(api: ServerApi, refund_id: str) -> wire_money.RefundSummary:
    """Raises ServerProblem."""
    path = f"/refunds/{refund_id}/approve"
    return await api.post(path, wire.Request(), wire_money.RefundSummary, repeatable=True)


async def decline(api: ServerApi, refund_id: str, reason: str) -> wire_money.RefundSummary:
    """Raises ServerProblem."""
    path = f"/refunds/{refund_id}/decline"
    return await api.post(
        path, wire_money.RefundDecline(reason=reason), wire_money.RefundSummary, repeatable=True
    )
