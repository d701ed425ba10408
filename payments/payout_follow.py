"""What blocks did to payouts: run in the watcher's transaction, whenever blocks came or went.

Level-triggered, as everything that follows the chain: it looks at where the coins of each batch are spent
now, and makes books and states say so. A spend of the wallet that is no batch of ours is `unexplained`.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Row, or_, select

from payments import books, chain_facts, coins, foreign_spends, payable, payout_store
from payments.outputs import Presence
from payments.payout import (
    BatchState,
    PayoutPolicy,
    Share,
    State,
    desired_batch,
    desired_payout,
)
from payments.payout_batches import kill
from payments.payout_layout import matching_version
from payments.payout_store import Batch, Version
from payments.ports import Transaction
from payments.tables import paying_transactions, payout_batches, payout_versions

DEPTH_FOLLOWED = 144
"""Deeper batches and spends stay as they are."""


class PayoutFollower:
    """`follow` is called with every block that came or went."""

    def __init__(self, policy: PayoutPolicy) -> None:
        self._policy = policy

    async def follow(self, tx: Transaction, *, now: int, found: Iterable[str] = ()) -> None:
        """`found`: transactions of older blocks that were read again, and spend coins of the wallet."""
        if not await payable.hosted_descriptors(tx):
            return
        tip = await chain_facts.tip(tx)
        tip_height = tip.height if tip else 0
        from_height = tip_height - DEPTH_FOLLOWED
        for batch in await payout_store.batches(tx, payout_batches.c.state == BatchState.BUILT):
            await self._follow_batch(tx, batch, tip_height, now)
        for batch in await _lately_done(tx, from_height):
            await self._follow_batch(tx, batch, tip_height, now)
        for txid in sorted(await foreign_spends.lately(tx, from_height) | set(found)):
            await foreign_spends.book(tx, txid, now=now)

    async def _follow_batch(self, tx: Transaction, batch: Batch, tip_height: int, now: int) -> None:
        spenders = await coins.spenders_of(tx, batch.inputs)
        mined, mined_height, foreign_height = None, 0, None
        for row in await _transactions(tx, list(spenders)):
            if row.presence != Presence.BLOCK:
                continue
            version = await _version_of(tx, batch, row, now)
            if version is None:
                foreign_height = row.height
            else:
                mined, mined_height = version, row.height
        shares = {}
        if mined is not None:
            shares = {one.payout_id: one for one in await payout_store.shares_of(tx, batch.id, mined.n)}
        done = mined is not None and tip_height - mined_height + 1 >= self._policy.depth
        await self._book(tx, batch, shares, done=done, now=now)
        if foreign_height is not None and tip_height - foreign_height + 1 >= self._policy.depth:
            await kill(tx, batch.id)

    async def _book(
        self, tx: Transaction, batch: Batch, shares: dict[str, Share], *, done: bool, now: int
    ) -> None:
        members = await payout_store.payouts_of_batch(tx, batch.id)
        booked = await books.booked(tx, [batch.id, *(payout.id for payout in members)])
        for payout in members:
            desired = desired_payout(payout, shares.get(payout.id))
            await books.append_missing(tx, desired, booked[payout.id], reference=payout.id, now=now)
        left = desired_batch(batch.id, batch.left_sat, mined=bool(shares))
        await books.append_missing(tx, left, booked[batch.id], reference=batch.id, now=now)
        state = BatchState.DONE if done else BatchState.BUILT
        if state is not batch.state:
            await payout_store.change_batch(tx, batch.id, state=state, trouble=None)
            to = State.DONE if done else State.BATCHED
            await payout_store.change_payouts(tx, [payout.id for payout in members], state=to)


async def _lately_done(tx: Transaction, from_height: int) -> list[Batch]:
    """Done batches that a reorg could still undo, or has undone."""
    lately = (
        select(payout_versions.c.batch_id)
        .join(paying_transactions, paying_transactions.c.txid == payout_versions.c.txid)
        .where(or_(paying_transactions.c.height >= from_height, paying_transactions.c.reorged))
    )
    chosen = (payout_batches.c.state == BatchState.DONE) & payout_batches.c.id.in_(lately)
    return await payout_store.batches(tx, chosen)


async def _transactions(tx: Transaction, txids: Sequence[str]) -> Sequence[Row[tuple[object, ...]]]:
    chosen = select(paying_transactions).where(paying_transactions.c.txid.in_(txids))
    return (await tx.execute(chosen)).all()


async def _version_of(
    tx: Transaction, batch: Batch, row: Row[tuple[object, ...]], now: int
) -> Version | None:
    """The version that this transaction is; one that was signed and sent elsewhere is kept as signed."""
    for version in batch.versions:
        if version.txid == row.txid:
            return version
    unseen = matching_version(batch, row.raw)
    if unseen is not None:
        await payout_store.keep_signed(tx, batch.id, unseen.n, raw=row.raw, txid=row.txid, now=now)
    return unseen
