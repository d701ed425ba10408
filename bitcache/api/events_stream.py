"""Server-sent events: an invoice's state when the stream opens, then every change of it.

The full state comes first whatever `Last-Event-ID` says, so a reader that lost the line has missed nothing
that still matters. Each `data` is a whole InvoiceView; the id is the event's place among all. Comments keep
idle lines open, all from one timer, which also looks whether the node went away or came back. A reader that
does not take its events is told the state again later; it delays nobody.

Thousands may listen at the same time, so a stream that waits is one future and nothing else: no task, no
timer, no queue. A few at a time read the database: a crowd that opens streams leaves room for who pays.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiohttp import web
from msgspec import json

from bitcache.access import TOPIC, InvoiceEvent
from bitcache.api.connections import Connection
from bitcache.api.wire import InvoiceView
from bitcache.errors import DatabaseUnavailable, TooManyRequests
from bitcache.events import Event, EventFeed, last_seq
from bitcache.node_state import node_state
from bitcache.purchases import Purchases
from payments.ports import Clock, Store, Transaction

CONTENT_TYPE = "text/event-stream"
PING_INTERVAL_S = 15
WRITE_S_MAX = 30
"""A line that takes nothing for so long is dead."""
RETRY_S = 60
EVENTS_WAITING_MAX = 64
"""A reader further behind is told the state instead."""
READING_AT_ONCE = 2
PINGED_AT_ONCE = 100

PING = b": ping\n\n"


class _Listener:
    """What an open stream has been told and has not passed on."""

    __slots__ = ("_waiter", "ended", "events", "lost", "online", "pinged", "stale")

    def __init__(self) -> None:
        self.events: tuple[Event, ...] = ()
        self.online = False
        """The node, as the reader knows it."""
        self.stale = False
        """The state must be told anew."""
        self.pinged = self.ended = self.lost = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """For the feed."""
        if event.topic != TOPIC:
            return
        if len(self.events) >= EVENTS_WAITING_MAX:
            self.events, self.stale = (), True
        self.events += (event,)
        self._wake()

    def pulse(self, *, online: bool) -> None:
        self.pinged = True
        self.stale |= online != self.online
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def lose(self) -> None:
        """The reader is gone."""
        self.lost = True
        self.end()

    async def news(self) -> bool:
        """Whether there is any; False at the end."""
        if not (self.events or self.pinged or self.ended):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        return not self.ended

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InvoiceStreams:
    """All open streams of this process. `run` must be running for them to be pinged."""

    def __init__(
        self,
        *,
        store: Store,
        feed: EventFeed,
        purchases: Purchases,
        clock: Clock,
        stopping: asyncio.Event,
        count_max: int,
        per_client_max: int,
    ) -> None:
        self._store = store
        self._feed = feed
        self._purchases = purchases
        self._clock = clock
        self._stopping = stopping
        self._count_max = count_max
        self._per_client_max = per_client_max
        self._open: set[_Listener] = set()
        self._by_client: Counter[str] = Counter()
        self._somebody = asyncio.Event()
        self._reading = asyncio.Semaphore(READING_AT_ONCE)

    @property
    def count(self) -> int:
        return len(self._open)

    async def run(self) -> None:
        """Ping for ever, while there is somebody."""
        while True:
            await self._somebody.wait()
            await asyncio.sleep(PING_INTERVAL_S)
            await self._pulse()

    def end(self) -> None:
        """The server stops: every stream comes to its end."""
        for listener in self._open:
            listener.end()

    async def serve(self, request: web.Request, invoice_id: str, client: str) -> web.StreamResponse:
        """Stream until the reader leaves or the server stops. Raises InvoiceNotFound, TooManyRequests."""
        with self._place(client) as listener, _told_when_lost(request, listener):
            # Attached first and read second: what happens in between comes twice rather than never.
            self._feed.attach(invoice_id, listener)
            try:
                return await self._stream(request, invoice_id, listener)
            except (ConnectionError, TimeoutError) as exc:
                raise ConnectionResetError("the reader left") from exc
            finally:
                self._feed.detach(invoice_id, listener)

    async def _stream(self, request: web.Request, invoice_id: str, listener: _Listener) -> web.StreamResponse:
        seq, frame = await self._state(invoice_id, listener)
        response = await opened(request)
        await write(response, frame)
        # It is some kB, and this may wait for days.
        del frame
        while not self._stopping.is_set() and await listener.news():
            if listener.pinged:
                listener.pinged = False
                await write(response, PING)
            events, listener.events = listener.events, ()
            for event in events:
                if event.seq > seq:
                    seq = event.seq
                    await write(response, _frame(seq, bytes(_view_in(event))))
            if listener.stale:
                # A database that is away is no reason to hang up: the state comes with a later pulse.
                with suppress(DatabaseUnavailable):
                    seq, frame = await self._state(invoice_id, listener)
                    listener.stale = False
                    await write(response, frame)
                    del frame
        if listener.lost:
            raise ConnectionResetError("the reader left")
        return response

    async def _state(self, invoice_id: str, listener: _Listener) -> tuple[int, bytes]:
        """(the last event it knows of, as it is told)."""

        async def read(tx: Transaction) -> tuple[int, InvoiceView]:
            return await last_seq(tx), await self._purchases.view_in(tx, invoice_id)

        async with self._reading:
            seq, view = await self._store.read(read)
        listener.online = view.node_online
        return seq, _frame(seq, json.encode(view))

    async def _pulse(self) -> None:
        try:
            online = (await self._store.read(lambda tx: node_state(tx, self._clock()))).online
        except DatabaseUnavailable:
            online = False
        for number, listener in enumerate(tuple(self._open), start=1):
            listener.pulse(online=online)
            if number % PINGED_AT_ONCE == 0:
                await asyncio.sleep(0)

    @contextmanager
    def _place(self, client: str) -> Iterator[_Listener]:
        if len(self._open) >= self._count_max or self._by_client[client] >= self._per_client_max:
            raise TooManyRequests("Too many event streams are open. Poll the invoice.", retry_after_s=RETRY_S)
        listener = _Listener()
        self._open.add(listener)
        self._somebody.set()
        self._by_client[client] += 1
        try:
            yield listener
        finally:
            self._open.discard(listener)
            if not self._open:
                self._somebody.clear()
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]


@contextmanager
def _told_when_lost(request: web.Request, listener: _Listener) -> Iterator[None]:
    """A reader that leaves is known at once, and not when something is written to it."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    connection.on_lost = listener.lose
    try:
        yield
    finally:
        connection.on_lost = None


async def opened(request: web.Request) -> web.StreamResponse:
    """An event stream, its head sent."""
    response = web.StreamResponse(
        headers={
            "Content-Type": f"{CONTENT_TYPE}; charset=utf-8",
            "Cache-Control": "no-store",
            # nginx would hold events back until its buffer is full.
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(request)
    return response


async def write(response: web.StreamResponse, frame: bytes) -> None:
    """Raises TimeoutError, ConnectionError: the reader is gone."""
    async with asyncio.timeout(WRITE_S_MAX):
        await response.write(frame)


def _frame(seq: int, view_json: bytes) -> bytes:
    # JSON from the encoder has no line break, so one data line holds it.
    return b"id: %d\nevent: invoice\ndata: %b\n\n" % (seq, view_json)


def _view_in(event: Event) -> bytes:
    return bytes(json.decode(event.json, type=InvoiceEvent).view)
