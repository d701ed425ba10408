"""Payouts that wait, and what happens while somebody builds, signs or decides at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitcache import payout_desk
from bitcache.ids import new_id
from payments import ledger, payable, payout_candidates, payout_requests
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.errors import PayoutConflict, PayoutRefused
from payments.outputs import Presence
from payments.payout import BatchState, State
from payments.ports import Transaction
from regtest.world import RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till


async def test_two_batches_are_under_way_and_the_next_waits_for_their_change(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """Two payouts go to one address; the last change is too small for an output: the operator bears it."""
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop:
        seller = ledger.seller(shop.seller_id)
        await shop.sell(price_sat=50_000, count=2)
        address = await shop.new_address()
        same = [await shop.request(amount_sat, address=address) for amount_sat in (30_000, 20_000)]
        first = await shop.build()
        large = await shop.request(45_000)
        second = await shop.build()
        last = await shop.request(4_900)
        assert await build_nothing(shop) is None
        assert "the wallet has 0 sat left that are deep enough" in str((await shop.payout(last.id)).trouble)
        for batch_id in (first, second):
            await shop.send(batch_id)
        await shop.mine()
        batches = [await shop.batch(batch_id) for batch_id in (first, second)]
        assert [(one.state, one.change_sat) for one in batches] == [
            (BatchState.DONE, 0),
            (BatchState.DONE, 5_000),
        ]
        assert set(batches[0].inputs).isdisjoint(batches[1].inputs)
        assert await shop.received_sat(address) == 50_000 - batches[0].newest.fee_sat
        for payout in (*same, large):
            assert (await shop.payout(payout.id)).state is State.DONE
        assert await shop.agree() == 5_000

        third = await shop.build()
        assert (await shop.payout(last.id)).trouble is None
        assert await shop.balances_sat() == {"chain": -5_000, seller: 100, ledger.payout(last.id): 4_900}
        await shop.send(third)
        await shop.mine()
        batch = await shop.batch(third)
        assert (batch.change_sat, batch.left_sat) == (0, 100)
        assert await shop.received_sat(last.address) == 4_900 - (batch.newest.fee_sat - 100)
        assert await shop.balances_sat() == {seller: 100, "operator": -100}
        assert await shop.agree() == 0


async def test_a_payout_waits_for_a_feerate_at_which_it_is_worth_it(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1, "fee_share_percent_max": 10}) as shop:
        batches = shop.services.batches
        await shop.sell(price_sat=50_000)
        small, large = await shop.request(3_000), await shop.request(30_000)
        await shop.send(await shop.build(feerate_sat_kvb=20_000))
        assert (await shop.payout(large.id)).state is State.BATCHED
        waiting = await shop.payout(small.id)
        assert waiting.state is State.APPROVED
        assert "more than 10 %: it waits for a lower feerate" in str(waiting.trouble)
        await shop.mine()
        cheap = await shop.build(feerate_sat_kvb=1_000)
        fee_sat = (await shop.batch(cheap)).newest.fee_sat
        for feerate, words in (
            (1_000, f"pays {2 * fee_sat:,} sat or more in fees: give a feerate of 2 sat/vB or more"),
            (20_000, f"payout {small.id}: .*too little would arrive.*Choose a lower feerate"),
            (3_000, f"payout {small.id}: .*more than 10 %.*Choose a lower feerate"),
            (101_000, "`feerate_max_sat_vb` is the highest"),
            (999, "a feerate is 1 to 100 sat/vB"),
        ):
            with pytest.raises(PayoutRefused, match=words):
                await batches.bump(cheap, feerate_sat_kvb=feerate)
        assert await batches.bump(cheap, feerate_sat_kvb=2_000) == 2
        await shop.send(cheap)
        await shop.mine()
        assert (await shop.payout(small.id)).state is State.DONE
        # All of it may go to the network, but what nodes relay has to arrive.
        dust = await shop.request(546)
        assert await build_nothing(shop, feerate_sat_kvb=1_000) is None
        assert "too little would arrive" in str((await shop.payout(dust.id)).trouble)
        assert await shop.agree() == 17_000


async def test_our_own_addresses_are_paid_nothing(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop:
        (bought,) = await shop.sell(price_sat=50_000)
        deposit = await payout_desk.deposit_address(shop.services)
        for address in (str(bought.invoice["address"]), deposit.address):
            with pytest.raises(PayoutRefused, match="belongs to this server"):
                await shop.request(10_000, address=address)
        for amount_sat, words in (
            (50_001, "more than the 50,000 sat"),
            (545, "546 sat or more"),
            (0, "too little"),
        ):
            with pytest.raises(PayoutRefused, match=words):
                await shop.request(amount_sat)
        asked = await shop.request(10_000)
        assert await shop.request(10_000, address=asked.address, payout_id=asked.id) == asked
        with pytest.raises(PayoutConflict, match="another one"):
            await shop.request(10_001, address=asked.address, payout_id=asked.id)
        assert (await shop.balances_sat())[ledger.payout(asked.id)] == 10_000


async def test_every_decision_sets_aside_or_gives_back(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop:
        write, now = shop.services.database.write, shop.till.server.clock()
        await shop.sell(price_sat=50_000)
        sample = await shop.request(10_000)

        async def asked() -> str:
            payout = replace(sample, id=new_id(), state=State.REQUESTED)
            await write(lambda tx: payout_requests.request(tx, payout, depth=1, now=now))
            return payout.id

        async def approve(payout_id: str) -> None:
            await write(lambda tx: payout_requests.approve(tx, payout_id, by="operator", now=now))

        async def decline(payout_id: str) -> None:
            await write(
                lambda tx: payout_requests.decline(tx, payout_id, by="operator", reason="no", now=now)
            )

        async def cancel(payout_id: str) -> None:
            await write(lambda tx: payout_requests.cancel(tx, payout_id, now=now))

        steps_and_ends: list[tuple[tuple[Callable[[str], Awaitable[None]], ...], State, int | None]] = [
            ((), State.REQUESTED, 10_000),
            ((approve, approve), State.APPROVED, 10_000),
            ((approve, decline, decline), State.DECLINED, None),
            ((cancel, cancel), State.CANCELLED, None),
            ((decline, approve, cancel), State.CANCELLED, None),
        ]
        for steps, state, held_sat in steps_and_ends:
            payout_id = await asked()
            for step in steps:
                await step(payout_id)
            assert (await shop.payout(payout_id)).state is state
            assert (await shop.balances_sat()).get(ledger.payout(payout_id)) == held_sat
        # What was given back may be spent: it is not promised twice.
        declined = await asked()
        await decline(declined)
        await shop.request(15_000)
        with pytest.raises(PayoutRefused, match="only 5,000 are still there"):
            await approve(declined)
        assert await shop.agree() == 50_000


async def test_who_comes_second_finds_what_the_first_did(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop:
        batches, database = shop.services.batches, shop.services.database
        wallet = await shop.services.hosted.open()
        now = shop.till.server.clock()
        await shop.sell(price_sat=50_000, count=2)
        payout = await shop.request(30_000)
        # Declined between plan and batch.
        plan = await batches.plan(feerate_sat_kvb=2_000, wallet=wallet)
        await database.write(
            lambda tx: payout_requests.decline(tx, payout.id, by="operator", reason="no", now=now)
        )
        assert await batches.keep(plan) is None
        assert ledger.payout(payout.id) not in await shop.balances_sat()
        await database.write(lambda tx: payout_requests.approve(tx, payout.id, by="operator", now=now))
        # Two build at once; then nobody can call it off any more.
        built = await asyncio.gather(*(batches.build(feerate_sat_kvb=2_000, wallet=wallet) for _ in range(3)))
        (batch_id,) = [one for one in built if one is not None]
        assert (await shop.payout(payout.id)).batch_id == batch_id
        with pytest.raises(PayoutConflict, match="may be sent at any moment"):
            await database.write(lambda tx: payout_requests.cancel(tx, payout.id, now=now))
        await batches.abandon(batch_id)
        await database.write(lambda tx: payout_requests.cancel(tx, payout.id, now=now))
        assert await build_nothing(shop) is None
        assert await shop.agree() == 100_000


class RacedWallet(PayoutWallet):
    """Something else happens while it signs."""

    meanwhile: Callable[[], Awaitable[object]]

    async def sign(self, psbt: str) -> str:
        signed = await super().sign(psbt)
        await self.meanwhile()
        return signed


async def test_what_happens_while_a_wallet_signs(world: RegtestWorld, tmp_path: Path) -> None:
    async with (
        open_hosted_till(world, tmp_path, hosted={"depth": 2}) as shop,
        Bitcoind(world.outside.rpc_url, cookie_file=world.outside.cookie_path) as outside,
    ):
        batches, signer = shop.services.batches, RacedWallet(outside, shop.keys.name)
        await shop.sell(price_sat=50_000, count=2, depth=2)
        payout = await shop.request(30_000)
        # Abandoned: what was signed is not kept, and goes nowhere.
        first = await shop.build()
        signer.meanwhile = lambda: batches.abandon(first)
        with pytest.raises(PayoutConflict, match="dead"):
            await batches.sign(first, signer)
        assert (await shop.batch(first)).newest.raw is None
        assert (await shop.payout(payout.id)).state is State.APPROVED
        # Bumped: each version has its own signatures.
        second = await shop.build()
        signer.meanwhile = lambda: batches.bump(second, feerate_sat_kvb=5_000)
        await batches.sign(second, signer)
        assert [one.raw is not None for one in (await shop.batch(second)).versions] == [True, False]
        older = await shop.sent(second)

        # Its predecessor is mined, and the watcher does not know yet: kept, and lost.
        async def mined_unseen() -> None:
            await shop.services.watcher._one_at_a_time.acquire()
            await shop.world.mine()

        signer.meanwhile = mined_unseen
        await batches.sign(second, signer)
        shop.services.watcher._one_at_a_time.release()
        await shop.seen()
        await shop.mine()
        batch = await shop.batch(second)
        assert [one.presence for one in batch.versions] == [Presence.BLOCK, Presence.GONE]
        assert (batch.state, batch.versions[0].txid) == (BatchState.DONE, older)
        assert await batches.offer(second) is None
        # Signed already, and done: nothing to sign.
        await batches.sign(second, signer)
        assert await shop.agree() == 70_000

        # Its coin is spent otherwise, and the watcher knows: kept for a reorg, and known to be lost.
        await shop.request(10_000)
        third = await shop.build()

        async def spent() -> None:
            await world.outside.rpc("loadwallet", shop.keys.name)
            await world.mine_exactly([await shop.spend_otherwise(*(await shop.batch(third)).inputs)])
            await shop.seen()

        signer.meanwhile = spent
        await batches.sign(third, signer)
        assert (await shop.batch(third)).newest.presence is Presence.GONE
        assert await shop.agree() == 20_000


async def build_nothing(shop: HostedShop, *, feerate_sat_kvb: int = 2_000) -> str | None:
    wallet = await shop.services.hosted.open()
    built: str | None = await shop.services.batches.build(feerate_sat_kvb=feerate_sat_kvb, wallet=wallet)
    return built


async def test_who_waits_for_a_lower_feerate_keeps_nobody_else_waiting(
    world: RegtestWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payout_candidates, "PAYOUTS_PER_BATCH_MAX", 2)
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1, "fee_share_percent_max": 10}) as shop:
        await shop.sell(price_sat=500_000)
        small = [await shop.request(3_000) for _ in range(3)]
        shop.till.server.clock.advance(1)
        large = await shop.request(300_000)
        batch_id = await shop.build(feerate_sat_kvb=20_000)
        assert (await shop.payout(large.id)).batch_id == batch_id
        assert {(await shop.payout(one.id)).state for one in small} == {State.APPROVED}


async def test_a_sale_that_was_paid_in_parts_is_as_deep_as_the_last_of_them(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """A reorg of one block would take the sale back, and its seller would have been paid the deep part."""
    async with open_hosted_till(world, tmp_path, hosted={"depth": 3, "fee_sat": 2_000}) as shop:
        bought = await shop.till.buy(await shop.till.offer(price_sat=50_000))
        await shop.till.pay(bought, amount_sat=49_000)
        await shop.mine(4)
        await shop.till.pay(bought, amount_sat=1_000)
        await shop.mine()

        async def there(tx: Transaction) -> list[int]:
            accounts = (ledger.seller(shop.seller_id), ledger.operator())
            return [await payable.payable_sat(tx, account, depth=3) for account in accounts]

        assert (await shop.till.invoice(bought))["status"] == "settled"
        assert await shop.services.database.read(there) == [0, 0]
        await shop.mine(2)
        assert await shop.services.database.read(there) == [48_000, 2_000]
