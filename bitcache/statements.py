"""A seller's statement of a period: what the operator holds of theirs, and how it came about, to the satoshi.

    opening + gross - operator's fee - corrections - paid out - network's fee = closing

Gross is what was sold: whole parcels, and chunks through channels once those are closed.
The balance is the seller's account of the ledger, and what is set aside of it for payouts that no block has
yet: a payout leaves the balance when its transaction is in a block, and comes back if a reorg takes it out.
Refunds come out of what is owed to the buyer, not out of the balance: they are told, and change nothing; the
sale that is refunded was taken back when the buyer asked. Direct sales went to the seller's own wallet and
are kept apart.

Everything is added up from the transfers, from the first one ever, and must end at the balances that are kept
beside them: a statement that does not add up is an error, not an answer.
"""

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

from sqlalchemy import func, select

from bitcache.earnings import Period
from bitcache.errors import PeriodInvalid
from bitcache.statement_sums import Movement, kept_msat, movements
from payments.errors import LedgerImbalance
from payments.money import NOTHING_MSAT, Msat, sat_rounded_down
from payments.ports import Transaction
from payments.tables import transfers

PARTS_MAX = 400
"""A year of days, a generation of months."""


class By(StrEnum):
    """What the parts of a statement are."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Balance:
    """Where a seller's money stands at a moment."""

    available_msat: Msat = NOTHING_MSAT
    """The account seller:<id>; below zero when the chain took money back that was paid out."""
    reserved_msat: Msat = NOTHING_MSAT
    """Set aside of it for payouts that no block has."""
    direct_msat: Msat = NOTHING_MSAT
    """Earned by direct sales, all told: in the seller's own wallet, or spent from there."""
    fee_msat: Msat = field(default=NOTHING_MSAT, compare=False)
    """What the operator kept until then, all told: told beside the balance, and no part of it."""

    @property
    def balance_msat(self) -> Msat:
        """What the operator has of the seller's."""
        return Msat(self.available_msat + self.reserved_msat)

    def after(self, moved: Movement) -> "Balance":
        return Balance(
            Msat(self.available_msat + moved.available_msat),
            Msat(self.reserved_msat + moved.reserved_msat),
            Msat(self.direct_msat + moved.direct_msat),
            Msat(self.fee_msat + moved.fee_msat),
        )

    def before(self, moved: Movement) -> "Balance":
        return Balance(
            Msat(self.available_msat - moved.available_msat),
            Msat(self.reserved_msat - moved.reserved_msat),
            Msat(self.direct_msat - moved.direct_msat),
            Msat(self.fee_msat - moved.fee_msat),
        )


@dataclass(frozen=True, slots=True)
class Whole:
    """What moved, in whole sats that add up to the balances, which are rounded down.

    What is sold per chunk comes in fractions of a sat: those count when they have become a whole one.
    """

    gross_sat: int
    """Hosted sales, and what was sold per chunk."""
    metered_sat: int
    """Of it, what was sold per chunk."""
    fee_sat: int
    net_sat: int
    change_sat: int
    """Of the balance."""


def whole_sats(before: Balance, moved: Movement) -> Whole:
    """`moved` after the balance `before`. Pure."""
    after = before.after(moved)
    change_sat = sat_rounded_down(after.balance_msat) - sat_rounded_down(before.balance_msat)
    fee_sat = sat_rounded_down(after.fee_msat) - sat_rounded_down(before.fee_msat)
    # What left is on chain, and so in whole sats.
    left_msat = Msat(moved.corrections_msat + moved.paid_out_msat + moved.network_fee_msat)
    net_sat = change_sat + sat_rounded_down(left_msat)
    gross_sat = net_sat + fee_sat
    return Whole(gross_sat, gross_sat - sat_rounded_down(moved.gross_msat), fee_sat, net_sat, change_sat)


@dataclass(frozen=True, slots=True)
class Part:
    """One day or month, as far as it is in the period."""

    name: str
    """YYYY-MM-DD or YYYY-MM."""
    before: Balance
    moved: Movement


@dataclass(frozen=True, slots=True)
class Statement:
    seller_id: str
    period: Period
    opening: Balance
    """At `since`, by all transfers before."""
    closing: Balance
    """At `until`, by the balances kept and all transfers since."""
    moved: Movement
    parts: tuple[Part, ...]
    """Oldest first; those in which nothing moved are left out."""


async def statement(
    tx: Transaction, seller_id: str, period: Period, *, by: By = By.MONTH, checked: bool = True
) -> Statement:
    """Raises PeriodInvalid for a period of too many parts, LedgerImbalance if the books do not add up."""
    cuts = list(_cuts(period, by, await _first_and_last(tx)))
    if len(cuts) > PARTS_MAX:
        raise PeriodInvalid(
            "by",
            f"`by={by}` gives {len(cuts)} sums, at most {PARTS_MAX}: choose `by=month`, or a shorter period.",
        )
    starts = [period.since, *(start for _, start in cuts[1:])]
    before, *spans, after = await movements(tx, seller_id, [-1, *starts, period.until])
    kept = Balance(*await kept_msat(tx, seller_id))
    moved = sum(spans, Movement())
    opening = Balance().after(before)
    standing = accumulate(spans, Balance.after, initial=opening)
    parts = (Part(name, start, span) for (name, _), start, span in zip(cuts, standing, spans, strict=False))
    stated = Statement(
        seller_id=seller_id,
        period=period,
        opening=opening,
        closing=kept.before(after),
        moved=moved,
        parts=tuple(part for part in parts if part.moved != Movement()),
    )
    if checked:
        check(stated)
    return stated


def check(stated: Statement) -> None:
    """Raises LedgerImbalance unless the statement adds up. Pure."""
    reckoned = stated.opening.after(stated.moved)
    if reckoned != stated.closing:
        raise LedgerImbalance(
            f"the statement of seller {stated.seller_id} does not add up: by the transfers {reckoned}, by "
            f"the balances {stated.closing}; `bitcache doctor` compares both"
        )
    if sum((part.moved for part in stated.parts), Movement()) != stated.moved:
        raise LedgerImbalance(f"the parts of the statement of seller {stated.seller_id} are not the whole")


def check_lines(opening: Balance, lines: Iterable[Movement], closing: Balance) -> None:
    """Raises LedgerImbalance unless the lines lead from the one balance to the other. Pure.

    What is set aside is no line: only the balance with it, and direct sales, can be compared.
    """
    moved = sum(lines, Movement())
    reckoned = (opening.balance_msat + moved.balance_msat, opening.direct_msat + moved.direct_msat)
    if reckoned != (closing.balance_msat, closing.direct_msat):
        raise LedgerImbalance(f"the lines lead from {opening} to {reckoned}, not to {closing}")


async def _first_and_last(tx: Transaction) -> tuple[int, int]:
    """When the ledger's first and last transfers were written; no part outside of that has anything."""
    # Each by itself: of both at once, SQLite would read the whole index.
    first = await tx.scalar(select(func.min(transfers.c.created_at)))
    last = await tx.scalar(select(func.max(transfers.c.created_at)))
    return first or 0, last or 0


def _cuts(period: Period, by: By, written: tuple[int, int]) -> Iterator[tuple[str, int]]:
    """(name, its first moment) of each day or month of the period in which there are transfers, at least one.

    The first one begins with the period, the last ends with it.
    """
    first, last = max(period.since, written[0]), min(period.until - 1, written[1])
    if first > last:
        yield "", period.since
        return
    day = datetime.datetime.fromtimestamp(first, period.zone).date()
    if by is By.MONTH:
        day = day.replace(day=1)
    while True:
        yield day.isoformat() if by is By.DAY else day.isoformat()[:7], midnight(day, period.zone)
        day = _next(day, by)
        if midnight(day, period.zone) > last:
            return


def _next(day: datetime.date, by: By) -> datetime.date:
    if by is By.DAY:
        return day + datetime.timedelta(days=1)
    return datetime.date(day.year + day.month // 12, day.month % 12 + 1, 1)


def midnight(day: datetime.date, zone: datetime.tzinfo) -> int:
    """Where the clocks skip midnight, the moment at which they do. Unix seconds."""
    return int(datetime.datetime.combine(day, datetime.time(), zone).timestamp())
