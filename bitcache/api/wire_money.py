"""What the API says of a seller's money: refunds, earnings, balance, payouts, statements.

As `bitcache.api.wire`, on whose types these stand.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from bitcache.api.wire import (
    AmountSat,
    Digest,
    Id,
    PayoutPlanView,
    Request,
    Response,
    Settlement,
    Time,
)

# --- refunds ------------------------------------------------------------------------------------------------


class RefundRequest(Request, frozen=True):
    address: Annotated[str, Meta(min_length=1, max_length=120)]
    """Of the buyer's wallet, on the server's network. The first one is final."""
    claim_secret: Digest | UnsetType = UNSET
    """As in ClaimRequest."""


class RefundDecline(Request, frozen=True):
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    """The buyer reads it."""


class RefundSummary(Response, frozen=True):
    """One line of the seller's list."""

    refund_id: Id
    """Of a debt that the seller must pay by hand: the invoice's."""
    invoice_id: Id
    reference: str
    offer_id: Id
    paid_by: Literal["operator", "seller"]
    amount_sat: int
    address: str
    state: Literal["requested", "approved", "batched", "done", "cancelled", "declined", "owed", "attended"]
    """`owed` and `attended`: by hand, not seen to and seen to."""
    requested_at: Time
    ready_at: Time | None
    decided_by: str | None
    """`seller`, `operator` or `policy`."""
    reason: str | None
    txid: str | None
    network_fee_sat: int | None
    confirmations: int | None
    uri: str | None
    """BIP321, for who must pay by hand; None where nothing is owed."""


class RefundList(Response, frozen=True):
    items: list[RefundSummary]
    next: str | None


# --- earnings -----------------------------------------------------------------------------------------------


class EarningsDay(Response, frozen=True):
    day: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    parcel_id: Id
    received_sat: int
    """Of hosted sales without the operator's fee."""
    fee_sat: int
    """The operator's."""
    sales: int
    chunks: int = 0
    """Sold per chunk, in channels whose close counts since that day; their sats are in the others."""


class EarningsView(Response, frozen=True):
    """Settled sales in [since, until), what is on its way, and what needs the seller's attention."""

    since: Time
    until: Time
    received_sat: int
    """Of hosted sales without the operator's fee."""
    fee_sat: int
    """The operator's, of hosted sales."""
    pending_sat: int
    """Seen or confirming, not settled yet."""
    in_channels_sat: int
    """Sold per chunk, and earned once the channels are closed, deep in the chain; with the operator's fee."""
    owed_sat: int
    """To buyers, of money that settled nothing and is in the seller's own wallet."""
    owed_hosted_sat: int
    """The same, in the operator's wallet: buyers ask for it with their receipts."""
    refunding_sat: int
    """Asked back by buyers, set aside in the operator's wallet, and not in a block yet."""
    unassigned_sat: int
    """In the seller's wallet, for invoices that the server lost and a restore did not bring back."""
    sales: int
    """Of the whole."""
    chunks: int
    """Sold per chunk, in channels whose close counts since then."""
    days: list[EarningsDay]


# --- payouts ------------------------------------------------------------------------------------------------


class BalanceView(Response, frozen=True):
    """What the operator holds of the seller's hosted sales, and what of it can be paid out now."""

    balance_sat: int
    """Less what is set aside; below zero when the chain took back what was paid out."""
    payable_sat: int
    maturing_sat: int
    """Of sales whose payment is not `depth` blocks deep yet."""
    in_channels_sat: int
    """Sold per chunk in channels whose close is not `depth` blocks deep yet: no part of the balance."""
    depth: int
    reserved_sat: int
    """Set aside for payouts under way, besides the balance."""
    payout_min_sat: int
    settlement: Settlement
    fee_percent: str
    fee_sat: int
    plan: PayoutPlanView
    blocked: str | None
    """Why nothing can be paid out now, in words."""


class PayoutRequest(Request, frozen=True):
    """One of the two. The target is the one in force: none can be named."""

    amount_sat: AmountSat | UnsetType = UNSET
    all: Literal[True] | UnsetType = UNSET
    """All that is payable."""


PayoutState = Literal["waiting", "approved", "in_batch", "sent", "done", "cancelled", "declined"]


class PayoutView(Response, frozen=True):
    payout_id: Id
    state: PayoutState
    """`waiting`: something holds it up, see `trouble`. `approved`: it will be in the next batch. `in_batch`:
    its transaction is made, and not sent. `sent`: see `confirmations`."""
    amount_sat: int
    """What the balance falls by: the network's fee comes out of it."""
    network_fee_sat: int | None
    """What its transaction takes of it, as it is now; a higher fee may still be paid to have it mined."""
    arrives_sat: int | None
    address: str
    requested_at: Time
    txid: str | None
    confirmations: int
    depth: int
    """Confirmations from which it is done."""
    trouble: str | None
    reason: str | None
    """Why it was declined."""


class PayoutList(Response, frozen=True):
    items: list[PayoutView]
    next: str | None


# --- statements ---------------------------------------------------------------------------------------------


class StatementSums(Response, frozen=True):
    """What moved: what was booked, less what was taken back."""

    gross_sat: int
    """Hosted sales, the whole prices, and what was sold per chunk in channels that are closed."""
    metered_sat: int
    """Of it, what was sold per chunk; its fractions of a sat count when they have become a whole one."""
    reversed_sat: int
    """What was taken back of them, by the chain or to be refunded. `gross_sat` is without it already."""
    operator_fee_sat: int
    net_sat: int
    """`gross_sat` less `operator_fee_sat`: what sales added to the balance."""
    corrections_sat: int
    """What the operator took from the balance, for a transaction of the wallet."""
    paid_out_sat: int
    """What arrived of payouts that are in a block. Together with `network_fee_sat` it left the balance."""
    network_fee_sat: int
    refunds_sat: int
    """What arrived with buyers. It came out of what was owed to them, not out of the balance."""
    refunds_network_fee_sat: int
    """What the network took of refunds, out of the same."""
    direct_sat: int
    """Direct sales: into the seller's own wallet."""


class StatementPart(Response, frozen=True):
    """A day or month, as far as it is in the period."""

    name: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    sums: StatementSums


class StatementLine(Response, frozen=True):
    """One event. A reversal has the amounts of what it takes back, below zero."""

    line_id: str
    at: Time
    kind: Literal[
        "sale",
        "direct_sale",
        "metered",
        "payout",
        "refund",
        "correction",
        "sale_reversal",
        "direct_sale_reversal",
        "metered_reversal",
        "payout_reversal",
        "refund_reversal",
        "correction_reversal",
    ]
    reference: str | None
    """The invoice's, of a sale or refund."""
    invoice_id: str | None
    payout_id: str | None
    """Of a payout or refund."""
    offer_id: str | None
    parcel_id: str | None
    transactions: list[str]
    """The outputs that paid a sale, or the channel's deposit, `txid:vout`; the txid of all else."""
    gross_sat: int
    operator_fee_sat: int
    network_fee_sat: int
    net_sat: int
    """What of it came to the seller's balance or wallet, or to the buyer."""
    change_sat: int
    """Of the balance: 0 for direct sales and refunds."""
    balance_sat: int
    """After it."""


class StatementView(Response, frozen=True):
    """opening + net - corrections - paid out - network fee = closing.

    The balance is what the operator has of the seller's, with what is set aside for payouts until those are
    in a block.
    """

    since: Time
    until: Time
    opening_sat: int
    closing_sat: int
    reserved_sat: int
    """What of `closing_sat` is set aside for payouts that no block has."""
    direct_opening_sat: int
    """Direct sales, all told, until `since`."""
    direct_closing_sat: int
    sums: StatementSums
    parts: list[StatementPart]
    """By day or month, oldest first; those in which nothing moved are left out."""
    lines: list[StatementLine]
    """Oldest first, as many as were asked for."""
    next: str | None
    """Pass as `after` for further lines; None at the end, or where none were asked for."""
