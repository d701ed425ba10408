"""Accounts over real HTTP: registration, tokens, and the wallet, derived by a real node."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from bitcache.config import NodeConfig
from bitcache.payout_wallet import gap_limit_advice
from payments.descriptors import DescriptorUsage
from payments.ports import Transaction
from payments.tables import descriptors
from regtest.world import RegtestWorld
from tests.service import RunningServer, running_server
from tests.test_bitcache_catalog import ask
from tests.till import open_till

KEY = (
    "tpubD6NzVbkrYhZ4WaWSyoBvQwbpLkojyoTZPRsgXELWz3Popb3qkjcJyJUG"
    "LnL4qHHoQvao8ESaAstxYSnhyswJ76uZPStJRJCTKvosUCJZL5B"
)
OTHER_KEY = (
    "tpubD6NzVbkrYhZ4XgiXtGrdW5XDAPFCL9h7we1vwNCpn8tGbBcgfVYjXyhW"
    "o4E1xkh56hjod1RhGjxbaTLV3X4FyWuejifB9jusQ46QzG87VKp"
)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def noded(tmp_path: Path, world: RegtestWorld) -> AsyncIterator[RunningServer]:
    """A server with a real node."""
    node = NodeConfig(rpc_url=world.server.rpc_url, rpc_cookie_file=str(world.server.cookie_path))
    async with running_server(tmp_path, node=node) as server:
        yield server


@pytest.fixture
def addresses_of(world: RegtestWorld) -> Any:
    async def derive(descriptor: str) -> Any:
        info = await world.server.rpc("getdescriptorinfo", descriptor)
        return info["descriptor"], await world.server.rpc("deriveaddresses", info["descriptor"], [0, 2])

    return derive


async def stored_descriptors(tx: Transaction) -> int:
    return int(await tx.scalar(select(func.count()).select_from(descriptors)) or 0)


async def register(server: RunningServer, **body: object) -> tuple[int, Any]:
    async with server.session() as http:
        return await ask(http, "POST", "/accounts", body)


async def test_registration_is_closed_by_default(server: RunningServer) -> None:
    assert await register(server, name="Ada") == (403, "registration-closed")


async def test_registration_by_invitation(tmp_path: Path) -> None:
    async with running_server(tmp_path, registration="invite", invite_codes=("one", "two")) as server:
        assert await register(server, name="Ada") == (403, "invite-invalid")
        assert await register(server, name="Ada", invite="three") == (403, "invite-invalid")
        status, made = await register(server, name="Ada", invite="two")
        assert status == 201
        async with server.session(made["token"]) as http:
            status, account = await ask(http, "GET", "/account")
        assert (status, account["name"], account["account_id"]) == (200, "Ada", made["account_id"])


async def test_open_registration_is_limited_per_client(tmp_path: Path) -> None:
    async with running_server(tmp_path, registration="open") as server:
        statuses = [(await register(server, name=f"seller {number}"))[0] for number in range(12)]
        assert statuses == [201] * 10 + [429] * 2


async def test_names_are_unique_and_printable(tmp_path: Path) -> None:
    async with running_server(tmp_path, registration="open") as server:
        assert (await register(server, name=" Ada  L. "))[0] == 201
        assert await register(server, name="ada l.") == (409, "name-taken")
        for name in ("", "   ", "a\x1b[31m", "x" * 81, 5):
            assert await register(server, name=name) == (422, "invalid-value")


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, "token-missing"),
        ("Basic YTpi", "token-missing"),
        ("Bearer", "token-invalid"),
        ("Bearer ", "token-invalid"),
        ("Bearer bcs_nonsense", "token-invalid"),
        ("Bearer bcg_nonsense", "token-invalid"),
        ("Bearer " + "x" * 8000, "token-invalid"),
    ],
)
async def test_bad_tokens_are_refused(
    server: RunningServer, authorization: str | None, expected: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with aiohttp.ClientSession(server.url, headers=headers) as http:
        assert await ask(http, "GET", "/account") == (401, expected)
        async with http.get("/api/v1/account") as answer:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_tokens_are_issued_and_revoked(server: RunningServer) -> None:
    first, other = await server.new_seller(), await server.new_seller()
    async with server.session(first.token) as http:
        status, second = await ask(http, "POST", "/tokens", {"label": "laptop"})
        assert status == 201
        assert await ask(http, "DELETE", f"/tokens/{other.token_id}") == (404, "not-found")
        for _ in range(2):
            assert await ask(http, "DELETE", f"/tokens/{second['token_id']}") == (204, None)
        assert (await ask(http, "GET", "/account"))[0] == 200
    async with server.session(second["token"]) as http:
        assert await ask(http, "GET", "/account") == (401, "token-invalid")


async def test_no_token_is_in_the_database(server: RunningServer) -> None:
    issued = await server.new_seller()
    async with server.session(issued.token) as http:
        async with http.post("/api/v1/tokens", json={}, headers={"Idempotency-Key": "k"}) as answer:
            second = (await answer.json())["token"]
        async with http.post("/api/v1/tokens", json={}, headers={"Idempotency-Key": "k"}) as answer:
            assert (await answer.json())["token"] == second
    stored = b"".join(path.read_bytes() for path in server.services.config.data_folder.glob("bitcache.db*"))
    for token in (issued.token, second):
        assert token.encode() not in stored


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "bad-request")),
        (b"{", (400, "bad-request")),
        (b"\xff", (400, "bad-request")),
        (b"[" * 100_000, (413, "too-large")),
        (b"[" * 60_000, (422, "invalid-value")),
        (b'{"name": ' + b"[" * 60_000, (422, "invalid-value")),
        (b"[]", (422, "invalid-value")),
        (b'{"label": "x", "lable": "y"}', (422, "invalid-value")),
        (b'{"label": 5}', (422, "invalid-value")),
    ],
)
async def test_bodies_that_are_not_what_they_should_be(
    server: RunningServer, body: bytes, expected: tuple[int, str]
) -> None:
    seller = await server.new_seller()
    async with server.session(seller.token) as http, http.post("/api/v1/tokens", data=body) as answer:
        problem = await answer.json(content_type=None)
        assert (answer.status, problem["type"].removeprefix("/problems/")) == expected
        if b"lable" in body:
            assert problem["field"] == "lable"


async def test_a_wallet_is_looked_at_before_anything_is_stored(
    noded: RunningServer, addresses_of: Any
) -> None:
    descriptor, addresses = await addresses_of(f"wpkh({KEY}/0/*)")
    async with noded.session((await noded.new_seller()).token) as http:
        status, preview = await ask(
            http, "POST", "/account/payout-preview", {"payout_descriptor": f"wpkh({KEY}/<0;1>/*)"}
        )
        assert status == 200, preview
        assert (preview["descriptor"], preview["first_addresses"]) == (descriptor, addresses)
        assert preview["effective_at"] == pytest.approx(noded.clock(), abs=5)
        assert (await ask(http, "GET", "/account"))[1]["payout"] is None
        refused = await ask(http, "POST", "/account/payout-preview", {"payout_descriptor": "nonsense"})
        assert refused == (422, "descriptor-invalid")
    assert await noded.services.database.read(stored_descriptors) == 0


async def test_a_wallet_nobody_can_have_paid_is_replaced_at_once(
    noded: RunningServer, addresses_of: Any
) -> None:
    wrong, addresses = await addresses_of(f"wpkh({KEY}/0/*)")
    right, _ = await addresses_of(f"tr({OTHER_KEY}/0/*)")
    async with noded.session((await noded.new_seller()).token) as http:
        status, account = await ask(http, "PATCH", "/account", {"payout_descriptor": wrong, "start_index": 7})
        assert status == 200, account
        payout = account["payout"]
        assert (payout["descriptor"], payout["first_addresses"]) == (wrong, addresses)
        assert (payout["next_index"], payout["highest_index_used"], payout["advice"]) == (7, None, None)

        _, account = await ask(http, "PATCH", "/account", {"payout_descriptor": right})
        assert (account["payout"]["descriptor"], account["payout"]["pending_descriptor"]) == (right, None)


async def test_a_wallet_that_gave_an_address_is_replaced_after_a_delay(
    world: RegtestWorld, tmp_path: Path, addresses_of: Any
) -> None:
    other, _ = await addresses_of(f"tr({OTHER_KEY}/0/*)")
    async with open_till(world, tmp_path) as till, till.server.session(till.account.token) as http:
        clock = till.server.clock

        async def set_wallet(descriptor: str) -> Any:
            status, account = await ask(http, "PATCH", "/account", {"payout_descriptor": descriptor})
            assert status == 200, account
            return account["payout"]

        await till.buy(await till.offer())
        _, account = await ask(http, "GET", "/account")
        present = account["payout"]["descriptor"]
        _, preview = await ask(http, "POST", "/account/payout-preview", {"payout_descriptor": other})
        assert preview["effective_at"] == pytest.approx(clock() + 86_400, abs=5)
        payout = await set_wallet(other)
        assert (payout["descriptor"], payout["pending_descriptor"]) == (present, other)
        assert payout["pending_until"] == pytest.approx(clock() + 86_400, abs=5)
        clock.advance(3_600)
        assert (await set_wallet(other))["pending_until"] == payout["pending_until"], "it waits anew"
        assert (await set_wallet(present))["pending_descriptor"] is None, "the present one calls it off"

        await set_wallet(other)
        clock.advance(86_401)
        for _ in range(2):  # before and after the sweep has written it down
            _, account = await ask(http, "GET", "/account")
            assert (account["payout"]["descriptor"], account["payout"]["pending_descriptor"]) == (other, None)
            await till.server.services.sweep.poll_once()


async def test_an_index_never_goes_back(noded: RunningServer) -> None:
    async with noded.session((await noded.new_seller()).token) as http:
        assert await ask(http, "PATCH", "/account", {"start_index": 3}) == (422, "invalid-value")
        await ask(http, "PATCH", "/account", {"payout_descriptor": KEY, "start_index": 9})
        for start_index, expected in ((4, 9), (12, 12)):
            _, account = await ask(http, "PATCH", "/account", {"start_index": start_index})
            assert account["payout"]["next_index"] == expected


@pytest.mark.parametrize(
    "descriptor",
    [
        "wpkh(tprv8ZgxMBicQKsPd7Uf69XL1XwhmjHopUGep8GuEiJDZmbQz6o58LninorQAfcKZWARbtRtfnLcJ5MQ2AtHcQJCCRUcMRvmDUjyEmNUWwx8UbK/0/*)",
        "wpkh(xpub661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8NqtwybGhePY2gZ29ESFjqJoCu1Rupje8YtGqsefD265TMg7usUDFdp6W1EGMcet8/0/*)",
        f"wpkh({KEY}/0/0)",
        f"wpkh({KEY}/0/*)#aaaaaaaa",
        "nonsense",
        "x" * 4001,
    ],
)
async def test_wallets_that_cannot_be_paid_are_refused(noded: RunningServer, descriptor: str) -> None:
    async with noded.session((await noded.new_seller()).token) as http:
        status, name = await ask(http, "PATCH", "/account", {"payout_descriptor": descriptor})
        assert status == 422
        assert name in {"descriptor-invalid", "invalid-value"}
        assert (await ask(http, "GET", "/account"))[1]["payout"] is None


async def test_without_a_node_the_account_is_shown_and_no_wallet_is_set(server: RunningServer) -> None:
    async with server.session((await server.new_seller()).token) as http:
        assert await ask(http, "PATCH", "/account", {"payout_descriptor": KEY}) == (503, "node-offline")
        assert (await ask(http, "GET", "/account"))[0] == 200


async def test_descriptors_are_sealed_at_rest(noded: RunningServer) -> None:
    async with noded.session((await noded.new_seller()).token) as http:
        assert (await ask(http, "PATCH", "/account", {"payout_descriptor": KEY}))[0] == 200
    stored = b"".join(path.read_bytes() for path in noded.services.config.data_folder.glob("bitcache.db*"))
    assert KEY.encode() not in stored


def test_the_gap_limit_is_spoken_of_in_time() -> None:
    assert gap_limit_advice(DescriptorUsage(14, 13, 14)) is None
    assert gap_limit_advice(DescriptorUsage(40, 39, 15, gap_limit=21)) is None
    advice = gap_limit_advice(DescriptorUsage(40, 39, 15))
    assert advice is not None
    for words in (
        "15 addresses",
        "change_gap_limit(115)",
        "keypoolrefill 115",
        '"range": [0, 139]',
        "Sparrow",
    ):
        assert words in advice


async def test_a_hundred_sellers_at_once_keep_their_names_apart(server: RunningServer) -> None:
    made = await asyncio.gather(*(server.new_seller() for _ in range(100)))
    assert len({json.dumps([issued.account_id, issued.token]) for issued in made}) == 100
