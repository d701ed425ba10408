"""The lines of a seller's statement: one for each event, with the balance after it.

    sale, direct_sale          an invoice settled; all outputs that did within one second are one line
    metered                    what one channel bought of one offer, once it was closed and deep
    payout, refund             its transaction is in a block
    correction                 the operator took from the balance, for a transaction of the wallet
    ..._reversal               the chain took it back; a sale also when its buyer asks for the money

What is set aside for a payout is no line: it is still in the balance. Lines are read in portions, each of
whole seconds, so that years of sales need no memory; a portion that was read cannot change, since the ledger
only grows at its end.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import and_, or_, select

from bitcache.earnings import Period
from bitcache.statement_facts import Facts, facts_of, metered_sale
from bitcache.statement_sums import (
    Movement,
    Posting,
    Source,
    booked_code,
    is_reversal,
    movement_of,
    movements,
    source_of,
)
from bitcache.statements import Balance, Statement, Whole, check_lines, statement, whole_sats
from payments import ledger
from payments.books import transfer_of
from payments.errors import LedgerImbalance
from payments.ledger import Code, Transfer
from payments.money import Msat, sat_rounded_down
from payments.ports import Store, Transaction
from payments.tables import payouts, transfers

ROWS_PER_PORTION = 2_000


class LineKind(StrEnum):
    SALE = "sale"
    DIRECT_SALE = "direct_sale"
    METERED = "metered"
    PAYOUT = "payout"
    REFUND = "refund"
    CORRECTION = "correction"
    SALE_REVERSAL = "sale_reversal"
    DIRECT_SALE_REVERSAL = "direct_sale_reversal"
    METERED_REVERSAL = "metered_reversal"
    PAYOUT_REVERSAL = "payout_reversal"
    REFUND_REVERSAL = "refund_reversal"
    CORRECTION_REVERSAL = "correction_reversal"


_KINDS = {
    (Source.SELLER, Code.SETTLED): LineKind.SALE,
    (Source.SELLER, Code.EARNED): LineKind.METERED,
    (Source.SELLER, Code.FEE): LineKind.SALE,
    (Source.SELLER, Code.EXPLAINED): LineKind.CORRECTION,
    (Source.DIRECT, Code.SETTLED): LineKind.DIRECT_SALE,
    (Source.PAYOUT, Code.PAID_OUT): LineKind.PAYOUT,
    (Source.PAYOUT, Code.NETWORK_FEE): LineKind.PAYOUT,
    (Source.REFUND, Code.PAID_OUT): LineKind.REFUND,
    (Source.REFUND, Code.NETWORK_FEE): LineKind.REFUND,
}
"""Source and code of a booking -> its line. `held` has none; whatever else there may be is refused.

The operator's fee is of a sale, or of what was sold per chunk, as its reference says.
"""


class Place(NamedTuple):
    """Where a line stands: lines are in this order, and no two have the same."""

    at: int
    reference: str
    """Invoice, payout or transaction; of what was sold per chunk, channel and offer."""
    books: bool
    """False for a reversal: it goes before what is booked in its stead."""
    kind: LineKind

    @property
    def line_id(self) -> str:
        return f"{self.at}.{self.reference}.{self.kind}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One transfer that concerns the seller."""

    source: Source
    transfer: Transfer

    @property
    def posting(self) -> Posting:
        kind = self.source if self.source in (Source.SELLER, Source.DIRECT) else Source.PAYOUT
        credited = self.transfer.credit.partition(":")[0] == kind
        return Posting(self.source, self.transfer.code, credited, self.transfer.amount_msat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event. A reversal has the amounts of what it takes back, below zero."""

    place: Place
    moved: Movement
    balance_msat: Msat
    """After it."""
    direct_msat: Msat
    """Earned by direct sales until and with it."""
    whole: Whole
    """What moved in whole sats."""
    facts: Facts

    @property
    def is_metered(self) -> bool:
        return self.place.kind in (LineKind.METERED, LineKind.METERED_REVERSAL)

    @property
    def gross_sat(self) -> int:
        return self.whole.gross_sat if self.is_metered else sat_rounded_down(self.gross_msat)

    @property
    def net_sat(self) -> int:
        return self.whole.net_sat if self.is_metered else sat_rounded_down(self.net_msat)

    @property
    def gross_msat(self) -> Msat:
        """The price, or what left the balance or was owed."""
        moved = self.moved
        return Msat(
            moved.gross_msat
            + moved.metered_msat
            + moved.direct_msat
            + moved.corrections_msat
            + moved.paid_out_msat
            + moved.refunded_msat
            + self.network_fee_msat
        )

    @property
    def network_fee_msat(self) -> Msat:
        return Msat(self.moved.network_fee_msat + self.moved.refund_network_fee_msat)

    @property
    def net_msat(self) -> Msat:
        """What of it came to the seller's balance or wallet, or to the buyer."""
        return Msat(self.gross_msat - self.moved.fee_msat - self.network_fee_msat)


def parse_line_id(text: str) -> Place | None:
    """The place that `Place.line_id` wrote; None for any other text."""
    at, _, rest = text.partition(".")
    reference, _, kind = rest.rpartition(".")
    if not (at.isascii() and at.isdigit() and len(at) <= 12 and reference and kind in [*LineKind]):
        return None
    return Place(int(at), reference, not kind.endswith("_reversal"), LineKind(kind))


async def page(
    tx: Transaction, stated: Statement, *, after: Place | None, limit: int
) -> tuple[list[Line], bool]:
    """At most `limit` lines of the statement, those after the line `after`; whether there are more.

    `stated` must come from the same transaction. Raises LedgerImbalance unless the last one ends at the
    closing balance.
    """
    period = stated.period
    start = period.since if after is None else min(max(after.at, period.since), period.until)
    balance = stated.opening
    if start > period.since:
        (moved,) = await movements(tx, stated.seller_id, [period.since], until=start)
        balance = balance.after(moved)
    found: list[Line] = []
    while start < period.until and len(found) <= limit:
        lines, start, balance = await _portion(tx, stated, start, balance, rows=2 * limit)
        found += [line for line in lines if after is None or line.place > after]
    if len(found) > limit:
        return found[:limit], True
    check_lines(balance, (), stated.closing)
    return found, False


async def portions(
    store: Store, stated: Statement, *, rows: int = ROWS_PER_PORTION
) -> AsyncIterator[list[Line]]:
    """All lines of the statement, in portions that are each read in a transaction of its own.

    Raises LedgerImbalance after the last one unless they end at the closing balance.
    """
    start, balance = stated.period.since, stated.opening
    while start < stated.period.until:
        read = partial(_portion, stated=stated, start=start, balance=balance, rows=rows)
        lines, start, balance = await store.read(read)
        yield lines
    closing = stated.closing
    if (balance.balance_msat, balance.direct_msat) != (closing.balance_msat, closing.direct_msat):
        # The period may not have been over when the reading began.
        again = await store.read(partial(statement, seller_id=stated.seller_id, period=stated.period))
        check_lines(balance, (), again.closing)


async def transfer_portions(store: Store, seller_id: str, period: Period) -> AsyncIterator[list[Transfer]]:
    """Every transfer on the seller's accounts, and those of their buyers' refunds, in order of time."""
    start = period.since
    while start < period.until:
        read = partial(entries, seller_id=seller_id, since=start, until=period.until, rows=ROWS_PER_PORTION)
        listed, start = await store.read(read)
        yield [entry.transfer for entry in listed]


async def entries(
    tx: Transaction, seller_id: str, since: int, until: int, *, rows: int
) -> tuple[list[Entry], int]:
    """(transfers that concern the seller, in order of time, from `since` to some moment; that moment).

    About so many rows, and always whole seconds. What is set aside for refunds is told too.
    """
    sources = {ledger.seller(seller_id): Source.SELLER, ledger.direct(seller_id): Source.DIRECT}
    end = until
    for side in (transfers.c.credit, transfers.c.debit):
        for account in sources:
            times = select(transfers.c.created_at).where(
                side == account, transfers.c.created_at >= since, transfers.c.created_at < end
            )
            at = await tx.scalar(times.order_by(transfers.c.created_at).offset(rows).limit(1))
            if at is not None:
                end = max(int(at), since + 1)
    inside = and_(transfers.c.created_at >= since, transfers.c.created_at < end)
    of_payouts = (
        select(transfers, payouts.c.kind)
        .join(payouts, payouts.c.id == transfers.c.reference)
        .where(payouts.c.seller_id == seller_id, inside)
    )
    concerns = or_(
        *(side == account for side in (transfers.c.credit, transfers.c.debit) for account in sources)
    )
    of_payouts_rows = (await tx.execute(of_payouts)).all()
    of_seller_rows = (await tx.execute(select(transfers).where(concerns, inside))).all()

    def collect() -> list[Entry]:
        found = {row.id: Entry(source_of(row.kind), transfer_of(row)) for row in of_payouts_rows}
        for row in of_seller_rows:
            # What is set aside for a payout is found on both of its sides: here it is the seller's.
            account = row.credit if row.credit in sources else row.debit
            found[row.id] = Entry(sources[account], transfer_of(row))
        return sorted(found.values(), key=_order)

    # Thousands of rows take longer than the loop may stand still.
    return await asyncio.to_thread(collect), end


def grouped(listed: Iterable[Entry]) -> list[tuple[Place, list[Entry]]]:
    """The entries of each line, in order. Pure."""
    placed = [(place, entry) for entry in listed if (place := _place(entry)) is not None]
    placed.sort(key=lambda one: (one[0], one[1].transfer.id))
    return [
        (place, [entry for _, entry in group]) for place, group in groupby(placed, key=lambda one: one[0])
    ]


async def _portion(
    tx: Transaction, stated: Statement, start: int, balance: Balance, *, rows: int
) -> tuple[list[Line], int, Balance]:
    """The lines from `start` to some moment, that moment, and the balance then. Raises LedgerImbalance."""
    listed, end = await entries(tx, stated.seller_id, start, stated.period.until, rows=rows)
    groups = await asyncio.to_thread(grouped, listed)
    facts = await facts_of(tx, {place: [entry.transfer for entry in group] for place, group in groups})

    def told() -> tuple[list[Line], Balance]:
        lines: list[Line] = []
        standing = balance
        for place, group in groups:
            moved = movement_of(entry.posting for entry in group)
            whole = whole_sats(standing, moved)
            standing = standing.after(moved)
            lines.append(
                Line(
                    place=place,
                    moved=moved,
                    balance_msat=standing.balance_msat,
                    direct_msat=standing.direct_msat,
                    whole=whole,
                    facts=facts[place],
                )
            )
        return lines, standing

    lines, after = await asyncio.to_thread(told)
    return lines, end, after


def _place(entry: Entry) -> Place | None:
    """None for what is no line. Raises LedgerImbalance."""
    code = booked_code(entry.transfer.code)
    if code is Code.HELD:
        return None
    kind = _KINDS.get((entry.source, code))
    if kind is LineKind.SALE and metered_sale(entry.transfer.reference) is not None:
        kind = LineKind.METERED
    if kind is None:
        raise LedgerImbalance(f"a statement has no line for {entry.transfer.id}, {entry.transfer.code}")
    back = is_reversal(entry.transfer.code)
    if back:
        kind = LineKind(f"{kind}_reversal")
    return Place(entry.transfer.created_at, entry.transfer.reference, not back, kind)


def _order(entry: Entry) -> tuple[int, str, str]:
    return entry.transfer.created_at, entry.transfer.reference, entry.transfer.id
