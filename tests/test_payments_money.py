"""Amounts convert exactly, or with the rounding their function's name says, or not at all."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.errors import AmountInvalid
from payments.money import (
    MAX_MONEY_SAT,
    Msat,
    Sat,
    btc_from_sat,
    msat_from_sat,
    sat_from_btc,
    sat_rounded_down,
    sat_rounded_up,
)


@pytest.mark.parametrize(
    ("amount_btc", "amount_sat"),
    [
        ("0", 0),
        ("0E-8", 0),
        ("-0", 0),
        ("0.00000001", 1),
        ("0.00005000", 5_000),
        ("1E-8", 1),
        ("1", 100_000_000),
        ("20999999.99999999", MAX_MONEY_SAT - 1),
        ("21000000", MAX_MONEY_SAT),
        ("0.000000010000000000000000000000000000000000", 1),
    ],
)
def test_btc_becomes_sats_exactly(amount_btc: str, amount_sat: int) -> None:
    converted = sat_from_btc(Decimal(amount_btc))
    assert converted == amount_sat
    assert type(converted) is int


@pytest.mark.parametrize(
    "amount_btc",
    [
        "-0.00000001",
        "21000000.00000001",
        "1E+999999",
        "0.000000001",
        "0.000000015",
        "1E-999999",
        "0.00000001000000000000000000000000000000000001",
        "NaN",
        "sNaN",
        "Infinity",
        "-Infinity",
    ],
)
def test_btc_that_is_no_amount_is_refused(amount_btc: str) -> None:
    with pytest.raises(AmountInvalid):
        sat_from_btc(Decimal(amount_btc))


@pytest.mark.parametrize(
    ("amount_sat", "text"),
    [
        (0, "0.00000000"),
        (1, "0.00000001"),
        (5_000, "0.00005000"),
        (100_000_000, "1.00000000"),
        (MAX_MONEY_SAT, "21000000.00000000"),
    ],
)
def test_sats_are_written_as_btc(amount_sat: int, text: str) -> None:
    assert btc_from_sat(Sat(amount_sat)) == text


def test_a_negative_amount_is_never_written() -> None:
    with pytest.raises(AmountInvalid):
        btc_from_sat(Sat(-1))


@given(st.integers(0, MAX_MONEY_SAT))
def test_sats_survive_the_way_through_btc(amount_sat: int) -> None:
    assert sat_from_btc(Decimal(btc_from_sat(Sat(amount_sat)))) == amount_sat


@pytest.mark.parametrize(
    ("amount_msat", "down_sat", "up_sat"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (999, 0, 1),
        (1_000, 1, 1),
        (1_001, 1, 2),
        (2**70 + 1, 2**70 // 1_000, 2**70 // 1_000 + 1),
    ],
)
def test_msats_round_as_named(amount_msat: int, down_sat: int, up_sat: int) -> None:
    assert sat_rounded_down(Msat(amount_msat)) == down_sat
    assert sat_rounded_up(Msat(amount_msat)) == up_sat


@given(st.integers(0, MAX_MONEY_SAT))
def test_sats_survive_the_way_through_msats(amount_sat: int) -> None:
    amount_msat = msat_from_sat(Sat(amount_sat))
    assert sat_rounded_down(amount_msat) == sat_rounded_up(amount_msat) == amount_sat
