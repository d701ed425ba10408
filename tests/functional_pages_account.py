"""A seller's own pages in a real browser: from opening an account to a wallet that was compared; reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Request, Route
from sqlalchemy import select

from bitcache.db.tables import reports
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.browser import DESKTOP, PHONE, NewVisitor, until, violations
from tests.page_tour import sign_in
from tests.till import open_nodeless_till, open_till

pytestmark = pytest.mark.asyncio(loop_scope="session")

PASSWORD = "correct horse battery"
VIEWS: list[dict[str, Any]] = [
    {"locale": "en-US", "color_scheme": "light", "viewport": DESKTOP},
    {"locale": "fr-FR", "color_scheme": "dark", "viewport": PHONE},
]


async def press(page: Page, form: str) -> None:
    """The button of the form that goes to `form`; waits for what comes."""
    async with page.expect_navigation():
        await page.locator(f"form[action^='{form}?'] button").first.click()


async def fits(page: Page) -> None:
    """Nothing is wider than the screen, and axe finds nothing."""
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url
    assert await violations(page) == [], page.url


@pytest.mark.parametrize("view", VIEWS, ids=["desktop-light-en", "phone-dark-fr"])
async def test_a_seller_opens_an_account_and_sets_a_wallet(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path, view: dict[str, Any]
) -> None:
    async with open_till(world, tmp_path, registration="open", operator_name="Ada") as till:
        seller = await new_visitor(**view)
        page = await seller.goto(f"{till.server.url}/")
        await fits(page)
        await page.locator("a[href^='/sign-up']").click()
        await page.locator("#name").fill("Seller 1")  # the till's own
        await page.locator("#password").fill(PASSWORD)
        await press(page, "/sign-up")
        assert await page.locator("#name-wrong").count() == 1
        await fits(page)
        await page.locator("#name").fill("Ada's pictures of everything she saw in Lyon last summer")
        await page.locator("#password").fill(PASSWORD)
        await press(page, "/sign-up")
        await fits(page)

        descriptor = await (await OutsideWallet.create(world, f"page-{view['locale']}")).descriptor()
        await page.locator("#descriptor").fill(descriptor)
        await press(page, "/account/wallet")
        first = await world.outside.rpc("deriveaddresses", descriptor, [0, 2])
        assert await page.locator(".addresses li").all_inner_texts() == first
        await fits(page)
        await press(page, "/account/wallet/set")
        assert await page.locator(".addresses li").all_inner_texts() == first

        await page.locator("#label").fill("a laptop")
        await press(page, "/account/tokens")
        assert (await page.locator("#new-token").inner_text()).startswith("bcs_")
        await page.locator("#descriptor").fill("wpkh(oops")
        await press(page, "/account/wallet")
        assert await page.locator("#descriptor").input_value() == "wpkh(oops"
        await fits(page)
        await press(page, "/sign-out")
        await page.locator("#name").fill("nobody")
        await page.locator("#password").fill(PASSWORD)
        await press(page, "/sign-in")
        assert await page.locator("[role=alert]").count() == 1
        await fits(page)


@pytest.mark.parametrize("view", VIEWS, ids=["desktop-light-en", "phone-dark-fr"])
async def test_an_offer_is_reported(new_visitor: NewVisitor, tmp_path: Path, view: dict[str, Any]) -> None:
    async with open_nodeless_till(tmp_path) as till:
        sold = await till.offer(price_sat=0)
        visitor = await new_visitor(**view)
        page = await visitor.goto(f"{till.server.url}/d/{sold.offer_id}")
        await page.locator("a[href*='/report']").click()
        await page.locator("#message").fill("It is mine.")
        await fits(page)
        await page.locator("input[value=copyright]").check()
        await press(page, f"/d/{sold.offer_id}/report")
        assert await page.locator("[role=status]").count() == 1
        await fits(page)
        found = await till.server.services.database.read(lambda tx: tx.execute(select(reports)))
        assert [(row.reason, row.message) for row in found.all()] == [("copyright", "It is mine.")]


async def test_the_front_page_lists_what_this_browser_bought(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        buyer = await new_visitor()
        page = await buyer.goto(f"{till.server.url}/")
        assert not await page.locator("#purchases").is_visible()
        secrets = {"claimSecret": "C" * 43, "linkSecret": "L" * 43}
        buyer.secrets |= set(secrets.values())
        titles = {"a" * 26: "<img src=x onerror=alert(1)>", "b" * 26: ""}
        for number, (invoice_id, title) in enumerate(titles.items()):
            kept = {"invoiceId": invoice_id, "offerId": "o" * 26, "title": title, "at": number, **secrets}
            await _keep(page, f"bitcache.purchase.{number}", kept)
        # What no server ever answered, and what somebody else wrote.
        await _keep(page, "bitcache.purchase.2", {"invoiceId": "", "offerId": "o" * 26, "at": 2, **secrets})
        evil = {"invoiceId": "//evil.example/", "offerId": "", "title": "x", "at": 3, **secrets}
        await _keep(page, "bitcache.purchase.3", evil)
        await page.reload()
        links = page.locator("#purchases a")
        assert await links.all_inner_texts() == ["Without a title", "<img src=x onerror=alert(1)>"]
        assert await links.last.get_attribute("href") == (f"/r/{'a' * 26}?lang=en#1.{'C' * 43}.{'L' * 43}")
        await fits(page)
        # On somebody else's computer they can be forgotten, with what was fetched ahead for them.
        await page.evaluate(
            """async (id) => {
              const { invoiceFolder } = await import('/static/kept-ciphertext.js');
              const folder = await invoiceFolder(id, { create: true });
              await folder.getFileHandle('f', { create: true });
            }""",
            "a" * 26,
        )
        await page.locator("#purchases summary").click()
        await page.locator("#forget").click()
        gone = """(id) => import('/static/kept-ciphertext.js')
            .then((kept) => kept.invoiceFolder(id))
            .then(() => false, () => true)"""
        await until(page, gone, "the ciphertext to be gone", "a" * 26)
        await page.reload()
        assert not await page.locator("#purchases").is_visible()
        assert await page.evaluate("localStorage.length") == 0


async def _keep(page: Page, key: str, value: dict[str, Any]) -> None:
    await page.evaluate("([key, text]) => localStorage.setItem(key, text)", [key, json.dumps(value)])


async def test_forms_of_another_site_sign_nobody_out(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        seller = await new_visitor()
        page = await seller.goto(f"{till.server.url}/sign-in")
        await sign_in(page, till.account.token)
        posts: list[Request] = []
        seller.context.on("request", lambda sent: posts.append(sent) if sent.method == "POST" else None)
        await seller.context.route("http://evil.example/*", _evil)
        for path in ("/account/sign-out-everywhere", "/sign-out", "/account/password"):
            evil = await seller.goto("http://evil.example/")
            async with evil.expect_navigation():
                await evil.evaluate(
                    """(target) => {
                      const form = document.createElement('form');
                      Object.assign(form, { method: 'post', action: target });
                      document.body.append(form);
                      form.submit();
                    }""",
                    till.server.url + path,
                )
            assert posts[-1].url.endswith(path)
            assert "cookie" not in await posts[-1].all_headers()
            await evil.close()
        await page.goto(f"{till.server.url}/account")
        assert await page.locator("h1").inner_text() == "Account seller 1"


async def _evil(route: Route) -> None:
    await route.fulfill(body="<p>Free files!</p>", content_type="text/html")
