"""Keeps the database's facts equal to what our node sees: blocks, mempool, and what is missing from both.

Polling guarantees, events hasten: an event only says where to look, and every poll compares the whole
mempool and the chain's tip with what we hold. So nothing depends on having heard an event; a lost one costs
time only.

One poll writes once. A reorg's disconnected and connected blocks and the mempool after them are one
transaction, so an access paid for in both branches never flickers.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from payments import chain_facts, chain_store, channel_store, foreign_spends, unassigned
from payments.address_search import AddressSearch
from payments.bitcoind import Bitcoind
from payments.bitcoind_events import (
    Added,
    BitcoindEvents,
    BlockConnected,
    BlockDisconnected,
    EventsLost,
    Removed,
)
from payments.block import ParsedBlock
from payments.chain_facts import BlockRef
from payments.channel_follow import ChannelFollower
from payments.errors import (
    BlockMalformed,
    BlockUnavailable,
    NodeMisconfigured,
    NodeRefused,
    NodeUnavailable,
)
from payments.node_fitness import fitness
from payments.node_view import Arrival, NodeObserver, NodeView
from payments.outputs import Presence
from payments.payout_follow import PayoutFollower
from payments.ports import Clock, Store, Transaction
from payments.registry import DEPTH_TOLD, InvoiceRegistry
from payments.watch_list import WatchList

log = logging.getLogger(__name__)

DEPTH_FOLLOWED = 144
"""Confirmations of deeper payments are not told any more; a reorg of any depth is still followed."""
HINTS_MAX = 10_000
LOOKS_AGAIN_MAX = 3
"""For contracts of channels that were announced while blocks were read. However many come, blocks go on: who
announces before paying is in no block that was there already, and who paid before opens the channel by its
outpoint."""


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """Whether payments can be judged now; if not, `trouble` says why and what to do."""

    online: bool
    trouble: str | None
    tip_height: int
    checked_at: int


class Watcher:
    """Follows one node for one registry. What it holds in memory changes after the commit it belongs to.

    `search` is for databases that were restored from a backup, `payouts` for hosted sales, `channels` for
    metered ones.
    """

    def __init__(
        self,
        node: Bitcoind,
        store: Store,
        registry: InvoiceRegistry,
        *,
        network: str,
        clock: Clock,
        search: AddressSearch | None = None,
        payouts: PayoutFollower | None = None,
        channels: ChannelFollower | None = None,
    ) -> None:
        self._node = node
        self._store = store
        self._registry = registry
        self._network = network
        self._clock = clock
        self._search = search
        self._payouts = payouts
        self._channels = channels
        self._watch_list = WatchList(channels=channels is not None)
        self._observer = NodeObserver(node, store, self._watch_list)
        self._mempool: set[str] = set()
        self._loaded = False
        self._one_at_a_time = asyncio.Lock()
        self.condition = NodeCondition(
            online=False, trouble="the node was not asked yet", tip_height=0, checked_at=0
        )

    def watch(self, script_pubkey: bytes, invoice_id: str | None) -> None:
        """Watch a script from now on; None: a contract's. Call it before the address leaves the server."""
        self._watch_list.scripts[script_pubkey] = invoice_id

    async def run(self, *, events_endpoint: str | None, poll_interval_s: float) -> None:
        """Poll for ever; with the node's ZMQ `sequence` endpoint, look at once where an event points."""
        hints: asyncio.Queue[str | None] = asyncio.Queue(HINTS_MAX)
        async with asyncio.TaskGroup() as tasks:
            if events_endpoint is not None:
                tasks.create_task(self._listen(events_endpoint, hints))
            while True:
                await self.poll_once()
                await self._follow(hints, for_s=poll_interval_s)

    async def poll_once(self) -> None:
        """Bring the database up to what the node sees now. An unfit node is recorded, never an error."""
        async with self._one_at_a_time:
            if not self._loaded:
                await self._store.read(self._watch_list.load)
                self._loaded = True
            try:
                await self._catch_up()
            except (NodeUnavailable, NodeMisconfigured, NodeRefused, BlockMalformed) as exc:
                await self._offline(str(exc))
            except BlockUnavailable as exc:
                await self._offline(f"{exc}. If it was pruned: `bitcache doctor --rescan`")

    async def look_at(self, txids: Sequence[str]) -> None:
        """The short way from mempool events to the database, for a few transactions."""
        async with self._one_at_a_time:
            fresh = [txid for txid in txids if txid not in self._mempool]
            if not fresh or not self.condition.online:
                return
            try:
                arrivals, left = await self._observer.arrivals_among(fresh)
            except (NodeUnavailable, NodeMisconfigured, NodeRefused):
                return  # the next poll says so
            if arrivals:
                now = self._clock()
                await self._store.write(partial(self._record_arrivals, arrivals=arrivals, now=now))
                self._watch_list.add(arrival.payment for arrival in arrivals)
            self._mempool.update(txid for txid in fresh if txid not in left)

    async def _catch_up(self) -> None:
        complete, looks_again = False, 0
        while not complete:
            info = await self._node.node_info()
            verdict = fitness(info, self._clock(), self._network)
            if not verdict.usable:
                await self._offline(verdict.words)
                return
            if self._search is not None and await self._search.widen(self._watch_list):
                self._mempool = set()  # the transactions in it may pay what is watched now
            view = await self._observer.look(info.chain, self._mempool)
            if view.stale:
                continue
            now = self._clock()
            last_look = looks_again == LOOKS_AGAIN_MAX
            if not await self._store.write(partial(self._record, view=view, now=now, last_look=last_look)):
                looks_again += 1
                continue
            looks_again = 0
            self._watch_list.add(arrival.payment for arrival in view.arrivals)
            await self._store.read(self._watch_list.keep_coins)
            complete = view.complete
        self._mempool = view.mempool
        self.condition = NodeCondition(
            online=True, trouble=None, tip_height=info.chain.blocks, checked_at=now
        )
        if self._search is not None:
            await self._search.go_on(self._watch_list)

    async def _record(self, tx: Transaction, *, view: NodeView, now: int, last_look: bool) -> bool:
        """False, and nothing is written, if blocks are to be read again for contracts that came meanwhile."""
        looks_for_contracts = self._channels is not None and view.blocks and not last_look
        if looks_for_contracts and await channel_store.newest_seq(tx) > view.contracts_seq:
            return False
        concerned: set[str] = set()
        trouble = None if view.complete else "catching up with the chain: wait"
        concerned |= await self._beat(tx, now=now, online=view.complete, trouble=trouble)
        for ref in view.start:
            await chain_store.connect(tx, ref, now=now)
        if view.fork is not None:
            concerned |= await chain_store.disconnect_above(tx, view.fork.height)
        for ref, block in view.blocks:
            concerned |= await self._record_block(tx, ref, block, now)
        if view.blocks or view.fork is not None:
            concerned |= await _moved(tx, view)
        for arrival in view.arrivals:
            concerned |= await _add_arrival(tx, arrival, now)
        if view.complete:
            concerned |= await _place_unconfirmed(tx, view)
            concerned |= set(await self._registry.due_for_review(tx, now=now))
        await self._registry.refresh(tx, concerned, now=now)
        if view.blocks or view.fork is not None:
            await foreign_spends.mark_change(tx)
            if self._channels is not None:
                await self._channels.mark_addresses(tx)
            await unassigned.book(tx, now=now)
            if self._payouts is not None:
                await self._payouts.follow(tx, now=now)
            if self._channels is not None:
                await self._channels.follow(tx, now=now)
        return True

    async def _record_block(self, tx: Transaction, ref: BlockRef, block: ParsedBlock, now: int) -> set[str]:
        concerned: set[str] = set()
        await chain_store.connect(tx, ref, now=now)
        for payment in self._watch_list.payments_in(block):
            concerned |= await chain_store.add_payment(
                tx,
                payment,
                height=ref.height,
                first_seen_at=min(now, block.time),
                prefetch_fit=True,
            )
        for txid in self._watch_list.robbed_by(block):
            concerned |= await chain_store.lose_inputs(tx, txid, height=ref.height)
        for spend in self._watch_list.spends_in(block):
            concerned |= await chain_store.add_payment(
                tx, spend, height=ref.height, first_seen_at=min(now, block.time), prefetch_fit=True
            )
            # Another version of a batch may have been signed by another process, of which we hold nothing.
            for rival in sorted(await chain_facts.rivals(tx, spend)):
                concerned |= await chain_store.lose_inputs(tx, rival, height=ref.height)
        return concerned

    async def _record_arrivals(self, tx: Transaction, *, arrivals: Sequence[Arrival], now: int) -> None:
        concerned: set[str] = set()
        for arrival in arrivals:
            concerned |= await _add_arrival(tx, arrival, now)
        # The payment that this one replaced is told now and not a poll later: the buyer sees one change.
        for rival in sorted(self._watch_list.rivals_of(arrival.payment for arrival in arrivals)):
            concerned |= await chain_store.set_presence(tx, rival, Presence.CONFLICTED)
        await self._registry.refresh(tx, concerned, now=now)

    async def _offline(self, trouble: str) -> None:
        now = self._clock()
        if trouble != self.condition.trouble:
            log.warning("no new invoices: %s", trouble)
        self.condition = NodeCondition(
            online=False, trouble=trouble, tip_height=self.condition.tip_height, checked_at=now
        )
        await self._store.write(partial(self._record_offline, now=now, trouble=trouble))

    async def _record_offline(self, tx: Transaction, *, now: int, trouble: str) -> None:
        concerned = await self._beat(tx, now=now, online=False, trouble=trouble)
        await self._registry.refresh(tx, concerned, now=now)

    async def _beat(self, tx: Transaction, *, now: int, online: bool, trouble: str | None) -> set[str]:
        """A sign of life; the invoices to look at again, time itself having gone back."""
        set_back = await chain_store.beat(tx, now=now, online=online, trouble=trouble)
        return set(await self._registry.lately_expired(tx, now=now)) if set_back else set()

    async def _listen(self, endpoint: str, hints: asyncio.Queue[str | None]) -> None:
        async with BitcoindEvents(endpoint) as events:
            async for event in events:
                match event:
                    case Added(txid=txid):
                        hint: str | None = txid
                    case Removed(txid=txid) if not self._watch_list.pays(txid):
                        continue
                    case Removed() | BlockConnected() | BlockDisconnected() | EventsLost():
                        hint = None
                    case _ as never:
                        assert_never(never)
                if not hints.full():  # if it is, the poll that comes anyway sees it all
                    hints.put_nowait(hint)

    async def _follow(self, hints: asyncio.Queue[str | None], *, for_s: float) -> None:
        """Look at transactions as they come, until a hint (None) or the time asks for a poll."""
        until = asyncio.get_running_loop().time() + for_s
        while True:
            try:
                async with asyncio.timeout_at(until):
                    batch = [await hints.get()]
            except TimeoutError:
                return
            while not hints.empty():
                batch.append(hints.get_nowait())
            if None in batch:
                return
            await self.look_at([txid for txid in batch if txid is not None])


async def _moved(tx: Transaction, view: NodeView) -> set[str]:
    """Invoices for which the new tip may mean another depth."""
    tip_ref = await chain_facts.tip(tx)
    assert tip_ref is not None, "the fork itself, if nothing else, is on the active chain"
    followed_from = tip_ref.height - DEPTH_FOLLOWED
    # Each block that was connected may have brought a payment to the last depth that is told; where some
    # were taken away, deeper payments may stand less deep.
    told_from = followed_from if view.fork is not None else view.blocks[0][0].height - DEPTH_TOLD
    return await chain_facts.moving(tx, from_height=followed_from, told_from_height=told_from)


async def _add_arrival(tx: Transaction, arrival: Arrival, now: int) -> set[str]:
    return await chain_store.add_payment(
        tx,
        arrival.payment,
        height=None,
        first_seen_at=min(now, arrival.entered_at),
        prefetch_fit=arrival.prefetch_fit,
    )


async def _place_unconfirmed(tx: Transaction, view: NodeView) -> set[str]:
    concerned: set[str] = set()
    for payment in await chain_facts.unconfirmed(tx):
        if payment.txid in view.mempool:
            presence = Presence.MEMPOOL
        elif payment.txid not in view.outside_mempool:
            continue  # it left its block in this very poll: the next one places it
        else:
            robbed = view.outside_mempool[payment.txid]
            presence = Presence.CONFLICTED if robbed else Presence.MISSING
        if presence is not payment.presence:
            concerned |= await chain_store.set_presence(tx, payment.txid, presence)
    return concerned
