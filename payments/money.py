"""Amounts of bitcoin: whole satoshis on chain, millisatoshis in the ledger, never a float.

Every conversion between the two, and from and to the node's BTC decimals, is here, its rounding in its name.
"""

from decimal import Context, Decimal, Inexact, localcontext
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
    """The fewest whole sats that cover `amount_msat`."""
    return Sat(-(-amount_msat // MSAT_PER_SAT))


def sat_rounded_down(amount_msat: Msat) -> Sat:
    """The most whole sats within `amount_msat`."""
    return Sat(amount_msat // MSAT_PER_SAT)


def sat_from_btc(amount_btc: Decimal) -> Sat:
    """Sats in a BTC amount as the node's RPC gives it.

    Raises AmountInvalid for a negative amount, one above MAX_MONEY_SAT, or one finer than a satoshi.
    """
    if not amount_btc.is_finite() or not 0 <= amount_btc <= MAX_MONEY_SAT // SAT_PER_BTC:
        raise AmountInvalid(f"{amount_btc} BTC is outside 0 to 21 million")
    try:
        # Decimal rounds long numbers in silence unless it is told to complain.
        with localcontext(Context(traps=[Inexact])):
            return Sat(int((amount_btc * SAT_PER_BTC).to_integral_exact()))
    except Inexact as exc:
        raise AmountInvalid(f"{amount_btc} BTC is not a whole number of satoshis") from exc


def btc_from_sat(amount_sat: Sat) -> str:
    """A BTC amount with eight decimals, as BIP321 URIs and wallets write it: 5000 -> "0.00005000".

    Raises AmountInvalid for a negative amount.
    """
    if amount_sat < 0:
        raise AmountInvalid(f"{amount_sat} sat cannot be asked for: the amount is negative")
    whole, rest = divmod(amount_sat, SAT_PER_BTC)
    return f"{whole}.{rest:08d}"
