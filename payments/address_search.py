"""After a restore: finds the addresses that the lost database had handed out, by what was paid to them.

The next addresses of each descriptor are watched from then on. What the watcher scans anyway, the blocks
since the backup and the mempool, shows which of them are used. Two cases need older blocks again: addresses
beyond the first ones, when those prove used, and a descriptor that is set later. Those blocks are read here,
some with each poll, so that the watcher never falls behind.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sqlalchemy import select

from payments import chain_facts, chain_store, foreign_spends, restores, unassigned
from payments.addresses import AddressBook, DerivedAddress
from payments.bitcoind import Bitcoind
from payments.chain_facts import BlockRef, PayingTransaction
from payments.channel_follow import ChannelFollower
from payments.descriptors import ADDRESS_INDEX_MAX, DescriptorStore
from payments.errors import BlockUnavailable
from payments.payout_follow import PayoutFollower
from payments.ports import Clock, Store, Transaction
from payments.registry import InvoiceRegistry
from payments.restores import Search
from payments.scanning import scanned
from payments.tables import blocks
from payments.watch_list import WatchList

log = logging.getLogger(__name__)

ADDRESSES_WATCHED = 2 * restores.ADDRESSES_AHEAD
"""So that old blocks are read again only where more than half of them prove used."""
BLOCKS_PER_TURN = 144
NEW_WALLETS_PER_PASS = 2
"""Half a second of deriving each, while no payment is seen: a seller may set as many wallets as they like."""


class _Found(NamedTuple):
    block: BlockRef
    payments: tuple[PayingTransaction, ...]
    spends: tuple[PayingTransaction, ...]
    """Of the operator's wallet: what was paid to a lost invoice may be paid out already."""
    mined_at: int


@dataclass(slots=True)
class _Pass:
    """One reading of old blocks for the addresses of some descriptors."""

    scripts: set[bytes]
    descriptor_ids: set[str]
    next_height: int
    last_height: int
    """The watcher scans what comes after it."""
    same_wallet: dict[str, set[str]]
    """For each descriptor, all that have its addresses: two spellings of one wallet."""


class AddressSearch:
    """Part of the watcher's poll: `widen` before it looks at the node, `go_on` after it has seen all."""

    def __init__(
        self,
        node: Bitcoind,
        store: Store,
        registry: InvoiceRegistry,
        *,
        descriptors: DescriptorStore,
        addresses: AddressBook,
        clock: Clock,
        payouts: PayoutFollower | None = None,
        channels: ChannelFollower | None = None,
    ) -> None:
        """`payouts` where sales are, or were, hosted; `channels` where they are metered."""
        self._node = node
        self._store = store
        self._registry = registry
        self._descriptors = descriptors
        self._addresses = addresses
        self._clock = clock
        self._payouts = payouts
        self._channels = channels
        self._pass: _Pass | None = None
        self._told: set[str] = set()

    async def widen(self, watch_list: WatchList) -> bool:
        """Watch the addresses that are to be looked for; whether there are any."""
        pending = await self._store.read(restores.searches)
        decided = [search for search in pending if search.decided_index is not None]
        if decided:
            await self._end_decided(decided, watch_list)
        searched = [s for s in pending if s.from_height is not None and s.decided_index is None]
        if len(decided) + len(searched) < len(pending):
            self._tell("the backup knew no block to search from")
        if self._pass is not None and self._pass.descriptor_ids.isdisjoint(s.descriptor_id for s in searched):
            self._pass = None
        if self._pass is not None or not searched:
            return bool(decided)
        new = [search for search in searched if not search.lost]
        searched = [search for search in searched if search.lost] + new[:NEW_WALLETS_PER_PASS]
        derived = {search.descriptor_id: await self._derive(search) for search in searched}
        self._pass = await self._store.write(partial(_begin, searched=searched, derived=derived))
        watch_list.watch_unassigned(self._pass.scripts)
        return True

    async def go_on(self, watch_list: WatchList) -> None:
        """Read some of the old blocks; after the last one, end the searches that found all.

        The watcher has just seen the whole chain and mempool.
        """
        if self._pass is None:
            return
        try:
            found = await self._read_blocks(self._pass, watch_list)
        except BlockUnavailable as exc:
            self._tell(f"{exc}; if it was pruned: `bitcache doctor --rescan`")
            return
        if not await self._store.write(partial(self._record, found=found, now=self._clock())):
            return  # the node's chain changed meanwhile: the watcher follows it first
        for one in found:
            watch_list.add(one.payments)
        await self._store.read(watch_list.keep_coins)
        self._pass.next_height += len(found)
        if self._pass.next_height > self._pass.last_height:
            await self._store.write(partial(_end_those_found, read=self._pass, now=self._clock()))
            self._pass = None

    async def _end_decided(self, decided: list[Search], watch_list: WatchList) -> None:
        """Where the operator has decided: what is skipped is watched all the same."""
        derived = {search.descriptor_id: await self._derive(search) for search in decided}
        scripts = await self._store.write(
            partial(_end_decided, decided=decided, derived=derived, now=self._clock())
        )
        watch_list.watch_unassigned(scripts)

    async def _derive(self, search: Search) -> list[DerivedAddress]:
        """The addresses to be watched that are not yet."""
        if search.decided_index is not None:
            end_index = search.decided_index
        elif not search.found_all:
            end_index = search.first_unused + ADDRESSES_WATCHED
        else:
            return []
        end_index = min(end_index, ADDRESS_INDEX_MAX + 1)
        if end_index <= search.end_index:
            return []
        descriptor = await self._store.read(
            partial(self._descriptors.load, descriptor_id=search.descriptor_id)
        )
        return await self._addresses.derive(
            descriptor, start=search.end_index, count=end_index - search.end_index
        )

    async def _read_blocks(self, reading: _Pass, watch_list: WatchList) -> list[_Found]:
        """What the next blocks hold. Raises BlockUnavailable."""
        end = min(reading.next_height + BLOCKS_PER_TURN, reading.last_height + 1)
        found = []
        for height in range(reading.next_height, end):
            block_hash = await self._node.block_hash(height)
            if block_hash is None:
                break
            raw = await self._node.raw_block(block_hash)
            block = await scanned(raw, watch_list, scripts=reading.scripts)
            payments, spends = tuple(watch_list.payments_in(block)), tuple(watch_list.spends_in(block))
            found.append(_Found(BlockRef(height, block_hash), payments, spends, block.time))
        return found

    async def _record(self, tx: Transaction, *, found: list[_Found], now: int) -> bool:
        """Keep what was found; False, and nothing is kept, if a block is not in our records' chain."""
        ours = select(blocks.c.hash).where(blocks.c.active, blocks.c.hash.in_([f.block.hash for f in found]))
        if len((await tx.scalars(ours)).all()) != len(found):
            return False
        concerned: set[str] = set()
        for one in found:
            for payment in (*one.payments, *one.spends):
                concerned |= await chain_store.add_payment(
                    tx,
                    payment,
                    height=one.block.height,
                    first_seen_at=min(now, one.mined_at),
                    prefetch_fit=True,
                )
        await self._registry.refresh(tx, concerned, now=now)
        await foreign_spends.mark_change(tx)
        if self._channels is not None:
            await self._channels.mark_addresses(tx)
        await unassigned.book(tx, now=now)
        spends = {spend.txid for one in found for spend in one.spends}
        if self._payouts is not None and spends:
            await self._payouts.follow(tx, now=now, found=spends)
        if self._channels is not None:
            paid = {payment.txid for one in found for payment in (*one.payments, *one.spends)}
            await self._channels.follow(tx, now=now, found=paid)
        return True

    def _tell(self, trouble: str) -> None:
        """Once each."""
        if trouble not in self._told:
            self._told.add(trouble)
            log.error(
                "some sellers get no new invoices since the restore: %s; or decide where their addresses go "
                "on: `bitcache account start-index`, or `bitcache payouts start-index`",
                trouble,
            )


async def _begin(
    tx: Transaction, *, searched: list[Search], derived: dict[str, list[DerivedAddress]]
) -> _Pass:
    """Keep the addresses that are to be watched. What the node's next blocks hold, the watcher sees."""
    same_wallet = {
        search.descriptor_id: await unassigned.add_addresses(
            tx, search.descriptor_id, derived[search.descriptor_id]
        )
        for search in searched
    }
    last_height = await chain_facts.tip_height(tx)
    if not any(search.lost for search in searched):
        last_height = min(last_height, await restores.last_height(tx))
    return _Pass(
        scripts=await unassigned.scripts_of(tx, set().union(*same_wallet.values())),
        descriptor_ids={search.descriptor_id for search in searched},
        next_height=min(search.from_height for search in searched if search.from_height is not None) + 1,
        last_height=last_height,
        same_wallet=same_wallet,
    )


async def _end_decided(
    tx: Transaction, *, decided: list[Search], derived: dict[str, list[DerivedAddress]], now: int
) -> set[bytes]:
    for search in decided:
        await unassigned.add_addresses(tx, search.descriptor_id, derived[search.descriptor_id])
        await restores.end_search(tx, search, now=now)
    return await unassigned.scripts_of(tx, [search.descriptor_id for search in decided])


async def _end_those_found(tx: Transaction, *, read: _Pass, now: int) -> None:
    for search in await restores.searches(tx, read.same_wallet):
        if search.descriptor_id in read.descriptor_ids and search.found_all:
            await restores.end_search(tx, search, now=now)
