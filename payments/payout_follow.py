"""What blocks did to payouts: run in the watcher's transaction, whenever blocks came or went.

Level-triggered, as everything that follows the chain: it looks at where the coins of each batch are spent
now, and makes books and states say so. A spend of the wallet that is no batch of ours is `unexplained`.
"""

from collections.abc import Sequence

from sqlalchemy import Row, or_, select

from payments import books, chain_facts, coins, ledger, payable, payout_store
from payments.ledger import Code
from payments.money import Sat
from payments.outputs import Presence
from payments.payout import (
    BatchState,
    PayoutPolicy,
    Share,
    State,
    desired_batch,
    desired_payout,
    desired_spend,
)
from payments.payout_batches import kill
from payments.payout_layout import matching_version
from payments.payout_store import Batch, Version
from payments.ports import Transaction
from payments.tables import paying_inputs, paying_transactions, payout_batches, payout_versions

DEPTH_FOLLOWED = 144
"""Deeper batches and spends stay as they are."""


class PayoutFollower:
    """`follow` is called with every block that came or went."""

    def __init__(self, policy: PayoutPolicy) -> None:
        self._policy = policy

    async def follow(self, tx: Transaction, *, now: int) -> None:
        if not await payable.hosted_descriptors(tx):
            return
        tip = await chain_facts.tip(tx)
        tip_height = tip.height if tip else 0
        from_height = tip_height - DEPTH_FOLLOWED
        for batch in await payout_store.batches(tx, payout_batches.c.state == BatchState.BUILT):
            await self._follow_batch(tx, batch, tip_height, now)
        for batch in await _lately_done(tx, from_height):
            await self._follow_batch(tx, batch, tip_height, now)
        for txid in sorted(await _spends(tx, from_height)):
            await _book_spend(tx, txid, now)

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


async def explain(tx: Transaction, txid: str, account: str, *, now: int) -> Sat:
    """Say which account of the ledger bears what a transaction took out of the wallet; how much that was.

    0: there is no such spend, or it was explained before.
    """
    standing = (await books.booked(tx, [txid]))[txid]
    before = await books.balance(tx, ledger.unexplained())
    if not standing:
        return Sat(0)
    await _book_spend(tx, txid, now, explained_by=account)
    return Sat((await books.balance(tx, ledger.unexplained()) - before) // 1_000)


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


async def _spends(tx: Transaction, from_height: int) -> set[str]:
    """Transactions that spend coins of the wallet and are no batch of ours, of the followed depth."""
    ours = select(payout_versions.c.txid).where(payout_versions.c.txid.is_not(None))
    lately = select(paying_transactions.c.txid).where(
        or_(paying_transactions.c.height >= from_height, paying_transactions.c.reorged),
        paying_transactions.c.txid.not_in(ours),
    )
    spent_by = select(paying_inputs.c.txid).where(paying_inputs.c.txid.in_(lately)).distinct()
    found: set[str] = set()
    for coins_of in (coins.sold_among_inputs(spent_by), coins.own_among_inputs(spent_by)):
        found |= {row.txid for row in (await tx.execute(coins_of)).all()}
    return found


async def _book_spend(tx: Transaction, txid: str, now: int, *, explained_by: str | None = None) -> None:
    (row,) = await _transactions(tx, [txid])
    inputs = (await chain_facts.inputs_by_txid(tx, paying_transactions.c.txid == txid)).get(txid, [])
    spent_sat = sum((await coins.among(tx, inputs)).values())
    net_out_sat = Sat(max(0, spent_sat - await coins.change_among(tx, txid)))
    standing = (await books.booked(tx, [txid]))[txid]
    named = explained_by or next((t.debit for t in standing if t.code is Code.EXPLAINED), None)
    mined = row.presence == Presence.BLOCK
    desired = desired_spend(txid, net_out_sat, named, mined=mined)
    await books.append_missing(tx, desired, standing, reference=txid, now=now)
