"""Payouts: money out of the operator's wallet, several in one transaction. Pure.

    requested -> approved     by the seller or the operator, or at once by a policy
    approved  -> batched      its batch is built; back when the batch dies
    batched   -> done         its transaction is deep; back when a reorg takes it out
    requested, approved -> cancelled     by who asked
    requested, approved -> declined      by the operator or the seller; the operator may still approve it

The network's fee comes out of what is paid. A batch's transaction may have several versions, for a higher
fee; all spend the same coins, so at most one is ever mined.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from payments import ledger
from payments.ledger import Booking, Code, Leg
from payments.money import NOTHING_SAT, Sat, msat_from_sat
from payments.outputs import OutPoint

COINS_PER_BATCH_MAX = 500
PAYOUTS_PER_BATCH_MAX = 1_000
"""Of a simple wallet, a transaction that nodes relay: at most 100,000 vB."""


class Kind(StrEnum):
    SELLER = "seller"
    """Earnings of hosted sales."""
    REFUND = "refund"
    """To a buyer."""
    OPERATOR = "operator"
    """The operator's fees and deposits."""


class State(StrEnum):
    REQUESTED = "requested"
    APPROVED = "approved"
    BATCHED = "batched"
    DONE = "done"
    CANCELLED = "cancelled"
    DECLINED = "declined"


TRANSITIONS = frozenset(
    {
        (State.REQUESTED, State.APPROVED),
        (State.REQUESTED, State.CANCELLED),
        (State.REQUESTED, State.DECLINED),
        (State.APPROVED, State.CANCELLED),
        (State.APPROVED, State.DECLINED),
        (State.DECLINED, State.APPROVED),
        (State.APPROVED, State.BATCHED),
        (State.BATCHED, State.APPROVED),
        (State.BATCHED, State.DONE),
        (State.DONE, State.BATCHED),
    }
)
ENDED = frozenset({State.CANCELLED, State.DECLINED})
"""Nothing is held for these."""


class BatchState(StrEnum):
    BUILT = "built"
    DONE = "done"
    """As deep as the operator asks."""
    DEAD = "dead"
    """Given up before anybody could sign it, or one of its coins was spent otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutPolicy:
    """What the operator decides once for all payouts."""

    depth: int
    """Confirmations of money that is paid out, and of a payout that is done."""
    feerate_max_sat_kvb: int
    """Sats per 1,000 vbytes."""
    fee_share_percent_max: int
    """A payout of which the network would take more waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout:
    """One payment out. `amount_sat` is what the balance falls by; the network's fee comes out of it."""

    id: str
    kind: Kind
    seller_id: str | None
    """Whose balance, or whose sale is refunded; None: the operator's own money."""
    invoice_id: str | None
    """Which sale is refunded."""
    account: str
    """Of the ledger, from which the amount is held."""
    amount_sat: Sat
    address: str
    script_pubkey: bytes
    state: State
    requested_at: int
    ready_at: int
    """Not paid before."""
    decided_at: int | None = None
    decided_by: str | None = None
    reason: str | None = None
    batch_id: str | None = None
    trouble: str | None = None
    """Why it waits, in words; None: nothing holds it up."""


@dataclass(frozen=True, slots=True)
class Coin:
    """An unspent output of the operator's wallet."""

    outpoint: OutPoint
    amount_sat: Sat
    height: int
    """Of its block."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one payout gets of a version of its batch, and pays of its fee: together its amount."""

    payout_id: str
    vout: int
    arrives_sat: Sat
    fee_sat: Sat


@dataclass(frozen=True, slots=True)
class Choice:
    """The coins for so many sats."""

    coins: tuple[Coin, ...]
    change_sat: Sat
    """0: no output for it."""
    left_sat: Sat
    """Too little for an output: it goes to the network, at the operator's cost."""


def choose_coins(coins: Iterable[Coin], needed_sat: Sat, *, dust_sat: Sat) -> Choice | None:
    """The largest first, as few as cover the need, with change of at least `dust_sat` or none at all.

    One more coin is taken where the change would be too small for an output. None: there is not enough.
    """
    taken: list[Coin] = []
    sum_sat = 0
    for coin in sorted(coins, key=lambda coin: (-coin.amount_sat, coin.outpoint))[:COINS_PER_BATCH_MAX]:
        if sum_sat == needed_sat or sum_sat >= needed_sat + dust_sat:
            break
        taken.append(coin)
        sum_sat += coin.amount_sat
    over_sat = Sat(sum_sat - needed_sat)
    if over_sat < 0:
        return None
    if over_sat >= dust_sat:
        return Choice(tuple(taken), over_sat, NOTHING_SAT)
    return Choice(tuple(taken), NOTHING_SAT, over_sat)


def split_fee(fee_sat: Sat, outputs: Sequence[tuple[Sat, int]], *, vsize_vbytes: int) -> list[Sat]:
    """Each output's share of the fee, of (amount in sats, size in vbytes): they sum to `fee_sat` exactly.

    Each pays for its own bytes; the rest, the inputs above all, in proportion to the amounts, which is what
    the inputs are needed for. Sats that rounding leaves go to the first ones.
    """
    own = [fee_sat * size // vsize_vbytes for _, size in outputs]
    rest = fee_sat - sum(own)
    total = sum(amount for amount, _ in outputs)
    shares = [mine + rest * amount // total for mine, (amount, _) in zip(own, outputs, strict=True)]
    left = fee_sat - sum(shares)
    return [Sat(share + (n < left)) for n, share in enumerate(shares)]


def fee_of(vsize_vbytes: int, feerate_sat_kvb: int) -> Sat:
    """At this feerate (sats per 1,000 vbytes), rounded up."""
    return Sat(-(-vsize_vbytes * feerate_sat_kvb // 1_000))


def desired_payout(payout: Payout, mined: Share | None) -> tuple[Booking, ...]:
    """What should stand in the books for a payout; `mined`: its share of the version that is in a block."""
    if payout.state in ENDED:
        return ()
    held = ledger.payout(payout.id)
    bookings = [
        Booking(payout.id, Leg.HOLD, payout.account, held, msat_from_sat(payout.amount_sat), Code.HELD)
    ]
    if mined is not None:
        for leg, amount_sat, code in (
            (Leg.PAID, mined.arrives_sat, Code.PAID_OUT),
            (Leg.NETWORK_FEE, mined.fee_sat, Code.NETWORK_FEE),
        ):
            if amount_sat:
                bookings.append(
                    Booking(payout.id, leg, held, ledger.chain(), msat_from_sat(amount_sat), code)
                )
    return tuple(bookings)


def desired_batch(batch_id: str, left_sat: Sat, *, mined: bool) -> tuple[Booking, ...]:
    """The remainder that was too small for change, once the batch is in a block."""
    if not mined or not left_sat:
        return ()
    lost = msat_from_sat(left_sat)
    return (Booking(batch_id, Leg.LEFT, ledger.operator(), ledger.chain(), lost, Code.NETWORK_FEE),)


def desired_spend(
    txid: str, net_out_sat: Sat, said: Mapping[str, Sat | None], *, mined: bool
) -> tuple[Booking, ...]:
    """What should stand for a transaction that spent coins of the wallet and is none of our batches.

    `said`: account -> what of it that account bears, by the operator's word; None: all that the others leave.
    """
    if not mined or not net_out_sat:
        return ()
    amount = msat_from_sat(net_out_sat)
    bookings = [Booking(txid, Leg.SPENT, ledger.unexplained(), ledger.chain(), amount, Code.SPENT)]
    left_sat = net_out_sat
    # The rest comes last.
    for account, share_sat in sorted(said.items(), key=lambda one: (one[1] is None, one[0])):
        # What the transaction took may have grown less since: an input that was a coin is none any more.
        borne_sat = left_sat if share_sat is None else min(left_sat, share_sat)
        if borne_sat:
            amount, subject = msat_from_sat(borne_sat), f"{txid}:{account}"
            bookings.append(
                Booking(subject, Leg.EXPLAINED, account, ledger.unexplained(), amount, Code.EXPLAINED)
            )
        left_sat = Sat(left_sat - borne_sat)
    return tuple(bookings)


def over_share(shares: Iterable[Share], *, percent_max: int, dust_sat: Mapping[str, Sat]) -> dict[str, str]:
    """Payout id -> why it cannot be paid at this feerate, in words; empty: all can. `dust_sat` by payout."""
    troubles: dict[str, str] = {}
    for share in shares:
        amount_sat = share.arrives_sat + share.fee_sat
        if share.arrives_sat < dust_sat[share.payout_id]:
            troubles[share.payout_id] = (
                f"after its share of the network fee, {share.fee_sat:,} sat, too little would arrive: it "
                "waits for a lower feerate"
            )
        elif share.fee_sat * 100 > amount_sat * percent_max:
            troubles[share.payout_id] = (
                f"its share of the network fee would be {share.fee_sat:,} of {amount_sat:,} sat, more than "
                f"{percent_max} %: it waits for a lower feerate"
            )
    return troubles
