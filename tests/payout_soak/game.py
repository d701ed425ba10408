"""The steps of a story, carried out one after the other."""

from __future__ import annotations

from collections import Counter
from typing import assert_never

import aiohttp

from payments import ledger
from payments.batch_store import Batch
from payments.payout import BatchState, Payout, State
from regtest.errors import RpcRefused
from tests.payout_soak import faults, people, steps
from tests.payout_soak.faults import Foreign
from tests.payout_soak.front_desk import FrontDesk
from tests.payout_soak.house import House
from tests.payout_soak.office import Office
from tests.payout_soak.people import Buyer, NodeOffline, Seller
from tests.payout_soak.steps import Paying, Step

OWED = (Paying.TOO_LITTLE, Paying.OVER, Paying.TOP_UP, Paying.LATE)
"""Who pays so has something to ask back, more often than not."""


class Game:
    def __init__(self, house: House, sellers: list[Seller], http: aiohttp.ClientSession) -> None:
        self.house = house
        self.front = FrontDesk(house, http)
        self.office = Office(house, self.front, sellers)
        self.sellers = sellers
        self.buyers: list[Buyer] = []
        self.foreign: list[Foreign] = []
        self.counts: Counter[str] = Counter()
        self._late: list[Buyer] = []
        self._waiting: list[steps.Buys] = []
        """Buyers to whom the server gave no invoice, its node being down."""

    async def turn(self, number: int, step: Step) -> None:
        house = self.house
        await house.supervise()
        await house.tell_time()
        said = await self._do(step)
        house.say(f"{number:4} {step}: {said}")
        self.counts[type(step).__name__] += 1
        if house.node_down_for:
            house.node_down_for -= 1
            if not house.node_down_for:
                await house.node_in()
                house.say("      the node is there again")
        await house.settled()
        if house.node_there:
            await self.serve_waiting()

    async def serve_waiting(self) -> None:
        """Buyers who were turned away come again."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            await self._buy(one)

    async def _do(self, step: Step) -> str:
        house, office, front = self.house, self.office, self.front
        match step:
            case steps.Buys():
                return await self._buy(step)
            case steps.Mines():
                return await faults.mine(house, step)
            case steps.Reorgs():
                return await self._reorg(step)
            case steps.AsksPayout():
                ours = self.buyers[0].address if self.buyers else await self._deposit_address()
                seller = self._seller(step.seller)
                return await front.ask(
                    seller, percent=step.percent, twice=step.twice, bad=step.bad, ours=ours
                )
            case steps.PlansPayouts():
                return await front.plan(self._seller(step.seller), step.threshold_sat)
            case steps.ClaimsRefund():
                claimants = [one for one in self.buyers if one.plan.paying in OWED] or self.buyers
                if not claimants:
                    return "nobody"
                buyer = claimants[step.buyer % len(claimants)]
                return await front.claim(buyer, elsewhere=step.elsewhere)
            case steps.Decides():
                return await self._decide(step)
            case steps.Cancels():
                return await self._cancel(step.payout)
            case steps.Withdraws():
                return await office.withdraw(step.percent)
            case steps.Deposits():
                return await self.deposit(step.amount_sat)
            case steps.Builds():
                return await office.build(step.feerate_sat_vb, twice=step.twice)
            case steps.Signs():
                return await self._sign(step)
            case steps.Bumps():
                batch = await self._batch(step.batch)
                return (
                    "no batch"
                    if batch is None
                    else await office.bump(batch, step.more_sat_vb, twice=step.twice)
                )
            case steps.Abandons():
                batch = await self._batch(step.batch)
                return "no batch" if batch is None else await office.abandon(batch)
            case steps.SpendsForeign():
                spent = await self._spend_foreign(step)
                if spent is None:
                    return "no coin"
                self.foreign.append(spent)
                office.foreign.add(spent.txid)
                return f"{spent.spent_sat:,} sat by {spent.txid}"
            case steps.Explains():
                return await self._explain(step.whose)
            case steps.Reconciles():
                return await office.reconcile()
            case steps.ClockMoves():
                return await self._move_clock(step.seconds)
            case steps.ServerDies():
                return await self._server_dies(step.moment)
            case steps.AdminDies():
                return await office.die_at(step.task, await self._batch(step.moment), step.moment)
            case steps.NodeDown():
                return await self._node_down(step)
            case _ as never:
                assert_never(never)

    def _seller(self, number: int) -> Seller:
        return self.sellers[number % len(self.sellers)]

    async def _payout(self, number: int, *states: State) -> Payout | None:
        # In the order in which they were asked for: their ids are random.
        asked = {payout_id: place for place, payout_id in enumerate(self.front.asked)}
        found = sorted(await self.office.payouts(*states), key=lambda one: asked.get(one.id, len(asked)))
        return found[number % len(found)] if found else None

    async def _cancel(self, number: int) -> str:
        payout = await self._payout(number, State.APPROVED, State.BATCHED)
        if payout is None:
            return "nothing"
        owner = next((seller for seller in self.sellers if seller.id == payout.seller_id), None)
        return await self.front.cancel(payout, owner)

    async def _batch(self, number: int) -> Batch | None:
        found = await self.office.batches(BatchState.BUILT)
        return found[-1 - number % len(found)] if found else None

    async def _buy(self, step: steps.Buys) -> str:
        seller = self._seller(step.seller)
        try:
            buyer = await people.buy(self.house, seller, len(self.buyers), step)
        except NodeOffline:
            self._waiting.append(step)
            return "the server's node is down: comes again"
        self.buyers.append(buyer)
        if step.paying is Paying.LATE:
            self._late.append(buyer)
        await people.pay(self.house, buyer)
        return f"buyer {buyer.number} owes {buyer.price_sat:,} sat, {len(buyer.payments)} payments"

    async def _reorg(self, step: steps.Reorgs) -> str:
        versions = self.house.rows("SELECT txid FROM payout_versions WHERE txid NOT NULL")
        return await faults.reorg(self.house, step, self.buyers, {str(txid) for (txid,) in versions})

    async def _decide(self, step: steps.Decides) -> str:
        payout = await self._payout(step.payout, State.REQUESTED, State.DECLINED, State.APPROVED)
        if payout is None:
            return "nothing to decide"
        by = "operator" if step.by_operator else "seller"
        return await self.office.decide(payout, approves=step.approves, by=by, contradicted=step.contradicted)

    async def _sign(self, step: steps.Signs) -> str:
        batch = await self._batch(step.batch)
        if batch is None:
            return "no batch"
        if step.altered is not None:
            return await self.office.try_altered(batch, step.altered)
        return await self.office.sign(batch, step.signer, twice=step.twice)

    async def _explain(self, whose: int) -> str:
        """Seller, buyer or operator: whoever took it."""
        unexplained = await self.office.unexplained()
        if not unexplained:
            return "nothing to explain"
        accounts = [ledger.operator(), *(ledger.seller(seller.id) for seller in self.sellers[:2])]
        txid, amount_sat = unexplained[0]
        account = accounts[whose % len(accounts)]
        return f"{amount_sat:,} sat: {await self.office.explain(txid, account)}"

    async def _spend_foreign(self, step: steps.SpendsForeign) -> Foreign | None:
        taken = set()
        if self.house.depth <= steps.REORG_DEPTH_MAX:
            # Such a spend could be deep enough for its batch to be given up, and then a reorg bring the batch
            # back: the payouts would be in the chain twice, and nobody's fault but the operator's.
            found = await self.office.batches(BatchState.BUILT)
            taken = {(coin.txid, coin.vout) for batch in found for coin in batch.inputs}
        return await faults.spend_foreign(self.house, step, taken)

    async def _move_clock(self, seconds: int) -> str:
        self.house.server.advance(seconds)
        await self.house.tell_time()
        late, self._late = (self._late, []) if seconds > people.LATE_S else ([], self._late)
        for buyer in late:
            try:
                await people.pay_late(self.house, buyer)
            except RpcRefused as exc:
                self.house.say(f"      buyer {buyer.number} could not pay late: {exc}")
        return f"{seconds} s later; {len(late)} buyers pay late"

    async def _server_dies(self, moment: int) -> str:
        if moment:
            self.house.server.doom(moment)
            return f"at its moment {moment} from now"
        await self.house.server.kill()
        return "now"

    async def _node_down(self, step: steps.NodeDown) -> str:
        if not self.house.node_there:
            return "it is down already"
        node = self.house.world.server
        await (node.kill() if step.crash else node.stop())
        self.house.node_down_for = step.steps + 1
        return f"for {step.steps} steps"

    async def _deposit_address(self) -> str:
        return await self.office.deposit_address()

    async def deposit(self, amount_sat: int) -> str:
        address = await self._deposit_address()
        if not address:
            return "the node gives no address now"
        txid = await self.house.world.faucet(address, amount_sat, confirmations=0)
        return f"{amount_sat:,} sat to {address} by {txid}"
