"""Channels in the ledger and in the events: what the chain did to them is told, what was charged is booked.

Chunks are not booked one by one: each group commit adds to what its channels bought, and once a minute that
goes into the ledger.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from msgspec import Struct

from bitcache import events
from payments import channel_store
from payments.channel_follow import ChannelFollower, book_spending
from payments.ports import Clock, Store, Transaction

log = logging.getLogger(__name__)

TOPIC = "channel"
EVERY_S = 60


class ChannelChanged(Struct, frozen=True):
    """What the event says; its subject is the channel's id."""

    state: str


class ChannelBookkeeping:
    """`follower` is for the watcher. `depth`: from which on money of a close is payable."""

    def __init__(self, *, store: Store, depth: int, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.follower = ChannelFollower(depth=depth, on_change=self.tell)

    async def tell(self, tx: Transaction, changed: Sequence[str]) -> None:
        """Whoever has these channels in memory, or on a page, reads them again."""
        now = self._clock()
        for record in await channel_store.load_all(tx, changed):
            said = ChannelChanged(state=record.state)
            await events.append(tx, topic=TOPIC, subject=record.id, payload=said, now=now)

    async def run(self) -> None:
        """Book for ever. What cannot be booked now is with the next time."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.poll_once()
            except Exception:
                log.exception("what channels were charged was not booked; it is tried again in a minute")

    async def poll_once(self) -> None:
        await self._store.write(partial(book_spending, channel_ids=None, now=self._clock()))
