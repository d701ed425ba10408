"""From looking to having: how many saw an offer, asked to pay, paid, and downloaded, within a period."""

from dataclasses import dataclass

from sqlalchemy import case, func, select

from bitcache.db.tables import grants, offer_views, offers
from bitcache.earnings import Period
from bitcache.views import day_of
from payments.ports import Transaction
from payments.registry import SOLD
from payments.tables import invoices


@dataclass(frozen=True, slots=True)
class Funnel:
    """`invoices`, `paid` and `downloaded` are of the same invoices: those made in the period."""

    views: int
    """Of whole UTC days, the first and the last of the period included."""
    invoices: int
    paid: int
    """The key was given, and the money (if any was asked) is still there."""
    downloaded: int
    """Paid, and some of the ciphertext was sent. Written down some seconds after it was."""


async def funnel(tx: Transaction, seller_id: str, period: Period) -> Funnel:
    views = await tx.scalar(
        select(func.sum(offer_views.c.views))
        .join(offers, offers.c.id == offer_views.c.offer_id)
        .where(
            offers.c.account_id == seller_id,
            offer_views.c.day >= day_of(period.since),
            offer_views.c.day <= day_of(period.until - 1),
        )
    )
    # Released also at no confirmations, and for free; what was double-spent since is no sale.
    paid = invoices.c.released_at.is_not(None) & invoices.c.status.in_(SOLD)
    row = (
        await tx.execute(
            select(
                func.count().label("invoices"),
                func.sum(case((paid, 1), else_=0)).label("paid"),
                func.sum(case((paid & (grants.c.bytes_served > 0), 1), else_=0)).label("downloaded"),
            )
            .select_from(invoices)
            .join(grants, grants.c.invoice_id == invoices.c.id)
            .where(
                invoices.c.seller_id == seller_id,
                invoices.c.created_at >= period.since,
                invoices.c.created_at < period.until,
            )
        )
    ).one()
    return Funnel(
        views=int(views or 0),
        invoices=int(row.invoices),
        paid=int(row.paid or 0),
        downloaded=int(row.downloaded or 0),
    )


def rate_percent(part: int, whole: int) -> int | None:
    """How many in a hundred, rounded down; None where it says nothing.

    Buyers with the command line never look at the page, so there can be more invoices than views.
    """
    return part * 100 // whole if whole and part <= whole else None
