"""Keeps the database's facts equal to what our node sees: blocks, mempool, and what is missing from both.

Polling guarantees, events hasten: an event only says where to look, and every poll compares the whole
mempool and the chain's tip with what we hold. So nothing depends on having heard an event, and a lost one
costs time only.

One poll writes once. A reorg's disconnected and connected blocks and the mempool after them are one
transaction, so an access paid for in both branches never flickers.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from payments import chain_store
from payments.bitcoind import Bitcoind, BroadcastOutcome
from payments.bitcoind_events import (
    Added,
    BitcoindEvents,
    BlockConnected,
    BlockDisconnected,
    EventsLost,
    Removed,
)
from payments.block import ParsedBlock, outpoint_bytes, scan_block
from payments.chain_store import BlockRef, PaidOutput, PayingTransaction
from payments.errors import BlockUnavailable, NodeMisconfigured, NodeUnavailable
from payments.node_fitness import NodeInfo, fitness
from payments.outputs import OutPoint, Presence
from payments.ports import Clock, Store, Transaction
from payments.registry import InvoiceRegistry
from payments.transaction import TransactionOutput, parse_transaction

log = logging.getLogger(__name__)

DEPTH_FOLLOWED = 144
"""Payments deeper than this are final for display; a reorg of any depth is still followed."""
BLOCKS_PER_WRITE = 144
TRANSACTIONS_PER_FETCH = 2_000
HINTS_MAX = 10_000
FEERATE_TARGET_BLOCKS = 6
"""A payment below this estimate may wait for days: no ciphertext is given on it before a block."""


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """Whether payments can be judged now; if not, `trouble` says why and what to do."""

    online: bool
    trouble: str | None
    tip_height: int
    checked_at: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payment that is new in the mempool."""

    payment: PayingTransaction
    entered_at: int
    """When our node first had it, Unix seconds."""
    prefetch_fit: bool
    """Likely to confirm soon: a fair feerate, and no unconfirmed parents."""


@dataclass(slots=True)
class _Look:
    """What one poll saw of the node, before anything is written."""

    fork: BlockRef | None = None
    """The last block we share with the node; None when its tip is ours, or on the first start."""
    disconnected: bool = False
    blocks: list[tuple[BlockRef, ParsedBlock | None]] = field(default_factory=list)
    """To connect, lowest first. None: taken as the starting point, its transactions are not looked at."""
    complete: bool = True
    """The blocks reach the node's tip; else there are more to fetch, and the mempool was not looked at."""
    arrived: list[Arrival] = field(default_factory=list)
    mempool: frozenset[str] = frozenset()
    spenders: dict[str, bool] = field(default_factory=dict)
    """Unconfirmed payments absent from the mempool: whether one of its transactions spends their inputs."""


class Watcher:
    """Follows one node for one registry. All in-memory state changes after the commit it belongs to."""

    def __init__(
        self,
        node: Bitcoind,
        store: Store,
        registry: InvoiceRegistry,
        *,
        network: str,
        clock: Clock,
    ) -> None:
        self._node = node
        self._store = store
        self._registry = registry
        self._network = network
        self._clock = clock
        self._scripts: dict[bytes, str] = {}
        self._inputs: dict[bytes, set[str]] = {}
        self._payers: set[str] = set()
        self._mempool: frozenset[str] = frozenset()
        self._loaded = False
        self._one_at_a_time = asyncio.Lock()
        self.condition = NodeCondition(
            online=False, trouble="the node was not asked yet", tip_height=0, checked_at=0
        )

    def watch(self, script_pubkey: bytes, invoice_id: str) -> None:
        """Watch a script from now on. Call it before the address leaves the server."""
        self._scripts[script_pubkey] = invoice_id

    async def start(self) -> None:
        """Load what is watched. The mempool is looked at whole by the first poll."""
        scripts, inputs = await self._store.read(self._load)
        self._scripts = scripts | self._scripts
        self._inputs = inputs
        self._payers = {txid for payers in inputs.values() for txid in payers}
        self._mempool = frozenset()
        self._loaded = True

    async def run(self, *, events_endpoint: str | None, poll_interval_s: float) -> None:
        """Poll for ever; with the node's ZMQ `sequence` endpoint, look at once where an event points."""
        hints: asyncio.Queue[str | None] = asyncio.Queue(HINTS_MAX)
        async with asyncio.TaskGroup() as tasks:
            if events_endpoint is not None:
                tasks.create_task(self._listen(events_endpoint, hints))
            while True:
                await self.poll_once()
                await self._follow_hints(hints, for_s=poll_interval_s)

    async def poll_once(self) -> None:
        """Bring the database up to what the node sees now. An unfit node is recorded, never an error."""
        async with self._one_at_a_time:
            if not self._loaded:
                await self.start()
            try:
                await self._catch_up()
            except (NodeUnavailable, NodeMisconfigured) as exc:
                await self._offline(str(exc))
            except BlockUnavailable as exc:
                await self._offline(
                    f"{exc}. If the node is pruned, it must download the chain anew: then rescan"
                )

    async def look_at(self, txids: Sequence[str]) -> None:
        """The short way from mempool events to the database, for a few transactions."""
        async with self._one_at_a_time:
            fresh = [txid for txid in txids if txid not in self._mempool]
            if not fresh or not self.condition.online:
                return
            try:
                arrived = await self._payments_among(fresh)
            except NodeUnavailable:
                return  # the next poll says so
            if arrived:
                await self._store.write(partial(self._record_arrivals, arrived=arrived, now=self._clock()))
                self._remember(arrival.payment for arrival in arrived)
            self._mempool |= set(fresh)

    def concerns(self, txid: str) -> bool:
        """Whether the departure of this transaction from the mempool may matter to an invoice."""
        return txid in self._payers

    async def _listen(self, endpoint: str, hints: asyncio.Queue[str | None]) -> None:
        async with BitcoindEvents(endpoint) as events:
            async for event in events:
                match event:
                    case Added(txid=txid):
                        hint: str | None = txid
                    case Removed(txid=txid) if not self.concerns(txid):
                        continue
                    case Removed() | BlockConnected() | BlockDisconnected() | EventsLost():
                        hint = None
                    case _ as never:
                        assert_never(never)
                if not hints.full():  # if it is, the poll that follows sees it all
                    hints.put_nowait(hint)

    async def _follow_hints(self, hints: asyncio.Queue[str | None], *, for_s: float) -> None:
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
            await self.look_at([txid for txid in batch if txid is not None])
            if None in batch:
                return

    async def _record_arrivals(self, tx: Transaction, *, arrived: Sequence[Arrival], now: int) -> None:
        concerned: set[str] = set()
        for arrival in arrived:
            concerned |= await self._add_arrival(tx, arrival, now)
        # The payment that this one replaced is told now and not a poll later: the buyer sees one change.
        taken = {previous for arrival in arrived for previous in arrival.payment.inputs}
        newcomers = {arrival.payment.txid for arrival in arrived}
        for rival in await chain_store.unconfirmed(tx):
            if rival.txid not in newcomers and not taken.isdisjoint(rival.inputs):
                concerned |= await chain_store.set_presence(tx, rival.txid, Presence.CONFLICTED)
        await self._registry.refresh(tx, concerned, now=now)

    async def _add_arrival(self, tx: Transaction, arrival: Arrival, now: int) -> set[str]:
        return await chain_store.add_payment(
            tx,
            arrival.payment,
            height=None,
            first_seen_at=min(now, arrival.entered_at),
            prefetch_fit=arrival.prefetch_fit,
        )

    # --- one poll -----------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        while True:
            info = await self._node.node_info()
            verdict = fitness(info, self._clock(), self._network)
            if not verdict.usable:
                await self._offline(verdict.words)
                return
            look = await self._look(info)
            now = self._clock()
            await self._store.write(partial(self._record, look=look, now=now))
            for _, block in look.blocks:
                self._remember(self._payments_in(block))
            self._remember(arrival.payment for arrival in look.arrived)
            if look.complete:
                self._mempool = look.mempool
                self.condition = NodeCondition(
                    online=True, trouble=None, tip_height=info.chain.blocks, checked_at=now
                )
                return

    async def _look(self, info: NodeInfo) -> _Look:
        look = _Look()
        known = await self._store.read(chain_store.tip)
        if known is None:
            look.blocks += [(ref, None) for ref in await self._recent_blocks(info)]
        elif known.hash != info.chain.best_hash:
            await self._look_at_chain(look, known, info)
        if look.complete:
            await self._look_at_mempool(look)
            # A block that came meanwhile took its transactions out of the mempool: look again, rather than
            # call them missing.
            after = await self._node.chain_info()
            if after.best_hash != info.chain.best_hash:
                look.complete = False
        return look

    async def _look_at_chain(self, look: _Look, known: BlockRef, info: NodeInfo) -> None:
        fork = await self._fork(known)
        look.disconnected = fork != known
        look.fork = fork
        last = min(info.chain.blocks, fork.height + BLOCKS_PER_WRITE)
        previous = fork.hash
        for height in range(fork.height + 1, last + 1):
            block_hash = await self._node.block_hash(height)
            if block_hash is None:
                look.complete = False  # the chain grew shorter meanwhile
                return
            raw = await self._node.raw_block(block_hash)
            block = await asyncio.to_thread(
                scan_block, raw, watched_scripts=self._scripts, watched_outpoints=self._inputs
            )
            if block.previous_hash != previous:
                look.complete = False  # it was reorganised meanwhile
                return
            previous = block_hash
            look.blocks.append((BlockRef(height=height, hash=block_hash), block))
            # What this block pays may be replaced by the next: its inputs are watched from here on.
            self._remember(self._payments_in(block))
        look.complete = last == info.chain.blocks

    async def _recent_blocks(self, info: NodeInfo) -> list[BlockRef]:
        """Where a new service starts: at the tip, knowing enough blocks below it to recognise a reorg."""
        lowest = max(0, info.chain.blocks - BLOCKS_PER_WRITE)
        hashes = [await self._node.block_hash(height) for height in range(lowest, info.chain.blocks + 1)]
        return [BlockRef(lowest + i, block_hash) for i, block_hash in enumerate(hashes) if block_hash]

    async def _fork(self, known: BlockRef) -> BlockRef:
        """The highest block that is both in our records and in the node's active chain."""
        height = known.height
        while True:
            ours = await self._store.read(partial(chain_store.active_below, height=height, limit=100))
            for block in ours:
                if await self._node.block_hash(block.height) == block.hash:
                    return block
            if not ours:
                raise NodeMisconfigured(
                    "the node's chain shares no block with our records: it was replaced by another node; "
                    "give the service its own node back, or a new database"
                )
            height = ours[-1].height - 1

    async def _look_at_mempool(self, look: _Look) -> None:
        snapshot = frozenset((await self._node.raw_mempool()).txids)
        look.mempool = snapshot
        fresh = sorted(snapshot - self._mempool)
        for start in range(0, len(fresh), TRANSACTIONS_PER_FETCH):
            look.arrived += await self._payments_among(fresh[start : start + TRANSACTIONS_PER_FETCH])
        for payment in await self._store.read(chain_store.unconfirmed):
            if payment.txid in snapshot:
                continue
            if await self._inputs_spent(payment.inputs):
                look.spenders[payment.txid] = True
                continue
            look.spenders[payment.txid] = False
            answer = await self._node.send_raw_transaction(payment.raw)
            if answer.outcome is BroadcastOutcome.ACCEPTED:
                look.mempool |= {payment.txid}

    async def _record(self, tx: Transaction, *, look: _Look, now: int) -> None:
        concerned: set[str] = set()
        before = await chain_store.watcher_state_of(tx)
        await chain_store.beat(tx, now=now, online=look.complete or before is None, trouble=None)
        if look.disconnected and look.fork is not None:
            concerned |= await chain_store.disconnect_above(tx, look.fork.height)
        for ref, block in look.blocks:
            await chain_store.connect(tx, ref, now=now)
            concerned |= await self._record_block(tx, ref, block, now)
        for arrival in look.arrived:
            concerned |= await self._add_arrival(tx, arrival, now)
        if look.complete:
            concerned |= await self._place_unconfirmed(tx, look)
            concerned |= set(await self._registry.due_for_review(tx, now=now))
        if look.blocks:
            concerned |= await chain_store.moving(tx, from_height=look.blocks[-1][0].height - DEPTH_FOLLOWED)
        await self._registry.refresh(tx, concerned, now=now)

    async def _record_block(
        self, tx: Transaction, ref: BlockRef, block: ParsedBlock | None, now: int
    ) -> set[str]:
        concerned: set[str] = set()
        if block is None:
            return concerned
        for payment in self._payments_in(block):
            concerned |= await chain_store.add_payment(
                tx, payment, height=ref.height, first_seen_at=min(now, block.time), prefetch_fit=True
            )
        for transaction in block.transactions:
            for previous in transaction.inputs:
                for txid in self._inputs.get(outpoint_bytes(previous), set()) - {transaction.txid}:
                    concerned |= await chain_store.lose_inputs(tx, txid, height=ref.height)
        return concerned

    async def _place_unconfirmed(self, tx: Transaction, look: _Look) -> set[str]:
        concerned: set[str] = set()
        for payment in await chain_store.unconfirmed(tx):
            if payment.txid in look.mempool:
                presence = Presence.MEMPOOL
            elif payment.txid not in look.spenders:
                continue  # it left its block in this very poll: the next one places it
            else:
                presence = Presence.CONFLICTED if look.spenders[payment.txid] else Presence.MISSING
            if presence is not payment.presence:
                concerned |= await chain_store.set_presence(tx, payment.txid, presence)
        return concerned

    async def _offline(self, trouble: str) -> None:
        now = self._clock()
        if trouble != self.condition.trouble:
            log.warning("no new invoices: %s", trouble)
        self.condition = NodeCondition(
            online=False, trouble=trouble, tip_height=self.condition.tip_height, checked_at=now
        )
        await self._store.write(lambda tx: chain_store.beat(tx, now=now, online=False, trouble=trouble))

    # --- matching -----------------------------------------------------------------------------------------

    async def _payments_among(self, txids: Sequence[str]) -> list[Arrival]:
        """Those of these mempool transactions that pay us."""
        arrived: list[Arrival] = []
        for txid, raw in (await self._node.raw_transactions(txids)).items():
            if raw is None:
                continue  # it left again
            transaction = parse_transaction(raw)
            outputs = self._ours(transaction.outputs)
            if not outputs:
                continue
            payment = PayingTransaction(
                txid=txid, raw=raw, inputs=transaction.inputs, outputs=outputs, coinbase=transaction.coinbase
            )
            entry = await self._node.mempool_entry(txid)
            if entry is None:
                continue
            estimate = await self._node.estimate_feerate(FEERATE_TARGET_BLOCKS)
            feerate_per_kvb = entry.fee_sat * 1000 // max(entry.vsize_vbytes, 1)
            fit = entry.ancestor_count == 1 and (estimate is None or feerate_per_kvb >= estimate)
            arrived.append(Arrival(payment=payment, entered_at=entry.entered_at, prefetch_fit=fit))
        return arrived

    def _payments_in(self, block: ParsedBlock | None) -> Iterable[PayingTransaction]:
        for transaction in block.transactions if block else ():
            outputs = self._ours(transaction.outputs)
            if outputs:
                yield PayingTransaction(
                    txid=transaction.txid,
                    raw=transaction.raw,
                    inputs=transaction.inputs,
                    outputs=outputs,
                    coinbase=transaction.coinbase,
                )

    def _ours(self, outputs: Iterable[TransactionOutput]) -> tuple[PaidOutput, ...]:
        return tuple(
            PaidOutput(
                vout=output.vout, amount_sat=output.amount_sat, invoice_id=self._scripts[output.script_pubkey]
            )
            for output in outputs
            if output.script_pubkey in self._scripts
        )

    async def _inputs_spent(self, inputs: tuple[OutPoint, ...]) -> bool:
        """Whether a transaction in the mempool spends any of these outpoints."""
        return bool(inputs) and bool(await self._node.spending_transactions(inputs))

    def _remember(self, payments: Iterable[PayingTransaction]) -> None:
        for payment in payments:
            self._payers.add(payment.txid)
            for previous in payment.inputs:
                self._inputs.setdefault(outpoint_bytes(previous), set()).add(payment.txid)

    async def _load(self, tx: Transaction) -> tuple[dict[bytes, str], dict[bytes, set[str]]]:
        tip = await chain_store.tip(tx)
        from_height = (tip.height if tip else 0) - 2 * DEPTH_FOLLOWED
        inputs = await chain_store.watched_inputs(tx, from_height=from_height)
        return await chain_store.watched_scripts(tx), {
            outpoint_bytes(outpoint): payers for outpoint, payers in inputs.items()
        }
