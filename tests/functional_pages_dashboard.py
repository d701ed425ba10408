"""Earnings in a real browser: they move by themselves, and titles are where the browser has them."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page

from bitcache.web.session_cookie import COOKIE
from regtest.world import RegtestWorld
from tests.browser import PHONE, NewVisitor, Visitor, until, violations
from tests.seller_browser import session_secret
from tests.till import Sold, Till, open_nodeless_till, open_till

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = '<img src=x onerror="document.title = 1"> & "Tapes" {field}'
LINK_SECRET = "A" * 43


async def sign_in(visitor: Visitor, till: Till) -> None:
    cookie = {
        "name": COOKIE,
        "value": await session_secret(till),
        "domain": urlsplit(till.server.url).hostname,
        "path": "/",
        "httpOnly": True,
        "sameSite": "Strict",
    }
    await visitor.context.add_cookies([cookie])  # type: ignore[list-item]


async def keep_link(page: Page, sold: Sold, title: str) -> None:
    """What the upload page leaves in the browser."""
    await page.evaluate(
        "async (link) => (await import('/static/kept.js')).keepLink(link)",
        {"offerId": sold.offer_id, "parcelId": sold.parcel_id, "title": title, "linkSecret": LINK_SECRET},
    )


async def test_the_page_follows_a_payment_and_keeps_its_place(
    world: RegtestWorld, new_visitor: NewVisitor, tmp_path: Path
) -> None:
    async with open_till(world, tmp_path) as till:
        sold = await till.offer(price_sat=5_000)
        seller = await new_visitor(viewport=PHONE, timezone_id="Europe/Paris")
        await sign_in(seller, till)
        page = await seller.goto(f"{till.server.url}/dashboard")
        await page.get_by_text("This page updates by itself.").wait_for()
        # The browser's zone is taken, and stays in the address.
        await page.locator("#part-span", has_text="Europe/Paris").wait_for()
        assert "zone=Europe%2FParis" in page.url
        await keep_link(page, sold, HOSTILE)
        await page.locator("#chart-table-open").click()
        await page.locator("#csv").focus()
        await page.evaluate("window.stays = true; scrollTo(0, 200)")

        bought = await till.buy(sold)
        payment = page.locator("#part-payments li", has_text=bought.invoice["reference"])
        await payment.get_by_text("Waiting").wait_for()
        # A title is text, whatever it holds, and is there from the first moment.
        assert await payment.locator(".name").text_content() == HOSTILE
        await till.pay(bought)
        await payment.get_by_text("Seen").wait_for()
        assert "On its way 5\u202f000 sat" in await figures(page)
        await world.mine()
        await payment.get_by_text("Paid").wait_for()
        assert "Received 5\u202f000 sat" in await figures(page)
        await page.locator("#part-top .name", has_text=HOSTILE).wait_for()

        # Nobody who reads there is disturbed.
        assert await page.evaluate("window.stays")
        assert await page.evaluate("document.getElementById('chart-table').open")
        assert await page.evaluate("document.activeElement.id") == "csv"
        assert await page.evaluate("scrollY") == 200
        assert await page.title() == "Earnings · Bitcache"

        # Another browser of the same seller has no link: the short id, and why.
        elsewhere = await new_visitor()
        await sign_in(elsewhere, till)
        other = await elsewhere.goto(f"{till.server.url}/dashboard")
        await other.locator("#part-top .name", has_text=sold.parcel_id[:8]).wait_for()
        assert "only in a browser that keeps the link" in await other.inner_text("#part-top")

        # Signed out elsewhere: the next change shows the sign-in page, and no figures.
        await seller.context.clear_cookies()
        await till.buy(sold)
        await page.locator("#part-figures").wait_for(state="detached")


async def test_titles_and_links_are_where_the_browser_keeps_them(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    async with open_nodeless_till(tmp_path) as till:
        kept, unknown = await till.offer(price_sat=5_000), await till.offer(price_sat=0)
        seller = await new_visitor()
        seller.secrets.add(LINK_SECRET)
        await seller.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await sign_in(seller, till)
        page = await seller.goto(f"{till.server.url}/dashboard/offers")
        await keep_link(page, kept, HOSTILE)
        await page.reload()
        assert await page.locator(f"#name-{kept.parcel_id}").inner_text() == HOSTILE
        assert await page.locator(f"#name-{unknown.parcel_id}").inner_text() == unknown.parcel_id[:8]
        assert await page.get_by_role("button", name="Copy link").count() == 1
        await page.locator(f"#at-{unknown.offer_id}", has_text="does not keep the link").wait_for()

        # A new offer of the parcel has a link too: the secret is the parcel's.
        shown = page.locator(f"#at-{kept.parcel_id}")
        await shown.get_by_text("New offer").click()
        await page.locator(f"#price-{kept.parcel_id}").fill("500")
        await page.get_by_role("button", name="Offer it").click()
        await page.get_by_text("The least price here").wait_for()
        # A browser focuses a field by itself when the page is there, not with its first words.
        await until(
            page, f"document.activeElement.id === 'price-{kept.parcel_id}'", "the field to be at hand"
        )
        await page.locator(f"#price-{kept.parcel_id}").fill("7 000")
        await page.get_by_role("button", name="Offer it").click()
        await page.get_by_text("The parcel is on offer.").wait_for()
        newest = page.locator(f"#at-{kept.parcel_id} .offer").first
        await newest.get_by_role("button", name="Copy link").click()
        await newest.get_by_role("button", name="The link is copied.").wait_for()
        offer_id = await newest.get_attribute("data-offer")
        assert offer_id != kept.offer_id
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == f"{till.server.url}/d/{offer_id}#1.{LINK_SECRET}"


async def test_no_barriers_in_either_language_theme_or_width(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        await till.buy(await till.offer(price_sat=0))
        await till.offer(price_sat=5_000, closed_at=1)
        for options in (
            {"locale": "en-US", "color_scheme": "light"},
            {"locale": "fr-FR", "color_scheme": "dark"},
        ):
            seller = await new_visitor(viewport=PHONE, **options)
            await sign_in(seller, till)
            page = await seller.goto(f"{till.server.url}/dashboard?from=2026-13-01")
            await until(page, "document.querySelectorAll('#part-payments li').length === 1")
            for summary in await page.locator("summary").all():
                await summary.click()
            assert await violations(page) == []
            assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            await seller.goto(f"{till.server.url}/dashboard/offers", page)
            for summary in await page.locator("summary").all():
                await summary.click()
            assert await violations(page) == []
            assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


async def figures(page: Page) -> str:
    return " ".join((await page.inner_text("#part-figures")).replace("\u202f", "\0").split()).replace(
        "\0", "\u202f"
    )
