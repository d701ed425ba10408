"""A buyer asks for money back on the page of the payment, in a real browser, and it comes on a real node."""

from __future__ import annotations

from pathlib import Path

import pytest

from regtest.world import RegtestWorld
from tests.browser import PHONE, NewVisitor, until, violations
from tests.hosted_shop import open_hosted_till
from tests.market import Market, ordered, ready, until_state
from tests.refund_desk import AT_ONCE, expire, paid_out, sellers

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAYS = "(words) => document.getElementById('refund-state').textContent.includes(words)"


async def test_a_buyer_tops_up_or_asks_for_the_money_back(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    async with open_hosted_till(world, tmp_path / "server", hosted=AT_ONCE) as shop:
        market = Market(shop.till, tmp_path)
        link = await market.sell(price_sat=50_000, goods={"a.txt": b"never seen"})
        page = await ready(await (await new_visitor(viewport=PHONE)).goto(link))
        invoice_id = await ordered(page)
        await market.pay(invoice_id, 30_000)
        await world.mine()
        await until_state(page, "underpaid")
        assert await page.locator("#refund").is_hidden()
        await market.until(invoice_id, lambda view: view["confirmed_sat"] == 30_000, "the block")
        await expire(shop, invoice_id)
        await page.reload()
        await until_state(page, "lapsed")
        # Both ways out are there.
        assert await page.get_by_role("button", name="Get today").is_visible()
        await page.locator("#refund-form").wait_for(state="visible")
        text = await page.locator("#refund-form").inner_text()
        assert "30\u202f000 sat" in text
        assert "must approve" in text
        assert await violations(page) == []

        address = await shop.new_address()
        field, button = page.locator("#refund-address"), page.locator("#refund-form button")
        await field.fill("not an address")
        await button.click()
        await until(page, "document.getElementById('refund-wrong').textContent.includes('no address')")
        await field.fill(address)
        await button.click()
        await until_state(page, "refunded")
        await until(page, SAYS, "the refund", "waits for approval")
        assert await page.locator("#refund-form").count() == 0
        assert await page.get_by_role("button", name="Get today").count() == 0
        assert address in await page.locator("#refund-state").inner_text()
        assert await violations(page) == []

        (listed,) = (await sellers(shop, "/refunds"))["items"]
        await sellers(shop, f"/refunds/{listed['refund_id']}/approve")
        await until(page, SAYS, "the approval", "next payouts")
        await shop.mine()
        txid = await paid_out(shop)
        await until(page, SAYS, "the transaction", txid)
        # Who has not the receipt sees how it stands, and can ask for nothing.
        other = await new_visitor(locale="fr")
        stranger = await ready(await other.goto(f"{market.url}/r/{invoice_id}?lang=fr"))
        assert "Remboursement" in await stranger.locator("#refund").inner_text()
