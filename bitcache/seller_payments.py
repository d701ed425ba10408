"""A seller's invoices as rows of a page: by their last standing, in a fixed number of queries.

The watcher writes a standing whenever it changes; deriving each one again, as the buyer's page does, would
cost several queries a row.
"""

from dataclasses import dataclass

from msgspec import json
from sqlalchemy import ColumnElement, Select, func, or_, select, tuple_, update

from bitcache.errors import NotFound
from bitcache.invoice_view import FrozenOffer, owed_sat
from bitcache.refund_state import owed_by_invoice
from payments.attention import Attention
from payments.invoice import Flag, Standing, Status
from payments.ports import Transaction
from payments.tables import invoices, received_outputs


@dataclass(frozen=True, slots=True)
class SellerPayment:
    """One invoice, and what came for it."""

    id: str
    reference: str
    created_at: int
    offer_id: str
    parcel_id: str
    state: str
    """As `state_of` names it."""
    attention: Attention | None
    price_sat: int
    received_sat: int
    due_sat: int
    owed_sat: int
    txids: tuple[str, ...]


def state_of(standing: Standing, needed: Attention | None) -> str:
    """The one word that matters most to the seller. Pure."""
    if needed is not None:
        return needed.value
    if Flag.MISSING in standing.flags:
        return "missing"
    match standing.status:
        case Status.SETTLED:
            return "paid" if standing.price_sat else "free"
        case Status.SEEN if standing.due_sat:
            return "partial"
        case Status.OPEN if standing.flags & {Flag.REPLACED, Flag.CONFLICTED}:
            return "replaced"
        case Status.OPEN:
            return "waiting"
        case Status.SEEN | Status.CONFIRMING | Status.EXPIRED | Status.CANCELLED:
            return standing.status.value


async def payments_page(
    tx: Transaction, seller_id: str, *, after: str | None, limit: int
) -> list[SellerPayment]:
    """Newest first, those that come after the invoice `after`; if that is not the seller's, the newest."""
    chosen = select(invoices).where(invoices.c.seller_id == seller_id)
    if after is not None:
        last = (
            await tx.execute(
                select(invoices.c.created_at).where(invoices.c.id == after, invoices.c.seller_id == seller_id)
            )
        ).one_or_none()
        if last is not None:
            chosen = chosen.where(tuple_(invoices.c.created_at, invoices.c.id) < (last.created_at, after))
    return await _newest(tx, chosen, limit)


async def needing_attention(
    tx: Transaction, seller_id: str, *, limit: int
) -> tuple[list[SellerPayment], int]:
    """(the newest of all that the seller has not seen to, how many there are)."""
    needed = _needed(seller_id)
    found = await _newest(tx, select(invoices).where(needed), limit)
    if len(found) < limit:
        return found, len(found)
    return found, int(await tx.scalar(select(func.count()).select_from(invoices).where(needed)) or 0)


async def attend(tx: Transaction, seller_id: str, invoice_id: str) -> None:
    """The seller has seen to it; something else about it will be shown again. Raises NotFound."""
    changed = await tx.execute(
        update(invoices)
        .where(invoices.c.id == invoice_id, invoices.c.seller_id == seller_id)
        .values(attended=invoices.c.attention)
    )
    if changed.rowcount == 0:
        raise NotFound("invoice", invoice_id)


def _needed(seller_id: str) -> ColumnElement[bool]:
    seen_to = or_(invoices.c.attended.is_(None), invoices.c.attended != invoices.c.attention)
    needed = (invoices.c.seller_id == seller_id) & invoices.c.attention.in_(list(Attention)) & seen_to
    # By name and apart from the order: else SQLite walks through all the seller's invoices, newest first.
    return invoices.c.id.in_(select(invoices.c.id).where(needed))


async def _newest(tx: Transaction, chosen: Select[tuple[object, ...]], limit: int) -> list[SellerPayment]:
    newest_first = chosen.order_by(invoices.c.created_at.desc(), invoices.c.id.desc()).limit(limit)
    rows = (await tx.execute(newest_first)).all()
    paid_by: dict[str, list[str]] = {}
    outputs = (
        select(received_outputs.c.invoice_id, received_outputs.c.txid)
        .where(received_outputs.c.invoice_id.in_([row.id for row in rows]))
        .order_by(received_outputs.c.first_seen_at, received_outputs.c.txid)
    )
    for output in (await tx.execute(outputs)).all():
        paid_by.setdefault(output.invoice_id, []).append(output.txid)
    owed_by_refunds = await owed_by_invoice(tx, [row.id for row in rows])
    found = []
    for row in rows:
        standing = json.decode(row.standing, type=Standing)
        offer = json.decode(row.frozen, type=FrozenOffer)
        needed = Attention(row.attention) if row.attention else None
        found.append(
            SellerPayment(
                id=row.id,
                reference=row.reference,
                created_at=row.created_at,
                offer_id=offer.offer_id,
                parcel_id=offer.parcel_id,
                state=state_of(standing, needed),
                attention=needed,
                price_sat=standing.price_sat,
                received_sat=standing.received_sat,
                due_sat=standing.due_sat,
                owed_sat=owed_by_refunds.get(
                    row.id, owed_sat(standing, withdrawn=row.revoked or row.refunded)
                ),
                txids=tuple(dict.fromkeys(paid_by.get(row.id, ()))),
            )
        )
    return found
