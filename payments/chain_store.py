"""Writes what our node told us: blocks, paying transactions, outages. No decisions about invoices.

Each function changes facts and returns the ids of the invoices they concern; the caller refreshes those in
the same transaction. `payments.chain_facts` reads them.
"""

from collections.abc import Iterable

from sqlalchemy import delete, func, insert, select, union_all, update
from sqlalchemy.sql.elements import ColumnElement

from payments import chain_facts, channel_store, unassigned
from payments.chain_facts import OUTAGE_S_MIN, UNCONFIRMED, BlockRef, PayingTransaction, watcher_state_of
from payments.outputs import Presence
from payments.ports import Transaction
from payments.tables import (
    blocks,
    channels,
    outages,
    paying_inputs,
    paying_transactions,
    received_outputs,
    unassigned_outputs,
    watcher_state,
)


async def connect(tx: Transaction, block: BlockRef, *, now: int) -> None:
    """Put a block on the active chain. Its payments follow through `add_payment` and `lose_inputs`."""
    await tx.execute(delete(blocks).where(blocks.c.hash == block.hash))
    await tx.execute(
        insert(blocks).values(hash=block.hash, height=block.height, active=True, connected_at=now)
    )


async def disconnect_above(tx: Transaction, height: int) -> set[str]:
    """Take every block above `height` off the active chain: what they confirmed is unconfirmed again."""
    concerned = await _invoices_of(
        tx, (paying_transactions.c.height > height) | (paying_transactions.c.conflict_height > height)
    )
    await tx.execute(update(blocks).where(blocks.c.height > height).values(active=False))
    await tx.execute(
        update(paying_transactions)
        .where(paying_transactions.c.height > height)
        .values(presence=Presence.MISSING, height=None, reorged=True)
    )
    await tx.execute(
        update(paying_transactions)
        .where(paying_transactions.c.conflict_height > height)
        .values(presence=Presence.MISSING, conflict_height=None)
    )
    return concerned


async def add_payment(
    tx: Transaction,
    payment: PayingTransaction,
    *,
    height: int | None,
    first_seen_at: int,
    prefetch_fit: bool,
) -> set[str]:
    """Record a paying transaction in the block at `height`, or in the mempool (None).

    `first_seen_at` counts only if the transaction is new to us, and a replacement inherits the time of a
    payment with which it shares an input and which paid the same invoice at least as much: raising the fee
    never makes a payment late, and a few sats in time buy no option on the price.
    """
    presence = Presence.MEMPOOL if height is None else Presence.BLOCK
    known = (
        await tx.execute(select(paying_transactions).where(paying_transactions.c.txid == payment.txid))
    ).one_or_none()
    if known is None:
        await _insert(tx, payment, presence=presence, height=height, prefetch_fit=prefetch_fit)
    elif height is None and (known.height is not None or known.conflict_height is not None):
        # The node has taken that block off the chain since our last look: the poll that records it is first.
        return set()
    else:
        await tx.execute(
            update(paying_transactions)
            .where(paying_transactions.c.txid == payment.txid)
            .values(
                presence=presence,
                height=height,
                reorged=known.reorged and height is None,
            )
        )
    # A rescan may meet a known transaction with a script that was not watched before: outputs are added one
    # by one.
    recorded = set() if known is None else await _recorded(tx, payment.txid)
    concerned: set[str] = set()
    for output in payment.outputs:
        invoice_id = await unassigned.invoice_of(tx, output)
        if invoice_id is not None:
            concerned.add(invoice_id)
        if output.vout in recorded:
            continue
        if invoice_id is None:
            if not await channel_store.record_deposit(tx, payment.txid, output, first_seen_at):
                await unassigned.record(tx, payment.txid, output, first_seen_at=first_seen_at)
            continue
        inherited = await _first_seen_of_replaced(tx, payment, invoice_id)
        await tx.execute(
            insert(received_outputs).values(
                txid=payment.txid,
                vout=output.vout,
                invoice_id=invoice_id,
                amount_sat=output.amount_sat,
                first_seen_at=min(first_seen_at, inherited) if inherited is not None else first_seen_at,
            )
        )
    return concerned


async def follow_own(tx: Transaction, payment: PayingTransaction) -> None:
    """Follow a transaction that we made and have not sent: the watcher offers it to the node, and goes on.

    One that we follow already stays as it is.
    """
    known = select(paying_transactions.c.txid).where(paying_transactions.c.txid == payment.txid)
    if (await tx.execute(known)).first() is not None:
        return
    await _insert(tx, payment, presence=Presence.MISSING, height=None, prefetch_fit=False)
    mined = paying_transactions.c.txid.in_(await chain_facts.rivals(tx, payment))
    lost_at = await tx.scalar(select(func.min(paying_transactions.c.height)).where(mined))
    if lost_at is not None:
        await lose_inputs(tx, payment.txid, height=lost_at)


async def set_presence(tx: Transaction, txid: str, presence: Presence) -> set[str]:
    """Say where an unconfirmed paying transaction is now: MEMPOOL, MISSING or CONFLICTED."""
    await tx.execute(
        update(paying_transactions)
        .where(paying_transactions.c.txid == txid, paying_transactions.c.presence.in_(UNCONFIRMED))
        .values(presence=presence)
    )
    return await _invoices_of(tx, paying_transactions.c.txid == txid)


async def lose_inputs(tx: Transaction, txid: str, *, height: int) -> set[str]:
    """Another transaction, in the block at `height`, spent an input of this one: it cannot confirm now.

    The lowest such block is the one that counts: while it stands, a reorg above it brings nothing back.
    """
    await tx.execute(
        update(paying_transactions)
        .where(paying_transactions.c.txid == txid, paying_transactions.c.presence.in_(UNCONFIRMED))
        .values(presence=Presence.GONE, conflict_height=height)
    )
    return await _invoices_of(tx, paying_transactions.c.txid == txid)


async def beat(tx: Transaction, *, now: int, online: bool, trouble: str | None) -> bool:
    """Record that the watcher ran; an outage that ended now is written down, so that deadlines move by it.

    Whether our clock was set back since it last ran, so that what was past may be to come again.
    """
    state = await watcher_state_of(tx)
    if state is None:
        await tx.execute(
            insert(watcher_state).values(id=1, beat_at=now, online_at=now if online else 0, trouble=trouble)
        )
        return False
    if online and state.online_at and now - state.online_at > OUTAGE_S_MIN:
        await tx.execute(insert(outages).values(started_at=state.online_at, ended_at=now))
    # Never back, though our clock be set back: an outage that began before would move deadlines by which
    # payments were judged already.
    online_at = max(now, state.online_at) if online else state.online_at
    await tx.execute(update(watcher_state).values(beat_at=now, online_at=online_at, trouble=trouble))
    return now < state.beat_at - OUTAGE_S_MIN


async def _insert(
    tx: Transaction,
    payment: PayingTransaction,
    *,
    presence: Presence,
    height: int | None,
    prefetch_fit: bool,
) -> None:
    await tx.execute(
        insert(paying_transactions).values(
            txid=payment.txid,
            raw=payment.raw,
            coinbase=payment.coinbase,
            presence=presence,
            height=height,
            conflict_height=None,
            reorged=False,
            prefetch_fit=prefetch_fit,
        )
    )
    if payment.inputs:
        await tx.execute(
            insert(paying_inputs),
            [
                {"txid": payment.txid, "previous_txid": previous.txid, "previous_vout": previous.vout}
                for previous in payment.inputs
            ],
        )


async def _recorded(tx: Transaction, txid: str) -> set[int]:
    """Indexes of the outputs of this transaction that are kept already."""
    of_invoices = select(received_outputs.c.vout).where(received_outputs.c.txid == txid)
    of_none = select(unassigned_outputs.c.vout).where(unassigned_outputs.c.txid == txid)
    of_channels = select(channels.c.vout).where(channels.c.txid == txid)
    return set((await tx.scalars(union_all(of_invoices, of_none, of_channels))).all())


async def _first_seen_of_replaced(tx: Transaction, payment: PayingTransaction, invoice_id: str) -> int | None:
    """When a payment that this one replaces was first seen, if it paid the invoice at least as much."""
    spent = set(payment.inputs)
    paid_sat = sum(output.amount_sat for output in payment.outputs if output.invoice_id == invoice_id)
    earlier = (
        await tx.execute(
            select(
                received_outputs.c.txid,
                func.sum(received_outputs.c.amount_sat).label("amount_sat"),
                func.min(received_outputs.c.first_seen_at).label("first_seen_at"),
            )
            .where(received_outputs.c.invoice_id == invoice_id, received_outputs.c.txid != payment.txid)
            .group_by(received_outputs.c.txid)
        )
    ).all()
    if not earlier:
        return None
    inputs = await chain_facts.inputs_by_txid(
        tx, paying_transactions.c.txid.in_({row.txid for row in earlier})
    )
    times = [
        int(row.first_seen_at)
        for row in earlier
        if row.amount_sat >= paid_sat and not spent.isdisjoint(inputs.get(row.txid, ()))
    ]
    return min(times, default=None)


async def _invoices_of(tx: Transaction, condition: ColumnElement[bool]) -> set[str]:
    paying = select(paying_transactions.c.txid).where(condition)
    rows: Iterable[str] = (
        await tx.scalars(select(received_outputs.c.invoice_id).where(received_outputs.c.txid.in_(paying)))
    ).all()
    return set(rows)
