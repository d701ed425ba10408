"""Which channels are closed together, what their close pays, and when it is sent again. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.channel import Balance, ChannelState
from payments.channel_close import CHANNELS_PER_CLOSE_MAX, CLOSE_VBYTES
from payments.channel_close_plan import (
    FEERATE_SAT_KVB_MIN,
    INCREMENTAL_SAT_KVB,
    ClosePolicy,
    Pace,
    Toll,
    bumped_feerate,
    claim_of,
    groups,
    pace,
    plan_close,
    wanted_feerate,
)
from payments.channel_record import Agreed, ChannelRecord
from payments.money import Msat, Sat
from payments.outputs import Presence
from tests.channel_parts import (
    CAPACITY_SAT,
    CLOSE_FEE_SAT,
    EXPIRY_HEIGHT,
    P2TR,
    PAYEE,
    PAYER,
    channel,
    claim,
    contract,
)

POLICY = ClosePolicy(feerate_sat_kvb=0, feerate_max_sat_kvb=20_000, bump_after_blocks=3)
ORDINARY, URGENT, LAST = Pace(12, 3, False), Pace(6, 6, False), Pace(2, 2, True)
TIP = EXPIRY_HEIGHT - 1_000


def record(
    number: int = 1,
    *,
    paid_sat: int | None = 5_000,
    agreed: tuple[int, int] | None = None,
    depth: int = 6,
    expiry_height: int = EXPIRY_HEIGHT,
) -> ChannelRecord:
    """`agreed`: paid, fee."""
    on = channel(number, under=contract(expiry_height=expiry_height))
    signature = None if paid_sat is None else on.sign(PAYER, paid_sat)
    terms = None
    if agreed is not None:
        terms = Agreed(Sat(agreed[0]), Sat(agreed[1]), on.sign(PAYER, *agreed))
    return ChannelRecord(
        channel=on,
        nonce=bytes(16),
        state=ChannelState.CLOSING,
        balance=Balance(Sat(paid_sat or 0), signature, Msat((paid_sat or 0) * 1_000)),
        close_reason=None,
        close_asked_at=None,
        agreed=terms,
        funding=Presence.BLOCK,
        funding_height=TIP - depth + 1,
        funding_lost_height=None,
        seen_at=0,
        opened_at=0,
        closed_at=None,
        trouble=None,
    )


@pytest.mark.parametrize(
    ("blocks_left", "wanted"),
    [(145, ORDINARY), (144, URGENT), (72, URGENT), (71, LAST), (0, LAST), (-10, LAST)],
)
def test_the_nearer_the_expiry_the_more_urgent(blocks_left: int, wanted: Pace) -> None:
    assert pace(POLICY, blocks_left) == wanted


@pytest.mark.parametrize(
    ("depth", "blocks_left", "together"), [(6, 289, True), (5, 289, False), (6, 288, False), (7, 1_000, True)]
)
def test_only_deep_deposits_far_from_their_expiry_go_together(
    depth: int, blocks_left: int, together: bool
) -> None:
    records = [record(n, depth=depth, expiry_height=TIP + blocks_left) for n in (1, 2)]
    assert [len(group) for group in groups(records, tip_height=TIP)] == ([2] if together else [1, 1])


def test_no_close_is_larger_than_version_3_may_be_and_the_most_urgent_goes_first() -> None:
    many = [record(n) for n in range(1, CHANNELS_PER_CLOSE_MAX + 3)]
    urgent = record(1_000, expiry_height=TIP + 100)
    found = groups([*many, urgent], tip_height=TIP)
    assert [len(group) for group in found] == [1, CHANNELS_PER_CLOSE_MAX, 2]
    assert found[0] == [urgent]


def test_what_was_agreed_closes_but_in_the_last_blocks_what_brings_more() -> None:
    agreed = record(agreed=(5_000, 200))
    chosen = [claim_of(agreed, PAYEE, last=last) for last in (False, True)]
    assert [one and (one.paid_sat, one.fee_sat) for one in chosen] == [(5_000, 200), (5_000, None)]
    generous = record(paid_sat=5_000, agreed=(6_000, CLOSE_FEE_SAT))
    best = claim_of(generous, PAYEE, last=True)
    assert best is not None
    assert best.paid_sat == 6_000
    assert claim_of(record(paid_sat=None), PAYEE, last=True) is None


@pytest.mark.parametrize(
    ("policy_sat_kvb", "now", "estimate", "wanted"),
    [
        (0, ORDINARY, 8_000, 8_000),
        (0, ORDINARY, 90_000, 20_000),
        (0, ORDINARY, 100, FEERATE_SAT_KVB_MIN),
        (3_000, URGENT, 8_000, 3_000),
        (0, ORDINARY, None, CLOSE_FEE_SAT * 1_000 // CLOSE_VBYTES),
        (3_000, LAST, 8_000, 8_000),
        # All that it brings, but for an output: 5,000 and the close fee of 1,000.
        (0, LAST, 90_000, (6_000 - 330) * 1_000 // CLOSE_VBYTES),
    ],
)
def test_what_a_new_close_pays(policy_sat_kvb: int, now: Pace, estimate: int | None, wanted: int) -> None:
    policy = ClosePolicy(policy_sat_kvb, POLICY.feerate_max_sat_kvb, 3)
    assert wanted_feerate(policy, now, estimate, [claim(channel(), 5_000)]) == wanted


def test_what_is_left_out_of_a_batch_is_what_costs_more_than_it_brings() -> None:
    rich, poor = claim(channel(1), 5_000), claim(channel(2), 10)
    planned, left_out = plan_close([rich, poor], P2TR, feerate_sat_kvb=8_000, feerate_max_sat_kvb=8_000)
    assert planned is not None
    assert planned.claims == (rich,)
    assert list(left_out) == [poor.channel.id]
    planned, left_out = plan_close([poor], P2TR, feerate_sat_kvb=8_000, feerate_max_sat_kvb=8_000)
    assert (planned, list(left_out)) == (None, [poor.channel.id])


@given(fee_sat=st.integers(400, CLOSE_FEE_SAT), paid_sat=st.integers(330, CAPACITY_SAT - 2_000))
def test_an_agreed_close_alone_takes_what_was_agreed_to_the_satoshi(fee_sat: int, paid_sat: int) -> None:
    agreed = claim(channel(), paid_sat, fee_sat=fee_sat)
    planned, _ = plan_close([agreed], P2TR, feerate_sat_kvb=2_000, feerate_max_sat_kvb=20_000)
    assert planned is not None
    assert (planned.close.fee_sat, planned.close.payee_sat) == (fee_sat, paid_sat)


@given(
    before=st.integers(1_000, 50_000),
    wanted=st.integers(0, 100_000),
    fees_sat=st.integers(0, 20_000),
    rate=st.integers(0, 100_000),
    most=st.integers(1_000, 200_000),
)
def test_a_replacement_pays_what_nodes_ask_for_or_is_none(
    before: int, wanted: int, fees_sat: int, rate: int, most: int
) -> None:
    vbytes = 180
    found = bumped_feerate(before, wanted, Toll(Sat(fees_sat), rate), vbytes=vbytes, most_sat_kvb=most)
    if found is None:
        assert most < max(before, rate + 1, -(-fees_sat * 1_000 // vbytes)) + INCREMENTAL_SAT_KVB
        return
    assert found <= most
    assert found > rate
    assert found * vbytes >= fees_sat * 1_000 + vbytes * INCREMENTAL_SAT_KVB
    assert found >= before + INCREMENTAL_SAT_KVB
    assert found >= min(most, wanted)
