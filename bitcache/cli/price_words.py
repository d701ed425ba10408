"""Prices of an offer, as sellers write them and as the terminal shows them."""

import re

from bitcache.api import wire
from bitcache.cli.common import show_sat
from bitcache.cli.output import UsageWrong
from bitcache.metered_terms import METERED_MSAT_MAX
from payments.money import MSAT_PER_SAT

_PER_CHUNK = re.compile(r"([0-9]{1,12})(msat|sats|sat)?(?:/chunk)?")


def show_msat(amount_msat: int) -> str:
    """10000 -> 10 sat; 1500 -> 1,500 msat."""
    whole, rest = divmod(amount_msat, MSAT_PER_SAT)
    return f"{amount_msat:,} msat" if rest else show_sat(whole)


def show_prices(offer: wire.OfferView | wire.OfferSummary) -> str:
    """5,000 sat; free; 10 sat/chunk; 5,000 sat or 10 sat/chunk."""
    prices = []
    if offer.price is not None:
        price_msat = offer.price.amount_msat
        prices.append(show_msat(price_msat) if price_msat else "free")
    if offer.metered is not None:
        prices.append(f"{show_msat(offer.metered.amount_msat)}/chunk")
    return " or ".join(prices)


def parse_metered(text: str) -> wire.MeteredPrice:
    """Of `10sat/chunk`, `10sat`, `10` or `500msat/chunk`. Raises UsageWrong."""
    words = text.strip().lower().replace("_", "").replace(" ", "")
    found = _PER_CHUNK.fullmatch(words)
    if found is None:
        raise UsageWrong(f"{text!r} is no price of a chunk. Write 10sat/chunk or 500msat/chunk.")
    amount_msat = int(found[1]) * (1 if found[2] == "msat" else MSAT_PER_SAT)
    if not 1 <= amount_msat <= METERED_MSAT_MAX:
        raise UsageWrong(f"A chunk costs from 1 msat to {show_msat(METERED_MSAT_MAX)}, not {text!r}.")
    return wire.MeteredPrice(amount_msat=amount_msat)
