"""Signing in on the pages: what a session lets in, what ends it, and the tokens that pages' scripts get."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from bitcache import accounts, sessions
from bitcache.db.tables import sessions as session_rows
from bitcache.errors import TokenInvalid
from bitcache.sessions import SESSION_LIFETIME_S, WEB_TOKEN_LIFETIME_S
from bitcache.web.forms import Forms
from bitcache.web.sign_in import place
from bitcache.web.visit import API_FORM, bound_form
from storage import base64url
from tests.plain_browser import Browser
from tests.till import Till, open_nodeless_till


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(till: Till) -> AsyncIterator[Browser]:
    async with Browser(till) as browser:
        yield browser


async def sign_in(browser: Browser, till: Till) -> str:
    """With the till's seller token; the secret that the browser now keeps."""
    await browser.get("/sign-in")
    await browser.submit("/sign-in", token=till.account.token)
    assert browser.status == 303, browser.text
    return session_secret(browser)


def session_secret(browser: Browser) -> str:
    kept: str = next(cookie for cookie in browser.cookies if cookie.startswith("bitcache_session="))
    return kept.partition("=")[2].partition(";")[0]


def api_form_token(till: Till, browser: Browser) -> str:
    """What a page with `api=True` has in its body for this browser."""
    services = till.server.services
    forms = Forms(services.sealer.mac_key("form"), secure=False)
    form = bound_form(API_FORM, till.account.account_id)
    return forms.token(form, browser.kept("bitcache_form"), services.clock())


async def session_token(browser: Browser, form_token: str | None) -> Any:
    headers = {} if form_token is None else {"Bitcache-Form-Token": form_token}
    return await browser.post_json("/session/token", **headers)


async def test_scripts_of_who_is_signed_in_get_a_short_lived_token(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    answer = await session_token(browser, api_form_token(till, browser))
    assert browser.status == 200
    assert browser.headers["Cache-Control"] == "no-store"
    assert 0 <= answer["expires_at"] - till.server.clock() - WEB_TOKEN_LIFETIME_S + 2 <= 2
    async with till.server.session(answer["token"]) as http:
        async with http.get("/api/v1/account") as account:
            assert (await account.json())["account_id"] == till.account.account_id
        till.server.clock.advance(WEB_TOKEN_LIFETIME_S)
        async with http.get("/api/v1/account") as account:
            assert account.status == 401
            assert (await account.json())["type"] == "/problems/token-invalid"
    # The session itself goes on.
    await browser.get("/dashboard")
    assert "Seller token" not in browser.text


async def test_a_token_makes_none_that_outlives_it(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    answer = await session_token(browser, api_form_token(till, browser))
    async with (
        till.server.session(answer["token"]) as http,
        http.post("/api/v1/tokens", json={"label": "for ever"}) as made,
    ):
        assert made.status == 401
        assert (await made.json())["type"] == "/problems/token-invalid"
    listed = await till.server.services.database.read(
        lambda tx: accounts.list_tokens(tx, till.account.account_id)
    )
    assert [token.label for token in listed] == ["test"]


async def test_a_token_ends_no_later_than_its_session(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    till.server.clock.advance(SESSION_LIFETIME_S - 60)
    answer = await session_token(browser, api_form_token(till, browser))
    assert answer["expires_at"] - till.server.clock() <= 60


@pytest.mark.parametrize("way", ["sign out", "revoke", "run out", "end all"])
async def test_a_token_ends_with_its_session(till: Till, browser: Browser, way: str) -> None:
    await sign_in(browser, till)
    answer = await session_token(browser, api_form_token(till, browser))
    services, now, seller = till.server.services, till.server.clock(), till.account
    if way == "sign out":
        await browser.get("/dashboard")
        await browser.submit("/sign-out")
    elif way == "revoke":
        await services.database.write(
            lambda tx: accounts.revoke_token(tx, seller.account_id, seller.token_id, now=now)
        )
    elif way == "end all":
        await services.database.write(lambda tx: sessions.end_all(tx, seller.account_id, now=now))
    else:
        till.server.clock.advance(SESSION_LIFETIME_S)
    async with till.server.session(answer["token"]) as http, http.get("/api/v1/account") as account:
        assert account.status == 401
    refused = await session_token(browser, api_form_token(till, browser))
    assert browser.status == 401
    assert refused["type"] == "/problems/token-missing"


async def test_no_other_site_browser_or_form_gets_a_token(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    await browser.get("/dashboard")
    other_form = re.findall(r'name="form_token" value="([^"]+)"', browser.text)[0]
    async with Browser(till) as stranger:
        await stranger.get("/sign-in")
        other_browser = api_form_token(till, stranger)
    good = api_form_token(till, browser)
    altered = good[:-1] + ("A" if good[-1] != "A" else "B")
    other_account = api_form_token(Till(till.server, await till.server.new_seller()), browser)
    for form_token in (None, "", "x", other_form, other_browser, other_account, altered):
        refused = await session_token(browser, form_token)
        assert browser.status == 403, form_token
        assert refused["type"] == "/problems/form-expired"
    await session_token(browser, good)
    assert browser.status == 200


async def test_a_forged_or_foreign_token_is_refused(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    token = (await session_token(browser, api_form_token(till, browser)))["token"]
    rows = await till.server.services.database.read(lambda tx: tx.execute(select(session_rows.c.id)))
    session_id = str(rows.scalar_one())
    now = till.server.clock()
    foreign, _ = await till.server.services.database.read(
        lambda tx: sessions.issue_web_token(tx, bytes(32), session_id, now=now)
    )
    octets = bytearray(base64url.decode(token[4:]))
    octets[20] ^= 1
    later = "bcw_" + base64url.encode(bytes(octets))
    for bad in (foreign, later, token[:-1], token + "A", "bcw_", "bcw_" + "!" * (len(token) - 4)):
        async with till.server.session(bad) as http, http.get("/api/v1/account") as account:
            assert account.status == 401, bad


async def test_a_session_is_always_new_and_ends_the_one_before(till: Till, browser: Browser) -> None:
    first = await sign_in(browser, till)
    second = await sign_in(browser, till)
    assert first != second
    services = till.server.services
    for secret, signed_in in ((first, False), (second, True)):
        seller = await services.database.read(
            lambda tx, secret=secret: sessions.seller_of_secret(tx, secret, now=services.clock())  # type: ignore[misc]
        )
        assert (seller is not None) == signed_in
    stored = await services.database.read(lambda tx: tx.execute(select(session_rows)))
    assert second not in str(stored.all())


async def test_a_planted_cookie_signs_nobody_in(till: Till, browser: Browser) -> None:
    planted = "A" * 43
    browser.keep("bitcache_session", planted)
    assert await sign_in(browser, till) != planted
    async with till.http.get("/dashboard", cookies={"bitcache_session": planted}) as answer:
        assert "Seller token" in await answer.text()


async def test_sessions_that_are_over_are_swept(till: Till, browser: Browser) -> None:
    services = till.server.services

    async def rows() -> int | None:
        count = select(func.count()).select_from(session_rows)
        return await services.database.read(lambda tx: tx.scalar(count))

    await sign_in(browser, till)
    await sign_in(browser, till)
    assert await rows() == 2
    await services.sweep.poll_once()
    assert await rows() == 1
    till.server.clock.advance(SESSION_LIFETIME_S)
    await services.sweep.poll_once()
    assert await rows() == 0


async def test_a_token_for_no_session_is_not_made(till: Till) -> None:
    with pytest.raises(TokenInvalid):
        await till.server.services.database.read(
            lambda tx: sessions.issue_web_token(tx, bytes(32), "a" * 26, now=0)
        )


@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/upload", "/upload"),
        ("/account/payout", "/account/payout"),
        ("/dashboard", "/dashboard"),
        ("", "/dashboard"),
        ("//evil.example", "/dashboard"),
        ("https://evil.example/account", "/dashboard"),
        ("/account//evil.example", "/dashboard"),
        ("/account/../d/x", "/dashboard"),
        ("/\\evil.example", "/dashboard"),
        ("/accounts", "/dashboard"),
        ("/account\r\nSet-Cookie: x=y", "/dashboard"),
        ("/account\n", "/dashboard"),
        ("/d/" + "a" * 26, "/dashboard"),
    ],
)
async def test_signing_in_leads_to_places_of_ours_only(
    till: Till, browser: Browser, wanted: str, leads_to: str
) -> None:
    assert place(wanted) == leads_to
    await browser.get("/sign-in")
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', browser.text))
    await browser.send("/sign-in", **{**hidden, "next": wanted, "token": till.account.token})
    assert browser.headers["Location"] == f"{leads_to}?lang=en"
