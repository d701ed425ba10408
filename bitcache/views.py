"""How often offers were looked at: counted in memory, written each minute as sums per offer and UTC day.

Nobody is counted apart from anybody else: there is no address, no cookie, no time but the day. Counts of
several web processes add up.
"""

import asyncio
import datetime
import logging
from collections import Counter

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from bitcache.db.tables import offer_views, offers
from payments.ports import Clock, Store, Transaction

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 60
ENTRIES_MAX = 100_000
"""Offers and days kept between two flushes; what comes above is not counted."""
ROWS_PER_STATEMENT = 500


class OfferViews:
    """The views that the database does not know yet."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._unwritten: Counter[tuple[str, str]] = Counter()
        """By offer and day."""

    def count(self, offer_id: str) -> None:
        """Somebody other than its seller was shown the offer."""
        entry = (offer_id, day_of(self._clock()))
        if entry in self._unwritten or len(self._unwritten) < ENTRIES_MAX:
            self._unwritten[entry] += 1

    async def poll_once(self) -> None:
        """Write down what was counted. What cannot be written now stays for the next time."""
        counted = dict(self._unwritten)
        if not counted:
            return
        await self._store.write(lambda tx: add(tx, counted))
        # Taken off only now: the commit may have failed, and others were counted meanwhile.
        self._unwritten -= Counter(counted)

    async def run(self) -> None:
        """Flush for ever. A database that is away for a while loses no count."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.poll_once()
            except Exception:
                log.exception("views were not written down; they are with the next flush")


def day_of(at: int) -> str:
    """The UTC day of `at`, YYYY-MM-DD."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).date().isoformat()


async def add(tx: Transaction, counted: dict[tuple[str, str], int]) -> None:
    """Add these views, by offer and day, to what is there; of offers that do not exist, none."""
    entries = sorted(counted.items())
    for start in range(0, len(entries), ROWS_PER_STATEMENT):
        some = entries[start : start + ROWS_PER_STATEMENT]
        asked = {offer_id for (offer_id, _), _ in some}
        known = set((await tx.scalars(select(offers.c.id).where(offers.c.id.in_(asked)))).all())
        rows = [
            {"offer_id": offer_id, "day": day, "views": views}
            for (offer_id, day), views in some
            if offer_id in known
        ]
        if rows:
            await _upsert(tx, rows)


async def _upsert(tx: Transaction, rows: list[dict[str, object]]) -> None:
    # Both databases have the same clause; SQLAlchemy keeps it with each dialect.
    dialect = postgresql if tx.dialect.name == "postgresql" else sqlite
    added = dialect.insert(offer_views)
    await tx.execute(
        added.on_conflict_do_update(
            index_elements=["offer_id", "day"],
            set_={"views": offer_views.c.views + added.excluded.views},
        ),
        rows,
    )
