"""Tells a seller's open pages that something changed; they read themselves again.

A page hears of its own seller's invoices and wallet, and of the node going away or coming back. What changed
is not said: the page is the one place that knows how to show it. The session is looked at with every pulse.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from aiohttp import web
from msgspec import Struct, json

from bitcache.access import TOPIC as INVOICE_TOPIC
from bitcache.api.events_stream import HEADERS, PING, PING_INTERVAL_S, RETRY_S
from bitcache.errors import DatabaseUnavailable, TooManyRequests
from bitcache.events import Event, EventFeed
from bitcache.node_state import node_state
from bitcache.payout_wallet import TOPIC as PAYOUT_TOPIC
from payments.ports import Clock, Store

WRITE_S_MAX = 30
"""A line that takes nothing for so long is dead."""
CHANGES_INTERVAL_S = 0.5
"""A burst of events is one change."""
CHANGED = b"event: changed\ndata: \n\n"

SignedIn = Callable[[], Awaitable[bool]]


class _Concerned(Struct):
    """The one field that matters here of an `InvoiceEvent`; those of older versions have none."""

    seller_id: str = ""


class SellerStreams:
    """All open streams of this process."""

    def __init__(
        self,
        *,
        store: Store,
        feed: EventFeed,
        clock: Clock,
        stopping: asyncio.Event,
        count_max: int,
        per_seller_max: int,
    ) -> None:
        self._count_max = count_max
        self._per_seller_max = per_seller_max
        self._store = store
        self._clock = clock
        self._stopping = stopping
        self._open: dict[str, set[asyncio.Event]] = {}
        """By seller; each is set when something changed."""
        feed.listen(self._on_event)

    async def serve(self, request: web.Request, seller_id: str, signed_in: SignedIn) -> web.StreamResponse:
        """Stream until the reader leaves, the session ends or the server stops. Raises TooManyRequests."""
        with self._place(seller_id) as changed:
            online = await self._online()
            try:
                response = web.StreamResponse(headers=HEADERS)
                await response.prepare(request)
                await self._follow(response, changed, online, signed_in)
            except (ConnectionError, TimeoutError) as exc:
                raise ConnectionResetError("the reader left") from exc
        return response

    async def _follow(
        self, response: web.StreamResponse, changed: asyncio.Event, online: bool, signed_in: SignedIn
    ) -> None:
        loop = asyncio.get_running_loop()
        await _write(response, PING)
        pulse_at = loop.time() + PING_INTERVAL_S
        stopped = asyncio.ensure_future(self._stopping.wait())
        change = asyncio.ensure_future(changed.wait())
        try:
            while not stopped.done():
                left_s = max(0.0, pulse_at - loop.time())
                await asyncio.wait((change, stopped), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if loop.time() >= pulse_at:
                    pulse_at = loop.time() + PING_INTERVAL_S
                    # A database that is away is no reason to hang up: it is asked again with the next pulse.
                    with suppress(DatabaseUnavailable):
                        if not await signed_in():
                            return
                        was_online, online = online, await self._online()
                        if online != was_online:
                            changed.set()
                    await _write(response, PING)
                if changed.is_set():
                    changed.clear()
                    await _write(response, CHANGED)
                    await asyncio.sleep(CHANGES_INTERVAL_S)
                if change.done():
                    change = asyncio.ensure_future(changed.wait())
        finally:
            change.cancel()
            stopped.cancel()

    async def _online(self) -> bool:
        return (await self._store.read(lambda tx: node_state(tx, self._clock()))).online

    @contextmanager
    def _place(self, seller_id: str) -> Iterator[asyncio.Event]:
        of_all = sum(len(streams) for streams in self._open.values())
        of_seller = len(self._open.get(seller_id, ()))
        if of_all >= self._count_max or of_seller >= self._per_seller_max:
            raise TooManyRequests("Too many event streams are open. Reload the page.", retry_after_s=RETRY_S)
        changed = asyncio.Event()
        self._open.setdefault(seller_id, set()).add(changed)
        try:
            yield changed
        finally:
            others = self._open[seller_id]
            others.discard(changed)
            if not others:
                del self._open[seller_id]

    def _on_event(self, event: Event) -> None:
        if not self._open:
            return
        if event.topic == INVOICE_TOPIC:
            seller_id = json.decode(event.json, type=_Concerned).seller_id
        elif event.topic == PAYOUT_TOPIC:
            seller_id = event.subject
        else:
            return
        for changed in self._open.get(seller_id, ()):
            changed.set()


async def _write(response: web.StreamResponse, frame: bytes) -> None:
    """Raises TimeoutError, ConnectionError: the reader is gone."""
    async with asyncio.timeout(WRITE_S_MAX):
        await response.write(frame)
