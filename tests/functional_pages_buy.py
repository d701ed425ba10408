"""A buyer at the pages, in a real browser, paying on a real node: from the link to the last byte."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from playwright.async_api import Page, Route

from bitcache.api.wire import PolicyView
from regtest.world import RegtestWorld
from storage import base64url
from tests.browser import PHONE, NewVisitor, downloaded, until
from tests.market import (
    GOODS,
    invoice_id_of,
    open_free_market,
    open_market,
    ordered,
    png,
    ready,
    unlocked,
    until_state,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Chromium tells what moved without having been touched.
WATCH_SHIFTS = """() => {
  window.shifted = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      for (const source of entry.sources) window.shifted.push(source.node?.outerHTML.slice(0, 120));
    }
  }).observe({type: 'layout-shift'});
}"""


def unzipped(octets: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(octets)) as archive:
        assert archive.testzip() is None
        return {info.filename: archive.read(info) for info in archive.infolist()}


async def test_from_the_link_to_the_last_byte(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_market(world, tmp_path) as market:
        link = await market.sell(price_sat=5_000, note="All of it.", preview=png())
        buyer = await new_visitor(viewport=PHONE, permissions=["clipboard-read", "clipboard-write"])
        page = await ready(await buyer.goto(link))
        assert await page.locator("h1").inner_text() == "Summer in Lyon"
        assert "Photos/Été à Lyon.bin" in await page.locator("#files").inner_text()
        assert await page.locator("#note").inner_text() == "All of it."
        await until(page, "!document.getElementById('preview').hidden", "the preview")
        invoice_id = await ordered(page)
        text = await page.locator("main").inner_text()
        view = await market.invoice(invoice_id)
        assert text.index("Keep this receipt") < text.index(view["address"])
        assert "0.00005000" in text
        assert await page.locator("#live .qr svg").count() == 1
        for button, copied in (("Copy amount", "0.00005000"), ("Copy address", view["address"])):
            await page.get_by_role("button", name=button).click()
            assert await page.evaluate("navigator.clipboard.readText()") == copied
        wallet = page.get_by_role("link", name="Open in a wallet")
        assert await wallet.get_attribute("href") == view["uri"]
        # Fifteen minutes are no hurry.
        assert await page.locator("#hold").is_hidden()
        await page.evaluate(WATCH_SHIFTS)
        await market.pay(invoice_id, 2_000)
        await until_state(page, "underpaid")
        assert "0.00003000" in await page.locator("#live").inner_text()
        await market.pay(invoice_id)
        await until_state(page, "seen")
        await world.mine()
        await until_state(page, "paid")
        await unlocked(page)
        assert await page.evaluate("window.shifted") == []
        assert "Paid. The files are unlocked" in await page.locator("[role=status]").first.inner_text()
        name, octets = await downloaded(page, page.locator("#get-all").click)
        assert name == "Summer in Lyon.zip"
        assert unzipped(octets) == GOODS
        await until(page, "document.getElementById('get-status').textContent.startsWith('Done')")
        receipt = await page.locator("#receipt-link").inner_text()
        await page.emulate_media(media="print")
        assert await page.locator("#receipt-code svg").is_visible()
        assert await page.locator("#live").is_hidden()

        # Another device, with nothing but the receipt.
        other = await new_visitor()
        elsewhere = await ready(await other.goto(receipt))
        await unlocked(elsewhere)
        assert await elsewhere.locator("h1").inner_text() == "Summer in Lyon"
        one = elsewhere.get_by_role("button", name="Download Read me.txt")
        assert await downloaded(elsewhere, one.click) == ("Read me.txt", GOODS["Read me.txt"])

        # The link again, in the browser that bought: it leads to the receipt.
        again = await ready(await buyer.goto(link))
        await again.get_by_role("link", name="Français").click()
        await again.wait_for_url("**lang=fr**")
        await ready(again)
        assert await again.locator("h1").inner_text() == "Summer in Lyon"
        await again.locator("#bought .go").click()
        await again.wait_for_url("**/r/**")
        assert invoice_id_of(again.url) == invoice_id


async def test_the_download_runs_while_the_payment_confirms_and_the_files_appear(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_market(world, tmp_path) as market:
        goods = {"film.bin": bytes(range(256)) * 20_000}
        link = await market.sell(price_sat=5_000, goods=goods, policy=PolicyView(bytes_at=0, key_at=1))
        buyer = await new_visitor()
        page = await ready(await buyer.goto(link))
        invoice_id = await ordered(page)
        await market.pay(invoice_id)
        await until_state(page, "seen")
        early = "document.getElementById('get-status').textContent.startsWith('All encrypted bytes')"
        await until(page, early, "the encrypted bytes")
        assert (await market.invoice(invoice_id))["key_allowed"] is False

        async def mine() -> None:
            await world.mine()

        assert await downloaded(page, mine) == ("film.bin", goods["film.bin"])


async def test_a_page_that_was_closed_or_reloaded_goes_on(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_market(world, tmp_path) as market:
        link = await market.sell(price_sat=5_000)
        buyer = await new_visitor()
        page = await ready(await buyer.goto(link))
        # The answer to the first request is lost on its way.
        lost: list[str] = []

        async def lose(route: Route) -> None:
            if lost:
                await route.continue_()
            else:
                lost.append(route.request.post_data or "")
                await route.fetch()
                await route.abort()

        await page.route("**/api/v1/offers/*/invoices", lose)
        await page.locator("#pay button").click()
        await until(page, "!document.getElementById('trouble').hidden", "the trouble to be told")
        invoice_id = await ordered(page)
        async with market.till.http.get("/api/v1/invoices", headers=_seller(market.till)) as answer:
            assert [invoice["invoice_id"] for invoice in (await answer.json())["items"]] == [invoice_id]
        await page.close()
        await market.pay(invoice_id)
        await world.mine()
        # The payment's address without its secrets: this browser has kept them.
        back = await ready(await buyer.goto(f"{market.url}/r/{invoice_id}"))
        await unlocked(back)
        await back.reload()
        await unlocked(back)
        # A stranger's browser shows how it stands, and opens nothing.
        stranger = await ready(await (await new_visitor()).goto(f"{market.url}/r/{invoice_id}"))
        assert "without its secret" in await stranger.locator("#trouble").inner_text()
        assert await stranger.locator("#get").is_hidden()


def _seller(till: object) -> dict[str, str]:
    return {"Authorization": f"Bearer {till.account.token}"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda link: link.partition("#")[0], "This link is cut off"),
        (lambda link: link[:-5], "This link is cut off"),
        (lambda link: link[:-43] + "A" * 43, "does not belong to these files"),
        (lambda link: link.replace("#1.", "#2."), "This link is cut off"),
    ],
    ids=["no fragment", "cut", "another secret", "another version"],
)
async def test_a_wrong_link_is_told_before_anything_can_be_paid(
    new_visitor: NewVisitor, tmp_path: Path, damage: object, words: str
) -> None:
    async with open_free_market(tmp_path) as market:
        link = damage(await market.sell())  # type: ignore[operator]
        page = await ready(await (await new_visitor()).goto(link))
        assert words in await page.locator("[role=alert]").inner_text()
        assert "do not pay" in await page.locator("[role=alert]").inner_text()
        assert await page.locator("#pay").is_hidden()


async def test_what_a_seller_writes_is_text_and_nothing_else(new_visitor: NewVisitor, tmp_path: Path) -> None:
    evil = "<img src=x onerror=document.title='owned'><script>alert(1)</script>"
    async with open_free_market(tmp_path) as market:
        goods = {"<img src=x onerror=alert(1)>.txt": b"1", "b.txt": b"2"}
        link = await market.sell(goods=goods, title=evil, note=f"{evil}\n'\"&amp;")
        page = await ready(await (await new_visitor()).goto(link))
        assert await page.locator("h1").inner_text() == evil
        assert "<img src=x onerror=alert(1)>.txt" in await page.locator("#files").inner_text()
        assert await page.locator("main img:not(#preview), main script").count() == 0
        await ordered(page)
        await unlocked(page)
        assert await page.title() == f"{evil} · Bitcache"
        name, octets = await downloaded(page, page.locator("#get-all").click)
        assert set(unzipped(octets)) == set(goods)
        assert "/" not in name
        assert name.endswith(".zip")


async def test_a_key_that_is_not_the_sellers_is_told(new_visitor: NewVisitor, tmp_path: Path) -> None:
    """Whoever paid must not wait without a word for what cannot come."""

    async def lie(route: Route) -> None:
        answer = await route.fetch()
        claimed = await answer.json()
        if claimed["release_secret"]:
            claimed["release_secret"] = base64url.encode(bytes(32))
        await route.fulfill(response=answer, json=claimed)

    async with open_free_market(tmp_path) as market:
        buyer = await new_visitor()
        await buyer.context.route("**/claim", lie)
        page = await buyer.goto(await market.sell(goods={"a.txt": b"never seen"}))
        await ordered(page)
        await until(
            page, "document.getElementById('get-status').textContent.includes('The key does not open it')"
        )
        assert await page.locator("#get-all").is_hidden()


async def test_a_claim_that_fails_once_is_made_again(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_free_market(tmp_path) as market:
        _, receipt = await market.buy(await market.sell(goods={"a.txt": b"later"}))
        buyer = await new_visitor()
        page = await buyer.context.new_page()
        lost: list[Route] = []

        async def lose(route: Route) -> None:
            if len(lost) < 2:
                lost.append(route)
                await route.abort()
            else:
                await route.continue_()

        # No event comes any more: the invoice was settled long ago.
        await page.route("**/claim", lose)
        await buyer.goto(receipt, page)
        await unlocked(page)
        assert len(lost) == 2


async def test_a_receipt_of_somebody_else_is_no_purchase_of_mine(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    async with open_free_market(tmp_path) as market:
        link = await market.sell()
        _, planted = await market.buy(link)
        victim = await new_visitor()
        await unlocked(await ready(await victim.goto(planted)))
        page = await ready(await victim.goto(link))
        assert await page.locator("#bought").is_hidden()
        await ordered(page)
        page = await ready(await victim.goto(link))
        assert await page.locator("#bought").is_visible()


async def test_keys_alone_lead_from_the_link_to_the_file(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_free_market(tmp_path) as market:
        link = await market.sell(goods={"a.txt": b"by keys"})
        page = await ready(await (await new_visitor()).goto(link))
        await _press(page, "Get it")
        await page.wait_for_url("**/r/**")
        await unlocked(page)
        assert await downloaded(page, lambda: _press(page, "Download and decrypt")) == ("a.txt", b"by keys")


async def _press(page: Page, name: str) -> None:
    """Go with Tab to what has this name, see that the focus shows, and press Enter."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent.trim()") == name:
            outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
            await page.keyboard.press("Enter")
            return
    pytest.fail(f"no way to {name!r} by keys")


async def test_the_price_counts_down_in_its_last_minutes(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_market(world, tmp_path, price_hold_s=8) as market:
        link = await market.sell(price_sat=5_000)
        page = await ready(await (await new_visitor()).goto(link))
        invoice_id = await ordered(page)
        assert (await page.locator("#hold").inner_text()).startswith("This price holds for 0:0")
        # Then the page says so by itself, hides the address, and gets today's price when asked.
        market.till.server.clock.advance(9)
        await until_state(page, "expired")
        assert (await market.invoice(invoice_id))["address"] is None
        assert await page.locator("#live .qr").count() == 0
        await page.get_by_role("button", name="Get today").click()
        await until_state(page, "waiting")
        assert invoice_id_of(page.url) == invoice_id


async def test_a_lost_line_is_told_and_mended(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_free_market(tmp_path) as market:
        buyer = await new_visitor()
        page = await ready(await buyer.goto(await market.sell()))
        await ordered(page)
        await unlocked(page)
        await until(page, "document.getElementById('connection').textContent === ''")
        await buyer.context.set_offline(True)
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await until(page, "document.getElementById('connection').textContent.startsWith('Connection lost')")
        await buyer.context.set_offline(False)
        await until(page, "document.getElementById('connection').textContent === ''")


async def test_without_scripts_a_buyer_gets_as_far_as_paying(
    new_visitor: NewVisitor, world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_market(world, tmp_path) as market:
        link = await market.sell(price_sat=5_000)
        buyer = await new_visitor(java_script_enabled=False)
        page = await buyer.goto(link)
        assert "names of the files are in your link" in await page.locator("main").inner_text()
        await page.locator("form button").click()
        text = await page.locator("main").inner_text()
        assert "First keep your receipt" in text
        assert "this is weaker" in text.lower() or "Safer:" in text
        invoice_id = invoice_id_of(text)
        await market.pay(invoice_id)
        await world.mine()
        await market.until(invoice_id, lambda view: bool(view["key_allowed"]), "the key")
        await page.goto(f"{market.url}/r/{invoice_id}")
        assert "The files are unlocked" in await page.locator("main").inner_text()
