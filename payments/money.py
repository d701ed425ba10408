"""Amounts of bitcoin: whole satoshis on chain, millisatoshis in the ledger, never a float.

Every conversion between the two, and from and to the node's BTC decimals, is here, its rounding in its name.
"""

from decimal import Decimal
from typing import NewType

from payments.errors import AmountInvalid

Sat = NewType("Sat", int)
Msat = NewType("Msat", int)

MSAT_PER_SAT = 1_000
SAT_PER_BTC = 100_000_000
NOTHING_SAT = Sat(0)
NOTHING_MSAT = Msat(0)
MAX_MONEY_SAT = Sat(21_000_000 * SAT_PER_BTC)
"""No amount above this exists (Bitcoin Core's MAX_MONEY)."""


def msat_from_sat(amount_sat: Sat) -> Msat:
    """The same amount in millisatoshis; exact."""
    return Msat(amount_sat * MSAT_PER_SAT)


def sat_rounded_up(amount_msat: Msat) -> Sat:
    """Whole sats that cover `amount_msat` (>= 0)."""
    return Sat(-(-amount_msat // MSAT_PER_SAT))


def sat_rounded_down(amount_msat: Msat) -> Sat:
    """Whole sats within `amount_msat` (>= 0)."""
    return Sat(amount_msat // MSAT_PER_SAT)


def sat_from_btc(amount_btc: Decimal) -> Sat:
    """Sats in a BTC amount as the node's RPC gives it.

    Raises AmountInvalid for a negative amount, one above MAX_MONEY_SAT, or one finer than a satoshi.
    """
    amount_sat = amount_btc * SAT_PER_BTC
    if not amount_sat.is_finite() or amount_sat != amount_sat.to_integral_value():
        raise AmountInvalid(f"{amount_btc} BTC is not a whole number of satoshis")
    if not 0 <= amount_sat <= MAX_MONEY_SAT:
        raise AmountInvalid(f"{amount_btc} BTC is outside 0 to 21 million")
    return Sat(int(amount_sat))


def btc_from_sat(amount_sat: Sat) -> str:
    """A BTC amount with eight decimals, as BIP321 URIs and wallets write it: 5000 -> "0.00005000"."""
    whole, rest = divmod(amount_sat, SAT_PER_BTC)
    return f"{whole}.{rest:08d}"
