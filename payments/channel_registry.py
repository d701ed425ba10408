"""All channels of a database, in the one process that has them.

A request is decided at once, in memory (`payments.channel_live`), and answered when the decision is on the
disk (`payments.channel_commit`). What the chain says comes from the database, where the watcher writes it.
A process without the lease (`payments.channel_host`) knows no channel, and says so.
"""

import asyncio
import logging
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from payments import channel_host, channel_places, channel_store
from payments.chain_facts import BlockRef
from payments.channel import LOST_S, Balance, ChannelState, Charge, CloseReason, Voucher
from payments.channel_commit import GroupCommit, Writing
from payments.channel_errors import (
    ChannelClosed,
    ChannelsElsewhere,
    ChannelSuspended,
    ConfirmationsNeeded,
)
from payments.channel_exposure import Exposure
from payments.channel_live import Decision, LiveChannel, LiveChannels
from payments.channel_pages import PageKey, RetryKey, read_page
from payments.channel_places import Place
from payments.channel_record import Agreed
from payments.money import Msat
from payments.ports import Clock, Store, Transaction, WriteAtOnce

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_INTERVAL_S = 2
ALL_LOOKED_AT_S = 30
"""So often all channels are compared with the database, though neither a block nor an event asks for it."""
PUT_AT_ONCE = 500
"""Channels taken into memory before others have their turn."""


@dataclass(frozen=True, slots=True)
class Paid:
    """A voucher that was taken, durably."""

    channel_id: str
    balance: Balance
    cost_msat: Msat
    """What was charged just now; 0 for a voucher alone, and for what was paid before."""
    confirmations: int


class ChannelRegistry:
    """Memory never says more than the disk to anybody: what is decided is written before it is told."""

    def __init__(
        self,
        *,
        store: Store,
        exposure: Exposure,
        clock: Clock,
        at_once: WriteAtOnce | None = None,
        holder: str | None = None,
    ) -> None:
        """`at_once`: of the same database, where it has it; then vouchers are written by it."""
        self._store = store
        self._at_once = at_once
        self._clock = clock
        self._name = holder or secrets.token_hex(16)
        self._holder = ""
        """Another one each time that the lease is taken: what was begun under an earlier one fails."""
        self._takes = 0
        self._live = LiveChannels(exposure)
        self._commits = GroupCommit(self._write_batch, self._forget, clock)
        self._in_doubt = False
        """A write failed: it may still be under way, and reads may miss it until another write has been."""
        self._hinted: set[str] = set()
        self._woken = asyncio.Event()
        self._tip: BlockRef | None = None
        self._all_looked_at = 0
        self._one_at_a_time = asyncio.Lock()
        self.available = False
        """Whether this process has the channels, as far as it knows."""

    @property
    def tip_height(self) -> int:
        """By which depths are judged here."""
        return self._live.tip_height

    async def pay(self, voucher: Voucher, charge: Charge | None) -> Paid:
        """Charge what was not paid for before to the channel, and take the voucher.

        Durable when it returns. Raises ChannelsElsewhere, ChannelNotFound (also while nobody has opened it),
        ChannelClosed, ChannelSuspended, ExpiryTooNear, VoucherOverDeposit, VoucherDustChange,
        SignatureInvalid, RetriesExhausted, ConfirmationsNeeded, UnconfirmedCapReached, VoucherShort,
        VoucherStale, and the database's trouble.
        """
        try:
            return await self._pay(voucher, charge)
        except (ConfirmationsNeeded, ChannelSuspended):
            # The payer may have seen the block before we looked.
            if not await self._has_moved(voucher.channel_id):
                raise
            self._hinted.add(voucher.channel_id)
            await self.poll_once()
            return await self._pay(voucher, charge)

    async def open(self, channel_id: str, voucher: Voucher, *, deposit_min_sat: int = 0) -> Paid:
        """Open a channel whose deposit was recorded, with its first voucher; one that is open: as `pay`.

        Raises as `pay`, and DepositTooSmall.
        """
        live = await self._ready(channel_id, None)
        now = self._clock()
        return await self._written(self._live.open(live, voucher, deposit_min_sat=deposit_min_sat, now=now))

    async def ask_close(self, channel_id: str, reason: CloseReason, agreed: Agreed | None) -> None:
        """Charge nothing to it from now on; who closes it looks at its row. Durable when it returns.

        Asked again it changes nothing, but that terms agreed with the payer are added. Raises CloseRefused,
        VoucherOverDeposit, VoucherDustChange, SignatureInvalid for these, ChannelNotFound, ChannelClosed,
        ChannelsElsewhere.
        """
        live = await self._ready(channel_id, None)
        decision = self._live.ask_close(live, reason, agreed, self._clock())
        # What was decided before may not be written yet: then it goes with the same write.
        await self._commits.add(decision or Decision(live))

    async def write(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `fn` in a transaction that only the process with the channels gets.

        Raises ChannelsElsewhere.
        """
        holder = self._holder

        async def fenced(tx: Transaction) -> T:
            await channel_host.check(tx, holder, self._clock())
            return await fn(tx)

        try:
            return await self._store.write(fenced)
        except ChannelsElsewhere:
            if holder == self._holder:
                self._lose()
            raise

    async def _write_batch(self, writing: Writing) -> set[str]:
        if self._at_once is None:
            return await self.write(writing.write)
        holder, now = self._holder, self._clock()

        def fenced(connection: sqlite3.Connection) -> set[str]:
            channel_host.check_at_once(connection, holder, now)
            return writing.write_at_once(connection)

        try:
            return await self._at_once(fenced)
        except ChannelsElsewhere:
            if holder == self._holder:
                self._lose()
            raise

    def hear(self, channel_id: str) -> None:
        """Something happened to this channel: look soon. Must be quick; nothing depends on it."""
        self._hinted.add(channel_id)
        self._woken.set()

    async def run(self) -> None:
        """Write what is decided, follow the chain, keep the lease; for ever, and let go of it at the end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._commits.run())
                tasks.create_task(self._poll())
        finally:
            self._live.clear()
            self.available = False
            await self._release()

    async def _release(self) -> None:
        try:
            await self._store.write(lambda tx: channel_host.release(tx, self._holder))
        except Exception:
            log.exception("the channels were not let go of: the next process has them in some seconds")

    async def poll_once(self) -> None:
        """Take or keep the lease, and bring memory up to what the database says of the chain.

        Raises the database's trouble.
        """
        async with self._one_at_a_time:
            try:
                if self.available:
                    await self._settle()
                    await self._look()
                else:
                    await self._take()
                if self.available:
                    await self._close_at_margin()
            except ChannelsElsewhere:
                return

    async def _poll(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self.poll_once()
            except Exception:
                log.exception("channels could not be compared with the database; it goes on trying")
            try:
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _take(self) -> None:
        now = self._clock()
        self._takes += 1
        self._holder = f"{self._name}.{self._takes}"
        if not await self._store.write(lambda tx: channel_host.take(tx, self._holder, now)):
            return
        # From here on nobody else writes of channels: what is read now stays true.
        records = await self._store.read(channel_store.live)
        self._live.clear()
        self._tip = None
        for n, record in enumerate(records):
            self._live.put(record)
            if n % PUT_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._in_doubt = False
        self._all_looked_at = 0
        await self._look()
        self.available = True
        log.info("this process has the channels: %d of them are not closed", len(self._live))

    async def _pay(self, voucher: Voucher, charge: Charge | None) -> Paid:
        live = await self._ready(voucher.channel_id, charge)
        return await self._written(self._live.pay(live, voucher, charge, self._clock()))

    async def _has_moved(self, channel_id: str) -> bool:
        """Whether the chain, or the deposit in it, stands where memory does not have it."""
        tip, found = await self._store.read(lambda tx: channel_places.places(tx, among=[channel_id]))
        live = self._live.get(channel_id)
        return tip != self._tip or any(
            live is not None and (live.funding, live.funding_height) != (place.funding, place.height)
            for place in found
            if place.id == channel_id
        )

    async def _settle(self) -> None:
        """Renew the lease; what was written before has been written when this returns, or never will be."""
        await self.write(_nothing)
        self._in_doubt = False

    async def _look(self) -> None:
        now, takes = self._clock(), self._takes
        hinted, self._hinted = self._hinted, set()
        # One that was read before its block was recorded, and put here after: the database has it deep now.
        hinted |= {live.id for live in self._live if live.funding_height is None}
        tip, found = await self._store.read(lambda tx: channel_places.places(tx, among=hinted))
        everything, lost_sat = tip != self._tip or abs(now - self._all_looked_at) >= ALL_LOOKED_AT_S, 0
        if everything:
            tip, found, lost_sat = await self._store.read(
                lambda tx: channel_places.all_places(tx, lost_since=now - LOST_S)
            )
        if takes != self._takes or not self._holder:
            return  # the channels were lost meanwhile
        if everything:
            self._tip, self._all_looked_at = tip, now
            self._live.move_tip(0 if tip is None else tip.height)
        self._compare(found)
        expected = {live.id for live in self._live} if everything else hinted
        still = {place.id for place in found}
        self._drop_idle(expected - still)
        if everything:
            self._live.set_lost(lost_sat, still=still, now=now)
        await self._bring(still)

    def _compare(self, found: Sequence[Place]) -> None:
        """Where the chain has deposits, and what others decided, is taken over."""
        for place in found:
            live = self._live.get(place.id)
            if live is None:
                continue
            if live.state != place.state:
                self._drop_idle([place.id])  # `_bring` reads it again
            elif (live.funding, live.funding_height) != (place.funding, place.height):
                self._live.place(live, place.funding, place.height)

    def _drop_idle(self, channel_ids: Iterable[str]) -> None:
        """Forget channels, but those of which something is being written: that write itself will see."""
        idle = []
        for channel_id in channel_ids:
            live = self._live.get(channel_id)
            if live is not None and not live.unsaved:
                idle.append(channel_id)
        self._live.drop(idle)

    async def _bring(self, channel_ids: Iterable[str]) -> None:
        """Have these in memory, those that are not closed."""
        missing = [channel_id for channel_id in channel_ids if self._live.get(channel_id) is None]
        if not missing:
            return
        dropped = self._live.dropped
        records = await self._store.read(lambda tx: channel_store.load_all(tx, missing))
        if dropped != self._live.dropped:
            return  # what was read may be older than what was forgotten meanwhile
        for record in records:
            if record.state is not ChannelState.CLOSED and self._live.get(record.id) is None:
                self._live.put(record)

    async def _close_at_margin(self) -> None:
        asked = []
        for live in self._live.at_margin():
            decision = self._live.ask_close(live, CloseReason.MARGIN, None, self._clock())
            if decision is not None:
                asked.append(self._commits.add(decision))
        if asked:
            log.info("%d channels expire soon: they are closed", len(asked))
            await asyncio.gather(*asked)

    async def _ready(self, channel_id: str, charge: Charge | None) -> LiveChannel:
        """The channel, in memory with all that the charge needs: it can be decided without a wait."""
        while True:
            if not self.available:
                raise ChannelsElsewhere
            live = self._live.get(channel_id)
            if live is None:
                await self._fetch(channel_id)
                continue
            missing = self._live.missing_pages(channel_id, charge) if charge is not None else ()
            if not missing:
                return live
            for key in missing:
                await self._fetch_page(key)

    async def _fetch(self, channel_id: str) -> None:
        """Raises ChannelNotFound, ChannelClosed, ChannelsElsewhere."""
        if self._in_doubt:
            await self._settle()
        dropped = self._live.dropped
        record = await self._store.read(lambda tx: channel_store.load(tx, channel_id))
        if not self.available or dropped != self._live.dropped or self._live.get(channel_id) is not None:
            return
        if record.state is ChannelState.CLOSED:
            raise ChannelClosed(channel_id)
        self._live.put(record)

    async def _fetch_page(self, key: PageKey) -> None:
        pages = self._live.pages
        dropped = pages.dropped
        octets = await self._store.read(lambda tx: read_page(tx, key))
        # Else somebody has brought it meanwhile, or it may have been here, been charged, and gone.
        if dropped == pages.dropped and pages.get(key) is None and self._live.get(key.channel_id) is not None:
            pages.put(key, octets)

    async def _written(self, decision: Decision) -> Paid:
        live = decision.live
        paid = Paid(live.id, live.balance, decision.cost_msat, live.confirmations(self._live.tip_height))
        await self._commits.add(decision)
        return paid

    def _forget(self, channel_ids: set[str], retried: Sequence[RetryKey]) -> None:
        self._in_doubt = True
        self._live.drop(channel_ids)
        self._live.retries.give_back(retried)

    def _lose(self) -> None:
        if self.available:
            log.warning("another process has the channels now")
        self.available = False
        self._holder = ""
        self._live.clear()
        self._commits.abandon()


async def _nothing(tx: Transaction) -> None:
    """The fence is all."""
