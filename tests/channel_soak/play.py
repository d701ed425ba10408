"""Play a soak of channels: payments under SIGKILL of server and payers and under reorgs, then every way a
channel can end, and then the books.

    outcome = await play(seed, size, loud=True)
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bitcache.channel_operations import ask_to_close
from bitcache.services import now
from payments.channel import CLOSE_MARGIN_BLOCKS
from regtest.node import sat, wait_until
from tests.channel_soak import checks
from tests.channel_soak.evidence import Evidence, Sale
from tests.channel_soak.house import House, open_house
from tests.channel_soak.people import Deposit, Payer, deposit, kill_all
from tests.channel_soak.plan import Ending, Fault, Kill, PayerKill, Plan, Reorg, Size, plan_of
from tests.channel_soak.server import DEPTH, FEE_PPM

APART_BLOCKS = 12
"""Between the expiries of what is closed at its margin and of what is refunded."""
ADDRESSES = 2_000
"""Of the operator's descriptor, for the node's own count of its coins."""
STALLED_S = 240.0
POLL_S = 0.02
ALL_OF = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM channels WHERE id IN ({}) AND state <> ?)"


@dataclass
class Outcome:
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    evidence: Evidence | None = None


async def play(seed: int, size: Size, *, loud: bool, keep: Path | None = None) -> Outcome:
    plan = plan_of(seed, size)
    async with open_house(size, random.Random(seed), loud=loud) as house:
        game = Game(house, plan)
        try:
            for act in (game.open, game.pay, game.rob, game.close, game.expire):
                await act()
                if house.wrong:
                    return Outcome(house.wrong, game.counts)
        except Exception as exc:
            # What was seen to be wrong before may be why.
            if not house.wrong:
                raise
            house.blame(f"it came to an end by {exc!r}")
            return Outcome(house.wrong, game.counts)
        finally:
            await kill_all(game.payers)
        await game.compare()
        evidence = await game.evidence(ended=True)
        for line in checks.ended(house.server.database_file, evidence):
            house.blame(line)
        for line in house.server.log().splitlines():
            if " ERROR " in line or "Traceback" in line:
                house.blame(f"the server: {line}")
        game.counts["server deaths"] = house.kills
        game.counts["payer deaths"] = sum(payer.deaths for payer in game.payers)
        if keep is not None:
            with (
                closing(sqlite3.connect(house.server.database_file)) as source,
                closing(sqlite3.connect(keep)) as copy,
            ):
                source.backup(copy)
        return Outcome(house.wrong, game.counts, evidence)


class Game:
    def __init__(self, house: House, plan: Plan) -> None:
        self.house = house
        self.plan = plan
        self.payers: list[Payer] = []
        self.counts: Counter[str] = Counter()
        self._lost = Deposit("", {})
        self._done = 0
        self._kills = 0
        """Of the server, ordered until now."""
        self._moved_at = time.monotonic()
        house.on_death = self._look_at_what_is_left

    # Opening

    async def open(self) -> None:
        """Contracts, deposits, one block for all but what will be lost."""
        # The one to be refunded expires last: at the margin of the others the server is still there.
        order = sorted(enumerate(self.plan.endings), key=lambda one: one[1] is Ending.REFUNDED)
        announced: dict[int, tuple[Payer, str]] = {}
        for number, ending in order:
            if ending is Ending.REFUNDED:
                for _ in range(APART_BLOCKS):
                    await self.house.world.mine_exactly((), sync=False)
                # Terms follow the server's own tip.
                await self.house.seen()
            announced[number] = await Payer.announced(self.house, f"payer {number}", ending)
        self.payers = [announced[number][0] for number in range(len(order))]
        addresses = [announced[number][1] for number in range(len(order))]
        lost = self.plan.endings.index(Ending.LOST)
        amounts = dict(zip(addresses, self.plan.deposits_sat, strict=True))
        sure = {to: amount for to, amount in amounts.items() if to != addresses[lost]}
        deposits = await deposit(self.house, sure)
        await self.house.world.mine()
        self._lost = await deposit(self.house, {addresses[lost]: amounts[addresses[lost]]}, robbable=True)
        for payer, address, tasks in zip(self.payers, addresses, self.plan.tasks, strict=True):
            where = deposits if address in sure else self._lost
            payer.deposited(where.txid, where.vouts[address], amounts[address], tasks)
            payer.start()
        self.house.say(f"{len(self.payers)} channels have their deposits: {', '.join(self.plan.endings)}")

    # Paying

    async def pay(self) -> None:
        """Until every payer has everything."""
        faults = list(self.plan.faults)
        while not all(payer.finished for payer in self.payers):
            await self.house.supervise()
            for payer in self.payers:
                payer.look()
            self._note_progress()
            # One death at a time: who is doomed or dead cannot die again.
            while faults and self._done >= faults[0].at and self._alive:
                await self._befall(faults.pop(0))
            if self.house.wrong:
                break
            await asyncio.sleep(POLL_S)
        self.counts["payments"] = self._done
        for payer in self.payers:
            self.counts += payer.journal.refused
        await self._died()
        self._look_at_what_is_left()
        self.house.say(f"all {self._done} payments are done, {len(faults)} faults were left")

    def _note_progress(self) -> None:
        done = sum(len(payer.journal.done) for payer in self.payers)
        if done // 250 > self._done // 250:
            self.house.say(f"{done} payments")
        if done > self._done:
            self._done, self._moved_at = done, time.monotonic()
        if time.monotonic() - self._moved_at > STALLED_S:
            raise TimeoutError(f"{done} payments, and no more for {STALLED_S:.0f} s")

    async def _befall(self, fault: Fault) -> None:
        match fault:
            case Kill(at, 0):
                self._kills += 1
                self.house.say(f"after {at}: SIGKILL of the server")
                await self.house.server.kill()
            case Kill(at, moment):
                self.house.say(f"after {at}: SIGKILL of the server, {moment} moments later")
                self._doom([moment])
            case PayerKill(at, number):
                running = [payer for payer in self.payers if not payer.finished]
                if running:
                    payer = running[number % len(running)]
                    self.house.say(f"after {at}: SIGKILL of {payer.name}")
                    await asyncio.to_thread(payer.kill)
            case Reorg(at, depth):
                self.house.say(f"after {at}: a reorg, {depth} deep")
                for _ in range(depth):
                    await self.house.world.mine_exactly(())
                await self.house.world.reorg(depth + 1, drop=[self._lost.txid])
                self.counts["reorgs"] += 1

    def _look_at_what_is_left(self) -> None:
        """At any moment: what payers have on paper, and then what the database has."""
        told = [payer.paper() for payer in self.payers if payer.journal.opened]
        evidence = Evidence(self._sales, tuple(told), FEE_PPM)
        for line in checks.paying(self.house.server.database_file, evidence):
            self.house.blame(line)
        self.counts["looks"] += 1

    # Endings

    async def rob(self) -> None:
        """The deposit that no block has is spent elsewhere: what was sold for it is the operator's loss."""
        await self.house.world.mine_exactly([self._lost.double_spend])
        await self._all(self._of(Ending.LOST), "closed")
        self.house.say("a deposit was double-spent")

    async def close(self) -> None:
        """What payers and operator ask for, kills in between; a block has it, has it not, has it again."""
        agreed, ordered = self._of(Ending.COOPERATIVE), self._of(Ending.OPERATOR)
        # Deep enough to be closed together.
        await self.house.world.mine(6)
        await self.house.seen()
        moments = list(self.plan.close_moments)
        for payer in agreed:
            self._doom(moments)
            await payer.agree_to_close()
        ids = [payer.channel.id for payer in ordered]
        self._doom(moments)
        await self.house.services.database.write(lambda tx: ask_to_close(tx, ids, now=now()))
        while moments or not self._alive:
            await self._died()
            self._doom(moments)
        both = [*agreed, *ordered]
        await self._closes_sent(both)
        await self.house.world.mine()
        await self._all(both, "closed")
        await self.house.world.reorg(1, keep_transactions=False)
        await self._all(both, "closing")
        self.house.say(f"{len(both)} channels were closed, and a reorg took it back")
        await self._closes_sent(both)
        await self.house.world.mine(DEPTH)
        await self._all(both, "closed")

    async def expire(self) -> None:
        """Channels that nobody closed: near their expiry the server does; after it the payer takes all."""
        at_margin, refunded = self._of(Ending.MARGIN), self._of(Ending.REFUNDED)
        await self._mine_to(max(p.contract.expiry_height for p in at_margin) - CLOSE_MARGIN_BLOCKS)
        await self._closes_sent(at_margin)
        await self.house.world.mine()
        await self._all(at_margin, "closed")
        self.house.say(f"{len(at_margin)} channels were closed near their expiry")
        self._kills += 1
        await self.house.server.kill()
        await self._mine_to(max(p.contract.expiry_height for p in refunded))
        for payer in refunded:
            await payer.refund()
        await self.house.world.mine(DEPTH)
        await self._all(refunded, "closed")
        await self.house.seen()
        self.house.say(f"{len(refunded)} channels were refunded while the server was dead")

    @property
    def _alive(self) -> bool:
        """No death was ordered that has not come."""
        return self.house.kills == self._kills

    def _doom(self, moments: list[int]) -> None:
        if moments and self._alive:
            self._kills += 1
            self.house.server.doom(moments.pop())

    async def _died(self) -> None:
        async def again() -> bool:
            await self.house.supervise()
            return self._alive

        await wait_until(again, "the server to die and be there again", timeout_s=60, poll_s=POLL_S)

    def _of(self, ending: Ending) -> list[Payer]:
        return [payer for payer in self.payers if payer.ending is ending]

    async def _mine_to(self, height: int) -> None:
        await self.house.world.mine(height - int(await self.house.world.outside.rpc("getblockcount")))

    async def _closes_sent(self, payers: Iterable[Payer]) -> None:
        """Each deposit is spent in the outside mempool."""
        wanted = [payer.channel.outpoint for payer in payers]

        async def sent() -> bool:
            await self.house.supervise()
            outputs = [await self.house.world.outside.rpc("gettxout", *one) for one in wanted]
            return outputs == [None] * len(wanted)

        await wait_until(sent, "closes to be sent", timeout_s=120, poll_s=0.1)

    async def _all(self, payers: Sequence[Payer], state: str) -> None:
        """The server says so of all of them."""
        query = ALL_OF.format(",".join("?" * len(payers)))
        ids = [payer.channel.id for payer in payers]
        await self.house.until(query, *ids, state, what=f"{len(payers)} channels to be {state}")

    # Books

    async def compare(self) -> None:
        """The operator's own look finds nothing that is not explained."""
        report = await self.house.services.reconciling.look(tell=lambda words: None)
        assert report is not None
        if not report.explained or report.difference_sat:
            self.house.blame(f"reconcile: {report}")

    async def evidence(self, *, ended: bool) -> Evidence:
        outside = self.house.world.outside
        wanted = [{"desc": self.house.server.settings["HOSTED_DESCRIPTOR"], "range": [0, ADDRESSES]}]
        scanned = await outside.rpc("scantxoutset", "start", wanted)
        told = [await payer.told(ended=ended) for payer in self.payers]
        return Evidence(self._sales, tuple(told), FEE_PPM, wallet_sat=sat(scanned["total_amount"]))

    @property
    def _sales(self) -> dict[str, Sale]:
        return {
            file_id: Sale(goods.sold.offer_id, goods.seller_id, goods.price_msat)
            for goods in self.house.goods
            for file_id in goods.file_ids
        }
