"""Clients that hold a place without using it lose it, and nobody else does."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from bitcache import app
from bitcache.api import bodies
from bitcache.api.connection import HEAD_BYTES_MAX, Connection
from bitcache.api.connections import (
    EVICTED_AT_ONCE,
    GROUP_SHARES,
    LEFT_S,
    STALLED_S,
    Connections,
    count_max,
)
from bitcache.config import LimitsConfig
from bitcache.db.tables import parcels
from regtest.node import wait_until
from storage.stream import CHUNK_SIZE_BYTES
from tests.service import RunningServer, running_server
from tests.till import open_nodeless_till

PATIENCE_S = 20
ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Line:
    """One connection to the server, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def status(self) -> int:
        """Of the next answer, whose body is read too."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        length = re.search(rb"Content-Length: (\d+)", head, re.I)
        self.head, self.body = head, await self.reader.readexactly(int(length[1]) if length else 0)
        return int(head.split()[1])

    async def is_dropped(self) -> bool:
        """Waits until the server hangs up; fails if it says anything more."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S) == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def line_to(server: RunningServer, *, from_address: str = "127.0.0.1") -> AsyncIterator[Line]:
    config = server.services.config
    reader, writer = await asyncio.open_connection(
        config.listen_host, config.listen_port, local_addr=(from_address, 0)
    )
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


async def test_a_head_that_dribbles_is_cut_off_and_a_quick_one_is_not(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, limits=LimitsConfig(head_s=15)) as server,
        line_to(server) as silent,
        line_to(server) as dribbling,
        line_to(server) as quick,
    ):
        await quick.send(ASK)
        assert await quick.status() == 200
        await dribbling.send(b"GET /healthz HTTP/1.1\r\nX: ")
        server.clock.advance(16)
        await dribbling.send(b"y")
        assert await dribbling.is_dropped()
        assert await silent.is_dropped()
        await quick.send(ASK)
        assert await quick.status() == 200


async def test_a_line_without_requests_is_closed(tmp_path: Path) -> None:
    async with running_server(tmp_path, limits=LimitsConfig(idle_s=1)) as server, line_to(server) as line:
        await line.send(ASK)
        assert await line.status() == 200
        # The head of the next request dribbles: that is no request.
        await line.send(b"GET /healthz HTTP/1.1\r\nX: ")
        assert await line.is_dropped()


@pytest.mark.parametrize("in_one_piece", [True, False])
async def test_a_head_is_limited_in_all(tmp_path: Path, in_one_piece: bool) -> None:
    async with running_server(tmp_path) as server, line_to(server) as line:
        fields = [b"X-%d: %b\r\n" % (n, b"x" * 3_000) for n in range(HEAD_BYTES_MAX // 3_000 + 1)]
        head = [b"GET /healthz HTTP/1.1\r\nHost: x\r\n", *fields, b"\r\n" if in_one_piece else b""]
        for piece in [b"".join(head)] if in_one_piece else head:
            await line.send(piece)
        assert await line.status() == 431
        assert b"head-too-large" in line.body
        assert await line.is_dropped()


async def test_fields_and_lines_of_a_head_are_limited(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        for fields in (b"X: y\r\n" * 100, b"X: " + b"x" * 20_000 + b"\r\n"):
            async with line_to(server) as line:
                await line.send(b"GET /healthz HTTP/1.1\r\n" + fields + b"\r\n")
                assert await line.status() in (400, 431)
        async with line_to(server) as line:
            await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 50 + b"\r\n")
            assert await line.status() == 200


async def test_a_body_that_dribbles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S_MAX", 0.5)
    monkeypatch.setattr(app, "LINGER_S", 0.1)
    async with running_server(tmp_path) as server, line_to(server) as line:
        await line.send(b"POST /api/v1/accounts HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        dribbling = asyncio.create_task(dribble(line))
        assert await line.status() == 408
        assert b"too-slow" in line.body
        dribbling.cancel()


async def dribble(line: Line) -> None:
    while True:
        await line.send(b" ")
        await asyncio.sleep(0.05)


async def test_who_does_not_read_an_answer_is_dropped(tmp_path: Path) -> None:
    """Some MiB of description, as a hostile buyer asks for it and lets it lie."""
    async with open_nodeless_till(tmp_path) as till:
        sold = await till.offer(price_sat=0, sizes=(CHUNK_SIZE_BYTES,))
        described = (
            update(parcels).where(parcels.c.id == sold.parcel_id).values(metadata=os.urandom(12 << 20))
        )
        await till.server.services.database.write(lambda tx: tx.execute(described))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        config = till.server.services.config
        await loop.sock_connect(sock, (config.listen_host, config.listen_port))
        await loop.sock_sendall(
            sock, f"GET /api/v1/offers/{sold.offer_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        first = await loop.sock_recv(sock, 100)
        assert first.startswith(b"HTTP/1.1 200")

        async def is_reset() -> bool:
            till.server.clock.advance(STALLED_S + 1)
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET

        await wait_until(is_reset, "the server to hang up")
        sock.close()


async def test_one_address_cannot_take_all_places(tmp_path: Path) -> None:
    limits = LimitsConfig(connections=10, connections_per_client=3)
    async with running_server(tmp_path, limits=limits) as server, AsyncExitStack() as lines:
        flood = [await lines.enter_async_context(line_to(server)) for _ in range(3)]
        for one in flood:
            await one.send(ASK)
            assert await one.status() == 200
        refused = await lines.enter_async_context(line_to(server))
        assert await refused.status() == 503
        assert b"server-busy" in refused.body
        assert b"Retry-After: 10" in refused.head
        elsewhere = await lines.enter_async_context(line_to(server, from_address="127.0.0.2"))
        await elsewhere.send(ASK)
        assert await elsewhere.status() == 200
        # A place that is given back is there for the next.
        flood[0].writer.close()
        await flood[0].writer.wait_closed()
        again = await lines.enter_async_context(line_to(server))
        await again.send(ASK)
        assert await again.status() == 200


async def test_a_crowd_that_only_sits_there_makes_room(tmp_path: Path) -> None:
    limits = LimitsConfig(connections=4)
    async with running_server(tmp_path, limits=limits) as server, AsyncExitStack() as lines:
        crowd = [await lines.enter_async_context(line_to(server)) for _ in range(4)]
        for one in crowd:
            await one.send(ASK)
            assert await one.status() == 200
        buyer = await lines.enter_async_context(line_to(server))
        await buyer.send(ASK)
        assert await buyer.status() == 200
        assert await crowd[0].is_dropped()


async def test_behind_a_proxy_only_the_total_counts(tmp_path: Path) -> None:
    limits = LimitsConfig(connections=10, connections_per_client=1)
    async with (
        running_server(tmp_path, limits=limits, trusted_proxies=("127.0.0.1",)) as server,
        AsyncExitStack() as lines,
    ):
        for _ in range(5):
            line = await lines.enter_async_context(line_to(server))
            await line.send(ASK)
            assert await line.status() == 200


class Seat:
    """A transport as far as places are concerned: only its peer matters."""

    def __init__(self, peer: str) -> None:
        self.peer = peer

    def get_extra_info(self, name: str) -> Any:
        assert name == "peername"
        return (self.peer, 5)


@pytest.mark.parametrize(
    ("peers", "admitted"),
    [
        (("192.0.2.1", "192.0.2.1", "192.0.2.1"), [True, True, False]),
        (("192.0.2.1", "192.0.2.2", "192.0.2.3"), [True, True, True]),
        (("2001:db8::1", "2001:db8::2", "2001:db8::3"), [True, True, False]),
        (("::ffff:192.0.2.1", "::ffff:192.0.2.2", "::ffff:192.0.2.3"), [True, True, True]),
        (tuple(f"2001:db8:0:{n:x}::1" for n in range(9)), [True] * 2 * GROUP_SHARES + [False]),
        (tuple(f"2001:db8:{n:x}::1" for n in range(9)), [True] * 9),
        (("10.0.0.1", "10.0.0.1", "10.0.0.1"), [True, True, True]),
    ],
)
def test_shares_are_of_addresses_and_networks(peers: tuple[str, ...], admitted: list[bool]) -> None:
    proxies = (ipaddress.ip_network("10.0.0.0/8"),)
    places = Connections(LimitsConfig(connections_per_client=2), proxies, count_max=100)
    seats = [(object.__new__(Connection), Seat(peer)) for peer in peers]
    assert [places.admit(one, seat) for one, seat in seats] == admitted  # type: ignore[arg-type]
    for one, _ in seats:
        places.leave(one)
    assert places.count == 0
    assert not places._shares


def test_the_system_decides_how_many_there_can_be(caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(limits[1], 1_024)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    try:
        assert count_max(100) == 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
        assert not caplog.records
        assert count_max(limits[1]) < limits[1]
        assert "LimitNOFILE" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_numbers_fit_each_other() -> None:
    limits = LimitsConfig()
    # Streams never take the last places, and an answer that is left lying goes before the line is idle.
    assert limits.streams < limits.connections
    assert limits.connections - limits.streams > EVICTED_AT_ONCE
    assert limits.head_s < LEFT_S < limits.idle_s
