"""A batch of a thousand payouts on a real node: built, and checked when it comes back signed.

The operator's wallet does the same by itself as the reference: it chooses coins, builds and signs a
transaction with the same outputs, and its node says if it would take it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from bench.report import Line
from payments.batch_store import Batch
from payments.payout import PAYOUTS_PER_BATCH_MAX
from regtest.node import btc
from regtest.world import RegtestWorld
from tests.hosted_shop import FEERATE_SAT_KVB, HostedShop, open_hosted_till

PAYOUTS = PAYOUTS_PER_BATCH_MAX
SALES = 40
PAYOUT_SAT = 20_000
BATCH_S_MAX = 5

T = TypeVar("T")


async def lines(*, tiny: bool = False) -> list[Line]:
    count, sales = (10, 2) if tiny else (PAYOUTS, SALES)
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        # One coin is not enough, nor are all needed.
        price_sat = PAYOUT_SAT * count * 5 // (4 * sales)
        async with (
            RegtestWorld() as world,
            open_hosted_till(world, Path(folder), hosted={"depth": 1}) as shop,
        ):
            await shop.sell(price_sat=price_sat, count=sales)
            addresses = [await shop.new_address() for _ in range(count)]
            for address in addresses:
                await shop.request(PAYOUT_SAT, address=address)
            theirs_s = await _node_alone_s(shop, addresses)
            build_s, batch_id = await _timed(shop.build)
            psbt = await shop.services.batches.export(batch_id)
            sign_s, signed = await _timed(lambda: shop.sign_outside(psbt))
            check_s, _ = await _timed(lambda: shop.services.batches.import_signed(batch_id, signed))
            batch: Batch = await shop.batch(batch_id)
            await _check(shop, batch, count)
    ours_s = build_s + check_s
    return [
        Line(
            f"{count:,} payouts built and checked, {len(batch.inputs)} coins",
            f"{ours_s:.2f} s ({build_s:.2f} + {check_s:.2f})",
            f"{theirs_s:.2f} s (walletcreatefundedpsbt, signed and tested)",
            f"{ours_s / theirs_s:.2f}",
            f"<= {BATCH_S_MAX} s",
            ours_s <= BATCH_S_MAX,
        ),
        Line("the same, signed by the node's wallet in between", f"{ours_s + sign_s:.2f} s"),
    ]


async def _node_alone_s(shop: HostedShop, addresses: list[str]) -> float:
    """Nothing is sent, and no coin is locked."""
    outputs = [{address: btc(PAYOUT_SAT)} for address in addresses]
    options = {
        "fee_rate": FEERATE_SAT_KVB // 1_000,
        "subtractFeeFromOutputs": list(range(len(addresses))),
    }
    started_at = time.perf_counter()
    funded = await shop.keys.rpc("walletcreatefundedpsbt", [], outputs, 0, options)
    signed = await shop.keys.rpc("walletprocesspsbt", funded["psbt"])
    final = await shop.world.outside.rpc("finalizepsbt", signed["psbt"])
    (told,) = await shop.world.outside.rpc("testmempoolaccept", [final["hex"]])
    assert told["allowed"], told
    return time.perf_counter() - started_at


async def _check(shop: HostedShop, batch: Batch, count: int) -> None:
    """It is the transaction that was asked for, and a node takes it."""
    raw = batch.newest.raw
    assert raw is not None
    (told,) = await shop.world.outside.rpc("testmempoolaccept", [raw.hex()])
    assert told["allowed"], told
    decoded = await shop.world.outside.rpc("decoderawtransaction", raw.hex())
    assert len(decoded["vout"]) in (count, count + 1)


async def _timed(what: Callable[[], Awaitable[T]]) -> tuple[float, T]:
    started_at = time.perf_counter()
    result = await what()
    return time.perf_counter() - started_at, result
