"""What happened, in order: the `events` table and the feed that tells this process about it.

An event is written in the transaction it tells of, so it exists exactly when that happened. Writes come one
after the other (`bitcache.db.engine`), so sequence numbers rise in the order of commits and a reader that
remembers the last one misses nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Struct
from sqlalchemy import Row, func, insert, select

from bitcache.db.engine import COMMITTED_MARK
from bitcache.db.tables import events
from payments.ports import Store, Transaction

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1
ROWS_PER_POLL = 500
QUEUE_EVENTS_MAX = 64


@dataclass(frozen=True, slots=True)
class Event:
    seq: int
    at: int
    topic: str
    subject: str
    json: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Events were dropped because they were not taken in time: read the state itself."""


async def append(tx: Transaction, *, topic: str, subject: str, payload: Struct, now: int) -> None:
    """Tell of something in the transaction that does it."""
    body = msgspec.json.encode(payload).decode()
    inserted = await tx.execute(insert(events).values(at=now, topic=topic, subject=subject, json=body))
    (seq,) = inserted.inserted_primary_key or (0,)
    tx.info.setdefault(COMMITTED_MARK, []).append(Event(seq, now, topic, subject, body))


async def after(tx: Transaction, seq: int, *, subject: str | None = None, limit: int) -> list[Event]:
    """Up to `limit` events after `seq`, in order, of one subject or of all."""
    query = select(events).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
    if subject is not None:
        query = query.where(events.c.subject == subject)
    return [_event(row) for row in (await tx.execute(query)).all()]


async def last_seq(tx: Transaction) -> int:
    return int(await tx.scalar(select(func.max(events.c.seq))) or 0)


class Receiver(Protocol):
    """Who hears of the events of one subject."""

    def put(self, event: Event) -> None:
        """Must be quick and not raise."""


class Subscription:
    """Events of one subject, for one reader. One that falls behind is told to reload; nobody waits for it."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_EVENTS_MAX)
        self._overrun = False

    def put(self, event: Event) -> None:
        if self._queue.full():
            self._overrun = True
            while not self._queue.empty():
                self._queue.get_nowait()
        self._queue.put_nowait(event)

    async def next(self) -> Event | Reload:
        """The next event. After dropped ones a Reload; the event that came last still follows it."""
        if self._overrun:
            self._overrun = False
            return Reload()
        return await self._queue.get()


class EventFeed:
    """Reads the events of all processes and hands them on here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._woken = asyncio.Event()
        self._listeners: list[Callable[[Event], None]] = []
        self._receivers: dict[str, set[Receiver]] = {}
        self.last_seq = 0
        self.looked_at = 0.0
        """Monotonic time at which the feed had last handed on everything there was."""

    async def start(self) -> None:
        """Begin after the newest event: state that exists already is loaded, not replayed."""
        self.last_seq = await self._store.read(last_seq)
        self.looked_at = time.monotonic()

    def hear(self, appended: Sequence[Event]) -> None:
        """Hand on what was committed here; where other processes' events lie between, look at once."""
        for event in appended:
            if event.seq != self.last_seq + 1:
                self._woken.set()
                return
            self._hand_on(event)

    def listen(self, callback: Callable[[Event], None]) -> None:
        """Call `callback` with every event from now on; it must be quick and not raise."""
        self._listeners.append(callback)

    @contextmanager
    def subscribe(self, subject: str) -> Iterator[Subscription]:
        """The events of one subject, from now until the end of the `with` block."""
        subscription = Subscription()
        self.attach(subject, subscription)
        try:
            yield subscription
        finally:
            self.detach(subject, subscription)

    def attach(self, subject: str, receiver: Receiver) -> None:
        """Tell `receiver` of the subject's events, until it is detached."""
        self._receivers.setdefault(subject, set()).add(receiver)

    def detach(self, subject: str, receiver: Receiver) -> None:
        others = self._receivers[subject]
        others.discard(receiver)
        if not others:
            del self._receivers[subject]

    async def poll_once(self) -> None:
        """Hand on what was committed since the last time."""
        while True:
            started_at = time.monotonic()
            found = await self._store.read(lambda tx: after(tx, self.last_seq, limit=ROWS_PER_POLL))
            for event in found:
                # What was heard of while we read is handed on already.
                if event.seq > self.last_seq:
                    self._hand_on(event)
            if len(found) < ROWS_PER_POLL:
                self.looked_at = started_at
                return

    async def run(self) -> None:
        """Poll for ever, at once where `hear` missed something. A database that is away ends nothing."""
        while True:
            self._woken.clear()
            try:
                await self.poll_once()
            except Exception:
                log.exception("the event feed could not read the database; it goes on trying")
                await asyncio.sleep(POLL_INTERVAL_S)
            try:
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _hand_on(self, event: Event) -> None:
        self.last_seq = event.seq
        for listener in self._listeners:
            listener(event)
        for receiver in self._receivers.get(event.subject, ()):
            receiver.put(event)


def _event(row: Row[tuple[object, ...]]) -> Event:
    return Event(seq=row.seq, at=row.at, topic=row.topic, subject=row.subject, json=row.json)
