"""What payouts pay the network: what the operator has fixed, or the node's estimate; never above the maximum.

Feerates are in sats per 1,000 vbytes.
"""

from bitcache.config import HostedConfig
from bitcache.errors import FeerateUnknown
from payments.bitcoind import Bitcoind

LEAST_SAT_KVB = 1_000
"""Nodes relay nothing below it by default."""
REPLACEMENT_STEP_SAT_KVB = 1_100
"""A replacement pays for its own relay (BIP125, rule 4), and may be a little larger than was estimated."""


async def feerate_now(hosted: HostedConfig, node: Bitcoind) -> int:
    """What a payout pays that is sent now. Raises FeerateUnknown, NodeUnavailable."""
    wanted = hosted.feerate_sat_vb * 1_000 or await node.estimate_feerate(hosted.feerate_blocks)
    if wanted is None:
        raise FeerateUnknown
    return max(LEAST_SAT_KVB, min(wanted, hosted.feerate_max_sat_vb * 1_000))


def bumped(previous_sat_kvb: int, now_sat_kvb: int | None, *, most_sat_kvb: int) -> int | None:
    """What the next version of a batch pays: what is paid now, but a quarter more than before at least.

    `now_sat_kvb`: of `feerate_now`, None if nobody can say. None: a replacement would be above the most.
    Pure.
    """
    least = previous_sat_kvb + REPLACEMENT_STEP_SAT_KVB
    wanted = max(now_sat_kvb or 0, previous_sat_kvb * 5 // 4, least)
    return None if least > most_sat_kvb else min(wanted, most_sat_kvb)
