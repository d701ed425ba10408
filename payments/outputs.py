"""Outputs that pay us, and which of them can be real together. Pure.

Two transactions that spend a common outpoint exclude each other: at most one of them ends in the chain, so
money is never counted from both. All outputs of one transaction stand or fall together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from payments.money import Sat

DUST_SAT = Sat(330)
"""Outputs below this never change a status (Bitcoin Core's dust limit of a witness v1 output)."""
COINBASE_MATURITY = 100
MISSING_LAPSES_S = 14 * 86_400
"""Mempools forget a transaction after two weeks (Bitcoin Core's -mempoolexpiry)."""
CLOCK_SKEW_S = 3 * 7_200
"""How much older than its invoice a payment may look. A block's time may stand two hours from the node's, no
more (Bitcoin Core), and our own clock may be set by two hours, one way and the other, between invoice and
payment."""


class Presence(StrEnum):
    """Where our node sees a received output's transaction now."""

    BLOCK = "block"
    MEMPOOL = "mempool"
    MISSING = "missing"
    """In neither; nothing known spends its inputs. Its bytes are kept and offered to the node again."""
    CONFLICTED = "conflicted"
    """A conflicting transaction is in the mempool."""
    GONE = "gone"
    """A conflicting transaction is in a block of the active chain."""


LOST = frozenset({Presence.CONFLICTED, Presence.GONE})
"""An output so placed pays nothing, unless the chain turns again."""

_PREFERENCE = {Presence.BLOCK: 0, Presence.MEMPOOL: 1, Presence.MISSING: 2}


class OutPoint(NamedTuple):
    """A transaction output's place: txid in the hex byte order of the node's RPC, and its index."""

    txid: str
    vout: int

    def __str__(self) -> str:
        return f"{self.txid}:{self.vout}"


@dataclass(frozen=True, slots=True)
class ReceivedOutput:
    """A transaction output that pays an invoice's scriptPubKey, as our node sees it now."""

    outpoint: OutPoint
    amount_sat: Sat
    first_seen_at: int
    """Our clock, or the block time if first met in a block and that is earlier; replacements inherit it."""
    presence: Presence
    height: int | None = None
    """Height of its block; set exactly when `presence` is BLOCK."""
    coinbase: bool = False
    reorged: bool = False
    """It was in a block that left the active chain, and is in no block now."""
    inputs: frozenset[OutPoint] = frozenset()
    """The outpoints its transaction spends: two transactions that share one exclude each other."""


@dataclass(frozen=True, slots=True)
class Payment:
    """One transaction, seen from one invoice: the outputs by which it pays it."""

    txid: str
    outputs: tuple[ReceivedOutput, ...]
    inputs: frozenset[OutPoint]

    @property
    def amount_sat(self) -> Sat:
        return Sat(sum(output.amount_sat for output in self.outputs))


def confirmations(output: ReceivedOutput, tip_height: int) -> int:
    """How deep the output is: 1 in the tip's block, 0 in the mempool, missing, or above the tip we know."""
    if output.presence is not Presence.BLOCK:
        return 0
    return block_depth(output.height, tip_height)


def block_depth(height: int | None, tip_height: int) -> int:
    """Confirmations of what is in the block at `height`: 0 if that is None, or above the tip we know."""
    return 0 if height is None else max(0, tip_height - height + 1)


def predates(output: ReceivedOutput, created_at: int) -> bool:
    """Whether the output is surely older than the invoice: money for something else."""
    return output.first_seen_at + CLOCK_SKEW_S < created_at


def spendable(output: ReceivedOutput, tip_height: int) -> bool:
    """Whether the network lets the output be spent: newly mined coins must lie for 100 blocks."""
    return not output.coinbase or confirmations(output, tip_height) >= COINBASE_MATURITY


def lapses_at(output: ReceivedOutput) -> int | None:
    """When a missing output stops to count, unless it turns up; None if it does not lapse.

    What a block once held may be mined again at any time, and does not lapse.
    """
    if output.presence is not Presence.MISSING or output.reorged:
        return None
    return output.first_seen_at + MISSING_LAPSES_S


def counts(output: ReceivedOutput, *, created_at: int, tip_height: int, now: int) -> bool:
    """Whether the output may change a status now, if its transaction is anywhere to be had."""
    lapsed_at = lapses_at(output)
    return (
        output.amount_sat >= DUST_SAT
        and not predates(output, created_at)
        and spendable(output, tip_height)
        # A payment whose unconfirmed parent was double-spent stays missing for ever: it must not hold the
        # last copy of an offer as long.
        and (lapsed_at is None or now <= lapsed_at)
    )


def payments_of(outputs: Iterable[ReceivedOutput]) -> tuple[Payment, ...]:
    """The outputs grouped by transaction, in an order that depends on nothing but what they say."""
    by_txid: dict[str, list[ReceivedOutput]] = {}
    for output in sorted(outputs, key=lambda output: output.outpoint):
        by_txid.setdefault(output.outpoint.txid, []).append(output)
    return tuple(Payment(txid, tuple(group), _inputs(group)) for txid, group in by_txid.items())


def without_conflicts(payments: Iterable[Payment]) -> tuple[Payment, ...]:
    """The payments that are counted: none is lost, and no two of them share an input.

    Of those that exclude each other a block wins over the mempool, the mempool over a missing transaction;
    then the first seen wins, then the lower txid. Amounts have no say, so more money never counts for less.
    """
    kept: list[Payment] = []
    spent: set[OutPoint] = set()
    for payment in sorted((p for p in payments if not _lost(p)), key=_preference):
        if spent.isdisjoint(payment.inputs):
            kept.append(payment)
            spent |= payment.inputs
    return tuple(kept)


def lost_payments(payments: Iterable[Payment], counted: Iterable[Payment]) -> tuple[Payment, ...]:
    """The payments whose inputs went elsewhere, except where those who took them pay us at least as much."""
    takers = tuple(counted)
    return tuple(p for p in payments if _lost(p) and _paid_by_rivals(p, takers) < p.amount_sat)


def _inputs(outputs: Iterable[ReceivedOutput]) -> frozenset[OutPoint]:
    # Every coinbase "spends" the same null outpoint: two of them exclude nothing.
    return frozenset().union(*(output.inputs for output in outputs if not output.coinbase))


def _lost(payment: Payment) -> bool:
    return any(output.presence in LOST for output in payment.outputs)


def _preference(payment: Payment) -> tuple[int, int, str]:
    place = min(_PREFERENCE[output.presence] for output in payment.outputs)
    return place, min(output.first_seen_at for output in payment.outputs), payment.txid


def _paid_by_rivals(payment: Payment, takers: Iterable[Payment]) -> int:
    return sum(taker.amount_sat for taker in takers if not taker.inputs.isdisjoint(payment.inputs))
