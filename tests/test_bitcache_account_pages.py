"""The seller's pages about themselves, without JavaScript: passwords, opening an account, wallet, tokens."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from argon2 import PasswordHasher
from sqlalchemy import select, update

from bitcache import passwords, sessions
from bitcache.config import CONFIG_FILE_NAME, LimitsConfig
from bitcache.db.tables import accounts, tokens
from bitcache.passwords import Fault, Passwords, fault_of
from regtest.node import wait_until
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.command_server import quick_bitcache
from tests.functional_client_crash import environment
from tests.plain_browser import Browser
from tests.service import RunningServer
from tests.test_bitcache_sessions import session_secret, sign_in
from tests.test_bitcache_takedown import CONFIG
from tests.till import Till, open_nodeless_till, open_till

PASSWORD = "correct horse battery"
NAME = "seller 1"
LIMITS = LimitsConfig()


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(till: Till) -> AsyncIterator[Browser]:
    async with Browser(till) as browser:
        yield browser


async def stored_hash(server: RunningServer, name: str = NAME) -> str | None:
    query = select(accounts.c.password_hash).where(accounts.c.name == name)
    return await server.services.database.read(lambda tx: tx.scalar(query))


async def give_password(till: Till, password: str = PASSWORD, hasher: PasswordHasher | None = None) -> str:
    """To the till's account, behind the pages' back; its hash."""
    hashed = (hasher or PasswordHasher()).hash(password)
    await till.server.services.database.write(
        lambda tx: passwords.reset(tx, till.account.account_id, hashed, now=till.server.clock())
    )
    return hashed


async def sign_in_by_password(browser: Browser, name: str = NAME, password: str = PASSWORD) -> int:
    await browser.get("/sign-in")
    await browser.submit("/sign-in", name=name, password=password)
    return browser.status


def is_signed_out(browser: Browser) -> bool:
    return "Seller token" in browser.text


# --- passwords --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "fault"),
    [
        ("", Fault.SHORT),
        ("x" * 11, Fault.SHORT),
        ("é" * 12, None),
        ("x" * 12, None),
        ("x" * 200, None),
        ("x" * 201, Fault.LONG),
        ("ada lovelace's files", Fault.NAME),
        ("ADA  LOVELACE'S  FILES", Fault.NAME),
        # Letters and accents apart, as some keyboards send them.
        ("e\u0301" * 6 + "x" * 5, Fault.SHORT),
        ("e\u0301" * 12, None),
    ],
)
def test_which_passwords_are_taken(password: str, fault: Fault | None) -> None:
    assert fault_of(password, name="Ada Lovelace's files") is fault


async def test_a_hash_is_salted_argon2id_and_checks_what_it_was_made_of() -> None:
    hashes = [await Passwords().hashed(PASSWORD) for _ in range(2)]
    assert all(hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$") for hashed in hashes)
    assert hashes[0] != hashes[1]
    checker = Passwords()
    assert (await checker.check(PASSWORD, hashes[0])).right
    assert not (await checker.check(PASSWORD + " ", hashes[0])).right
    assert not (await checker.check(PASSWORD, "not a hash")).right
    assert not (await checker.check("x" * 10_000_000, hashes[0])).right
    composed = await checker.hashed("caf\u00e9 caf\u00e9 caf\u00e9")
    assert (await checker.check("cafe\u0301 cafe\u0301 cafe\u0301", composed)).right


class CountingHasher(PasswordHasher):
    """Remembers against what it verified; waits first, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.verified: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
        self.verified.append(str(hash))
        assert self.may_go_on.wait(20)
        return super().verify(hash, password)


async def test_an_account_without_a_password_costs_a_hash_too() -> None:
    """Or the time would tell which names exist."""
    checker = Passwords()
    checker.hasher = counting = CountingHasher()
    assert not (await checker.check(PASSWORD, None)).right
    # Of the same parameters as real ones.
    assert [hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$") for hashed in counting.verified] == [True]


async def test_hashing_does_not_stop_the_server(till: Till) -> None:
    """Other tasks go on meanwhile."""
    services, turns, running = till.server.services, 0, True

    async def turning() -> None:
        nonlocal turns
        while running:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(turning())
    await asyncio.gather(*(services.passwords.hashed(PASSWORD) for _ in range(2)))
    running = False
    await task
    assert turns > 20


# --- signing in -------------------------------------------------------------------------------------------


async def test_a_seller_signs_in_by_name_and_password(till: Till, browser: Browser) -> None:
    await give_password(till)
    assert await sign_in_by_password(browser, name="  SELLER   1 ") == 303
    assert browser.headers["Location"] == "/dashboard?lang=en"
    cookie = next(text for text in browser.cookies if text.startswith("bitcache_session="))
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={12 * 3_600}"):
        assert attribute in cookie
    assert "Domain" not in cookie
    assert "Secure" not in cookie  # plain http in tests; with https below
    await browser.get("/account")
    assert "with the password" in browser.text


async def test_with_https_cookies_are_secure(tmp_path: Path) -> None:
    async with (
        open_nodeless_till(tmp_path, public_url="https://files.example") as till,
        Browser(till) as browser,
    ):
        await browser.get("/sign-in")
        assert "Secure" in browser.cookies[0]
        # The browser would not send it back over http; the form's token is bound to it.
        assert browser.cookies[0].startswith("__Host-bitcache_form=")


async def test_with_https_a_neighbour_signs_nobody_in(tmp_path: Path) -> None:
    """A page of blog.example.org may plant cookies for files.example.org: whoever is signed in as somebody
    else without knowing it sells for them. Browsers take names with __Host- from the host itself alone."""
    async with open_nodeless_till(tmp_path, public_url="https://files.example") as till:
        opened = await till.server.services.database.write(
            lambda tx: sessions.open_session(
                tx, till.account.account_id, token_id=None, now=till.server.clock()
            )
        )
        for cookie, signed_in in (("bitcache_session", False), ("__Host-bitcache_session", True)):
            async with till.http.get("/account", headers={"Cookie": f"{cookie}={opened.secret}"}) as answer:
                assert ("Seller token" not in await answer.text()) == signed_in, cookie


async def test_wrong_names_and_passwords_read_the_same(till: Till, browser: Browser) -> None:
    await give_password(till)
    without = await till.server.new_seller("no password")
    assert without.token
    said = set()
    for name, password in (
        (NAME, PASSWORD + "!"),
        ("nobody", PASSWORD),
        ("no password", PASSWORD),
        (NAME, ""),
    ):
        assert await sign_in_by_password(browser, name=name, password=password) == 401
        assert not [cookie for cookie in browser.cookies if "bitcache_session" in cookie]
        said.add(re.sub(r'value="[^"]*"', "", browser.text))
    assert len(said) == 1
    assert "The name or the password is wrong." in said.pop()
    assert PASSWORD not in browser.text


async def test_attempts_are_counted_per_name_whoever_makes_them(till: Till, browser: Browser) -> None:
    await give_password(till)
    services = till.server.services
    for _ in range(LIMITS.sign_ins_by_name_per_quarter):
        services.limits.sign_ins_by_name.check(till.account.account_id)
    assert await sign_in_by_password(browser) == 429
    assert int(browser.headers["Retry-After"]) > 0
    assert "Too many attempts" in browser.text
    assert f'value="{NAME}"' in browser.text
    # A token is no guess: its owner still gets in.
    await sign_in(browser, till)


async def test_one_visitor_does_not_lock_a_seller_out(tmp_path: Path) -> None:
    """The name stands on every offer, and all attempts at it are counted together."""
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    async with open_nodeless_till(tmp_path, trusted_proxies=("127.0.0.1",)) as till, Browser(till) as browser:
        till.server.services.passwords.hasher = weak
        await give_password(till, hasher=weak)
        await browser.get("/sign-in")
        form_token = re.findall(r'name="form_token" value="([^"]+)"', browser.text)[0]
        fields = {"form_token": form_token, "name": NAME}

        cookie = f"bitcache_form={browser.kept('bitcache_form')}"

        async def attempt(password: str, address: str) -> int:
            headers = {"Cookie": cookie, "X-Forwarded-For": address}
            sent = till.http.post(
                "/sign-in",
                data={**fields, "password": password},
                headers=headers,
                allow_redirects=False,
            )
            async with sent as answer:
                return answer.status

        answers = [await attempt("wrong " * 4, "192.0.2.1") for _ in range(2 * LIMITS.sign_ins_per_quarter)]
        assert answers[-1] == 429
        assert await attempt(PASSWORD, "192.0.2.2") == 303


async def test_attempts_are_counted_per_client(till: Till, browser: Browser) -> None:
    for _ in range(LIMITS.sign_ins_per_quarter):
        till.server.services.limits.sign_ins.check("127.0.0.1")
    for fields in ({"token": till.account.token}, {"name": "x", "password": PASSWORD}):
        await browser.get("/sign-in")
        await browser.submit("/sign-in", **fields)
        assert browser.status == 429


async def test_a_hash_of_weaker_parameters_is_replaced_on_signing_in(till: Till, browser: Browser) -> None:
    weak = await give_password(till, hasher=PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1))
    assert await sign_in_by_password(browser, password="wrong " * 4) == 401
    assert await stored_hash(till.server) == weak
    assert await sign_in_by_password(browser) == 303
    assert str(await stored_hash(till.server)).startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await sign_in_by_password(browser) == 303


async def test_a_password_that_changes_while_it_is_checked_opens_nothing(
    till: Till, browser: Browser
) -> None:
    """The hash is compared again in the transaction that opens the session."""
    await give_password(till)
    till.server.services.passwords.hasher = held = CountingHasher()
    held.may_go_on.clear()
    signing_in = asyncio.create_task(sign_in_by_password(browser))
    await wait_until(lambda: _true(held.verified), "the check to begin")
    await till.server.services.database.write(
        lambda tx: tx.execute(update(accounts).values(password_hash="changed meanwhile"))
    )
    held.may_go_on.set()
    assert await signing_in == 401


async def _true(found: object) -> bool:
    return bool(found)


# --- opening an account -----------------------------------------------------------------------------------


async def test_who_has_an_invitation_opens_an_account(tmp_path: Path) -> None:
    changes = {"registration": "invite", "invite_codes": ("open sesame",)}
    async with open_nodeless_till(tmp_path, **changes) as till, Browser(till) as browser:
        await browser.get("/sign-in")
        assert 'href="/sign-up' in browser.text
        await browser.get("/sign-up")
        fields = {"name": "Ada's <b>files</b>", "invite": "wrong", "password": PASSWORD}
        await browser.submit("/sign-up", **fields)
        assert browser.status == 403
        assert "This invitation code is not valid" in browser.text
        # Nothing is lost but the password, and nothing is markup.
        assert 'value="Ada&#39;s &lt;b&gt;files&lt;/b&gt;"' in browser.text
        assert PASSWORD not in browser.text
        await browser.submit("/sign-up", **{**fields, "invite": "open sesame", "name": "Seller 1"})
        assert (browser.status, "This name is taken" in browser.text) == (409, True)
        await browser.submit("/sign-up", **{**fields, "invite": "open sesame", "password": "short"})
        assert (browser.status, "at least 12 characters" in browser.text) == (422, True)
        assert 'aria-invalid="true"' in browser.text
        await browser.submit("/sign-up", **{**fields, "invite": "open sesame"})
        assert browser.status == 303
        assert browser.headers["Location"] == "/account?lang=en"
        await browser.get("/account")
        assert "Ada&#39;s &lt;b&gt;files&lt;/b&gt;" in browser.text
        assert await stored_hash(till.server, fields["name"]) is not None


async def test_a_closed_server_opens_no_account(till: Till, browser: Browser) -> None:
    await browser.get("/sign-in")
    assert "/sign-up" not in browser.text
    await browser.get("/sign-up")
    assert browser.status == 403
    assert "opens no accounts by itself" in browser.text


async def test_accounts_are_opened_no_faster_than_through_the_api(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path, registration="open") as till, Browser(till) as browser:
        for number in range(10):
            async with till.http.post("/api/v1/accounts", json={"name": f"n{number}"}) as answer:
                assert answer.status == 201
        await browser.get("/sign-up")
        await browser.submit("/sign-up", name="one more", password=PASSWORD)
        assert browser.status == 429


# --- the account ------------------------------------------------------------------------------------------


async def test_the_first_password_asks_for_no_other_and_the_next_does(till: Till, browser: Browser) -> None:
    async with Browser(till) as elsewhere:
        await sign_in(elsewhere, till)
        first = await sign_in(browser, till)
        await browser.get("/account")
        assert "current_password" not in browser.text
        await browser.submit("/account/password", new_password=NAME.upper() + "      ")
        assert (browser.status, "must not be the account’s name" in browser.text) == (422, True)
        await browser.submit("/account/password", new_password=PASSWORD)
        assert browser.status == 200
        assert "The password is set" in browser.text
        # Signed out everywhere else, and still here.
        await elsewhere.get("/account")
        assert is_signed_out(elsewhere)
        await browser.get("/account")
        assert browser.kept("bitcache_session") == first
        await browser.submit("/account/password", new_password="another " * 3)
        assert (browser.status, "not the present password" in browser.text) == (422, True)
        await browser.submit("/account/password", current_password="wrong", new_password="another " * 3)
        assert (browser.status, "not the present password" in browser.text) == (422, True)
        await browser.submit("/account/password", current_password=PASSWORD, new_password="another " * 3)
        assert "The password is set" in browser.text
        assert await sign_in_by_password(elsewhere) == 401
        assert await sign_in_by_password(elsewhere, password="another " * 3) == 303


async def test_the_present_password_cannot_be_guessed_on_a_browser_left_open(
    till: Till, browser: Browser
) -> None:
    await sign_in(browser, till)
    kept = await give_password(till)
    await sign_in(browser, till)
    for _ in range(LIMITS.sign_ins_by_name_per_quarter):
        till.server.services.limits.sign_ins_by_name.check(till.account.account_id)
    await browser.get("/account")
    await browser.submit("/account/password", current_password=PASSWORD, new_password="another " * 3)
    assert browser.status == 429
    assert await stored_hash(till.server) == kept


async def test_a_token_is_shown_once_and_revoked(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    await browser.get("/account")
    await browser.submit("/account/tokens?", label="<i>laptop</i>")
    shown = re.search(r'<code id="new-token"[^>]*>(bcs_[a-z2-7]{52})</code>', browser.text)
    assert shown
    await browser.get("/account")
    assert shown[1] not in browser.text
    assert "&lt;i&gt;laptop&lt;/i&gt;" in browser.text
    async with till.server.session(shown[1]) as http:
        async with http.get("/api/v1/account") as answer:
            assert answer.status == 200
        query = select(tokens.c.id).where(tokens.c.label == "<i>laptop</i>")
        token_id = await till.server.services.database.read(lambda tx: tx.scalar(query))
        await browser.submit(f"/account/tokens/{token_id}/revoke")
        assert browser.status == 303
        async with http.get("/api/v1/account") as answer:
            assert answer.status == 401
    await browser.get("/account")
    assert "laptop" not in browser.text
    await browser.submit("/account/tokens?", label="x" * 81)
    assert (browser.status, "at most 80" in browser.text) == (422, True)
    await browser.submit("/account/tokens?", label="a\x1b[0m")
    assert browser.status == 422


async def test_another_sellers_token_is_out_of_reach(till: Till, browser: Browser) -> None:
    other = await till.server.new_seller()
    await sign_in(browser, till)
    await browser.get("/account")
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', browser.text))
    await browser.send(f"/account/tokens/{other.token_id}/revoke", form_token=form["form_token"])
    assert browser.status == 404
    async with till.server.session(other.token) as http, http.get("/api/v1/account") as answer:
        assert answer.status == 200


async def test_signing_out_everywhere_ends_every_session_of_this_seller(till: Till, browser: Browser) -> None:
    other = Till(till.server, await till.server.new_seller())
    async with Browser(till) as elsewhere, Browser(till) as stranger:
        await sign_in(elsewhere, till)
        await sign_in(stranger, other)
        stolen = await sign_in(browser, till)
        await browser.get("/account")
        assert browser.text.count("with the token test") == 2
        await browser.submit("/account/sign-out-everywhere")
        assert browser.headers["Location"] == "/sign-in?lang=en"
        for one in (browser, elsewhere):
            await one.get("/account")
            assert is_signed_out(one)
        browser.keep("bitcache_session", stolen)
        await browser.get("/account")
        assert is_signed_out(browser)
        await stranger.get("/account")
        assert not is_signed_out(stranger)


@pytest.mark.parametrize(
    "path",
    ["/account/password", "/account/tokens", "/account/wallet", "/account/wallet/set",
     "/account/sign-out-everywhere", "/sign-out"],
)  # fmt: skip
async def test_forms_from_elsewhere_change_nothing(till: Till, browser: Browser, path: str) -> None:
    """Without a token of ours, with another browser's, with another form's: refused, whoever is signed in."""
    secret = await sign_in(browser, till)
    await browser.get("/sign-in")
    other_form = re.findall(r'name="form_token" value="([^"]+)"', browser.text)[0]
    async with Browser(till) as stranger:
        await sign_in(stranger, till)
        await stranger.get("/account")
        other_browser = re.findall(r'name="form_token" value="([^"]+)"', stranger.text)[0]
    for token in ("", other_form, other_browser):
        await browser.send(path, form_token=token, new_password=PASSWORD, descriptor="x", label="x")
        assert browser.status == 403
    await browser.get("/account")
    assert browser.kept("bitcache_session") == secret
    assert not is_signed_out(browser)
    assert await stored_hash(till.server) is None


async def test_signing_out_of_no_session_takes_no_cookie_away(till: Till) -> None:
    """As when another site sends the form: it comes without cookies, and its answer could still set them."""
    async with till.http.post("/sign-out", allow_redirects=False) as answer:
        assert answer.status == 303
        assert "Set-Cookie" not in answer.headers


async def test_a_form_of_another_account_changes_nothing(till: Till, browser: Browser) -> None:
    """One left open in a tab when somebody else signed in; or planted, with its browser's mark, by a
    neighbour under the same domain, whose requests carry the session's cookie."""
    other = Till(till.server, await till.server.new_seller())
    await sign_in(browser, other)
    await browser.get("/account")
    left_open = browser.text
    secret = await sign_in(browser, till)
    for path, fields in (
        ("/account/password", {"new_password": PASSWORD}),
        ("/account/tokens?", {"label": "x"}),
        ("/account/sign-out-everywhere", {}),
        ("/sign-out", {}),
    ):
        browser.text = left_open
        await browser.submit(path, **fields)
        assert browser.status == 403, path
    await browser.get("/account")
    assert browser.kept("bitcache_session") == secret
    assert not is_signed_out(browser)
    assert await stored_hash(till.server) is None


async def test_who_is_not_signed_in_is_asked_to_and_comes_back(till: Till, browser: Browser) -> None:
    await browser.get("/account")
    assert browser.status == 200
    await browser.submit("/sign-in", token=till.account.token)
    assert browser.headers["Location"] == "/account?lang=en"
    assert session_secret(browser)
    browser.keep("bitcache_session", "A" * 43)
    await browser.send("/account/password", new_password=PASSWORD)
    assert browser.status == 401
    await browser.submit("/sign-in", token=till.account.token)
    assert browser.headers["Location"] == "/account?lang=en"


# --- the wallet -------------------------------------------------------------------------------------------


async def test_a_wallet_is_compared_before_it_is_set_and_changed_after_a_wait(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(world, tmp_path) as till, Browser(till) as browser:
        await till.buy(await till.offer())  # the first wallet has given an address
        wallet = await OutsideWallet.create(world, "account-page")
        descriptor = await wallet.descriptor()
        await sign_in(browser, till)
        await browser.get("/account")
        before = re.findall(r'<pre tabindex="0"><code[^>]*>([^<]+)</code>', browser.text)[0]
        await browser.submit("/account/wallet", descriptor=descriptor, start_index="7")
        assert browser.status == 200
        addresses = re.findall(r"<li><code[^>]*>([^<]+)</code></li>", browser.text)
        first = await world.outside.rpc("deriveaddresses", descriptor, [0, 2])
        assert addresses == first
        assert "It takes effect on 2" in browser.text
        # Looking changes nothing.
        preview = browser.text
        await browser.get("/account")
        assert "takes effect on" not in browser.text
        browser.text = preview
        await browser.submit("/account/wallet/set")
        assert browser.status == 303
        await browser.get("/account")
        assert "A change of wallet takes effect on 2" in browser.text
        assert before in browser.text
        await browser.submit("/account/wallet/set")  # the first such form: keep the present one
        await browser.get("/account")
        assert "takes effect on" not in browser.text
        await browser.submit("/account/wallet", descriptor="wpkh(oops", start_index="7")
        assert browser.status == 422
        assert "This cannot be used as a wallet:" in browser.text
        assert ">wpkh(oops</textarea>" in browser.text
        assert 'value="7"' in browser.text
        await browser.submit("/account/wallet", descriptor=descriptor, start_index="-1")
        assert (browser.status, "Give a whole number" in browser.text) == (422, True)


async def test_without_a_node_no_wallet_is_set(till: Till, browser: Browser) -> None:
    await sign_in(browser, till)
    await browser.get("/account")
    assert "does not answer" in browser.text
    await browser.submit("/account/wallet", descriptor="wpkh(xpub)")
    assert browser.status == 503
    assert ">wpkh(xpub)</textarea>" in browser.text
    query = select(accounts.c.descriptor_id)
    assert await till.server.services.database.read(lambda tx: tx.scalar(query)) is None


# --- the operator -----------------------------------------------------------------------------------------


async def test_the_operator_sets_a_lost_password(till: Till, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE_NAME).write_text(CONFIG)
    await sign_in(browser, till)
    words = ("account", "password", NAME, "--data", str(tmp_path))

    async def command(*more: str, stdin: str = "") -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            quick_bitcache(),
            *words,
            *more,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(tmp_path, {}),
        )
        out, err = await process.communicate(stdin.encode())
        assert PASSWORD.encode() not in out + err
        return process.returncode, " ".join((out + err).decode().split())

    code, said = await command(stdin="too short\n")
    assert (code, "12 to 200 characters" in said) == (1, True)
    assert (await command(stdin=PASSWORD + "\n"))[0] == 0
    await browser.get("/account")
    assert is_signed_out(browser)
    assert await sign_in_by_password(browser) == 303
    file = tmp_path / "password"
    file.write_text("from a file, and longer\n")
    assert (await command("--password-file", str(file)))[0] == 0
    assert await sign_in_by_password(browser, password="from a file, and longer") == 303
