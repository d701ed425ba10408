"""Server-sent events: an invoice's state when the stream opens, then every change of it.

The full state comes first whatever `Last-Event-ID` says, so a reader that lost the line has missed nothing
that still matters. Each `data` is a whole InvoiceView; the id is the event's place among all. Comments keep
idle lines open, all from one timer, which also looks whether the node went away or came back. A reader that
does not take its events is cut off, and is told the whole state when it comes again; it delays nobody.

Thousands may listen at the same time, so an open stream is its connection and a few numbers: no request, no
task, no timer, no queue. A few at a time read the database: a crowd that opens streams leaves room for who
pays.
"""

import asyncio
from collections import Counter

from aiohttp import HttpVersion11, web
from msgspec import json

from bitcache.access import TOPIC, InvoiceEvent
from bitcache.api.connection import Connection, Endless
from bitcache.api.wire import InvoiceView
from bitcache.errors import DatabaseUnavailable, TooManyRequests
from bitcache.events import Event, EventFeed, last_seq
from bitcache.node_state import node_state
from bitcache.purchases import Purchases
from payments.ports import Clock, Store, Transaction

CONTENT_TYPE = "text/event-stream"
HEADERS = {
    "Content-Type": f"{CONTENT_TYPE}; charset=utf-8",
    "Cache-Control": "no-store",
    # nginx would hold events back until its buffer is full.
    "X-Accel-Buffering": "no",
}
PING_INTERVAL_S = 15
RETRY_S = 60
UNSENT_BYTES_MAX = 128 * 1024
"""A hundred events or so that the reader did not take."""
READING_AT_ONCE = 2
PINGED_AT_ONCE = 100
DATABASE_RETRY_S = 1

PING = b": ping\n\n"


class _Stream:
    """One reader, of one invoice."""

    __slots__ = ("_chunked", "_transport", "client", "invoice_id", "online", "seq", "stale", "streams")

    def __init__(self, streams: "InvoiceStreams", invoice_id: str, client: str, *, chunked: bool) -> None:
        self.streams = streams
        self.invoice_id = invoice_id
        self.client = client
        self.seq = 0
        """The last event told."""
        self.online = False
        """The node, as the reader knows it."""
        self.stale = False
        """The state must be told anew."""
        self._chunked = chunked
        self._transport: asyncio.Transport | None = None
        """None while the stream is being opened."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def begin(self, transport: asyncio.Transport) -> None:
        """The head and the first state are sent."""
        self._transport = transport

    def put(self, event: Event) -> None:
        """For the feed."""
        if event.topic != TOPIC or event.seq <= self.seq:
            return
        if not self.is_open:
            self.stale = True
            return
        self.seq = event.seq
        self.send(_frame(event.seq, bytes(_view_in(event))))

    def send(self, octets: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(octets), octets) if self._chunked else octets)
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._transport.abort()

    def end(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._chunked:
            self._transport.write(b"0\r\n\r\n")
        self._transport.close()

    def lost(self) -> None:
        """The reader has left."""
        self.streams.forget(self)


class InvoiceStreams:
    """All open streams of this process. `run` must be running for them to be kept open."""

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
        self._all: set[_Stream] = set()
        self._by_client: Counter[str] = Counter()
        self._somebody = asyncio.Event()
        self._reading = asyncio.Semaphore(READING_AT_ONCE)
        self._stale: dict[_Stream, None] = {}
        """In order."""
        self._some_stale = asyncio.Event()

    @property
    def count(self) -> int:
        return len(self._all)

    async def run(self) -> None:
        """Ping those who listen, and tell the state anew where it must be, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ping())
            tasks.create_task(self._renew())

    def end(self) -> None:
        """The server stops: every stream comes to its end."""
        for stream in tuple(self._all):
            stream.end()

    async def serve(self, request: web.Request, invoice_id: str, client: str) -> web.StreamResponse:
        """Open a stream; it goes on by itself. Raises InvoiceNotFound, TooManyRequests."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        stream = self._placed(invoice_id, client, chunked=request.version >= HttpVersion11)
        try:
            seq, frame = await self._state(stream)
            response = Endless(headers=HEADERS)
            await response.prepare(request)
            await response.write(frame)
            stream.seq = seq
            stream.begin(connection.hold(stream.lost))
        except BaseException:
            self.forget(stream)
            raise
        if stream.stale:
            self._note_stale(stream)
        if self._stopping.is_set():
            stream.end()
        return response

    def forget(self, stream: _Stream) -> None:
        """Give its place back. Again is harmless."""
        if stream not in self._all:
            return
        self._all.discard(stream)
        self._stale.pop(stream, None)
        self._feed.detach(stream.invoice_id, stream)
        if not self._all:
            self._somebody.clear()
        self._by_client[stream.client] -= 1
        if not self._by_client[stream.client]:
            del self._by_client[stream.client]

    def _placed(self, invoice_id: str, client: str, *, chunked: bool) -> _Stream:
        if len(self._all) >= self._count_max or self._by_client[client] >= self._per_client_max:
            raise TooManyRequests("Too many event streams are open. Poll the invoice.", retry_after_s=RETRY_S)
        stream = _Stream(self, invoice_id, client, chunked=chunked)
        self._all.add(stream)
        self._by_client[client] += 1
        self._somebody.set()
        # Attached first and read second: what happens in between is told twice rather than never.
        self._feed.attach(invoice_id, stream)
        return stream

    async def _state(self, stream: _Stream) -> tuple[int, bytes]:
        """(the last event it knows of, as it is told)."""

        async def read(tx: Transaction) -> tuple[int, InvoiceView]:
            return await last_seq(tx), await self._purchases.view_in(tx, stream.invoice_id)

        async with self._reading:
            seq, view = await self._store.read(read)
        stream.online = view.node_online
        return seq, _frame(seq, json.encode(view))

    async def _ping(self) -> None:
        while True:
            await self._somebody.wait()
            await asyncio.sleep(PING_INTERVAL_S)
            try:
                online = (await self._store.read(lambda tx: node_state(tx, self._clock()))).online
            except DatabaseUnavailable:
                online = False
            for number, stream in enumerate(tuple(self._all), start=1):
                if stream.is_open:
                    stream.send(PING)
                    if stream.online != online:
                        self._note_stale(stream)
                if number % PINGED_AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _note_stale(self, stream: _Stream) -> None:
        self._stale[stream] = None
        self._some_stale.set()

    async def _renew(self) -> None:
        while True:
            await self._some_stale.wait()
            self._some_stale.clear()
            while self._stale:
                stream = next(iter(self._stale))
                try:
                    seq, frame = await self._state(stream)
                except DatabaseUnavailable:
                    # No reason to hang up: the state comes when it is back.
                    await asyncio.sleep(DATABASE_RETRY_S)
                    continue
                self._stale.pop(stream, None)
                stream.seq = max(seq, stream.seq)
                stream.send(frame)


def _frame(seq: int, view_json: bytes) -> bytes:
    # JSON from the encoder has no line break, so one data line holds it.
    return b"id: %d\nevent: invoice\ndata: %b\n\n" % (seq, view_json)


def _view_in(event: Event) -> bytes:
    return bytes(json.decode(event.json, type=InvoiceEvent).view)
