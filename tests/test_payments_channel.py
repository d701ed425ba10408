"""The money rules of channels: what is charged, in whatever order, and for how long a channel lives."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.channel import (
    BATCH_BEFORE_EXPIRY_BLOCKS,
    BATCH_DEPTH,
    CLOSE_MARGIN_BLOCKS,
    LIFE_BLOCKS_MAX,
    OPEN_MARGIN_BLOCKS,
    TERMS_STALE_BLOCKS,
    Balance,
    ChannelTerms,
    charged,
    check_life,
    check_terms,
    check_terms_as_payer,
    deposit_for_fees_under,
    may_batch,
    must_close,
    suspended,
)
from payments.channel_errors import (
    ChangeScriptRefused,
    ChannelTermsRefused,
    ChannelTermsStale,
    ConfirmationsNeeded,
    ExpiryTooNear,
    NetworkForeign,
    PayerKeyInvalid,
    VoucherShort,
    VoucherStale,
)
from payments.channel_exposure import Exposure
from payments.channel_keys import public_bytes
from payments.money import MAX_MONEY_SAT, Msat, Sat, sat_rounded_up
from payments.outputs import Presence
from tests.channel_parts import P2PKH, P2TR, PAYEE, PAYER

NEW = Balance(Sat(0), None, Msat(0))
TIP = 800_000
TERMS = ChannelTerms(
    network="regtest",
    nonce=bytes(16),
    payee_key=public_bytes(PAYEE),
    expiry_height=TIP + 2_016,
    close_fee_sat=Sat(1_000),
    deposit_min_sat=Sat(2_000),
    issued_height=TIP,
)


def pay(
    balance: Balance, cumulative_sat: int, cost_msat: int, *, limit_sat: int = 10**9, signature: bytes = b""
) -> Balance:
    return charged(
        balance,
        cumulative_sat=cumulative_sat,
        signature=signature or b"%d" % cumulative_sat,
        cost_msat=cost_msat,
        limit_sat=limit_sat,
        confirmations=1,
    )


# Charging


def test_a_voucher_pays_for_what_it_covers() -> None:
    balance = pay(NEW, 10, 10_000)
    assert balance == Balance(Sat(10), b"10", Msat(10_000))
    assert pay(balance, 20, 9_001) == Balance(Sat(20), b"20", Msat(19_001))


def test_a_sat_signed_for_pays_for_many_chunks() -> None:
    balance = NEW
    for n in range(1, 11):
        balance = pay(balance, 1, 100)
        assert balance.spent_msat == n * 100
    with pytest.raises(VoucherShort) as refused:
        pay(balance, 1, 1)
    assert (refused.value.required_sat, refused.value.accepted_sat) == (2, 1)
    assert refused.value.spent_msat == 1_000


def test_a_voucher_that_falls_short_changes_nothing() -> None:
    with pytest.raises(VoucherShort) as refused:
        pay(NEW, 9, 9_001)
    assert refused.value.required_sat == 10
    assert not isinstance(refused.value, VoucherStale)


def test_an_older_voucher_pays_out_of_the_highest() -> None:
    balance = pay(NEW, 30, 10_000)
    after = pay(balance, 10, 20_000)
    assert after == Balance(Sat(30), b"30", Msat(30_000))
    with pytest.raises(VoucherStale):
        pay(after, 29, 1)
    with pytest.raises(VoucherShort) as refused:
        pay(after, 30, 1)
    assert not isinstance(refused.value, VoucherStale)


def test_a_voucher_alone_is_accepted_and_costs_nothing() -> None:
    assert pay(NEW, 0, 0) == Balance(Sat(0), b"0", Msat(0))
    assert pay(NEW, 500, 0) == Balance(Sat(500), b"500", Msat(0))


def test_a_retry_is_free_with_whatever_voucher() -> None:
    balance = pay(NEW, 30, 30_000)
    assert pay(balance, 10, 0) == balance
    assert pay(balance, 0, 0) == balance


def test_no_more_is_accepted_than_is_risked_at_this_depth() -> None:
    assert pay(NEW, 500, 500_000, limit_sat=500).accepted_sat == 500
    with pytest.raises(ConfirmationsNeeded) as refused:
        pay(NEW, 501, 1, limit_sat=500)
    assert (refused.value.max_sat, refused.value.confirmations) == (500, 1)
    with pytest.raises(ConfirmationsNeeded):
        pay(NEW, 501, 0, limit_sat=500)


requests = st.lists(st.integers(1, 25_000), min_size=1, max_size=5)


@given(requests)
def test_requests_that_run_side_by_side_cost_the_same_in_any_order(costs_msat: list[int]) -> None:
    """The payer signs each for all before it; whichever comes first is paid."""
    vouchers, total = [], 0
    for cost in costs_msat:
        total += cost
        vouchers.append((sat_rounded_up(Msat(total)), cost))
    ends = set()
    for order in permutations(vouchers):
        balance = NEW
        for cumulative_sat, cost in order:
            balance = pay(balance, cumulative_sat, cost)
        ends.add(balance)
    highest = vouchers[-1][0]
    assert ends == {Balance(highest, b"%d" % highest, Msat(total))}


attempts = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 30_000), st.integers(0, 60)), min_size=1, max_size=40
)


@given(attempts)
def test_what_was_accepted_never_falls_and_covers_what_was_spent(
    attempts: list[tuple[int, int, int]],
) -> None:
    balance, seen = NEW, 0
    for cumulative_sat, cost_msat, limit_sat in attempts:
        try:
            after = pay(balance, cumulative_sat, cost_msat, limit_sat=limit_sat)
        except (VoucherShort, ConfirmationsNeeded):
            continue
        assert after.accepted_sat == max(balance.accepted_sat, cumulative_sat)
        assert after.spent_msat == balance.spent_msat + cost_msat
        assert sat_rounded_up(after.spent_msat) <= after.accepted_sat
        seen = max(seen, cumulative_sat)
        # The signature is always the one over what is accepted.
        assert after.signature == b"%d" % seen
        balance = after


# Exposure


@pytest.mark.parametrize(
    ("confirmations", "limit_sat"),
    [
        (0, 500),
        (1, 100_000),
        (2, 100_000),
        (3, 1_000_000),
        (5, 1_000_000),
        (6, MAX_MONEY_SAT),
        (99, MAX_MONEY_SAT),
    ],
)
def test_more_is_risked_the_deeper_the_deposit_is(confirmations: int, limit_sat: int) -> None:
    exposure = Exposure(Sat(500), Sat(10_000), Sat(100_000), Sat(1_000_000))
    assert exposure.limit_sat(confirmations) == limit_sat


@pytest.mark.parametrize("funding", Presence)
def test_a_channel_rests_while_its_deposit_is_in_doubt(funding: Presence) -> None:
    there = funding in (Presence.BLOCK, Presence.MEMPOOL)
    assert suspended(funding, accepted_sat=500, limit_sat=500) is not there
    assert suspended(funding, accepted_sat=501, limit_sat=500)


# Terms


def test_terms_make_a_contract_with_a_payer() -> None:
    made = TERMS.contract(public_bytes(PAYER), P2TR)
    assert (made.payer_key, made.payee_key) == (public_bytes(PAYER), public_bytes(PAYEE))
    assert (made.expiry_height, made.close_fee_sat) == (TERMS.expiry_height, 1_000)
    with pytest.raises(PayerKeyInvalid):
        TERMS.contract(bytes(33), P2TR)
    with pytest.raises(ChangeScriptRefused):
        TERMS.contract(public_bytes(PAYER), P2PKH)


def test_terms_become_stale() -> None:
    check_terms(TERMS, network="regtest", tip_height=TIP + TERMS_STALE_BLOCKS)
    with pytest.raises(ChannelTermsStale):
        check_terms(TERMS, network="regtest", tip_height=TIP + TERMS_STALE_BLOCKS + 1)


def test_terms_of_another_network_are_refused() -> None:
    with pytest.raises(NetworkForeign):
        check_terms(TERMS, network="mainnet", tip_height=TIP)
    with pytest.raises(NetworkForeign):
        check_terms_as_payer(TERMS, network="mainnet", tip_height=TIP)


def test_nothing_is_opened_near_its_expiry() -> None:
    last = TERMS.expiry_height - OPEN_MARGIN_BLOCKS
    fresh = replace(TERMS, issued_height=last)
    check_terms(fresh, network="regtest", tip_height=last)
    check_life(TERMS.expiry_height, last)
    with pytest.raises(ExpiryTooNear):
        check_terms(fresh, network="regtest", tip_height=last + 1)
    with pytest.raises(ExpiryTooNear):
        check_life(TERMS.expiry_height, last + 1)


def test_a_payer_refuses_to_wait_for_years() -> None:
    longest = replace(TERMS, expiry_height=TIP + LIFE_BLOCKS_MAX)
    check_terms_as_payer(longest, network="regtest", tip_height=TIP)
    with pytest.raises(ChannelTermsRefused, match="52,561 blocks"):
        check_terms_as_payer(longest, network="regtest", tip_height=TIP - 1)


@pytest.mark.parametrize("payee_key", [b"", bytes(33), b"\x02" + b"\xff" * 32])
def test_a_payer_refuses_a_payee_whose_key_no_wallet_takes(payee_key: bytes) -> None:
    with pytest.raises(ChannelTermsRefused):
        check_terms_as_payer(replace(TERMS, payee_key=payee_key), network="regtest", tip_height=TIP)


# Life


def test_a_channel_is_closed_in_good_time() -> None:
    first = 900_000 - CLOSE_MARGIN_BLOCKS
    assert not must_close(900_000, first - 1)
    assert must_close(900_000, first)
    assert must_close(900_000, 900_001)


@pytest.mark.parametrize(
    ("confirmations", "blocks_left", "together"),
    [
        (BATCH_DEPTH, BATCH_BEFORE_EXPIRY_BLOCKS + 1, True),
        (BATCH_DEPTH - 1, BATCH_BEFORE_EXPIRY_BLOCKS + 1, False),
        (BATCH_DEPTH, BATCH_BEFORE_EXPIRY_BLOCKS, False),
        (0, 2_016, False),
    ],
)
def test_only_deep_channels_with_time_left_are_closed_together(
    confirmations: int, blocks_left: int, together: bool
) -> None:
    tip = 900_000 - blocks_left
    assert may_batch(900_000, confirmations=confirmations, tip_height=tip) is together


@given(percent=st.integers(1, 100), funding=st.integers(0, 10_000), close=st.integers(0, 20_000))
def test_the_deposit_at_which_fees_are_a_small_part(percent: int, funding: int, close: int) -> None:
    deposit = deposit_for_fees_under(percent, funding_fee_sat=funding, close_fee_sat=close)
    assert (funding + close) * 100 < percent * deposit
    assert (funding + close) * 100 >= percent * (deposit - 1)
