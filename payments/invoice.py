"""Invoice life cycle. Pure: the outputs, the chain's view and the time are arguments.

An invoice's status is derived from what the chain says now, never counted up: `standing` is the one place
that decides it, and the same facts give the same answer, in whatever order they arrived.

    open -> seen -> confirming -> settled        and back, whenever the chain takes a payment back
    open -> expired -> seen ...                  an expired invoice's address is watched for ever
    cancelled                                    only while nothing was ever received

What each status means; `depth` and `covered` are the standing's:

    settled               covered, depth >= max(key_at, 1); an invoice that asks for nothing is born settled
    confirming            covered, 1 <= depth < key_at
    seen                  covered, depth 0
    seen + partial        something came, not enough, and a term is still open: shows what is due
    expired + partial     something came, not enough, and every deadline has passed: due at a renewed term
    cancelled             nothing ever came, and the invoice was called off
    expired               nothing counts, and every deadline has passed: the address is hidden
    open                  nothing counts, and a term is still open
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from payments.money import NOTHING_SAT, Sat
from payments.outputs import (
    CLOCK_SKEW_S,
    COINBASE_MATURITY,
    DUST_SAT,
    OutPoint,
    Presence,
    ReceivedOutput,
    confirmations,
    counts,
    lost_payments,
    payments_of,
    without_conflicts,
)

__all__ = [
    "CLOCK_SKEW_S",
    "COINBASE_MATURITY",
    "DEPTH_FREE",
    "DUST_SAT",
    "NO_FEE",
    "TIP_SAT_MAX",
    "ChainView",
    "Fee",
    "Flag",
    "Invoice",
    "Mode",
    "OutPoint",
    "Outage",
    "Policy",
    "Presence",
    "ReceivedOutput",
    "Standing",
    "Status",
    "Term",
    "deadline",
    "renewal",
    "standing",
]

TIP_SAT_MAX = Sat(999)
"""A surplus up to this is a tip; above it, it is owed to the buyer."""
DEPTH_FREE = 2**31 - 1
"""The depth of an invoice that asks for nothing: no reorg reaches it."""


class Status(StrEnum):
    OPEN = "open"
    SEEN = "seen"
    CONFIRMING = "confirming"
    SETTLED = "settled"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Flag(StrEnum):
    PARTIAL = "partial"
    """Something came, but not enough for any term."""
    OVER = "over"
    """More than the settling term asks, above a tip."""
    LATE = "late"
    """Money came after the first term's deadline."""
    MISSING = "missing"
    """A counted payment is in neither mempool nor chain right now."""
    REPLACED = "replaced"
    """A payment lost its inputs to another transaction in the mempool that pays us less or nothing."""
    CONFLICTED = "conflicted"
    """A payment lost its inputs to another transaction in a block that pays us less or nothing."""
    REORGED = "reorged"
    """A payment's block left the active chain and the payment is not in another one yet."""


class Mode(StrEnum):
    DIRECT = "direct"
    """The buyer pays the seller's own wallet."""
    HOSTED = "hosted"
    """The buyer pays the operator's wallet; the seller is credited."""


@dataclass(frozen=True, slots=True)
class Term:
    """What settles an invoice: `amount_sat`, in outputs first seen by `valid_until` (Unix seconds)."""

    amount_sat: Sat
    valid_until: int
    offered_at: int = 0
    """When a renewal added it; 0 for the first. An outage before that does not move its deadline."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Confirmations at which ciphertext is served and the release secret is given, frozen in the invoice."""

    bytes_at: int = 1
    key_at: int = 1
    tolerance_sat: Sat = NOTHING_SAT
    tolerance_ppm: int = 0
    """Parts per million of the amount; the larger of the two tolerances applies."""


@dataclass(frozen=True, slots=True)
class Fee:
    """What the operator keeps of a hosted sale, frozen in the invoice: part of the price and so many sats."""

    ppm: int = 0
    """Parts per million of the price."""
    sat: Sat = NOTHING_SAT

    def of(self, price_sat: Sat) -> Sat:
        """Of a sale at this price: whole sats, rounded down, and never more than the price."""
        return Sat(min(price_sat, self.sat + price_sat * self.ppm // 1_000_000))


NO_FEE = Fee()


@dataclass(frozen=True, slots=True)
class Outage:
    """A span in which we or our node could not see payments: [started_at, ended_at), Unix seconds."""

    started_at: int
    ended_at: int


@dataclass(frozen=True, slots=True)
class ChainView:
    """The active chain as last scanned, and when we could not look (in any order, overlapping or not)."""

    tip_height: int
    outages: tuple[Outage, ...] = ()


@dataclass(frozen=True, slots=True)
class Invoice:
    """A demand for one payment. `terms` is never empty and only ever grows."""

    id: str
    reference: str
    """Short, public, for humans and wallet labels."""
    created_at: int
    seller_id: str
    mode: Mode
    policy: Policy
    terms: tuple[Term, ...]
    cancelled: bool = False
    revoked: bool = False
    """What was sold may not be given any more. Its standing still follows the chain, but nothing is earned:
    all that came is the buyer's."""
    refunded: bool = False
    """The buyer asked for all of it back: what may go out again settles nothing any more."""
    fee: Fee = NO_FEE

    def __post_init__(self) -> None:
        if self.mode is Mode.DIRECT and self.fee != NO_FEE:
            raise ValueError(
                f"invoice {self.id} is paid to the seller's own wallet: no fee can be kept of it"
            )

    @property
    def withdrawn(self) -> bool:
        """Nothing is given for it any more, whatever comes."""
        return self.revoked or self.refunded


@dataclass(frozen=True, slots=True)
class Standing:
    """All that follows from an invoice and the chain at one moment."""

    status: Status
    flags: frozenset[Flag]
    received_sat: Sat
    """Counting outputs, in the mempool or deeper, at most one of each conflict set."""
    confirmed_sat: Sat
    """The part of it with at least one confirmation."""
    price_sat: Sat
    """The cheapest covered term's amount; else of the open term with the least due; else the first term's."""
    due_sat: Sat
    """What is still to pay for `price_sat`; 0 exactly when covered."""
    surplus_sat: Sat
    """What of `received_sat` is above `price_sat` once covered; owed only above TIP_SAT_MAX."""
    covered: bool
    """Some term is met by outputs that our node sees or has only lost sight of (MISSING)."""
    covered_now: bool
    """As `covered`, without MISSING outputs: new bytes are served only then."""
    depth: int
    """The largest d such that outputs with at least d confirmations cover a term; -1 if none is covered."""
    valid_until: int
    """The last deadline of all terms, moved by outages."""
    late_sat: Sat = NOTHING_SAT
    """The part of `received_sat` first seen after every deadline: it can settle no term there is yet."""


def standing(invoice: Invoice, outputs: Iterable[ReceivedOutput], chain: ChainView, now: int) -> Standing:
    """Where the invoice stands, by all outputs that ever paid its script: each outpoint once, any order."""
    payments = payments_of(
        output
        for output in outputs
        if counts(output, created_at=invoice.created_at, tip_height=chain.tip_height, now=now)
    )
    taken = without_conflicts(payments)
    counted = tuple(output for payment in taken for output in payment.outputs)
    visible = tuple(output for output in counted if output.presence is not Presence.MISSING)
    claims = tuple(_claim(term, invoice, counted, chain) for term in invoice.terms)
    received_sat = _sum_sat(visible)
    price_sat, due_sat = _price_and_due(claims, now)
    valid_until = max(claim.until for claim in claims)
    depth = max(claim.depth for claim in claims)
    covered = depth >= 0
    surplus_sat = Sat(max(0, received_sat - price_sat)) if covered else NOTHING_SAT
    lost = {output.presence for payment in lost_payments(payments, taken) for output in payment.outputs}
    signs = {
        Flag.PARTIAL: bool(counted) and not covered,
        Flag.OVER: surplus_sat > TIP_SAT_MAX,
        Flag.LATE: any(output.first_seen_at > claims[0].until for output in counted),
        Flag.MISSING: len(visible) < len(counted),
        Flag.REPLACED: Presence.CONFLICTED in lost,
        Flag.CONFLICTED: Presence.GONE in lost,
        Flag.REORGED: any(output.reorged for output in counted),
    }
    return Standing(
        status=_status(
            invoice, depth, came=bool(counted), ever_came=bool(payments), expired=now > valid_until
        ),
        flags=frozenset(flag for flag, shown in signs.items() if shown),
        received_sat=received_sat,
        confirmed_sat=_sum_sat(output for output in visible if confirmations(output, chain.tip_height) > 0),
        price_sat=price_sat,
        due_sat=due_sat,
        surplus_sat=surplus_sat,
        covered=covered,
        covered_now=any(_claim(term, invoice, visible, chain).depth >= 0 for term in invoice.terms),
        depth=depth,
        valid_until=valid_until,
        late_sat=_sum_sat(output for output in visible if output.first_seen_at > valid_until),
    )


def renewal(
    invoice: Invoice, standing: Standing, quote: Term | None, now: int, *, asked: bool = False
) -> Term | None:
    """The term to append to the invoice now, or None if it needs none or can get none.

    `quote` is the offer's price now; None when the offer is closed or sold out: late money is then owed.
    Only an invoice whose every term has run out uncovered is renewed. By itself it is renewed when money came
    after the last deadline (with the new term that money is in time, so the next evaluation adds nothing);
    with `asked` (the buyer's own wish) always, whether something came or nothing.
    Raises ValueError if the quote itself has run out: nobody could meet it.
    """
    if quote is None or standing.status is not Status.EXPIRED:
        return None
    if not asked and standing.late_sat == 0:
        return None
    if quote.valid_until < now:
        raise ValueError(f"the quote ran out at {quote.valid_until}; ask the offer for its price at {now}")
    return replace(quote, offered_at=now)


def deadline(valid_until: int, outages: Iterable[Outage], *, offered_at: int = 0) -> int:
    """The deadline, moved by each outage that began before it (as moved so far), Unix seconds.

    Time that several outages share moves it once, and time before `offered_at` not at all.
    """
    moved_for_until = offered_at
    for outage in sorted(outages, key=lambda outage: outage.started_at):
        if outage.started_at >= valid_until:
            break
        blind_s = outage.ended_at - max(outage.started_at, moved_for_until)
        if blind_s > 0:
            valid_until += blind_s
            moved_for_until = outage.ended_at
    return valid_until


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the counted outputs do for one term."""

    amount_sat: Sat
    until: int
    due_sat: Sat
    """What is missing; 0 when covered."""
    depth: int
    """As in Standing, for this term alone."""


def _claim(term: Term, invoice: Invoice, counted: Iterable[ReceivedOutput], chain: ChainView) -> _Claim:
    # Outages before the term was offered cost the buyer nothing: they must not stretch its price.
    offered_at = max(term.offered_at, invoice.created_at)
    until = deadline(term.valid_until, chain.outages, offered_at=offered_at)
    in_time = [output for output in counted if output.first_seen_at <= until]
    depth = _depth(_needed_sat(term.amount_sat, invoice.policy), in_time, chain.tip_height)
    due_sat = Sat(term.amount_sat - _sum_sat(in_time)) if depth < 0 else NOTHING_SAT
    return _Claim(term.amount_sat, until, due_sat, depth)


def _needed_sat(amount_sat: Sat, policy: Policy) -> Sat:
    """The least that covers `amount_sat`; however large the tolerance, nothing never pays for something."""
    tolerance_sat = max(policy.tolerance_sat, amount_sat * policy.tolerance_ppm // 1_000_000)
    return Sat(max(min(amount_sat, 1), amount_sat - tolerance_sat))


def _depth(needed_sat: Sat, outputs: Iterable[ReceivedOutput], tip_height: int) -> int:
    """Adds up the deepest outputs first: the depth is that of the one that completes the sum."""
    if needed_sat == 0:
        return DEPTH_FREE
    sum_sat = 0
    for depth, amount_sat in sorted(
        ((confirmations(output, tip_height), output.amount_sat) for output in outputs), reverse=True
    ):
        sum_sat += amount_sat
        if sum_sat >= needed_sat:
            return depth
    return -1


def _price_and_due(claims: Sequence[_Claim], now: int) -> tuple[Sat, Sat]:
    """Doubt favours the buyer: the cheapest term that is covered, else the nearest to it that is open."""
    covered = [claim for claim in claims if claim.depth >= 0]
    if covered:
        return min(claim.amount_sat for claim in covered), NOTHING_SAT
    still_open = [claim for claim in claims if now <= claim.until]
    nearest = min(still_open, key=lambda claim: claim.due_sat, default=claims[0])
    return nearest.amount_sat, nearest.due_sat


def _status(invoice: Invoice, depth: int, *, came: bool, ever_came: bool, expired: bool) -> Status:
    if depth >= max(invoice.policy.key_at, 1):
        return Status.SETTLED
    if depth >= 1:
        return Status.CONFIRMING
    if depth == 0:
        return Status.SEEN
    if invoice.cancelled and not ever_came:
        return Status.CANCELLED
    if expired:
        return Status.EXPIRED
    return Status.SEEN if came else Status.OPEN


def _sum_sat(outputs: Iterable[ReceivedOutput]) -> Sat:
    return Sat(sum(output.amount_sat for output in outputs))
