"""Every limit can be reached, says when to come back, and opens again; none shuts out who has paid."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select

from bitcache import app
from bitcache.config import LimitsConfig
from bitcache.db.tables import reports
from bitcache.errors import TooManyRequests
from bitcache.passwords import Passwords
from bitcache.rate_limits import RateLimit
from bitcache.reports import HANDLED_KEPT_S, file_report, mark_handled
from storage import base64url
from tests.plain_browser import Browser
from tests.test_bitcache_account_pages import NAME, PASSWORD, give_password
from tests.till import Sold, Till, open_nodeless_till

WEAK = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
Ask = Callable[[Till, str], Awaitable[tuple[int, str]]]
"""One request of a client at this address: (status, Retry-After)."""


async def post(till: Till, path: str, address: str, body: object, token: str = "") -> tuple[int, str]:
    headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {token}"} if token else {})
    async with till.http.post(path, json=body, headers=headers) as answer:
        return answer.status, answer.headers.get("Retry-After", "")


async def open_account(till: Till, address: str) -> tuple[int, str]:
    return await post(till, "/api/v1/accounts", address, {"name": os.urandom(8).hex()})


async def announce(till: Till, address: str) -> tuple[int, str]:
    return await post(till, "/api/v1/files", address, {"size_bytes": 1_000}, till.account.token)


async def claim(till: Till, address: str) -> tuple[int, str]:
    invoice_id = getattr(till, "bought", None) or await _bought(till)
    body = {"claim_secret": base64url.encode(bytes(32))}
    return await post(till, f"/api/v1/invoices/{invoice_id}/claim", address, body)


async def _bought(till: Till) -> str:
    till.bought = (await till.buy(await till.offer(price_sat=0))).id  # type: ignore[attr-defined]
    return str(till.bought)  # type: ignore[attr-defined]


async def order(till: Till, address: str) -> tuple[int, str]:
    sold: Sold = getattr(till, "sold", None) or await till.offer(price_sat=0)
    till.sold = sold  # type: ignore[attr-defined]
    claim_hash = base64url.encode(hashlib.sha256(os.urandom(32)).digest())
    return await post(till, f"/api/v1/offers/{sold.offer_id}/invoices", address, {"claim_hash": claim_hash})


async def renew(till: Till, address: str) -> tuple[int, str]:
    invoice_id = getattr(till, "bought", None) or await _bought(till)
    return await post(till, f"/api/v1/invoices/{invoice_id}/renew", address, {})


async def sign_in(till: Till, address: str) -> tuple[int, str]:
    return await form(till, address, "/sign-in", "/sign-in", name="nobody", password="wrong " * 3)


async def report(till: Till, address: str) -> tuple[int, str]:
    sold: Sold = getattr(till, "sold", None) or await till.offer(price_sat=0)
    till.sold = sold  # type: ignore[attr-defined]
    path = f"/d/{sold.offer_id}/report"
    return await form(till, address, path, path, reason="other", message="m", contact="")


async def form(till: Till, address: str, page: str, action: str, **fields: str) -> tuple[int, str]:
    async with Browser(till) as browser:
        browser.address = address
        await browser.get(page)
        await browser.submit(action, **fields)
        return browser.status, browser.headers.get("Retry-After", "")


@pytest.mark.parametrize(
    ("limits", "ask", "shared", "period_s"),
    [
        (LimitsConfig(accounts_per_hour=2), open_account, False, 3_600),
        (LimitsConfig(accounts_per_hour_in_total=2), open_account, True, 3_600),
        (LimitsConfig(files_per_hour=2), announce, True, 3_600),
        (LimitsConfig(file_bytes_per_hour=2_000), announce, True, 3_600),
        (LimitsConfig(claims_per_minute=2), claim, False, 60),
        # The first is asked for by the test itself, from another address.
        (LimitsConfig(invoices_per_minute=2), order, False, 60),
        (LimitsConfig(invoices_per_minute=2), renew, False, 60),
        (LimitsConfig(sign_ins_per_quarter=2), sign_in, False, 900),
        (LimitsConfig(sign_ins_by_name_per_quarter=2), sign_in, True, 900),
        (LimitsConfig(reports_per_hour=2), report, False, 3_600),
        (LimitsConfig(reports_per_hour_in_total=2), report, True, 3_600),
    ],
)
async def test_a_limit_says_when_to_come_back_and_keeps_its_word(
    tmp_path: Path, limits: LimitsConfig, ask: Ask, shared: bool, period_s: int
) -> None:
    async with open_nodeless_till(
        tmp_path, limits=limits, trusted_proxies=("127.0.0.1",), registration="open"
    ) as till:
        till.server.services.passwords.hasher = WEAK
        here, elsewhere = "192.0.2.1", "198.51.100.1"
        for _ in range(2):
            assert (await ask(till, here))[0] != 429
        status, retry_after = await ask(till, here)
        assert status == 429
        assert 1 <= int(retry_after) <= period_s
        assert ((await ask(till, elsewhere))[0] == 429) is shared
        till.server.clock.advance(int(retry_after))
        assert (await ask(till, here))[0] != 429


def test_what_is_refused_is_not_counted_and_the_large_passes_alone() -> None:
    now = 0.0
    limit = RateLimit(amount=10, period_s=60, total=15, monotonic=lambda: now)
    limit.check("a", 25)
    with pytest.raises(TooManyRequests):
        limit.check("a", 1)
    # All is used up, for b as well, who took nothing.
    for _ in range(3):
        with pytest.raises(TooManyRequests) as refusal:
            limit.check("b", 1)
        assert refusal.value.retry_after_s == 5
    now += 5
    limit.check("b", 1)


async def test_guessing_at_invitations_shuts_out_nobody(tmp_path: Path) -> None:
    limits = LimitsConfig(accounts_per_hour_in_total=3)
    async with open_nodeless_till(
        tmp_path,
        limits=limits,
        registration="invite",
        invite_codes=("right",),
        trusted_proxies=("127.0.0.1",),
    ) as till:
        for number in range(6):
            body = {"name": f"guess {number}", "invite": "wrong"}
            assert (await post(till, "/api/v1/accounts", f"192.0.2.{number}", body))[0] == 403
        body = {"name": "friend", "invite": "right"}
        assert (await post(till, "/api/v1/accounts", "198.51.100.1", body))[0] == 201


async def test_who_paid_is_served_while_strangers_use_up_every_total(tmp_path: Path) -> None:
    limits = LimitsConfig(
        accounts_per_hour_in_total=1, reports_per_hour_in_total=1, invoices_per_minute_in_total=1
    )
    async with open_nodeless_till(
        tmp_path, limits=limits, trusted_proxies=("127.0.0.1",), registration="open"
    ) as till:
        sold = await till.offer(price_sat=0)
        bought = await till.buy(sold)
        till.bought = bought.id  # type: ignore[attr-defined]
        for number in range(4):
            for ask in (open_account, report, order, claim):
                await ask(till, f"192.0.2.{number}")
        headers = await till.token(bought)
        async with till.http.get(sold.content, headers=headers) as answer:
            assert await answer.read() == sold.blobs[sold.file_id]


async def test_passwords_wait_in_a_line_that_has_an_end() -> None:
    checker = Passwords(at_once_max=1, waiting_max=2)
    checker.hasher = WEAK
    kept = await checker.hashed(PASSWORD)
    strangers = [asyncio.create_task(checker.check("wrong", kept)) for _ in range(10)]
    await asyncio.sleep(0)
    # Those of known browsers have places of their own.
    assert (await checker.check(PASSWORD, kept, known=True)).right
    outcomes = await asyncio.gather(*strangers, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, TooManyRequests)]
    assert len(refused) >= 6
    assert all(one.retry_after_s > 0 for one in refused)
    assert (await checker.check(PASSWORD, kept)).right


async def test_a_browser_that_was_signed_in_is_not_locked_out_by_strangers(tmp_path: Path) -> None:
    limits = LimitsConfig(sign_ins_per_quarter=3, sign_ins_by_name_per_quarter=5)
    async with open_nodeless_till(tmp_path, limits=limits, trusted_proxies=("127.0.0.1",)) as till:
        till.server.services.passwords.hasher = WEAK
        await give_password(till, hasher=WEAK)

        async def attempt(browser: Browser, password: str) -> int:
            await browser.get("/sign-in")
            await browser.submit("/sign-in", name=NAME, password=password)
            return browser.status

        async with Browser(till) as mine, Browser(till) as new:
            assert await attempt(mine, PASSWORD) == 303
            cookie = mine.kept("bitcache_known")
            assert all("bitcache_known" not in one or "HttpOnly" in one for one in mine.cookies)
            for number in range(4):
                async with Browser(till) as stranger:
                    stranger.address = f"203.0.113.{number}"
                    await attempt(stranger, "wrong " * 3)
            assert await attempt(new, PASSWORD) == 429
            # The cookie is for this account, and nobody makes one.
            altered = cookie[:-9] + ("A" if cookie[-9] != "A" else "B") + cookie[-8:]
            for forged in (altered, cookie[:-2], "", "!", "A" * 98):
                new.keep("bitcache_known", forged)
                assert await attempt(new, PASSWORD) == 429
            assert await attempt(mine, PASSWORD) == 303
            # Its own allowance is no larger than a client's, and no other browser's.
            statuses = [await attempt(mine, "wrong " * 3) for _ in range(3)]
            assert statuses[-1] == 429
            till.server.clock.advance(900)
            assert await attempt(mine, PASSWORD) == 303


async def test_reports_do_not_stay_for_ever(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        services, sold = till.server.services, await till.offer(price_sat=0)

        async def file(now: int) -> str:
            return await services.database.write(
                lambda tx: file_report(
                    tx, sold.offer_id, reason="other", message="", contact="", kept_max=3, now=now
                )
            )

        async def ids() -> set[str]:
            return set((await services.database.read(lambda tx: tx.scalars(select(reports.c.id)))).all())

        now = services.clock()
        old, fresh, waiting = [await file(now + n) for n in range(3)]
        assert await file(now) not in await ids(), "all places are taken by what waits"
        for one, at in ((old, now - HANDLED_KEPT_S), (fresh, now)):
            await services.database.write(lambda tx, one=one, at=at: mark_handled(tx, one, now=at))  # type: ignore[misc]
        newest = await file(now)
        assert await ids() == {fresh, waiting, newest}, "the one handled longest ago makes room"
        till.server.clock.advance(HANDLED_KEPT_S + 1)
        await services.sweep.poll_once()
        assert await ids() == {waiting, newest}
        assert (
            await services.database.read(lambda tx: tx.scalar(select(func.count()).select_from(reports))) == 2
        )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        # Refused at the first bracket: nothing that is not declared is ever descended into.
        (b"[" * 60_000, 422),
        (b'{"name":' * 7_000, 422),
        (b'{"name": ' + b"[" * 50_000 + b"]" * 10_000, 422),
        (b'{"name": "x", "more": ' + b"[" * 60_000, 422),
        (b'{"name": "\xff\xfe"}', 400),
        (b'{"name": "\\ud800"}', 400),
        (b'{"name": 1' + b"0" * 60_000 + b"}", 422),
        (b'{"name": -1e999999999}', 422),
        (b'{"name": NaN}', 400),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"name": "x"} {}', 400),
        (b"", 400),
        (b"x" * 70_000, 413),
    ],
)
async def test_hostile_documents_are_refused_and_nothing_breaks(
    tmp_path: Path, body: bytes, status: int
) -> None:
    async with open_nodeless_till(tmp_path, registration="open") as till:
        async with till.http.post("/api/v1/accounts", data=body) as answer:
            assert answer.status == status, await answer.text()
        assert (await open_account(till, "127.0.0.1"))[0] == 201


async def test_a_hundred_thousand_brackets_are_refused_at_the_first(tmp_path: Path) -> None:
    """In the largest body that JSON may have here, that of `seal`."""
    async with open_nodeless_till(tmp_path) as till:
        headers = {"Authorization": f"Bearer {till.account.token}"}
        path = f"/api/v1/parcels/{'a' * 26}/seal"
        for deep in (b"[" * 100_000, b'{"metadata": ' + b"[" * 5_000_000, b'{"a":' * 1_000_000):
            async with till.http.post(path, data=io.BytesIO(deep), headers=headers) as answer:
                assert answer.status == 422


async def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    """As RFC 8259 allows; what matters is that all parts of the server see the same one."""
    async with open_nodeless_till(tmp_path) as till:
        headers = {"Authorization": f"Bearer {till.account.token}"}
        async with till.http.patch(
            "/api/v1/account", data=b'{"name": "one", "name": "two"}', headers=headers
        ) as answer:
            assert (await answer.json())["name"] == "two"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
async def test_packed_bodies_are_refused_unopened(tmp_path: Path, encoding: str) -> None:
    async with open_nodeless_till(tmp_path, registration="open") as till:
        headers = {"Content-Encoding": encoding}
        async with till.http.post("/api/v1/accounts", data=b"{}", headers=headers) as answer:
            assert answer.status == 400
            assert "Content-Encoding" in await answer.text()


async def test_a_body_without_a_length_is_limited_while_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LINGER_S", 0.1)
    async with open_nodeless_till(tmp_path, registration="open") as till:
        sent = 0

        async def endless() -> Any:
            nonlocal sent
            while True:
                sent += 16_384
                yield b" " * 16_384

        try:
            async with till.http.post("/api/v1/accounts", data=endless()) as answer:
                assert answer.status == 413
        except (ConnectionError, OSError):
            pass  # we were still sending
        assert sent < 64 << 20
