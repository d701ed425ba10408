"""Group commit: one task writes whatever was decided since its last write, in one transaction.

Nobody is answered before what was decided for them is on the disk. If a write fails, nothing of it counts,
nor anything that was decided since, on top of it: all who wait hear of it, and their channels are forgotten.
"""

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence, Set
from typing import Any, Protocol

from sqlalchemy import bindparam, literal_column, select, update

from payments.channel import ChannelState, Charge
from payments.channel_errors import ChannelClosed, ChannelsElsewhere
from payments.channel_live import Decision, LiveChannel
from payments.channel_pages import SAVE_PAGES, Page, PageKey, RetryKey, page_row
from payments.many_rows import ManyRows, Row
from payments.portions import portions
from payments.ports import Clock, Transaction
from payments.tables import channel_sales, channels

GATHERED_S = 0.003
"""What is decided meanwhile goes with the first: a commit costs more than twenty vouchers, and a buyer waits
longer for a chunk than this."""


class FencedWrite(Protocol):
    """Writes a batch; raises ChannelsElsewhere unless this process has the channels."""

    async def __call__(self, writing: "Writing") -> set[str]: ...


class Forget(Protocol):
    """Told of channels whose memory may be ahead of the disk, or behind it."""

    def __call__(self, channel_ids: set[str], retried: Sequence[RetryKey]) -> None: ...


class Batch:
    """What was decided since the last one."""

    def __init__(self) -> None:
        self.channels: dict[str, LiveChannel] = {}
        self.changed_states: dict[str, LiveChannel] = {}
        self.pages: dict[PageKey, Page] = {}
        self.sales: dict[tuple[str, str], dict[str, Any]] = {}
        self.retried: list[RetryKey] = []
        self.refused: set[str] = set()
        """Channels that were decided upon here, on top of what was not written."""
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []

    def add(self, decision: Decision, now: int) -> asyncio.Future[None]:
        live, charge = decision.live, decision.charge
        if live.id not in self.channels:
            self.channels[live.id] = live
            live.unsaved += 1
        if decision.state_changed:
            self.changed_states[live.id] = live
        for key, page in decision.pages:
            if key not in self.pages:
                self.pages[key] = page
                page.unsaved += 1
        if charge is not None and decision.units:
            self._add_sale(live.id, charge, decision, now)
        self.retried += decision.retried
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((live.id, future))
        return future

    def _add_sale(self, channel_id: str, charge: Charge, decision: Decision, now: int) -> None:
        key = (channel_id, charge.subject)
        sale = self.sales.get(key)
        if sale is None:
            self.sales[key] = {
                "channel_id": channel_id,
                "subject": charge.subject,
                "seller_id": charge.seller_id,
                "fee_ppm": charge.fee_ppm,
                "first_at": now,
                "last_at": now,
                "units": decision.units,
                "spent_msat": decision.cost_msat,
                "booked_msat": 0,
                "bookings": 0,
            }
            return
        sale["units"] += decision.units
        sale["spent_msat"] += decision.cost_msat
        sale["last_at"] = now

    def release(self) -> None:
        """It is over, one way or the other."""
        for live in self.channels.values():
            live.unsaved -= 1
        for page in self.pages.values():
            page.unsaved -= 1


class Writing:
    """The rows of a batch as they are when it is closed; writing them twice is writing them once."""

    def __init__(self, batch: Batch) -> None:
        self.balances = [_balance_row(live) for live in batch.channels.values()]
        self.states = [_state_row(live) for live in batch.changed_states.values()]
        self.pages = [page_row(key, page) for key, page in batch.pages.items()]
        self.sales = list(batch.sales.values())
        self.refused = batch.refused

    async def write(self, tx: Transaction) -> set[str]:
        """The channels that the chain has closed meanwhile: nothing is written of them."""
        closed = set(self.refused)
        kept = self._balances_but(closed)
        # A closed one takes no balance. How many took theirs, PostgreSQL's driver does not say.
        if kept and await _BALANCES.execute(tx, kept) != len(kept):
            for some in portions(row["b_id"] for row in kept):
                closed |= set((await tx.scalars(_CLOSED, {"ids": some})).all())
        for statement, rows in self._others_but(closed):
            await statement.execute(tx, rows)
        return closed

    def write_at_once(self, connection: sqlite3.Connection) -> set[str]:
        """As `write`, in the thread of this connection."""
        closed = set(self.refused)
        kept = self._balances_but(closed)
        if kept and _BALANCES.execute_at_once(connection, kept) != len(kept):
            found = "SELECT 1 FROM channels WHERE id = ? AND state = ?"
            for row in kept:
                if connection.execute(found, (row["b_id"], ChannelState.CLOSED)).fetchone():
                    closed.add(row["b_id"])
        for statement, rows in self._others_but(closed):
            statement.execute_at_once(connection, rows)
        return closed

    def _balances_but(self, closed: Set[str]) -> list[Row]:
        return [row for row in self.balances if row["b_id"] not in closed]

    def _others_but(self, closed: Set[str]) -> Iterator[tuple[ManyRows, list[Row]]]:
        for statement, key, rows in (
            (_STATES, "b_id", self.states),
            (_SALES, "channel_id", self.sales),
            (SAVE_PAGES, "channel_id", self.pages),
        ):
            if kept := [row for row in rows if row[key] not in closed]:
                yield statement, kept


class GroupCommit:
    """`write` is fenced, `forget` is called before those who wait hear that nothing was written."""

    def __init__(self, write: FencedWrite, forget: Forget, clock: Clock) -> None:
        self._write = write
        self._forget = forget
        self._clock = clock
        self._pending = Batch()
        self._some = asyncio.Event()

    def add(self, decision: Decision) -> asyncio.Future[None]:
        """Done when it is written; fails with whatever kept it from being written."""
        future = self._pending.add(decision, self._clock())
        self._some.set()
        return future

    async def run(self) -> None:
        """Write for ever; at the end whoever waits still hears that nothing was written."""
        try:
            while True:
                await self._some.wait()
                await asyncio.sleep(GATHERED_S)
                await self.commit_once()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Of what is pending nothing will be written: another process has the channels, or soon will."""
        self._fail([self._take()], ChannelsElsewhere())

    async def commit_once(self) -> None:
        """Write what is pending. The trouble is told to those who wait, and to nobody else."""
        batch = self._take()
        if not batch.waiting:
            return
        writing = Writing(batch)
        try:
            closed = await self._write(writing)
        except BaseException as trouble:
            told = trouble if isinstance(trouble, Exception) else ChannelsElsewhere()
            self._fail([batch, self._take()], told)
            if told is not trouble:
                raise
            return
        batch.release()
        if closed:
            self._forget(closed, ())
            self._pending.refused |= closed & self._pending.channels.keys()
        for channel_id, future in batch.waiting:
            if future.done():
                continue  # whoever asked has gone; it was charged
            if channel_id in closed:
                future.set_exception(ChannelClosed(channel_id))
            else:
                future.set_result(None)

    def _take(self) -> Batch:
        batch, self._pending = self._pending, Batch()
        self._some.clear()
        return batch

    def _fail(self, batches: Sequence[Batch], trouble: Exception) -> None:
        ids: set[str] = set().union(*(batch.channels for batch in batches))
        self._forget(ids, [key for batch in batches for key in batch.retried])
        for batch in batches:
            batch.release()
            for _, future in batch.waiting:
                if not future.done():
                    future.set_exception(trouble)


def _balance_row(live: LiveChannel) -> Row:
    balance = live.balance
    return {
        "b_id": live.id,
        "b_accepted_sat": balance.accepted_sat,
        "b_signature": balance.signature,
        "b_spent_msat": balance.spent_msat,
    }


def _state_row(live: LiveChannel) -> Row:
    return {
        "b_id": live.id,
        "b_state": live.state,
        "b_opened_at": live.opened_at,
        "b_close_reason": live.close_reason,
        "b_close_asked_at": live.close_asked_at,
        "b_agreed_paid_sat": live.agreed.paid_sat if live.agreed else None,
        "b_agreed_fee_sat": live.agreed.fee_sat if live.agreed else None,
        "b_agreed_signature": live.agreed.signature if live.agreed else None,
    }


def _updated(*names: str) -> ManyRows:
    return ManyRows(
        update(channels)
        .where(channels.c.id == bindparam("b_id"), channels.c.state != literal_column("'closed'"))
        .values({name: bindparam(f"b_{name}") for name in names})
    )


def _sold(dialect: Any) -> Any:
    added = dialect.insert(channel_sales)
    return added.on_conflict_do_update(
        index_elements=["channel_id", "subject"],
        set_={
            "units": channel_sales.c.units + added.excluded.units,
            "spent_msat": channel_sales.c.spent_msat + added.excluded.spent_msat,
            "last_at": added.excluded.last_at,
        },
    )


_CLOSED = select(channels.c.id).where(
    channels.c.id.in_(bindparam("ids", expanding=True)), channels.c.state == ChannelState.CLOSED
)
_BALANCES = _updated("accepted_sat", "signature", "spent_msat")
_STATES = _updated(
    "state",
    "opened_at",
    "close_reason",
    "close_asked_at",
    "agreed_paid_sat",
    "agreed_fee_sat",
    "agreed_signature",
)
_SALES = ManyRows(_sold)
