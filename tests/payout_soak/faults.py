"""What the chain does in a soak: blocks, reorgs with and without the payouts, money spent behind our back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regtest.errors import RpcRefused
from regtest.node import btc, sat
from regtest.world import MINER
from tests.drill.payer import Payment
from tests.payout_soak.house import House
from tests.payout_soak.people import Buyer
from tests.payout_soak.steps import Mines, Reorgs, SpendsForeign

FOREIGN_FEE_SAT = 4_000
ROBBED_AMONG = 40
"""Buyers that came last, among whom robbers are looked for."""


@dataclass(frozen=True)
class Foreign:
    """A transaction of the operator's that is no payout. Whether it was mined, the chain says."""

    txid: str
    spent_sat: int


async def mine(house: House, step: Mines) -> str:
    sync = house.node_there
    if step.full:
        waiting = len(await house.world.outside.rpc("getrawmempool"))
        await house.world.mine(step.blocks, sync=sync)
        return f"{step.blocks} blocks with {waiting} transactions"
    for _ in range(step.blocks):
        await house.world.mine_exactly((), sync=False)
    if sync:
        await house.world.wait_synced()
    return f"{step.blocks} empty blocks"


async def reorg(house: House, step: Reorgs, buyers: Sequence[Buyer], payouts: set[str]) -> str:
    """`payouts`: txids of versions of batches."""
    outside = house.world.outside
    robbed: list[tuple[Buyer, Payment]] = []
    for buyer in reversed(buyers[-ROBBED_AMONG:]):
        if len(robbed) == step.robs:
            break
        if buyer.payments and 1 <= await house.payer.depth(buyer.payments[-1]) <= step.depth:
            buyer.robbed = True
            robbed.append((buyer, buyer.payments[-1]))
    rivals = [await house.payer.robbery(payment) for _, payment in robbed]
    height = await outside.rpc("getblockcount")
    await outside.rpc("invalidateblock", await outside.rpc("getblockhash", height - step.depth + 1))
    mempool = await outside.rpc("getrawmempool", True)
    dropped = {payment.txid for _, payment in robbed}
    if step.leaves_payouts:
        dropped |= payouts & set(mempool)
    for txid in list(dropped):
        if txid in mempool:
            dropped |= set(await outside.rpc("getmempooldescendants", txid))
    kept = set(mempool) - dropped if step.keeps else set()
    ordered = sorted(kept, key=lambda txid: int(mempool[txid]["ancestorcount"]))
    await house.world.mine_exactly([*ordered, *(rival.raw for rival in rivals)], sync=False)
    for _ in range(step.depth):
        await house.world.mine_exactly((), sync=False)
    if house.node_there:
        await house.world.wait_synced()
    undone, again = payouts & set(mempool), payouts & set(ordered)
    return (
        f"{step.depth} deep: {len(mempool)} transactions undone, {len(undone)} payouts among them; "
        f"{len(ordered)} mined again, {len(again)} payouts among them; {len(robbed)} robbed"
    )


async def spend_foreign(house: House, step: SpendsForeign, taken: set[tuple[str, int]]) -> Foreign | None:
    """One coin of the wallet that is none of `taken`, to the operator's pocket."""
    outside = house.world.outside
    coins = sorted(await house.keys.rpc("listunspent", 1), key=lambda coin: (coin["amount"], coin["txid"]))
    coins = [
        coin
        for coin in coins
        if sat(coin["amount"]) > 2 * FOREIGN_FEE_SAT and (coin["txid"], coin["vout"]) not in taken
    ]
    if not coins:
        return None
    coin = coins[step.coin % len(coins)]
    inputs = [{"txid": coin["txid"], "vout": coin["vout"], "sequence": 0xFFFFFFFD}]
    pocket = await outside.rpc("getnewaddress", wallet=MINER)
    amount_sat = sat(coin["amount"]) - FOREIGN_FEE_SAT
    bare = await outside.rpc("createrawtransaction", inputs, [{pocket: btc(amount_sat)}])
    signed = await house.keys.rpc("signrawtransactionwithwallet", bare)
    assert signed["complete"], signed
    if step.mined:
        await house.world.mine_exactly([signed["hex"]], sync=house.node_there)
    else:
        try:
            await outside.rpc("sendrawtransaction", signed["hex"])
        except RpcRefused:
            # A batch of a higher fee is there already.
            return None
    txid = (await outside.rpc("decoderawtransaction", signed["hex"]))["txid"]
    return Foreign(txid, sat(coin["amount"]))
