"""Closes and refunds: which output pairs with which input, who gets what, and what is too little to send."""

import pytest
from bitcoin.core import CTransaction
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, SignatureHash
from hypothesis import given, settings
from hypothesis import strategies as st

from payments.channel_close import (
    CHANNELS_PER_CLOSE_MAX,
    CLOSE_VBYTES,
    CLOSE_VBYTES_PER_CHANNEL,
    Claim,
    check_refund,
    close_transaction,
    close_vbytes_max,
    refund_transaction,
    shared_out,
)
from payments.channel_errors import CloseUneconomic, RefundRefused, RefundTooSmall, SignatureInvalid
from payments.channel_keys import public_key
from payments.money import Sat
from payments.outputs import OutPoint
from payments.transaction import parse_transaction
from tests.channel_parts import (
    CAPACITY_SAT,
    CLOSE_FEE_SAT,
    EXPIRY_HEIGHT,
    P2PKH,
    P2TR,
    P2WPKH,
    P2WSH,
    PAYEE,
    PAYER,
    channel,
    claim,
    contract,
    key,
)

USABLE_SAT = CAPACITY_SAT - CLOSE_FEE_SAT
VERSION_3 = b"\x03\0\0\0"
states = st.one_of(st.integers(0, USABLE_SAT - 330), st.just(USABLE_SAT))


def check_signatures(raw: bytes, claims: list[Claim]) -> None:
    """Every witness spends its deposit: both signatures fit what python-bitcoinlib says is signed."""
    transaction = CTransaction.deserialize(raw)
    by_outpoint = {one.channel.outpoint: one.channel for one in claims}
    for n, spent in enumerate(parse_transaction(raw).inputs):
        on = by_outpoint[spent]
        payee, payer, script = transaction.wit.vtxinwit[n].scriptWitness.stack
        assert script == on.contract.witness_script
        for signature, signer in ((payee, on.contract.payee_key), (payer, on.contract.payer_key)):
            digest = SignatureHash(
                CScript(script), transaction, n, signature[-1], on.capacity_sat, SIGVERSION_WITNESS_V0
            )
            assert public_key(signer).verify(signature[:-1], digest, hasher=None)
        assert payee[-1] == 0x01


@settings(max_examples=40)
@given(
    paid=st.lists(states, min_size=1, max_size=6),
    change=st.lists(st.sampled_from([P2WPKH, P2WSH, P2TR]), min_size=6, max_size=6),
    feerate_sat_kvb=st.integers(0, 20_000),
)
def test_a_close_pays_all_their_change_and_the_payee_the_rest(
    paid: list[int], change: list[bytes], feerate_sat_kvb: int
) -> None:
    claims = [
        claim(channel(n + 1, under=contract(change=change[n])), paid_sat) for n, paid_sat in enumerate(paid)
    ]
    brings = [one.brings_sat for one in claims]
    assert brings == [paid_sat + CLOSE_FEE_SAT for paid_sat in paid]
    refused = None
    try:
        close = close_transaction(claims, P2TR, feerate_sat_kvb=feerate_sat_kvb)
    except CloseUneconomic as exc:
        refused = exc
    if refused is not None:
        assert refused.brings_sat == sum(brings)
        assert refused.fee_sat > sum(brings) - 330
        return
    assert close.raw == close_transaction(claims, P2TR, feerate_sat_kvb=feerate_sat_kvb).raw
    check_signatures(close.raw, claims)
    parsed = parse_transaction(close.raw)
    assert close.raw.startswith(VERSION_3)
    assert parsed.txid == close.txid

    # Output n is the change of input n: that is what its payer signed.
    by_outpoint = {one.channel.outpoint: one for one in claims}
    spent = [by_outpoint[outpoint] for outpoint in parsed.inputs]
    with_change = [one for one in spent if one.change_sat]
    assert spent[: len(with_change)] == with_change
    for one, output in zip(with_change, parsed.outputs, strict=False):
        assert output.script_pubkey == one.channel.contract.change_script_pubkey
        assert output.amount_sat == one.change_sat
    rest = parsed.outputs[len(with_change) :]
    if close.payee_vout is None:
        assert not rest
        assert close.payee_sat == 0
    else:
        (payee,) = rest
        assert (payee.vout, payee.amount_sat) == (close.payee_vout, close.payee_sat)
        assert payee.script_pubkey == P2TR
        assert payee.amount_sat >= 330

    assert close.fee_sat + close.payee_sat == sum(brings)
    assert close.fee_sat * 1_000 >= close.vbytes * feerate_sat_kvb
    assert sum(close.received_sat) == close.payee_sat
    assert all(got <= brought for got, brought in zip(close.received_sat, brings, strict=True))
    weight = 3 * len(CTransaction.deserialize(close.raw).serialize({"include_witness": False}))
    weight += len(close.raw)
    # A signature may be a byte or two shorter than the longest.
    assert 0 <= close.vbytes * 4 - weight <= 3 + 6 * len(claims)


def test_the_fee_is_a_whole_number_rounded_up() -> None:
    """11 sat/vB of 170 vB are 1,870 sat; as binary fractions products like these are sometimes one more."""
    claims = [claim(channel(), 5_000)]
    for feerate_sat_kvb in (1, 999, 1_000, 1_001, 11_000, 4_611):
        close = close_transaction(claims, P2WPKH, feerate_sat_kvb=feerate_sat_kvb)
        assert close.fee_sat == (170 * feerate_sat_kvb + 999) // 1_000


def test_drained_channels_come_last_and_have_no_change() -> None:
    claims = [
        claim(channel(1), USABLE_SAT),
        claim(channel(2), 100),
        claim(channel(3), USABLE_SAT),
        claim(channel(4), 7_000),
    ]
    close = close_transaction(claims, P2TR, feerate_sat_kvb=1_000)
    check_signatures(close.raw, claims)
    parsed = parse_transaction(close.raw)
    assert [outpoint.txid[-1] for outpoint in parsed.inputs] == ["2", "4", "1", "3"]
    assert [output.amount_sat for output in parsed.outputs[:-1]] == [USABLE_SAT - 100, USABLE_SAT - 7_000]
    assert close.payee_vout == 2
    # In the order given, not in the transaction's.
    assert close.received_sat[1] < close.received_sat[3] < close.received_sat[0] <= close.received_sat[2] + 1


def test_what_is_too_small_for_an_output_goes_to_the_network() -> None:
    claims = [claim(channel(), 0)]
    # 139 vB without the payee's output, 182 with it.
    close = close_transaction(claims, P2TR, feerate_sat_kvb=4_000)
    assert (close.payee_vout, close.payee_sat, close.fee_sat) == (None, 0, CLOSE_FEE_SAT)
    assert close.received_sat == (0,)
    assert len(parse_transaction(close.raw).outputs) == 1
    with pytest.raises(CloseUneconomic) as refused:
        close_transaction(claims, P2TR, feerate_sat_kvb=8_000)
    assert refused.value.brings_sat == CLOSE_FEE_SAT


@pytest.mark.parametrize(("brings_sat", "payee_sat"), [(182 + 330, 330), (182 + 329, 0)])
def test_the_least_output_of_the_payee(brings_sat: int, payee_sat: int) -> None:
    one = claim(channel(under=contract(close_fee_sat=brings_sat)), 0)
    assert close_transaction([one], P2TR, feerate_sat_kvb=1_000).payee_sat == payee_sat


def test_a_drained_channel_that_brings_too_little_is_not_closed() -> None:
    small = claim(channel(capacity_sat=400, under=contract(close_fee_sat=0)), 400)
    with pytest.raises(CloseUneconomic):
        close_transaction([small], P2TR, feerate_sat_kvb=1_000)


def test_a_close_that_brings_nothing_is_not_made() -> None:
    nothing = claim(channel(), 0, fee_sat=0)
    with pytest.raises(CloseUneconomic):
        close_transaction([nothing], P2TR, feerate_sat_kvb=1_000)


def test_a_cooperative_close_takes_what_was_agreed() -> None:
    one = claim(channel(), 5_000, fee_sat=200)
    close = close_transaction([one], P2TR, feerate_sat_kvb=1_000)
    check_signatures(close.raw, [one])
    assert one.change_sat == CAPACITY_SAT - 5_200
    assert close.payee_sat == 5_200 - 182


def test_a_signature_over_another_amount_is_found() -> None:
    right = claim(channel(), 5_000)
    for wrong in (
        Claim(right.channel, Sat(5_001), right.signature, PAYEE),
        Claim(right.channel, Sat(5_000), right.signature, PAYEE, Sat(1)),
        Claim(channel(2), Sat(5_000), right.signature, PAYEE),
    ):
        with pytest.raises(SignatureInvalid):
            close_transaction([claim(channel(3), 1), wrong], P2TR, feerate_sat_kvb=1_000)


def test_another_payees_key_is_a_bug() -> None:
    right = claim(channel(), 5_000)
    with pytest.raises(AssertionError):
        close_transaction(
            [Claim(right.channel, right.paid_sat, right.signature, key(9))], P2TR, feerate_sat_kvb=1_000
        )


@pytest.mark.parametrize(
    ("change", "payee", "first", "more"),
    [(P2WPKH, P2WPKH, 170, 129), (P2WPKH, P2TR, 182, 129), (P2TR, P2TR, 194, 141), (P2WSH, P2WSH, 194, 141)],
    ids=["both P2WPKH", "P2WPKH and P2TR", "both P2TR", "both P2WSH"],
)
def test_the_size_of_a_close(change: bytes, payee: bytes, first: int, more: int) -> None:
    under = contract(change=change)
    sizes = {
        n: close_transaction(
            [claim(channel(i, under=under), 9_000) for i in range(n)], payee, feerate_sat_kvb=1_000
        ).vbytes
        for n in (1, 2, CHANNELS_PER_CLOSE_MAX)
    }
    assert sizes[1] == first <= close_vbytes_max(channel(under=under)) <= CLOSE_VBYTES
    assert len(payee) < 34 or first == close_vbytes_max(channel(under=under))
    assert sizes[2] == first + more <= CLOSE_VBYTES + CLOSE_VBYTES_PER_CHANNEL
    assert sizes[CHANNELS_PER_CLOSE_MAX] <= 10_000


def test_no_close_is_longer_than_was_reserved_for() -> None:
    longest = claim(channel(under=contract(change=P2WSH, expiry_height=8_388_607)), 9_000)
    assert close_transaction([longest], P2WSH, feerate_sat_kvb=1_000).vbytes == CLOSE_VBYTES


@given(
    amount_sat=st.integers(0, 10**9),
    brings=st.lists(st.integers(0, 10**9).map(Sat), max_size=12),
)
def test_shares_are_fair_and_add_up(amount_sat: int, brings: list[Sat]) -> None:
    total = sum(brings)
    amount_sat = min(amount_sat, total)
    shares = shared_out(Sat(amount_sat), brings)
    assert sum(shares) == amount_sat
    assert len(shares) == len(brings)
    for share, brought in zip(shares, brings, strict=True):
        assert share <= brought
        assert abs(share * total - amount_sat * brought) < max(total, 1)


# Refunds


@pytest.mark.parametrize("script_pubkey", [P2WPKH, P2TR, P2PKH], ids=["P2WPKH", "P2TR", "P2PKH"])
def test_a_refund_takes_the_deposit_back(script_pubkey: bytes) -> None:
    on = channel()
    raw = refund_transaction(on, PAYER, script_pubkey, feerate_sat_kvb=2_500)
    assert raw == refund_transaction(on, PAYER, script_pubkey, feerate_sat_kvb=2_500)
    assert check_refund(raw, on) == parse_transaction(raw).txid
    transaction = CTransaction.deserialize(raw)
    assert (transaction.nVersion, transaction.nLockTime) == (2, EXPIRY_HEIGHT)
    (paid,) = parse_transaction(raw).outputs
    assert paid.script_pubkey == script_pubkey
    empty, signature, script = transaction.wit.vtxinwit[0].scriptWitness.stack
    assert (empty, script) == (b"", on.contract.witness_script)
    digest = SignatureHash(CScript(script), transaction, 0, 1, on.capacity_sat, SIGVERSION_WITNESS_V0)
    assert public_key(on.contract.payer_key).verify(signature[:-1], digest, hasher=None)
    weight = 3 * len(transaction.serialize({"include_witness": False})) + len(raw)
    fee_sat = on.capacity_sat - paid.amount_sat
    assert 0 <= fee_sat - weight * 2_500 / 4_000 <= 5


def test_a_refund_that_would_be_dust_is_not_made() -> None:
    with pytest.raises(RefundTooSmall, match="0 sat"):
        refund_transaction(channel(), PAYER, P2WPKH, feerate_sat_kvb=1_000_000)
    small = channel(capacity_sat=430)
    with pytest.raises(RefundTooSmall):
        refund_transaction(small, PAYER, P2TR, feerate_sat_kvb=1_000)


def test_only_the_refund_of_this_channel_is_one() -> None:
    on = channel()
    raw = refund_transaction(on, PAYER, P2WPKH, feerate_sat_kvb=1_000)
    two = close_transaction([claim(on, 1), claim(channel(2), 1)], P2TR, feerate_sat_kvb=1_000).raw
    others = [
        refund_transaction(channel(2), PAYER, P2WPKH, feerate_sat_kvb=1_000),
        refund_transaction(channel(vout=1), PAYER, P2WPKH, feerate_sat_kvb=1_000),
        two,
        b"",
        raw[:-1],
        raw + b"\0",
    ]
    for other in others:
        with pytest.raises(RefundRefused):
            check_refund(other, on)


@given(st.binary(max_size=300))
def test_garbage_is_no_refund(garbage: bytes) -> None:
    with pytest.raises(RefundRefused):
        check_refund(garbage, channel())


def test_a_refund_may_be_asked_for_with_a_backup_alone() -> None:
    """The contract of a backup line knows no change script; a refund needs none."""
    on = channel(under=contract(change=b"", close_fee_sat=0))
    raw = refund_transaction(on, PAYER, P2TR, feerate_sat_kvb=1_000)
    assert raw == refund_transaction(channel(), PAYER, P2TR, feerate_sat_kvb=1_000)
    assert parse_transaction(raw).inputs == (OutPoint(f"{1:064x}", 0),)
