"""Buyers of hosted sales ask for their money back, on a real node: who gets it, when, and who does not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from bitcache.takedown import take_down
from payments import ledger
from payments.ports import Transaction
from regtest.world import RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till
from tests.refund_desk import AT_ONCE, ask, expire, paid_out, refused, sellers, underpaid
from tests.till import Bought

MAINNET = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"


async def test_an_underpaid_sale_goes_back_to_who_has_the_receipt_and_to_nobody_else(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(world, tmp_path, hosted=AT_ONCE) as shop:
        bought = await shop.till.buy(await shop.till.offer(price_sat=50_000))
        mine, yours = await shop.new_address(), await shop.new_address()
        await shop.till.pay(bought, amount_sat=30_000)
        assert await refused(shop, bought, mine) == (409, "nothing-owed")
        await shop.mine()
        # In a block, and the rest may still come in time.
        assert (await shop.till.invoice(bought))["refund"]["refundable_sat"] == 0
        assert await refused(shop, bought, mine) == (409, "nothing-owed")
        await expire(shop, bought.id)
        assert (await shop.till.invoice(bought))["refund"]["refundable_sat"] == 30_000

        assert await refused(shop, bought, mine, secret=os.urandom(32)) == (403, "claim-refused")
        for address in (MAINNET, "nonsense", "\0", bought.invoice["address"]):
            assert await refused(shop, bought, address) == (422, "refund-address-invalid"), address
        assert await refused(shop, bought, "b" * 121) == (422, "invalid-value")
        assert (await shop.till.invoice(bought))["refund"]["address"] is None

        both = await asyncio.gather(ask(shop, bought, mine), ask(shop, bought, yours))
        assert sorted(status for status, _ in both) == [200, 409]
        view = await shop.till.invoice(bought)
        first, other = (mine, yours) if view["refund"]["address"] == mine else (yours, mine)
        assert await refused(shop, bought, other) == (409, "refund-address-final")
        assert (await ask(shop, bought, f" {first} "))[0] == 200
        (refund,) = view["refund"]["refunds"]
        assert (refund["state"], refund["amount_sat"], view["owed_sat"]) == ("requested", 30_000, 30_000)

        # The sale is off: nothing is due, and nothing more can be paid for it.
        assert view["refund"]["whole"]
        assert (view["due_sat"], view["address"], view["uri"]) == (0, None, None)
        async with shop.till.http.post(f"/api/v1/invoices/{bought.id}/renew") as answer:
            assert answer.status == 409
        assert await shop.balances_sat() == {
            "chain": -30_000,
            ledger.payout(refund["refund_id"]): 30_000,
        }

        (listed,) = (await sellers(shop, "/refunds"))["items"]
        assert (listed["reference"], listed["address"], listed["uri"]) == (view["reference"], first, None)
        place = f"/refunds/{refund['refund_id']}"
        assert (await sellers(shop, f"{place}/approve"))["state"] == "approved"
        assert (await sellers(shop, f"{place}/approve"))["state"] == "approved"
        await shop.mine()
        txid = await paid_out(shop)
        view = await shop.till.invoice(bought)
        (refund,) = view["refund"]["refunds"]
        assert (refund["txid"], refund["confirmations"], view["owed_sat"]) == (txid, 1, 0)
        assert await shop.received_sat(first) == 30_000 - refund["network_fee_sat"]
        assert await shop.received_sat(other) == 0
        assert await shop.balances_sat() == {}
        await shop.mine()
        assert (await shop.till.invoice(bought))["refund"]["refunds"][0]["state"] == "done"
        assert (await sellers(shop, f"{place}/decline", {"reason": "Too late."}))["status"] == 409


async def test_a_seller_declines_and_money_that_comes_later_is_another_refund(
    world: RegtestWorld, tmp_path: Path, each_with_tables: str
) -> None:
    async with open_hosted_till(world, tmp_path, hosted=AT_ONCE, database_url=each_with_tables) as shop:
        bought = await underpaid(shop, 20_000)
        address = await shop.new_address()
        _, view = await ask(shop, bought, address)
        place = f"/refunds/{view['refund']['refunds'][0]['refund_id']}"
        for reason in ("  ", "a\0b", "\x1b[2J", "x" * 501):
            assert (await sellers(shop, f"{place}/decline", {"reason": reason}))["status"] == 422
        declined = await sellers(shop, f"{place}/decline", {"reason": "You got\n it in the shop."})
        assert declined["decided_by"] == "seller"
        view = await shop.till.invoice(bought)
        assert view["refund"]["refunds"][0]["reason"] == "You got it in the shop."
        assert view["owed_sat"] == 20_000
        # Asking again asks nothing new, and so gets around no answer.
        status, again = await ask(shop, bought, address)
        assert (status, again["refund"]["refunds"]) == (200, view["refund"]["refunds"])

        # The address that is not shown any more gets money all the same.
        shop.till.server.clock.advance(2)
        await shop.till.pay(bought, amount_sat=30_000)
        await shop.mine()
        view = await shop.till.invoice(bought)
        assert (view["refund"]["refundable_sat"], view["key_allowed"]) == (30_000, False)
        assert await refused(shop, bought, await shop.new_address()) == (409, "refund-address-final")
        _, view = await ask(shop, bought, address)
        newer, older = view["refund"]["refunds"]
        assert (newer["amount_sat"], newer["state"], older["state"]) == (30_000, "requested", "declined")

        assert (await sellers(shop, f"{place}/approve"))["state"] == "approved"
        listed = (await sellers(shop, "/refunds"))["items"]
        assert [one["state"] for one in listed] == ["requested", "approved"]
        refunds = shop.services.refunds

        async def operator_declines(tx: Transaction) -> None:
            await refunds.decide(tx, newer["refund_id"], approve=False, by="operator", reason="No.")

        await shop.services.database.write(operator_declines)
        refusal = await sellers(shop, f"/refunds/{newer['refund_id']}/approve")
        assert (refusal["status"], refusal["type"]) == (409, "/problems/refund-decided")
        stranger = await shop.till.server.new_seller()
        async with (
            shop.till.server.session(stranger.token) as theirs,
            theirs.post(f"/api/v1{place}/approve") as answer,
        ):
            assert answer.status == 404


async def test_a_surplus_goes_back_by_policy_and_the_sale_stands(world: RegtestWorld, tmp_path: Path) -> None:
    hosted = {"depth": 2, "refund_policy": "auto", "refund_delay_s": 3_600, "fee_percent": "10"}
    async with open_hosted_till(world, tmp_path, hosted=hosted) as shop:
        bought = await shop.till.buy(await shop.till.offer(price_sat=50_000))
        await shop.till.pay(bought, amount_sat=58_000)
        await shop.mine()
        offered = (await shop.till.invoice(bought))["refund"]
        assert (offered["refundable_sat"], offered["approval"], offered["delay_s"]) == (8_000, False, 3_600)
        address, asked_at = await shop.new_address(), shop.till.server.clock()
        _, view = await ask(shop, bought, address)
        (refund,) = view["refund"]["refunds"]
        assert (refund["state"], refund["amount_sat"]) == ("approved", 8_000)
        assert 0 <= refund["ready_at"] - asked_at - 3_600 <= 5
        assert not view["refund"]["whole"]
        assert view["key_allowed"]
        # The policy is the operator's: a seller does not overrule it.
        place = f"/refunds/{refund['refund_id']}"
        assert (await sellers(shop, f"{place}/decline", {"reason": "No."}))["status"] == 409
        assert await shop.balances_sat() == {
            "chain": -58_000,
            ledger.seller(shop.seller_id): 45_000,
            "operator": 5_000,
            ledger.payout(refund["refund_id"]): 8_000,
        }
        await shop.mine()
        assert (
            await shop.services.batches.build(feerate_sat_kvb=2_000, wallet=await shop.services.hosted.open())
            is None
        )  # it is too soon
        shop.till.server.clock.advance(3_601)
        await shop.seen()
        await paid_out(shop)
        fee_sat = (await shop.till.invoice(bought))["refund"]["refunds"][0]["network_fee_sat"]
        assert await shop.received_sat(address) == 8_000 - fee_sat
        assert (await shop.till.claim(bought))[1]["key_allowed"]


async def test_a_takedown_gives_back_what_a_sale_had_earned(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted=AT_ONCE) as shop:
        (bought,) = await shop.sell(price_sat=50_000)
        assert await refused(shop, bought, await shop.new_address()) == (409, "nothing-owed")
        await taken_down(shop, bought)
        _, view = await ask(shop, bought, await shop.new_address())
        (refund,) = view["refund"]["refunds"]
        assert refund["amount_sat"] == 50_000
        assert await shop.balances_sat() == {"chain": -50_000, ledger.payout(refund["refund_id"]): 50_000}


async def test_who_was_paid_out_cannot_have_the_operator_pay_it_back_as_well(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """A seller who bought of himself, was paid out, and then reported his own files."""
    hosted = AT_ONCE | {"refund_policy": "auto"}
    async with open_hosted_till(world, tmp_path, hosted=hosted) as shop:
        bought, _ = await shop.sell(price_sat=50_000, count=2, depth=2)
        await shop.request(100_000)
        await paid_out(shop)
        await taken_down(shop, bought)
        assert (await shop.balances_sat())[ledger.seller(shop.seller_id)] == -50_000
        assert (await shop.till.invoice(bought))["refund"]["approval"]
        _, view = await ask(shop, bought, await shop.new_address())
        (refund,) = view["refund"]["refunds"]
        place = f"/refunds/{refund['refund_id']}"
        for _ in range(2):
            assert (await sellers(shop, f"{place}/approve"))["status"] == 409
            assert (await sellers(shop, f"{place}/decline", {"reason": "No."}))["state"] == "declined"
        # The sale was the buyer's in good faith: it is for the operator to say.
        decide = shop.services.refunds.decide

        async def approved(tx: Transaction) -> None:
            await decide(tx, refund["refund_id"], approve=True, by="operator")

        await shop.services.database.write(approved)
        assert (await shop.till.invoice(bought))["refund"]["refunds"][0]["state"] == "approved"


async def taken_down(shop: HostedShop, bought: Bought) -> None:
    services = shop.services

    async def taken(tx: Transaction) -> None:
        await take_down(
            tx,
            services.registry,
            services.access,
            bought.invoice["offer_id"],
            reason="A mistake.",
            now=services.clock(),
        )

    await services.database.write(taken)


async def test_nothing_that_a_reorg_took_is_paid(own_world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(own_world, tmp_path, hosted=AT_ONCE) as shop:
        bought = await underpaid(shop, 20_000)
        address = await shop.new_address()
        _, view = await ask(shop, bought, address)
        refund_id = view["refund"]["refunds"][0]["refund_id"]
        await sellers(shop, f"/refunds/{refund_id}/approve")
        await own_world.reorg(1, keep_transactions=False)
        await shop.seen()
        assert (await shop.balances_sat())[ledger.owed(bought.id)] == -20_000
        await shop.mine()  # it is in a block again, and not deep
        wallet = await shop.services.hosted.open()
        assert await shop.services.batches.build(feerate_sat_kvb=2_000, wallet=wallet) is None
        assert "deep" in str((await shop.payout(refund_id)).trouble)
        await shop.mine()
        await paid_out(shop)
        assert await shop.received_sat(address) > 19_000
        assert await shop.balances_sat() == {}


async def test_a_direct_sale_leaves_the_address_for_the_seller(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted=AT_ONCE) as shop:
        await shop.settle("direct")
        free = await shop.till.buy(await shop.till.offer(price_sat=0))
        assert await refused(shop, free, await shop.new_address()) == (409, "nothing-owed")
        bought = await underpaid(shop, 20_000)
        address = await shop.new_address()
        status, view = await ask(shop, bought, address)
        assert (status, view["refund"]["paid_by"], view["refund"]["address"]) == (200, "seller", address)
        assert (view["refund"]["refunds"], view["refund"]["whole"], view["due_sat"]) == ([], True, 0)
        assert await refused(shop, bought, await shop.new_address()) == (409, "refund-address-final")
        (listed,) = (await sellers(shop, "/refunds"))["items"]
        assert listed["uri"] == f"bitcoin:{address}?amount=0.00020000&label={view['reference']}"
        assert (listed["state"], listed["amount_sat"]) == ("owed", 20_000)
        assert (await sellers(shop, f"/refunds/{listed['refund_id']}/approve"))["status"] == 404
