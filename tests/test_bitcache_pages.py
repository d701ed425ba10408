"""The pages as a browser without JavaScript uses them: every form, every refusal, both languages."""

import html
import re
import string
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec import structs
from sqlalchemy import func, select

from bitcache import accounts
from bitcache.api.wire import InvoiceRefundView, InvoiceView, PolicyView
from bitcache.on_sale import SaleState
from bitcache.role import Role
from bitcache.web.forms import FORM_LIFETIME_S
from bitcache.web.i18n import CATALOGUE, chosen_language
from bitcache.web.render import size_text
from bitcache.web.states import page_state, tone_of
from payments.tables import invoices
from regtest.node import wait_until
from regtest.world import RegtestWorld
from storage import base64url
from tests.plain_browser import Browser
from tests.service import running_server
from tests.till import Till, open_nodeless_till, open_till, pretend_node_online

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src 'self'; frame-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types bitcache"
)


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(till: Till) -> AsyncIterator[Browser]:
    async with Browser(till) as browser:
        yield browser


async def test_an_offer_says_what_it_is_before_anyone_pays(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=21_000, key_at=3, bytes_at=3, sizes=(1_500_000 // 2, 1_500_000 // 2))
    await browser.get(f"/d/{sold.offer_id}")
    assert browser.status == 200
    for words in (
        "21\u202f000",
        "0.00021000 BTC",
        "1.5 MB",
        "2 encrypted files",
        "3 confirmation",
        "90 days",
        "seller 1",
    ):
        assert words in browser.text, words
    assert f"bitcache get &#39;{till.server.url}/d/{sold.offer_id}#" in browser.text.replace("'", "&#39;")
    # Nobody can see a payment come: there is no button.
    assert "Do not pay now" in browser.text
    assert "<form" not in browser.text


async def test_a_seller_without_a_wallet_has_no_button(tmp_path: Path) -> None:
    # A web process has no watcher, which would find that there is no node.
    async with running_server(tmp_path, role=Role.WEB) as server, server.session() as http:
        till = Till(server, await server.new_seller())
        till.http = http
        await pretend_node_online(till)
        priced, free = await till.offer(price_sat=5_000), await till.offer(price_sat=0)
        async with Browser(till) as browser:
            await browser.get(f"/d/{priced.offer_id}")
            assert "has not set a wallet yet" in browser.text
            assert "<form" not in browser.text
            await browser.get(f"/d/{free.offer_id}")
            assert "has not set a wallet yet" not in browser.text
            assert "<form" in browser.text


@pytest.mark.parametrize(
    ("terms", "shown"),
    [
        (
            "https://x.org/terms?a=1&b=2",
            '<a href="https://x.org/terms?a=1&amp;b=2" rel="noreferrer">Terms</a>',
        ),
        ("mailto:ada@x.org", '<a href="mailto:ada@x.org" rel="noreferrer">Terms</a>'),
        ("javascript:alert(1)", "Terms: javascript:alert(1)"),
        ("data:text/html,x", "Terms: data:text/html,x"),
        ("Be <b>kind</b>", "Terms: Be &lt;b&gt;kind&lt;/b&gt;"),
        ('https://x.org/"><script>', 'href="https://x.org/&#34;&gt;&lt;script&gt;"'),
        ("", None),
    ],
)
async def test_the_foot_of_every_page_says_who_runs_the_server(
    tmp_path: Path, terms: str, shown: str | None
) -> None:
    operator = {"operator_name": "<Ada>", "operator_terms": terms, "operator_contact": "Ada & sons"}
    async with open_nodeless_till(tmp_path, **operator) as till, Browser(till) as browser:
        await browser.get("/dashboard")
    assert "run by &lt;Ada&gt;." in browser.text
    assert "Contact: Ada &amp; sons" in browser.text
    assert shown in browser.text if shown else "Terms" not in browser.text


async def test_every_page_keeps_to_the_policy(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0)
    await browser.get(f"/d/{sold.offer_id}")
    pages = [(browser.text, browser.headers)]
    await browser.submit(f"/d/{sold.offer_id}/pay")
    pages.append((browser.text, browser.headers))
    for path in ("/", "/sign-in", "/sign-up", f"/d/{sold.offer_id}/report", f"/d/{'a' * 26}"):
        await browser.get(path)
        pages.append((browser.text, browser.headers))
    await browser.get("/dashboard")
    await browser.submit("/sign-in", token=till.account.token)
    for path in ("/dashboard", "/account"):
        await browser.get(path)
        pages.append((browser.text, browser.headers))
    await browser.submit("/account/tokens?", label="shown once")
    pages.append((browser.text, browser.headers))
    for text, headers in pages:
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        parsed = Markup()
        parsed.feed(text)
        assert parsed.faults == []
    await browser.get("/static/app.css")
    assert browser.headers["Content-Type"].startswith("text/css")
    assert "url(" not in browser.text
    assert "@import" not in browser.text


async def test_a_free_offer_is_got_without_javascript(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0, sizes=(1000,))
    await browser.get(f"/d/{sold.offer_id}")
    await browser.submit(f"/d/{sold.offer_id}/pay")
    assert browser.status == 200
    receipt = re.search(r"/r/([a-z2-7]{26})#1\.([A-Za-z0-9_-]{43})\.", browser.text)
    assert receipt
    # The receipt comes before anything else, and is a real one.
    body = {"claim_secret": receipt[2]}
    async with till.http.post(f"/api/v1/invoices/{receipt[1]}/claim", json=body) as answer:
        assert (await answer.json())["key_allowed"] is True
    await browser.get(f"/r/{receipt[1]}")
    assert browser.status == 200
    assert receipt[2] not in browser.text
    assert "The files are unlocked" in browser.text


async def test_paying_shows_receipt_address_amount_and_code_then_the_state(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(world, tmp_path) as till, Browser(till) as browser:
        sold = await till.offer(price_sat=5_000)
        await browser.get(f"/d/{sold.offer_id}")
        await browser.submit(f"/d/{sold.offer_id}/pay")
        assert browser.status == 200
        invoice_id = re.search(r"/r/([a-z2-7]{26})#1\.", browser.text)
        assert invoice_id
        async with till.http.get(f"/api/v1/invoices/{invoice_id[1]}") as answer:
            view = await answer.json()
        assert view["address"] in browser.text
        assert html.escape(view["uri"]) in browser.text
        assert "0.00005000" in browser.text
        assert "<svg" in browser.text
        assert browser.text.index("#1.") < browser.text.index(view["address"])

        await world.faucet(view["address"], 5_000, confirmations=0)
        for words in ("Payment seen", "The files are unlocked"):
            await _until_shown(browser, f"/r/{invoice_id[1]}", words)
            assert view["uri"] not in browser.text
            await world.mine()


async def test_a_form_sent_twice_is_one_invoice(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0)
    await browser.get(f"/d/{sold.offer_id}")
    page = browser.text
    await browser.submit(f"/d/{sold.offer_id}/pay")
    first = browser.text
    browser.text = page
    await browser.submit(f"/d/{sold.offer_id}/pay")
    pattern = r"/r/[a-z2-7]{26}#1\.[A-Za-z0-9_-]{43}\."
    assert re.findall(pattern, browser.text) == re.findall(pattern, first)
    assert await _count_invoices(till) == 1
    await browser.get(f"/d/{sold.offer_id}")
    await browser.submit(f"/d/{sold.offer_id}/pay")
    assert await _count_invoices(till) == 2


async def test_a_form_that_no_database_keeps_is_refused(till: Till, browser: Browser) -> None:
    """PostgreSQL ends a statement at a null character: the answer was 500, and the log had the words."""
    sold = await till.offer(price_sat=0)
    for page, fields in (
        ("/sign-in", {"name": "seller\0", "password": "x" * 12}),
        (f"/d/{sold.offer_id}/report", {"reason": "other", "message": "words\0", "contact": "me"}),
    ):
        await browser.get(page)
        await browser.submit(page, **fields)
        assert browser.status == 400, page


async def test_forms_of_other_sites_other_browsers_and_other_times_are_refused(
    till: Till, browser: Browser
) -> None:
    sold = await till.offer(price_sat=0)
    pay = f"/d/{sold.offer_id}/pay"
    await browser.send(pay)
    assert browser.status == 403
    await browser.get(f"/d/{sold.offer_id}")
    page = browser.text
    async with Browser(till) as other:
        other.text = page
        await other.submit(pay)
        assert other.status == 403
    # A token of another form, in the right browser.
    await browser.get("/dashboard")
    token = re.search(r'name="form_token" value="([^"]+)"', browser.text)
    assert token
    await browser.send(pay, form_token=token[1])
    assert browser.status == 403
    till.server.clock.advance(FORM_LIFETIME_S + 1)
    browser.text = page
    await browser.submit(pay)
    assert browser.status == 403
    assert "too old" in browser.text
    assert await _count_invoices(till) == 0


async def test_large_and_strange_forms_are_refused(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0)
    pay = f"/d/{sold.offer_id}/pay"
    await browser.send(pay, form_token="x" * 10_000)
    assert browser.status == 413
    await browser.send(pay, **{f"field{n}": "x" for n in range(20)})
    assert browser.status == 400
    assert "<html" in browser.text


@pytest.mark.parametrize(
    ("columns", "words", "status"),
    [
        ({"closed_at": 1}, "closed by the seller", 410),
        ({"expires_at": 1}, "has expired", 410),
        ({"taken_down_at": 1}, "taken these files down", 451),
    ],
)
async def test_offers_that_sell_no_more_say_why(
    till: Till, browser: Browser, columns: dict[str, Any], words: str, status: int
) -> None:
    for_sale = await till.offer(price_sat=0)
    gone = await till.offer(price_sat=0, **columns)
    await browser.get(f"/d/{gone.offer_id}")
    assert words in browser.text
    assert "<form" not in browser.text
    # Who had the page open before presses the button all the same.
    await browser.get(f"/d/{for_sale.offer_id}")
    browser.text = browser.text.replace(for_sale.offer_id, gone.offer_id)
    await browser.submit(f"/d/{gone.offer_id}/pay")
    assert browser.status == status
    assert "<html" in browser.text


async def test_unknown_offers_and_payments_are_pages_too(browser: Browser) -> None:
    for path in (f"/d/{'a' * 26}", f"/r/{'a' * 26}"):
        await browser.get(path)
        assert browser.status == 404
        assert "Check the link" in browser.text


async def test_a_seller_signs_in_sees_the_sale_and_signs_out(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path) as till, Browser(till) as browser:
        sold = await till.offer(price_sat=5_000)
        bought = await till.paid(sold)
        await browser.get("/dashboard")
        await browser.submit("/sign-in", token=till.account.token)
        assert browser.status == 303
        assert browser.headers["Location"].startswith("/dashboard")
        session = next(cookie for cookie in browser.cookies if "bitcache_session" in cookie)
        assert "HttpOnly" in session
        assert "SameSite=Strict" in session
        assert till.account.token not in session
        await browser.get("/dashboard")
        assert "5\u202f000" in browser.text
        assert sold.parcel_id[:8] in browser.text
        assert bought.invoice["reference"] in browser.text
        await browser.submit("/sign-out")
        await browser.get("/dashboard")
        assert "Seller token" in browser.text


async def test_wrong_tokens_and_sessions_show_the_sign_in_page(till: Till, browser: Browser) -> None:
    await browser.get("/dashboard")
    await browser.submit("/sign-in", token="bcs_" + "a" * 52)
    assert browser.status == 401
    assert "not valid" in browser.text
    for forged in ("", "x", "AAAA", base64url.encode(bytes(200))):
        async with till.http.get("/dashboard", cookies={"bitcache_session": forged}) as answer:
            assert answer.status == 200
            assert "Seller token" in await answer.text()


async def test_revoking_the_token_or_waiting_ends_the_session(till: Till, browser: Browser) -> None:
    await browser.get("/dashboard")
    await browser.submit("/sign-in", token=till.account.token)
    await browser.get("/dashboard")
    assert "No payout wallet is set" in browser.text
    services = till.server.services
    await services.database.write(
        lambda tx: accounts.revoke_token(
            tx, till.account.account_id, till.account.token_id, now=till.server.clock()
        )
    )
    await browser.get("/dashboard")
    assert "Seller token" in browser.text
    fresh = await till.server.new_seller()
    await browser.submit("/sign-in", token=fresh.token)
    await browser.get("/dashboard")
    assert "No payout wallet is set" in browser.text
    till.server.clock.advance(12 * 3_600 + 1)
    await browser.get("/dashboard")
    assert "Seller token" in browser.text


async def test_pages_speak_french(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0)
    await browser.get(f"/d/{sold.offer_id}", **{"Accept-Language": "fr-CA,fr;q=0.9,en;q=0.5"})
    assert '<html lang="fr">' in browser.text
    assert "Vendeur" in browser.text
    await browser.submit(f"/d/{sold.offer_id}/pay")
    assert "Gardez" in browser.text
    await browser.get(f"/d/{sold.offer_id}?lang=en", **{"Accept-Language": "fr"})
    assert '<html lang="en">' in browser.text


def test_both_languages_have_the_same_words_and_fields() -> None:
    english, french = CATALOGUE["en"], CATALOGUE["fr"]
    assert english.keys() == french.keys()
    for key, text in english.items():
        assert _fields(text) == _fields(french[key]), key
        assert text.strip() == text != ""


@pytest.mark.parametrize(
    ("wish", "accepted", "language"),
    [
        (None, None, "en"),
        (None, "fr", "fr"),
        (None, "de, fr;q=0.3, en;q=0.2", "fr"),
        (None, "fr;q=0, en;q=0.1", "en"),
        (None, "\x00,;;q=9,fr;q=x", "en"),
        ("fr", "en", "fr"),
        ("xx", "fr", "fr"),
    ],
)
def test_the_language_is_the_wish_then_the_browsers(
    wish: str | None, accepted: str | None, language: str
) -> None:
    assert chosen_language(wish, accepted) == language


ASKED_BACK = InvoiceRefundView(
    paid_by="operator", refundable_sat=0, whole=True, address="x", approval=True, delay_s=0,
    fee_percent_max=10, refunds=[],
)  # fmt: skip


def test_every_state_has_its_words_and_a_tone() -> None:
    view = InvoiceView(
        invoice_id="a", reference="r", offer_id="o", parcel_id="p", status="open", flags=[], created_at=0,
        price_sat=10, received_sat=0, confirmed_sat=0, due_sat=10, owed_sat=0, address="x", uri="u",
        valid_until=0, confirmations=-1, policy=PolicyView(), bytes_allowed=False, key_allowed=False,
        suspended=False, outputs=[], node_online=True, now=0, taken_down=False,
    )  # fmt: skip
    cases: dict[str, dict[str, Any]] = {
        "waiting": {},
        "underpaid": {"status": "seen", "received_sat": 4, "due_sat": 6},
        "seen": {"status": "seen", "received_sat": 10, "due_sat": 0},
        "confirming": {"status": "confirming", "received_sat": 10, "due_sat": 0},
        "paid": {"status": "settled", "due_sat": 0, "key_allowed": True},
        "overpaid": {"status": "settled", "due_sat": 0, "key_allowed": True, "owed_sat": 5_000},
        "expired": {"status": "expired"},
        "lapsed": {"status": "expired", "received_sat": 10},
        "late": {"status": "expired", "received_sat": 10, "flags": ["late"]},
        "replaced": {"flags": ["replaced"]},
        "missing": {"status": "seen", "flags": ["missing"], "due_sat": 0},
        "suspended": {"suspended": True},
        "cancelled": {"status": "cancelled"},
        "offline": {"node_online": False},
        "damaged": {},
        "taken_down": {"taken_down": True, "status": "settled"},
        "refunded": {"status": "expired", "received_sat": 10, "refund": ASKED_BACK},
        "gone": {"status": "expired"},
        "owed": {"status": "expired", "received_sat": 10},
    }
    offers: dict[str, SaleState] = {"gone": "sold_out", "owed": "closed", "damaged": "damaged"}
    for state, changes in cases.items():
        offer = offers.get(state, "open")
        assert page_state(structs.replace(view, **changes), offer=offer) == state
        assert f"s_{state}" in CATALOGUE["en"]
        assert f"h_{state}" in CATALOGUE["en"]
        assert tone_of(state) in {"ok", "bad", "info", "warn"}
    named = {key.removeprefix("s_") for key in CATALOGUE["en"] if key.startswith("s_")}
    assert named == cases.keys()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_999_999, "1.9 MB"), (5 * 10**18, "5000.0 PB")],
)
def test_sizes_are_written_short(size: int, text: str) -> None:
    assert size_text(size) == text


class Markup(HTMLParser):
    """Finds what the policy forbids, and labels and headings that are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "script" and not (names.get("src") and names.get("type") == "module"):
            self.faults.append(f"a script that is not a module of its own: {names}")
        if tag in {"style", "iframe", "object", "embed"} or "style" in names:
            self.faults.append(f"{tag} {names}")
        self.faults += [f"{tag} {name}" for name in names if name.startswith("on")]
        for name in ("src", "href", "action"):
            place = names.get(name) or ""
            if place and not place.startswith(("/", "?", "data:", "bitcoin:")):
                self.faults.append(f"{tag} {name}={place}")
        if tag == "input" and names.get("type") != "hidden" and "id" not in names:
            self.faults.append("an input without a label")


def _fields(text: str) -> list[str]:
    return sorted(field for _, field, _, _ in string.Formatter().parse(text) if field)


async def _until_shown(browser: Browser, path: str, words: str) -> None:
    async def shown() -> bool:
        await browser.get(path)
        return words in browser.text

    await wait_until(shown, f"the page to say {words!r}")


async def _count_invoices(till: Till) -> int:
    count = await till.server.services.database.read(
        lambda tx: tx.scalar(select(func.count()).select_from(invoices))
    )
    return int(count or 0)
