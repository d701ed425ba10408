"""The seller's page of money, as a browser without JavaScript sees it; the money is on a real node."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from bitcache.web.money import EVERY, SETTLEMENTS, TONES, months_back
from bitcache.web.words import ENGLISH, FRENCH
from regtest.world import RegtestWorld
from tests.hosted_shop import open_hosted_till
from tests.seller_browser import seller_browser
from tests.till import open_nodeless_till

PAGE = "/dashboard/money"
THIN = "\u202f"


def test_every_state_has_its_word_in_both_languages() -> None:
    wanted = {f"m_{state}" for state in TONES} | {f"m_every_{every}" for every in EVERY}
    wanted |= {f"m_{one}{hint}" for one in SETTLEMENTS for hint in ("", "_hint")}
    assert wanted <= ENGLISH.keys()
    assert wanted <= FRENCH.keys()


def test_months_go_back_from_the_present_one() -> None:
    # 2026-01-31 23:59:59 UTC
    months = months_back(1_769_903_999, 3)
    assert [name for name, _, _ in months] == ["2026-01", "2025-12", "2025-11"]
    assert all(months[n][1] == months[n + 1][2] for n in range(2))
    assert (months[0][2] - months[0][1]) == 31 * 86_400


async def test_a_balance_is_paid_out_from_the_page(world: RegtestWorld, tmp_path: Path) -> None:
    hosted = {"depth": 1, "fee_percent": "10"}
    async with (
        open_hosted_till(world, tmp_path, hosted=hosted, payout_change_delay_s=0) as shop,
        seller_browser(shop.till) as browser,
    ):
        await shop.sell(price_sat=100_000)
        await browser.get(f"/d/{(await shop.till.offer()).offer_id}")
        assert "Paid to the operator of this server, who owes it to the seller" in browser.words
        await browser.get(PAGE)
        assert browser.status == 200
        assert f"The operator holds 90{THIN}000 sat" in browser.words
        assert "Nothing is paid out now" not in browser.words

        address = await shop.new_address()
        await browser.get(PAGE)
        for form, fields in (
            ("plan", {"every": "week", "threshold_sat": "500 000"}),
            ("target", {"address": address}),
        ):
            await browser.get(PAGE)
            await browser.send(f"{PAGE}/{form}", **fields)
            assert browser.status == 303, browser.words
        await browser.get(PAGE)
        assert f'value="{address}"' in browser.text
        assert 'value="500000"' in browser.text
        assert "Next by itself" in browser.words

        for wrong, says in (("12.5", "whole number"), ("100 000", "90,000"), ("5", "no output below")):
            await browser.get(PAGE)
            await browser.send(f"{PAGE}/payout", amount_sat=wrong)
            assert browser.status == 422
            assert says in browser.words, browser.words[200:1500]
            assert f'value="{wrong}"' in browser.text

        await browser.get(PAGE)
        page = browser.text
        for _ in range(2):
            browser.text = page
            await browser.send(f"{PAGE}/payout", amount_sat="60 000")
            assert browser.status == 303
        await browser.get(PAGE)
        assert f"In payouts under way 60{THIN}000" in browser.words, "a form that is sent twice is one payout"
        assert f"Can be paid out now 30{THIN}000" in browser.words
        await browser.send(f"{PAGE}/payout", amount_sat="")
        batch_id = await shop.build()
        await shop.send(batch_id)
        await browser.get(f"{PAGE}?lang=fr")
        assert "Envoyé" in browser.words
        await shop.mine()
        await browser.get(PAGE)
        assert browser.words.count("Done") == 2
        assert await shop.received_sat(address) == 90_000 - (await shop.batch(batch_id)).newest.fee_sat

        await browser.get("/dashboard/statement.csv")
        rows = list(csv.DictReader(io.StringIO(browser.text)))
        assert rows[-1]["balance_sat"] == "0"


async def test_a_payout_is_called_off_and_another_sellers_is_not(world: RegtestWorld, tmp_path: Path) -> None:
    async with (
        open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop,
        seller_browser(shop.till) as mine,
    ):
        await shop.sell(price_sat=50_000)
        payout = await shop.request(20_000)
        other = await shop.till.server.new_seller()
        async with seller_browser(shop.till, other.account_id) as stranger:
            await stranger.get(PAGE)
            await stranger.send(f"{PAGE}/payouts/{payout.id}/cancel")
            assert stranger.status == 404
        await mine.get(PAGE)
        await mine.send(f"{PAGE}/payouts/{payout.id}/cancel")
        assert mine.status == 303
        await mine.get(PAGE)
        assert "Called off" in mine.words
        assert f"Can be paid out now 50{THIN}000" in mine.words
        await mine.get(f"{PAGE}?after={payout.id}")
        assert mine.status == 200
        await mine.get(f"{PAGE}?after={'a' * 26}")
        assert mine.status == 303, "an id of nobody's leads to the first page"


@pytest.mark.parametrize("offered", [False, True])
async def test_hosted_sales_are_chosen_where_they_are_offered(
    world: RegtestWorld, tmp_path: Path, offered: bool
) -> None:
    if not offered:
        async with open_nodeless_till(tmp_path) as till, seller_browser(till) as browser:
            await browser.get(PAGE)
            assert "Who buyers pay" not in browser.words
            await browser.send(f"{PAGE}/settlement", settlement="hosted")
            assert browser.status == 422
            assert "no hosted sales" in browser.words
        return
    async with open_hosted_till(world, tmp_path) as shop, seller_browser(shop.till) as browser:
        for settlement, status in (("direct", 303), ("hosted", 303), ("neither", 422)):
            await browser.get(PAGE)
            await browser.send(f"{PAGE}/settlement", settlement=settlement)
            assert browser.status == status, settlement
        await browser.get(PAGE)
        assert 'value="hosted" checked' in browser.text
        await browser.get("/dashboard")
        assert "nobody can pay you" not in browser.words
