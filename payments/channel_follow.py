"""What blocks did to channels: run in the watcher's transaction, whenever blocks came or went.

Level-triggered, as everything that follows the chain: it looks at what ended each channel now, and makes
books and states say so. What a reorg takes out, close, refund or double spend, is as if it had never been.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Row, or_, select, update

from payments import books, chain_facts, channel_endings, channel_store
from payments.books import transfer_of
from payments.channel import FINAL_DEPTH, ChannelState, CloseReason, must_close
from payments.channel_books import Sold, desired_channel, desired_spending
from payments.channel_endings import Ending, Kind
from payments.channel_record import ChannelRecord
from payments.ledger import Booking, Code, Transfer
from payments.money import Msat
from payments.outputs import Presence
from payments.portions import portions
from payments.ports import OnChannels, Transaction
from payments.tables import (
    channel_contracts,
    channel_sales,
    channels,
    paying_inputs,
    paying_transactions,
    transfers,
)

BLOCKS_PER_STEP = 144
"""However many blocks come at once after an outage, they are recorded in steps so long: an ending is looked
at once more when it is final."""
_OWN_REASONS = (CloseReason.PAYER, CloseReason.MARGIN, CloseReason.OPERATOR)


class ChannelFollower:
    """`follow` is called with every block that came or went, `on_change` with what that changed.

    From `depth` on money is payable, FINAL_DEPTH deep a channel is not looked at any more.
    """

    def __init__(self, *, depth: int, on_change: OnChannels | None = None) -> None:
        self._depth = depth
        self._on_change = on_change

    async def mark_addresses(self, tx: Transaction) -> None:
        """Before money without an invoice is booked: what closes pay is none."""
        await channel_endings.mark_addresses(tx)

    async def follow(self, tx: Transaction, *, now: int, found: Iterable[str] = ()) -> None:
        """`found`: transactions of older blocks that were read again, and spend deposits."""
        tip_height = await chain_facts.tip_height(tx)
        from_height = tip_height - max(FINAL_DEPTH, self._depth) - BLOCKS_PER_STEP
        ids = await _concerned(tx, tip_height, from_height, set(found))
        if ids:
            await self._follow(tx, ids, tip_height, now)

    async def follow_these(self, tx: Transaction, *, channel_ids: Sequence[str], now: int) -> None:
        """As `follow`, however deep their end is."""
        await self._follow(tx, channel_ids, await chain_facts.tip_height(tx), now)

    async def _follow(self, tx: Transaction, ids: Sequence[str], tip_height: int, now: int) -> None:
        records = await channel_store.load_all(tx, ids)
        endings = await channel_endings.endings_of(tx, records)
        await book_spending(tx, ids, now=now)
        booked = await self._book(tx, records, endings, tip_height, now)
        moved = [one.id for one in records if await _decide(tx, one, endings.get(one.id), tip_height, now)]
        changed = sorted({*booked, *moved})
        if changed and self._on_change is not None:
            await self._on_change(tx, changed)

    async def _book(
        self,
        tx: Transaction,
        records: Sequence[ChannelRecord],
        endings: dict[str, Ending],
        tip_height: int,
        now: int,
    ) -> set[str]:
        """The channels of which anything was booked."""
        sold = await _sold(tx, [record.id for record in records])
        channel_of: dict[str, str] = {}
        desired: dict[str, tuple[Booking, ...]] = {}
        for record in records:
            ending = endings.get(record.id)
            ended = None if ending is None else ending.ended(tip_height, depth=self._depth)
            wanted = desired_channel(record.id, sold.get(record.id, ()), ended)
            desired |= wanted
            channel_of |= dict.fromkeys(wanted, record.id)
        standing = await _standing(tx, desired)
        booked = await books.append_all_missing(tx, desired, standing, now=now)
        return {channel_of[reference] for reference in booked}


async def book_spending(tx: Transaction, channel_ids: Iterable[str] | None, *, now: int) -> None:
    """Put what was charged since the last time in the books; None: in all that are not closed."""
    behind = select(channel_sales).where(channel_sales.c.spent_msat > channel_sales.c.booked_msat)
    if channel_ids is None:
        live = select(channels.c.id).where(channels.c.state.in_(channel_store.LIVE))
        rows = list((await tx.execute(behind.where(channel_sales.c.channel_id.in_(live)))).all())
    else:
        rows = []
        for some in portions(channel_ids):
            rows += (await tx.execute(behind.where(channel_sales.c.channel_id.in_(some)))).all()
    if not rows:
        return
    for row in rows:
        of_row = (channel_sales.c.channel_id == row.channel_id) & (channel_sales.c.subject == row.subject)
        await tx.execute(
            update(channel_sales)
            .where(of_row)
            .values(booked_msat=row.spent_msat, bookings=channel_sales.c.bookings + 1)
        )
    desired: dict[str, list[Booking]] = {}
    for row in rows:
        booking = desired_spending(
            row.channel_id, _sale(row), Msat(row.spent_msat - row.booked_msat), k=row.bookings
        )
        desired.setdefault(row.channel_id, []).append(booking)
    # Each is new: its number was never used.
    await books.append_all_missing(tx, desired, dict.fromkeys(desired, ()), now=now)


async def _decide(
    tx: Transaction, record: ChannelRecord, ending: Ending | None, tip_height: int, now: int
) -> bool:
    """Make the channel's state say what the chain says; whether that changed anything."""
    state: ChannelState
    reason: CloseReason | None
    if ending is not None:
        state, reason = ChannelState.CLOSED, _reason(record, ending)
        closed_at = now if record.closed_at is None else record.closed_at
    elif record.state is ChannelState.CLOSED:
        state, reason = _reopened(record, tip_height)
        closed_at = None
    else:
        return False
    if (state, reason) == (record.state, record.close_reason):
        return False
    await tx.execute(
        update(channels)
        .where(channels.c.id == record.id)
        .values(state=state, close_reason=reason, closed_at=closed_at, trouble=None)
    )
    return True


def _reason(record: ChannelRecord, ending: Ending) -> CloseReason:
    match ending.kind:
        case Kind.REFUND:
            return CloseReason.REFUNDED
        case Kind.DOUBLE_SPEND:
            return CloseReason.LOST
        case Kind.CLOSE:
            # A close that a restored database does not know was somebody's decision all the same.
            reason = record.close_reason
            return reason if reason in _OWN_REASONS and reason is not None else CloseReason.OPERATOR


def _reopened(record: ChannelRecord, tip_height: int) -> tuple[ChannelState, CloseReason | None]:
    """What a channel is again whose ending left the chain."""
    if record.close_asked_at is None:
        return (ChannelState.FUNDED if record.opened_at is None else ChannelState.OPEN), None
    if record.close_reason in _OWN_REASONS:
        return ChannelState.CLOSING, record.close_reason
    # The refund, or the double spend, took the place of the reason for which it was to be closed.
    if record.agreed is not None:
        return ChannelState.CLOSING, CloseReason.PAYER
    near = must_close(record.channel.contract.expiry_height, tip_height)
    return ChannelState.CLOSING, CloseReason.MARGIN if near else CloseReason.OPERATOR


async def _concerned(tx: Transaction, tip_height: int, from_height: int, found: set[str]) -> list[str]:
    """Channels whose deposit was spent, or whose funding was double-spent, in blocks from this height on, or
    in one that a reorg took out; and those that expired before a block had their deposit."""
    # Sets of txids, not joins: without statistics SQLite would begin at the channels, all there ever were.
    txid, height = paying_transactions.c.txid, paying_transactions.c.height
    recent = select(txid).where(height >= from_height)
    taken_out = select(txid).where(
        paying_transactions.c.presence.in_((*chain_facts.UNCONFIRMED, Presence.GONE)),
        paying_transactions.c.reorged,
    )
    spent = (
        select(channels.c.id)
        .join(paying_inputs, chain_facts.spends_deposit())
        .where(
            or_(
                paying_inputs.c.txid.in_(recent),
                paying_inputs.c.txid.in_(taken_out),
                paying_inputs.c.txid.in_(found),
            )
        )
    )
    robbed = select(txid).where(paying_transactions.c.conflict_height >= from_height)
    lost = select(channels.c.id).where(channels.c.txid.in_(robbed))
    # What was double-spent may be in the mempool again, or in a block.
    unconfirmed = select(txid).where(paying_transactions.c.presence.in_(chain_facts.UNCONFIRMED))
    back = select(channels.c.id).where(
        channels.c.close_reason == CloseReason.LOST,
        or_(channels.c.txid.in_(unconfirmed), channels.c.txid.in_(recent)),
    )
    never = (
        select(channels.c.id)
        .join(channel_contracts, channel_contracts.c.script_pubkey == channels.c.script_pubkey)
        .outerjoin(paying_transactions, txid == channels.c.txid)
        .where(
            channels.c.state.in_(channel_store.LIVE),
            channel_contracts.c.expiry_height <= tip_height,
            height.is_(None),
        )
    )
    ids = set[str]()
    for chosen in (spent, lost, back, never):
        ids |= set((await tx.scalars(chosen)).all())
    return sorted(ids)


async def _sold(tx: Transaction, channel_ids: Iterable[str]) -> dict[str, list[Sold]]:
    found: dict[str, list[Sold]] = {}
    for some in portions(channel_ids):
        chosen = select(channel_sales).where(channel_sales.c.channel_id.in_(some))
        for row in (await tx.execute(chosen.order_by(channel_sales.c.subject))).all():
            found.setdefault(row.channel_id, []).append(_sale(row))
    return found


def _sale(row: Row[tuple[object, ...]]) -> Sold:
    return Sold(row.subject, row.seller_id, row.fee_ppm, Msat(row.spent_msat))


async def _standing(tx: Transaction, references: Iterable[str]) -> dict[str, list[Transfer]]:
    """All under these references but what was charged: that is never taken back, and may be many entries."""
    found: dict[str, list[Transfer]] = {reference: [] for reference in references}
    for some in portions(found):
        chosen = select(transfers).where(
            transfers.c.reference.in_(some), transfers.c.code.not_in((Code.METERED, Code.METERED_REVERSED))
        )
        for row in (await tx.execute(chosen)).all():
            found[row.reference].append(transfer_of(row))
    return found
