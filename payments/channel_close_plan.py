"""Which channels one transaction closes, at what feerate, and when it is sent again. Pure.

What a close pays depends on how many blocks are left before EXPIRY, from where on the payer may take the
whole deposit back:

    blocks left   wanted within        sent again after                at most
    over 144      12 blocks            `bump_after_blocks`             `feerate_max_sat_kvb`
    72 to 144     6                    6                               `feerate_max_sat_kvb`
    under 72      2                    2                               all that the channel brings

Under 72 blocks the operator's maximum does not hold: who loses the race to the payer's refund loses all that
the channel brings, so every fee below that is the smaller loss. It is reached step by step, never at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coincurve import PrivateKey

from payments.channel import CLOSE_MARGIN_BLOCKS, may_batch
from payments.channel_close import (
    CHANNELS_PER_CLOSE_MAX,
    CLOSE_VBYTES,
    CLOSE_VBYTES_PER_CHANNEL,
    Claim,
    CloseTransaction,
    close_transaction,
)
from payments.channel_errors import CloseUneconomic
from payments.channel_record import ChannelRecord
from payments.money import Sat
from payments.payout import fee_of

LAST_BLOCKS = 72
FEERATE_SAT_KVB_MIN = 1_000
"""Nodes relay nothing below it by default."""
INCREMENTAL_SAT_KVB = 1_000
"""A replacement pays for its own relay on top (BIP125, rule 4; Bitcoin Core's -incrementalrelayfee)."""
STEP_PERCENT = 125
"""Of the feerate before: a replacement that pays hardly more is hardly mined sooner."""
OUTPUT_SAT_MIN = 330
"""Of an output to P2TR; a P2PKH one needs more."""
DRAINED_SAVES_VBYTES = 31
"""A channel without change has no output: at least one to P2WPKH less."""


@dataclass(frozen=True, slots=True)
class ClosePolicy:
    """What the operator decides. Feerates in sats per 1,000 vbytes."""

    feerate_sat_kvb: int
    """What closes pay; 0: the node's estimate."""
    feerate_max_sat_kvb: int
    bump_after_blocks: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How urgent a close is."""

    target_blocks: int
    """The node is asked for a feerate to be mined within so many."""
    bump_after_blocks: int
    last: bool
    """No maximum but what the channel brings."""


@dataclass(frozen=True, slots=True)
class Toll:
    """What a replacement has to pay more than, of what stands in the mempool now (BIP125, rules 3 and 6)."""

    fees_sat: Sat
    """Of all transactions that it throws out, children included."""
    feerate_sat_kvb: int
    """The highest of those that spend the same coins."""


@dataclass(frozen=True, slots=True)
class Planned:
    close: CloseTransaction
    claims: tuple[Claim, ...]
    feerate_sat_kvb: int


def pace(policy: ClosePolicy, blocks_left: int) -> Pace:
    """`blocks_left`: from the tip to the lowest EXPIRY of a close's channels; negative after it."""
    if blocks_left < LAST_BLOCKS:
        return Pace(target_blocks=2, bump_after_blocks=2, last=True)
    if blocks_left <= CLOSE_MARGIN_BLOCKS:
        return Pace(target_blocks=6, bump_after_blocks=6, last=False)
    return Pace(target_blocks=12, bump_after_blocks=policy.bump_after_blocks, last=False)


def claim_of(record: ChannelRecord, payee: PrivateKey, *, last: bool) -> Claim | None:
    """What closes this channel: what was agreed with the payer, else the best voucher; None without either.

    In the last blocks whatever brings more: an agreed close may be too cheap to be mined in time, and then
    the payer would get what was paid for too.
    """
    claims = []
    if record.agreed is not None:
        agreed = record.agreed
        claims.append(
            Claim(
                record.channel,
                agreed.paid_sat,
                agreed.signature,
                payee,
                fee_sat=agreed.fee_sat,
            )
        )
    if record.balance.signature is not None:
        claims.append(Claim(record.channel, record.balance.accepted_sat, record.balance.signature, payee))
    if last:
        claims.sort(key=lambda claim: claim.brings_sat, reverse=True)
    return claims[0] if claims else None


def groups(records: Iterable[ChannelRecord], *, tip_height: int) -> list[list[ChannelRecord]]:
    """Which are closed together: a batch stands or falls with each of its deposits.

    So one that is not buried deep, or soon the payer's again, goes alone; the most urgent first.
    """
    alone, together = [], []
    for record in sorted(records, key=lambda one: (one.channel.contract.expiry_height, one.id)):
        batchable = may_batch(
            record.channel.contract.expiry_height,
            confirmations=record.confirmations(tip_height),
            tip_height=tip_height,
        )
        if batchable:
            together.append(record)
        else:
            alone.append([record])
    starts = range(0, len(together), CHANNELS_PER_CLOSE_MAX)
    return alone + [together[start : start + CHANNELS_PER_CLOSE_MAX] for start in starts]


def wanted_feerate(
    policy: ClosePolicy,
    pace: Pace,
    estimate_sat_kvb: int | None,
    claims: Sequence[Claim],
    *,
    floor_sat_kvb: int = FEERATE_SAT_KVB_MIN,
) -> int:
    """What a new close pays: the operator's choice or the node's estimate; without one what was set aside.

    `floor_sat_kvb`: our node takes nothing below.
    """
    wanted = policy.feerate_sat_kvb or estimate_sat_kvb
    if wanted is None:
        wanted = max(claim.channel.contract.close_fee_sat for claim in claims) * 1_000 // CLOSE_VBYTES
    elif pace.last:
        # The choice was made for ordinary times.
        wanted = max(wanted, estimate_sat_kvb or 0)
    if pace.last:
        # Less than the node wants for the next blocks may do for one of the last seventy.
        brings_sat = sum(claim.brings_sat for claim in claims) - OUTPUT_SAT_MIN
        wanted = min(wanted, brings_sat * 1_000 // (CLOSE_VBYTES * len(claims)))
    else:
        wanted = min(wanted, policy.feerate_max_sat_kvb)
    return max(floor_sat_kvb, wanted)


def plan_close(
    claims: Sequence[Claim], payee_script_pubkey: bytes, *, feerate_sat_kvb: int, feerate_max_sat_kvb: int
) -> tuple[Planned | None, dict[str, CloseUneconomic]]:
    """The close of those that bring more than they cost; and the others, by channel id.

    One that was agreed and goes alone pays the network what its payer agreed to, if that is more: then the
    payee gets what was paid, to the sat. Raises SignatureInvalid.
    """
    left_out: dict[str, CloseUneconomic] = {}
    taken = []
    for claim in claims:
        marginal = CLOSE_VBYTES_PER_CHANNEL - (0 if claim.change_sat else DRAINED_SAVES_VBYTES)
        cost_sat = fee_of(marginal, feerate_sat_kvb)
        if len(claims) > 1 and claim.brings_sat <= cost_sat:
            left_out[claim.channel.id] = CloseUneconomic(brings_sat=claim.brings_sat, fee_sat=cost_sat)
        else:
            taken.append(claim)
    if not taken:
        return None, left_out
    try:
        close = close_transaction(taken, payee_script_pubkey, feerate_sat_kvb=feerate_sat_kvb)
        agreed_sat = taken[0].fee_sat if len(taken) == 1 else None
        if agreed_sat is not None and agreed_sat > close.fee_sat:
            agreed_sat_kvb = min(agreed_sat * 1_000 // close.vbytes, feerate_max_sat_kvb)
            if agreed_sat_kvb > feerate_sat_kvb:
                feerate_sat_kvb = agreed_sat_kvb
                close = close_transaction(taken, payee_script_pubkey, feerate_sat_kvb=feerate_sat_kvb)
    except CloseUneconomic as exc:
        return None, left_out | {claim.channel.id: exc for claim in taken}
    return Planned(close, tuple(taken), feerate_sat_kvb), left_out


def bumped_feerate(
    before_sat_kvb: int, wanted_sat_kvb: int, toll: Toll, *, vbytes: int, most_sat_kvb: int
) -> int | None:
    """What the next version of a close pays; None: the least that a node would take is above the most."""
    for_fees = -(-(toll.fees_sat * 1_000) // vbytes) + INCREMENTAL_SAT_KVB
    least = max(before_sat_kvb + INCREMENTAL_SAT_KVB, for_fees, toll.feerate_sat_kvb + 1)
    if least > most_sat_kvb:
        return None
    wanted = max(least, before_sat_kvb * STEP_PERCENT // 100, wanted_sat_kvb)
    return min(wanted, most_sat_kvb)
