"""What of an invoice's money can be asked back, and who must approve it. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitcache.config import HostedConfig
from bitcache.refund_state import (
    Refund,
    RefundFacts,
    approval_needed,
    asks_for_all,
    owed_by_books,
    refundable_sat,
)
from payments.attention import Attention, attention
from payments.invoice import ChainView, Invoice, Mode, ReceivedOutput, Standing, Status, standing
from payments.money import Msat, Sat
from payments.payout import Kind, Payout, State
from payments.records import InvoiceRecord
from tests.payments_facts import CHAIN, PRICE_SAT, UNTIL, invoice_of, paid

HOSTED = invoice_of(mode=Mode.HOSTED)
AFTER = UNTIL + 1


def stands(
    invoice: Invoice, *outputs: ReceivedOutput, now: int = AFTER, chain: ChainView = CHAIN
) -> Standing:
    return standing(invoice, outputs, chain, now)


def owed(amount_sat: int, *refunds: Refund) -> RefundFacts:
    return RefundFacts(Msat(amount_sat * 1_000), "address", b"script", refunds)


def refund(amount_sat: int, state: State, *, held_sat: int = 0) -> Refund:
    payout = Payout(
        id="p", kind=Kind.REFUND, seller_id="sel", invoice_id="inv", account="owed:inv",
        amount_sat=Sat(amount_sat), address="address", script_pubkey=b"script", state=state,
        requested_at=0, ready_at=0,
    )  # fmt: skip
    return Refund(payout, Sat(held_sat), None)


EXPIRED = stands(HOSTED, paid("a", 3_000, confirmations=1))
SETTLED = stands(HOSTED, paid("a", 7_000, confirmations=1))
UNDER_WAY = {
    "a price still holds": stands(HOSTED, paid("a", 3_000, confirmations=1), now=UNTIL),
    "covered, in the mempool": stands(HOSTED, paid("a", 5_000)),
    "covered, not deep": stands(invoice_of(mode=Mode.HOSTED, key_at=3), paid("a", 5_000, confirmations=1)),
}


def test_the_facts_are_what_they_are_called() -> None:
    assert EXPIRED.status is Status.EXPIRED
    assert SETTLED.status is Status.SETTLED
    assert {one.status for one in UNDER_WAY.values()} == {Status.SEEN, Status.CONFIRMING}


@pytest.mark.parametrize("case", UNDER_WAY)
def test_money_that_may_still_buy_is_not_given_back_but_after_a_takedown(case: str) -> None:
    assert refundable_sat(HOSTED, UNDER_WAY[case], owed(5_000)) == 0
    assert refundable_sat(replace(HOSTED, revoked=True), UNDER_WAY[case], owed(5_000)) == 5_000


@pytest.mark.parametrize("at_rest", [EXPIRED, SETTLED])
def test_a_tip_is_kept_where_something_is_sold(at_rest: Standing) -> None:
    assert refundable_sat(HOSTED, at_rest, owed(999)) == 0
    assert refundable_sat(HOSTED, at_rest, owed(1_000)) == 1_000
    for withdrawn in (replace(HOSTED, revoked=True), replace(HOSTED, refunded=True)):
        assert refundable_sat(withdrawn, at_rest, owed(330)) == 330
        assert refundable_sat(withdrawn, at_rest, owed(329)) == 0


def test_what_was_declined_is_not_asked_for_again() -> None:
    declined = refund(3_000, State.DECLINED)
    assert refundable_sat(HOSTED, EXPIRED, owed(3_000, declined)) == 0
    assert refundable_sat(HOSTED, EXPIRED, owed(5_000, declined)) == 2_000
    # Called off, it was never answered; approved, it is set aside.
    assert refundable_sat(HOSTED, EXPIRED, owed(3_000, refund(3_000, State.CANCELLED))) == 3_000


def test_a_balance_below_zero_gives_nothing() -> None:
    assert refundable_sat(replace(HOSTED, refunded=True), EXPIRED, owed(-3_000)) == 0
    assert owed_by_books(owed(-3_000)) == 0
    assert owed_by_books(owed(2_000, refund(3_000, State.REQUESTED, held_sat=3_000))) == 5_000


def test_only_a_surplus_leaves_the_sale_as_it_is() -> None:
    assert not asks_for_all(HOSTED, SETTLED)
    assert asks_for_all(HOSTED, EXPIRED)
    assert asks_for_all(replace(HOSTED, revoked=True), SETTLED)


def test_who_had_the_key_is_looked_at_whatever_the_policy() -> None:
    """Of two parts paid before a block, one was spent elsewhere: the key is out, the other part is owed."""
    record = InvoiceRecord(
        invoice=HOSTED, subject="", frozen="{}", claim_hash=b"", address="x", script_pubkey=b"x",
        descriptor_id="d", address_index=0, outputs=(), standing=EXPIRED, released_at=1, prefetch_fit=True,
    )  # fmt: skip
    auto = HostedConfig(refund_policy="auto")
    assert approval_needed(record, owed(1), auto)
    assert not approval_needed(replace(record, released_at=None), owed(1), auto)
    assert not approval_needed(replace(record, standing=SETTLED), owed(1), auto)
    revoked = replace(record, invoice=replace(HOSTED, revoked=True))
    assert not approval_needed(revoked, owed(1), auto)
    assert approval_needed(replace(record, released_at=None), owed(1), HostedConfig(refund_policy="ask"))
    # The operator would pay what its seller was paid already. What was never earned was never paid out.
    paid_out = replace(owed(1), seller_owes=True)
    assert approval_needed(revoked, paid_out, auto)
    assert not approval_needed(replace(record, released_at=None), paid_out, auto)
    assert not approval_needed(replace(record, standing=SETTLED), paid_out, auto)


def test_a_debt_that_is_paid_by_hand_stays_in_sight() -> None:
    hosted, direct = replace(HOSTED, refunded=True), replace(invoice_of(), refunded=True)
    assert attention(hosted, EXPIRED, released=False) is None
    assert attention(direct, EXPIRED, released=False) is Attention.UNDERPAID
    assert attention(direct, stands(direct), released=False) is None
    assert EXPIRED.received_sat < PRICE_SAT
