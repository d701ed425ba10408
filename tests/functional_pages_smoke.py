"""The pages load in a real browser: scripts, policy and words."""

from pathlib import Path

import pytest

from tests.browser import NewVisitor, violations
from tests.till import open_nodeless_till

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_offer_page_loads_without_a_fault(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        sold = await till.offer(price_sat=0)
        buyer = await new_visitor()
        page = await buyer.goto(f"{till.server.url}/d/{sold.offer_id}")
        assert await page.title() == "Files to download · Bitcache"
        assert await violations(page) == []
