"""What a database that was put back from a backup must find out before it sells on.

Between the backup and the loss more addresses were handed out, which the database does not remember. So no
descriptor gives an address until `payments.address_search` has found the used ones.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from sqlalchemy import BigInteger, delete, func, insert, literal, select, update

from payments import chain_facts, unassigned
from payments.errors import StartIndexTooHigh, StartIndexUsed
from payments.ports import Transaction
from payments.tables import (
    address_searches,
    blocks,
    descriptors,
    restores,
    watcher_state,
)

ADDRESSES_AHEAD = 1_000
LATE_PAYMENTS_S = 7 * 86_400
"""A descriptor set after the restore is searched for in blocks up to so long after it."""
INDEXES_SKIPPED_MAX = 100_000
"""By the operator's decision. The node derives so many in half a minute, and no more than ten times that."""
_NONE_SHARED: Mapping[str, Set[str]] = {}


@dataclass(frozen=True, slots=True)
class Search:
    """A descriptor whose used addresses are not known yet."""

    descriptor_id: str
    from_index: int
    """The first of which nothing is known."""
    from_height: int | None
    """Of the last block whose payments the backup knew; None: there is nothing to search in."""
    decided_index: int | None
    """Where the operator has decided to go on."""
    end_index: int
    """Below it, and from `from_index` on, addresses are watched already."""
    highest_used: int | None
    lost: bool
    """The backup has it, so that its addresses were surely in use; else it was set after the restore."""

    @property
    def first_unused(self) -> int:
        return max(self.from_index, 0 if self.highest_used is None else self.highest_used + 1)

    @property
    def found_all(self) -> bool:
        """Enough unused addresses in a row are watched to say that no later one is used."""
        return self.end_index >= self.first_unused + ADDRESSES_AHEAD


async def note_restore(tx: Transaction, *, taken_at: int, now: int) -> None:
    """The database in this transaction is a backup that was taken at `taken_at`, put back now."""
    tip = await chain_facts.tip(tx)
    from_height = tip.height if tip else None
    # A search that the backup was taken in the middle of has older blocks to read, or none to read in.
    pending = select(address_searches).where(address_searches.c.ended_at.is_(None))
    unfinished = {row.descriptor_id: row.from_height for row in (await tx.execute(pending)).all()}
    # So have wallets that are set soon: they may be of the server that was lost first.
    previous = (await tx.execute(select(restores))).one_or_none()
    set_later_from = from_height
    if previous is not None and previous.restored_at + LATE_PAYMENTS_S >= taken_at:
        set_later_from = from_height if previous.from_height is None else previous.from_height
    # The database is as old as the backup's end, and every descriptor in it was in use.
    newest = await tx.scalar(select(func.max(descriptors.c.created_at)))
    await tx.execute(delete(restores))
    await tx.execute(
        insert(restores).values(
            id=1, restored_at=now, taken_at=max(taken_at, newest or 0), from_height=set_later_from
        )
    )
    await tx.execute(delete(address_searches))
    await tx.execute(
        insert(address_searches).from_select(
            ["descriptor_id", "from_index", "from_height"],
            select(descriptors.c.id, descriptors.c.next_index, literal(from_height, BigInteger)),
        )
    )
    for descriptor_id, older_height in unfinished.items():
        await tx.execute(
            update(address_searches)
            .where(address_searches.c.descriptor_id == descriptor_id)
            .values(from_height=older_height)
        )
    # What the watcher saw before the backup says nothing about now.
    await tx.execute(
        update(watcher_state).values(trouble="restored from a backup: the node was not asked yet")
    )


async def is_restored(tx: Transaction) -> bool:
    return await tx.scalar(select(restores.c.id)) is not None


async def resume_payouts(tx: Transaction, *, now: int) -> bool:
    """The operator knows what was paid out since the backup. Whether payouts were stopped by a restore."""
    row = (await tx.execute(select(restores))).one_or_none()
    if row is None or (row.payouts_resumed_at or 0) >= row.restored_at:
        return False
    # Our clock may have been set back since the restore.
    await tx.execute(update(restores).values(payouts_resumed_at=max(now, row.restored_at)))
    return True


async def register(tx: Transaction, descriptor_id: str, *, start_index: int) -> None:
    """A descriptor that is new to a restored database may not have been to the one that was lost."""
    from_height = await tx.scalar(select(restores.c.from_height))
    if from_height is not None:
        await tx.execute(
            insert(address_searches).values(
                descriptor_id=descriptor_id, from_index=start_index, from_height=from_height
            )
        )


async def in_doubt(tx: Transaction, descriptor_id: str) -> bool:
    """Whether the used addresses of this descriptor are still searched for."""
    pending = select(address_searches.c.descriptor_id).where(
        address_searches.c.descriptor_id == descriptor_id, address_searches.c.ended_at.is_(None)
    )
    return await tx.scalar(pending) is not None


async def searches(tx: Transaction, same_wallet: Mapping[str, Set[str]] = _NONE_SHARED) -> list[Search]:
    """Those that have not ended, in the order in which the descriptors were set.

    `same_wallet`: where descriptors give the same addresses, all that do; an index means the same in each.
    """
    rows = await tx.execute(
        select(address_searches, descriptors.c.created_at, restores.c.taken_at)
        .join(descriptors, descriptors.c.id == address_searches.c.descriptor_id)
        .join(restores, restores.c.id == 1)
        .where(address_searches.c.ended_at.is_(None))
        .order_by(descriptors.c.created_at, address_searches.c.descriptor_id)
    )
    found = []
    for row in rows.all():
        wallet = same_wallet.get(row.descriptor_id, {row.descriptor_id})
        watched = await unassigned.highest_watched(tx, wallet)
        found.append(
            Search(
                descriptor_id=row.descriptor_id,
                from_index=row.from_index,
                from_height=row.from_height,
                decided_index=row.decided_index,
                end_index=max(row.from_index, 0 if watched is None else watched + 1),
                highest_used=await unassigned.highest_used(tx, *wallet),
                lost=row.created_at <= row.taken_at,
            )
        )
    return found


async def decide(tx: Transaction, descriptor_ids: Iterable[str], *, start_index: int) -> int:
    """Have the watcher end the searches for these, without more blocks; how many there were.

    Nobody but the operator can know that no later address was handed out. Raises StartIndexUsed,
    StartIndexTooHigh.
    """
    chosen = [search for search in await searches(tx) if search.descriptor_id in set(descriptor_ids)]
    for search in chosen:
        if start_index < search.first_unused:
            raise StartIndexUsed(search.first_unused)
        if start_index > search.first_unused + INDEXES_SKIPPED_MAX:
            raise StartIndexTooHigh(search.first_unused + INDEXES_SKIPPED_MAX)
        await tx.execute(
            update(address_searches)
            .where(address_searches.c.descriptor_id == search.descriptor_id)
            .values(decided_index=start_index)
        )
    return len(chosen)


async def searched_above(tx: Transaction) -> int | None:
    """Height of the block above which every one must still be read; None before the first start."""
    tip = await chain_facts.tip(tx)
    from_heights = [s.from_height for s in await searches(tx) if s.from_height is not None]
    return None if tip is None else min([tip.height, *from_heights])


async def end_search(tx: Transaction, search: Search, *, now: int) -> None:
    """Let the descriptor give addresses again, beyond those that may have been handed out."""
    # One that was set later and was never paid is a new wallet: it begins where its seller said.
    margin = unassigned.INDEX_MARGIN if search.lost or search.highest_used is not None else 0
    decided = search.decided_index
    next_index = search.first_unused + margin if decided is None else decided
    await unassigned.raise_next_index(tx, search.descriptor_id, next_index)
    await tx.execute(
        update(address_searches)
        .where(address_searches.c.descriptor_id == search.descriptor_id)
        .values(ended_at=now)
    )


async def last_height(tx: Transaction) -> int:
    """Up to which block the addresses that were lost are looked for; later ones are watched anyway."""
    late = select(restores.c.restored_at + LATE_PAYMENTS_S).scalar_subquery()
    newest = select(func.max(blocks.c.height)).where(blocks.c.active, blocks.c.connected_at <= late)
    return int(await tx.scalar(newest) or 0)
