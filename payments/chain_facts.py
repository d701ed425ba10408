"""What our node told us, as it is in the database: blocks, paying transactions, outages. Reads only.

`payments.chain_store` writes it.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, and_, case, exists, literal, or_, select, true
from sqlalchemy.sql.elements import ColumnElement

from payments.invoice import ChainView, Outage, Status
from payments.money import Sat
from payments.outputs import OutPoint, Presence, ReceivedOutput
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import (
    blocks,
    channel_closes,
    channels,
    invoices,
    outages,
    paying_inputs,
    paying_transactions,
    payout_versions,
    payouts,
    received_outputs,
    unassigned_outputs,
    version_shares,
    watcher_state,
)

OUTAGE_S_MIN = 60
"""Shorter spans of not looking move no deadline."""
SCRIPTS_PER_QUERY = 1_000
SCRIPTS_PER_PART = 5_000
UNCONFIRMED = (Presence.MEMPOOL, Presence.MISSING, Presence.CONFLICTED)


@dataclass(frozen=True, slots=True)
class PaidOutput:
    """One output of a paying transaction and the invoice whose scriptPubKey it pays."""

    vout: int
    amount_sat: Sat
    script_pubkey: bytes
    invoice_id: str | None
    """None: no invoice we know of; see `payments.unassigned`."""


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
    offered: bool
    """Whether we give it to our node when it has forgotten it: what pays us, fundings of channels included,
    and payouts and closes of channels as they stand now. Not what others spent of the operator's wallet, nor
    a batch whose payouts are ready for another one, nor a close that a newer version replaces."""


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


async def view(tx: Transaction, now: int) -> ChainView:
    """The active chain as last scanned, with every outage, the present one included."""
    tip_height, state = await tip_and_watcher(tx)
    spans = [
        Outage(started_at=row.started_at, ended_at=row.ended_at)
        for row in (await tx.execute(select(outages).order_by(outages.c.started_at))).all()
    ]
    if state is not None and state.online_at and now - state.online_at > OUTAGE_S_MIN:
        spans.append(Outage(started_at=state.online_at, ended_at=now))
    return ChainView(tip_height=tip_height, outages=tuple(spans))


async def tip(tx: Transaction) -> BlockRef | None:
    """The highest block of the active chain that was scanned; None before the first start."""
    newest = select(blocks).where(blocks.c.active).order_by(blocks.c.height.desc()).limit(1)
    row = (await tx.execute(newest)).one_or_none()
    return BlockRef(height=row.height, hash=row.hash) if row else None


async def tip_height(tx: Transaction) -> int:
    """As `tip`; 0 before the first start."""
    newest = await tip(tx)
    return 0 if newest is None else newest.height


async def active_below(tx: Transaction, height: int, limit: int) -> list[BlockRef]:
    """Scanned blocks of the active chain at most `height` high, highest first."""
    rows = await tx.execute(
        select(blocks)
        .where(blocks.c.active, blocks.c.height <= height)
        .order_by(blocks.c.height.desc())
        .limit(limit)
    )
    return [BlockRef(height=row.height, hash=row.hash) for row in rows.all()]


async def payments_to(tx: Transaction, invoice_ids: Sequence[str]) -> dict[str, Payments]:
    """Every output that ever paid each of these invoices, in order of first sight."""
    rows = (
        await tx.execute(
            select(received_outputs, paying_transactions)
            .join(paying_transactions, paying_transactions.c.txid == received_outputs.c.txid)
            .where(received_outputs.c.invoice_id.in_(invoice_ids))
            .order_by(received_outputs.c.first_seen_at, received_outputs.c.txid, received_outputs.c.vout)
        )
    ).all()
    inputs = (
        await inputs_by_txid(tx, paying_transactions.c.txid.in_({row.txid for row in rows})) if rows else {}
    )
    outputs: dict[str, list[ReceivedOutput]] = {invoice_id: [] for invoice_id in invoice_ids}
    unfit: set[str] = set()
    for row in rows:
        output = received_output(row, inputs=frozenset(inputs.get(row.txid, ())))
        outputs[row.invoice_id].append(output)
        if output.presence in (Presence.MEMPOOL, Presence.MISSING) and not row.prefetch_fit:
            unfit.add(row.invoice_id)
    return {
        invoice_id: Payments(tuple(received), prefetch_fit=invoice_id not in unfit)
        for invoice_id, received in outputs.items()
    }


def received_output(
    row: Row[tuple[object, ...]], *, inputs: frozenset[OutPoint] = frozenset()
) -> ReceivedOutput:
    """A row of an output joined to `paying_transactions`, as the rules know it."""
    return ReceivedOutput(
        outpoint=OutPoint(row.txid, row.vout),
        amount_sat=Sat(row.amount_sat),
        first_seen_at=row.first_seen_at,
        presence=Presence(row.presence),
        height=row.height,
        coinbase=row.coinbase,
        reorged=row.reorged,
        inputs=inputs,
    )


async def unconfirmed(tx: Transaction) -> list[Unconfirmed]:
    """Paying transactions to look for in the mempool."""
    waiting = paying_transactions.c.presence.in_(UNCONFIRMED)
    inputs = await inputs_by_txid(tx, waiting)
    rows = await tx.execute(select(paying_transactions, _offered().label("offered")).where(waiting))
    return [
        Unconfirmed(
            txid=row.txid,
            raw=row.raw,
            presence=Presence(row.presence),
            inputs=tuple(inputs.get(row.txid, ())),
            offered=row.offered,
        )
        for row in rows.all()
    ]


async def watched_scripts(tx: Transaction) -> AsyncIterator[Iterable[tuple[bytes, str]]]:
    """(scriptPubKey, invoice id) of every invoice there ever was, some at a time: watched for ever."""
    chosen = select(invoices.c.script_pubkey, invoices.c.id).where(invoices.c.script_pubkey.is_not(None))
    async with tx.stream(chosen) as rows:
        async for some in rows.partitions(SCRIPTS_PER_PART):
            yield map(tuple, some)


async def invoices_paid_by(tx: Transaction, script_pubkeys: Sequence[bytes]) -> dict[bytes, str]:
    """scriptPubKey -> invoice id, for those of these scripts that are an invoice's."""
    found: dict[bytes, str] = {}
    for start in range(0, len(script_pubkeys), SCRIPTS_PER_QUERY):
        some = script_pubkeys[start : start + SCRIPTS_PER_QUERY]
        rows = await tx.execute(
            select(invoices.c.script_pubkey, invoices.c.id).where(invoices.c.script_pubkey.in_(some))
        )
        found |= {row.script_pubkey: row.id for row in rows.all()}
    return found


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


async def rivals(tx: Transaction, payment: PayingTransaction) -> set[str]:
    """Other followed transactions that spend an input of this one."""
    spent = set(payment.inputs)
    rows = await tx.execute(
        select(paying_inputs).where(
            paying_inputs.c.previous_txid.in_({outpoint.txid for outpoint in spent}),
            paying_inputs.c.txid != payment.txid,
        )
    )
    return {row.txid for row in rows.all() if OutPoint(row.previous_txid, row.previous_vout) in spent}


async def moving(tx: Transaction, *, from_height: int, told_from_height: int) -> set[str]:
    """Invoices for which one more confirmation may change something.

    Those with a payment at least `told_from_height` high; and, at least `from_height` high, those that are
    not settled yet or were paid newly mined coins. A block touches few of a busy shop's settled invoices.
    """
    txid, height = paying_transactions.c.txid, paying_transactions.c.height
    followed = select(txid).where(height >= from_height)
    told = followed.where((height >= told_from_height) | paying_transactions.c.coinbase)
    # Sets of txids, not a join: without statistics SQLite would begin at the outputs, all there ever were.
    paid_by = received_outputs.c.txid
    rows = await tx.scalars(
        select(received_outputs.c.invoice_id)
        .join(invoices, invoices.c.id == received_outputs.c.invoice_id)
        .where(paid_by.in_(followed), paid_by.in_(told) | (invoices.c.status != Status.SETTLED))
    )
    return set(rows.all())


async def tip_and_watcher(tx: Transaction) -> tuple[int, WatcherState | None]:
    """(height of the tip as last scanned, 0 before the first start; the watcher), in one statement."""
    height = select(blocks.c.height).where(blocks.c.active).order_by(blocks.c.height.desc()).limit(1)
    always = select(literal(1)).subquery()
    row = (
        await tx.execute(
            select(watcher_state, height.scalar_subquery().label("tip_height")).select_from(
                always.outerjoin(watcher_state, true())
            )
        )
    ).one()
    state = (
        None
        if row.beat_at is None
        else WatcherState(beat_at=row.beat_at, online_at=row.online_at, trouble=row.trouble)
    )
    return row.tip_height or 0, state


async def watcher_state_of(tx: Transaction) -> WatcherState | None:
    row = (await tx.execute(select(watcher_state))).one_or_none()
    return WatcherState(beat_at=row.beat_at, online_at=row.online_at, trouble=row.trouble) if row else None


def _offered() -> ColumnElement[bool]:
    """Of a row of `paying_transactions`, as in Unconfirmed."""
    txid, version, share = paying_transactions.c.txid, payout_versions.c, version_shares.c
    is_version = exists().where(version.txid == txid)
    dropped = exists().where(
        version.txid == txid,
        (share.batch_id == version.batch_id) & (share.n == version.n),
        payouts.c.id == share.payout_id,
        payouts.c.batch_id.is_distinct_from(version.batch_id),
    )
    pays_us = or_(
        exists().where(received_outputs.c.txid == txid), exists().where(unassigned_outputs.c.txid == txid)
    )
    # One that expired before a block had it may never come, its parents being double-spent.
    funds = exists().where(channels.c.txid == txid, channels.c.state != "closed")
    close, newer = channel_closes.c, channel_closes.alias("newer_closes").c
    is_close = exists().where(close.txid == txid)
    replaced = exists().where(close.txid == txid, newer.close_id == close.close_id, newer.n > close.n)
    return case(
        (dropped, False), (is_version, True), (replaced, False), (is_close, True), else_=or_(pays_us, funds)
    )


def spends_deposit() -> ColumnElement[bool]:
    """Of a row of `paying_inputs` and one of `channels`: whether that input spends that deposit."""
    return and_(
        paying_inputs.c.previous_txid == channels.c.txid, paying_inputs.c.previous_vout == channels.c.vout
    )


async def inputs_of(tx: Transaction, txids: Iterable[str]) -> dict[str, list[OutPoint]]:
    """As `inputs_by_txid`, of these."""
    inputs: dict[str, list[OutPoint]] = {}
    for some in portions(txids):
        inputs |= await inputs_by_txid(tx, paying_transactions.c.txid.in_(some))
    return inputs


async def inputs_by_txid(tx: Transaction, condition: ColumnElement[bool]) -> dict[str, list[OutPoint]]:
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
