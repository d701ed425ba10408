"""A real browser earns an address: off the page, in words, and the server takes what it found."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Route

from bitcache.config import LimitsConfig
from tests.browser import NewVisitor, until
from tests.market import Market, open_free_market, ordered, ready

pytestmark = pytest.mark.asyncio(loop_scope="session")

BITS = 19
LIMITS = LimitsConfig(invoices_per_minute_in_total=1, work_bits_min=BITS, work_bits_max=BITS)
# Kept for the page that follows.
WATCH_BUTTON = """() => {
  const button = document.querySelector('#pay button');
  const said = [];
  let ticks = 0;
  new MutationObserver(() => {
    said.push(button.textContent);
    sessionStorage.said = JSON.stringify(said);
  }).observe(button, {childList: true, characterData: true, subtree: true});
  setInterval(() => { sessionStorage.ticks = ticks += 1; }, 10);
}"""


def crowd(market: Market) -> None:
    """More invoices than the operator likes."""
    for _ in range(50):
        market.till.server.services.limits.invoices_in_total.note()


async def test_the_page_says_what_it_is_at_and_stays_usable(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_free_market(tmp_path, limits=LIMITS) as market:
        link = await market.sell()
        crowd(market)
        for locale, words in (
            ("en-US", "works for an address: 0 %"),
            ("fr-FR", "calcule pour une adresse : 0 %"),
        ):
            visitor = await new_visitor(locale=locale)
            page = await ready(await visitor.goto(link))
            await page.evaluate(WATCH_BUTTON)
            assert (await market.invoice(await ordered(page)))["key_allowed"]
            said = await page.evaluate("JSON.parse(sessionStorage.said)")
            assert any(words in one for one in said), said
            # The search did not hold up the page's own thread.
            assert int(await page.evaluate("sessionStorage.ticks")) > 1


async def test_a_browser_refuses_to_compute_for_ever(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_free_market(tmp_path) as market:
        link = await market.sell()
        visitor = await new_visitor()
        page = await ready(await visitor.goto(link))

        async def demand(route: Route) -> None:
            await route.fulfill(
                status=428,
                content_type="application/problem+json",
                body='{"type": "/problems/proof-of-work-required", "title": "", "status": 428, "detail": "",'
                ' "work": {"challenge": "AAAA", "bits": 31, "expires_at": 1}}',
            )

        await page.route("**/api/v1/offers/*/invoices", demand)
        await page.locator("#pay button").click()
        await until(page, "!document.getElementById('trouble').hidden", "the trouble to be told")
        assert "earned" in await page.locator("#trouble").inner_text()
        assert await page.locator("#pay button").is_enabled()
