"""The whole ledger for accountants: every transfer as a row of a table, or as a transaction of a journal.

The journal is text that hledger and ledger-cli read: each transfer one transaction of two postings, amounts
in sats, a debit above zero. Its accounts are those of the ledger under names that tell what they are:

    assets:hosted wallet                 chain, of hosted sales, payouts and deposits
    assets:unexplained                   unexplained
    liabilities:buyers:<invoice>         owed:<invoice>, of hosted sales
    liabilities:sellers:<seller>         seller:<seller>
    assets:channels:<channel>            channel:<channel>: sold per chunk, and still to come in by its close
    liabilities:sellers pending:<seller> pending:<seller>: the sellers' of that
    liabilities:channels:<channel>       owed:channel:<channel>: the payer's
    liabilities:payouts:<payout>         payout:<payout>
    liabilities:unassigned:<descriptor>  unassigned:<descriptor>, of the operator's wallets
    revenues:fees  revenues:channels  expenses:network fee  expenses:spent by hand  expenses:channels
    equity:owner                         operator, by what it was
    outside:...                          all of direct sales, whose money the operator never has

What is outside adds up to zero by itself, so that the rest is the operator's balance sheet.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import select, tuple_

from bitcache.statement_csv import exact_sat, transfer_head, transfer_rows
from bitcache.statement_sums import booked_code
from payments import ledger
from payments.books import transfer_of
from payments.invoice import Mode
from payments.ledger import Code, Transfer
from payments.money import Msat
from payments.ports import Transaction
from payments.tables import descriptors, invoices, transfers

ROWS_PER_PORTION = 5_000
CHAIN = "assets:hosted wallet"
OUTSIDE = "outside"
OF_OPERATOR = {
    Code.FEE: "revenues:fees",
    Code.SURPLUS: "revenues:channels",
    Code.SHORTFALL: "expenses:channels",
    Code.NETWORK_FEE: "expenses:network fee",
    Code.EXPLAINED: "expenses:spent by hand",
    Code.RECEIVED: "equity:owner",
    Code.HELD: "equity:owner",
}
"""Deposits and withdrawals are the owner's; the rest is earned or spent."""
_PREFIXES = {
    "owed": "liabilities:buyers",
    "seller": "liabilities:sellers",
    "pending": "liabilities:sellers pending",
    "channel": "assets:channels",
    "payout": "liabilities:payouts",
    "unassigned": "liabilities:unassigned",
}


OWED_OF_CHANNELS = ledger.owed_of_channel("")
JOURNAL_HEAD = "; The ledger of a Bitcache server. Days are of UTC, amounts in satoshis.\n\n"


class Format(StrEnum):
    CSV = "csv"
    HLEDGER = "hledger"


@dataclass(frozen=True, slots=True)
class Booked:
    transfer: Transfer
    outside: bool
    """Of a direct sale, or of a seller's own wallet."""


async def export(tx: Transaction, form: Format, *, since: int, until: int) -> AsyncIterator[str]:
    """The transfers of [since, until) in order of time, in pieces of text, from one snapshot."""
    yield transfer_head() if form is Format.CSV else JOURNAL_HEAD
    async for booked in _portions(tx, since, until):
        if form is Format.CSV:
            yield transfer_rows((one.transfer for one in booked), UTC)
        else:
            yield journal(booked)


def journal(booked: Iterable[Booked]) -> str:
    """Pure."""
    return "".join(_entry(one) for one in booked)


def account_name(account: str, code: Code, *, outside: bool) -> str:
    """The journal's name of an account of the ledger, in a transfer of this code. Pure."""
    kind, _, whose = account.partition(":")
    if outside:
        return f"{OUTSIDE}:{kind}:{whose}" if whose else f"{OUTSIDE}:{kind}"
    if account == ledger.chain():
        return CHAIN
    if account == ledger.operator():
        return OF_OPERATOR[booked_code(code)]
    if account == ledger.unexplained():
        return "assets:unexplained"
    if account.startswith(OWED_OF_CHANNELS):
        return f"liabilities:channels:{account.removeprefix(OWED_OF_CHANNELS)}"
    return f"{_PREFIXES[kind]}:{whose}"


def _entry(one: Booked) -> str:
    it = one.transfer
    day = datetime.fromtimestamp(it.created_at, UTC).date().isoformat()
    debit = account_name(it.debit, it.code, outside=one.outside)
    credit = account_name(it.credit, it.code, outside=one.outside)
    return (
        f"{day} {it.code.replace('_', ' ')}  ; id:{it.id}, reference:{it.reference}, at:{it.created_at}\n"
        f"    {debit}  {exact_sat(it.amount_msat)} sat\n"
        f"    {credit}  {exact_sat(Msat(-it.amount_msat))} sat\n\n"
    )


async def _portions(tx: Transaction, since: int, until: int) -> AsyncIterator[list[Booked]]:
    last = (since, "")
    while True:
        place = tuple_(transfers.c.created_at, transfers.c.id)
        chosen = (
            select(transfers, invoices.c.mode)
            .outerjoin(invoices, invoices.c.id == transfers.c.reference)
            .where(place > last, transfers.c.created_at < until)
            .order_by(transfers.c.created_at, transfers.c.id)
            .limit(ROWS_PER_PORTION)
        )
        rows = (await tx.execute(chosen)).all()
        if not rows:
            return
        hosted = set((await tx.scalars(select(descriptors.c.id).where(descriptors.c.hosted))).all())
        yield [Booked(transfer_of(row), _is_outside(row.mode, row.credit, row.debit, hosted)) for row in rows]
        last = (rows[-1].created_at, rows[-1].id)


def _is_outside(mode: str | None, credit: str, debit: str, hosted: set[str]) -> bool:
    if mode is not None:
        return mode == Mode.DIRECT
    for account in (credit, debit):
        kind, _, whose = account.partition(":")
        if kind == "unassigned":
            return whose not in hosted
    return False
