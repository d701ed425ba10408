"""SIGKILL at every commit point of a payout, and whoever comes next goes on: it is paid once.

The points are found by running a payout once and noting them, so that a new one is covered by itself. Here
one payout dies at all of them in turn; `make soak-crash` has one die at each, and its replacement too, in an
order that SEED decides.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from payments import ledger
from payments.payout import State
from regtest.world import RegtestWorld
from tests import crashing_payouts
from tests.crashing_server import REQUESTS, Armed
from tests.functional_crash_points import SEED, SOAK, Point
from tests.hosted_shop import HostedShop, open_hosted_till

PAYOUT_SAT = 5_000
ENDS_S_MAX = 60


@dataclass
class PayoutDrill:
    shop: HostedShop
    control: Path
    runs: int = 0
    paid: int = 0

    async def run(self, point: Point | None, *, bump: bool = False) -> list[Point]:
        """Let a process pay, and die at `point`; the points it came by."""
        self.runs += 1
        label = f"run {self.runs}"
        Armed(label, REQUESTS, *(point or ("", 0))).write(self.control)
        outside, config = self.shop.world.outside, self.shop.services.config
        wallet = (outside.rpc_url, outside.cookie_path, self.shop.keys.name)
        process = crashing_payouts.started(self.control, config, wallet, bump=bump)
        await asyncio.to_thread(process.join, ENDS_S_MAX)
        (self.control / "armed").unlink()
        assert process.exitcode == (0 if point is None else -SIGKILL), f"{process.exitcode} at {point}"
        noted = (line.split("\t") for line in (self.control / "passed").read_text().splitlines())
        times: Counter[str] = Counter()
        found: list[Point] = []
        for run, name in noted:
            if run == label:
                times[name] += 1
                found.append((name, times[name]))
        return found

    async def pay(self, *points: Point, bump: bool = False) -> list[Point]:
        """A payout that dies at each of these points, and then is done; the points its last run came by."""
        payout = await self.shop.request(PAYOUT_SAT)
        for point in points:
            await self.run(point, bump=bump)
            await self.shop.seen()
        found = await self.run(None, bump=bump)
        batch_id = (await self.shop.payout(payout.id)).batch_id
        assert batch_id is not None
        txid = await self.shop.sent(batch_id)
        await self.shop.mine()
        self.paid += 1
        batch = await self.shop.batch(batch_id)
        assert (len(batch.versions), batch.mined) == (1 + bump, batch.newest), points
        assert batch.newest.txid == txid, points
        assert (await self.shop.payout(payout.id)).state is State.DONE, points
        assert await self.shop.received_sat(payout.address) == PAYOUT_SAT - batch.newest.fee_sat, points
        # No other transaction took anything, and nothing is set aside any more.
        left_sat = 200_000 - self.paid * PAYOUT_SAT
        assert await self.shop.agree() == left_sat, points
        seller = ledger.seller(self.shop.seller_id)
        assert await self.shop.balances_sat() == {"chain": -left_sat, seller: left_sat}, points
        return found


@asynccontextmanager
async def open_payout_drill(world: RegtestWorld, folder: Path) -> AsyncIterator[PayoutDrill]:
    control = folder / "control"
    control.mkdir()
    # In no batch does an address stay unused: each change goes to the next one.
    async with open_hosted_till(world, folder, hosted={"depth": 1, "fee_share_percent_max": 50}) as shop:
        await shop.sell(price_sat=200_000)
        yield PayoutDrill(shop, control)


async def test_killed_at_every_commit_point_a_payout_is_paid_once(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_payout_drill(world, tmp_path) as drill:
        points = await drill.pay()
        print(f"payout: {len(points)} points: {', '.join(f'{name} ({time})' for name, time in points)}")
        assert {name for name, _ in points} >= {
            "payments.payout_planning.keep before commit",
            "sign after",
            "payments.payout_batches.sign after commit",
            "send_raw_transaction before",
            "send_raw_transaction after",
        }
        await drill.pay(*points)
        if not SOAK:
            return
        rng = random.Random(SEED)
        for point in rng.sample(points, len(points)):
            await drill.pay(point)
        bumping = await drill.pay(bump=True)
        for point in rng.sample(bumping, len(bumping)):
            await drill.pay(point, bump=True)
