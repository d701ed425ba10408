"""The ledger in the database: `payments.ledger` says what should stand, this appends what is missing."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import Row, insert, select

from payments import ledger
from payments.money import Msat
from payments.ports import Transaction
from payments.tables import transfers


async def booked(tx: Transaction, references: Sequence[str]) -> dict[str, list[ledger.Transfer]]:
    """What stands under each of these references."""
    found: dict[str, list[ledger.Transfer]] = {reference: [] for reference in references}
    for row in (await tx.execute(select(transfers).where(transfers.c.reference.in_(references)))).all():
        found[row.reference].append(transfer_of(row))
    return found


async def append_missing(
    tx: Transaction,
    desired: Iterable[ledger.Booking],
    standing: Sequence[ledger.Transfer],
    *,
    reference: str,
    now: int,
) -> bool:
    """Make exactly `desired` stand under `reference`, where now `standing` does; whether anything was booked.

    Raises LedgerImbalance.
    """
    missing = ledger.reconcile(desired, standing, reference=reference, now=now)
    if missing:
        await tx.execute(insert(transfers), [asdict(transfer) for transfer in missing])
    return bool(missing)


def transfer_of(row: Row[tuple[object, ...]]) -> ledger.Transfer:
    """A row of `transfers`, as the ledger knows it."""
    return ledger.Transfer(
        id=row.id,
        debit=row.debit,
        credit=row.credit,
        amount_msat=Msat(row.amount_msat),
        code=ledger.Code(row.code),
        reference=row.reference,
        created_at=row.created_at,
    )
