"""The seller's earnings, as a browser without JavaScript sees them; sales are on a real node."""

import csv
import datetime
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import event, insert, select, update

from bitcache.db.tables import accounts, offer_views
from bitcache.earnings import Period
from bitcache.funnel import funnel
from bitcache.offers import Changes
from bitcache.views import day_of
from bitcache.web.dashboard import ATTENTION_SHOWN, TONES
from bitcache.web.render import sat_text
from payments.attention import Attention
from payments.ports import Transaction
from payments.tables import descriptors, invoices
from payments.tables import transfers as transfers_table
from regtest.node import wait_until
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.seller_browser import SellerBrowser, seller_browser
from tests.till import Till, open_nodeless_till, open_till

DAY_S = 86_400
# 2026-03-10 12:00 UTC.
NOON = 1_773_144_000


@pytest_asyncio.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path, price_hold_s=60) as till:
        yield till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(nodeless: Till) -> AsyncIterator[SellerBrowser]:
    async with seller_browser(nodeless) as browser:
        yield browser


# The funnel, from real sales.


async def passed(till: Till, seller_id: str | None = None, *, since: int = 0) -> tuple[int, int, int, int]:
    period = Period(since, till.server.clock() + DAY_S, datetime.UTC)
    found = await till.server.services.database.read(
        lambda tx: funnel(tx, seller_id or till.account.account_id, period)
    )
    return found.views, found.invoices, found.paid, found.downloaded


async def test_the_funnel_counts_real_sales(till: Till) -> None:
    assert till.world is not None
    sold_parcel = await till.offer(price_sat=5_000, sizes=(2_000,))
    for _ in range(5):
        async with till.http.get(f"/d/{sold_parcel.offer_id}") as answer:
            assert answer.status == 200
    bought, unconfirmed = await till.buy(sold_parcel), await till.buy(sold_parcel)
    await till.buy(sold_parcel)  # never paid
    await till.pay(bought)
    await till.world.mine()
    await till.until(bought, lambda view: bool(view["key_allowed"]), "the key")
    await till.pay(unconfirmed)
    await till.until(unconfirmed, lambda view: view["status"] == "seen", "the payment")
    await till.server.services.views.poll_once()
    assert await passed(till) == (5, 3, 1, 0)
    async with till.http.get(sold_parcel.content, headers=await till.token(bought)) as answer:
        assert answer.status == 200
        await answer.read()

    async def downloaded() -> bool:
        # The server counts what it sent after the buyer has it.
        await till.server.services.grants.flush()
        return await passed(till) == (5, 3, 1, 1)

    await wait_until(downloaded, "the download to be counted")
    other = await till.server.new_seller()
    assert await passed(till, other.account_id) == (0, 0, 0, 0)
    # Of another period, nothing; views are of whole UTC days.
    assert await passed(till, since=till.server.clock() + 2 * DAY_S - 1) == (0, 0, 0, 0)


async def test_the_page_shows_sums_with_the_days_before(till: Till) -> None:
    sold_parcel = await till.offer(price_sat=5_000)
    now_sold, before = await till.paid(sold_parcel), await till.paid(sold_parcel)
    at = till.server.clock() - 10 * DAY_S
    await till.server.services.database.write(
        lambda tx: tx.execute(
            update(transfers_table).where(transfers_table.c.reference == before.id).values(created_at=at)
        )
    )
    waiting = await till.buy(sold_parcel)
    await till.pay(waiting)
    await till.until(waiting, lambda view: view["status"] == "seen", "the payment")
    async with seller_browser(till) as browser:
        await browser.get("/dashboard?days=7")
        figures = browser.part("figures")
        assert "Received 5\u202f000 sat 0.00005000 BTC ±0, 5\u202f000 before" in figures
        assert "Downloads sold 1 ±0, 1 before" in figures
        assert "On its way 5\u202f000 sat" in figures
        assert f"{sold_parcel.parcel_id[:8]} 5\u202f000 sat 1 sold" in browser.part("top")
        await browser.get("/dashboard?days=30")
        assert "10\u202f000 sat 0.00010000 BTC +10\u202f000, 0 before" in browser.part("figures")
        payments = browser.part("payments")
        for words in (now_sold.invoice["reference"], waiting.invoice["reference"], "Paid", "Seen"):
            assert words in payments
        txid = (await till.invoice(now_sold))["outputs"][0]["txid"]
        assert f'title="{txid}"' in browser.text
        assert f"{txid[:8]}…{txid[-8:]}" in payments
        # The sheet is of the same days.
        await browser.get("/dashboard/earnings.csv?days=7")
        assert browser.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert "attachment" in browser.headers["Content-Disposition"]
        lines = list(csv.reader(io.StringIO(browser.text)))
        assert [line[1:] for line in lines[1:]] == [[sold_parcel.parcel_id, "5000", "1", "0", "0"]]
    other = await till.server.new_seller()
    async with seller_browser(till, other.account_id) as browser:
        await browser.get("/dashboard")
        for words in (sold_parcel.parcel_id[:8], now_sold.invoice["reference"], "5\u202f000 sat"):
            assert words not in browser.words
        await browser.get(f"/dashboard?after={now_sold.id}")
        assert browser.status == 200
        assert before.invoice["reference"] not in browser.words
        await browser.get("/dashboard/earnings.csv")
        assert browser.text.split() == ["day,parcel_id,received_sat,sales,fee_sat,chunks"]


async def pass_watched(till: Till, seconds: int) -> None:
    """Let time pass under the watcher's eyes: a leap would count as an outage, which moves deadlines."""
    for _ in range(0, seconds, 10):
        till.server.clock.advance(10)
        await till.server.services.watcher.poll_once()


async def test_payments_that_went_wrong_need_attention_until_they_are_seen_to(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path, price_hold_s=60) as till, seller_browser(till) as browser:
        await _went_wrong(own_world, till, browser)


async def _went_wrong(world: RegtestWorld, till: Till, browser: SellerBrowser) -> None:
    sold_parcel = await till.offer(price_sat=5_000)
    under, late, over = [await till.buy(sold_parcel) for _ in range(3)]
    await till.pay(under, amount_sat=2_000)
    await till.pay(over, amount_sat=8_000)
    for bought in (under, over):
        await till.until(bought, lambda view: view["received_sat"] > 0, "the payment")
    await world.mine()
    await till.until(over, lambda view: bool(view["key_allowed"]), "the key")
    await till.server.services.database.write(
        lambda tx: till.server.services.offers.change(
            tx, till.account.account_id, sold_parcel.offer_id, Changes(close=True), now=till.server.clock()
        )
    )
    await pass_watched(till, 80)
    # The node's clock says when a payment came.
    await world.server.rpc("setmocktime", till.server.clock())
    await till.pay(late)
    await till.until(late, lambda view: view["received_sat"] > 0, "the late payment")
    # Many newer ones do not push them out.
    free = await till.offer(price_sat=0)
    for _ in range(25):
        await till.buy(free)
    await browser.get("/dashboard")
    attention_words = browser.part("attention")
    assert attention_words.startswith("Needs attention 3")
    assert f"Pay 3\u202f000 sat back to who names the number {over.invoice['reference']}" in attention_words
    assert "Only 2\u202f000 of 5\u202f000 sat came before the price expired" in attention_words
    assert "5\u202f000 sat came after the price had expired" in attention_words
    assert over.invoice["reference"] not in browser.part("payments")
    # Another seller can see to nothing of it.
    other = await till.server.new_seller()
    async with seller_browser(till, other.account_id) as rival:
        await rival.get("/dashboard")
        assert "Needs attention 1" in rival.part("attention")  # no wallet
        await rival.send(f"/dashboard/payments/{over.id}/done")
        assert rival.status == 404
    await browser.send(f"/dashboard/payments/{over.id}/done?days=7")
    assert browser.status == 303
    assert "days=7" in browser.headers["Location"]
    await browser.get("/dashboard")
    assert browser.part("attention").startswith("Needs attention 2")
    assert over.invoice["reference"] not in browser.part("attention")
    await browser.get("/dashboard?lang=fr")
    assert "Seuls 2\u202f000 des 5\u202f000 sat" in browser.part("attention")


async def test_a_reorg_shows_until_the_payment_is_back(own_world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(own_world, tmp_path) as till, seller_browser(till) as browser:
        payer = await BitWallet.create(own_world)
        await own_world.mine(3)
        bought = await till.buy(await till.offer(price_sat=5_000))
        payment = await payer.pay([(bought.invoice["address"], 5_000)])
        await own_world.mine()
        await till.until(bought, lambda view: view["status"] == "settled", "the block")
        await browser.get("/dashboard")
        assert "Nothing." in browser.part("attention")
        await own_world.reorg(2, keep_transactions=False)
        await till.until(bought, lambda view: bool(view["suspended"]), "the reorg")
        await browser.get("/dashboard")
        assert "The chain took this payment back" in browser.part("attention")
        assert "Suspended" in browser.part("payments")
        await browser.send(f"/dashboard/payments/{bought.id}/done")
        await browser.get("/dashboard")
        assert "Nothing." in browser.part("attention")
        await payer.send(payment)
        await own_world.mempool_wait(payment.txid)
        await own_world.mine()
        await till.until(bought, lambda view: bool(view["key_allowed"]), "the payment to be back")
        # What was seen to is forgotten with it: another reorg would be shown again.
        row = await till.server.services.database.read(
            lambda tx: tx.execute(select(invoices.c.attention, invoices.c.attended))
        )
        assert row.one() == (None, None)


# The page on a server without a node.


async def test_the_node_and_the_wallet_are_named_with_what_to_do(
    nodeless: Till, browser: SellerBrowser
) -> None:
    await browser.get("/dashboard")
    words = browser.part("attention")
    assert "cannot judge payments now" in words
    assert "bitcache doctor" in words
    assert "No payout wallet is set" in words
    assert 'href="/account?lang=en"' in browser.text


async def test_money_of_lost_invoices_is_named(nodeless: Till, browser: SellerBrowser) -> None:
    async def book(tx: Transaction) -> None:
        wallet = {"id": "wallet", "sealed_text": b"", "next_index": 0, "created_at": 0}
        await tx.execute(insert(descriptors).values(wallet))
        await tx.execute(update(accounts).values(descriptor_id="wallet"))
        for credit, amount_sat in (("unassigned:wallet", 4_321), ("unassigned:another", 99)):
            words = {"id": f"{credit}/in/0", "debit": "chain", "credit": credit, "code": "received"}
            booked = insert(transfers_table).values(**words, reference=credit, created_at=0)
            await tx.execute(booked.values(amount_msat=amount_sat * 1_000))

    await nodeless.server.services.database.write(book)
    await browser.get("/dashboard")
    words = browser.part("attention")
    assert f"{sat_text(4_321)} sat came into your wallet for invoices that this server lost" in words


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("zone=Mars/Olympus", "no such time zone"),
        # Decoded into a header, it would end the connection without an answer.
        ("zone=Mars%0D%0ASet-Cookie:%20x=y", "no such time zone"),
        ("from=2026-02-30", "Dates are written like"),
        ("from=2026-03-02&to=2026-03-01", "first day is after the last"),
        ("from=2010-01-01", "at most five years"),
        ("days=1", "Choose 7, 30, 90 or 365 days"),
    ],
)
async def test_bad_days_are_words_on_the_page_and_no_sheet(
    browser: SellerBrowser, query: str, words: str
) -> None:
    await browser.get(f"/dashboard?{query}")
    assert browser.status == 200
    assert words in browser.part("span")
    assert "Received 0 sat" in browser.part("figures")
    await browser.get(f"/dashboard/earnings.csv?{query}")
    assert (browser.status, browser.headers["Location"].partition("?")[0]) == (303, "/dashboard")
    await browser.get(browser.headers["Location"])
    assert words in browser.part("span")


async def test_the_form_takes_dates_and_the_page_names_them(browser: SellerBrowser) -> None:
    await browser.get("/dashboard?lang=en&days=30&from=2026-01-01&to=2026-12-31&zone=Europe/Paris")
    assert "2026-01-01 to 2026-12-31 Europe/Paris" in browser.part("span")
    assert "Week by week" in browser.part("chart")
    for path in re.findall(r'href="(\?[^"]*)"', browser.text):
        await browser.get("/dashboard" + path.replace("&amp;", "&"))
        assert browser.status == 200
        assert 'role="alert"' not in browser.text


async def test_payments_page_back_to_the_first(nodeless: Till, browser: SellerBrowser) -> None:
    free = await nodeless.offer(price_sat=0)
    references = []
    for _ in range(45):
        references.append((await nodeless.buy(free)).invoice["reference"])
    seen: list[str] = []
    path = "/dashboard"
    while path:
        await browser.get(path)
        listed = re.findall(r"BC-[A-Z0-9]{4}-[A-Z0-9]{4}", browser.part("payments"))
        seen += dict.fromkeys(listed)
        older = re.search(r'id="older" href="([^"]*)"', browser.text)
        path = "/dashboard" + older[1].replace("&amp;", "&").partition("#")[0] if older else ""
    assert sorted(seen) == sorted(references)
    assert len(seen) == 45
    await browser.get("/dashboard?after=nonsense")
    assert (browser.status, seen[0] in browser.part("payments")) == (200, True)


async def test_a_page_costs_a_fixed_number_of_queries(nodeless: Till, browser: SellerBrowser) -> None:
    free = await nodeless.offer(price_sat=0)
    reader = nodeless.server.services.database._reader.sync_engine
    statements: list[str] = []
    event.listen(reader, "before_cursor_execute", lambda _c, _u, statement, *_: statements.append(statement))

    async def cost(path: str) -> int:
        """The server's loops read too, now and then: the least of some counts is the page's own."""
        counts = []
        for _ in range(4):
            statements.clear()
            await browser.get(path)
            assert browser.status == 200
            counts.append(len([statement for statement in statements if "FROM events" not in statement]))
        return min(counts)

    await nodeless.buy(free)
    few = await cost("/dashboard"), await cost("/dashboard/offers")
    for _ in range(19):
        await nodeless.buy(free)
        await nodeless.offer()
    assert (await cost("/dashboard"), await cost("/dashboard/offers")) == few


async def test_attention_is_bounded_and_says_how_much_more_there_is(
    nodeless: Till, browser: SellerBrowser
) -> None:
    free = await nodeless.offer(price_sat=0)
    for _ in range(ATTENTION_SHOWN + 3):
        await nodeless.buy(free)
    await nodeless.server.services.database.write(
        lambda tx: tx.execute(update(invoices).values(attention="overpaid"))
    )
    await browser.get("/dashboard")
    words = browser.part("attention")
    assert words.startswith(f"Needs attention {ATTENTION_SHOWN + 3 + 2}")  # no node and no wallet either
    assert words.count("The buyer paid") == ATTENTION_SHOWN
    assert "And 3 older ones" in words


async def test_views_of_the_page_are_those_of_its_days(nodeless: Till, browser: SellerBrowser) -> None:
    sold_parcel = await nodeless.offer()
    now = nodeless.server.clock()
    for days_ago, views in ((0, 3), (6, 4), (7, 50)):
        await nodeless.server.services.database.write(
            lambda tx, at=now - days_ago * DAY_S, views=views: tx.execute(  # type: ignore[misc]
                insert(offer_views).values(offer_id=sold_parcel.offer_id, day=day_of(at), views=views)
            )
        )
    await browser.get("/dashboard?days=7")
    assert "Page views 7 Asked to pay 0 0 %" in browser.part("funnel")


def test_every_state_has_a_tone() -> None:
    assert {kind.value for kind in Attention} <= TONES.keys()
