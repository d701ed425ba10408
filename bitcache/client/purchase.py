"""From a link to an invoice: look at the offer, keep a claim secret, and only then ask for an address.

The same link asked for again leads to the same invoice, so nobody pays twice by running a command twice.
"""

import hashlib
from dataclasses import dataclass

import msgspec

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.errors import ParcelAltered, ServerProblem
from bitcache.client.grant import Grant
from bitcache.client.invoices import checked, get_invoice
from bitcache.client.link import Link, Receipt
from bitcache.client.parcel import OpenedParcel, check_invoice, check_price, open_parcel
from bitcache.client.receipts import KeptReceipt, ReceiptBook
from bitcache.client.work import OnWork, earn
from storage import base64url

WORK_ATTEMPTS_MAX = 3
"""While one earns an address, the next may have become dearer; but somewhere there is an end."""


@dataclass(frozen=True)
class Purchase:
    """What is being bought, or was. `network` is None where only the receipt is known."""

    receipt: Receipt
    parcel: OpenedParcel
    invoice: wire.InvoiceView
    network: str | None
    price_sat_max: int | None
    """The most that the buyer was told it costs; None where only the receipt is known."""


async def look(api: ServerApi, link: Link) -> tuple[wire.OfferView, OpenedParcel]:
    """The offer and its opened description. Raises ServerProblem, ParcelAltered, and storage's errors."""
    offer = await api.get(f"/offers/{link.offer_id}", wire.OfferView)
    if offer.offer_id != link.offer_id:
        raise ParcelAltered("offer", "The server answers with another offer than the link names.")
    parcel = open_parcel(link.link_secret, files=offer.files, sealed_metadata=offer.metadata)
    return offer, parcel


async def buy(
    api: ServerApi,
    link: Link,
    offer: wire.OfferView,
    parcel: OpenedParcel,
    book: ReceiptBook,
    *,
    on_work: OnWork = lambda share: None,
) -> Purchase:
    """The invoice for `offer`: the one this computer has a receipt for, else a new one, its receipt kept.

    `on_work` is told of a proof of work, if the server asks for one. Raises ServerProblem, ParcelAltered (the
    invoice demands something else than the offer).
    """
    kept = book.newest(link)
    invoice = None if kept is None or kept.invoice_id is None else await _usable(api, kept.invoice_id)
    if kept is None or invoice is None:
        # One without an invoice was made just before a crash; its secret may be known to the server.
        unanswered = kept if kept is not None and kept.invoice_id is None else None
        kept, invoice = await _new_invoice(api, link, offer, parcel, book, unanswered, on_work)
    receipt = kept.receipt
    assert receipt is not None
    # Sold per chunk alone by now, what was shown before still holds.
    offered_sat = 0 if offer.price is None else offer.price.amount_msat // 1000
    price_sat_max = max(kept.price_sat, offered_sat)
    check_price(invoice, price_sat_max)
    return Purchase(receipt, parcel, invoice, offer.network, price_sat_max)


async def recall(api: ServerApi, receipt: Receipt) -> Purchase:
    """What `receipt` bought. Raises ServerProblem, ParcelAltered, and storage's errors."""
    claim = await Grant(api, receipt).renew()
    parcel = open_parcel(receipt.link_secret, files=claim.files, sealed_metadata=claim.metadata)
    return Purchase(receipt, parcel, await get_invoice(api, receipt.invoice_id), None, None)


async def renewed(api: ServerApi, invoice: wire.InvoiceView) -> wire.InvoiceView:
    """The invoice at today's price where part of it was paid and the price has expired; else as it is."""
    if invoice.status != "expired" or not invoice.received_sat or not invoice.due_sat:
        return invoice
    try:
        path = f"/invoices/{invoice.invoice_id}/renew"
        again = await api.post(path, wire.Request(), wire.InvoiceView, repeatable=True)
        return checked(again, invoice.invoice_id)
    except ServerProblem as problem:
        if problem.name in {"invoice-not-renewable", "bad-request"}:
            return invoice
        raise


async def _usable(api: ServerApi, invoice_id: str) -> wire.InvoiceView | None:
    """The invoice, unless it ended without any money."""
    try:
        invoice = await get_invoice(api, invoice_id)
    except ServerProblem as problem:
        if problem.status == 404:
            return None
        raise
    ended = invoice.status in {"expired", "cancelled"} and not invoice.received_sat
    if invoice.refund is not None and invoice.refund.whole:
        return None  # called off: who wants it again buys it again
    return None if ended else await renewed(api, invoice)


async def _new_invoice(
    api: ServerApi,
    link: Link,
    offer: wire.OfferView,
    parcel: OpenedParcel,
    book: ReceiptBook,
    unanswered: KeptReceipt | None,
    on_work: OnWork,
) -> tuple[KeptReceipt, wire.InvoiceView]:
    kept = unanswered or book.prepare(link, title=parcel.metadata.title)
    claim_hash = base64url.encode(hashlib.sha256(base64url.decode(kept.claim_secret)).digest())
    invoice = await _ordered(api, link.offer_id, claim_hash, on_work)
    kept = msgspec.structs.replace(
        kept, invoice_id=invoice.invoice_id, price_sat=invoice.price_sat, reference=invoice.reference
    )
    book.save(kept)
    check_invoice(invoice, offer)
    return kept, checked(invoice, invoice.invoice_id)


async def _ordered(api: ServerApi, offer_id: str, claim_hash: str, on_work: OnWork) -> wire.InvoiceView:
    """The invoice, earned with a proof of work where the server asks for one."""
    order = wire.InvoiceRequest(claim_hash=claim_hash)
    for attempts_left in reversed(range(WORK_ATTEMPTS_MAX + 1)):
        try:
            return await api.post(f"/offers/{offer_id}/invoices", order, wire.InvoiceView, repeatable=True)
        except ServerProblem as problem:
            if problem.name != "proof-of-work-required" or problem.work is None or not attempts_left:
                raise
            order = wire.InvoiceRequest(claim_hash=claim_hash, work=await earn(problem.work, on_work))
    raise AssertionError("the last attempt returns or raises")
