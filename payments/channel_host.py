"""Which process has the channels of a database: one row, held for some seconds and renewed.

The time in it says only when another process may try; what protects money is the holder's name. Whoever
writes of channels calls `check` in the same transaction, and writes come one after the other: a process that
slept, was frozen or cut off while another took over can write nothing any more.
"""

import sqlite3

from sqlalchemy import bindparam, delete, insert, select, update

from payments.channel_errors import ChannelsElsewhere
from payments.ports import Transaction
from payments.tables import channel_host

LEASE_S = 6
AHEAD_S_MAX = 60
"""A lease that ends later was written by a clock that was set back since: it counts as lapsed."""
ROW = 1


async def take(tx: Transaction, holder: str, now: int) -> bool:
    """Whether `holder` has the channels from here on: nobody had them, or not any more, or it had them."""
    held = (await tx.execute(select(channel_host))).one_or_none()
    mine = {"holder": holder, "held_until": now + LEASE_S}
    if held is None:
        await tx.execute(insert(channel_host).values(id=ROW, **mine))
        return True
    if held.holder != holder and now < held.held_until <= now + AHEAD_S_MAX:
        return False
    await tx.execute(update(channel_host).values(**mine))
    return True


async def check(tx: Transaction, holder: str, now: int) -> None:
    """Renew the lease. Raises ChannelsElsewhere if another process has taken the channels."""
    # A lease that lapsed and that nobody took is renewed: nobody else has written meanwhile.
    if not (await tx.execute(_RENEW, {"by": holder, "until": now + LEASE_S})).rowcount:
        raise ChannelsElsewhere


def check_at_once(connection: sqlite3.Connection, holder: str, now: int) -> None:
    """As `check`, in the thread of this connection."""
    renewed = "UPDATE channel_host SET held_until = ? WHERE holder = ?"
    if not connection.execute(renewed, (now + LEASE_S, holder)).rowcount:
        raise ChannelsElsewhere


async def release(tx: Transaction, holder: str) -> None:
    """Let the next process have them at once. Nothing, if `holder` has them no more."""
    await tx.execute(delete(channel_host).where(channel_host.c.holder == holder))


_RENEW = (
    update(channel_host).where(channel_host.c.holder == bindparam("by")).values(held_until=bindparam("until"))
)
"""Made once: it goes with every voucher's commit."""
