"""Octets that are nearly HTTP, on a plain socket: no answer but refusals, no second request smuggled in, no
connection left hanging, no bug in the log. The long form is `make soak-fuzz`.
"""

import asyncio
import gc
import gzip
import logging
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from tests.fuzz import raw
from tests.service import RunningServer, running_server

CONVERSATIONS = 250
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_NOTHING = b"0\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path_factory.mktemp("raw")) as server:
        yield server


async def answers(server: RunningServer, octets: bytes) -> list[int]:
    """Statuses. Raises TimeoutError if the server does not hang up."""
    statuses, _ = await asyncio.to_thread(raw.answers, server.services.config.listen_port, octets)
    return statuses


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKED_NOTHING),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", CHUNKED_NOTHING),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
        (b"Content-Length: 5, 5\r\n", b"hello"),
        (b"Content-Length: +5\r\n", b"hello"),
        (b"Content-Length: -5\r\n", b"hello"),
        (b"Content-Length: 0x5\r\n", b"hello"),
        (b"Content-Length: 5 5\r\n", b"hello"),
        (b"Content-Length: \xd9\xa5\r\n", b"hello"),
        (b"Content-Length: 99999999999999999999\r\n", b"hello"),
        (b"Content-Length : 5\r\n", b"hello"),
        (b"Content-Length: 5\x00\r\n", b"hello"),
        (b"X: a\r\n folded\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n folded\r\n", CHUNKED_NOTHING),
        (b"Transfer-Encoding:\x0bchunked\r\n", CHUNKED_NOTHING),
        (b"Transfer-Encoding : chunked\r\n", CHUNKED_NOTHING),
        (b" Transfer-Encoding: chunked\r\n", CHUNKED_NOTHING),
        (b"Transfer-Encoding: chunked, identity\r\n", CHUNKED_NOTHING),
        (b"Transfer-Encoding: identity, chunked, chunked\r\n", CHUNKED_NOTHING),
        (b"Transfer-Encoding: xchunked\r\n", CHUNKED_NOTHING),
        (b"X: a\x00b\r\n", b""),
        (b"X\x00: a\r\n", b""),
        (b": nameless\r\n", b""),
        (b"no colon\r\n", b""),
        (b"X: a\nContent-Length: 5\r\n", b"hello"),
    ],
)
async def test_what_two_readers_could_read_in_two_ways_is_refused_and_ends_the_connection(
    server: RunningServer, headers: bytes, body: bytes
) -> None:
    assert await answers(server, HEALTHZ + headers + b"\r\n" + body + SMUGGLED) == [400]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "chunks",
    [
        b"ffffffffffffffffff\r\nx",
        b"-1\r\nx\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"G\r\n\r\n",
    ],
)
async def test_chunks_that_are_none_are_refused_and_end_the_connection(
    server: RunningServer, chunks: bytes
) -> None:
    head = b"POST /api/v1/accounts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await answers(server, head + chunks + SMUGGLED) == [400]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_without_an_address_is_refused(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = b"CONNECT  \r\n\r\n"
    assert await answers(server, nowhere + raw.LAST) == [400]
    # Behind another request it ends the connection without a word of its own.
    assert await answers(server, HEALTHZ + b"\r\n" + nowhere + raw.LAST) == [200]
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.asyncio(loop_scope="module")
async def test_requests_in_a_row_get_answers_in_a_row(server: RunningServer) -> None:
    post = b"POST /api/v1/accounts HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    nowhere = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    assert await answers(server, post + nowhere + HEALTHZ + b"\r\n" + post + raw.LAST) == [
        422,
        404,
        200,
        422,
        200,
    ]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("encoding", ["deflate", "gzip", "br", "x"])
async def test_a_packed_body_that_nobody_reads_does_not_hold_up_the_next_request(
    server: RunningServer, encoding: str
) -> None:
    config = server.services.config
    reader, writer = await asyncio.open_connection(config.listen_host, config.listen_port)
    head = ("GET /api/v1/account HTTP/1.1", "Host: x", f"Content-Encoding: {encoding}", "Content-Length: 2")
    writer.write("\r\n".join((*head, "", "")).encode())
    assert b"401" in await reader.readuntil(b"\r\n\r\n")
    # What is broken comes when the answer is gone already.
    writer.write(b"{}" + raw.LAST)
    async with asyncio.timeout(raw.CLOSE_S_MAX):
        assert b"HTTP/1.1 200 OK" in await reader.read()
    writer.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_packed_body_is_refused(server: RunningServer) -> None:
    async with server.session() as http:
        headers = {"Content-Encoding": "gzip"}
        async with http.post("/api/v1/accounts", data=gzip.compress(b"{}"), headers=headers) as answer:
            assert answer.status == 400
            assert (await answer.json())["field"] == "Content-Encoding"


@pytest.mark.asyncio(loop_scope="module")
async def test_made_up_conversations_end_without_a_bug(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    random = Random(1)
    seen: set[int] = set()
    for _ in range(CONVERSATIONS):
        octets = raw.conversation(random)
        statuses = await answers(server, octets)
        assert all(status < 500 or status in {503, 507} for status in statuses), octets
        seen.update(statuses)
    assert {200, 400, 405} <= seen
    assert not caplog.records
