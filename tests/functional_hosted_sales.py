"""Hosted sales on a real node: the operator's wallet is paid, the seller is credited less the frozen fee."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select, update

from bitcache.config import HostedConfig
from bitcache.db.tables import accounts
from payments import ledger
from payments.ports import Transaction
from payments.tables import invoices
from regtest.world import RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till
from tests.till import open_till


async def settle_by(shop: HostedShop, settlement: str) -> None:
    async def choose(tx: Transaction) -> None:
        mine = accounts.c.id == shop.seller_id
        await tx.execute(update(accounts).where(mine).values(settlement=settlement))

    await shop.services.database.write(choose)


async def test_the_operator_is_paid_and_the_seller_credited(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"fee_percent": "2.5", "fee_sat": 10}) as shop:
        offer = await shop.till.offer(price_sat=10_001)
        bought = await shop.till.buy(offer)
        info = await shop.keys.rpc("getaddressinfo", bought.invoice["address"])
        assert info["ismine"]
        # What the seller or the operator changes now is of no concern to this invoice.
        await settle_by(shop, "direct")
        await shop.till.pay(bought, amount_sat=10_001 + 5_000)
        await shop.mine()
        await shop.till.until(bought, lambda view: bool(view["status"] == "settled"), "the sale")
        fee_sat = 10 + 250  # 2.5 % of 10,001, rounded down
        assert await shop.balances_sat() == {
            "chain": -15_001,
            ledger.seller(shop.seller_id): 10_001 - fee_sat,
            "operator": fee_sat,
            ledger.owed(bought.id): 5_000,
        }
        await world.reorg(1, keep_transactions=False)
        await shop.seen()
        assert await shop.balances_sat() == {}
        await shop.mine()
        assert (await shop.balances_sat())["operator"] == fee_sat

        direct = await shop.till.paid(offer)
        await shop.seen()
        found = await shop.balances_sat()
        assert found[ledger.direct(shop.seller_id)] == 10_001
        assert found["operator"] == fee_sat, "no fee is kept of a direct sale"
        assert not (await shop.keys.rpc("getaddressinfo", direct.invoice["address"]))["ismine"]


async def test_sellers_share_the_wallet_and_no_address(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path) as shop:
        other = await shop.till.server.new_seller()
        first = await shop.till.buy(await shop.till.offer())
        mine, shop.till.account = shop.till.account, other
        await settle_by(shop, "hosted")
        second = await shop.till.buy(await shop.till.offer())
        assert first.invoice["address"] != second.invoice["address"]

        async def sellers(tx: Transaction) -> set[tuple[str, int]]:
            rows = await tx.execute(select(invoices.c.seller_id, invoices.c.address_index))
            return {(row.seller_id, row.address_index) for row in rows.all()}

        assert await shop.services.database.read(sellers) == {
            (mine.account_id, 0),
            (other.account_id, 1),
        }


async def test_nobody_is_asked_to_pay_where_the_operator_cannot_be_paid(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """No wallet is named, or one that no node knows; money never goes to the seller's own instead."""
    for number, descriptor in enumerate(("", "wpkh(nonsense/0/*)", "tpubD6NzVbkrYhZ4nope")):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with open_till(world, folder, hosted=HostedConfig(descriptor=descriptor)) as till:
            offer = await till.offer()

            async def choose(tx: Transaction) -> None:
                await tx.execute(update(accounts).values(settlement="hosted"))

            await till.server.services.database.write(choose)
            async with till.ask(offer, bytes(32)) as answer:
                assert answer.status == 409, descriptor
                assert (await answer.json())["type"] == "/problems/seller-not-payable"


async def test_the_wallet_may_be_changed_and_the_old_one_is_still_watched(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(world, tmp_path) as shop:
        before = await shop.till.buy(await shop.till.offer(price_sat=20_000))

        async def rename(tx: Transaction) -> None:
            await tx.execute(update(accounts).values(name="a seller of the old wallet"))

        await shop.services.database.write(rename)
    async with open_hosted_till(world, tmp_path) as shop:
        after = await shop.till.buy(await shop.till.offer(price_sat=20_000))
        assert (await shop.keys.rpc("getaddressinfo", after.invoice["address"]))["ismine"]
        await shop.till.pay(before, amount_sat=20_000)
        await shop.till.pay(after, amount_sat=20_000)
        await shop.mine()
        assert (await shop.balances_sat())["chain"] == -40_000
