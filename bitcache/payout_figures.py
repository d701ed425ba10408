"""Payouts in a few numbers, for /metrics."""

from dataclasses import dataclass

from payments import batch_store, payable, payout_store
from payments.batch_store import Batch
from payments.payout import BatchState, Payout, State
from payments.ports import Transaction
from payments.tables import payout_batches


@dataclass(frozen=True, slots=True)
class PayoutFigures:
    waiting: int
    """Asked for or approved, and in no batch."""
    waiting_sat: int
    oldest_wait_s: int
    batches_unsigned: int
    batches_unconfirmed: int
    """Signed, and in no block."""
    unconfirmed_s: int
    """Since the one of them that was signed first was."""
    stopped: bool


async def figures(tx: Transaction, *, now: int) -> PayoutFigures:
    waiting = await payout_store.payouts_in(tx, State.REQUESTED, State.APPROVED)
    built = await batch_store.batches(tx, payout_batches.c.state == BatchState.BUILT)
    unmined = [batch for batch in built if batch.mined is None]
    signed_at = [min(times) for batch in unmined if (times := _signed_at(batch))]
    return PayoutFigures(
        waiting=len(waiting),
        waiting_sat=sum(payout.amount_sat for payout in waiting),
        oldest_wait_s=max([0, *(now - _waits_since(payout) for payout in waiting)]),
        batches_unsigned=len(unmined) - len(signed_at),
        batches_unconfirmed=len(signed_at),
        unconfirmed_s=max([0, *(now - at for at in signed_at)]),
        stopped=await payable.stopped(tx) is not None,
    )


def _signed_at(batch: Batch) -> list[int]:
    return [version.signed_at for version in batch.versions if version.signed_at is not None]


def _waits_since(payout: Payout) -> int:
    """Since it was asked for, or since it could have been paid."""
    return payout.requested_at if payout.state is State.REQUESTED else payout.ready_at
