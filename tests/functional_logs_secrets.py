"""A whole life of a shop, with attacks and trouble, and then every place is searched for every secret.

Searched: the server's log, what commands say on stderr, answers that refuse, metrics, command lines, and the
database, row by row. The log is text before the restart in the middle and JSON after it. Files that commands
write are for their user alone.
"""

import asyncio
import base64
import json
import re
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest_asyncio

from bitcache.client.link import Link, Receipt, parse
from bitcache.master_key import read_master_key
from regtest.node import wait_until
from regtest.served import BITCACHE, ServedBitcache
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from storage import base64url

CLIENT = "203.0.113.77"
INVITE = "invite-3f9a2c71d0"
DATABASE_PASSWORD = "database-password-81c2"
PASSWORD = "a password of the seller 5b1f"
WALLET_PASSWORD = "wallet-password-77ab"
FORM_TOKEN = re.compile(r'name="form_token" value="([^"]+)"')


@dataclass
class Run:
    """What was said where, and what must not have been: each secret by its name."""

    server: ServedBitcache
    world: RegtestWorld
    home: Path
    database: str
    """As `asyncpg` wants it."""
    secrets: dict[str, str] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    """No secrets, but nothing for a log: an invoice's id, an address, who asked, what is sold."""
    said: dict[str, str] = field(default_factory=dict)
    """Of each command, on stderr."""
    refusals: list[str] = field(default_factory=list)
    command_lines: list[str] = field(default_factory=list)

    async def command(self, *words: str, stdin: str = "", **variables: str) -> str:
        """Its standard output; whether it succeeds is its own business."""
        process = await asyncio.create_subprocess_exec(
            BITCACHE,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self.server.environment(self.home), **variables},
            cwd=self.home,
        )
        communicating = asyncio.create_task(process.communicate(stdin.encode()))
        self.command_lines += command_lines()
        out, err = await asyncio.wait_for(communicating, 120)
        self.said[f"{len(self.said)}: bitcache {words[0]}"] = err.decode()
        return out.decode()

    async def document(self, *words: str, stdin: str = "") -> Any:
        """What a command that must succeed printed with `--json`."""
        out = await self.command(*words, "--json", stdin=stdin)
        try:
            found = json.loads(out)
        except ValueError:
            found = {"error": list(self.said.values())[-1]}
        assert "error" not in found, found
        return found

    async def send(self, *lines: str) -> None:
        """A request that no library would send."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write("\r\n".join((*lines, "Host: x", "Connection: close", "", "")).encode())
        async with asyncio.timeout(20):
            self.refusals.append((await reader.read()).decode(errors="replace"))
        writer.close()

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, str, Any]:
        """(status, body, cookies), asked by CLIENT through our proxy."""
        headers = {"X-Forwarded-For": CLIENT, **options.pop("headers", {})}
        url = f"http://127.0.0.1:{self.server.port}{path}"
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, url, headers=headers, allow_redirects=False, **options) as answer,
        ):
            text = await answer.text(errors="replace")
            if answer.status >= 400:
                self.refusals.append(text)
            return answer.status, text, {name: morsel.value for name, morsel in answer.cookies.items()}


def command_lines() -> list[str]:
    """Of every process there is, as any user of the machine sees them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended meanwhile
    return found


def forms(secret: str) -> set[str]:
    """A secret as it may be written."""
    octets = {secret.encode()}
    with suppress(ValueError):
        octets.add(base64url.decode(secret))
    written = {secret.partition("_")[2] if secret.startswith(("bcs_", "bcg_")) else secret}
    for each in octets:
        written |= {each.hex(), base64.b64encode(each).decode().rstrip("="), base64url.encode(each)}
    return written


def found_in(place: str, text: str, secrets: Mapping[str, str]) -> list[str]:
    """Where which secret is in `text`."""
    at = {name: text.find(form) for name, secret in secrets.items() for form in forms(secret) if form in text}
    return [f"{name} is in {place}: ...{text[max(0, at - 200) : at + 20]!r}" for name, at in at.items()]


async def sell(run: Run) -> str:
    """The link."""
    data, seller = str(run.server.data_folder), await OutsideWallet.create(run.world, "payout")
    made = await run.document("account", "create", "Ada", "--data", data)
    run.secrets["token"] = token = made["token"]
    run.secrets["descriptor"] = descriptor = await seller.descriptor()
    (run.secrets["xpub"],) = re.findall("tpub[0-9A-Za-z]+", descriptor)
    await run.command("login", run.server.url, stdin=token)
    await run.command("payout", "set", "-", "--yes", stdin=descriptor)
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "once"}
    for _ in range(2):
        _, text, _ = await run.ask("POST", "/api/v1/tokens", json={"label": "x"}, headers=headers)
        run.secrets["second token"] = json.loads(text)["token"]
    run.private["file name"] = "very private name.bin"
    file = run.home / "goods" / run.private["file name"]
    file.parent.mkdir(mode=0o700)
    file.write_bytes(bytes(range(256)) * 5_000)
    words = ("upload", str(file), "--price", "5000sat", "--title", "Very private title")
    link = str((await run.document(*words))["link"])
    run.private["title"] = "Very private title"
    found = parse(link)
    assert isinstance(found, Link)
    run.secrets["link secret"] = base64url.encode(found.link_secret)
    return link


async def sign_in(run: Run) -> None:
    """On the pages, with the token; then set a password, and sign in with it."""
    for fields in ({"token": run.secrets["token"]}, {"name": "Ada", "password": PASSWORD}):
        _, text, cookies = await run.ask("GET", "/sign-in")
        form_token = FORM_TOKEN.findall(text)[0]
        sent = {**fields, "form_token": form_token}
        status, _, opened = await run.ask("POST", "/sign-in", data=sent, cookies=cookies)
        assert status == 303
        session = {**cookies, "bitcache_session": opened["bitcache_session"]}
        run.secrets[f"session by {next(iter(fields))}"] = session["bitcache_session"]
        _, text, _ = await run.ask("GET", "/account", cookies=session)
        sent = {"form_token": FORM_TOKEN.findall(text)[0], "current_password": PASSWORD}
        changed = {**sent, "new_password": PASSWORD}
        status, _, _ = await run.ask("POST", "/account/password", data=changed, cookies=session)
        assert status == 200


async def invoice(run: Run, link: str) -> None:
    waiting = await run.document("get", "-", "--no-wait", stdin=link)
    receipt = parse(waiting["receipt"])
    assert isinstance(receipt, Receipt)
    run.secrets["claim secret"] = base64url.encode(receipt.claim_secret)
    run.private |= {"invoice": receipt.invoice_id, "address": waiting["address"]}


async def pay_and_download(run: Run, link: str) -> None:
    """With a wallet whose password is wrong, then with its cookie."""
    node = run.world.outside
    buyer = await OutsideWallet.create(run.world, "buyer")
    await run.world.faucet(await buyer.new_address(), 1_000_000)
    wrong = (
        f"bitcoind:http://buyer:{WALLET_PASSWORD}@127.0.0.1:{node.rpc_url.rpartition(':')[2]}/wallet/buyer"
    )
    run.secrets["wallet password"] = WALLET_PASSWORD
    await run.command("get", "-", "--yes", stdin=link, BITCACHE_PAY=wrong)
    right = f"bitcoind:{node.rpc_url}/wallet/buyer?cookie={node.cookie_path}"
    getting = asyncio.create_task(run.command("get", "-", "--yes", stdin=link, BITCACHE_PAY=right))
    place = f"/api/v1/invoices/{run.private['invoice']}"

    async def seen() -> bool:
        return bool(json.loads((await run.ask("GET", place))[1])["received_sat"])

    await wait_until(seen, "the payment")
    await run.world.mine()
    await getting
    assert (run.home / run.private["file name"]).is_file()
    body = {"claim_secret": run.secrets["claim secret"]}
    claim = json.loads((await run.ask("POST", f"{place}/claim", json=body))[1])
    run.secrets |= {"grant token": claim["grant_token"], "release secret": claim["release_secret"]}
    offer_id, file_id = parse(link).offer_id, claim["files"][0]["file_id"]  # type: ignore[union-attr]
    content = f"/api/v1/offers/{offer_id}/files/{file_id}/content"
    headers = {"Authorization": f"Bearer {claim['grant_token']}", "Range": "bytes=0-9"}
    status, _, _ = await run.ask("GET", content, headers=headers)
    assert status == 206
    status, _, _ = await run.ask("GET", content, headers={**headers, "Range": "bytes=99999999-"})
    assert status == 416


async def attack(run: Run, secrets: Mapping[str, str]) -> None:
    """Secrets where none belong: in addresses, queries, wrong headers, bodies that cannot be read."""
    for secret in (*secrets.values(), "bcs_" + "wrongwrong" * 5):
        word = quote(secret, safe="")
        for path in (f"/{word}", f"/api/v1/files/{word}", f"/api/v1/account?token={word}", f"/?x={word}"):
            await run.ask("GET", path)
        for authorization in (f"Bearer {secret}x", f"Basic {secret}", f"Payment {secret}", secret):
            await run.ask("GET", "/api/v1/account", headers={"Authorization": authorization})
        await run.ask("POST", "/sign-in", data={"token": secret, "form_token": secret})
        claim = f"/api/v1/invoices/{run.private.get('invoice', 'a' * 26)}/claim"
        await run.ask("POST", claim, json={"claim_secret": secret})
        await run.ask("POST", claim, data=f'{{"claim_secret": "{secret}", broken')
        await run.ask("POST", "/api/v1/accounts", json={"name": "x", "invite": secret})
        await run.send("GET /api/v1/account HTTP/1.1", f"Authorization: Bearer {secret}\x01")
        await run.send(f"GET /{secret} HTTP/1.9")
        await run.send(f"{secret} / HTTP/1.1")
        await run.send("POST /api/v1/files HTTP/1.1", "Transfer-Encoding: chunked", "", f"5\r\n{secret}")


async def trouble(run: Run) -> None:
    """A table that is not there, connections that are cut, a node that is away, a wrong configuration."""
    place = f"/api/v1/invoices/{run.private['invoice']}"
    claim = {"claim_secret": run.secrets["claim secret"]}
    database = await asyncpg.connect(run.database)
    try:
        for table in ("invoices", "tokens"):
            await database.execute(f"ALTER TABLE {table} RENAME TO hidden")
            await run.ask("GET", place)
            await run.ask("POST", f"{place}/claim", json=claim)
            headers = {"Authorization": f"Bearer {run.secrets['token']}"}
            await run.ask("GET", "/api/v1/account", headers=headers)
            await database.execute(f"ALTER TABLE hidden RENAME TO {table}")
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        await database.execute(f"{cut} AND datname = current_database()")
        await run.ask("POST", f"{place}/claim", json=claim)
    finally:
        await database.close()
    data = str(run.server.data_folder)
    wrong = run.home.parent / "wrong"
    wrong.write_text(f"postgresql://u:{DATABASE_PASSWORD}@h/x")
    await run.command("serve", "--data", data, BITCACHE_DATABASE_URL_FILE=str(wrong))
    address = f"http://u:{WALLET_PASSWORD}@127.0.0.1:1"
    await run.command("doctor", "--data", data, BITCACHE_NODE_RPC_URL=address)
    await run.world.server.stop()

    async def offline() -> bool:
        return not json.loads((await run.ask("GET", "/healthz"))[1])["node_online"]

    await wait_until(offline, "the server to see that its node is away")
    await run.ask("POST", "/account/wallet", data={"descriptor": run.secrets["descriptor"]})
    await run.command("payout", "set", "-", "--yes", stdin=run.secrets["descriptor"])
    await run.world.server.start()


async def rows(run: Run) -> str:
    """Everything in the database; bytes in hex."""
    database = await asyncpg.connect(run.database)
    try:
        tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = [await database.fetch(f"SELECT t::text FROM {name} t") for (name,) in tables]
    finally:
        await database.close()
    return "\n".join(text for table in found for (text,) in table)


@pytest_asyncio.fixture
async def run(own_world: RegtestWorld, postgres_database: str, tmp_path: Path) -> AsyncIterator[Run]:
    url = postgres_database.replace("postgres@", f"postgres:{DATABASE_PASSWORD}@")
    for name, text in {"url": url, "invites": INVITE}.items():
        (tmp_path / name).write_text(text)
    settings = {
        "DATABASE_URL_FILE": str(tmp_path / "url"),
        "INVITE_CODES_FILE": str(tmp_path / "invites"),
        "REGISTRATION": "invite",
        "TRUSTED_PROXIES": "127.0.0.1",
        "LOG_FORMAT": "text",
    }
    server = ServedBitcache(own_world, settings=settings)
    home = tmp_path / "home"
    home.mkdir()
    try:
        await server.start()
        yield Run(server, own_world, home, postgres_database.replace("+asyncpg", ""))
    finally:
        await server.close()


async def test_no_secret_is_where_it_does_not_belong(run: Run) -> None:
    server = run.server
    cookie = run.world.server.cookie_path.read_text()
    run.secrets |= {"password": PASSWORD, "database password": DATABASE_PASSWORD, "invite": INVITE}
    run.secrets["master key"] = base64url.encode(read_master_key(server.data_folder / "master.key"))
    run.secrets |= {"node password": cookie.partition(":")[2], "node login": cookie}
    run.private |= {"client": CLIENT}
    data = str(server.data_folder)
    link = await sell(run)
    await run.command("account", "password", "Ada", "--data", data, stdin=PASSWORD)
    await sign_in(run)
    await invoice(run, link)
    await attack(
        run, {name: run.secrets[name] for name in ("token", "link secret", "claim secret", "password")}
    )
    await server.stop()
    text = server.log()
    server.settings["LOG_FORMAT"] = "json"
    await server.start()
    await pay_and_download(run, link)
    await trouble(run)
    run.secrets["node password afterwards"] = run.world.server.cookie_path.read_text().partition(":")[2]
    await attack(run, run.secrets)
    run.command_lines += command_lines()
    metrics = (await run.ask("GET", "/metrics"))[1]
    dump = await rows(run)
    await server.stop()

    json_lines = server.log()[len(text) :].splitlines()
    logged = [json.loads(line) for line in json_lines if not line.startswith("Bitcache listens on")]
    # It would all be there, had we not taken care.
    assert " 401 " in text
    assert any("UndefinedTableError" in line.get("exception", "") for line in logged)
    assert any("no new invoices" in line["message"] for line in logged)
    assert run.private["invoice"] in dump
    assert any(str(server.data_folder) in line for line in run.command_lines)
    assert len(run.refusals) > 200

    everything = {**run.secrets, **run.private}
    # Their own: `get` shows the receipt, `payout show` the wallet.
    owned = {"link secret", "claim secret", "descriptor", "xpub"}
    foreign = {name: secret for name, secret in run.secrets.items() if name not in owned}
    found = [
        *found_in("the log", server.log(), everything),
        *found_in("the metrics", metrics, everything),
        *found_in("the database", dump, run.secrets),
        *found_in("a refusal", "\n".join(run.refusals), run.secrets),
        *found_in("a command line", "\n".join(run.command_lines), run.secrets),
        *(leak for command, said in run.said.items() for leak in found_in(command, said, foreign)),
    ]
    assert not found, "\n".join(found)
    for path in run.home.rglob("*"):
        if path.name != run.private["file name"]:
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, f"{path} is open to others"
