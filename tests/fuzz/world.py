"""The second pass: a server with a real node, so that requests reach wallets, invoices and payments."""

from __future__ import annotations

import asyncio
from random import Random

from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.fuzz.api import ApiFuzz, Findings
from tests.fuzz.stock import Stock
from tests.fuzz.target import Target

ANSWER_S_MAX = 60
PRICE_SAT = 5_000


def fuzz_with_node(number: int, cases: int) -> tuple[Findings, list[str]]:
    """(what it saw, what the log has of bugs)"""
    return asyncio.run(_fuzz_with_node(number, cases))


async def _fuzz_with_node(number: int, cases: int) -> tuple[Findings, list[str]]:
    async with RegtestWorld() as world:
        settings = {
            "NODE_RPC_URL": world.server.rpc_url,
            "NODE_RPC_COOKIE_FILE": str(world.server.cookie_path),
            "NODE_ZMQ_SEQUENCE_URL": world.server.zmq_url,
            "NODE_POLL_INTERVAL_S": "1",
            "PRICE_HOLD_S": "5",
        }
        buying = _Buying(world, asyncio.get_running_loop(), Random(number))
        await buying.open()

        def run() -> tuple[Findings, list[str]]:
            with Target(settings, ready="/readyz") as target:
                fuzz = ApiFuzz(target, number=number, trade=buying.trade)
                return fuzz.run(cases), target.troubles()

        return await asyncio.to_thread(run)


class _Buying:
    """What honest people do here: sell for money, pay, mine. Called from the fuzzer's thread."""

    def __init__(self, world: RegtestWorld, loop: asyncio.AbstractEventLoop, random: Random) -> None:
        self._world = world
        self._loop = loop
        self._random = random
        self._payer = OutsideWallet(world.outside, MINER)

    async def open(self) -> None:
        seller = await OutsideWallet.create(self._world, "fuzzed-seller")
        self._descriptor = await seller.descriptor()

    def trade(self, stock: Stock) -> None:
        stock.trade()
        invoice = stock.trade(price_sat=PRICE_SAT, descriptor=self._descriptor)
        stock.keep("payout_descriptor", self._descriptor)
        # Mined at once, or else requests for what is paid and unconfirmed are held for half a minute.
        if self._random.random() < 0.7:
            paying = self._pay(invoice["address"], invoice["due_sat"])
            asyncio.run_coroutine_threadsafe(paying, self._loop).result(ANSWER_S_MAX)

    async def _pay(self, address: str, amount_sat: int) -> None:
        await self._payer.pay([(address, amount_sat)], feerate_sat_vb=20)
        await self._world.mine(1)
