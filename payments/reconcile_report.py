"""What a comparison of ledger, coins and node says: sums, and a line for each satoshi that differs."""

from dataclasses import dataclass
from enum import StrEnum

from payments.money import Sat


class Group(StrEnum):
    BOOKS = "books"
    """More (or, negative, fewer) coins than the ledger owes."""
    NODE = "node"
    """More (or fewer) on the node than in our records."""
    NOTE = "note"
    """Changes no sum."""


class LineKind(StrEnum):
    # Of the books.
    OLDER_THAN_INVOICE = "older_than_invoice"
    CHANGE_OVER_SPENT = "change_over_spent"
    SPEND_UNEXPLAINED = "spend_unexplained"
    RECEIPT_NOT_BOOKED = "receipt_not_booked"
    BATCH_NOT_BOOKED = "batch_not_booked"
    SPEND_NOT_BOOKED = "spend_not_booked"
    REST = "rest"
    # Of the node.
    DIRECT_SALE = "direct_sale"
    COINBASE_YOUNG = "coinbase_young"
    OLDER_THAN_ADDRESS = "older_than_address"
    COIN_MISSED = "coin_missed"
    COIN_UNKNOWN = "coin_unknown"
    COIN_GONE = "coin_gone"
    # Notes.
    SPEND_EXPLAINED = "spend_explained"
    SPEND_WAITING = "spend_waiting"
    BATCH_WAITING = "batch_waiting"
    CHANNELS_WAITING = "channels_waiting"
    SELLER_OWES = "seller_owes"
    OPERATOR_OWES = "operator_owes"
    BALANCE_NEGATIVE = "balance_negative"
    BALANCE_WRONG = "balance_wrong"
    LEDGER_UNEVEN = "ledger_uneven"


EXPLAINED = frozenset(
    {
        LineKind.OLDER_THAN_INVOICE,
        LineKind.CHANGE_OVER_SPENT,
        LineKind.DIRECT_SALE,
        LineKind.COINBASE_YOUNG,
        LineKind.OLDER_THAN_ADDRESS,
        LineKind.SPEND_EXPLAINED,
        LineKind.BATCH_WAITING,
        LineKind.CHANNELS_WAITING,
        LineKind.SELLER_OWES,
        LineKind.OPERATOR_OWES,
    }
)
"""Kinds that are as they should be, or nobody's loss. Each other one is for the operator to see to."""


@dataclass(frozen=True, slots=True)
class Line:
    """One difference, in sats; `subject` is an outpoint, a txid, a batch's id or an account."""

    group: Group
    kind: LineKind
    subject: str
    amount_sat: int
    words: str
    """What it is, and what to do."""

    @property
    def explained(self) -> bool:
        return self.kind in EXPLAINED


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    height: int
    block_hash: str
    node_sat: Sat
    coins_then_sat: Sat
    coins_sat: Sat
    liabilities_sat: dict[str, int]
    """By kind of account: seller, operator, payout, owed, unassigned, channel, pending. Together they are the
    ledger's sum, rounded down."""
    lines: tuple[Line, ...]
    """Those to see to first, then by amount."""

    @property
    def difference_sat(self) -> int:
        """What nobody has explained. Opposite errors do not cancel."""
        return sum(abs(line.amount_sat) for line in self.lines if not line.explained)

    @property
    def explained(self) -> bool:
        return all(line.explained for line in self.lines)
