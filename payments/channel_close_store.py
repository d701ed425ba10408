"""Closes as rows: their versions, what each does to each channel, and where our node sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists, insert, or_, select, update

from payments import chain_facts, chain_store, channel_store
from payments.chain_facts import PayingTransaction
from payments.channel import ChannelState, CloseReason
from payments.channel_close_plan import Planned
from payments.channel_record import ChannelRecord
from payments.money import Sat
from payments.outputs import Presence
from payments.portions import portions
from payments.ports import Transaction
from payments.records import IssuedAddress
from payments.tables import (
    channel_close_members,
    channel_closes,
    channels,
    paying_transactions,
    unassigned_addresses,
    unassigned_outputs,
)
from payments.transaction import parse_transaction
from payments.unassigned import Purpose

_children = paying_transactions.alias("children")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One transaction of a close. All versions spend the same deposits: at most one is ever mined."""

    n: int
    txid: str
    raw: bytes
    created_at: int
    sent_height: int
    """The tip when it was first sent."""
    feerate_sat_kvb: int
    fee_sat: Sat
    payee_vout: int | None
    payee_sat: Sat
    presence: Presence
    height: int | None
    child_txid: str | None
    """Of what pays for it (CPFP)."""
    child_raw: bytes | None
    child_presence: Presence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    id: str
    payee_script_pubkey: bytes
    versions: tuple[Version, ...]
    """By number, from 1."""
    channel_ids: tuple[str, ...]
    """In the order of the inputs' claims; the same in every version."""

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    @property
    def mined(self) -> Version | None:
        return next((one for one in self.versions if one.presence is Presence.BLOCK), None)

    @property
    def can_be_mined(self) -> bool:
        """False: a block spends one of its deposits otherwise."""
        return any(one.presence is not Presence.GONE for one in self.versions)


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to do, as the database has it."""

    tip_height: int
    closes: list[Close]
    records: dict[str, ChannelRecord]
    """All channels that are to be closed, by id."""
    ready: list[ChannelRecord]
    """Those of them that no close spends."""


async def look(tx: Transaction) -> Look:
    """What is under way and what waits."""
    closing = select(channels.c.id).where(channels.c.state == ChannelState.CLOSING)
    records = await channel_store.load_all(tx, (await tx.scalars(closing)).all())
    closes = [close for close in await under_way(tx) if close.mined is None]
    closes = [close for close in closes if close.can_be_mined]
    taken = {channel_id for close in closes for channel_id in close.channel_ids}
    spent = await channel_store.spends_of(tx, [record.id for record in records])
    return Look(
        tip_height=await chain_facts.tip_height(tx),
        closes=closes,
        records={record.id: record for record in records},
        ready=[
            record
            for record in records
            if record.funding is Presence.BLOCK and record.id not in taken and record.id not in spent
        ],
    )


async def ask(tx: Transaction, channel_ids: Sequence[str], *, now: int) -> None:
    """Note that the operator wants these closed; the process that has the channels does it.

    Their state stays as it is till then: what is in that process's memory is never changed behind it.
    """
    for some in portions(channel_ids):
        await tx.execute(
            update(channels)
            .where(channels.c.id.in_(some), channels.c.state == ChannelState.OPEN)
            .values(close_reason=CloseReason.OPERATOR, close_asked_at=now)
        )


async def asked_by_operator(tx: Transaction) -> list[str]:
    """Channels that are open, and that the operator wants closed."""
    asked = select(channels.c.id).where(
        channels.c.state == ChannelState.OPEN, channels.c.close_asked_at.is_not(None)
    )
    return list((await tx.scalars(asked.order_by(channels.c.id))).all())


async def under_way(tx: Transaction) -> list[Close]:
    """Those of channels that are to be closed and in no block yet, by age."""
    closing = select(channels.c.id).where(channels.c.state == ChannelState.CLOSING)
    ids = select(channel_close_members.c.close_id).where(channel_close_members.c.channel_id.in_(closing))
    return await _closes(tx, channel_closes.c.close_id.in_(ids))


async def of_channel(tx: Transaction, channel_id: str) -> list[Close]:
    """Every close that this channel was ever in, by age."""
    ids = select(channel_close_members.c.close_id).where(channel_close_members.c.channel_id == channel_id)
    return await _closes(tx, channel_closes.c.close_id.in_(ids))


async def load(tx: Transaction, close_id: str) -> Close | None:
    found = await _closes(tx, channel_closes.c.close_id == close_id)
    return found[0] if found else None


async def add_version(
    tx: Transaction,
    *,
    close_id: str,
    n: int,
    planned: Planned,
    payee_script_pubkey: bytes,
    tip_height: int,
    now: int,
) -> None:
    """Keep a signed version, and follow it from now on. Once this is committed it may be sent."""
    close = planned.close
    await tx.execute(
        insert(channel_closes).values(
            close_id=close_id,
            n=n,
            txid=close.txid,
            raw=close.raw,
            created_at=now,
            sent_height=tip_height,
            feerate_sat_kvb=planned.feerate_sat_kvb,
            fee_sat=close.fee_sat,
            payee_script_pubkey=payee_script_pubkey,
            payee_vout=close.payee_vout,
            payee_sat=close.payee_sat,
        )
    )
    await tx.execute(
        insert(channel_close_members),
        [
            {
                "close_id": close_id,
                "n": n,
                "channel_id": claim.channel.id,
                "position": position,
                "paid_sat": claim.paid_sat,
                "agreed": claim.fee_sat is not None,
                "received_sat": received_sat,
            }
            for position, (claim, received_sat) in enumerate(
                zip(planned.claims, close.received_sat, strict=True)
            )
        ],
    )
    await follow(tx, close.raw)


async def follow(tx: Transaction, raw: bytes) -> None:
    """Have the watcher follow a transaction of ours, and offer it to the node until a block has it."""
    parsed = parse_transaction(raw)
    await chain_store.follow_own(
        tx, PayingTransaction(parsed.txid, raw, parsed.inputs, outputs=(), coinbase=False)
    )


async def set_child(tx: Transaction, txid: str, child_txid: str) -> None:
    """Of the version with this txid."""
    await tx.execute(
        update(channel_closes).where(channel_closes.c.txid == txid).values(child_txid=child_txid)
    )


async def set_troubles(tx: Transaction, troubles: dict[str, str | None]) -> None:
    """Channel id -> why it is not closed yet, in words."""
    for channel_id, trouble in troubles.items():
        await tx.execute(
            update(channels)
            .where(channels.c.id == channel_id, channels.c.trouble.is_distinct_from(trouble))
            .values(trouble=trouble)
        )


async def has_address(tx: Transaction, script_pubkey: bytes) -> bool:
    """Whether a close pays this script."""
    taken = select(channel_closes.c.txid).where(channel_closes.c.payee_script_pubkey == script_pubkey)
    return (await tx.execute(taken.limit(1))).first() is not None


async def unused_address(tx: Transaction, descriptor_id: str) -> IssuedAddress | None:
    """One that was kept for a close that was never made."""
    script = unassigned_addresses.c.script_pubkey
    chosen = select(unassigned_addresses).where(
        unassigned_addresses.c.descriptor_id == descriptor_id,
        unassigned_addresses.c.purpose == Purpose.CHANNEL,
        ~exists().where(channel_closes.c.payee_script_pubkey == script),
        ~exists().where(unassigned_outputs.c.script_pubkey == script),
    )
    row = (await tx.execute(chosen.limit(1))).one_or_none()
    if row is None:
        return None
    return IssuedAddress(row.descriptor_id, row.address_index, row.address, row.script_pubkey)


async def _closes(tx: Transaction, condition: ColumnElement[bool]) -> list[Close]:
    chosen = (
        select(
            channel_closes,
            paying_transactions.c.presence,
            paying_transactions.c.height,
            _children.c.raw.label("child_raw"),
            _children.c.presence.label("child_presence"),
        )
        .outerjoin(paying_transactions, paying_transactions.c.txid == channel_closes.c.txid)
        .outerjoin(_children, _children.c.txid == channel_closes.c.child_txid)
        .where(condition)
        .order_by(channel_closes.c.close_id, channel_closes.c.n)
    )
    versions: dict[str, list[Version]] = {}
    scripts: dict[str, bytes] = {}
    for row in (await tx.execute(chosen)).all():
        scripts[row.close_id] = row.payee_script_pubkey
        versions.setdefault(row.close_id, []).append(
            Version(
                n=row.n,
                txid=row.txid,
                raw=row.raw,
                created_at=row.created_at,
                sent_height=row.sent_height,
                feerate_sat_kvb=row.feerate_sat_kvb,
                fee_sat=Sat(row.fee_sat),
                payee_vout=row.payee_vout,
                payee_sat=Sat(row.payee_sat),
                presence=Presence.MISSING if row.presence is None else Presence(row.presence),
                height=row.height,
                child_txid=row.child_txid,
                child_raw=row.child_raw,
                child_presence=None if row.child_presence is None else Presence(row.child_presence),
            )
        )
    members = await _members(tx, versions)
    found = [
        Close(
            id=close_id,
            payee_script_pubkey=scripts[close_id],
            versions=tuple(of_close),
            channel_ids=tuple(members[close_id]),
        )
        for close_id, of_close in versions.items()
    ]
    # One that took the place of another within a second comes after it.
    return sorted(found, key=lambda close: (close.versions[0].created_at, close.can_be_mined, close.id))


async def _members(tx: Transaction, close_ids: Iterable[str]) -> dict[str, Sequence[str]]:
    """Close id -> its channels, as in its first version."""
    found: dict[str, list[str]] = {}
    ids = list(close_ids)
    if not ids:
        return {}
    rows = await tx.execute(
        select(channel_close_members)
        .where(or_(*(channel_close_members.c.close_id == one for one in ids)), channel_close_members.c.n == 1)
        .order_by(channel_close_members.c.close_id, channel_close_members.c.position)
    )
    for row in rows.all():
        found.setdefault(row.close_id, []).append(row.channel_id)
    return {close_id: found[close_id] for close_id in ids}
