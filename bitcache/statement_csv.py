"""A statement, and the ledger behind it, as tables for a spreadsheet (RFC 4180).

Every cell is a number, a time, an id or one of our own words: nothing a spreadsheet would run.
"""

import csv
import datetime
import io
from collections.abc import Iterable

from bitcache.earnings import Period
from bitcache.statement_lines import Line
from bitcache.statements import Balance
from payments.ledger import Transfer
from payments.money import Msat, sat_rounded_down

LINE_COLUMNS = (
    "time",
    "kind",
    "reference",
    "invoice_id",
    "payout_id",
    "offer_id",
    "parcel_id",
    "transactions",
    "gross_sat",
    "operator_fee_sat",
    "network_fee_sat",
    "net_sat",
    "change_sat",
    "balance_sat",
)
TRANSFER_COLUMNS = ("time", "id", "code", "debit", "credit", "amount_sat", "reference")
_BALANCE_AT = len(LINE_COLUMNS) - 1


def line_rows(lines: Iterable[Line], zone: datetime.tzinfo) -> str:
    return _text(_line(line, zone) for line in lines)


def line_head(opening: Balance, period: Period) -> str:
    """The names of the columns, and where the balance stands before the first line."""
    return _text([LINE_COLUMNS, _standing("opening_balance", period.since, opening, period.zone)])


def line_foot(closing: Balance, period: Period) -> str:
    """Where the balance stands after the last line, and what of it is set aside for payouts."""
    at, zone = period.until, period.zone
    return _text(
        [
            _standing("closing_balance", at, closing, zone),
            _standing("of_it_reserved", at, Balance(reserved_msat=closing.reserved_msat), zone),
        ]
    )


def transfer_head() -> str:
    return _text([TRANSFER_COLUMNS])


def transfer_rows(listed: Iterable[Transfer], zone: datetime.tzinfo) -> str:
    """Amounts of the ledger may have fractions of a sat: with up to three decimals, exact."""
    return _text(
        (
            iso_time(one.created_at, zone),
            one.id,
            one.code.value,
            one.debit,
            one.credit,
            exact_sat(one.amount_msat),
            one.reference,
        )
        for one in listed
    )


def exact_sat(amount_msat: Msat) -> str:
    """1500 -> 1.5, in sats."""
    whole, rest = divmod(abs(amount_msat), 1_000)
    fraction = f".{rest:03}".rstrip("0") if rest else ""
    return f"{'-' if amount_msat < 0 else ''}{whole}{fraction}"


def iso_time(at: int, zone: datetime.tzinfo) -> str:
    """2026-11-30T23:59:59+01:00."""
    try:
        return datetime.datetime.fromtimestamp(at, zone).isoformat()
    except (ValueError, OverflowError):
        # The last hours of the year 9999 are in a year 10000 further east.
        return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat()


def _line(line: Line, zone: datetime.tzinfo) -> tuple[object, ...]:
    facts = line.facts
    return (
        iso_time(line.place.at, zone),
        line.place.kind.value,
        facts.invoice_reference,
        facts.invoice_id,
        facts.payout_id,
        facts.offer_id,
        facts.parcel_id,
        " ".join(facts.transactions),
        line.gross_sat,
        line.whole.fee_sat,
        sat_rounded_down(line.network_fee_msat),
        line.net_sat,
        line.whole.change_sat,
        sat_rounded_down(line.balance_msat),
    )


def _standing(word: str, at: int, balance: Balance, zone: datetime.tzinfo) -> list[object]:
    row: list[object] = [None] * len(LINE_COLUMNS)
    row[0], row[1], row[_BALANCE_AT] = iso_time(at, zone), word, sat_rounded_down(balance.balance_msat)
    return row


def _text(rows: Iterable[Iterable[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return out.getvalue()
