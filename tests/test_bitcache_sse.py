"""An invoice's event stream: the state at once, then every change, for any number of readers."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Raw

from bitcache import events
from bitcache.access import TOPIC, InvoiceEvent
from bitcache.api import events_stream
from bitcache.api.connection import LET_GO_S
from bitcache.config import LimitsConfig
from bitcache.ids import new_id
from payments.ports import Transaction
from regtest.world import RegtestWorld
from tests.till import Bought, Till, open_nodeless_till, open_till


@pytest_asyncio.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path) as till:
        yield till


class Reader:
    """Reads frames: comments, and events as (id, view)."""

    def __init__(self, lines: Any) -> None:
        self._lines = lines

    async def frame(self) -> list[str]:
        lines: list[str] = []
        async with asyncio.timeout(20):
            while line := (await self._lines.readline()).decode().rstrip("\n"):
                lines.append(line)
        return lines

    async def event(self) -> tuple[int, dict[str, Any]]:
        """The next one, comments passed over."""
        while (lines := await self.frame()) and lines[0].startswith(":"):
            pass
        fields = dict(line.split(": ", 1) for line in lines)
        assert fields["event"] == "invoice"
        return int(fields["id"]), json.loads(fields["data"])

    async def until(self, status: str) -> dict[str, Any]:
        while True:
            _, view = await self.event()
            if view["status"] == status:
                return view


@asynccontextmanager
async def reading(till: Till, bought: Bought, **headers: str) -> AsyncIterator[Reader]:
    async with till.http.get(f"/api/v1/invoices/{bought.id}/events", headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        yield Reader(answer.content)


async def test_the_state_comes_first_then_every_change(till: Till) -> None:
    bought = await till.buy(await till.offer())
    async with reading(till, bought) as one, reading(till, bought) as other:
        seq, view = await one.event()
        assert view == bought.invoice | {"now": view["now"]}
        await other.event()
        await till.pay(bought)
        for reader in (one, other):
            seen_seq, view = await reader.event()
            assert view["status"] == "seen"
            assert seen_seq > seq
        assert till.world is not None
        await till.world.mine()
        for reader in (one, other):
            view = await reader.until("settled")
            assert view["key_allowed"]
            assert len(view["outputs"]) == 1


async def test_who_comes_back_gets_the_whole_state_whatever_was_missed(till: Till) -> None:
    bought = await till.buy(await till.offer())
    async with reading(till, bought) as reader:
        seq, _ = await reader.event()
    await till.pay(bought)
    assert till.world is not None
    await till.world.mine()
    await till.until(bought, lambda view: view["status"] == "settled", "the block")
    for last_id in (str(seq), "0", "99999999999999999999", "nonsense"):
        async with reading(till, bought, **{"Last-Event-ID": last_id}) as reader:
            _, view = await reader.event()
            assert view["status"] == "settled"


async def test_readers_of_one_invoice_hear_nothing_of_another(till: Till) -> None:
    sold = await till.offer()
    mine, other = await till.buy(sold), await till.buy(sold)
    async with reading(till, mine) as reader:
        await reader.event()
        await till.pay(other)
        await till.until(other, lambda view: view["status"] == "seen", "the other's payment")
        await till.pay(mine)
        _, view = await reader.event()
        assert view["invoice_id"] == mine.id


async def test_idle_lines_are_pinged_from_one_timer(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_stream, "PING_INTERVAL_S", 0.2)
    bought = await till.buy(await till.offer())
    async with reading(till, bought) as one, reading(till, bought) as other:
        for reader in (one, other):
            await reader.event()
            assert await reader.frame() == [": ping"]
        before = time.monotonic()
        for _ in range(3):
            await one.frame()
        # One timer: a second reader does not double the pings.
        assert time.monotonic() - before > 0.35


async def test_readers_are_told_when_the_node_goes_away(
    own_world: RegtestWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_stream, "PING_INTERVAL_S", 0.2)
    async with open_till(own_world, tmp_path) as till:
        bought = await till.buy(await till.offer())
        async with reading(till, bought) as reader:
            _, view = await reader.event()
            assert view["node_online"]
            await own_world.server_out()
            _, view = await reader.event()
            assert not view["node_online"]


async def test_a_reader_that_leaves_frees_its_place_at_once(till: Till) -> None:
    bought = await till.buy(await till.offer())
    for _ in range(3):
        async with reading(till, bought) as reader:
            await reader.event()
    async with asyncio.timeout(20):
        while till.server.services.streams.count:
            await asyncio.sleep(0.02)
    metrics = till.server.services.metrics.page().decode()
    counted = re.findall(
        r'^bitcache_http_requests_total.*/events",status="(\w+)"} (.+)$', metrics, re.MULTILINE
    )
    assert counted == [("200", "3.0")], "whoever leaves has done nothing wrong"


@pytest.mark.parametrize("limits", [LimitsConfig(streams=1), LimitsConfig(streams_per_client=1)])
async def test_too_many_readers_are_told_to_poll(tmp_path: Path, limits: LimitsConfig) -> None:
    async with open_nodeless_till(tmp_path, limits=limits) as till:
        bought = await till.buy(await till.offer(price_sat=0))
        path = f"/api/v1/invoices/{bought.id}/events"
        async with reading(till, bought), till.http.get(path) as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) > 0
        async with asyncio.timeout(20):
            while till.server.services.streams.count:
                await asyncio.sleep(0.02)
        async with reading(till, bought) as reader:
            await reader.event()


async def append(till: Till, bought: Bought, count: int, *, size_bytes: int = 0) -> int:
    """So many events of the invoice at once; the number of the last."""
    view = json.dumps({"status": "open", "filler": "x" * size_bytes}).encode()
    told = InvoiceEvent(new_id(), bytes_allowed=True, view=Raw(view))

    async def burst(tx: Transaction) -> int:
        for _ in range(count):
            await events.append(tx, topic=TOPIC, subject=bought.id, payload=told, now=1)
        return await events.last_seq(tx)

    return await till.server.services.database.write(burst)


async def test_a_burst_comes_whole_and_in_order(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        bought = await till.buy(await till.offer(price_sat=0))
        async with reading(till, bought) as reader:
            seq, _ = await reader.event()
            newest = await append(till, bought, 70)
            seen = [(await reader.event())[0] for _ in range(70)]
            assert seen == list(range(newest - 69, newest + 1))
            assert seen[0] > seq


async def test_a_reader_that_takes_nothing_is_cut_off_and_delays_nobody(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        bought = await till.buy(await till.offer(price_sat=0))
        async with reading(till, bought) as reader, hanging_reader(till, bought):
            await reader.event()
            assert till.server.services.streams.count == 2
            for _ in range(200):
                newest = await append(till, bought, 1, size_bytes=100_000)
                while (await reader.event())[0] < newest:
                    pass
                if till.server.services.streams.count == 1:
                    break
            assert till.server.services.streams.count == 1


@asynccontextmanager
async def hanging_reader(till: Till, bought: Bought) -> AsyncIterator[None]:
    """Asks, and then reads no more."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    loop, config = asyncio.get_running_loop(), till.server.services.config
    await loop.sock_connect(sock, (config.listen_host, config.listen_port))
    ask = f"GET /api/v1/invoices/{bought.id}/events HTTP/1.1\r\nHost: x\r\n\r\n"
    await loop.sock_sendall(sock, ask.encode())
    assert await loop.sock_recv(sock, 10)
    try:
        yield
    finally:
        sock.close()


@pytest.mark.parametrize("pause_s", [0.0, 2 * LET_GO_S])
async def test_nothing_may_follow_a_stream_on_its_line(tmp_path: Path, pause_s: float) -> None:
    """An answer in the middle of a stream would be read as a part of it."""
    async with open_nodeless_till(tmp_path) as till:
        bought = await till.buy(await till.offer(price_sat=0))
        config = till.server.services.config
        reader, writer = await asyncio.open_connection(config.listen_host, config.listen_port)
        head = f"GET /api/v1/invoices/{bought.id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        writer.write(head)
        await asyncio.wait_for(reader.readuntil(b"event: invoice"), 20)
        await asyncio.sleep(pause_s)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            rest = await asyncio.wait_for(reader.read(), 20)
        except ConnectionResetError:
            rest = b""
        assert b"HTTP/1.1" not in rest
        assert till.server.services.streams.count == 0
        writer.close()


async def test_an_old_client_gets_a_plain_stream(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        bought = await till.buy(await till.offer(price_sat=0))
        config = till.server.services.config
        reader, writer = await asyncio.open_connection(config.listen_host, config.listen_port)
        writer.write(f"GET /api/v1/invoices/{bought.id}/events HTTP/1.0\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)
        await append(till, bought, 1)
        assert (await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)).startswith(b"id: ")
        till.server.services.streams.end()
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


async def test_streams_end_when_the_server_stops(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path) as till:
        bought = await till.buy(await till.offer())
        async with reading(till, bought) as reader:
            await reader.event()
            stopped_at = time.monotonic()
            till.server.services.stopping.set()
            assert await reader.frame() == []
            assert time.monotonic() - stopped_at < 10
