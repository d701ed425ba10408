"""The rules of payouts: fees are split to the satoshi, coins cover what is paid, states go where they may."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments import ledger, payout_requests
from payments.errors import PayoutConflict
from payments.ledger import Code
from payments.money import NOTHING_SAT, Sat, msat_from_sat
from payments.outputs import OutPoint
from payments.payout import (
    COINS_PER_BATCH_MAX,
    ENDED,
    TRANSITIONS,
    Coin,
    Kind,
    Payout,
    Share,
    State,
    choose_coins,
    desired_batch,
    desired_payout,
    desired_spend,
    fee_of,
    over_share,
    split_fee,
)
from payments.payout_candidates import take_affordable
from payments.payout_layout import payees_of, shares_at
from payments.payout_transaction import Payee, dust_sat, output_vbytes, unsigned_transaction
from tests.payments_facts import LAWS

DUST_SAT = Sat(294)
OVERHEAD_VBYTES = 11
SCRIPTS = (
    bytes.fromhex("0014") + bytes(20),
    bytes.fromhex("0014") + b"\xff" * 20,
    bytes.fromhex("5120") + bytes(32),
    bytes.fromhex("76a914") + bytes(20) + bytes.fromhex("88ac"),
)
CHANGE_SCRIPT = bytes.fromhex("0014") + b"\x80" * 20

amounts_sat = st.sampled_from([1, 293, 294, 295, 588, 1_000, 5_000, 100_000_000]) | st.integers(1, 10_000_000)
coins = st.lists(amounts_sat, max_size=30).map(
    lambda amounts: [Coin(OutPoint(f"{n:064x}", n % 3), Sat(sat), 100) for n, sat in enumerate(amounts)]
)
payouts = st.lists(st.tuples(amounts_sat, st.sampled_from(SCRIPTS)), min_size=1, max_size=12).map(
    lambda some: [payout_of(n, sat, script) for n, (sat, script) in enumerate(some)]
)


def payout_of(n: int, amount_sat: int, script_pubkey: bytes = SCRIPTS[0]) -> Payout:
    return Payout(
        id=f"p{n:03}",
        kind=Kind.SELLER,
        seller_id="s",
        invoice_id=None,
        account=ledger.seller("s"),
        amount_sat=Sat(amount_sat),
        address="",
        script_pubkey=script_pubkey,
        state=State.APPROVED,
        requested_at=1,
        ready_at=1,
    )


@LAWS
@given(payouts, st.integers(0, 1_000_000), st.integers(0, 50_000))
def test_the_fee_is_split_to_the_satoshi(some: list[Payout], fee_sat: int, inputs_vbytes: int) -> None:
    outputs = [(payout.amount_sat, output_vbytes(payout.script_pubkey)) for payout in some]
    vsize = OVERHEAD_VBYTES + inputs_vbytes + sum(size for _, size in outputs)
    shares = split_fee(Sat(fee_sat), outputs, vsize_vbytes=vsize)
    assert sum(shares) == fee_sat
    for share, (_, size) in zip(shares, outputs, strict=True):
        assert share >= fee_sat * size // vsize, "each pays for its own bytes"
    # Who gets more pays no less, for the same bytes; but for a sat of rounding.
    for (mine, (amount, size)), (theirs, (other, other_size)) in product(
        zip(shares, outputs, strict=True), repeat=2
    ):
        if size == other_size and amount >= other:
            assert mine >= theirs - 1


def test_a_fee_in_numbers() -> None:
    # 141 vbytes at 2 sat/vB: 62 for each output of 31 vbytes, and the other 158 as 3 to 1.
    assert split_fee(Sat(282), [(Sat(30_000), 31), (Sat(10_000), 31)], vsize_vbytes=141) == [181, 101]
    assert split_fee(Sat(0), [(Sat(1), 31)], vsize_vbytes=110) == [0]
    assert [fee_of(141, 1_000), fee_of(141, 1_001), fee_of(1, 1)] == [141, 142, 1]


@LAWS
@given(coins, amounts_sat)
def test_the_coins_cover_what_is_needed(some: list[Coin], needed_sat: int) -> None:
    there_sat = sum(coin.amount_sat for coin in some)
    choice = choose_coins(some, Sat(needed_sat), dust_sat=DUST_SAT)
    if choice is None:
        assert there_sat < needed_sat
        return
    taken_sat = sum(coin.amount_sat for coin in choice.coins)
    assert len(set(choice.coins)) == len(choice.coins)
    assert set(choice.coins) <= set(some)
    assert taken_sat == needed_sat + choice.change_sat + choice.left_sat
    assert choice.change_sat == 0 or choice.change_sat >= DUST_SAT
    assert 0 <= choice.left_sat < DUST_SAT
    if choice.left_sat:
        assert len(choice.coins) == len(some), "something is left only when no more coins are there"
    smallest = min(coin.amount_sat for coin in choice.coins)
    assert taken_sat - smallest < needed_sat + DUST_SAT, "none too many"


def test_no_more_coins_than_a_transaction_carries() -> None:
    many = [Coin(OutPoint(f"{n:064x}", 0), Sat(1_000), 1) for n in range(COINS_PER_BATCH_MAX + 1)]
    all_sat = COINS_PER_BATCH_MAX * 1_000
    choice = choose_coins(many, Sat(all_sat), dust_sat=DUST_SAT)
    assert choice is not None
    assert (len(choice.coins), choice.change_sat, choice.left_sat) == (COINS_PER_BATCH_MAX, 0, 0)
    assert choose_coins(many, Sat(all_sat + 1), dust_sat=DUST_SAT) is None
    just_below = choose_coins(many, Sat(all_sat - 100), dust_sat=DUST_SAT)
    assert just_below is not None
    assert (just_below.change_sat, just_below.left_sat) == (0, 100)
    found = take_affordable(
        [payout_of(0, all_sat + 1), payout_of(1, all_sat - 5_000), payout_of(2, 5_001)],
        many,
        dust_sat=DUST_SAT,
    )
    assert [payout.id for payout in found.payouts] == ["p001"]
    assert "one transaction spends 500 coins at most, which are 500,000 sat" in found.troubles["p000"]
    assert "the wallet has 5,000 sat left" in found.troubles["p002"]


@LAWS
@given(payouts, coins)
def test_who_comes_first_is_paid_first(some: list[Payout], there: list[Coin]) -> None:
    found = take_affordable(some, there, dust_sat=DUST_SAT)
    there_sat = sum(coin.amount_sat for coin in there)
    left_sat = int(there_sat)
    for payout in some:
        fits = payout.amount_sat <= left_sat
        assert (payout in found.payouts) == fits
        assert (payout.id in found.troubles) != fits
        left_sat -= payout.amount_sat if fits else 0
    assert (found.choice is None) == (not found.payouts)
    if found.choice is not None:
        spent_sat = sum(coin.amount_sat for coin in found.choice.coins)
        assert spent_sat == there_sat - left_sat + found.choice.change_sat + found.choice.left_sat


@LAWS
@given(payouts, st.integers(0, 5_000), st.sampled_from([None, 294, 70_000]))
def test_every_payout_has_its_place_and_no_sat_is_lost(
    some: list[Payout], fee_sat: int, change_sat: int | None
) -> None:
    change = None if change_sat is None else Payee(Sat(change_sat), CHANGE_SCRIPT)
    vsize = 100 + sum(output_vbytes(payout.script_pubkey) for payout in some)
    shares = shares_at(some, Sat(fee_sat), vsize, change)
    payees = payees_of(some, shares, change)
    assert len(payees) == len(some) + (change is not None)
    assert [payee.script_pubkey for payee in payees] == sorted(payee.script_pubkey for payee in payees)
    assert sum(payee.amount_sat for payee in payees) + fee_sat == sum(p.amount_sat for p in some) + (
        change_sat or 0
    )
    by_id = {payout.id: payout for payout in some}
    assert sorted(share.payout_id for share in shares) == sorted(by_id)
    for share in shares:
        payout = by_id[share.payout_id]
        assert share.arrives_sat + share.fee_sat == payout.amount_sat
        assert payees[share.vout] == Payee(share.arrives_sat, payout.script_pubkey)
    # At another fee all lies where it lay: versions differ in amounts alone.
    dearer = shares_at(some, Sat(fee_sat + 1_000), vsize, change)
    assert [(one.payout_id, one.vout) for one in dearer] == [(one.payout_id, one.vout) for one in shares]
    if all(payee.amount_sat >= 0 for payee in payees):
        coin = [OutPoint("aa" * 32, 0)]
        assert unsigned_transaction(coin, payees) == unsigned_transaction(coin, payees)


def test_what_is_not_worth_its_fee_waits() -> None:
    dust = {"a": Sat(294), "b": Sat(294), "c": Sat(294), "d": dust_sat(SCRIPTS[3])}
    shares = [
        Share("a", 0, Sat(9_000), Sat(1_000)),
        Share("b", 1, Sat(8_999), Sat(1_001)),
        Share("c", 2, Sat(293), Sat(1)),
        Share("d", 3, Sat(546), NOTHING_SAT),
    ]
    troubles = over_share(shares, percent_max=10, dust_sat=dust)
    assert sorted(troubles) == ["b", "c"]
    assert "1,001 of 10,000 sat, more than 10 %" in troubles["b"]
    assert "too little would arrive" in troubles["c"]
    assert not over_share([Share("a", 0, Sat(294), Sat(99_999))], percent_max=100, dust_sat=dust)
    assert over_share([Share("a", 0, Sat(-5), Sat(10))], percent_max=100, dust_sat=dust)


@pytest.mark.parametrize("state", State)
def test_what_stands_in_the_books_for_a_payout(state: State) -> None:
    payout = replace(payout_of(1, 10_000), state=state)
    held = desired_payout(payout, None)
    if state in ENDED:
        assert held == ()
        return
    assert [(one.debit, one.credit, one.amount_msat) for one in held] == [
        ("seller:s", "payout:p001", 10_000_000)
    ]
    mined = desired_payout(payout, Share("p001", 0, Sat(9_800), Sat(200)))
    assert sum(one.amount_msat for one in mined if one.debit == "payout:p001") == msat_from_sat(Sat(10_000))
    assert {one.code for one in mined} == {Code.HELD, Code.PAID_OUT, Code.NETWORK_FEE}
    # A leg of nothing is none.
    assert len(desired_payout(payout, Share("p001", 0, Sat(10_000), NOTHING_SAT))) == 2


def test_what_stands_for_remainders_and_for_what_others_spent() -> None:
    assert [one.amount_msat for one in desired_batch("b", Sat(5), mined=True)] == [5_000]
    assert desired_batch("b", NOTHING_SAT, mined=True) == desired_batch("b", Sat(5), mined=False) == ()
    said = {"seller:s": Sat(300), "operator": None}
    assert desired_spend("t", Sat(1_000), said, mined=False) == ()
    assert desired_spend("t", NOTHING_SAT, said, mined=True) == ()
    spent, sellers, rest = desired_spend("t", Sat(1_000), said, mined=True)
    assert (spent.debit, spent.amount_msat) == ("unexplained", 1_000_000)
    assert [(one.debit, one.amount_msat) for one in (sellers, rest)] == [
        ("seller:s", 300_000),
        ("operator", 700_000),
    ]


DECISIONS = (State.APPROVED, State.CANCELLED, State.DECLINED)
"""Steps that people take; blocks and batches take the others."""


@pytest.mark.parametrize(("before", "to"), sorted(set(product(State, DECISIONS)) - TRANSITIONS))
async def test_every_step_that_is_not_allowed_is_refused(before: State, to: State) -> None:
    payout = replace(payout_of(1, 1_000), state=before, batch_id="b")
    with pytest.raises(PayoutConflict, match=f"it cannot be {to} any more"):
        await payout_requests._move(None, payout, to, by=None, reason=None, now=1)  # type: ignore[arg-type]
