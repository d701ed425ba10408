"""The ledger in the database: `payments.ledger` says what should stand, this appends what is missing.

Each account's balance is kept beside it, changed in the transaction that appends: however long the history,
a balance is one row. `verify` adds up the whole history again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import Row, delete, func, insert, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from payments import ledger
from payments.money import NOTHING_MSAT, Msat
from payments.ports import Transaction
from payments.tables import balances, transfers


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
    return bool(await append_all_missing(tx, {reference: desired}, {reference: standing}, now=now))


async def append_all_missing(
    tx: Transaction,
    desired: Mapping[str, Iterable[ledger.Booking]],
    standing: Mapping[str, Sequence[ledger.Transfer]],
    *,
    now: int,
) -> set[str]:
    """As `append_missing`, of each reference in `desired`, in a fixed number of queries; those booked under.

    Raises LedgerImbalance.
    """
    missing = [
        transfer
        for reference, bookings in desired.items()
        for transfer in ledger.reconcile(bookings, standing[reference], reference=reference, now=now)
    ]
    if missing:
        await tx.execute(insert(transfers), [asdict(transfer) for transfer in missing])
        await _add_to_balances(tx, ledger.balances(missing))
    return {transfer.reference for transfer in missing}


async def balance(tx: Transaction, account: str) -> Msat:
    """Credits minus debits of this account."""
    return Msat(
        int(await tx.scalar(select(balances.c.amount_msat).where(balances.c.account == account)) or 0)
    )


async def balances_like(tx: Transaction, prefix: str) -> dict[str, Msat]:
    """Of every account whose name begins so and that is not at zero."""
    chosen = select(balances).where(balances.c.account.startswith(prefix, autoescape=True))
    rows = await tx.execute(chosen.order_by(balances.c.account))
    return {row.account: Msat(row.amount_msat) for row in rows.all()}


async def wrong_balances(tx: Transaction) -> dict[str, tuple[Msat, Msat]]:
    """Account -> (balance kept, balance by its whole history) where they differ: none, or there is a bug."""
    sides = union_all(
        select(transfers.c.credit.label("account"), transfers.c.amount_msat.label("msat")),
        select(transfers.c.debit.label("account"), (-transfers.c.amount_msat).label("msat")),
    ).subquery()
    added = select(sides.c.account, func.sum(sides.c.msat).label("msat")).group_by(sides.c.account)
    by_history = {row.account: Msat(int(row.msat)) for row in (await tx.execute(added)).all()}
    kept = await balances_like(tx, "")
    return {
        account: (kept.get(account, NOTHING_MSAT), by_history.get(account, NOTHING_MSAT))
        for account in sorted(kept.keys() | by_history.keys())
        if kept.get(account, 0) != by_history.get(account, 0)
    }


async def _add_to_balances(tx: Transaction, changes: dict[str, Msat]) -> None:
    rows = [
        {"account": account, "amount_msat": amount} for account, amount in sorted(changes.items()) if amount
    ]
    if not rows:
        return
    # Both databases have the same clause; SQLAlchemy keeps it with each dialect.
    dialect = postgresql if tx.dialect.name == "postgresql" else sqlite
    added = dialect.insert(balances)
    await tx.execute(
        added.on_conflict_do_update(
            index_elements=["account"],
            set_={"amount_msat": balances.c.amount_msat + added.excluded.amount_msat},
        ),
        rows,
    )
    # Else every invoice that was ever paid would keep a row.
    await tx.execute(
        delete(balances).where(
            balances.c.account.in_([row["account"] for row in rows]), balances.c.amount_msat == 0
        )
    )


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
