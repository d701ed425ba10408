"""Looks at ledger, coins and node at one moment, and has `payments.reconcile` compare them.

The node reads its whole set of unspent outputs, as it was at one block; our records know every height, so
blocks that come meanwhile do no harm. Where the chain turned meanwhile, it looks again.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import select

from payments import books, chain_facts, coins, reconcile_owners, reconcile_read
from payments.batch_store import Batch
from payments.bitcoind import Bitcoind
from payments.bitcoind_coins import DescriptorRange, UnspentScan
from payments.bitcoind_psbt import PsbtNode
from payments.block import outpoint_bytes, scan_block
from payments.descriptors import ADDRESS_INDEX_MAX, DescriptorStore
from payments.errors import BlockUnavailable, ReconciliationFailed
from payments.money import Sat
from payments.outputs import OutPoint
from payments.payout_layout import matching_version
from payments.ports import Store, Transaction
from payments.reconcile import compare
from payments.reconcile_facts import Facts, Flow, OursOnly, WaitingBatch, WaitingSpend
from payments.reconcile_read import WalletRange
from payments.reconcile_report import Report
from payments.tables import blocks, paying_transactions

INDEXES_BEYOND = 1_000
"""Addresses looked at after the last one that was handed out, or is watched."""
SCANS_MAX = 3
"""A reorg in the midst of each of so many is no accident."""
BLOCK_AWAITED_S = 60
"""The watcher reads the node's block in seconds, where it runs."""
BLOCK_LOOKED_FOR_S = 0.2
BLOCKS_SEARCHED_MAX = 144
"""For the transaction that spent a coin unseen."""
PAYEES_NAMED_MAX = 10
SUSPECTS_READ_MAX = 300


@dataclass(frozen=True, slots=True)
class _Read:
    """What one transaction on the database gave."""

    facts: Facts
    coins: tuple[OutPoint, ...]
    waiting: tuple[Batch, ...]
    waiting_sat: dict[str, list[int]]
    raw: dict[str, bytes]
    """Of the transactions that nobody has explained."""


class Reconciler:
    """Holds no state."""

    def __init__(self, *, node: Bitcoind, store: Store, descriptors: DescriptorStore) -> None:
        self._node = node
        self._psbts = PsbtNode(node)
        self._store = store
        self._descriptors = descriptors

    async def look(self, *, tell: Callable[[str], None] = lambda words: None) -> Report | None:
        """Compare now; None where there never was a wallet for hosted sales. Takes minutes on mainnet.

        Raises ReconciliationFailed, NodeUnavailable (also while the node scans for somebody else).
        """
        for _ in range(SCANS_MAX):
            ranges = await self._store.read(self._ranges)
            if not ranges:
                return None
            addresses = sum(one.highest + 1 for one in ranges)
            tell(f"The node looks for coins at {addresses:,} addresses. On mainnet that takes minutes.")
            scan = await self._psbts.scan_unspent(ranges)
            if await self._caught_up(scan):
                read = await self._store.read(partial(_read, scan=scan))
                if read is not None:
                    return compare(await self._completed(read))
            tell("The chain turned meanwhile: looking again.")
        raise ReconciliationFailed(
            "the chain turned each time while the node was scanned: wait for some blocks and try again"
        )

    async def _ranges(self, tx: Transaction) -> list[DescriptorRange]:
        found = []
        for one in await reconcile_read.wallet_ranges(tx):
            descriptor = await self._descriptors.load(tx, one.descriptor_id)
            found.append(DescriptorRange(descriptor.text, _highest(one)))
        return found

    async def _caught_up(self, scan: UnspentScan) -> bool:
        """Whether our records reach the scan's block; False if they have another one at its height.

        Raises ReconciliationFailed where they do not get there.
        """
        for _ in range(round(BLOCK_AWAITED_S / BLOCK_LOOKED_FOR_S)):
            ours = await self._store.read(partial(_active_hash, height=scan.height))
            if ours == scan.block_hash:
                return True
            # Unless the node left the scan's branch, the watcher has still to follow it there.
            if ours is not None and await self._node.block_hash(scan.height) != scan.block_hash:
                return False
            await asyncio.sleep(BLOCK_LOOKED_FOR_S)
        raise ReconciliationFailed(
            f"the server has not read block {scan.height:,} of the node: start it (`bitcache serve`), let it "
            "catch up, and try again"
        )

    async def _completed(self, read: _Read) -> Facts:
        """With what only the node knows: its mempool, who spent a coin unseen, who was paid."""
        facts = read.facts
        batches, spends = await self._waiting(read)
        ours_only = await self._with_spenders(facts.ours_only, facts.height)
        flows = tuple([await self._with_payees(flow, read.raw) for flow in facts.flows])
        return replace(
            facts, waiting_batches=batches, waiting_spends=spends, ours_only=ours_only, flows=flows
        )

    async def _waiting(self, read: _Read) -> tuple[tuple[WaitingBatch, ...], tuple[WaitingSpend, ...]]:
        spenders = await self._psbts.mempool_spenders(read.coins)
        raws = await self._node.raw_transactions(sorted(set(spenders.values())))
        concerned = await self._store.read(partial(reconcile_read.batches_with, outpoints=sorted(spenders)))
        known: dict[str, str] = {}
        for batch in concerned:
            for txid, raw in raws.items():
                if raw is not None and matching_version(batch, raw) is not None:
                    known[txid] = batch.id
        foreign = sorted(txid for txid, raw in raws.items() if raw is not None and txid not in known)
        by_outpoint = await self._store.read(partial(coins.among, outpoints=sorted(spenders)))
        spends = [
            WaitingSpend(txid, Sat(sum(by_outpoint[o] for o, spender in spenders.items() if spender == txid)))
            for txid in foreign
        ]
        waiting = [
            WaitingBatch(
                batch_id=batch.id,
                amount_sat=Sat(sum(read.waiting_sat[batch.id])),
                payouts_count=len(read.waiting_sat[batch.id]),
                in_mempool=batch.id in known.values(),
                signed=any(version.raw is not None for version in batch.versions),
            )
            for batch in read.waiting
        ]
        return tuple(waiting), tuple(spends)

    async def _with_spenders(self, gone: Sequence[OursOnly], height: int) -> tuple[OursOnly, ...]:
        """Look for who spent them, in the last blocks."""
        left = {outpoint_bytes(one.outpoint): one for one in gone}
        found: dict[OutPoint, OursOnly] = {}
        for number in range(height, max(0, height - BLOCKS_SEARCHED_MAX), -1):
            block_hash = await self._node.block_hash(number) if left else None
            if block_hash is None:
                break
            try:
                raw = await self._node.raw_block(block_hash)
            except BlockUnavailable:
                break  # pruned: older ones are, too
            block = await asyncio.to_thread(
                scan_block, raw, watched_scripts=(), watched_outpoints=left.keys()
            )
            for transaction in block.transactions:
                for previous in transaction.inputs:
                    one = left.pop(outpoint_bytes(previous), None)
                    if one is not None:
                        found[one.outpoint] = replace(one, spent_by=transaction.txid, height=number)
        return tuple(found.get(one.outpoint, one) for one in gone)

    async def _with_payees(self, flow: Flow, raw: dict[str, bytes]) -> Flow:
        if flow.txid not in raw:
            return flow
        payees = await self._psbts.payees_of(raw[flow.txid])
        named = ", ".join(
            f"{amount_sat:,} sat to {address or 'a script without an address'}"
            for address, amount_sat in payees[:PAYEES_NAMED_MAX]
        )
        more = len(payees) - PAYEES_NAMED_MAX
        return replace(flow, pays=f" (it pays {named}{f' and {more} more' if more > 0 else ''})")


def _highest(one: WalletRange) -> int:
    return min(max(one.next_index, one.watched_end) + INDEXES_BEYOND, ADDRESS_INDEX_MAX)


async def _active_hash(tx: Transaction, *, height: int) -> str | None:
    found: str | None = await tx.scalar(
        select(blocks.c.hash).where(blocks.c.active, blocks.c.height == height)
    )
    return found


async def _read(tx: Transaction, *, scan: UnspentScan) -> _Read | None:
    """Our side, and whose is what the node alone has; None if a reorg took the scan's block away."""
    tip = await chain_facts.tip(tx)
    if tip is None or await _active_hash(tx, height=scan.height) != scan.block_hash:
        return None
    then = {coin.outpoint: coin.amount_sat for coin in await coins.unspent(tx, height=scan.height)}
    there = {output.outpoint for output in scan.outputs}
    now = await coins.unspent(tx)
    waiting = await reconcile_read.waiting_batches(tx)
    flows = await reconcile_read.uneven_flows(tx, tip_height=tip.height)
    suspects = [flow.txid for flow in flows if flow.taken_sat > flow.explained_sat]
    facts = Facts(
        height=scan.height,
        block_hash=scan.block_hash,
        node_sat=scan.amount_sat,
        coins_then_sat=Sat(sum(then.values())),
        coins_sat=Sat(sum(coin.amount_sat for coin in now)),
        balances=await reconcile_read.liabilities(tx),
        ledger_sum_msat=await reconcile_read.ledger_sum_msat(tx),
        wrong_balances=await books.wrong_balances(tx),
        flows=tuple(flows),
        node_only=await reconcile_owners.whose(
            tx, [output for output in scan.outputs if output.outpoint not in then], height=scan.height
        ),
        ours_only=tuple(
            OursOnly(outpoint, amount_sat)
            for outpoint, amount_sat in sorted(then.items())
            if outpoint not in there
        ),
        explained_spends=tuple(await reconcile_read.explained_spends(tx)),
    )
    raw = select(paying_transactions.c.txid, paying_transactions.c.raw).where(
        paying_transactions.c.txid.in_(suspects[:SUSPECTS_READ_MAX])
    )
    return _Read(
        facts=facts,
        coins=tuple(coin.outpoint for coin in now),
        waiting=tuple(waiting),
        waiting_sat=await reconcile_read.amounts_of(tx, waiting),
        raw={row.txid: row.raw for row in (await tx.execute(raw)).all()},
    )
