"""When a node may judge payments: each reason not to, and its edge."""

import pytest
from msgspec.structs import replace

from payments.node_fitness import (
    HEADERS_AHEAD_MAX,
    TIP_AGE_S_MAX,
    ChainInfo,
    MempoolInfo,
    NodeInfo,
    Unfitness,
    fitness,
)

NOW = 1_800_000_000
IN_SYNC = ChainInfo(
    chain="main",
    blocks=900_000,
    headers=900_000,
    best_hash="00" * 32,
    initial_block_download=False,
    tip_time=NOW - 600,
    pruned=False,
)
LOADED = MempoolInfo(loaded=True, size=40_000)


def reason(chain: ChainInfo, *, mempool: MempoolInfo = LOADED, network: str = "mainnet") -> Unfitness | None:
    judged = fitness(NodeInfo(chain=chain, mempool=mempool), NOW, network)
    assert judged.usable == (judged.reason is None)
    assert judged.words
    return judged.reason


def test_a_node_in_sync_is_usable() -> None:
    assert reason(IN_SYNC) is None


def test_a_silent_node_is_unreachable() -> None:
    assert fitness(None, NOW, "mainnet").reason is Unfitness.UNREACHABLE


@pytest.mark.parametrize("network", ["signet", "testnet4", "regtest"])
def test_wrong_network(network: str) -> None:
    assert reason(IN_SYNC, network=network) is Unfitness.WRONG_NETWORK
    assert reason(replace(IN_SYNC, chain=network), network=network) is None


def test_initial_download() -> None:
    assert reason(replace(IN_SYNC, initial_block_download=True)) is Unfitness.INITIAL_DOWNLOAD


def test_headers_ahead_of_blocks() -> None:
    ahead = IN_SYNC.blocks + HEADERS_AHEAD_MAX
    assert reason(replace(IN_SYNC, headers=ahead)) is None
    assert reason(replace(IN_SYNC, headers=ahead + 1)) is Unfitness.BLOCKS_BEHIND


def test_old_tip_counts_everywhere_but_on_regtest() -> None:
    assert reason(replace(IN_SYNC, tip_time=NOW - TIP_AGE_S_MAX)) is None
    old = replace(IN_SYNC, tip_time=NOW - TIP_AGE_S_MAX - 1)
    assert reason(old) is Unfitness.TIP_OLD
    assert reason(replace(old, chain="regtest"), network="regtest") is None


def test_mempool_not_loaded() -> None:
    assert reason(IN_SYNC, mempool=MempoolInfo(loaded=False, size=0)) is Unfitness.MEMPOOL_NOT_LOADED
