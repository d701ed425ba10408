"""Is our node fit to judge payments? Pure: what the node says of itself, time and network are arguments.

While it is not, no invoice is made and pages say not to pay now; access already paid for goes on.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from msgspec import Struct, field

TIP_AGE_S_MAX = 3 * 3600
"""A tip older than this means that our node is cut off: ten minutes is the mean time between blocks."""
HEADERS_AHEAD_MAX = 1
"""One header without its block is a block on its way to us, not a node that lags."""

CHAIN_OF_NETWORK = {"mainnet": "main", "testnet4": "testnet4", "signet": "signet", "regtest": "regtest"}
"""Our configuration's name of a network -> `getblockchaininfo.chain`."""


class ChainInfo(Struct, frozen=True, kw_only=True):
    """`getblockchaininfo`."""

    chain: str
    blocks: int
    """Height of the tip."""
    headers: int
    best_hash: str = field(name="bestblockhash")
    initial_block_download: bool = field(name="initialblockdownload")
    tip_time: int = field(name="time")
    """The tip's block time, Unix seconds."""
    pruned: bool
    prune_height: int | None = field(default=None, name="pruneheight")
    """The lowest height whose block is kept; None if all are."""


class MempoolInfo(Struct, frozen=True, kw_only=True):
    """`getmempoolinfo`."""

    loaded: bool
    """False while a starting node reads its saved mempool: absence from it proves nothing yet."""
    size: int
    """Number of transactions."""


class NodeInfo(Struct, frozen=True, kw_only=True):
    """What `fitness` judges, taken in one round trip."""

    chain: ChainInfo
    mempool: MempoolInfo


class Unfitness(StrEnum):
    UNREACHABLE = "unreachable"
    WRONG_NETWORK = "wrong-network"
    INITIAL_DOWNLOAD = "initial-download"
    BLOCKS_BEHIND = "blocks-behind"
    TIP_OLD = "tip-old"
    MEMPOOL_NOT_LOADED = "mempool-not-loaded"


@dataclass(frozen=True, slots=True)
class NodeFitness:
    """`reason` is None exactly when the node is usable; `words` tell the operator what to do."""

    reason: Unfitness | None
    words: str

    @property
    def usable(self) -> bool:
        return self.reason is None


def fitness(info: NodeInfo | None, now: int, network: str) -> NodeFitness:
    """Whether payments may be judged by a node that says `info` at `now` (Unix seconds).

    `info` is None if the node does not answer; `network` is one of CHAIN_OF_NETWORK.
    """
    reason = _unfitness(info, now, network)
    return NodeFitness(
        reason, "the node is in sync" if reason is None else _words(reason, info, now, network)
    )


def _unfitness(info: NodeInfo | None, now: int, network: str) -> Unfitness | None:
    if info is None:
        return Unfitness.UNREACHABLE
    chain = info.chain
    if chain.chain != CHAIN_OF_NETWORK[network]:
        return Unfitness.WRONG_NETWORK
    if chain.initial_block_download:
        return Unfitness.INITIAL_DOWNLOAD
    if chain.headers - chain.blocks > HEADERS_AHEAD_MAX:
        return Unfitness.BLOCKS_BEHIND
    if network != "regtest" and now - chain.tip_time > TIP_AGE_S_MAX:
        return Unfitness.TIP_OLD
    if not info.mempool.loaded:
        return Unfitness.MEMPOOL_NOT_LOADED
    return None


def _words(reason: Unfitness, info: NodeInfo | None, now: int, network: str) -> str:
    if info is None:
        return (
            "the node does not answer: see that it runs, and that its RPC address and cookie file are right"
        )
    chain = info.chain
    match reason:
        case Unfitness.UNREACHABLE:
            raise AssertionError("a node that answered is reachable")
        case Unfitness.WRONG_NETWORK:
            return (
                f"the node is on {chain.chain}, not on {network}: start it on {network}, or change `network`"
            )
        case Unfitness.INITIAL_DOWNLOAD:
            return (
                f"the node is downloading the chain, at block {chain.blocks} of {chain.headers}: wait for it"
            )
        case Unfitness.BLOCKS_BEHIND:
            return f"the node is at block {chain.blocks} of {chain.headers}: wait for it to catch up"
        case Unfitness.TIP_OLD:
            hours = (now - chain.tip_time) // 3600
            return f"the node's newest block is {hours} h old: see its clock, and its peers (`getpeerinfo`)"
        case Unfitness.MEMPOOL_NOT_LOADED:
            return "the node is still loading its mempool: wait, this takes a minute or two"
        case _ as never:
            assert_never(never)
