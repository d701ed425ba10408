"""Offers that are sold per chunk, as a whole, or both: what is taken, what is shown, what is refused."""

from __future__ import annotations

import html
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from sqlalchemy import select, update

from bitcache.config import ChannelsConfig, HostedConfig
from bitcache.db.tables import offers
from payments.money import MAX_MONEY_SAT
from storage.stream import CHUNK_SIZE_BYTES
from tests.metered_counter import MeteredCounter, open_metered_till, prices
from tests.plain_browser import Browser
from tests.seller_browser import seller_browser
from tests.till import pretend_node_online

WHOLE_MSAT = 5_000_000
CHUNK_MSAT = 10_000
CHUNKS = 3
METERED_VIEW = {
    "kind": "per_chunk",
    "amount_msat": CHUNK_MSAT,
    "chunk_bytes": CHUNK_SIZE_BYTES,
    "chunks": CHUNKS,
    "whole_msat": CHUNKS * CHUNK_MSAT,
}


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[MeteredCounter]:
    async with open_metered_till(tmp_path) as shop:
        yield shop


def refusal(answer: tuple[int, Any]) -> tuple[int, str, str | None]:
    """(status, problem, field)."""
    status, problem = answer
    assert status >= 400, problem
    return status, problem["type"].removeprefix("/problems/"), problem.get("field")


async def test_what_is_sold_per_chunk_says_what_the_whole_comes_to(shop: MeteredCounter) -> None:
    made = await shop.offer()
    assert (made["price"], made["metered"]) == (None, METERED_VIEW)
    status, seen = await shop.ask("GET", f"/offers/{made['offer_id']}")
    assert (status, seen["price"], seen["metered"], seen["state"]) == (200, None, METERED_VIEW, "open")
    status, listed = await shop.ask("GET", "/offers")
    assert {item["offer_id"]: item["metered"] for item in listed["items"]}[made["offer_id"]] == METERED_VIEW

    both = await shop.offer(price_msat=WHOLE_MSAT)
    assert (both["price"]["amount_msat"], both["metered"]) == (WHOLE_MSAT, METERED_VIEW)
    # Who reads the column alone asks for more than anybody has.
    column = select(offers.c.price_msat).where(offers.c.id == made["offer_id"])
    held = await shop.till.server.services.database.read(lambda tx: tx.scalar(column))
    assert held is not None
    assert held > MAX_MONEY_SAT * 1_000


async def test_chunks_of_each_file_are_rounded_up(shop: MeteredCounter) -> None:
    for sizes, chunks in (
        ((CHUNK_SIZE_BYTES - 1,), 1),
        ((CHUNK_SIZE_BYTES,), 1),
        ((CHUNK_SIZE_BYTES + 1,), 2),
        ((56,), 1),
        ((56, 56, CHUNK_SIZE_BYTES), 3),
    ):
        _, offer = await shop.make(await shop.parcel(sizes=sizes), metered_msat=1)
        assert (offer["metered"]["chunks"], offer["metered"]["whole_msat"]) == (chunks, chunks)


async def test_prices_that_make_no_sense_are_refused(shop: MeteredCounter) -> None:
    parcel = await shop.parcel()
    for price_msat, metered_msat, field in (
        (None, None, "price"),
        (0, CHUNK_MSAT, "metered"),
        (None, 0, "metered.amount_msat"),
        (None, 1_000_000_001, "metered.amount_msat"),
        # The floor of what is paid on chain holds for the whole, and not for a chunk.
        (999_000, CHUNK_MSAT, "price"),
    ):
        answer = await shop.make(parcel, price_msat=price_msat, metered_msat=metered_msat)
        assert refusal(answer) == (422, "invalid-value", field)
    for metered_msat in (1, 1_000_000_000):
        assert (await shop.make(parcel, metered_msat=metered_msat))[0] == 201
    answer = await shop.make(parcel, metered_msat=CHUNK_MSAT, max_downloads=3)
    assert refusal(answer) == (422, "invalid-value", "max_downloads")
    answer = await shop.make(parcel, price_msat=WHOLE_MSAT, metered_msat=CHUNK_MSAT, max_downloads=3)
    assert answer[0] == 201
    answer = await shop.make(parcel, metered_msat=CHUNK_MSAT, policy={"bytes_at": 0, "key_at": 1})
    assert refusal(answer) == (422, "invalid-value", "policy")


async def test_only_what_was_sealed_for_it_is_sold_per_chunk(shop: MeteredCounter) -> None:
    parcel = await shop.parcel(meterable=False)
    status, problem = await shop.make(parcel, metered_msat=CHUNK_MSAT)
    assert refusal((status, problem)) == (422, "invalid-value", "metered")
    assert "--metered" in problem["detail"]
    _, whole = await shop.make(parcel, price_msat=WHOLE_MSAT)
    answer = await shop.ask("PATCH", f"/offers/{whole['offer_id']}", prices(None, CHUNK_MSAT))
    assert refusal(answer) == (422, "invalid-value", "metered")


@pytest.mark.parametrize(
    ("changes", "target", "problem"),
    [
        ({"channels": ChannelsConfig()}, True, "channels-off"),
        ({"hosted": HostedConfig()}, True, "hosted-sales-off"),
        ({}, False, "payout-target-missing"),
    ],
)
async def test_who_cannot_be_paid_sells_nothing_per_chunk(
    tmp_path: Path, changes: dict[str, Any], target: bool, problem: str
) -> None:
    async with open_metered_till(tmp_path, target=target, changes=changes) as shop:
        parcel = await shop.parcel()
        assert refusal(await shop.make(parcel, metered_msat=CHUNK_MSAT)) == (409, problem, None)
        status, whole = await shop.make(parcel, price_msat=WHOLE_MSAT)
        assert status == 201
        edit = f"/offers/{whole['offer_id']}"
        assert refusal(await shop.ask("PATCH", edit, prices(None, CHUNK_MSAT))) == (409, problem, None)
        # What was on sale before the operator changed their mind can be stopped.
        put = update(offers).where(offers.c.id == whole["offer_id"]).values(metered_msat=CHUNK_MSAT)
        await shop.till.server.services.database.write(lambda tx: tx.execute(put))
        assert (await shop.ask("PATCH", edit, {"metered": None}))[1]["metered"] is None
        _, account = await shop.ask("GET", "/account")
        assert account["metered_available"] is (problem == "payout-target-missing")


async def test_one_price_always_stays(shop: MeteredCounter) -> None:
    offer = await shop.offer(price_msat=WHOLE_MSAT)
    edit = f"/offers/{offer['offer_id']}"
    _, changed = await shop.ask("PATCH", edit, prices(None, 2_500))
    assert (changed["price"]["amount_msat"], changed["metered"]["amount_msat"]) == (WHOLE_MSAT, 2_500)
    _, changed = await shop.ask("PATCH", edit, {"price": None})
    assert (changed["price"], changed["metered"]["whole_msat"]) == (None, CHUNKS * 2_500)
    assert refusal(await shop.ask("PATCH", edit, {"metered": None})) == (422, "invalid-value", "price")
    answer = await shop.ask("PATCH", edit, {"max_downloads": 5})
    assert refusal(answer) == (422, "invalid-value", "max_downloads")
    assert refusal(await shop.ask("PATCH", edit, prices(0, None))) == (422, "invalid-value", "metered")
    _, changed = await shop.ask("PATCH", edit, {**prices(WHOLE_MSAT, None), "metered": None})
    assert (changed["price"]["amount_msat"], changed["metered"]) == (WHOLE_MSAT, None)
    assert refusal(await shop.ask("PATCH", edit, {"price": None})) == (422, "invalid-value", "price")
    # Nothing above was half done.
    _, seen = await shop.ask("GET", edit)
    assert (seen["price"]["amount_msat"], seen["metered"]) == (WHOLE_MSAT, None)


async def test_no_invoice_pays_for_what_is_sold_per_chunk_alone(shop: MeteredCounter) -> None:
    till = shop.till
    await pretend_node_online(till)
    sold = await till.offer(price_sat=0, meterable=True, sold_whole=False, metered_msat=CHUNK_MSAT)
    async with till.ask(sold, os.urandom(32)) as answer:
        assert refusal((answer.status, await answer.json())) == (409, "metered-only", None)
    assert await shop.ask("GET", "/invoices") == (200, {"items": [], "next": None})
    async with till.http.get(f"/d/{sold.offer_id}") as page:
        assert "/pay" not in await page.text()


async def test_stopping_the_price_of_the_whole_ends_renewals_too(shop: MeteredCounter) -> None:
    till = shop.till
    sold = await till.offer(price_sat=0, meterable=True)
    bought = await till.buy(sold)
    assert bought.invoice["status"] == "settled"
    _, changed = await shop.ask(
        "PATCH", f"/offers/{sold.offer_id}", {"price": None, **prices(None, CHUNK_MSAT)}
    )
    assert changed["price"] is None
    # What was bought stays bought.
    assert (await till.claim(bought))[1]["key_allowed"] is True
    # The same claim is the same invoice; another one is none.
    assert (await till.buy(sold, secret=bought.claim_secret)).id == bought.id
    async with till.ask(sold, os.urandom(32)) as answer:
        assert answer.status == 409


# On the pages, without JavaScript.


class Page(NamedTuple):
    text: str
    words: str
    """In one line."""


async def page_of(shop: MeteredCounter, offer_id: str, language: str = "en") -> Page:
    async with Browser(shop.till) as browser:
        await browser.get(f"/d/{offer_id}?lang={language}")
        assert browser.status == 200
        words = html.unescape(re.sub(r"<[^>]*>", "", browser.text))
        return Page(browser.text, " ".join(re.split(r"[ \n]+", words)))


async def test_the_page_says_what_a_chunk_costs_and_how_to_buy(shop: MeteredCounter) -> None:
    await pretend_node_online(shop.till)
    alone = await shop.offer(metered_msat=1_500)
    both = await shop.offer(price_msat=WHOLE_MSAT, metered_msat=CHUNK_MSAT)
    url = shop.till.server.url
    page = await page_of(shop, alone["offer_id"])
    # 4.5 sat: the last one is a whole one.
    for words in ("1\u202f500 msat per chunk of 1 MiB", "all of it: 5 sat", "who owes it to the seller"):
        assert words in page.words, words
    assert f"bitcache channel open '{url}' --deposit 20000sat --change YOUR_ADDRESS" in page.words
    assert f"bitcache get '{url}/d/{alone['offer_id']}#…'" in page.words
    assert "<form" not in page.text
    assert 'id="pay"' not in page.text
    assert "days after payment" not in page.words

    page = await page_of(shop, both["offer_id"])
    assert "or 10 sat per chunk of 1 MiB all of it: 30 sat" in page.words
    assert f"bitcache get --metered '{url}/d/{both['offer_id']}#…'" in page.words
    assert "days after payment" in page.words

    page = await page_of(shop, both["offer_id"], "fr")
    assert "ou 10 sat par morceau de 1 Mio" in page.words
    assert "--change VOTRE_ADRESSE" in page.words


async def test_the_page_sells_nothing_per_chunk_where_it_cannot(shop: MeteredCounter, tmp_path: Path) -> None:
    offer = await shop.offer()
    page = await page_of(shop, offer["offer_id"])
    assert "Do not pay now" in page.words
    (tmp_path / "off").mkdir()
    async with open_metered_till(tmp_path / "off", changes={"channels": ChannelsConfig()}) as off:
        await pretend_node_online(off.till)
        sold = await off.till.offer(price_sat=0, meterable=True, sold_whole=False, metered_msat=CHUNK_MSAT)
        page = await page_of(off, sold.offer_id)
        assert "this server opens no channels" in page.words
        assert "bitcache channel open" not in page.words


async def test_the_shelf_shows_the_price_of_a_chunk_and_takes_one_of_the_whole(shop: MeteredCounter) -> None:
    offer = await shop.offer()
    place = f"/dashboard/offers/{offer['offer_id']}/price"
    async with seller_browser(shop.till) as browser:
        await browser.get("/dashboard/offers")
        assert "10 sat per chunk Open" in browser.words
        assert "Price of the whole in sat" in browser.words
        await browser.send(place, price_sat="0")
        assert browser.status == 422
        assert "Nobody pays per chunk for what is free as a whole" in browser.words
        await browser.send(place, price_sat="7000")
        assert browser.status == 303
        await browser.get("/dashboard/offers")
        assert "7\u202f000 sat 10 sat per chunk Open" in browser.words
