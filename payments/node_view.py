"""One look at our node, compared with our records: which blocks to connect, and what the mempool holds.
Writes nothing.

What is seen is consistent: if the tip moves while we look, the view is stale and the caller looks again.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from payments import chain_facts
from payments.bitcoind import Bitcoind, BroadcastOutcome
from payments.block import ParsedBlock
from payments.chain_facts import BlockRef, PayingTransaction
from payments.errors import NodeMisconfigured, TransactionMalformed
from payments.node_fitness import ChainInfo
from payments.ports import Store
from payments.scanning import scanned
from payments.transaction import ParsedTransaction, parse_transaction
from payments.watch_list import WatchList

log = logging.getLogger(__name__)

BLOCKS_PER_VIEW = 144
TRANSACTIONS_PER_FETCH = 2_000
TRANSACTIONS_READ_AT_ONCE = 10
FEERATE_TARGET_BLOCKS = 6
"""A payment below this estimate may wait for days: no ciphertext is given on it before a block."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payment that is new in the mempool."""

    payment: PayingTransaction
    entered_at: int
    """When our node first had it, Unix seconds."""
    prefetch_fit: bool
    """Likely to confirm soon: a fair feerate, and no unconfirmed parents."""


class Arrivals(NamedTuple):
    paying: list[Arrival]
    left: frozenset[str]
    """Not in the mempool any more: should they come back, they are new again."""


@dataclass(slots=True)
class NodeView:
    """What the node has that our records have not."""

    fork: BlockRef | None = None
    """The last block we share with the node, where our records went on differently; else None."""
    start: list[BlockRef] = field(default_factory=list)
    """On the first start: the blocks that are taken as they are, lowest first."""
    blocks: list[tuple[BlockRef, ParsedBlock]] = field(default_factory=list)
    """To connect, lowest first."""
    complete: bool = True
    """The blocks reach the node's tip and the mempool was seen; else look again after recording this."""
    stale: bool = False
    """The tip moved while we looked: look again instead of recording this."""
    arrivals: list[Arrival] = field(default_factory=list)
    mempool: set[str] = field(default_factory=set)
    outside_mempool: dict[str, bool] = field(default_factory=dict)
    """Unconfirmed payments not in the mempool: whether one of its transactions spends their inputs."""
    contracts_seq: int = 0
    """Of the newest contract of a channel for which `blocks` were read."""


class NodeObserver:
    """Looks at the node on the watcher's behalf."""

    def __init__(self, node: Bitcoind, store: Store, watch_list: WatchList) -> None:
        self._node = node
        self._store = store
        self._watch_list = watch_list

    async def look(self, chain: ChainInfo, mempool_known: Set[str]) -> NodeView:
        """What is new since our records and `mempool_known`, the node's tip being that of `chain`."""
        view = NodeView()
        known = await self._store.read(chain_facts.tip)
        if known is None:
            view.start = await self._recent_blocks(chain)
        elif known.hash != chain.best_hash:
            await self._look_at_chain(view, known, chain)
        if view.complete and not view.stale:
            await self._look_at_mempool(view, mempool_known)
            # A block that came meanwhile took transactions out of the mempool: look again, rather than call
            # them missing.
            view.stale = (await self._node.chain_info()).best_hash != chain.best_hash
        return view

    async def arrivals_among(self, txids: Sequence[str]) -> Arrivals:
        """Those of these mempool transactions that pay us."""
        raw_by_txid = await self._node.raw_transactions(txids)
        left = {txid for txid, raw in raw_by_txid.items() if raw is None}
        # A node's full mempool takes seconds; the trip to a thread, longer than to read a few.
        few = len(raw_by_txid) <= TRANSACTIONS_READ_AT_ONCE
        transactions = _parsed(raw_by_txid) if few else await asyncio.to_thread(_parsed, raw_by_txid)
        scripts = {out.script_pubkey for transaction in transactions.values() for out in transaction.outputs}
        # Whoever pays has an address from a transaction that was committed before: it is in this snapshot.
        await self._store.read(partial(self._watch_list.load_among, script_pubkeys=scripts))
        arrivals: list[Arrival] = []
        for txid, transaction in transactions.items():
            raw = raw_by_txid[txid]
            outputs = self._watch_list.outputs_among(transaction.outputs)
            if raw is None or not outputs:
                continue
            entry, estimate = await asyncio.gather(
                self._node.mempool_entry(txid), self._node.estimate_feerate(FEERATE_TARGET_BLOCKS)
            )
            if entry is None:
                left.add(txid)
                continue
            payment = PayingTransaction(
                txid=txid,
                raw=raw,
                inputs=transaction.inputs,
                outputs=outputs,
                coinbase=False,
            )
            feerate_sat_kvb = entry.fee_sat * 1000 // entry.vsize_vbytes
            arrivals.append(
                Arrival(
                    payment=payment,
                    entered_at=entry.entered_at,
                    prefetch_fit=entry.ancestor_count == 1
                    and (estimate is None or feerate_sat_kvb >= estimate),
                )
            )
        return Arrivals(arrivals, frozenset(left))

    async def _recent_blocks(self, chain: ChainInfo) -> list[BlockRef]:
        """Where a new service starts: at the tip, knowing enough blocks below it to recognise a reorg."""
        heights = range(max(0, chain.blocks - BLOCKS_PER_VIEW), chain.blocks + 1)
        hashes = [await self._node.block_hash(height) for height in heights]
        return [
            BlockRef(height, block_hash)
            for height, block_hash in zip(heights, hashes, strict=True)
            if block_hash
        ]

    async def _look_at_chain(self, view: NodeView, known: BlockRef, chain: ChainInfo) -> None:
        await self._store.read(self._watch_list.load_new)
        view.contracts_seq = self._watch_list.contracts_seq
        if chain.blocks == known.height + 1:
            # Mostly it is the next block, and who waits for it waits for no more questions than that.
            newest = await self._scanned(chain.best_hash)
            if newest.previous_hash == known.hash:
                view.blocks.append((BlockRef(chain.blocks, newest.hash), newest))
                return
        fork = await self._fork(known)
        view.fork = fork if fork != known else None
        last_height = min(chain.blocks, fork.height + BLOCKS_PER_VIEW)
        previous_hash = fork.hash
        for height in range(fork.height + 1, last_height + 1):
            block_hash = await self._node.block_hash(height)
            block = await self._scanned(block_hash) if block_hash is not None else None
            if block is None or block.previous_hash != previous_hash:
                view.stale = True
                return
            view.blocks.append((BlockRef(height, block.hash), block))
            previous_hash = block.hash
        view.complete = last_height == chain.blocks

    async def _scanned(self, block_hash: str) -> ParsedBlock:
        raw = await self._node.raw_block(block_hash)
        block = await scanned(raw, self._watch_list)
        # What this block pays the next may spend again after a reorg: its inputs are watched from here on.
        self._watch_list.add(self._watch_list.payments_in(block))
        return block

    async def _fork(self, known: BlockRef) -> BlockRef:
        """The highest block that is both in our records and in the node's active chain."""
        height = known.height
        while True:
            ours = await self._store.read(partial(chain_facts.active_below, height=height, limit=100))
            for block in ours:
                if await self._node.block_hash(block.height) == block.hash:
                    return block
            if not ours:
                raise NodeMisconfigured(
                    "the node's chain shares no block with our records: it is not the node used before. "
                    "Give the service its own node back, or a new database"
                )
            height = ours[-1].height - 1

    async def _look_at_mempool(self, view: NodeView, mempool_known: Set[str]) -> None:
        txids = (await self._node.raw_mempool()).txids
        view.mempool, fresh = await asyncio.to_thread(_compared, txids, mempool_known)
        for start in range(0, len(fresh), TRANSACTIONS_PER_FETCH):
            found = await self.arrivals_among(fresh[start : start + TRANSACTIONS_PER_FETCH])
            view.arrivals += found.paying
            view.mempool -= found.left
        mined = {transaction.txid for _, block in view.blocks for transaction in block.transactions}
        for payment in await self._store.read(chain_facts.unconfirmed):
            if payment.txid in view.mempool or payment.txid in mined:
                continue
            spenders = await self._node.spending_transactions(payment.inputs) if payment.inputs else []
            # It may have come back since the mempool was read: it is no rival of itself.
            spent = any(spender != payment.txid for spender in spenders)
            view.outside_mempool[payment.txid] = spent
            if not spent and payment.offered:
                # The buyer paid, and our node forgot: offer it again, and again with every look.
                answer = await self._node.send_raw_transaction(payment.raw)
                if answer.outcome is BroadcastOutcome.ACCEPTED:
                    view.mempool.add(payment.txid)


def _parsed(raw_by_txid: Mapping[str, bytes | None]) -> dict[str, ParsedTransaction]:
    parsed: dict[str, ParsedTransaction] = {}
    for txid, raw in raw_by_txid.items():
        if raw is None:
            continue
        try:
            parsed[txid] = parse_transaction(raw)
        except TransactionMalformed as exc:
            # Anyone can send transactions: one that only our node can read must not stop the others.
            log.warning("transaction %s of the mempool cannot be read, its block will be: %s", txid, exc)
    return parsed


def _compared(txids: Sequence[str], known: Set[str]) -> tuple[set[str], list[str]]:
    """(all of them as a set, those not known), of which a busy node has a hundred thousand.

    In a loop of Python's, so that other threads get their turns: making a set of all is one step.
    """
    present: set[str] = set()
    fresh: list[str] = []
    for txid in txids:
        present.add(txid)
        if txid not in known:
            fresh.append(txid)
    return present, sorted(fresh)
