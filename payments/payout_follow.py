"""What blocks did to payouts: run in the watcher's transaction, whenever blocks came or went.

Level-triggered, as everything that follows the chain: it looks at where the coins of each batch are spent
now, and makes books and states say so. A spend of the wallet that is no batch of ours is `unexplained`.

Once given up, a batch can only be mined after a reorg as deep as the operator waits for, or if a signer sent
what was called off. Then it lives again: its payouts are paid, and those that went another way meanwhile are
`unexplained`, which stops all payouts until the operator says who bears what was paid twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, or_, select

from payments import batch_store, books, chain_facts, coins, foreign_spends, payable, payout_store
from payments.batch_store import Batch, Version
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
from payments.ports import OnPayouts, Transaction
from payments.tables import batch_inputs, paying_inputs, paying_transactions, payout_batches

DEPTH_FOLLOWED = 144
"""Deeper batches and spends stay as they are."""


class PayoutFollower:
    """`follow` is called with every block that came or went; `on_payouts` with what that changed."""

    def __init__(self, policy: PayoutPolicy, *, on_payouts: OnPayouts | None = None) -> None:
        self._policy = policy
        self._on_payouts = on_payouts

    async def follow(self, tx: Transaction, *, now: int, found: Iterable[str] = ()) -> None:
        """`found`: transactions of older blocks that were read again, and spend coins of the wallet."""
        if not await payable.hosted_descriptors(tx):
            return
        tip_height = await chain_facts.tip_height(tx)
        from_height = tip_height - DEPTH_FOLLOWED
        for batch in await _concerned(tx, from_height, set(found)):
            await self._follow_batch(tx, batch, tip_height, now)
        for txid in sorted(await foreign_spends.lately(tx, from_height) | set(found)):
            await foreign_spends.book(tx, txid, now=now)
        await foreign_spends.book_gifts(tx, now=now)

    async def _follow_batch(self, tx: Transaction, batch: Batch, tip_height: int, now: int) -> None:
        fate = await _fate(tx, batch, now)
        if fate.mined is None and batch.state is BatchState.DEAD:
            return
        shares = {}
        if fate.mined is not None:
            shares = {one.payout_id: one for one in await batch_store.shares_of(tx, batch.id, fate.mined.n)}
            if not batch.whole:
                await _take_back(tx, batch, list(shares))
        done = fate.mined is not None and tip_height - fate.mined_height + 1 >= self._policy.depth
        await self._book(tx, batch, shares, done=done, now=now)
        for version in (await batch_store.load_batch(tx, batch.id)).versions:
            if version.txid is not None:
                await foreign_spends.book(tx, version.txid, now=now)
        if fate.lost_height is not None and tip_height - fate.lost_height + 1 >= self._policy.depth:
            await kill(tx, batch.id)

    async def _book(
        self, tx: Transaction, batch: Batch, shares: dict[str, Share], *, done: bool, now: int
    ) -> None:
        members = await payout_store.payouts_of_batch(tx, batch.id)
        booked = await books.booked(tx, [batch.id, *(payout.id for payout in members)])
        desired = {payout.id: desired_payout(payout, shares.get(payout.id)) for payout in members}
        desired[batch.id] = desired_batch(batch.id, batch.left_sat, mined=bool(shares))
        news = await books.append_all_missing(tx, desired, booked, now=now)
        changed = [payout for payout in members if payout.id in news]
        state, to = (BatchState.DONE, State.DONE) if done else (BatchState.BUILT, State.BATCHED)
        if state is not batch.state:
            await batch_store.change_batch(tx, batch.id, state=state, trouble=None)
        if moved := [payout for payout in members if payout.state is not to]:
            await payout_store.change_payouts(tx, [payout.id for payout in moved], state=to)
            changed = members
        if changed and self._on_payouts is not None:
            await self._on_payouts(tx, changed)


async def obstacle(tx: Transaction, batch: Batch) -> str | None:
    """Why no transaction of this batch can be mined as the chain is now, in words; None: one can."""
    if not batch.whole and batch.state is BatchState.BUILT:
        return (
            "it was given up before, and some of its payouts went another way: it is not sent any more. "
            "Spend one of its coins otherwise, and it dies"
        )
    for row in await _transactions(tx, list(await coins.spenders_of(tx, batch.inputs))):
        if row.presence == Presence.BLOCK and all(row.txid != one.txid for one in batch.versions):
            return (
                f"transaction {row.txid} spent one of its coins: once that is deep, the batch dies, and its "
                "payouts go with another one"
            )
    for row in await _transactions(tx, sorted({outpoint.txid for outpoint in batch.inputs})):
        if row.presence != Presence.BLOCK:
            return (
                f"transaction {row.txid}, which made one of its coins, is in no block any more: it waits for "
                "that; once another one in its place is deep, the batch dies"
            )
    return None


async def _concerned(tx: Transaction, from_height: int, found: set[str]) -> list[Batch]:
    """Those under way; and those, done or dead, of which a coin was spent lately, or by one of `found`."""
    spenders = (
        select(batch_inputs.c.batch_id)
        .join(
            paying_inputs,
            (paying_inputs.c.previous_txid == batch_inputs.c.txid)
            & (paying_inputs.c.previous_vout == batch_inputs.c.vout),
        )
        .join(paying_transactions, paying_transactions.c.txid == paying_inputs.c.txid)
        .where(
            or_(
                paying_transactions.c.height >= from_height,
                paying_transactions.c.reorged,
                paying_transactions.c.txid.in_(found),
            )
        )
    )
    under_way = payout_batches.c.state == BatchState.BUILT
    return await batch_store.batches(tx, under_way | payout_batches.c.id.in_(spenders))


@dataclass(frozen=True, slots=True)
class _Fate:
    """What became of a batch in the active chain."""

    mined: Version | None
    mined_height: int
    lost_height: int | None
    """Of the lowest block by which one of its coins is gone: spent otherwise, or never made."""


async def _fate(tx: Transaction, batch: Batch, now: int) -> _Fate:
    mined, mined_height, lost = None, 0, list[int]()
    for row in await _transactions(tx, list(await coins.spenders_of(tx, batch.inputs))):
        if row.presence != Presence.BLOCK:
            continue
        version = await _version_of(tx, batch, row, now)
        if version is None:
            lost.append(row.height)
        else:
            mined, mined_height = version, row.height
    for row in await _transactions(tx, sorted({outpoint.txid for outpoint in batch.inputs})):
        if row.presence == Presence.GONE:
            lost.append(row.conflict_height)
    return _Fate(mined, mined_height, min(lost, default=None))


async def _take_back(tx: Transaction, batch: Batch, payout_ids: Sequence[str]) -> None:
    """A batch that was given up was mined all the same: what it paid is paid.

    Those payouts that another batch has, which somebody may send, or that were called off, stay there:
    `foreign_spends` books what was paid for them.
    """
    for other_id in {one.batch_id for one in await payout_store.payouts_of(tx, payout_ids)} - {batch.id}:
        if other_id is not None and not (await batch_store.load_batch(tx, other_id)).may_be_sent:
            await kill(tx, other_id)
    free = [one.id for one in await payout_store.payouts_of(tx, payout_ids) if one.state is State.APPROVED]
    await payout_store.change_payouts(tx, free, state=State.BATCHED, batch_id=batch.id, trouble=None)


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
        await batch_store.keep_signed(tx, batch.id, unseen.n, raw=row.raw, txid=row.txid, now=now)
    return unseen
