"""What is sold per chunk, on its page in a real browser: its commands hold a secret the server never has."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitcache import payout_targets
from bitcache.config import ChannelsConfig
from tests.browser import PHONE, NewVisitor, until
from tests.market import open_free_market, ready
from tests.metered_counter import HOSTED, NOBODYS_ADDRESS, with_seed

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_commands_are_copied_with_the_secret_that_only_the_browser_has(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    metered = {"channels": ChannelsConfig(enabled=True), "hosted": HOSTED, "prepare": with_seed}
    async with open_free_market(tmp_path, **metered) as market:
        server, account_id = market.till.server, market.till.account.account_id
        await server.services.database.write(
            lambda tx: payout_targets.set_target(
                tx, account_id, NOBODYS_ADDRESS, delay_s=0, now=server.clock()
            )
        )
        link = await market.sell(price_sat=None, metered_msat=10_000)
        secret = link.rpartition(".")[2]
        async with market.till.http.get(link.partition("#")[0]) as answer:
            assert secret not in await answer.text()

        buyer = await new_visitor(viewport=PHONE, permissions=["clipboard-read", "clipboard-write"])
        page = await ready(await buyer.goto(link))
        for command, copied in (
            (
                "open-command",
                f"bitcache channel open '{market.url}' --deposit 20000sat --change YOUR_ADDRESS",
            ),
            ("get-command", f"bitcache get '{link}'"),
        ):
            await page.locator(f'[data-copies="{command}"]').click()
            on_clipboard = "(text) => navigator.clipboard.readText().then((found) => found === text)"
            await until(page, on_clipboard, f"the clipboard to hold {copied}", copied)
        # There is nothing to press that would pay.
        assert await page.locator("#pay").count() == 0

        # Without the right secret nothing is to be copied: the money would open nothing.
        page = await ready(await buyer.goto(link[:-43] + "A" * 43))
        assert not await page.locator("#metered").is_visible()
