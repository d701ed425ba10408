"""Server-sent events: an invoice's state when the stream opens, then every change of it.

The full state comes first whatever `Last-Event-ID` says, so a reader that lost the line has missed nothing
that still matters. Each `data` is a whole InvoiceView; the id is the event's place among all. Comments keep
idle lines open, all from one timer, which also looks whether the node went away or came back. A reader that
does not take its events is told the state again later; it delays nobody.
"""

import asyncio
from collections import Counter
from contextlib import suppress

from aiohttp import web
from msgspec import json

from bitcache.access import TOPIC, InvoiceEvent
from bitcache.api.wire import InvoiceView
from bitcache.errors import DatabaseUnavailable, TooManyRequests
from bitcache.events import Event, EventFeed, Reload, Subscription, last_seq
from bitcache.node_state import node_state
from bitcache.purchases import Purchases
from payments.ports import Clock, Store, Transaction

CONTENT_TYPE = "text/event-stream"
PING_INTERVAL_S = 15
STREAMS_MAX = 5_000
STREAMS_PER_CLIENT_MAX = 200
"""Many buyers may share an address, but one must not take the places of all."""
WRITE_S_MAX = 30
"""A line that takes nothing for so long is dead."""
RETRY_S = 60

PING = b": ping\n\n"


class InvoiceStreams:
    """All open streams of this process."""

    def __init__(
        self, *, store: Store, feed: EventFeed, purchases: Purchases, clock: Clock, stopping: asyncio.Event
    ) -> None:
        self._store = store
        self._feed = feed
        self._purchases = purchases
        self._clock = clock
        self._stopping = stopping
        self._pulse: asyncio.Future[bool] | None = None
        self._open: Counter[str] = Counter()
        """By client."""

    async def serve(self, request: web.Request, invoice_id: str, client: str) -> web.StreamResponse:
        """Stream until the reader leaves or the server stops. Raises InvoiceNotFound, TooManyRequests."""
        if self._open.total() >= STREAMS_MAX or self._open[client] >= STREAMS_PER_CLIENT_MAX:
            raise TooManyRequests("Too many event streams are open. Poll the invoice.", retry_after_s=RETRY_S)
        self._open[client] += 1
        try:
            # Subscribed first and read second: what happens in between comes twice rather than never.
            with self._feed.subscribe(invoice_id) as changes:
                seq, view = await self._state(invoice_id)
                response = await opened(request)
                await self._follow(response, changes, seq, view)
            return response
        except (ConnectionError, TimeoutError) as exc:
            raise ConnectionResetError("the reader left") from exc
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    async def _follow(
        self, response: web.StreamResponse, changes: Subscription, seq: int, view: InvoiceView
    ) -> None:
        await write(response, _frame(seq, json.encode(view)))
        stopped = asyncio.ensure_future(self._stopping.wait())
        change = asyncio.ensure_future(changes.next())
        online, stale = view.node_online, False
        try:
            while not stopped.done():
                pulse = self._next_pulse()
                await asyncio.wait((change, pulse, stopped), return_when=asyncio.FIRST_COMPLETED)
                told: Event | Reload | None = None
                if change.done():
                    told = change.result()
                    change = asyncio.ensure_future(changes.next())
                if pulse.done():
                    await write(response, PING)
                    if pulse.result() != online:
                        online, told = pulse.result(), Reload()
                match told:
                    case Event() if told.topic == TOPIC and told.seq > seq:
                        seq = told.seq
                        await write(response, _frame(seq, bytes(_view_in(told))))
                    case Reload():
                        stale = True
                if stale:
                    # A database that is away is no reason to hang up: the state comes with a later pulse.
                    with suppress(DatabaseUnavailable):
                        seq, view = await self._state(view.invoice_id)
                        stale = False
                        await write(response, _frame(seq, json.encode(view)))
        finally:
            change.cancel()
            stopped.cancel()

    async def _state(self, invoice_id: str) -> tuple[int, InvoiceView]:
        async def read(tx: Transaction) -> tuple[int, InvoiceView]:
            return await last_seq(tx), await self._purchases.view_in(tx, invoice_id)

        return await self._store.read(read)

    def _next_pulse(self) -> asyncio.Future[bool]:
        """Done at the next tick of the one timer, with whether the node is online."""
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.ensure_future(self._beat())
        return self._pulse

    async def _beat(self) -> bool:
        await asyncio.sleep(PING_INTERVAL_S)
        try:
            return (await self._store.read(lambda tx: node_state(tx, self._clock()))).online
        except DatabaseUnavailable:
            return False


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
