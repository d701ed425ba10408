"""What takes a deposit back after its channel has expired: a transaction, and what it costs. Pure."""

from dataclasses import dataclass

from coincurve import PrivateKey

from bitcache.client.channel_terms import CLOSE_FEERATE_SAT_VB_MAX
from payments.channel_close import refund_transaction
from payments.channel_errors import AddressInvalid
from payments.channel_script import Channel
from payments.money import Sat
from payments.segwit_address import PREFIXES
from payments.transaction import parse_transaction

FEERATE_SAT_KVB = 5_000
"""Where no server says what is usual."""
FEERATE_SAT_KVB_MIN = 1_000
"""What nodes relay by default."""
FEE_SHARE_MAX = 10
"""One part in so many of a deposit is the most that a fee takes which the payer did not choose."""


@dataclass(frozen=True)
class Refund:
    raw: bytes
    feerate_sat_kvb: int
    fee_sat: Sat
    amount_sat: Sat
    """What comes back."""


def refund(channel: Channel, payer: PrivateKey, script_pubkey: bytes, *, feerate_sat_kvb: int) -> Refund:
    """Raises RefundTooSmall."""
    raw = refund_transaction(channel, payer, script_pubkey, feerate_sat_kvb=feerate_sat_kvb)
    amount_sat = parse_transaction(raw).outputs[0].amount_sat
    return Refund(raw, feerate_sat_kvb, Sat(channel.capacity_sat - amount_sat), Sat(amount_sat))


def cheap_refund(
    channel: Channel, payer: PrivateKey, script_pubkey: bytes, *, told_sat_kvb: int | None
) -> Refund:
    """At the feerate that a server told, if that takes no more than a tenth of the deposit; else at less.

    Never below what nodes relay. Raises RefundTooSmall.
    """
    least = refund(channel, payer, script_pubkey, feerate_sat_kvb=FEERATE_SAT_KVB_MIN)
    share_sat_kvb = channel.capacity_sat // FEE_SHARE_MAX * FEERATE_SAT_KVB_MIN // least.fee_sat
    feerate_sat_kvb = min(told_sat_kvb or FEERATE_SAT_KVB, CLOSE_FEERATE_SAT_VB_MAX * 1_000, share_sat_kvb)
    if feerate_sat_kvb <= FEERATE_SAT_KVB_MIN:
        return least
    return refund(channel, payer, script_pubkey, feerate_sat_kvb=feerate_sat_kvb)


def network_of_address(address: str) -> str:
    """A network that has such addresses: those that share a prefix share how keys are written.

    Raises AddressInvalid.
    """
    prefix = address.lower().rpartition("1")[0]
    for network, its_prefix in PREFIXES.items():
        if prefix == its_prefix:
            return network
    raise AddressInvalid("Give a segwit address: bc1..., tb1... or bcrt1...")
