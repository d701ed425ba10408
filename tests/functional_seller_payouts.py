"""The seller's side of hosted sales, on a real node: balance, payouts, targets, plans, and attacks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import delete, insert, update
from typer.testing import CliRunner, Result

from bitcache import payout_wallet
from bitcache.cli.main import app
from bitcache.db.tables import accounts
from payments import books, ledger
from payments.ledger import Booking, Code, Leg
from payments.money import Msat
from payments.ports import Transaction
from payments.tables import restores
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till
from tests.test_bitcache_catalog import ask
from tests.till import Till, open_till

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_S = 86_400
MAINNET = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"
TESTNET = "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx"


HOSTED = {"fee_percent": "10", "fee_sat": 100, "depth": 2, "payout_min_sat": 2_000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostedShop]:
    async with open_hosted_till(world, tmp_path_factory.mktemp("house"), hosted=HOSTED) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def shop(house: HostedShop) -> HostedShop:
    """A seller of their own on one server, with a wallet that no buyer was told an address of."""
    server, world = house.till.server, house.world
    till = Till(server, await server.new_seller(), world)
    till.http = house.till.http
    shop = replace(house, till=till)
    wallet = await OutsideWallet.create(world, f"seller-{till.account.account_id}")
    await patch(shop, settlement="hosted", payout_descriptor=await wallet.descriptor())
    await shop.seen()
    return shop


@pytest_asyncio.fixture(loop_scope="module")
async def alone(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[HostedShop]:
    """A server of its own, whose clock may be moved or whose batches take only what is here.

    The nodes' clocks stay: once ours is ahead, what is paid looks older than its invoice.
    """
    async with open_hosted_till(world, tmp_path, hosted=HOSTED) as alone:
        yield alone


async def call(shop: HostedShop, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
    """As the seller; (status, JSON body), of a problem its name."""
    token = options.get("token", shop.till.account.token)
    headers = {"Idempotency-Key": options["key"]} if "key" in options else {}
    async with shop.till.server.session(token) as http:
        http.headers.update(headers)
        return await ask(http, method, path, body)


async def patch(shop: HostedShop, **body: Any) -> Any:
    status, account = await call(shop, "PATCH", "/account", body)
    assert status == 200, account
    return account


async def pay_out(shop: HostedShop, **body: Any) -> Any:
    status, payout = await call(shop, "POST", "/payouts", body or {"all": True})
    assert status == 201, payout
    return payout


async def balance(shop: HostedShop) -> Any:
    status, view = await call(shop, "GET", "/balance")
    assert status == 200, view
    return view


async def later(shop: HostedShop, seconds: int) -> None:
    shop.till.server.clock.advance(seconds)
    await shop.seen()  # else the watcher's last sign of life would be old


async def arrived_sat(shop: HostedShop, txid: str, address: str) -> int:
    """What this transaction pays the address, by the outside node."""
    outputs = [await shop.world.outside.rpc("gettxout", txid, vout) for vout in range(2)]
    found = [one for one in outputs if one and one["scriptPubKey"]["address"] == address]
    return sum(int(one["value"] * 100_000_000) for one in found)


async def wallets_next(shop: HostedShop) -> str:
    """The next address of the seller's own wallet."""

    async def look(tx: Transaction) -> tuple[Any, int]:
        own = await payout_wallet.wallet(tx, shop.seller_id, now=shop.till.server.clock())
        assert own is not None
        store = shop.services.descriptors
        return await store.load(tx, own.descriptor_id), await store.next_index(tx, own.descriptor_id)

    descriptor, index = await shop.services.database.read(look)
    (derived,) = await shop.services.addresses.derive(descriptor, start=index, count=1)
    return str(derived.address)


async def test_earnings_go_from_the_sale_to_the_sellers_own_wallet(alone: HostedShop) -> None:
    await alone.sell(price_sat=50_000, count=2, depth=1)
    view = await balance(alone)
    assert (view["balance_sat"], view["payable_sat"], view["maturing_sat"]) == (89_800, 0, 89_800)
    assert (view["fee_percent"], view["fee_sat"], view["depth"], view["blocked"]) == ("10", 100, 2, None)
    assert view["plan"]["target"] == {"kind": "wallet", "address": None}
    (sale, _) = (await call(alone, "GET", "/invoices"))[1]["items"]
    assert (sale["settlement"], sale["fee_sat"], sale["net_sat"]) == ("hosted", 5_100, 44_900)
    await alone.mine()
    assert (await balance(alone))["payable_sat"] == 89_800

    expected = await wallets_next(alone)
    status, first = await call(alone, "POST", "/payouts", {"amount_sat": 40_000}, key="one")
    assert (status, first["state"], first["address"]) == (201, "approved", expected)
    assert (await call(alone, "POST", "/payouts", {"amount_sat": 40_000}, key="one")) == (201, first)
    assert (await call(alone, "POST", "/payouts", {"amount_sat": 41_000}, key="one"))[0] == 409
    alone.till.server.clock.advance(1)
    rest = await pay_out(alone)
    assert (rest["amount_sat"], rest["address"] != expected) == (49_800, True)
    view = await balance(alone)
    assert (view["balance_sat"], view["payable_sat"], view["reserved_sat"]) == (0, 0, 89_800)

    assert await call(alone, "DELETE", f"/payouts/{first['payout_id']}") == (204, None)
    assert (await balance(alone))["payable_sat"] == 40_000
    batch_id = await alone.build()
    assert await call(alone, "DELETE", f"/payouts/{rest['payout_id']}") == (409, "payout-final")
    (listed, called_off) = (await call(alone, "GET", "/payouts"))[1]["items"]
    assert (listed["state"], listed["txid"], called_off["state"]) == ("in_batch", None, "cancelled")
    txid = await alone.send(batch_id)
    (_, sent) = await call(alone, "GET", f"/payouts/{rest['payout_id']}")
    assert (sent["state"], sent["txid"], sent["confirmations"]) == ("sent", txid, 0)
    await alone.mine()
    (_, mined) = await call(alone, "GET", f"/payouts/{rest['payout_id']}")
    assert (mined["state"], mined["confirmations"], mined["depth"]) == ("sent", 1, 2)
    assert mined["arrives_sat"] == await arrived_sat(alone, txid, rest["address"])
    assert mined["arrives_sat"] + mined["network_fee_sat"] == 49_800
    await alone.mine()
    (_, done) = await call(alone, "GET", f"/payouts/{rest['payout_id']}")
    assert (done["state"], done["confirmations"]) == ("done", 2)
    assert (await balance(alone))["reserved_sat"] == 0

    # A page at a time, and the address of neither is ever an invoice's.
    (_, page) = await call(alone, "GET", "/payouts?limit=1")
    assert [one["payout_id"] for one in page["items"]] == [rest["payout_id"]]
    (_, page) = await call(alone, "GET", f"/payouts?after={page['next']}")
    assert ([one["payout_id"] for one in page["items"]], page["next"]) == ([first["payout_id"]], None)
    await alone.settle("direct")
    bought = await alone.till.buy(await alone.till.offer())
    assert bought.invoice["address"] not in {expected, rest["address"]}


async def test_a_retry_is_the_same_payout_though_the_kept_answer_is_lost(alone: HostedShop) -> None:
    await alone.sell(price_sat=50_000, depth=2)
    (_, first) = await call(alone, "POST", "/payouts", {"all": True}, key="all-of-it")
    alone.till.server.clock.advance(2 * DAY_S)  # keys are kept for one
    assert await call(alone, "POST", "/payouts", {"all": True}, key="all-of-it") == (201, first)
    alone.till.server.clock.advance(2 * DAY_S)
    (status, problem) = await call(alone, "POST", "/payouts", {"amount_sat": 5_000}, key="all-of-it")
    assert (status, problem) == (409, "idempotency-key-reused")
    assert len((await call(alone, "GET", "/payouts"))[1]["items"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({"amount_sat": 293}, 422, "payout-below-dust"),
        ({"amount_sat": 1_999}, 422, "payout-below-minimum"),
        ({"amount_sat": 44_901}, 409, "payout-above-payable"),
        ({"amount_sat": 2_100_000_000_000_000}, 409, "payout-above-payable"),
        ({"amount_sat": 2_100_000_000_000_001}, 422, "invalid-value"),
        ({"amount_sat": 0}, 422, "invalid-value"),
        ({"amount_sat": -5_000}, 422, "invalid-value"),
        ({"amount_sat": 5_000.5}, 422, "invalid-value"),
        ({"amount_sat": "5000"}, 422, "invalid-value"),
        ({"amount_sat": True}, 422, "invalid-value"),
        ({"amount_sat": None}, 422, "invalid-value"),
        ({"amount_sat": float("nan")}, 400, "bad-request"),
        ({"amount_sat": float("inf")}, 400, "bad-request"),
        ({}, 422, "invalid-value"),
        ({"all": False}, 422, "invalid-value"),
        ({"all": True, "amount_sat": 5_000}, 422, "invalid-value"),
        ({"all": True, "address": "bcrt1q"}, 422, "invalid-value"),
    ],
)
async def test_amounts_that_cannot_be_paid_out(
    refusing: HostedShop, body: dict[str, Any], status: int, problem: str
) -> None:
    assert await call(refusing, "POST", "/payouts", body) == (status, problem)
    assert (await balance(refusing))["payable_sat"] == 44_900


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(
    world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[HostedShop]:
    """One sale is payable, to a fixed address."""
    hosted = {"fee_percent": "10", "fee_sat": 100, "depth": 1, "payout_min_sat": 2_000}
    async with open_hosted_till(
        world, tmp_path_factory.mktemp("shop"), hosted=hosted, payout_change_delay_s=0
    ) as shop:
        await patch(shop, payout_address=await shop.new_address())
        await shop.sell(price_sat=50_000)
        yield shop


async def test_of_two_requests_for_the_whole_balance_one_wins(shop: HostedShop) -> None:
    await shop.sell(price_sat=50_000, depth=2)
    answers = await asyncio.gather(
        *(call(shop, "POST", "/payouts", {"amount_sat": 44_900}) for _ in range(3)),
        *(call(shop, "POST", "/payouts", {"all": True}) for _ in range(3)),
        *(call(shop, "POST", "/payouts", {"all": True}, key="the-same") for _ in range(3)),
    )
    won = {payout["payout_id"] for status, payout in answers if status == 201}
    refused = {problem for status, problem in answers if status != 201}
    assert len(won) == 1
    assert refused <= {"payout-above-payable", "payout-below-minimum"}
    standing = await shop.balances_sat()
    assert ledger.seller(shop.seller_id) not in standing
    assert standing[ledger.payout(won.pop())] == 44_900


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (MAINNET, "invalid-value"),
        (TESTNET, "invalid-value"),
        ("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "invalid-value"),
        ("bcrt1qnothing", "invalid-value"),
        ("", "invalid-value"),
        ("bcrt1q\u202e", "invalid-value"),
        ("x" * 121, "invalid-value"),
    ],
)
async def test_addresses_that_are_none_here(refusing: HostedShop, address: str, problem: str) -> None:
    before = (await call(refusing, "GET", "/account"))[1]
    assert await call(refusing, "PATCH", "/account", {"payout_address": address}) == (422, problem)
    assert (await call(refusing, "GET", "/account"))[1] == before


async def test_an_address_of_this_server_is_refused(refusing: HostedShop) -> None:
    bought = await refusing.till.buy(await refusing.till.offer())
    target = {"payout_address": str(bought.invoice["address"]).upper(), "name": "Not kept"}
    assert await call(refusing, "PATCH", "/account", target) == (422, "invalid-value")
    assert (await call(refusing, "GET", "/account"))[1]["name"] != "Not kept"


async def test_asking_and_cancelling_uses_up_no_addresses(shop: HostedShop) -> None:
    await shop.sell(price_sat=50_000, depth=2)
    expected = await wallets_next(shop)
    for _ in range(3):
        asked = await pay_out(shop)
        assert asked["address"] == expected
        assert (await call(shop, "DELETE", f"/payouts/{asked['payout_id']}"))[0] == 204
    # Only what is called off is given again, and no invoice gets what any payout has.
    assert (await pay_out(shop, amount_sat=5_000))["address"] == expected
    second = (await pay_out(shop, amount_sat=5_000))["address"]
    third = await wallets_next(shop)
    assert len({expected, second, third}) == 3
    await shop.request(5_000, address=third)
    await patch(shop, settlement="direct")
    bought = await shop.till.buy(await shop.till.offer())
    assert bought.invoice["address"] not in {expected, second, third}


async def test_a_thief_of_the_token_is_paid_only_after_the_delay(alone: HostedShop) -> None:
    await alone.sell(price_sat=50_000, depth=2)
    mine, thiefs = await alone.new_address(), await alone.new_address()
    # The wallet is in force already: even the owner's address waits, and setting the wallet calls it off.
    account = await patch(alone, payout_address=mine)
    assert account["payout_plan"]["target"]["kind"] == "wallet"
    assert account["payout_plan"]["pending_target"]["address"] == mine
    assert (await patch(alone, payout_address=None))["payout_plan"]["pending_until"] is None
    await patch(alone, payout_address=mine)
    await later(alone, DAY_S)
    assert (await balance(alone))["plan"]["target"] == {"kind": "address", "address": mine}

    stolen = (await patch(alone, payout_address=thiefs))["payout_plan"]
    now = alone.till.server.clock()
    assert (stolen["pending_target"]["address"], stolen["target"]["address"]) == (thiefs, mine)
    assert abs(stolen["pending_until"] - now - DAY_S) < 60
    # Asking again does not hasten it, nor do a new wallet, the plan, or an address of a request's own.
    await later(alone, DAY_S // 2)
    again = (await patch(alone, payout_address=thiefs))["payout_plan"]
    assert again["pending_until"] == stolen["pending_until"]
    await patch(alone, payout_threshold_sat=2_000, payout_every="day")
    (planned,) = await until_planned(alone)
    assert planned["address"] == mine
    await patch(alone, payout_threshold_sat=None, payout_every="never")
    assert (await call(alone, "DELETE", f"/payouts/{planned['payout_id']}"))[0] == 204
    assert (await call(alone, "POST", "/payouts", {"all": True, "address": thiefs}))[0] == 422
    asked = await pay_out(alone)
    assert asked["address"] == mine
    await later(alone, DAY_S)
    assert (await balance(alone))["plan"]["target"]["address"] == thiefs
    # What was asked for before goes where it was to go.
    assert (await call(alone, "GET", f"/payouts/{asked['payout_id']}"))[1]["address"] == mine
    assert (await call(alone, "DELETE", f"/payouts/{asked['payout_id']}"))[0] == 204
    assert (await pay_out(alone))["address"] == thiefs


async def test_a_target_that_changes_while_payouts_are_asked_for(shop: HostedShop) -> None:
    await shop.sell(price_sat=50_000, depth=2)
    wallets, other = await wallets_next(shop), await shop.new_address()
    answers = await asyncio.gather(
        call(shop, "PATCH", "/account", {"payout_address": other}),
        call(shop, "POST", "/payouts", {"amount_sat": 2_000}),
        call(shop, "PATCH", "/account", {"payout_address": None}),
        call(shop, "POST", "/payouts", {"amount_sat": 2_000}),
    )
    assert [status for status, _ in answers] == [200, 201, 200, 201]
    addresses = {payout["address"] for status, payout in answers if status == 201}
    assert wallets in addresses
    assert other not in addresses
    assert len(addresses) == 2


async def test_a_wallet_that_earnings_are_paid_out_to_is_replaced_after_a_delay(
    shop: HostedShop, world: RegtestWorld
) -> None:
    stolen = await (await OutsideWallet.create(world, "a thief's")).descriptor()
    # No buyer was ever told an address of the wallet: its first change would count at once.
    await shop.sell(price_sat=50_000, depth=2)
    expected = await wallets_next(shop)
    (_, preview) = await call(shop, "POST", "/account/payout-preview", {"payout_descriptor": stolen})
    account = await patch(shop, payout_descriptor=stolen)
    assert preview["effective_at"] - shop.till.server.clock() > DAY_S - 60
    assert account["payout"]["descriptor"] != account["pending_wallet"]["descriptor"]
    assert (await pay_out(shop))["address"] == expected


async def test_the_first_wallet_waits_where_earnings_go_to_an_address(
    alone: HostedShop, world: RegtestWorld
) -> None:
    async def forget(tx: Transaction) -> None:
        of_seller = accounts.c.id == alone.seller_id
        await tx.execute(update(accounts).where(of_seller).values(descriptor_id=None))

    await alone.services.database.write(forget)
    assert await call(alone, "PATCH", "/account", {"payout_address": None}) == (422, "invalid-value")
    await alone.sell(price_sat=50_000, depth=2)
    assert await call(alone, "POST", "/payouts", {"all": True}) == (409, "payout-target-missing")
    assert "nowhere to pay out to" in (await balance(alone))["blocked"]
    mine = await alone.new_address()
    # The first one counts at once.
    assert (await patch(alone, payout_address=mine))["payout_plan"]["target"]["address"] == mine
    stolen = await (await OutsideWallet.create(world, "another thief's")).descriptor()
    account = await patch(alone, payout_descriptor=stolen, settlement="direct")
    assert (account["payout"], account["settlement"]) == (None, "direct")
    assert account["pending_wallet"]["descriptor"] == stolen
    async with alone.till.ask(await alone.till.offer(), b"a" * 32) as answer:
        assert answer.status == 409  # nobody pays the thief
    await later(alone, DAY_S)
    assert (await call(alone, "GET", "/account"))[1]["payout"]["descriptor"] == stolen
    assert (await pay_out(alone))["address"] == mine


async def test_another_sellers_payouts_are_not_there(shop: HostedShop) -> None:
    await shop.sell(price_sat=50_000, depth=2)
    payout_id = (await pay_out(shop))["payout_id"]
    token = (await shop.till.server.new_seller("B")).token
    for method, path in (
        ("GET", f"/payouts/{payout_id}"),
        ("DELETE", f"/payouts/{payout_id}"),
        ("GET", f"/payouts?after={payout_id}"),
    ):
        assert await call(shop, method, path, token=token) == (404, "not-found")
    assert (await call(shop, "GET", "/payouts", token=token))[1]["items"] == []
    assert (await call(shop, "GET", "/balance", token=token))[1]["balance_sat"] == 0
    (_, mine) = await call(shop, "GET", f"/payouts/{payout_id}")
    assert mine["state"] == "approved"


async def test_nothing_is_paid_out_below_zero_or_while_payouts_are_stopped(shop: HostedShop) -> None:
    await shop.sell(price_sat=50_000, depth=2)

    async def restored(tx: Transaction) -> None:
        await tx.execute(insert(restores).values(id=1, restored_at=1, taken_at=1))

    async def resumed(tx: Transaction) -> None:
        await tx.execute(delete(restores))

    await shop.services.database.write(restored)
    assert await call(shop, "POST", "/payouts", {"all": True}) == (409, "payouts-stopped")
    assert "stopped" in (await balance(shop))["blocked"]
    await shop.services.database.write(resumed)
    await take(shop, 60_000)
    assert await call(shop, "POST", "/payouts", {"amount_sat": 2_000}) == (409, "balance-negative")
    view = await balance(shop)
    assert (view["balance_sat"], view["payable_sat"]) == (-15_100, 0)
    assert "15,100 sat below zero" in view["blocked"]


async def test_buyers_are_told_who_is_paid_and_only_new_invoices_change(shop: HostedShop) -> None:
    sold = await shop.till.offer()
    hosted = await shop.till.buy(sold)
    assert (await call(shop, "GET", f"/offers/{sold.offer_id}"))[1]["settlement"] == "hosted"
    account = await patch(shop, settlement="direct")
    assert "your own wallet" in account["settlement_note"]
    assert (await call(shop, "GET", f"/offers/{sold.offer_id}"))[1]["settlement"] == "direct"
    direct = await shop.till.buy(sold)
    (_, listed) = await call(shop, "GET", "/invoices")
    shown = {one["invoice_id"]: (one["settlement"], one["fee_sat"]) for one in listed["items"]}
    assert shown == {hosted.id: ("hosted", 600), direct.id: ("direct", 0)}
    account = await patch(shop, settlement="hosted")
    assert "The operator holds the money" in account["settlement_note"]
    assert (account["fee_percent"], account["fee_sat"], account["hosted_available"]) == ("10", 100, True)


async def test_without_hosted_sales_nobody_can_choose_them(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path) as till, till.server.session(till.account.token) as http:
        refused = await ask(http, "PATCH", "/account", {"settlement": "hosted"})
        assert refused == (409, "hosted-sales-off")
        (_, account) = await ask(http, "PATCH", "/account", {"settlement": "direct"})
        assert (account["settlement"], account["hosted_available"]) == ("direct", False)


async def test_who_chooses_hosted_sales_has_said_where_they_are_paid_out(shop: HostedShop) -> None:
    """The first target counts at once: it must not be a thief's, of a token that is stolen later."""
    stranger = await shop.till.server.new_seller()
    async with shop.till.server.session(stranger.token) as http:
        refused = await ask(http, "PATCH", "/account", {"settlement": "hosted"})
        assert refused == (422, "invalid-value")
        (_, account) = await ask(http, "GET", "/account")
        assert account["settlement"] == "direct"
        address = await shop.new_address()
        (_, account) = await ask(
            http, "PATCH", "/account", {"settlement": "hosted", "payout_address": address}
        )
        assert (account["settlement"], account["payout_plan"]["target"]["address"]) == ("hosted", address)


async def until_planned(shop: HostedShop) -> list[Any]:
    """The payouts after a turn of the plans; the server's own runner may have been there first."""
    await shop.services.payout_plans.pay_due()
    return list((await call(shop, "GET", "/payouts"))[1]["items"])


async def take(shop: HostedShop, amount_sat: int) -> None:
    """As a reorg would that takes back what was paid out already."""
    account, subject = ledger.seller(shop.seller_id), f"taken of {shop.seller_id}"
    taken = Booking(subject, Leg.OPERATOR, account, ledger.operator(), Msat(amount_sat * 1_000), Code.FEE)
    now = shop.till.server.clock()

    async def book(tx: Transaction) -> None:
        await books.append_missing(tx, [taken], [], reference=subject, now=now)

    await shop.services.database.write(book)


async def test_the_command_line_from_the_choice_to_the_payout(shop: HostedShop) -> None:
    async def bitcache(*words: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr), with nobody to be asked."""
        variables = {"BITCACHE_SERVER": shop.till.server.url, "BITCACHE_TOKEN": shop.till.account.token}
        done: Result = await asyncio.to_thread(CliRunner().invoke, app, words, env=variables)
        return done.exit_code, done.stdout, " ".join(done.stderr.split())

    async def shown(*words: str) -> Any:
        code, out, err = await bitcache(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    assert (await shown("settlement", "direct"))["settlement"] == "direct"
    # A person must say yes to the operator's holding the money.
    code, _, err = await bitcache("settlement", "hosted")
    assert (code, "if the operator loses it or keeps it, it is gone" in err) == (1, True)
    assert (await bitcache("settlement", "hosted", "--json"))[0] == 2
    code, out, _ = await bitcache("settlement", "hosted", "--yes")
    assert (code, "fee of a hosted sale: 10 % and 100 sat" in out) == (0, True)
    await shop.sell(price_sat=50_000, depth=2)
    assert "Payable now             44,900 sat" in (await bitcache("balance"))[1]

    mine = await shop.new_address()
    code, out, err = await bitcache("payout", "address", mine, "--yes")
    assert (code, f"on: {mine}." in out) == (0, True), err
    plan = await shown("payout", "address", "--wallet", "--yes")
    assert (plan["target"]["kind"], plan["pending_target"]) == ("wallet", None)
    assert (await bitcache("payout", "address"))[1] == (await bitcache("payout", "plan"))[1]
    code, _, err = await bitcache("payout", "cancel", "nosuch")
    assert (code, "`bitcache payout list` shows them" in err) == (1, True)
    assert (await bitcache("payout", "address", MAINNET, "--yes"))[0] == 1
    for amount in ("nan", "-5", "0", "1e3", "0.5sat"):
        assert (await bitcache("payout", "request", "--yes", "--", amount))[0] == 2
    code, _, err = await bitcache("payout", "request", "1btc", "--yes")
    assert (code, "44,900 sat can be paid out now" in err) == (1, True)
    code, _, err = await bitcache("payout", "request", "0.0002btc")
    assert (code, "Nothing was asked for" in err) == (1, True)
    code, out, err = await bitcache("payout", "request", "0.0002btc", "--yes")
    assert (code, "in the next batch" in out) == (0, True), err
    (listed,) = (await shown("payout", "list"))["items"]
    code, out, err = await bitcache("payout", "cancel", listed["payout_id"])
    assert (code, "called off" in out) == (0, True), err
    assert (await shown("payout", "request", "--all", "--yes"))["amount_sat"] == 44_900
    code, out, _ = await bitcache("payout", "plan", "--every", "month", "--threshold", "90000sat")
    assert ("By itself every month" in out, "90,000 sat are payable" in out) == (True, True)
    assert "Only when you ask" in (await bitcache("payout", "plan", "--off"))[1]
    assert (await bitcache("payout", "plan", "--every", "hour"))[0] == 2
