"""The shipped deploy/nginx.conf before the real server, with the real nginx: it sends the files by itself.

Every test talks TLS to nginx, which takes the bytes of downloads from the blobs' folder where the server's
answer says so (`X-Accel-Redirect`), and passes on everything else.
"""

import asyncio
import hashlib
import io
import json
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from bitcache.db.tables import grants
from regtest.processes import free_ports
from regtest.world import RegtestWorld
from storage import base64url, digests
from storage.stream import CHUNK_SIZE_BYTES
from tests.metered_shop import open_metered_shop, piece
from tests.nginx import HOW_TO_INSTALL, Nginx, find_nginx, shipped_site
from tests.test_bitcache_sse import Reader
from tests.till import RELEASE_SECRET, Bought, Sold, Till, open_nodeless_till, open_till

pytestmark = pytest.mark.skipif(find_nginx() is None, reason=HOW_TO_INSTALL)

PREFIX = "/bitcache-blobs"
SIZE = CHUNK_SIZE_BYTES + 1234
BEHIND: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "accel_redirect_prefix": PREFIX}


@dataclass
class Front:
    """nginx before the till's server. `http` talks to nginx."""

    till: Till
    nginx: Nginx
    port: int
    plain_port: int
    http: aiohttp.ClientSession


@asynccontextmanager
async def open_front(till: Till, folder: Path) -> AsyncIterator[Front]:
    folder.mkdir()
    port, plain_port = free_ports(2)
    config = till.server.services.config
    site = shipped_site(
        folder, server=config.listen_port, port=port, blobs=config.blobs, plain_port=plain_port
    )
    nginx = Nginx(folder, site)
    try:
        await nginx.start(port)
        connector = aiohttp.TCPConnector(ssl=False)
        async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector) as http:
            yield Front(till, nginx, port, plain_port, http)
    finally:
        nginx.close()


@pytest_asyncio.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Without a node: enough for what is free."""
    async with open_nodeless_till(tmp_path, **BEHIND) as till, open_front(till, tmp_path / "nginx") as front:
        yield front


async def free_sale(till: Till, size_bytes: int = SIZE) -> tuple[Sold, Bought, dict[str, str]]:
    sold = await till.offer(price_sat=0, sizes=(size_bytes,))
    bought = await till.buy(sold)
    return sold, bought, await till.token(bought)


async def fetched(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str], method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers by their names in lower case, body)."""
    async with http.request(method, path, headers=headers) as answer:
        body = await answer.read()
        return answer.status, {name.lower(): text for name, text in answer.headers.items()}, body


def alike(headers: dict[str, str]) -> dict[str, str]:
    """Those that must not depend on who sends the bytes. nginx says in a 200 alone that it takes ranges."""
    own = {
        "accept-ranges",
        "bitcache-request-id",
        "connection",
        "date",
        "server",
        "strict-transport-security",
    }
    return {name: text for name, text in headers.items() if name not in own}


async def test_whoever_sends_the_bytes_the_answer_is_the_same(front: Front) -> None:
    sold, _, token = await free_sale(front.till)
    _, found, _ = await fetched(front.http, sold.content, token, "HEAD")
    asked: tuple[dict[str, str], ...] = (
        {},
        {"Range": "bytes=0-0"},
        {"Range": "bytes=1048570-"},
        {"Range": "bytes=5-99999999999"},
        {"Range": "bytes=-7"},
        {"Range": "BYTES= 3-9"},
        {"Range": f"bytes={SIZE}-"},
        {"Range": "bytes=9-3"},
        {"Range": "bytes=0-1,5-6"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=0-3", "If-Range": found["etag"]},
        {"Range": "bytes=0-3", "If-Range": '"another"'},
    )
    for headers in asked:
        status, found, body = await fetched(front.http, sold.content, token | headers)
        our_status, our_headers, our_body = await fetched(front.till.http, sold.content, token | headers)
        assert (status, body) == (our_status, our_body), headers
        assert alike(found) == alike(our_headers), headers
        assert len(found["bitcache-request-id"]) == 16


async def test_chunks_that_are_paid_for_are_under_no_limit_of_grants(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """A grant has four connections at nginx; what was paid per chunk is sent, however many at a time."""
    async with (
        open_metered_shop(world, tmp_path, **BEHIND) as shop,
        open_front(shop.hosted.till, tmp_path / "nginx") as front,
    ):
        sold, payer = await shop.offer(chunks=8), await shop.payer()
        assert (await payer.open()).status == 200
        asked = [
            payer.authorization(payer.voucher(10 * (chunk + 1)))
            | {"Range": f"bytes={chunk * CHUNK_SIZE_BYTES}-{(chunk + 1) * CHUNK_SIZE_BYTES - 1}"}
            for chunk in range(8)
        ]
        answers = await asyncio.gather(*(fetched(front.http, sold.content, headers) for headers in asked))
        for chunk, (status, headers, body) in enumerate(answers):
            assert (status, body) == (206, piece(sold, chunk))
            assert base64url.decode(headers["bitcache-release-secret"]) == RELEASE_SECRET
            assert headers["payment-receipt"]
        as_nginx = asked[0] | {"X-Forwarded-For": "203.0.113.9"}
        named = [(await fetched(shop.hosted.till.http, sold.content, as_nginx))[1] for _ in range(2)]
        assert named[0]["x-accel-redirect"] != named[1]["x-accel-redirect"]


async def test_the_server_sends_nothing_itself_and_counts_what_was_asked_for(front: Front) -> None:
    till = front.till
    sold, _, token = await free_sale(till)
    as_nginx = token | {"X-Forwarded-For": "203.0.113.9", "Range": "bytes=0-999"}
    status, headers, body = await fetched(till.http, sold.content, as_nginx)
    shard = f"{sold.file_id[:2]}/{sold.file_id}"
    assert (status, body) == (200, b"")
    assert headers["x-accel-redirect"].startswith(f"{PREFIX}/{shard}?")
    status, _, body = await fetched(front.http, sold.content, token | {"Range": "bytes=0-999"})
    assert (status, body) == (206, sold.blobs[sold.file_id][:1000])
    await till.server.services.grants.flush()
    served = await till.server.services.database.read(
        lambda tx: tx.scalar(select(func.sum(grants.c.bytes_served)))
    )
    assert served == 2_000


async def test_head_is_answered_whole(front: Front) -> None:
    sold, _, token = await free_sale(front.till)
    status, headers, body = await fetched(front.http, sold.content, token, "HEAD")
    assert (status, headers["content-length"], body) == (200, str(SIZE), b"")
    assert headers["etag"].startswith('"')


async def test_blobs_are_not_for_who_asks_nginx_for_them(front: Front) -> None:
    sold, _, token = await free_sale(front.till)
    for path in (
        f"{PREFIX}/{sold.file_id[:2]}/{sold.file_id}",
        f"{PREFIX}/",
        f"/x/..{PREFIX}/{sold.file_id[:2]}/{sold.file_id}",
    ):
        status, _, body = await fetched(front.http, path, token)
        assert (status, sold.blobs[sold.file_id] in body) == (404, False), path
    status, _, _ = await fetched(front.http, sold.content, {})
    assert status == 402


async def test_only_a_configured_server_redirects_and_only_for_a_trusted_proxy(tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    settings: tuple[dict[str, Any], ...] = (
        {"trusted_proxies": ("127.0.0.1",)},
        {**BEHIND, "trusted_proxies": ("192.0.2.1",)},
    )
    for number, changes in enumerate(settings):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with open_nodeless_till(folder, **changes) as till:
            sold, _, token = await free_sale(till)
            status, headers, body = await fetched(till.http, sold.content, token | forwarded)
            assert (status, body) == (200, sold.blobs[sold.file_id])
            assert "x-accel-redirect" not in headers


async def test_a_fifth_download_at_a_time_is_refused(front: Front) -> None:
    sold, bought, token = await free_sale(front.till, 8 * CHUNK_SIZE_BYTES)
    slow = [await _slow_download(front.port, sold.content, token) for _ in range(4)]
    # Another token of the same grant.
    status, headers, body = await fetched(front.http, sold.content, await front.till.token(bought))
    assert (status, json.loads(body)["type"]) == (429, "/problems/grant-exhausted")
    assert headers["retry-after"] == "5"
    another, _, other_token = await free_sale(front.till)
    assert (await fetched(front.http, another.content, other_token))[0] == 200
    for writer in slow:
        writer.transport.abort()


async def _slow_download(port: int, path: str, token: dict[str, str]) -> asyncio.StreamWriter:
    """A client that has read the head of its answer, and whose buffers cannot hold the body."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=line, ssl=context, server_hostname="localhost")
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token['Authorization']}\r\n\r\n".encode()
    )
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    return writer


async def test_an_upload_goes_in_and_its_file_is_for_nginx_too(front: Front) -> None:
    old_umask = os.umask(0o077)
    try:
        seller = {"Authorization": f"Bearer {front.till.account.token}"}
        blob = os.urandom(3 * CHUNK_SIZE_BYTES + 500)
        async with front.http.post("/api/v1/files", json={"size_bytes": len(blob)}, headers=seller) as answer:
            assert answer.status == 201, await answer.text()
            file_id = (await answer.json())["file_id"]
        listed = digests.chunk_digests(blob)
        named = {"Bitcache-Chunk-Digests": base64url.encode(listed)}
        part = f"/api/v1/files/{file_id}/parts/0"
        async with front.http.put(part, data=io.BytesIO(blob), headers=seller | named) as answer:
            assert answer.status == 204, await answer.text()
        root = base64url.encode(digests.root(listed))
        async with front.http.post(
            f"/api/v1/files/{file_id}/complete", json={"root": root}, headers=seller
        ) as answer:
            assert answer.status == 200
    finally:
        os.umask(old_umask)
    config = front.till.server.services.config
    stored = config.blobs / file_id[:2] / file_id
    assert stored.read_bytes() == blob
    assert stat.S_IMODE(stored.stat().st_mode) == 0o640
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (stored.parent, config.blobs)} == {0o750}


async def test_uploads_are_passed_on_as_they_come_and_no_larger_than_a_part(front: Front) -> None:
    seller = {"Authorization": f"Bearer {front.till.account.token}"}
    async with front.http.post("/api/v1/files", json={"size_bytes": 1000}, headers=seller) as answer:
        file_id = (await answer.json())["file_id"]

    async def status_before_the_body(length_bytes: int) -> bytes:
        """nginx must not wait for a body that the server refuses unseen."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
        writer.write(
            f"PUT /api/v1/files/{file_id}/parts/0 HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: {seller['Authorization']}\r\n"
            f"Bitcache-Chunk-Digests: {base64url.encode(hashlib.sha256().digest())}\r\n"
            f"Content-Length: {length_bytes}\r\n\r\n".encode()
        )
        async with asyncio.timeout(20):
            line = await reader.readline()
        writer.transport.abort()
        return line.split()[1]

    assert await status_before_the_body(5_000_000) == b"422"
    assert await status_before_the_body(10_000_000) == b"413"


async def test_metrics_are_refused_and_plain_http_is_sent_to_https(front: Front) -> None:
    assert (await fetched(front.http, "/metrics", {}))[0] == 403
    plain = f"http://127.0.0.1:{front.plain_port}/d/x"
    async with aiohttp.ClientSession() as http, http.get(plain, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (301, "https://127.0.0.1/d/x")


async def test_paid_through_nginx(world: RegtestWorld, tmp_path: Path) -> None:
    """402, an invoice, its events unbuffered, the paid bytes; and nothing of it in nginx's logs."""
    changes = {**BEHIND, "open_invoices_per_client_max": 2}
    async with (
        open_till(world, tmp_path, **changes) as till,
        open_front(till, tmp_path / "nginx") as front,
    ):
        sold = await till.offer()
        assert (await fetched(front.http, sold.content, {}))[0] == 402
        till.http, direct = front.http, till.http
        bought = await till.buy(sold)
        async with front.http.get(f"/api/v1/invoices/{bought.id}/events") as answer:
            events = Reader(answer.content)
            await events.until("open")
            await till.pay(bought)
            await events.until("seen")
            await world.mine()
            await events.until("settled")
        token = await till.token(bought)
        status, headers, body = await fetched(front.http, sold.content, token | {"Range": "bytes=3-1002"})
        assert (status, body) == (206, sold.blobs[sold.file_id][3:1003])
        assert headers["content-range"] == f"bytes 3-1002/{SIZE}"
        await _address_is_counted_once(till, sold, direct)
        logged = front.nginx.logs()
        assert " GET 206 1000 " in logged
        for secret in (token["Authorization"][-20:], bought.id, sold.offer_id, sold.file_id, "203.0.113"):
            assert secret not in logged


async def _address_is_counted_once(till: Till, sold: Sold, direct: aiohttp.ClientSession) -> None:
    """All clients of nginx here are 127.0.0.1; who invents an X-Forwarded-For is no other client."""
    statuses = []
    for number in range(3):
        async with till.ask(sold, os.urandom(32), forwarded_for=f"203.0.113.{number}") as answer:
            statuses.append(answer.status)
    assert statuses == [201, 201, 429]
    till.http = direct
    async with till.ask(sold, os.urandom(32), forwarded_for="203.0.113.7") as answer:
        assert answer.status == 201  # as a proxy says it: another client
