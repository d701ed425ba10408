"""What an operator needs to know of the ledger for a period: earned, paid, and held for whom.

Money of direct sales is not the operator's, and left out but for its sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import case, func, select, union_all

from bitcache.db.tables import accounts
from bitcache.earnings import Period
from bitcache.statement_sums import PAYING, booked_code, is_reversal
from payments import books, ledger
from payments.errors import LedgerImbalance
from payments.invoice import Mode
from payments.ledger import Code
from payments.money import NOTHING_MSAT, Msat
from payments.payout import Kind
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import descriptors, invoices, payouts, transfers

_LEFT = "left"
"""In place of a payout's kind: what a batch left to the network because it was too small for an output."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What moved in a period, less what was taken back."""

    hosted_msat: Msat
    """Hosted sales of all sellers, the whole prices."""
    metered_msat: Msat
    """Sold per chunk by all sellers, in channels that are closed."""
    fees_msat: Msat
    """The operator's, of both."""
    direct_msat: Msat
    """Direct sales of all sellers."""
    paid_to_sellers_msat: Msat
    """What arrived."""
    refunded_msat: Msat
    withdrawn_msat: Msat
    """By the operator."""
    network_fee_msat: Msat
    """Of all payouts: their receivers bore it."""
    own_network_fee_msat: Msat
    """What the operator bore: change too small for an output."""
    deposited_msat: Msat
    """By the operator."""
    spent_msat: Msat
    """Left the wallet by transactions that are no payouts."""
    channels_msat: Msat
    """What closes of channels left to the operator, less what the operator bore of them."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the operator's wallet should hold at a moment, and for whom."""

    sellers_msat: dict[str, Msat]
    """By account id; below zero: the seller was paid what the chain took back."""
    buyers_msat: Msat
    """On invoices: not settled yet, late, too much, or to be refunded."""
    channels_msat: Msat
    """Came in by closes of channels, and not shared out yet to sellers and payers."""
    payers_msat: Msat
    """What payers of closed channels paid, and did not use."""
    payouts_msat: Msat
    """Set aside, and in no block."""
    unassigned_msat: Msat
    """For invoices that a restored database does not know."""
    operator_msat: Msat
    unexplained_msat: Msat
    """Zero or less: left the wallet, and nobody said whose it was."""

    @property
    def sum_msat(self) -> Msat:
        """What the wallet's unspent outputs add up to."""
        return Msat(
            sum(self.sellers_msat.values())
            + self.buyers_msat
            + self.channels_msat
            + self.payers_msat
            + self.payouts_msat
            + self.unassigned_msat
            + self.operator_msat
            + self.unexplained_msat
        )


@dataclass(frozen=True, slots=True)
class OperatorBooks:
    sums: Sums
    held: Held
    """At the end of the period."""
    names: dict[str, str]
    """Account id -> name, of the sellers in `held`."""


async def operator_books(tx: Transaction, period: Period) -> OperatorBooks:
    """Raises LedgerImbalance if the balances are not what the whole ledger adds up to."""
    if wrong := await books.wrong_balances(tx):
        raise LedgerImbalance(f"balances that are not what their history says: {', '.join(wrong)}")
    held = await _held(tx, period.until)
    named = await tx.execute(select(accounts.c.id, accounts.c.name))
    names = {row.id: row.name for row in named.all() if row.id in held.sellers_msat}
    return OperatorBooks(await _sums(tx, period), held, names)


async def _sums(tx: Transaction, period: Period) -> Sums:
    inside = (transfers.c.created_at >= period.since, transfers.c.created_at < period.until)
    whose = case(
        (
            func.substr(transfers.c.credit, 1, 7).in_(("seller:", "direct:")),
            func.substr(transfers.c.credit, 1, 6),
        ),
        (
            func.substr(transfers.c.debit, 1, 7).in_(("seller:", "direct:")),
            func.substr(transfers.c.debit, 1, 6),
        ),
        (transfers.c.credit == ledger.operator(), ledger.operator()),
        (transfers.c.debit == ledger.operator(), ledger.operator()),
        else_="",
    )
    amount = func.sum(transfers.c.amount_msat)
    by_account = (
        select(transfers.c.code, whose.label("whose"), amount.label("msat"))
        .where(*inside, transfers.c.code.not_in(PAYING))
        .group_by(transfers.c.code, whose)
    )
    # What a batch left to the network has no payout.
    by_kind = (
        select(
            transfers.c.code,
            func.coalesce(payouts.c.kind, _LEFT).label("whose"),
            amount.label("msat"),
        )
        .select_from(transfers.outerjoin(payouts, payouts.c.id == transfers.c.reference))
        .where(*inside, transfers.c.code.in_(PAYING))
        .group_by(transfers.c.code, payouts.c.kind)
    )
    sums: dict[tuple[Code, str], int] = {}
    for query in (by_account, by_kind):
        for row in (await tx.execute(query)).all():
            code = Code(row.code)
            key = booked_code(code), str(row.whose)
            sums[key] = sums.get(key, 0) + (-int(row.msat) if is_reversal(code) else int(row.msat))

    def of(code: Code, *whose: str) -> Msat:
        return Msat(sum(sums.get((code, one), 0) for one in whose))

    kinds = [kind.value for kind in Kind]
    return Sums(
        hosted_msat=of(Code.SETTLED, "seller"),
        metered_msat=of(Code.EARNED, "seller"),
        fees_msat=of(Code.FEE, "seller"),
        direct_msat=of(Code.SETTLED, "direct"),
        paid_to_sellers_msat=of(Code.PAID_OUT, Kind.SELLER),
        refunded_msat=of(Code.PAID_OUT, Kind.REFUND),
        withdrawn_msat=of(Code.PAID_OUT, Kind.OPERATOR),
        network_fee_msat=of(Code.NETWORK_FEE, *kinds),
        own_network_fee_msat=of(Code.NETWORK_FEE, _LEFT),
        deposited_msat=of(Code.RECEIVED, ledger.operator()),
        spent_msat=of(Code.SPENT, ""),
        channels_msat=Msat(of(Code.SURPLUS, ledger.operator()) - of(Code.SHORTFALL, ledger.operator())),
    )


async def _held(tx: Transaction, until: int) -> Held:
    standing = await _balances_at(tx, until)
    of_kind: dict[str, dict[str, Msat]] = {}
    for account, amount in standing.items():
        kind, _, whose = account.partition(":")
        of_kind.setdefault(kind, {})[whose] = amount
    hosted = set((await tx.scalars(select(descriptors.c.id).where(descriptors.c.hosted))).all())
    owed = of_kind.get("owed", {})
    # Of channels that are open both together are nothing: it has not come in yet.
    in_channels = (*of_kind.get("channel", {}).values(), *of_kind.get("pending", {}).values())
    of_channels = ledger.owed_of_channel("").partition(":")[2]
    return Held(
        sellers_msat=of_kind.get("seller", {}),
        buyers_msat=Msat(sum(owed[invoice_id] for invoice_id in await _hosted_invoices(tx, owed))),
        channels_msat=Msat(sum(in_channels)),
        payers_msat=Msat(sum(amount for whose, amount in owed.items() if whose.startswith(of_channels))),
        payouts_msat=Msat(sum(of_kind.get("payout", {}).values())),
        unassigned_msat=Msat(
            sum(amount for id_, amount in of_kind.get("unassigned", {}).items() if id_ in hosted)
        ),
        operator_msat=standing.get(ledger.operator(), NOTHING_MSAT),
        unexplained_msat=standing.get(ledger.unexplained(), NOTHING_MSAT),
    )


async def _balances_at(tx: Transaction, until: int) -> dict[str, Msat]:
    """Of every account that was not at zero then: what is kept now, less what was booked since."""
    found = await books.balances_like(tx, "")
    later = transfers.c.created_at >= until
    sides = union_all(
        select(transfers.c.credit.label("account"), transfers.c.amount_msat.label("msat")).where(later),
        select(transfers.c.debit.label("account"), (-transfers.c.amount_msat).label("msat")).where(later),
    ).subquery()
    since = select(sides.c.account, func.sum(sides.c.msat).label("msat")).group_by(sides.c.account)
    for row in (await tx.execute(since)).all():
        found[row.account] = Msat(found.get(row.account, 0) - int(row.msat))
    return {account: amount for account, amount in found.items() if amount}


async def _hosted_invoices(tx: Transaction, invoice_ids: Iterable[str]) -> list[str]:
    found: list[str] = []
    for some in portions(invoice_ids):
        hosted = select(invoices.c.id).where(invoices.c.id.in_(some), invoices.c.mode == Mode.HOSTED)
        found += (await tx.scalars(hosted)).all()
    return found
