"""Where channels stand in the database, as little of each as tells whether memory must be brought up to date.

Between blocks only few of them can have moved: those without a confirmation, and those somebody heard of.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Select, func, or_, select

from payments import chain_facts
from payments.chain_facts import BlockRef
from payments.channel import ChannelState, CloseReason
from payments.channel_store import LIVE
from payments.money import Msat, Sat, sat_rounded_up
from payments.outputs import Presence
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import channels, paying_transactions


class Place(NamedTuple):
    id: str
    state: ChannelState
    funding: Presence
    height: int | None
    """Of the block that has the deposit."""


async def places(tx: Transaction, *, among: Iterable[str]) -> tuple[BlockRef | None, list[Place]]:
    """The tip; and of the channels that are not closed those that are among these or have no confirmation."""
    tip = await chain_facts.tip(tx)
    found = await _places(tx, _LIVE_PLACES.where(_UNCONFIRMED))
    for some in portions(among):
        found += await _places(tx, _LIVE_PLACES.where(channels.c.id.in_(some), ~_UNCONFIRMED))
    return tip, found


async def all_places(tx: Transaction, *, lost_since: int) -> tuple[BlockRef | None, list[Place], Sat]:
    """As `places`, of all; and what was charged to channels that ended by a double spend since then."""
    tip = await chain_facts.tip(tx)
    found = await _places(tx, _LIVE_PLACES)
    lost = select(func.sum(channels.c.spent_msat)).where(
        channels.c.close_reason == CloseReason.LOST, channels.c.closed_at > lost_since
    )
    return tip, found, sat_rounded_up(Msat(int(await tx.scalar(lost) or 0)))


async def _places(tx: Transaction, chosen: Select[Any]) -> list[Place]:
    return [
        Place(
            row.id,
            ChannelState(row.state),
            Presence.MISSING if row.presence is None else Presence(row.presence),
            row.height,
        )
        for row in (await tx.execute(chosen)).all()
    ]


_LIVE_PLACES = (
    select(channels.c.id, channels.c.state, paying_transactions.c.presence, paying_transactions.c.height)
    .outerjoin(paying_transactions, paying_transactions.c.txid == channels.c.txid)
    .where(channels.c.state.in_(LIVE))
)
_UNCONFIRMED = or_(paying_transactions.c.height.is_(None), paying_transactions.c.txid.is_(None))
