"""A seller's earnings, paid out of the operator's wallet, on a real node."""

from __future__ import annotations

from pathlib import Path

from payments import ledger
from payments.payout import BatchState, State
from regtest.world import RegtestWorld
from tests.hosted_shop import open_hosted_till


async def test_earnings_are_paid_out_and_every_sat_is_in_the_books(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"fee_percent": "10", "depth": 2}) as shop:
        seller = ledger.seller(shop.seller_id)
        await shop.sell(price_sat=50_000, count=2, depth=2)
        assert await shop.balances_sat() == {"chain": -100_000, seller: 90_000, "operator": 10_000}

        address = await shop.new_address()
        payout = await shop.request(80_000, address=address)
        held = ledger.payout(payout.id)
        assert await shop.balances_sat() == {
            "chain": -100_000,
            seller: 10_000,
            "operator": 10_000,
            held: 80_000,
        }

        batch_id = await shop.build()
        await shop.send(batch_id)
        await shop.mine()
        batch = await shop.batch(batch_id)
        fee_sat = batch.newest.fee_sat
        assert await shop.received_sat(address) == 80_000 - fee_sat
        assert (batch.state, (await shop.payout(payout.id)).state) == (BatchState.BUILT, State.BATCHED)
        assert await shop.balances_sat() == {"chain": -20_000, seller: 10_000, "operator": 10_000}
        await shop.mine()
        assert (await shop.batch(batch_id)).state is BatchState.DONE
        assert (await shop.payout(payout.id)).state is State.DONE
