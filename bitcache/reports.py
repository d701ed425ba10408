"""What people tell the operator about an offer that should not be sold here. Their addresses are not kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Row, delete, func, insert, select, update

from bitcache.db.tables import accounts, offers, reports
from bitcache.errors import NotFound, ValueRefused
from bitcache.ids import new_id
from payments.ports import Transaction

Reason = Literal["illegal", "copyright", "malware", "fraud", "other"]
REASONS: tuple[Reason, ...] = get_args(Reason)
MESSAGE_LENGTH_MAX = 2_000
CONTACT_LENGTH_MAX = 200
LISTED_MAX = 500
OPEN_PER_OFFER_MAX = 100
"""Beyond that the operator learns nothing new, and a crowd could fill the disk."""
HANDLED_KEPT_S = 90 * 86_400


@dataclass(frozen=True, slots=True)
class Report:
    id: str
    offer_id: str
    parcel_id: str
    seller_name: str
    created_at: int
    reason: str
    message: str
    """In the reporter's words: hostile until shown safe."""
    contact: str
    handled_at: int | None
    taken_down_at: int | None


async def file_report(
    tx: Transaction, offer_id: str, *, reason: str, message: str, contact: str, kept_max: int, now: int
) -> str:
    """Keep a report, unless so many wait that one more says nothing; its id.

    Raises NotFound, ValueRefused.
    """
    if await tx.scalar(select(offers.c.id).where(offers.c.id == offer_id)) is None:
        raise NotFound("offer", offer_id)
    if reason not in REASONS:
        raise ValueRefused("Say what is wrong with it: choose one of the reasons.", field="reason")
    message, contact = _lines(message), " ".join(contact.split())
    if len(message) > MESSAGE_LENGTH_MAX:
        raise ValueRefused(f"Use at most {MESSAGE_LENGTH_MAX} characters.", field="message")
    if len(contact) > CONTACT_LENGTH_MAX:
        raise ValueRefused(f"Use at most {CONTACT_LENGTH_MAX} characters.", field="contact")
    report_id = new_id()
    waiting = select(func.count()).where(reports.c.offer_id == offer_id, reports.c.handled_at.is_(None))
    if int(await tx.scalar(waiting) or 0) >= OPEN_PER_OFFER_MAX:
        return report_id
    if int(await tx.scalar(select(func.count()).select_from(reports)) or 0) >= kept_max:
        oldest = select(reports.c.id).where(reports.c.handled_at.is_not(None))
        room = await tx.execute(
            delete(reports).where(reports.c.id.in_(oldest.order_by(reports.c.handled_at).limit(1)))
        )
        if not room.rowcount:
            return report_id
    await tx.execute(
        insert(reports).values(
            id=report_id,
            offer_id=offer_id,
            created_at=now,
            reason=reason,
            message=message,
            contact=contact,
        )
    )
    return report_id


async def list_reports(tx: Transaction, *, handled: bool) -> list[Report]:
    """The newest reports that wait, newest first; with `handled` the others too."""
    query = (
        select(reports, offers.c.parcel_id, offers.c.taken_down_at, accounts.c.name.label("seller_name"))
        .join(offers, offers.c.id == reports.c.offer_id)
        .join(accounts, accounts.c.id == offers.c.account_id)
        .order_by(reports.c.created_at.desc(), reports.c.id)
        .limit(LISTED_MAX)
    )
    if not handled:
        query = query.where(reports.c.handled_at.is_(None))
    return [_report(row) for row in (await tx.execute(query)).all()]


async def mark_handled(tx: Transaction, report_id: str, *, now: int) -> None:
    """Raises NotFound. Marking again is harmless."""
    marked = await tx.execute(
        update(reports)
        .where(reports.c.id == report_id)
        .values(handled_at=func.coalesce(reports.c.handled_at, now))
    )
    if marked.rowcount == 0:
        raise NotFound("report", report_id)


async def mark_offers_handled(tx: Transaction, offer_ids: Iterable[str], *, now: int) -> int:
    """Every report of these offers that waits; how many."""
    marked = await tx.execute(
        update(reports)
        .where(reports.c.offer_id.in_(list(offer_ids)), reports.c.handled_at.is_(None))
        .values(handled_at=now)
    )
    return int(marked.rowcount)


async def forget_handled(tx: Transaction, *, now: int) -> None:
    """Delete what was handled long ago; for the sweep."""
    await tx.execute(delete(reports).where(reports.c.handled_at <= now - HANDLED_KEPT_S))


def _lines(text: str) -> str:
    """As typed, with one kind of line break: browsers send two characters for it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _report(row: Row[Any]) -> Report:
    return Report(**{name: getattr(row, name) for name in Report.__dataclass_fields__})
