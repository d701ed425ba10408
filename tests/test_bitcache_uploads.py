"""Uploads over real HTTP onto a real disk: what is acknowledged stays, what is wrong is refused by name."""

import asyncio
import base64
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from bitcache.config import LimitsConfig
from storage.digests import root as root_of
from tests.service import RunningServer, running_server

MIB = 1 << 20
PART = 8 * MIB
AT_ONCE = LimitsConfig().parts_at_once_per_seller


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path, account_bytes_max=64 * MIB, total_bytes_max=80 * MIB) as server:
        yield server


@pytest_asyncio.fixture
async def http(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with server.session((await server.new_seller()).token) as http:
        yield http


def text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def digests(octets: bytes) -> bytes:
    return b"".join(hashlib.sha256(octets[at : at + MIB]).digest() for at in range(0, len(octets), MIB))


async def announce(http: aiohttp.ClientSession, size_bytes: int) -> str:
    async with http.post("/api/v1/files", json={"size_bytes": size_bytes}) as answer:
        assert answer.status == 201, await answer.text()
        view = await answer.json()
        assert view["part_size_bytes"] == PART
        return str(view["file_id"])


async def put(
    http: aiohttp.ClientSession, file_id: str, part_no: int, body: Any, of: bytes | None = None
) -> tuple[int, str]:
    """(status, problem name or ""). `of`: the bytes whose digests are announced, if not those of the body."""
    headers = {"Bitcache-Chunk-Digests": text(digests(body if of is None else of))}
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    async with http.put(f"/api/v1/files/{file_id}/parts/{part_no}", data=data, headers=headers) as answer:
        return answer.status, await problem(answer)


async def problem(answer: aiohttp.ClientResponse) -> str:
    if answer.status < 400:
        return ""
    assert answer.content_type == "application/problem+json"
    return str((await answer.json())["type"]).removeprefix("/problems/")


async def complete(http: aiohttp.ClientSession, file_id: str, root: bytes) -> tuple[int, Any]:
    async with http.post(f"/api/v1/files/{file_id}/complete", json={"root": text(root)}) as answer:
        return answer.status, await answer.json()


async def show(http: aiohttp.ClientSession, file_id: str) -> Any:
    async with http.get(f"/api/v1/files/{file_id}") as answer:
        return await answer.json()


@pytest.mark.parametrize("size_bytes", [56, MIB, PART - 1, PART, PART + MIB + 123])
async def test_a_file_goes_in_and_is_on_disk(
    server: RunningServer, http: aiohttp.ClientSession, size_bytes: int
) -> None:
    content = os.urandom(size_bytes)
    file_id = await announce(http, size_bytes)
    parts = [content[at : at + PART] for at in range(0, size_bytes, PART)]
    for part_no in reversed(range(len(parts))):
        assert await put(http, file_id, part_no, parts[part_no]) == (204, "")
    assert (await show(http, file_id))["parts_present"] == list(range(len(parts)))
    status, view = await complete(http, file_id, root_of(digests(content)))
    assert (status, view["state"]) == (200, "complete")
    stored = await server.services.blobs.open_range(file_id, 0, size_bytes)
    assert stored.path.read_bytes() == content  # type: ignore[union-attr]


async def test_the_same_bytes_again_are_welcome_and_others_are_not(http: aiohttp.ClientSession) -> None:
    content, others = os.urandom(MIB), os.urandom(MIB)
    file_id = await announce(http, MIB)
    for _ in range(2):
        assert await put(http, file_id, 0, content) == (204, "")
    assert await put(http, file_id, 0, others) == (409, "part-conflict")
    await complete(http, file_id, root_of(digests(content)))
    assert await put(http, file_id, 0, content) == (204, "")
    assert await put(http, file_id, 0, others) == (409, "part-conflict")


async def test_one_part_sent_many_times_at_once_is_stored_once(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    contents = [os.urandom(MIB) for _ in range(AT_ONCE)]
    file_id = await announce(http, MIB)
    answers = await asyncio.gather(*(put(http, file_id, 0, content) for content in contents))
    assert sorted(answers) == [(204, "")] + [(409, "part-conflict")] * (AT_ONCE - 1)
    winner = contents[answers.index((204, ""))]
    status, _ = await complete(http, file_id, root_of(digests(winner)))
    assert status == 200
    stored = await server.services.blobs.open_range(file_id, 0, MIB)
    assert stored.path.read_bytes() == winner  # type: ignore[union-attr]


async def test_wrong_sizes_are_refused(http: aiohttp.ClientSession) -> None:
    file_id = await announce(http, PART + 100)
    assert await put(http, file_id, 0, bytes(PART - 1), of=bytes(PART)) == (422, "part-size-wrong")
    assert await put(http, file_id, 1, bytes(101), of=bytes(100)) == (422, "part-size-wrong")
    assert await put(http, file_id, 1, b"", of=bytes(100)) == (422, "part-size-wrong")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(64)

    # Without a Content-Length the body itself is cut off as soon as it is too long.
    assert await put(http, file_id, 1, endless(), of=bytes(100)) == (422, "part-size-wrong")
    assert (await show(http, file_id))["parts_present"] == []


async def test_wrong_digests_are_refused(http: aiohttp.ClientSession) -> None:
    file_id = await announce(http, MIB + 50)
    content = os.urandom(MIB + 50)
    flipped = bytes([content[0] ^ 1]) + content[1:]
    assert await put(http, file_id, 0, flipped, of=content) == (422, "part-digest-mismatch")
    assert await put(http, file_id, 0, content, of=content[:MIB]) == (400, "bad-request")
    path = f"/api/v1/files/{file_id}/parts/0"
    async with http.put(path, data=io.BytesIO(content)) as answer:
        assert (answer.status, await problem(answer)) == (400, "bad-request")
    async with http.put(path, data=io.BytesIO(content), headers={"Bitcache-Chunk-Digests": "=%?"}) as answer:
        assert (answer.status, await problem(answer)) == (400, "bad-request")
    assert (await show(http, file_id))["parts_present"] == []


async def test_parts_outside_the_file_are_refused(http: aiohttp.ClientSession) -> None:
    file_id = await announce(http, MIB)
    assert await put(http, file_id, 1, bytes(MIB)) == (422, "part-out-of-range")
    assert await put(http, file_id, 9_999_999, bytes(MIB)) == (422, "part-out-of-range")
    async with http.put(f"/api/v1/files/{file_id}/parts/-1", data=b"x") as answer:
        assert answer.status == 404
    async with http.put(f"/api/v1/files/{'a' * 26}/parts/0", data=b"x") as answer:
        assert (answer.status, await problem(answer)) == (404, "not-found")


async def test_completing_names_missing_parts_and_wrong_roots(http: aiohttp.ClientSession) -> None:
    content = os.urandom(PART + 50)
    file_id = await announce(http, len(content))
    await put(http, file_id, 1, content[PART:])
    status, refusal = await complete(http, file_id, root_of(digests(content)))
    assert (status, refusal["type"]) == (422, "/problems/parts-missing")
    assert "0." in refusal["detail"]
    await put(http, file_id, 0, content[:PART])
    status, refusal = await complete(http, file_id, bytes(32))
    assert (status, refusal["type"]) == (422, "/problems/root-mismatch")
    for _ in range(2):
        status, _view = await complete(http, file_id, root_of(digests(content)))
        assert status == 200
    status, refusal = await complete(http, file_id, bytes(32))
    assert (status, refusal["type"]) == (422, "/problems/root-mismatch")


async def test_caps_of_account_and_server(server: RunningServer, http: aiohttp.ClientSession) -> None:
    await announce(http, 60 * MIB)
    async with http.post("/api/v1/files", json={"size_bytes": 10 * MIB}) as answer:
        assert (answer.status, await problem(answer)) == (413, "account-full")
    async with (
        server.session((await server.new_seller()).token) as other,
        other.post("/api/v1/files", json={"size_bytes": 30 * MIB}) as answer,
    ):
        assert (answer.status, await problem(answer)) == (507, "server-full")


async def test_sizes_no_file_can_have_are_refused(http: aiohttp.ClientSession) -> None:
    for size_bytes in (55, -1, 2**60, 1.5, "56", MIB + 3):
        async with http.post("/api/v1/files", json={"size_bytes": size_bytes}) as answer:
            assert (answer.status, await problem(answer)) == (422, "invalid-value"), size_bytes


async def test_a_full_disk_refuses_and_the_upload_goes_on_later(tmp_path: Path) -> None:
    content = os.urandom(MIB)
    async with running_server(tmp_path) as server:
        seller = await server.new_seller()
        async with server.session(seller.token) as http:
            file_id = await announce(http, MIB)
    free_bytes = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    async with (
        running_server(tmp_path, disk_reserve_bytes=2 * free_bytes) as server,
        server.session(seller.token) as http,
    ):
        assert await put(http, file_id, 0, content) == (507, "disk-full")
        async with http.post("/api/v1/files", json={"size_bytes": MIB}) as answer:
            assert (answer.status, await problem(answer)) == (507, "server-full")
    async with running_server(tmp_path) as server, server.session(seller.token) as http:
        assert await put(http, file_id, 0, content) == (204, "")


async def test_another_seller_sees_nothing(server: RunningServer, http: aiohttp.ClientSession) -> None:
    file_id = await announce(http, MIB)
    async with server.session((await server.new_seller()).token) as other:
        assert await put(other, file_id, 0, bytes(MIB)) == (404, "not-found")
        assert (await complete(other, file_id, bytes(32)))[0] == 404
        for method in ("GET", "DELETE"):
            async with other.request(method, f"/api/v1/files/{file_id}") as answer:
                assert answer.status == 404


async def test_a_deleted_file_is_gone_from_disk(server: RunningServer, http: aiohttp.ClientSession) -> None:
    file_id = await announce(http, MIB)
    await put(http, file_id, 0, bytes(MIB))
    async with http.delete(f"/api/v1/files/{file_id}") as answer:
        assert answer.status == 204
    assert [blob.file_id async for blob in server.services.blobs.list()] == []
    async with http.get(f"/api/v1/files/{file_id}") as answer:
        assert answer.status == 404


async def test_an_idempotency_key_announces_once(http: aiohttp.ClientSession) -> None:
    headers = {"Idempotency-Key": "one"}
    views = []
    for _ in range(2):
        async with http.post("/api/v1/files", json={"size_bytes": MIB}, headers=headers) as answer:
            assert answer.status == 201
            views.append(await answer.json())
    assert views[0] == views[1]
    async with http.post("/api/v1/files", json={"size_bytes": 2 * MIB}, headers=headers) as answer:
        assert (answer.status, await problem(answer)) == (409, "idempotency-key-reused")


async def test_a_connection_that_breaks_leaves_nothing(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    file_id = await announce(http, PART)
    token = http.headers["Authorization"]
    host, port = server.services.config.listen_host, server.services.config.listen_port
    _, writer = await asyncio.open_connection(host, port)
    header = text(digests(bytes(PART)))
    writer.write(
        f"PUT /api/v1/files/{file_id}/parts/0 HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
        f"Bitcache-Chunk-Digests: {header}\r\nContent-Length: {PART}\r\n\r\n".encode()
        + bytes(MIB)
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert await put(http, file_id, 0, bytes(PART)) == (204, "")
