"""Blocks that our node pruned before they were scanned, fetched once more from its peers.

The node keeps the headers, so a peer can give it nothing but the very same block. What it fetches it serves
like any other, until it prunes again.
"""

import asyncio
from collections.abc import AsyncIterator

from payments.bitcoind import Bitcoind
from payments.errors import BlockUnavailable, PeersHaveNotBlock

ANSWER_S_MAX = 30
"""A block of 4 MB from a slow peer."""
LOOK_EVERY_S = 0.1


async def fetch_pruned(node: Bitcoind, *, scanned_height: int) -> AsyncIterator[int]:
    """Have the node fetch what it lacks of the blocks above `scanned_height`; each height in turn.

    Raises PeersHaveNotBlock.
    """
    lowest_kept = (await node.chain_info()).prune_height or 0
    for height in range(scanned_height + 1, lowest_kept):
        block_hash = await node.block_hash(height)
        assert block_hash is not None, "the node knows the headers below what it kept"
        if not await _has(node, block_hash):
            await _fetch(node, block_hash, height)
        yield height


async def _fetch(node: Bitcoind, block_hash: str, height: int) -> None:
    for peer in await node.peers():
        if not peer.has_all_blocks:
            continue
        asked = await node.fetch_block(block_hash, peer.id)
        until = asyncio.get_running_loop().time() + (ANSWER_S_MAX if asked else 0)
        while True:
            if await _has(node, block_hash):
                return
            if asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(LOOK_EVERY_S)
    raise PeersHaveNotBlock(height)


async def _has(node: Bitcoind, block_hash: str) -> bool:
    try:
        await node.raw_block(block_hash)
    except BlockUnavailable:
        return False
    return True
