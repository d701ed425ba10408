"""What an adversary at the HTTP door sends: broken framing, false encodings, secrets where none belong.

Requests that no client library would send go over a plain socket. Refusals that belong to one resource are
beside its other tests.
"""

import asyncio
import hashlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import select
from typer.testing import CliRunner

from bitcache.api.routing import Auth
from bitcache.api.table import ROUTES
from bitcache.cli.main import app
from bitcache.ids import new_id
from payments.tables import watcher_state
from regtest.node import wait_until
from storage import base64url
from tests.service import RunningServer, running_server

ANSWER_S = 10


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path) as server:
        yield server


async def send(server: RunningServer, octets: bytes) -> bytes:
    """What the server answers to these bytes until it closes the connection."""
    config = server.services.config
    reader, writer = await asyncio.open_connection(config.listen_host, config.listen_port)
    try:
        writer.write(octets)
        async with asyncio.timeout(ANSWER_S):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", "")
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer bcs_verysecret\x00",
        "Authorization: Bearer bcs_verysecret\x01",
        "Authorization : Bearer bcs_verysecret",
        "Authorization: Bearer\r\n bcs_verysecret",
        "Authorization: Bearer bcs_verysecret" + "x" * 20_000,
        "Content-Length: verysecret",
    ],
)
async def test_what_the_parser_refuses_is_not_quoted_in_the_log(
    server: RunningServer, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await send(server, request("GET", "/api/v1/account", header))
    assert answer.split()[1] in {b"400", b"401"}
    assert "verysecret" not in caplog.text
    # Nor in the answer, which has no words of the parser's, and no version of anything.
    assert b"verysecret" not in answer
    assert b"Content-Type: application/problem+json" in answer
    assert b"Server: bitcache\r\n" in answer
    assert b"X-Content-Type-Options: nosniff" in answer


async def test_a_secret_in_a_broken_body_is_not_quoted_in_the_log(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = (await server.new_seller()).token
    chunked = ("Transfer-Encoding: chunked", f"Authorization: Bearer {token}")
    answer = await send(
        server, request("POST", "/api/v1/files", *chunked, body=b'5\r\n{"si\r\nverysecret\r\n')
    )
    assert answer.split()[1] == b"400"
    assert "verysecret" not in caplog.text
    assert token not in caplog.text


async def test_a_body_that_is_not_what_its_encoding_says_is_a_bad_request(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    token = (await server.new_seller()).token
    headers = (f"Authorization: Bearer {token}", "Content-Encoding: gzip", "Content-Length: 10")
    answer = await send(server, request("POST", "/api/v1/files", *headers, body=b"0123456789"))
    assert answer.split()[1] == b"400"
    assert b"/problems/bad-request" in answer
    assert "Traceback" not in caplog.text


async def test_a_full_disk_under_the_database_is_told_and_nothing_is_lost(server: RunningServer) -> None:
    async def pages_max(count: int) -> None:
        await server.services.database.write(
            lambda tx: tx.exec_driver_sql(f"PRAGMA max_page_count = {count}")
        )

    async with server.session((await server.new_seller()).token) as seller:
        await pages_max(1)  # the pages there are stay, but there will be no more
        made = 0
        while True:
            async with seller.post("/api/v1/files", json={"size_bytes": 100}) as answer:
                if answer.status != 201:
                    break
                made += 1
        assert answer.status == 507
        name, detail = await _problem(seller, "/api/v1/files", {"size_bytes": 100})
        assert name == "disk-full"
        assert "server's disk" in detail
        async with seller.get("/api/v1/account") as answer:
            assert (await answer.json())["bytes_stored"] == made * 100
        await pages_max(1 << 30)
        async with seller.post("/api/v1/files", json={"size_bytes": 100}) as answer:
            assert answer.status == 201


async def test_a_database_out_of_order_ends_neither_watcher_nor_server(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def rename(table: str, name: str) -> None:
        await server.services.database.write(
            lambda tx: tx.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")
        )

    async def failed() -> bool:
        return "could not be written down" in caplog.text

    async def beats() -> bool:
        checked_at = await server.services.database.read(
            lambda tx: tx.scalar(select(watcher_state.c.beat_at))
        )
        return checked_at is not None and checked_at >= fixed_at

    await rename("watcher_state", "hidden")
    await wait_until(failed, "the watcher to fail")
    async with server.session() as http, http.get("/static/app.css") as answer:
        assert answer.status == 200
    await rename("hidden", "watcher_state")
    fixed_at = server.clock()
    await wait_until(beats, "the watcher to write again")


async def test_requests_without_a_body_are_refused_each_time(server: RunningServer) -> None:
    # aiohttp shares one reader among all of them: the second once kept the server busy for ever.
    async with server.session() as http:
        for _ in range(3):
            async with asyncio.timeout(10), http.post("/api/v1/accounts") as answer:
                assert answer.status == 400
                assert (await answer.json())["type"] == "/problems/bad-request"


async def test_a_body_longer_than_announced_is_refused_and_loses_nothing(server: RunningServer) -> None:
    token = (await server.new_seller()).token
    content = os.urandom(100)
    async with server.session(token) as seller:
        async with seller.post("/api/v1/files", json={"size_bytes": 100}) as answer:
            file_id = (await answer.json())["file_id"]
        digest = base64url.encode(hashlib.sha256(content).digest())
        headers = (
            f"Authorization: Bearer {token}",
            f"Bitcache-Chunk-Digests: {digest}",
            "Content-Length: 100",
        )
        part = request("PUT", f"/api/v1/files/{file_id}/parts/0", *headers, body=content)
        answers = await send(server, part.replace(b"Connection: close\r\n", b"") + b"and more\r\n\r\n")
        # Whether the part itself was taken depends on how the bytes were cut on their way.
        assert re.findall(rb"^HTTP/1.. (\d+)", answers, re.MULTILINE)[-1] == b"400"
        # Nothing is lost either way: the same part is welcome, and has the digest that was announced.
        assert (await send(server, part)).startswith(b"HTTP/1.1 204")
        root = {"root": base64url.encode(hashlib.sha256(hashlib.sha256(content).digest()).digest())}
        async with seller.post(f"/api/v1/files/{file_id}/complete", json=root) as answer:
            assert answer.status == 200


async def test_no_address_follows_the_host_header(server: RunningServer) -> None:
    for path in ("/dashboard", "/api/v1/openapi.json", f"/d/{new_id()}"):
        lines = (f"GET {path} HTTP/1.1", "Host: evil.example", "X-Forwarded-Host: evil.example")
        answer = await send(server, "\r\n".join((*lines, "Connection: close", "", "")).encode())
        assert b"evil.example" not in answer


async def test_every_sellers_route_is_closed_to_others(server: RunningServer) -> None:
    grant_id, offer_id, parcel_id = new_id(), new_id(), new_id()
    grant, _ = server.services.grants.issue(grant_id=grant_id, offer_id=offer_id, parcel_id=parcel_id)
    sellers_routes = [route for route in ROUTES if route.auth is Auth.SELLER]
    assert len(sellers_routes) > 15
    async with server.session() as nobody, server.session(grant) as buyer:
        for route in sellers_routes:
            path = re.sub(r"\{[a-z]+_id\}", new_id(), route.path).replace("{part_no}", "0")
            for http, refusal in ((nobody, "token-missing"), (buyer, "token-invalid")):
                async with http.request(route.method, path) as answer:
                    assert answer.status == 401, route
                    assert (await answer.json())["type"] == f"/problems/{refusal}"


@pytest.mark.parametrize("label", ["a\x00b", "\x1b[31mred", "\u202ereversed"])
async def test_a_token_has_a_printable_label(server: RunningServer, label: str) -> None:
    async with server.session((await server.new_seller()).token) as seller:
        assert (await _problem(seller, "/api/v1/tokens", {"label": label}))[0] == "invalid-value"


@pytest.mark.parametrize(
    "secret",
    [
        # The master key of the first test vector of BIP32, and the private key 1.
        "xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi",
        "wpkh(KwDiBf89QgGbjEhKnhXJuH7LrciVrZi3qYjgd9M7rFU73sVHnoWn)",
        "abandon " * 11 + "about",
    ],
)
def test_a_private_key_does_not_leave_the_sellers_computer(secret: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        variables = {"BITCACHE_SERVER": address, "BITCACHE_TOKEN": "bcs_" + "a" * 52}
        result = CliRunner().invoke(app, ["payout", "set", secret, "--yes"], env=variables)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert result.exit_code == 2
    assert "Nothing was sent" in " ".join(result.stderr.split())


async def _problem(http: aiohttp.ClientSession, path: str, body: object) -> tuple[str, str]:
    """(name, detail) of the refusal."""
    async with http.post(path, json=body) as answer:
        problem = await answer.json()
        return problem["type"].removeprefix("/problems/"), problem["detail"]
