"""A process that pays out what is ready and kills itself with SIGKILL at a commit point it is told.

As `tests.crashing_server`, whose points it adds to: a moment before and after each question to the node that
signs or sends. It is forked from a process that has loaded all it needs, so that dying costs a moment.
"""

from __future__ import annotations

import asyncio
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bitcache.config import Config
from bitcache.services import open_services
from payments import batch_store
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.payout import BatchState
from payments.payout_batches import PayoutBatches
from payments.tables import payout_batches
from tests.crashing_server import REQUESTS, Points, wrap_database

FEERATES_SAT_KVB = (2_000, 5_000)
"""Of a batch, and of its second version."""


def started(control: Path, config: Config, wallet: tuple[str, Path, str], *, bump: bool) -> ForkServerProcess:
    """`wallet`: its node's address and cookie, and its name."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_main, args=(control, config, wallet, bump))
    process.start()
    return process


def _main(control: Path, config: Config, wallet: tuple[str, Path, str], bump: bool) -> None:
    points = Points(control)
    wrap_database(points)
    wrap_step(points, PayoutWallet, "sign")
    wrap_step(points, Bitcoind, "send_raw_transaction")
    asyncio.run(_pay(config, wallet, bump))


async def _pay(config: Config, wallet: tuple[str, Path, str], bump: bool) -> None:
    """Build, sign, send, as the server's loop and the operator's commands do; again, it goes on."""
    url, cookie, name = wallet
    async with open_services(config) as services, Bitcoind(url, cookie_file=cookie) as node:
        batches = services.batches
        of_wallet = await services.hosted.open()
        built = await services.database.read(
            lambda tx: batch_store.batches(tx, payout_batches.c.state == BatchState.BUILT)
        )
        batch_id = built[0].id if built else None
        if batch_id is None:
            batch_id = await batches.build(feerate_sat_kvb=FEERATES_SAT_KVB[0], wallet=of_wallet)
            assert batch_id is not None, "nothing to pay out"
        await _send(batches, batch_id, PayoutWallet(node, name))
        if bump:
            batch = await services.database.read(lambda tx: batch_store.load_batch(tx, batch_id))
            if len(batch.versions) == 1:
                await batches.bump(batch_id, feerate_sat_kvb=FEERATES_SAT_KVB[1])
            await _send(batches, batch_id, PayoutWallet(node, name))


async def _send(batches: PayoutBatches, batch_id: str, signer: PayoutWallet) -> None:
    await batches.sign(batch_id, signer)
    refusal = await batches.offer(batch_id)
    assert refusal is None, refusal


def wrap_step(points: Points, owner: type, name: str) -> None:
    step = getattr(owner, name)

    async def stepped(*arguments: Any) -> Any:
        points.reach(f"{name} before", REQUESTS)
        answer = await step(*arguments)
        points.reach(f"{name} after", REQUESTS)
        return answer

    setattr(owner, name, stepped)
