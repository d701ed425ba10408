"""The stream that tells a seller's page to look again: whose it is, when it ends, how many there are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import update

from bitcache.api import seller_streams
from bitcache.config import LimitsConfig
from bitcache.db.tables import sessions as sessions_table
from bitcache.web.session_cookie import COOKIE
from tests.seller_browser import session_secret
from tests.till import Till, open_nodeless_till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


async def next_event(stream: aiohttp.ClientResponse) -> str:
    async with asyncio.timeout(20):
        while True:
            line = (await stream.content.readline()).decode()
            if line.startswith("event:") or not line:
                return line.strip()


async def test_pages_hear_of_their_own_sellers_invoices(nodeless: Till) -> None:
    free = await nodeless.offer(price_sat=0)
    other = await nodeless.server.new_seller()
    cookies = [{COOKIE: await session_secret(nodeless, id_)} for id_ in (None, other.account_id)]
    async with (
        nodeless.http.get("/dashboard/events", cookies=cookies[0]) as own,
        nodeless.http.get("/dashboard/events", cookies=cookies[1]) as others,
    ):
        assert own.headers["Content-Type"].startswith("text/event-stream")
        await own.content.readline()
        await others.content.readline()
        await nodeless.buy(free)
        assert await next_event(own) == "event: changed"
        # The other one's own wallet is the first that it hears of.
        services = nodeless.server.services
        waiting = asyncio.ensure_future(next_event(others))
        await nodeless.buy(free)
        assert await next_event(own) == "event: changed"
        assert not waiting.done()
        services.stopping.set()
        assert await waiting == ""


async def test_streams_need_a_session_and_end_with_it(
    nodeless: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodeless.http.get("/dashboard/events") as answer:
        assert answer.status == 401
    monkeypatch.setattr(seller_streams, "PING_INTERVAL_S", 0.05)
    secret = await session_secret(nodeless)
    async with nodeless.http.get("/dashboard/events", cookies={COOKIE: secret}) as stream:
        for _ in range(6):
            assert await stream.content.readline() in (b": ping\n", b"\n")
        await nodeless.server.services.database.write(
            lambda tx: tx.execute(update(sessions_table).values(ended_at=1))
        )
        async with asyncio.timeout(20):
            assert (await stream.content.read()).replace(b": ping\n\n", b"") == b""


async def test_one_seller_cannot_take_all_streams(tmp_path: Path) -> None:
    limits = LimitsConfig(seller_streams_per_seller=1)
    async with open_nodeless_till(tmp_path, limits=limits) as nodeless:
        await one_seller_has_one_stream(nodeless)


async def one_seller_has_one_stream(nodeless: Till) -> None:
    cookies = {COOKIE: await session_secret(nodeless)}
    other = await nodeless.server.new_seller()
    async with nodeless.http.get("/dashboard/events", cookies=cookies) as first:
        await first.content.readline()
        async with nodeless.http.get("/dashboard/events", cookies=cookies) as second:
            assert second.status == 429
        theirs = {COOKIE: await session_secret(nodeless, other.account_id)}
        async with nodeless.http.get("/dashboard/events", cookies=theirs) as third:
            assert third.status == 200
