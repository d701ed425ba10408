"""What nobody has a right to goes: unfinished uploads, files of no parcel, parcels past their last buyer,
sessions that are over, reports handled long ago.

Rows go first, in one transaction that looks again; then the blobs. A crash in between leaves blobs that no
row names. They go too, but late: after an older backup of the database was restored, every newer upload looks
like them, and the operator needs time to notice.
"""

import asyncio
import logging

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update

from bitcache import reports, sessions
from bitcache.config import Config
from bitcache.db.tables import accounts, events, files, grants, parcel_files, parcels
from bitcache.uploads import delete_rows
from payments.ports import Clock, Store, Transaction
from storage.ports import BlobStore

log = logging.getLogger(__name__)

INTERVAL_S = 600
PER_TURN_MAX = 500
ORPHAN_KEPT_S = 7 * 86_400
"""Since this process first saw that no row names the blob: with a restored backup its age says nothing."""
EVENTS_KEPT_S = 30 * 86_400


class Sweep:
    """One turn every ten minutes."""

    def __init__(self, *, config: Config, store: Store, blobs: BlobStore, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._orphan_since: dict[str, int] = {}

    async def run(self) -> None:
        """Sweep for ever. A turn that fails is told and tried again."""
        while True:
            try:
                await self.poll_once()
            except Exception:
                log.exception("sweeping failed; it is tried again in %d s", INTERVAL_S)
            await asyncio.sleep(INTERVAL_S)

    async def poll_once(self) -> None:
        now = self._clock()
        await self._store.write(lambda tx: self._apply_due_payouts(tx, now))
        await self._store.write(lambda tx: self._empty_parcels(tx, now))
        for file_id in await self._store.write(lambda tx: self._forget_files(tx, now)):
            await self._blobs.delete(file_id)
        await self._delete_orphans(now)
        await self._store.write(lambda tx: _trim_events(tx, now))
        await self._store.write(lambda tx: sessions.forget_over(tx, now=now))
        await self._store.write(lambda tx: reports.forget_handled(tx, now=now))

    async def _apply_due_payouts(self, tx: Transaction, now: int) -> None:
        """Write down changes of wallet that time has put in force."""
        await tx.execute(
            update(accounts)
            .where(accounts.c.pending_descriptor_id.is_not(None), accounts.c.pending_until <= now)
            .values(
                descriptor_id=accounts.c.pending_descriptor_id, pending_descriptor_id=None, pending_until=None
            )
        )

    async def _empty_parcels(self, tx: Transaction, now: int) -> None:
        """Parcels that were deleted and whose every grant has ended, and those never sealed.

        Their rows stay, since old invoices name them; their files and secrets go.
        """
        abandoned = and_(
            parcels.c.sealed_at.is_(None), parcels.c.created_at <= now - self._config.upload_expiry_s
        )
        gone = select(parcels.c.id).where(
            or_(parcels.c.deleted_at.is_not(None), abandoned),
            ~_right_holds(now),
            exists().where(parcel_files.c.parcel_id == parcels.c.id),
        )
        ids = list((await tx.scalars(gone.limit(PER_TURN_MAX))).all())
        await tx.execute(delete(parcel_files).where(parcel_files.c.parcel_id.in_(ids)))
        await tx.execute(
            update(parcels)
            .where(parcels.c.id.in_(ids))
            .values(
                metadata=None,
                sealed_release_secret=None,
                deleted_at=func.coalesce(parcels.c.deleted_at, now),
            )
        )

    async def _forget_files(self, tx: Transaction, now: int) -> list[str]:
        """Files in no parcel that nobody touched for long; those that a parcel held until now, at once."""
        held = exists().where(parcel_files.c.file_id == files.c.id)
        stale = files.c.touched_at <= now - self._config.upload_expiry_s
        found = await tx.scalars(select(files.c.id).where(~held, stale).limit(PER_TURN_MAX))
        ids = list(found.all())
        await delete_rows(tx, ids)
        return ids

    async def _delete_orphans(self, now: int) -> None:
        orphans = await self._orphans()
        if fresh := len(orphans - self._orphan_since.keys()):
            log.warning(
                "blobs that no row of the database names: %d. They are deleted in %d days; if an older "
                "backup was restored, keep a copy of them.",
                fresh,
                ORPHAN_KEPT_S // 86_400,
            )
        self._orphan_since = {file_id: self._orphan_since.get(file_id, now) for file_id in orphans}
        for file_id, since in self._orphan_since.items():
            if since <= now - ORPHAN_KEPT_S:
                log.info("deleting a blob that no file names: %s", file_id)
                await self._blobs.delete(file_id)

    async def _orphans(self) -> set[str]:
        """Blobs without a row. A row comes before its blob, so none of them can be of an upload under way."""
        stored = [blob.file_id async for blob in self._blobs.list()]
        orphans: set[str] = set()
        for start in range(0, len(stored), PER_TURN_MAX):
            some = stored[start : start + PER_TURN_MAX]
            known = await self._store.read(
                lambda tx, some=some: tx.scalars(select(files.c.id).where(files.c.id.in_(some)))  # type: ignore[misc]
            )
            orphans |= set(some) - set(known.all())
        return orphans


def _right_holds(now: int) -> ColumnElement[bool]:
    """Some buyer of the parcel still has, or may get by a payment under way, the right to its bytes."""
    return exists().where(grants.c.parcel_id == parcels.c.id, grants.c.retained_until > now)


async def _trim_events(tx: Transaction, now: int) -> None:
    """Old events, but never the newest: sequence numbers must not be given out twice."""
    newest = select(func.max(events.c.seq)).scalar_subquery()
    await tx.execute(delete(events).where(events.c.at <= now - EVENTS_KEPT_S, events.c.seq < newest))
