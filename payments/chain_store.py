"""What our node told us, in the database: blocks, paying transactions, outages. No decisions about invoices.

Each function changes facts and returns the ids of the invoices they concern; the caller refreshes those in
the same transaction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from payments.invoice import ChainView, Outage, Status
from payments.money import Sat
from payments.outputs import OutPoint, Presence, ReceivedOutput
from payments.ports import Transaction
from payments.tables import (
    blocks,
    invoices,
    outages,
    paying_inputs,
    paying_transactions,
    received_outputs,
    watcher_state,
)

OUTAGE_S_MIN = 60
"""Shorter spans of not looking move no deadline."""
UNCONFIRMED = (Presence.MEMPOOL, Presence.MISSING, Presence.CONFLICTED)


@dataclass(frozen=True, slots=True)
class PaidOutput:
    """One output of a paying transaction and the invoice whose scriptPubKey it pays."""

    vout: int
    amount_sat: Sat
    invoice_id: str


@dataclass(frozen=True, slots=True)
class PayingTransaction:
    """A transaction with at least one output to a watched scriptPubKey."""

    txid: str
    raw: bytes
    inputs: tuple[OutPoint, ...]
    """Empty for a coinbase."""
    outputs: tuple[PaidOutput, ...]
    coinbase: bool


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A paying transaction that is in no block of the active chain and could still get into one."""

    txid: str
    raw: bytes
    presence: Presence
    inputs: tuple[OutPoint, ...]


@dataclass(frozen=True, slots=True)
class Payments:
    """Everything received for one invoice."""

    outputs: tuple[ReceivedOutput, ...]
    prefetch_fit: bool


@dataclass(frozen=True, slots=True)
class BlockRef:
    height: int
    hash: str


@dataclass(frozen=True, slots=True)
class WatcherState:
    """The watcher's last signs of life. `online_at`: when it last saw the whole chain and mempool."""

    beat_at: int
    online_at: int
    trouble: str | None


# --- reading ----------------------------------------------------------------------------------------------


async def view(tx: Transaction, now: int) -> ChainView:
    """The active chain as last scanned, with every outage, the present one included."""
    tip_ref = await tip(tx)
    spans = [
        Outage(started_at=row.started_at, ended_at=row.ended_at)
        for row in (await tx.execute(select(outages).order_by(outages.c.started_at))).all()
    ]
    state = await watcher_state_of(tx)
    if state is not None and state.online_at and now - state.online_at > OUTAGE_S_MIN:
        spans.append(Outage(started_at=state.online_at, ended_at=now))
    return ChainView(tip_height=tip_ref.height if tip_ref else 0, outages=tuple(spans))


async def tip(tx: Transaction) -> BlockRef | None:
    """The highest block of the active chain that was scanned; None before the first start."""
    newest = select(blocks).where(blocks.c.active).order_by(blocks.c.height.desc()).limit(1)
    row = (await tx.execute(newest)).one_or_none()
    return BlockRef(height=row.height, hash=row.hash) if row else None


async def active_below(tx: Transaction, height: int, limit: int) -> list[BlockRef]:
    """Scanned blocks of the active chain at most `height` high, highest first."""
    rows = await tx.execute(
        select(blocks)
        .where(blocks.c.active, blocks.c.height <= height)
        .order_by(blocks.c.height.desc())
        .limit(limit)
    )
    return [BlockRef(height=row.height, hash=row.hash) for row in rows.all()]


async def payments_to(tx: Transaction, invoice_id: str) -> Payments:
    """Every output that ever paid this invoice, in order of first sight."""
    rows = (
        await tx.execute(
            select(received_outputs, paying_transactions)
            .join(paying_transactions, paying_transactions.c.txid == received_outputs.c.txid)
            .where(received_outputs.c.invoice_id == invoice_id)
            .order_by(received_outputs.c.first_seen_at, received_outputs.c.txid, received_outputs.c.vout)
        )
    ).all()
    inputs = await _inputs_by_txid(tx, paying_transactions.c.txid.in_({row.txid for row in rows}))
    outputs = [
        ReceivedOutput(
            outpoint=OutPoint(row.txid, row.vout),
            amount_sat=Sat(row.amount_sat),
            first_seen_at=row.first_seen_at,
            presence=Presence(row.presence),
            height=row.height,
            coinbase=row.coinbase,
            reorged=row.reorged,
            inputs=frozenset(inputs.get(row.txid, ())),
        )
        for row in rows
    ]
    unconfirmed = [row for row in rows if row.presence in (Presence.MEMPOOL, Presence.MISSING)]
    return Payments(outputs=tuple(outputs), prefetch_fit=all(row.prefetch_fit for row in unconfirmed))


async def unconfirmed(tx: Transaction) -> list[Unconfirmed]:
    """Paying transactions to look for in the mempool."""
    waiting = paying_transactions.c.presence.in_(UNCONFIRMED)
    inputs = await _inputs_by_txid(tx, waiting)
    rows = await tx.execute(select(paying_transactions).where(waiting))
    return [
        Unconfirmed(
            txid=row.txid,
            raw=row.raw,
            presence=Presence(row.presence),
            inputs=tuple(inputs.get(row.txid, ())),
        )
        for row in rows.all()
    ]


async def watched_scripts(tx: Transaction) -> dict[bytes, str]:
    """scriptPubKey -> invoice id, of every invoice there ever was: scripts are watched for ever."""
    rows = await tx.execute(
        select(invoices.c.script_pubkey, invoices.c.id).where(invoices.c.script_pubkey.is_not(None))
    )
    return {row.script_pubkey: row.id for row in rows.all()}


async def open_scripts(tx: Transaction) -> dict[bytes, str]:
    """scriptPubKey -> invoice id, of the invoices that wait for a payment, all new ones included."""
    rows = await tx.execute(
        select(invoices.c.script_pubkey, invoices.c.id).where(
            invoices.c.status == Status.OPEN, invoices.c.script_pubkey.is_not(None)
        )
    )
    return {row.script_pubkey: row.id for row in rows.all()}


async def watched_inputs(tx: Transaction, *, from_height: int) -> dict[OutPoint, set[str]]:
    """Outpoint -> paying transactions that spend it, of those unconfirmed or at least `from_height` high."""
    rows = await tx.execute(
        select(paying_inputs)
        .join(paying_transactions, paying_transactions.c.txid == paying_inputs.c.txid)
        .where((paying_transactions.c.height.is_(None)) | (paying_transactions.c.height >= from_height))
    )
    watched: dict[OutPoint, set[str]] = {}
    for row in rows.all():
        watched.setdefault(OutPoint(row.previous_txid, row.previous_vout), set()).add(row.txid)
    return watched


async def moving(tx: Transaction, *, from_height: int, told_from_height: int) -> set[str]:
    """Invoices for which one more confirmation may change something.

    Those with a payment at least `told_from_height` high; and, at least `from_height` high, those that are
    not settled yet or were paid newly mined coins. A block touches few of a busy shop's settled invoices.
    """
    height = paying_transactions.c.height
    ripening = (invoices.c.status != Status.SETTLED) | paying_transactions.c.coinbase
    rows = await tx.scalars(
        select(received_outputs.c.invoice_id)
        .join(paying_transactions, paying_transactions.c.txid == received_outputs.c.txid)
        .join(invoices, invoices.c.id == received_outputs.c.invoice_id)
        .where(height >= from_height, (height >= told_from_height) | ripening)
    )
    return set(rows.all())


async def watcher_state_of(tx: Transaction) -> WatcherState | None:
    row = (await tx.execute(select(watcher_state))).one_or_none()
    return WatcherState(beat_at=row.beat_at, online_at=row.online_at, trouble=row.trouble) if row else None


# --- writing ----------------------------------------------------------------------------------------------


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
        for previous in payment.inputs:
            await tx.execute(
                insert(paying_inputs).values(
                    txid=payment.txid, previous_txid=previous.txid, previous_vout=previous.vout
                )
            )
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
    recorded = set(
        (
            await tx.scalars(select(received_outputs.c.vout).where(received_outputs.c.txid == payment.txid))
        ).all()
    )
    for output in payment.outputs:
        if output.vout in recorded:
            continue
        inherited = await _first_seen_of_replaced(tx, payment, output.invoice_id)
        await tx.execute(
            insert(received_outputs).values(
                txid=payment.txid,
                vout=output.vout,
                invoice_id=output.invoice_id,
                amount_sat=output.amount_sat,
                first_seen_at=min(first_seen_at, inherited) if inherited is not None else first_seen_at,
            )
        )
    return {output.invoice_id for output in payment.outputs}


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


async def beat(tx: Transaction, *, now: int, online: bool, trouble: str | None) -> None:
    """Record that the watcher ran; an outage that ended now is written down, so that deadlines move by it."""
    state = await watcher_state_of(tx)
    if state is None:
        await tx.execute(
            insert(watcher_state).values(id=1, beat_at=now, online_at=now if online else 0, trouble=trouble)
        )
        return
    if online and state.online_at and now - state.online_at > OUTAGE_S_MIN:
        await tx.execute(insert(outages).values(started_at=state.online_at, ended_at=now))
    online_at = max(now, state.online_at) if online else state.online_at
    await tx.execute(update(watcher_state).values(beat_at=now, online_at=online_at, trouble=trouble))


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
    inputs = await _inputs_by_txid(tx, paying_transactions.c.txid.in_({row.txid for row in earlier}))
    times = [
        int(row.first_seen_at)
        for row in earlier
        if row.amount_sat >= paid_sat and not spent.isdisjoint(inputs.get(row.txid, ()))
    ]
    return min(times, default=None)


async def _inputs_by_txid(tx: Transaction, condition: ColumnElement[bool]) -> dict[str, list[OutPoint]]:
    """What each of these paying transactions spends, in one query however many there are."""
    rows = await tx.execute(
        select(paying_inputs)
        .join(paying_transactions, paying_transactions.c.txid == paying_inputs.c.txid)
        .where(condition)
    )
    inputs: dict[str, list[OutPoint]] = {}
    for row in rows.all():
        inputs.setdefault(row.txid, []).append(OutPoint(row.previous_txid, row.previous_vout))
    return inputs


async def _invoices_of(tx: Transaction, condition: ColumnElement[bool]) -> set[str]:
    rows: Iterable[str] = (
        await tx.scalars(
            select(received_outputs.c.invoice_id)
            .join(paying_transactions, paying_transactions.c.txid == received_outputs.c.txid)
            .where(condition)
        )
    ).all()
    return set(rows)
