"""Payouts and their batches in the database: rows to values and back. Decides nothing."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Row, and_, insert, or_, select, update

from payments.errors import PayoutNotFound
from payments.money import Sat
from payments.payout import Kind, Payout, State
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import (
    payouts,
)


async def insert_payout(tx: Transaction, payout: Payout) -> None:
    await tx.execute(
        insert(payouts).values(
            **{column.name: getattr(payout, column.name) for column in payouts.c},
        )
    )


async def find_payout(tx: Transaction, payout_id: str) -> Payout | None:
    found = await payouts_of(tx, [payout_id])
    return found[0] if found else None


async def load_payout(tx: Transaction, payout_id: str) -> Payout:
    """Raises PayoutNotFound."""
    found = await find_payout(tx, payout_id)
    if found is None:
        raise PayoutNotFound(f"there is no payout {payout_id}")
    return found


async def payouts_of(tx: Transaction, payout_ids: Sequence[str]) -> list[Payout]:
    """In the order of their ids; those that exist."""
    found: list[Payout] = []
    for some in portions(payout_ids):
        chosen = select(payouts).where(payouts.c.id.in_(some))
        rows = await tx.execute(chosen.order_by(payouts.c.id))
        found += [payout_of(row) for row in rows.all()]
    return found


async def payouts_in(tx: Transaction, *states: State) -> list[Payout]:
    """In these states: those ready first come first."""
    chosen = select(payouts).where(payouts.c.state.in_(states))
    rows = await tx.execute(chosen.order_by(payouts.c.ready_at, payouts.c.requested_at, payouts.c.id))
    return [payout_of(row) for row in rows.all()]


async def payouts_of_batch(tx: Transaction, batch_id: str) -> list[Payout]:
    rows = await tx.execute(select(payouts).where(payouts.c.batch_id == batch_id).order_by(payouts.c.id))
    return [payout_of(row) for row in rows.all()]


async def page(
    tx: Transaction,
    *,
    after: str | None = None,
    limit: int,
    seller_id: str | None = None,
    kind: Kind | None = None,
) -> list[Payout]:
    """Newest first, those after the payout `after`; of all, or of one seller, of all kinds or one."""
    chosen = select(payouts)
    if seller_id is not None:
        chosen = chosen.where(payouts.c.seller_id == seller_id)
    if kind is not None:
        chosen = chosen.where(payouts.c.kind == kind)
    if after is not None:
        last = await load_payout(tx, after)
        chosen = chosen.where(
            or_(
                payouts.c.requested_at < last.requested_at,
                and_(payouts.c.requested_at == last.requested_at, payouts.c.id < last.id),
            )
        )
    newest_first = chosen.order_by(payouts.c.requested_at.desc(), payouts.c.id.desc()).limit(limit)
    return [payout_of(row) for row in (await tx.execute(newest_first)).all()]


async def change_payouts(tx: Transaction, payout_ids: Iterable[str], **values: object) -> None:
    for some in portions(payout_ids):
        await tx.execute(update(payouts).where(payouts.c.id.in_(some)).values(**values))


def payout_of(row: Row[tuple[object, ...]]) -> Payout:
    return Payout(
        id=row.id,
        kind=Kind(row.kind),
        seller_id=row.seller_id,
        invoice_id=row.invoice_id,
        account=row.account,
        amount_sat=Sat(row.amount_sat),
        address=row.address,
        script_pubkey=row.script_pubkey,
        state=State(row.state),
        requested_at=row.requested_at,
        ready_at=row.ready_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        reason=row.reason,
        batch_id=row.batch_id,
        trouble=row.trouble,
    )
