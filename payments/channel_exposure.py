"""How much the payee risks on a deposit that may still be double-spent. Pure."""

from dataclasses import dataclass

from payments.money import MAX_MONEY_SAT, Sat


@dataclass(frozen=True, slots=True)
class Exposure:
    """How much a channel may have paid in all, by the depth of its funding, in sats."""

    unconfirmed_sat: Sat
    unconfirmed_total_sat: Sat
    """Over all channels without a confirmation."""
    one_sat: Sat
    """From 1 confirmation."""
    three_sat: Sat
    """From 3; from 6 there is no limit."""

    def limit_sat(self, confirmations: int) -> Sat:
        if confirmations >= 6:
            return MAX_MONEY_SAT
        if confirmations >= 3:
            return self.three_sat
        return self.one_sat if confirmations >= 1 else self.unconfirmed_sat
