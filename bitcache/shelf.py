"""What a seller has on sale: parcels with their offers, a page at a time, in a fixed number of queries."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from bitcache.catalog import Parcel, parcels_page
from bitcache.db.tables import offers
from bitcache.metered_earnings import OfferChunks, sold_of
from bitcache.on_sale import SaleOffer, SaleState, sale_offers, sale_state
from payments.ports import Transaction
from payments.registry import SOLD
from payments.tables import invoices

OFFERS_PER_PARCEL_MAX = 20


@dataclass(frozen=True, slots=True)
class ShelfOffer:
    offer: SaleOffer
    state: SaleState
    sales: int
    metered: OfferChunks
    """What was sold of it per chunk."""


@dataclass(frozen=True, slots=True)
class ShelfParcel:
    parcel: Parcel
    offers: tuple[ShelfOffer, ...]
    """Newest first."""


async def shelf_page(
    tx: Transaction, account_id: str, *, after: str | None, limit: int, now: int
) -> list[ShelfParcel]:
    """Parcels newest first, those after the parcel `after`. Raises NotFound."""
    page = await parcels_page(tx, account_id, after=after, limit=limit)
    shown = [offer_id for parcel in page for offer_id in parcel.offers[:OFFERS_PER_PARCEL_MAX]]
    found = await sale_offers(tx, offers.c.id.in_(shown), now)
    sales = await _sales(tx, shown)
    metered = await sold_of(tx, shown)

    async def sold(_: Transaction, offer_id: str) -> int:
        return sales.get(offer_id, 0)

    offered: dict[str, ShelfOffer] = {}
    for offer in found:
        state = await sale_state(tx, offer, sold, now)
        offered[offer.id] = ShelfOffer(
            offer, state, sales.get(offer.id, 0), metered.get(offer.id, OfferChunks())
        )
    return [
        ShelfParcel(parcel, tuple(offered[offer_id] for offer_id in parcel.offers[:OFFERS_PER_PARCEL_MAX]))
        for parcel in page
    ]


async def _sales(tx: Transaction, offer_ids: Sequence[str]) -> dict[str, int]:
    """As `InvoiceRegistry.sold`, for many."""
    rows = await tx.execute(
        select(invoices.c.subject, func.count().label("sold"))
        .where(invoices.c.subject.in_(offer_ids), invoices.c.status.in_(SOLD))
        .group_by(invoices.c.subject)
    )
    return {row.subject: row.sold for row in rows.all()}
