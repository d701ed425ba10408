"""Channels as their operator looks at them, and what the operator decides about them.

Closing is asked for in the database: the process that has the channels does it, within seconds.
"""

from dataclasses import dataclass

from sqlalchemy import func, select

from payments import books, chain_facts, channel_close_store, channel_store, ledger
from payments.channel import ChannelState
from payments.channel_close_store import Close
from payments.channel_errors import ChannelClosed, ChannelNotFound, CloseRefused
from payments.channel_record import ChannelRecord
from payments.ports import Transaction
from payments.tables import channel_contracts, channel_sales, channels, paying_transactions


@dataclass(frozen=True, slots=True)
class ChannelLine:
    """One channel, as `bitcache channels list` shows it."""

    channel_id: str
    state: str
    reason: str | None
    asked: bool
    """To be closed, and still open: the process that has the channels has not done it yet."""
    capacity_sat: int
    accepted_sat: int
    spent_msat: int
    confirmations: int
    expiry_height: int
    blocks_left: int
    """To its expiry; negative after it."""
    trouble: str | None


@dataclass(frozen=True, slots=True)
class VersionLine:
    n: int
    txid: str
    feerate_sat_vb: float
    fee_sat: int
    payee_sat: int
    presence: str
    height: int | None
    child_txid: str | None


@dataclass(frozen=True, slots=True)
class CloseLine:
    close_id: str
    channels: int
    versions: tuple[VersionLine, ...]


@dataclass(frozen=True, slots=True)
class SaleLine:
    subject: str
    seller_id: str
    units: int
    spent_msat: int


@dataclass(frozen=True, slots=True)
class ChannelDetails:
    line: ChannelLine
    descriptor: str
    close_fee_sat: int
    sales: tuple[SaleLine, ...]
    closes: tuple[CloseLine, ...]


@dataclass(frozen=True, slots=True)
class ChannelFigures:
    """For /metrics."""

    funded: int
    open: int
    closing: int
    spent_msat: int
    """In channels that are not closed."""
    unconfirmed_sat: int
    """Signed in those whose deposit is in no block."""
    troubled: int
    """To be closed, and something is in the way."""
    blocks_left_min: int | None
    """Of those to be closed: to the first expiry. None: there are none."""


NO_CHANNELS = ChannelFigures(0, 0, 0, 0, 0, 0, None)


async def overview(tx: Transaction, *, everything: bool) -> list[ChannelLine]:
    """Those that expire first come first; `everything`: closed ones too."""
    tip_height = await chain_facts.tip_height(tx)
    if everything:
        records = await channel_store.load_all(tx, (await tx.scalars(select(channels.c.id))).all())
    else:
        records = await channel_store.live(tx)
    lines = [_line(record, tip_height) for record in records]
    return sorted(lines, key=lambda line: (line.expiry_height, line.channel_id))


async def details(tx: Transaction, channel_id: str) -> ChannelDetails:
    """Raises ChannelNotFound."""
    record = await channel_store.load(tx, channel_id)
    sold = select(channel_sales).where(channel_sales.c.channel_id == channel_id)
    sales = (await tx.execute(sold.order_by(channel_sales.c.first_at, channel_sales.c.subject))).all()
    return ChannelDetails(
        line=_line(record, await chain_facts.tip_height(tx)),
        descriptor=record.channel.contract.descriptor,
        close_fee_sat=record.channel.contract.close_fee_sat,
        sales=tuple(SaleLine(row.subject, row.seller_id, row.units, row.spent_msat) for row in sales),
        closes=tuple(_close_line(close) for close in await channel_close_store.of_channel(tx, channel_id)),
    )


async def ask_to_close(tx: Transaction, channel_ids: list[str] | None, *, now: int) -> list[str]:
    """Have these closed, or all that are open (None): all of them, or none. Those that were open, by id.

    Raises ChannelNotFound, ChannelClosed, CloseRefused.
    """
    if channel_ids is None:
        opened = select(channels.c.id).where(channels.c.state == ChannelState.OPEN)
        wanted = list((await tx.scalars(opened)).all())
    else:
        found = {record.id: record for record in await channel_store.load_all(tx, channel_ids)}
        for channel_id in channel_ids:
            _check_closable(channel_id, found.get(channel_id))
        wanted = [one.id for one in found.values() if one.state is ChannelState.OPEN]
    await channel_close_store.ask(tx, wanted, now=now)
    return sorted(wanted)


async def figures(tx: Transaction) -> ChannelFigures:
    live = channels.c.state.in_(channel_store.LIVE)
    counted = select(
        channels.c.state,
        func.count().label("of_state"),
        func.sum(channels.c.spent_msat).label("spent_msat"),
        func.count(channels.c.trouble).label("troubled"),
    )
    unconfirmed = (
        select(func.sum(channels.c.accepted_sat))
        .outerjoin(paying_transactions, paying_transactions.c.txid == channels.c.txid)
        .where(live, paying_transactions.c.height.is_(None))
    )
    rows = {
        row.state: row for row in (await tx.execute(counted.where(live).group_by(channels.c.state))).all()
    }
    count = {state: int(row.of_state) for state, row in rows.items()}
    return ChannelFigures(
        funded=count.get(ChannelState.FUNDED, 0),
        open=count.get(ChannelState.OPEN, 0),
        closing=count.get(ChannelState.CLOSING, 0),
        spent_msat=sum(int(row.spent_msat) for row in rows.values()),
        unconfirmed_sat=int(await tx.scalar(unconfirmed) or 0),
        troubled=sum(row.troubled for row in rows.values()),
        blocks_left_min=await _blocks_left_min(tx),
    )


async def unsettled(tx: Transaction) -> bool:
    """Whether a channel is still to be closed, or its close is not deep: somebody has to see to it."""
    kept = select(channels.c.id).where(channels.c.state.in_((ChannelState.OPEN, ChannelState.CLOSING)))
    if (await tx.execute(kept.limit(1))).first() is not None:
        return True
    return bool(await books.balances_like(tx, ledger.pending("")))


async def _blocks_left_min(tx: Transaction) -> int | None:
    lowest: int | None = await tx.scalar(
        select(func.min(channel_contracts.c.expiry_height))
        .join(channels, channels.c.script_pubkey == channel_contracts.c.script_pubkey)
        .where(channels.c.state == ChannelState.CLOSING)
    )
    return None if lowest is None else lowest - await chain_facts.tip_height(tx)


def _check_closable(channel_id: str, record: ChannelRecord | None) -> None:
    if record is None:
        raise ChannelNotFound(channel_id)
    if record.state is ChannelState.CLOSED:
        raise ChannelClosed(channel_id)
    if record.state is ChannelState.FUNDED:
        raise CloseRefused(
            f"Nobody has signed anything in channel {channel_id}: there is nothing to close it with. Its "
            "payer takes the deposit back after its expiry."
        )


def _line(record: ChannelRecord, tip_height: int) -> ChannelLine:
    expiry_height = record.channel.contract.expiry_height
    return ChannelLine(
        channel_id=record.id,
        state=record.state.value,
        reason=None if record.close_reason is None else record.close_reason.value,
        asked=record.state is ChannelState.OPEN and record.close_asked_at is not None,
        capacity_sat=record.channel.capacity_sat,
        accepted_sat=record.balance.accepted_sat,
        spent_msat=record.balance.spent_msat,
        confirmations=record.confirmations(tip_height),
        expiry_height=expiry_height,
        blocks_left=expiry_height - tip_height,
        trouble=record.trouble,
    )


def _close_line(close: Close) -> CloseLine:
    return CloseLine(
        close_id=close.id,
        channels=len(close.channel_ids),
        versions=tuple(
            VersionLine(
                n=version.n,
                txid=version.txid,
                feerate_sat_vb=version.feerate_sat_kvb / 1_000,
                fee_sat=version.fee_sat,
                payee_sat=version.payee_sat,
                presence=version.presence.value,
                height=version.height,
                child_txid=version.child_txid,
            )
            for version in close.versions
        ),
    )
