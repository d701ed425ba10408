"""Every page in every state, in a real browser: no error, nothing blocked, and nothing axe-core objects to.

Each state is looked at in one of the eight ways (language, colours, width), all ways in turn;
`make soak-pages` looks at every state in every way.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from playwright.async_api import Browser

from regtest.world import RegtestWorld
from tests.browser import violations
from tests.page_tour import ALL_VIEWS, Tour, Tourist

pytestmark = pytest.mark.asyncio(loop_scope="session")

EVERYTHING = os.environ.get("SOAK_PAGES") == "1"


async def test_every_page_and_state_is_accessible(
    chromium: Browser, own_world: RegtestWorld, tmp_path: Path
) -> None:
    tour = Tour(own_world, tmp_path)
    tourist = Tourist(chromium, lambda: tour.token)
    turns = itertools.cycle(ALL_VIEWS)
    found, seen = [], []
    async for stop in tour.stops():
        for view in ALL_VIEWS if EVERYTHING else [next(turns)]:
            page = await tourist.open(stop, view)
            found += [f"{stop.name} {view}: {line}" for line in await violations(page)]
            # Nothing is wider than the screen: a phone would scroll sideways.
            if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{stop.name} {view}: wider than the screen")
            await page.close()
        seen.append(stop.name)
    await tourist.close()
    assert found == []
    assert len(seen) == len(set(seen)) > 30
