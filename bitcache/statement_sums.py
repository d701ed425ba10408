"""What moved a seller's money within spans of time: added up by the database, told apart by what it was.

Each transfer counts for one thing, by its account and its code; what no rule knows is an error, so that a new
kind of transfer cannot be left out of a statement by mistake.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import NamedTuple, Self

from sqlalchemy import BigInteger, Integer, and_, column, func, select, values

from payments import ledger
from payments.errors import LedgerImbalance
from payments.ledger import Code
from payments.money import NOTHING_MSAT, Msat
from payments.payout import Kind
from payments.ports import Transaction
from payments.tables import balances, payouts, transfers

END_OF_TIME = 2**62
"""After every transfer."""
_REVERSED = {Code(f"{code}_reversed"): code for code in Code if f"{code}_reversed" in [*Code]}
PAYING = (Code.PAID_OUT, Code.NETWORK_FEE, Code.PAID_OUT_REVERSED, Code.NETWORK_FEE_REVERSED)


class Source(StrEnum):
    """Whose transfer it is."""

    SELLER = "seller"
    """To or from what is payable to the seller."""
    DIRECT = "direct"
    """Into the seller's own wallet."""
    PAYOUT = "payout"
    """Out of what was set aside for a payout to the seller."""
    REFUND = "refund"
    """Out of what was set aside for a payout to one of the seller's buyers."""


class Posting(NamedTuple):
    """One transfer, or the sum of some, on one account of a source."""

    source: Source
    code: Code
    credited: bool
    """To the account; False: from it."""
    amount_msat: Msat


@dataclass(frozen=True, slots=True)
class Movement:
    """What moved in a span. All but `reversed_msat` are what was booked less what was taken back."""

    gross_msat: Msat = NOTHING_MSAT
    """Hosted sales, the whole prices."""
    metered_msat: Msat = NOTHING_MSAT
    """Sold per chunk, in channels that are closed; the only amounts with fractions of a sat."""
    fee_msat: Msat = NOTHING_MSAT
    """What the operator kept of both."""
    corrections_msat: Msat = NOTHING_MSAT
    """What the operator took from the balance by hand."""
    held_msat: Msat = NOTHING_MSAT
    """Set aside for payouts."""
    paid_out_msat: Msat = NOTHING_MSAT
    """What arrived of payouts that are in a block."""
    network_fee_msat: Msat = NOTHING_MSAT
    """What the network took of those."""
    refunded_msat: Msat = NOTHING_MSAT
    """What arrived of refunds that are in a block."""
    refund_network_fee_msat: Msat = NOTHING_MSAT
    direct_msat: Msat = NOTHING_MSAT
    """Direct sales."""
    reversed_msat: Msat = NOTHING_MSAT
    """What of sales was taken back, by the chain or to be refunded. The sums above are without it."""

    @property
    def net_msat(self) -> Msat:
        """What sales added to the balance."""
        return Msat(self.gross_msat + self.metered_msat - self.fee_msat)

    @property
    def available_msat(self) -> Msat:
        """By how much it changed what could be paid out."""
        return Msat(self.net_msat - self.corrections_msat - self.held_msat)

    @property
    def reserved_msat(self) -> Msat:
        """By how much it changed what is set aside for payouts."""
        return Msat(self.held_msat - self.paid_out_msat - self.network_fee_msat)

    @property
    def balance_msat(self) -> Msat:
        """By how much it changed what the operator has of the seller's."""
        return Msat(self.available_msat + self.reserved_msat)

    def __add__(self, other: Self) -> "Movement":
        return Movement(
            **{one.name: Msat(getattr(self, one.name) + getattr(other, one.name)) for one in fields(Movement)}
        )


_FIELDS = {
    (Source.SELLER, Code.SETTLED, True): "gross_msat",
    (Source.SELLER, Code.EARNED, True): "metered_msat",
    (Source.SELLER, Code.FEE, False): "fee_msat",
    (Source.SELLER, Code.HELD, False): "held_msat",
    (Source.SELLER, Code.EXPLAINED, False): "corrections_msat",
    (Source.DIRECT, Code.SETTLED, True): "direct_msat",
    (Source.PAYOUT, Code.PAID_OUT, False): "paid_out_msat",
    (Source.PAYOUT, Code.NETWORK_FEE, False): "network_fee_msat",
    (Source.REFUND, Code.PAID_OUT, False): "refunded_msat",
    (Source.REFUND, Code.NETWORK_FEE, False): "refund_network_fee_msat",
}
"""Source, code and direction of a booking -> what it adds to. A reversal goes the other way."""


def is_reversal(code: Code) -> bool:
    return code in _REVERSED


def booked_code(code: Code) -> Code:
    """Of a reversal the code of what it takes back; else the same."""
    return _REVERSED.get(code, code)


def movement_of(postings: Iterable[Posting]) -> Movement:
    """Pure. Raises LedgerImbalance for a posting that no rule knows."""
    sums: dict[str, int] = {}
    for posting in postings:
        back = is_reversal(posting.code)
        code = booked_code(posting.code)
        name = _FIELDS.get((posting.source, code, posting.credited is not back))
        if name is None:
            raise LedgerImbalance(f"a statement has no place for {posting.code} of a {posting.source}")
        sums[name] = sums.get(name, 0) + (-posting.amount_msat if back else posting.amount_msat)
        if back and name in ("gross_msat", "metered_msat"):
            sums["reversed_msat"] = sums.get("reversed_msat", 0) + posting.amount_msat
    return Movement(**{name: Msat(amount) for name, amount in sums.items()})


async def movements(
    tx: Transaction, seller_id: str, starts: Sequence[int], *, until: int = END_OF_TIME
) -> list[Movement]:
    """What moved from each of these moments to the next, rising Unix seconds, and from the last to `until`.

    Raises LedgerImbalance.
    """
    spans = (
        values(column("n", Integer), column("since", BigInteger), column("until", BigInteger), name="spans")
        .data([(n, *span) for n, span in enumerate(zip(starts, [*starts[1:], until], strict=True))])
        .cte("spans")
    )
    of_span: list[list[Posting]] = [[] for _ in starts]
    sources = {ledger.seller(seller_id): Source.SELLER, ledger.direct(seller_id): Source.DIRECT}
    for side in (transfers.c.credit, transfers.c.debit):
        rows = await tx.execute(
            select(
                spans.c.n,
                side.label("account"),
                transfers.c.code,
                func.sum(transfers.c.amount_msat).label("msat"),
            )
            # Outer, so that SQLite looks for the transfers of each span, not for the span of each transfer.
            .select_from(
                spans.outerjoin(
                    transfers,
                    and_(
                        side.in_(sources),
                        transfers.c.created_at >= spans.c.since,
                        transfers.c.created_at < spans.c.until,
                    ),
                )
            )
            .group_by(spans.c.n, side, transfers.c.code)
        )
        for row in rows.all():
            if row.account is not None:
                credited = side is transfers.c.credit
                posting = Posting(sources[row.account], Code(row.code), credited, Msat(int(row.msat)))
                of_span[row.n].append(posting)
    paid = await tx.execute(
        select(payouts.c.kind, transfers.c.created_at, transfers.c.code, transfers.c.amount_msat)
        .join(transfers, transfers.c.reference == payouts.c.id)
        .where(
            payouts.c.seller_id == seller_id,
            transfers.c.code.in_(PAYING),
            transfers.c.created_at >= starts[0],
            transfers.c.created_at < until,
        )
    )
    paid_rows = paid.all()

    def fold() -> list[Movement]:
        for row in paid_rows:
            code = Code(row.code)
            posting = Posting(source_of(row.kind), code, is_reversal(code), Msat(row.amount_msat))
            of_span[bisect_right(starts, row.created_at) - 1].append(posting)
        return [movement_of(postings) for postings in of_span]

    # Thousands of payouts, or spans, take longer than the loop may stand still.
    return await asyncio.to_thread(fold)


def source_of(kind: str) -> Source:
    """Of the transfers of a payout of this kind that concerns a seller."""
    return Source.REFUND if kind == Kind.REFUND else Source.PAYOUT


async def kept_msat(tx: Transaction, seller_id: str) -> tuple[Msat, Msat, Msat]:
    """The balances kept beside the ledger, as of now: (available, set aside for payouts, direct sales)."""
    payable, direct = ledger.seller(seller_id), ledger.direct(seller_id)
    rows = await tx.execute(select(balances).where(balances.c.account.in_((payable, direct))))
    found = {row.account: Msat(row.amount_msat) for row in rows.all()}
    held = (
        select(func.sum(balances.c.amount_msat))
        .join(payouts, balances.c.account == ledger.payout("") + payouts.c.id)
        .where(payouts.c.seller_id == seller_id, payouts.c.kind != Kind.REFUND)
    )
    return (
        found.get(payable, NOTHING_MSAT),
        Msat(int(await tx.scalar(held) or 0)),
        found.get(direct, NOTHING_MSAT),
    )
