"""What a seller earned, by parcel and day, from the ledger alone.

A sale earns on the day it was booked as settled; a reversal takes it back on the day the chain did. So the
past never changes, and a day can be negative. Of a hosted sale the seller earns the price without the
operator's fee, which is told beside it; what is paid out later changes no earnings. What is on its way or
owed to buyers is not earned, and shown beside it. What is sold per chunk is earned when the close of its
channel is deep in the chain; it comes in fractions of a sat, which count once they have become a whole one.
"""

import asyncio
import csv
import datetime
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zoneinfo import ZoneInfo

from msgspec import json
from sqlalchemy import ColumnElement, case, func, or_, select, union

from bitcache.api.wire import TIME_MAX
from bitcache.api.wire_money import EarningsDay, EarningsView
from bitcache.db.tables import accounts, grants
from bitcache.errors import PeriodInvalid
from bitcache.metered_earnings import Earned, earned_between, in_channels_msat
from payments import ledger
from payments.attention import Attention
from payments.invoice import TIP_SAT_MAX, Mode, Standing, Status
from payments.ledger import Code
from payments.money import NOTHING_MSAT, Msat, Sat, msat_from_sat, sat_rounded_down
from payments.payout import Kind
from payments.ports import Transaction
from payments.tables import balances, invoices, payouts, transfers

DAY_S = 86_400
PERIOD_DEFAULT_S = 30 * DAY_S
UNDER_WAY = (Status.OPEN, Status.SEEN, Status.CONFIRMING)
SETTLING = (Code.SETTLED, Code.SETTLED_REVERSED)
EARNING = (*SETTLING, Code.FEE, Code.FEE_REVERSED)
"""What else passes a seller's account is no sale: payouts, and what the operator booked by hand."""


@dataclass(frozen=True, slots=True)
class Period:
    """[since, until), Unix seconds, cut into the days of a time zone."""

    since: int
    until: int
    zone: datetime.tzinfo

    def day(self, at: int) -> str:
        """The day on which `at` falls, YYYY-MM-DD."""
        return datetime.datetime.fromtimestamp(at, self.zone).date().isoformat()


class Booked(NamedTuple):
    """What was booked to (or back from) the seller for one invoice within one second."""

    at: int
    invoice_id: str
    parcel_id: str
    amount_msat: Msat
    """Without the operator's fee."""
    fee_msat: Msat = NOTHING_MSAT


@dataclass(frozen=True, slots=True)
class Owed:
    """What belongs to a seller's buyers."""

    own_sat: Sat
    """In the seller's own wallet: the seller pays it back."""
    hosted_sat: Sat
    """In the operator's: the buyers ask for it with their receipts."""
    refunding_sat: Sat
    """Asked for, and not in a block yet; not part of the others."""

    @property
    def sum_sat(self) -> Sat:
        return Sat(self.own_sat + self.hosted_sat)


def parse_period(since: str | None, until: str | None, zone: str | None, *, now: int) -> Period:
    """The period a query asks for; by default the last 30 days, UTC. Raises PeriodInvalid."""
    # `until` is not part of the period: what was booked this very second is.
    until_at = _time("until", until) if until is not None else now + 1
    since_at = _time("since", since) if since is not None else max(0, until_at - PERIOD_DEFAULT_S)
    if since_at >= until_at:
        raise PeriodInvalid("since", "`since` must be before `until`; both are Unix seconds.")
    return Period(since_at, until_at, time_zone(zone or "UTC"))


def time_zone(name: str) -> datetime.tzinfo:
    """Raises PeriodInvalid."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as exc:
        raise PeriodInvalid("tz", "`tz` is the IANA name of a time zone, such as Europe/Paris.") from exc


async def earnings(tx: Transaction, seller_id: str, period: Period) -> EarningsView:
    """Everything settled in the period; what is pending and owed, as of now."""
    days = await days_of(tx, seller_id, period)
    owed = await owed_of(tx, seller_id)
    return EarningsView(
        since=period.since,
        until=period.until,
        received_sat=sum(day.received_sat for day in days),
        fee_sat=sum(day.fee_sat for day in days),
        pending_sat=await pending_sat(tx, seller_id),
        in_channels_sat=sat_rounded_down(await in_channels_msat(tx, seller_id)),
        owed_sat=owed.own_sat,
        owed_hosted_sat=owed.hosted_sat,
        refunding_sat=owed.refunding_sat,
        unassigned_sat=await unassigned_sat(tx, seller_id),
        sales=sum(day.sales for day in days),
        chunks=sum(day.chunks for day in days),
        days=days,
    )


async def days_of(tx: Transaction, seller_id: str, period: Period) -> list[EarningsDay]:
    """What was settled in the period, by day and parcel, newest day first."""
    booked = await _booked(tx, seller_id, period)
    before = await _balances_before(tx, seller_id, period)
    metered = await earned_between(tx, seller_id, period.since, period.until)
    # Tens of thousands of sales take longer than the loop may stand still.
    return await asyncio.to_thread(by_day, booked, before, period, metered)


def by_day(
    booked: list[Booked], before: dict[str, Msat], period: Period, metered: Sequence[Earned] = ()
) -> list[EarningsDay]:
    """Newest day first. `booked` is in order of time, `before` what each invoice had sold for until then.

    A sale counts when its invoice starts to earn, and minus one when it stops: an amended booking is neither.
    Nor does it matter whether the operator's fee leaves anything of it.
    """
    received_msat: defaultdict[tuple[str, str], int] = defaultdict(int)
    fee_msat: defaultdict[tuple[str, str], int] = defaultdict(int)
    sales: defaultdict[tuple[str, str], int] = defaultdict(int)
    chunks: defaultdict[tuple[str, str], int] = defaultdict(int)
    sold_msat: defaultdict[str, int] = defaultdict(int, {**before})
    for entry in booked:
        place = (period.day(entry.at), entry.parcel_id)
        had = sold_msat[entry.invoice_id] > 0
        sold_msat[entry.invoice_id] += entry.amount_msat + entry.fee_msat
        received_msat[place] += entry.amount_msat
        fee_msat[place] += entry.fee_msat
        sales[place] += (sold_msat[entry.invoice_id] > 0) - had
    for one in metered:
        place = (period.day(one.at), one.parcel_id)
        received_msat[place] += one.amount_msat
        fee_msat[place] += one.fee_msat
        chunks[place] += one.chunks
    places = sorted(received_msat, key=_newest_first)
    received_sat, fee_sat = _whole_sats(places, received_msat), _whole_sats(places, fee_msat)
    return [
        EarningsDay(
            day=day,
            parcel_id=parcel_id,
            received_sat=received_sat[day, parcel_id],
            fee_sat=fee_sat[day, parcel_id],
            sales=sales[day, parcel_id],
            chunks=chunks[day, parcel_id],
        )
        for day, parcel_id in places
    ]


def _whole_sats(
    newest_first: Sequence[tuple[str, str]], amounts_msat: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], Sat]:
    """The amounts in whole sats that add up to their sum, rounded down. Pure."""
    found: dict[tuple[str, str], Sat] = {}
    so_far = NOTHING_MSAT
    for place in reversed(newest_first):
        after = Msat(so_far + amounts_msat[place])
        found[place] = Sat(sat_rounded_down(after) - sat_rounded_down(so_far))
        so_far = after
    return found


async def pending_sat(tx: Transaction, seller_id: str) -> int:
    """Received on invoices that are not settled yet and still may be."""
    rows = await tx.scalars(
        select(invoices.c.standing).where(
            invoices.c.seller_id == seller_id,
            invoices.c.status.in_(UNDER_WAY),
            ~invoices.c.revoked,
            ~invoices.c.refunded,
        )
    )
    return sum(json.decode(text, type=Standing).received_sat for text in rows.all())


async def owed_of(tx: Transaction, seller_id: str) -> Owed:
    """Confirmed money of finished or withdrawn invoices that earned nothing, above a tip: the buyers'."""
    # Money that is nobody's price always needs attention, but for what came to a cancelled invoice, or what
    # its buyer asked back. Of one query with OR each database would read all the seller's invoices.
    of_seller = select(invoices.c.id).where(invoices.c.seller_id == seller_id)
    refunds = select(payouts).where(payouts.c.seller_id == seller_id, payouts.c.kind == Kind.REFUND)
    asked_back = refunds.with_only_columns(payouts.c.invoice_id)
    suspects = union(
        of_seller.where(invoices.c.attention.in_(list(Attention))),
        of_seller.where(invoices.c.status == Status.CANCELLED),
        of_seller.where(invoices.c.id.in_(asked_back)),
    )
    withdrawn = or_(invoices.c.revoked, invoices.c.refunded)
    owed = (
        select(invoices.c.mode, func.sum(balances.c.amount_msat).label("msat"))
        .join(balances, balances.c.account == ledger.owed("") + invoices.c.id)
        .where(
            invoices.c.id.in_(suspects),
            or_(invoices.c.status.not_in(UNDER_WAY), withdrawn),
            or_(balances.c.amount_msat > msat_from_sat(TIP_SAT_MAX), withdrawn),
        )
        .group_by(invoices.c.mode)
    )
    by_mode = {row.mode: Msat(int(row.msat)) for row in (await tx.execute(owed)).all()}
    held = refunds.with_only_columns(func.sum(balances.c.amount_msat)).join(
        balances, balances.c.account == ledger.payout("") + payouts.c.id
    )
    return Owed(
        own_sat=sat_rounded_down(by_mode.get(Mode.DIRECT, NOTHING_MSAT)),
        hosted_sat=sat_rounded_down(by_mode.get(Mode.HOSTED, NOTHING_MSAT)),
        refunding_sat=sat_rounded_down(Msat(int(await tx.scalar(held) or 0))),
    )


async def unassigned_sat(tx: Transaction, seller_id: str) -> Sat:
    """What stands in the ledger as paid into the seller's wallets without an invoice."""
    wallets = (
        await tx.execute(
            select(accounts.c.descriptor_id, accounts.c.pending_descriptor_id).where(
                accounts.c.id == seller_id
            )
        )
    ).one()
    books = [ledger.unassigned(descriptor_id) for descriptor_id in wallets if descriptor_id is not None]
    booked = case((transfers.c.credit.in_(books), transfers.c.amount_msat), else_=-transfers.c.amount_msat)
    concerns = or_(transfers.c.credit.in_(books), transfers.c.debit.in_(books))
    return sat_rounded_down(Msat(int(await tx.scalar(select(func.sum(booked)).where(concerns)) or 0)))


def earnings_csv(view: EarningsView) -> str:
    """One line per day and parcel.

    Every cell is a date, an id or a number: nothing a spreadsheet would run.
    """
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\r\n")
    lines.writerow(("day", "parcel_id", "received_sat", "sales", "fee_sat", "chunks"))
    lines.writerows(
        (day.day, day.parcel_id, day.received_sat, day.sales, day.fee_sat, day.chunks) for day in view.days
    )
    return out.getvalue()


def _newest_first(place: tuple[str, str]) -> tuple[int, str]:
    day, parcel_id = place
    return -datetime.date.fromisoformat(day).toordinal(), parcel_id


def _time(field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= TIME_MAX):
        raise PeriodInvalid(field, f"`{field}` is a time in Unix seconds, such as 1767225600.")
    return int(text)


async def _booked(tx: Transaction, seller_id: str, period: Period) -> list[Booked]:
    fee = case(
        (transfers.c.code == Code.FEE, transfers.c.amount_msat),
        (transfers.c.code == Code.FEE_REVERSED, -transfers.c.amount_msat),
        else_=0,
    )
    rows = await tx.execute(
        select(
            transfers.c.created_at,
            transfers.c.reference,
            grants.c.parcel_id,
            func.sum(_signed(seller_id)).label("msat"),
            func.sum(fee).label("fee_msat"),
        )
        .join(grants, grants.c.invoice_id == transfers.c.reference)
        .where(
            _concerns(seller_id),
            transfers.c.code.in_(EARNING),
            transfers.c.created_at >= period.since,
            transfers.c.created_at < period.until,
        )
        .group_by(transfers.c.created_at, transfers.c.reference, grants.c.parcel_id)
        .order_by(transfers.c.created_at, transfers.c.reference)
    )
    return [
        Booked(row.created_at, row.reference, row.parcel_id, Msat(int(row.msat)), Msat(int(row.fee_msat)))
        for row in rows.all()
    ]


async def _balances_before(tx: Transaction, seller_id: str, period: Period) -> dict[str, Msat]:
    """What invoices booked in the period had sold for before it."""
    in_period = select(transfers.c.reference).where(
        _concerns(seller_id),
        transfers.c.code.in_(SETTLING),
        transfers.c.created_at >= period.since,
        transfers.c.created_at < period.until,
    )
    # By reference, not by account: an old seller's account has many transfers, an invoice a few.
    sold = func.sum(
        case((_concerns(seller_id) & transfers.c.code.in_(SETTLING), _signed(seller_id)), else_=0)
    )
    rows = await tx.execute(
        select(transfers.c.reference, sold.label("msat"))
        .where(transfers.c.created_at < period.since, transfers.c.reference.in_(in_period))
        .group_by(transfers.c.reference)
    )
    return {row.reference: Msat(int(row.msat)) for row in rows.all()}


def _concerns(seller_id: str) -> ColumnElement[bool]:
    """Each a search of its own: of IN within OR, SQLite would use no index."""
    accounts = (ledger.direct(seller_id), ledger.seller(seller_id))
    return or_(
        *(transfers.c.credit == account for account in accounts),
        *(transfers.c.debit == account for account in accounts),
    )


def _signed(seller_id: str) -> ColumnElement[int]:
    return case(
        (
            transfers.c.credit.in_((ledger.direct(seller_id), ledger.seller(seller_id))),
            transfers.c.amount_msat,
        ),
        else_=-transfers.c.amount_msat,
    )
