"""What a seller sold per chunk: what is in channels still, and what closed channels brought. Reads only.

It is earned once the channel's close is deep in the chain. What was charged since the ledger was last brought
up to date counts here already.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import and_, case, func, or_, select

from bitcache.statement_facts import metered_sale, parcels_of
from payments import books, ledger
from payments.channel import ChannelState
from payments.ledger import Code
from payments.money import NOTHING_MSAT, Msat
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import channel_sales, channels, transfers

EARNED = (Code.EARNED, Code.EARNED_REVERSED)
FEES = (Code.FEE, Code.FEE_REVERSED)


class Earned(NamedTuple):
    """What one channel brought for one offer, or, below zero, what the chain took back of it."""

    at: int
    offer_id: str
    parcel_id: str
    amount_msat: Msat
    """Without the operator's fee."""
    fee_msat: Msat
    chunks: int


@dataclass(frozen=True, slots=True)
class OfferChunks:
    """What was sold of one offer, ever."""

    chunks: int = 0
    spent_msat: Msat = NOTHING_MSAT
    """The operator's fee is part of it."""
    open_msat: Msat = NOTHING_MSAT
    """Of it, in channels that no block has closed."""


async def in_channels_msat(tx: Transaction, seller_id: str) -> Msat:
    """Sold in channels whose close is not deep yet; the operator's fee is part of it."""
    unbooked = select(func.sum(channel_sales.c.spent_msat - channel_sales.c.booked_msat)).where(
        channel_sales.c.seller_id == seller_id, channel_sales.c.spent_msat > channel_sales.c.booked_msat
    )
    booked_msat = await books.balance(tx, ledger.pending(seller_id))
    return Msat(booked_msat + int(await tx.scalar(unbooked) or 0))


async def sold_of(tx: Transaction, offer_ids: Iterable[str]) -> dict[str, OfferChunks]:
    """Offer -> what was sold of it; those of which nothing was are left out."""
    is_open = channels.c.state != ChannelState.CLOSED
    found: dict[str, OfferChunks] = {}
    for some in portions(offer_ids):
        summed = (
            select(
                channel_sales.c.subject,
                func.sum(channel_sales.c.units).label("chunks"),
                func.sum(channel_sales.c.spent_msat).label("spent_msat"),
                func.sum(case((is_open, channel_sales.c.spent_msat), else_=0)).label("open_msat"),
            )
            .join(channels, channels.c.id == channel_sales.c.channel_id)
            .where(channel_sales.c.subject.in_(some))
            .group_by(channel_sales.c.subject)
        )
        for row in (await tx.execute(summed)).all():
            spent, still_open = Msat(int(row.spent_msat)), Msat(int(row.open_msat))
            found[row.subject] = OfferChunks(int(row.chunks), spent, still_open)
    return found


async def earned_between(tx: Transaction, seller_id: str, since: int, until: int) -> list[Earned]:
    """What was booked in [since, until), in order of time."""
    theirs = ledger.seller(seller_id)
    signed = case((transfers.c.credit == theirs, transfers.c.amount_msat), else_=-transfers.c.amount_msat)
    fee = case((transfers.c.code.in_(FEES), -signed), else_=0)
    # The fee of a sale on chain has its invoice's id for a reference, without a colon.
    metered = or_(
        transfers.c.code.in_(EARNED), and_(transfers.c.code.in_(FEES), transfers.c.reference.contains(":"))
    )
    rows = (
        await tx.execute(
            select(
                transfers.c.created_at,
                transfers.c.reference,
                func.sum(signed).label("msat"),
                func.sum(fee).label("fee_msat"),
            )
            .where(
                or_(transfers.c.credit == theirs, transfers.c.debit == theirs),
                metered,
                transfers.c.created_at >= since,
                transfers.c.created_at < until,
            )
            .group_by(transfers.c.created_at, transfers.c.reference)
            .order_by(transfers.c.created_at, transfers.c.reference)
        )
    ).all()
    sales = {row.reference: sale for row in rows if (sale := metered_sale(row.reference)) is not None}
    parcels = await parcels_of(tx, {offer_id for _, offer_id in sales.values()})
    units = await _units(tx, {channel_id for channel_id, _ in sales.values()})
    found = []
    for row in rows:
        channel_id, offer_id = sales[row.reference]
        amount, fee_msat = int(row.msat), int(row.fee_msat)
        sign = (amount + fee_msat > 0) - (amount + fee_msat < 0)
        chunks = sign * units.get((channel_id, offer_id), 0)
        parcel_id = parcels.get(offer_id, "")
        found.append(Earned(row.created_at, offer_id, parcel_id, Msat(amount), Msat(fee_msat), chunks))
    return found


async def _units(tx: Transaction, channel_ids: Iterable[str]) -> dict[tuple[str, str], int]:
    """(channel, offer) -> chunks."""
    found: dict[tuple[str, str], int] = {}
    for some in portions(channel_ids):
        chosen = select(channel_sales).where(channel_sales.c.channel_id.in_(some))
        found |= {(row.channel_id, row.subject): row.units for row in (await tx.execute(chosen)).all()}
    return found
