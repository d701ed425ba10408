"""Which grants may download now: the check in front of every byte.

A token says who asks (`bitcache.grant_tokens`), the book whether the payment still stands. The book holds
the grants in use in memory and hears of every change through the event feed, so a request costs one HMAC
and one look-up. A grant is read from the database when it is first used, when its entry may have missed a
change, and on every request while the feed is silent. A response that runs is not cut; the next request is.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from msgspec import json
from sqlalchemy import select, update

from bitcache.access import TOPIC as INVOICE_TOPIC
from bitcache.access import InvoiceEvent
from bitcache.db.tables import grants, offers, parcels
from bitcache.errors import (
    GrantExhausted,
    GrantForeign,
    GrantMissing,
    GrantSuspended,
    GrantTokenInvalid,
    TakenDown,
)
from bitcache.events import Event
from bitcache.grant_tokens import GrantClaims, open_token, seal_token
from bitcache.ids import id_text, raw_id
from payments.ports import Clock, Store, Transaction
from payments.tables import invoices

log = logging.getLogger(__name__)

OFFER_TOPIC = "offer"
FEED_AGE_MAX_S = 30
"""A feed silent for longer may have lost something: the database is asked instead."""
PARCELS_SERVED_MAX = 20
"""How often over a grant may download its parcel once it has the key; before the key, once."""
CONNECTIONS_MAX = 4
RETRY_BUSY_S = 5
RETRY_EXHAUSTED_S = 3_600
FLUSH_INTERVAL_S = 20
IDLE_S = 3_600
ENTRIES_MAX = 100_000
LOAD_ATTEMPTS_MAX = 3


@dataclass(slots=True)
class Entry:
    """One grant in use. Changes without an await in between."""

    grant_id: bytes
    invoice_id: str
    offer_id: str
    parcel_id: str
    parcel_bytes: int
    bytes_allowed: bool
    key_allowed: bool
    released: bool
    """Bytes or the key were given before: what is not allowed now is suspended, not unpaid."""
    taken_down: bool
    bytes_served: int
    """Sent so far, all processes' as of loading, and this process's since."""
    bytes_unwritten: int = 0
    """The part of it that the database does not know yet."""
    bytes_under_way: int = 0
    connections: int = 0
    fresh: bool = True
    """False: read it again before relying on it."""
    used_at: float = 0.0

    @property
    def bytes_max(self) -> int:
        return self.parcel_bytes * (PARCELS_SERVED_MAX if self.key_allowed else 1)


@dataclass(slots=True)
class Passage:
    """One admitted response: says what it sent as it goes."""

    entry: Entry
    left_bytes: int

    def sent(self, length: int) -> None:
        self.left_bytes -= length
        self.entry.bytes_under_way -= length
        self.entry.bytes_served += length
        self.entry.bytes_unwritten += length


class GrantBook:
    """The grants in use by this process."""

    def __init__(
        self,
        *,
        store: Store,
        key: bytes,
        token_lifetime_s: int,
        feed_looked_at: Callable[[], float],
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key`: 32 bytes, the same in every process and after every start.

        `feed_looked_at`: monotonic time at which the event feed had last handed on everything there was.
        """
        self._store = store
        self._key = key
        self._token_lifetime_s = token_lifetime_s
        self._clock = clock
        self._monotonic = monotonic
        self._entries: dict[bytes, Entry] = {}
        self._changes = 0
        self._feed_looked_at = feed_looked_at

    # Tokens.

    def issue(self, *, grant_id: str, offer_id: str, parcel_id: str) -> tuple[str, int]:
        """(token, when it expires)."""
        expires_at = self._clock() + self._token_lifetime_s
        claims = GrantClaims(raw_id(grant_id), raw_id(offer_id), raw_id(parcel_id), expires_at)
        return seal_token(self._key, claims), expires_at

    async def check(self, token: str, offer_id: str) -> Entry:
        """The grant of `token`, if it allows the bytes of `offer_id` now.

        Raises GrantTokenInvalid, GrantForeign, GrantMissing, GrantSuspended, TakenDown.
        """
        claims = open_token(self._key, token, self._clock())
        entry = self._entries.get(claims.grant_id)
        if entry is None or not entry.fresh or self._feed_is_stale():
            entry = await self._load(claims.grant_id)
        entry.used_at = self._monotonic()
        if entry.offer_id != offer_id:
            raise GrantForeign
        if entry.taken_down:
            raise TakenDown(offer_id)
        if not entry.bytes_allowed:
            if entry.released:
                raise GrantSuspended(entry.invoice_id)
            raise GrantMissing(offer_id, entry.invoice_id)
        return entry

    @contextmanager
    def passage(self, entry: Entry, length: int) -> Iterator[Passage]:
        """Room for one response of `length` bytes. Raises GrantExhausted.

        What is under way counts until it is sent or given up, so that many requests at once cannot pass the
        limit together; what was not sent in the end does not count.
        """
        if entry.connections >= CONNECTIONS_MAX:
            raise GrantExhausted(
                f"This grant already has {CONNECTIONS_MAX} downloads running. Wait until one of them ends.",
                retry_after_s=RETRY_BUSY_S,
            )
        if entry.bytes_served + entry.bytes_under_way + length > entry.bytes_max:
            raise GrantExhausted(_exhausted(entry), retry_after_s=RETRY_EXHAUSTED_S)
        entry.connections += 1
        entry.bytes_under_way += length
        passage = Passage(entry, length)
        try:
            yield passage
        finally:
            entry.connections -= 1
            entry.bytes_under_way -= passage.left_bytes

    # What the feed and local commits tell.

    def on_event(self, event: Event) -> None:
        """For `EventFeed.listen`: what changed is read again before its next use."""
        if event.topic == INVOICE_TOPIC:
            self.doubt(json.decode(event.json, type=InvoiceEvent).grant_id)
        elif event.topic == OFFER_TOPIC:
            self._changes += 1
            for entry in self._entries.values():
                entry.fresh = entry.fresh and entry.offer_id != event.subject

    def doubt(self, grant_id: str) -> None:
        """This grant changed: read it again before its next use."""
        self._changes += 1
        entry = self._entries.get(raw_id(grant_id))
        if entry is not None:
            entry.fresh = False

    # Counting.

    async def flush(self) -> None:
        """Write down what was sent, and forget grants long unused."""
        counted = [
            (entry, entry.bytes_unwritten) for entry in self._entries.values() if entry.bytes_unwritten
        ]
        if counted:

            async def add(tx: Transaction) -> None:
                for entry, length in counted:
                    await tx.execute(
                        update(grants)
                        .where(grants.c.id == id_text(entry.grant_id))
                        .values(bytes_served=grants.c.bytes_served + length)
                    )

            await self._store.write(add)
        for entry, length in counted:
            entry.bytes_unwritten -= length
        self._forget_idle()

    async def run(self) -> None:
        """Flush for ever. A database that is away for a while loses no count."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
            except Exception:
                log.exception("bytes served were not written down; they are with the next flush")

    def _feed_is_stale(self) -> bool:
        return self._monotonic() - self._feed_looked_at() > FEED_AGE_MAX_S

    async def _load(self, grant_id: bytes) -> Entry:
        """The grant as committed, into the entry that counts its bytes and connections."""
        for _ in range(LOAD_ATTEMPTS_MAX):
            changes = self._changes
            found = await self._store.read(lambda tx: _read(tx, grant_id))
            quiet = changes == self._changes
            if quiet:
                break
        entry = self._entries.setdefault(grant_id, found)
        entry.bytes_allowed = found.bytes_allowed
        entry.key_allowed = found.key_allowed
        entry.released = found.released
        entry.taken_down = found.taken_down
        entry.bytes_served = found.bytes_served + entry.bytes_unwritten
        # A change that came while we read may be newer than what we read: good for this request only.
        entry.fresh = quiet
        return entry

    def _forget_idle(self) -> None:
        now = self._monotonic()
        crowded = len(self._entries) > ENTRIES_MAX
        for grant_id, entry in list(self._entries.items()):
            unused = not entry.connections and not entry.bytes_unwritten
            if unused and (crowded or now - entry.used_at > IDLE_S):
                del self._entries[grant_id]


async def _read(tx: Transaction, grant_id: bytes) -> Entry:
    joined = (
        select(grants, parcels.c.size_bytes, offers.c.taken_down_at, invoices.c.released_at)
        .join(parcels, parcels.c.id == grants.c.parcel_id)
        .join(offers, offers.c.id == grants.c.offer_id)
        .join(invoices, invoices.c.id == grants.c.invoice_id)
        .where(grants.c.id == id_text(grant_id))
    )
    row = (await tx.execute(joined)).one_or_none()
    if row is None:
        raise GrantTokenInvalid("names a grant this server does not have")
    return Entry(
        grant_id=grant_id,
        invoice_id=row.invoice_id,
        offer_id=row.offer_id,
        parcel_id=row.parcel_id,
        parcel_bytes=row.size_bytes,
        bytes_allowed=row.bytes_allowed,
        key_allowed=row.key_allowed,
        released=row.released_at is not None or row.bytes_served > 0,
        taken_down=row.taken_down_at is not None,
        bytes_served=row.bytes_served,
    )


def _exhausted(entry: Entry) -> str:
    if not entry.key_allowed:
        return "Everything was sent once. The key, and more downloads, come when the payment is confirmed."
    return (
        f"This grant has downloaded its files {PARCELS_SERVED_MAX} times over. "
        "Use the copy you have, or ask the seller for another link."
    )
