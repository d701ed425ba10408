"""Asking for payouts, and deciding on them. Each step is one transaction of the caller's.

Who asks makes the payout's id: asking again is the same payout. From the request on its amount is set aside
in the ledger, so that nothing is promised twice; a payout that is called off gives it back.
"""

from dataclasses import replace

from payments import books, ledger
from payments.errors import PayoutConflict, PayoutRefused
from payments.money import NOTHING_SAT, msat_from_sat
from payments.payable import is_ours, payable_sat
from payments.payout import ENDED, TRANSITIONS, Kind, Payout, State, desired_payout
from payments.payout_store import change_payouts, find_payout, insert_payout, load_payout
from payments.payout_transaction import dust_sat
from payments.ports import Transaction


async def request(tx: Transaction, payout: Payout, *, depth: int, now: int) -> Payout:
    """Set the amount aside and keep the payout; the same id again is the payout that is there.

    `payout` is REQUESTED, or APPROVED where nobody needs to be asked. Raises PayoutRefused, and
    PayoutConflict if the id is another payout's.
    """
    known = await find_payout(tx, payout.id)
    if known is not None:
        if (known.kind, known.account, known.amount_sat, known.script_pubkey) != (
            payout.kind,
            payout.account,
            payout.amount_sat,
            payout.script_pubkey,
        ):
            raise PayoutConflict(f"payout {payout.id} is another one: ask with a new id")
        return known
    if payout.amount_sat < (least := dust_sat(payout.script_pubkey)) or payout.amount_sat <= 0:
        raise PayoutRefused(
            f"{payout.amount_sat:,} sat are too little: the network relays {least:,} sat or more"
        )
    await check_target(tx, payout.script_pubkey)
    # A refund may be claimed as soon as the money is in a block; it is not paid before it is deep.
    payable = await payable_sat(tx, payout.account, depth=1 if payout.kind is Kind.REFUND else depth)
    if payout.amount_sat > payable:
        raise PayoutRefused(
            f"{payout.amount_sat:,} sat are more than the {max(NOTHING_SAT, payable):,} sat that can be "
            "paid out now: ask for less, or later"
        )
    await insert_payout(tx, payout)
    await _book(tx, payout, now)
    return payout


async def check_target(tx: Transaction, script_pubkey: bytes) -> None:
    """Raises PayoutRefused for an address that is watched here: the money would come back as a sale."""
    if await is_ours(tx, script_pubkey):
        raise PayoutRefused(
            "this address belongs to this server: it is an invoice's, or of its own wallet. Give an address "
            "of a wallet of yours"
        )


async def approve(tx: Transaction, payout_id: str, *, by: str, now: int) -> Payout:
    """Approved already is approved. Raises PayoutNotFound, PayoutConflict, PayoutRefused."""
    payout = await load_payout(tx, payout_id)
    if payout.state in (State.APPROVED, State.BATCHED, State.DONE):
        return payout
    if payout.state is State.DECLINED:
        # What was given back may have been spent since.
        payable = await payable_sat(tx, payout.account, depth=1)
        if payout.amount_sat > payable:
            raise PayoutRefused(
                f"of the {payout.amount_sat:,} sat only {max(NOTHING_SAT, payable):,} are still there"
            )
    return await _move(tx, payout, State.APPROVED, by=by, reason=None, now=now)


async def decline(tx: Transaction, payout_id: str, *, by: str, reason: str, now: int) -> Payout:
    """Gives the amount back. Raises PayoutNotFound, PayoutConflict."""
    payout = await load_payout(tx, payout_id)
    if payout.state is State.DECLINED:
        return payout
    return await _move(tx, payout, State.DECLINED, by=by, reason=reason, now=now)


async def cancel(tx: Transaction, payout_id: str, *, now: int) -> Payout:
    """Its owner does not want it any more. Raises PayoutNotFound, PayoutConflict."""
    payout = await load_payout(tx, payout_id)
    if payout.state is State.CANCELLED:
        return payout
    return await _move(tx, payout, State.CANCELLED, by=None, reason=None, now=now)


async def _move(
    tx: Transaction, payout: Payout, to: State, *, by: str | None, reason: str | None, now: int
) -> Payout:
    if (payout.state, to) not in TRANSITIONS:
        where = (
            f"in batch {payout.batch_id}, which may be sent at any moment"
            if payout.state is State.BATCHED
            else payout.state
        )
        raise PayoutConflict(f"payout {payout.id} is {where}: it cannot be {to} any more")
    moved = replace(payout, state=to, decided_at=now, decided_by=by, reason=reason, trouble=None)
    await change_payouts(
        tx, [payout.id], state=to, decided_at=now, decided_by=by, reason=reason, trouble=None
    )
    if (payout.state in ENDED) != (to in ENDED):
        await _book(tx, moved, now)
    return moved


async def _book(tx: Transaction, payout: Payout, now: int) -> None:
    """What is held for it, before any batch."""
    standing = (await books.booked(tx, [payout.id]))[payout.id]
    desired = desired_payout(payout, None)
    await books.append_missing(tx, desired, standing, reference=payout.id, now=now)
    assert await books.balance(tx, ledger.payout(payout.id)) == (
        0 if payout.state in ENDED else msat_from_sat(payout.amount_sat)
    ), "the hold is the amount"
