"""Parcels and offers on the seller's page, as a browser without JavaScript changes them."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from sqlalchemy import select

from bitcache.db.tables import offers
from bitcache.ids import new_id
from bitcache.web.session_cookie import COOKIE
from tests.seller_browser import SellerBrowser, seller_browser, session_secret
from tests.till import Till, open_nodeless_till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(nodeless: Till) -> AsyncIterator[SellerBrowser]:
    async with seller_browser(nodeless) as browser:
        yield browser


async def price_of(till: Till, offer_id: str) -> int:
    found = await till.server.services.database.read(
        lambda tx: tx.scalar(select(offers.c.price_msat).where(offers.c.id == offer_id))
    )
    return int(found or 0) // 1000


async def test_prices_are_edited_and_refusals_are_words_in_place(
    nodeless: Till, browser: SellerBrowser
) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000, max_downloads=10)
    place = f"/dashboard/offers/{sold_parcel.offer_id}/price"
    await browser.get("/dashboard/offers")
    assert f"{sold_parcel.parcel_id[:8]} 1.0 MB, 1 file(s)" in browser.words
    assert "5\u202f000 sat Open 0 of 10 sold 1 confirmation(s)" in browser.words
    for typed, words in (
        ("999", "The least price here is 1\u202f000 sat"),
        ("2100000000000001", "all the bitcoins there are"),
        ("ten", "whole number of sat"),
        ("<b>", "whole number of sat"),
        ("", "whole number of sat"),
    ):
        await browser.send(place, price_sat=typed)
        assert browser.status == 422
        assert words in browser.words
        assert "<b>" not in browser.text
        assert await price_of(nodeless, sold_parcel.offer_id) == 5_000
    await browser.send(place, price_sat="21 000")
    assert browser.status == 303
    assert await price_of(nodeless, sold_parcel.offer_id) == 21_000
    await browser.get(browser.headers["Location"])
    assert "The price is changed" in browser.words
    assert "21\u202f000 sat Open" in browser.words


async def test_unconfirmed_offers_keep_to_the_servers_cap(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000, key_at=0, bytes_at=0)
    await browser.get("/dashboard/offers")
    await browser.send(f"/dashboard/offers/{sold_parcel.offer_id}/price", price_sat="10001")
    assert (browser.status, "Above 10\u202f000 sat" in browser.words) == (422, True)
    await browser.send(
        f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", price_sat="10001", confirmations="0"
    )
    assert (browser.status, "Above 10\u202f000 sat" in browser.words) == (422, True)
    await browser.send(
        f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", price_sat="7000", confirmations="99"
    )
    assert browser.status == 422
    await browser.send(
        f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", price_sat="7000", confirmations="3"
    )
    assert browser.status == 303
    await browser.get("/dashboard/offers")
    assert "7\u202f000 sat Open 0 sold 3 confirmation(s)" in browser.words


async def test_a_closed_offer_and_a_deleted_parcel_sell_no_more(
    nodeless: Till, browser: SellerBrowser
) -> None:
    sold_parcel = await nodeless.offer(price_sat=0, sizes=(2_000,))
    bought = await nodeless.buy(sold_parcel)
    await browser.get("/dashboard/offers")
    await browser.send(f"/dashboard/offers/{sold_parcel.offer_id}/close")
    assert browser.status == 303
    await browser.get(browser.headers["Location"])
    assert "The offer is closed." in browser.words
    assert "Free Closed 1 sold" in browser.words
    await browser.send(f"/dashboard/offers/{sold_parcel.offer_id}/price", price_sat="2000")
    assert (browser.status, "closed for good" in browser.words) == (422, True)
    await browser.send(f"/dashboard/parcels/{sold_parcel.parcel_id}/delete")
    await browser.get(browser.headers["Location"])
    assert "The parcel is deleted." in browser.words
    assert sold_parcel.parcel_id[:8] not in browser.words
    async with nodeless.ask(sold_parcel, bytes(32)) as answer:
        assert answer.status == 410
    # Who bought it keeps the right to it.
    async with nodeless.http.get(sold_parcel.content, headers=await nodeless.token(bought)) as answer:
        assert (answer.status, await answer.read()) == (200, sold_parcel.blobs[sold_parcel.file_id])


async def test_nobody_touches_what_belongs_to_another(nodeless: Till) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000)
    other = await nodeless.server.new_seller()
    async with seller_browser(nodeless, other.account_id) as rival:
        await rival.get("/dashboard/offers")
        assert sold_parcel.parcel_id[:8] not in rival.text
        for action, fields in (
            (f"/dashboard/offers/{sold_parcel.offer_id}/price", {"price_sat": "2000"}),
            (f"/dashboard/offers/{sold_parcel.offer_id}/close", {}),
            (f"/dashboard/parcels/{sold_parcel.parcel_id}/offer", {"price_sat": "2000"}),
            (f"/dashboard/parcels/{sold_parcel.parcel_id}/delete", {}),
            (f"/dashboard/offers/{new_id()}/close", {}),
        ):
            await rival.get("/dashboard/offers")
            await rival.send(action, **fields)
            assert rival.status == 404, action
        await rival.get(f"/dashboard/offers?after={sold_parcel.parcel_id}")
        assert rival.status == 404
    assert await price_of(nodeless, sold_parcel.offer_id) == 5_000
    async with nodeless.http.get(f"/api/v1/offers/{sold_parcel.offer_id}") as answer:
        assert (await answer.json())["state"] == "open"


async def test_forms_of_other_sites_change_nothing(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcel = await nodeless.offer(price_sat=5_000)
    place = f"/dashboard/offers/{sold_parcel.offer_id}/price"
    async with nodeless.http.post(
        place, data={"price_sat": "2000"}, cookies={COOKIE: await session_secret(nodeless)}
    ) as answer:
        assert answer.status == 403
    async with nodeless.http.post(place, data={"price_sat": "2000"}) as answer:
        assert answer.status == 401
    assert await price_of(nodeless, sold_parcel.offer_id) == 5_000


async def test_parcels_page_newest_first(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcels = []
    for _ in range(23):
        sold_parcels.append((await nodeless.offer()).parcel_id)
        nodeless.server.clock.advance(1)
    await browser.get("/dashboard/offers")
    first = re.findall(r'<article class="parcel" id="at-([a-z2-7]{26})"', browser.text)
    assert first == sold_parcels[:2:-1]
    older = re.search(r'href="([^"]*after=[^"]*)">Older', browser.text)
    assert older is not None
    await browser.get(older[1].replace("&amp;", "&"))
    assert re.findall(r'<article class="parcel" id="at-([a-z2-7]{26})"', browser.text) == sold_parcels[2::-1]
    # A form comes back to the page on which it was.
    action = re.search(rf'action="([^"]*/parcels/{sold_parcels[0]}/offer[^"]*)"', browser.text)
    assert action is not None
    await browser.send(action[1].replace("&amp;", "&"), price_sat="3000")
    assert f"after={sold_parcels[3]}" in browser.headers["Location"]
