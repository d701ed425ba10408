"""Taking a parcel off the server: nothing of it is sold or served any more, and what was paid is owed.

It takes all offers of the parcel, and of every parcel that holds one of its files, or the seller would sell
the same under another. In one transaction the invoices are revoked, the books corrected and the buyers told,
so that nobody pays for what cannot come.
The bytes stay on the disk until the parcel is deleted: a takedown can be a mistake, and can be undone.
"""

from dataclasses import dataclass

from sqlalchemy import func, or_, select, update

from bitcache import reports
from bitcache.access import Access
from bitcache.catalog import sharing_files
from bitcache.db.tables import offers
from bitcache.errors import NotFound, ValueRefused
from payments.ports import Transaction
from payments.registry import InvoiceRegistry

REASON_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Reached:
    """What a takedown, or undoing one, concerned."""

    parcel_id: str
    offer_ids: list[str]
    invoices: int
    invoices_with_money: int
    reports_handled: int


async def take_down(
    tx: Transaction, registry: InvoiceRegistry, access: Access, offer_id: str, *, reason: str, now: int
) -> Reached:
    """Take down the parcel of this offer; doing it again changes only the reason.

    Raises NotFound, ValueRefused.
    """
    reason = " ".join(reason.split())
    if not 1 <= len(reason) <= REASON_LENGTH_MAX:
        raise ValueRefused(f"Give a reason of 1 to {REASON_LENGTH_MAX} characters.", field="reason")
    parcel_id, offer_ids = await _offers_beside(tx, offer_id)
    await tx.execute(
        update(offers)
        .where(offers.c.id.in_(offer_ids))
        .values(taken_down_at=func.coalesce(offers.c.taken_down_at, now), taken_down_reason=reason)
    )
    invoices, with_money = await _revoke(tx, registry, access, offer_ids, revoked=True, now=now)
    handled = await reports.mark_offers_handled(tx, offer_ids, now=now)
    return Reached(parcel_id, offer_ids, invoices, with_money, handled)


async def put_back(
    tx: Transaction, registry: InvoiceRegistry, access: Access, offer_id: str, *, now: int
) -> Reached:
    """Undo a takedown: offers sell, and who paid has their right again. Raises NotFound."""
    parcel_id, offer_ids = await _offers_beside(tx, offer_id)
    await tx.execute(
        update(offers).where(offers.c.id.in_(offer_ids)).values(taken_down_at=None, taken_down_reason=None)
    )
    invoices, with_money = await _revoke(tx, registry, access, offer_ids, revoked=False, now=now)
    return Reached(parcel_id, offer_ids, invoices, with_money, 0)


async def _offers_beside(tx: Transaction, offer_id: str) -> tuple[str, list[str]]:
    """(parcel, all offers of it and of those that share a file with it)."""
    parcel_id = await tx.scalar(select(offers.c.parcel_id).where(offers.c.id == offer_id))
    if parcel_id is None:
        raise NotFound("offer", offer_id)
    chosen = or_(offers.c.parcel_id == parcel_id, offers.c.parcel_id.in_(sharing_files(parcel_id)))
    ids = await tx.scalars(select(offers.c.id).where(chosen).order_by(offers.c.id))
    return parcel_id, list(ids.all())


async def _revoke(
    tx: Transaction,
    registry: InvoiceRegistry,
    access: Access,
    offer_ids: list[str],
    *,
    revoked: bool,
    now: int,
) -> tuple[int, int]:
    """(invoices, those of them to which something came)."""
    with_money = 0
    invoice_ids = await registry.ids_of(tx, offer_ids)
    for invoice_id in invoice_ids:
        record = await registry.revoke(tx, invoice_id, revoked=revoked, now=now)
        # The event reaches every process: streams show the new state, and the grant is read again.
        await access.settle(tx, record)
        with_money += record.standing.received_sat > 0
    return len(invoice_ids), with_money
