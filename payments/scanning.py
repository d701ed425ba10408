"""A block, read for what is watched: payments to us, and spends of the operator's wallet."""

import asyncio
from collections.abc import Container
from dataclasses import replace

from payments.block import ParsedBlock, scan_block
from payments.watch_list import WatchList


async def scanned(
    raw: bytes, watch_list: WatchList, *, scripts: Container[bytes] | None = None
) -> ParsedBlock:
    """The transactions that matter; what pays us is watched from here on. `scripts` are all that are watched,
    unless given. Raises BlockMalformed."""
    block = await asyncio.to_thread(
        scan_block,
        raw,
        watched_scripts=watch_list.scripts if scripts is None else scripts,
        watched_outpoints=watch_list.outpoints,
    )
    fresh = watch_list.note_outputs(block)
    if not fresh or not watch_list.hosted:
        return block
    # What pays the wallet may be spent in the very same block, before anybody watched for it.
    spends = await asyncio.to_thread(scan_block, raw, watched_scripts=(), watched_outpoints=fresh)
    known = {transaction.txid for transaction in block.transactions}
    late = tuple(transaction for transaction in spends.transactions if transaction.txid not in known)
    return replace(block, transactions=(*block.transactions, *late)) if late else block
