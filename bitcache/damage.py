"""Files whose bytes are not what they were: known, named, and not sold until they are mended.

A parcel with a damaged file takes no new invoices. Who paid keeps the right to it, and gets it as soon as the
operator has put the bytes back.
"""

from dataclasses import dataclass

from sqlalchemy import exists, func, select, update

from bitcache.db.tables import accounts, files, parcel_files, parcels
from payments.ports import Transaction


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """`parcel_ids`: those that hold it, and wait for it."""

    file_id: str
    seller_name: str
    size_bytes: int
    parcel_ids: tuple[str, ...]


async def note(tx: Transaction, file_id: str, *, damaged: bool, now: int) -> bool:
    """Write down whether a file is damaged. True if that is news."""
    otherwise = files.c.damaged_at.is_(None) if damaged else files.c.damaged_at.is_not(None)
    changed = await tx.execute(
        update(files)
        .where(files.c.id == file_id, otherwise)
        .values(damaged_at=now if damaged else None)
        .returning(files.c.id)
    )
    if changed.first() is None:
        return False
    holding = select(parcel_files.c.parcel_id).where(parcel_files.c.file_id == file_id)
    held = select(parcel_files.c.file_id).where(parcel_files.c.parcel_id == parcels.c.id)
    any_damaged = exists().where(files.c.id.in_(held), files.c.damaged_at.is_not(None))
    await tx.execute(update(parcels).where(parcels.c.id.in_(holding)).values(damaged=any_damaged))
    return True


async def is_kept(tx: Transaction, file_id: str) -> bool:
    """Whether the file is to be here. One that the sweep took is gone by right."""
    return bool(await tx.scalar(select(exists().where(files.c.id == file_id))))


async def count(tx: Transaction) -> int:
    """How many files are known to be damaged."""
    return int(await tx.scalar(select(func.count()).where(files.c.damaged_at.is_not(None))) or 0)


async def damaged_files(tx: Transaction) -> list[DamagedFile]:
    """Those known, in order of their ids."""
    joined = (
        select(files.c.id, files.c.size_bytes, accounts.c.name)
        .join(accounts, accounts.c.id == files.c.account_id)
        .where(files.c.damaged_at.is_not(None))
        .order_by(files.c.id)
    )
    found = []
    for row in (await tx.execute(joined)).all():
        held_by = select(parcel_files.c.parcel_id).where(parcel_files.c.file_id == row.id).distinct()
        parcel_ids = tuple(sorted((await tx.scalars(held_by)).all()))
        found.append(DamagedFile(row.id, row.name, row.size_bytes, parcel_ids))
    return found
