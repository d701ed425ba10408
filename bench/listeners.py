"""Event streams that only listen: what they cost in memory, and what a crowd that opens them costs others.

The reference is aiohttp with a handler that sends one event and waits, in the same run.
    python -m bench.listeners PORT     that reference, as a process
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import statistics
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from bench.processes import cpu_s, resident_mib
from bench.references import Reference, beside
from bench.report import Line
from bench.stage import Stage, offer_of, open_stage
from regtest.node import wait_until
from storage import base64url

LISTENERS = 10_000
CROWD = 3_000
OPENING_AT_ONCE = 200
QUIET_S = 20
"""Longer than from one ping to the next."""
SETTLED_S = 3
HEALTH_INTERVAL_S = 0.02
BUDGET_MB = 250
HEALTH_BUDGET_MS = 250
PATIENCE_S = 300
EVENT = b"id: 1\nevent: invoice\ndata: " + b"x" * 900 + b"\n\n"
MB = 1_000_000
MIB = 1 << 20


class Listener(asyncio.Protocol):
    """Asks for a stream, notes the first event, and throws away what follows."""

    def __init__(self, request: bytes, crowd: Crowd) -> None:
        self._request, self._crowd = request, crowd
        self._begun = b""
        self._listens = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._crowd.lines.append(transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._listens:
            self._begun += data
            if b"data: " in self._begun:
                self._listens, self._begun = True, b""
                self._crowd.listening += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.lost += 1


class Crowd:
    """Many listeners on one server."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self.lines: list[asyncio.Transport] = []
        self.listening = 0
        self.lost = 0

    async def open(self, count: int, *, at_once: int = OPENING_AT_ONCE) -> None:
        """All of them, each with its first event."""
        room = asyncio.Semaphore(at_once)
        loop = asyncio.get_running_loop()

        async def one() -> None:
            async with room:
                await loop.create_connection(lambda: Listener(self._request, self), "127.0.0.1", self._port)

        await asyncio.gather(*(one() for _ in range(count)))
        async with asyncio.timeout(PATIENCE_S):
            while self.listening < count:
                assert not self.lost, f"{self.lost} of {count} were refused"
                await asyncio.sleep(0.02)

    def leave(self) -> None:
        for line in self.lines:
            line.abort()


async def lines(*, tiny: bool = False) -> list[Line]:
    listeners, crowd, quiet_s = (200, 100, 0.2) if tiny else (LISTENERS, CROWD, QUIET_S)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = {
        "LIMITS_STREAMS_PER_CLIENT": str(2 * LISTENERS),
        "LIMITS_CONNECTIONS_PER_CLIENT": str(2 * LISTENERS),
    }
    async with (
        open_stage(settings) as stage,
        beside("bench.listeners", log=stage.folder / "listeners.log") as reference,
    ):
        server = Reference(int(stage.server.url.rpartition(":")[2]), stage.server.pid)
        path = f"/api/v1/invoices/{await _invoice(stage)}/events"
        idle_ms = await _health(server.port, asyncio.sleep(0.2 if tiny else 1))
        others = Crowd(server.port, path)
        health_ms = await _health(server.port, others.open(crowd, at_once=crowd))
        others.leave()
        await wait_until(lambda: _left(server, 50), "the crowd to leave")
        ours = await _memory(server, path, listeners, quiet_s)
        theirs = await _memory(reference, "/", listeners, quiet_s)
    return [
        Line(
            f"{listeners:,} listeners to payments, memory of the server",
            f"{ours.whole_mb:.0f} MB",
            f"{theirs.whole_mb:.0f} MB (bare aiohttp)",
            f"{ours.whole_mb / theirs.whole_mb:.2f}",
            f"<= {BUDGET_MB} MB",
            ours.whole_mb <= BUDGET_MB,
        ),
        Line(
            "each listener",
            f"{ours.each_kb:.1f} kB",
            f"{theirs.each_kb:.1f} kB (bare aiohttp)",
            f"{ours.each_kb / theirs.each_kb:.2f}",
        ),
        Line(f"{listeners:,} listeners that are only pinged, processor", f"{ours.idle_share:.1%}"),
        Line(
            f"/healthz while {crowd:,} listeners open at once, slowest of 100",
            f"{_percentile(health_ms, 99):.0f} ms",
            f"{_percentile(idle_ms, 99):.0f} ms (nobody else)",
            "",
            f"<= {HEALTH_BUDGET_MS} ms",
            _percentile(health_ms, 99) <= HEALTH_BUDGET_MS,
        ),
        Line(
            "the same, median",
            f"{statistics.median(health_ms):.0f} ms",
            f"{statistics.median(idle_ms):.1f} ms",
        ),
    ]


@dataclass(frozen=True)
class Held:
    whole_mb: float
    each_kb: float
    idle_share: float
    """Of one processor."""


async def _memory(server: Reference, path: str, count: int, quiet_s: float) -> Held:
    before_mib = resident_mib(server.pid)
    crowd = Crowd(server.port, path)
    await crowd.open(count)
    await asyncio.sleep(min(SETTLED_S, quiet_s))
    cpu_before_s, began_at = cpu_s(server.pid), time.monotonic()
    await asyncio.sleep(quiet_s)
    share = (cpu_s(server.pid) - cpu_before_s) / (time.monotonic() - began_at)
    assert not crowd.lost, f"{crowd.lost} listeners were dropped"
    held_mib = resident_mib(server.pid)
    crowd.leave()
    return Held(held_mib * MIB / MB, (held_mib - before_mib) * MIB / count / 1000, share)


async def _health(port: int, while_: Coroutine[Any, Any, None]) -> list[float]:
    """Milliseconds of each answer of /healthz while something goes on."""
    doing = asyncio.create_task(while_)
    took_ms = []
    while not doing.done():
        started_at = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        took_ms.append((time.monotonic() - started_at) * 1000)
        await asyncio.sleep(HEALTH_INTERVAL_S)
    await doing
    return took_ms


async def _left(server: Reference, files_max: int) -> bool:
    """Whether the server has closed the lines of those who left."""
    return len(os.listdir(f"/proc/{server.pid}/fd")) <= files_max


async def _invoice(stage: Stage) -> str:
    link, _ = await stage.upload(stage.file("listened.bin", 1_000), "0")
    body = {"claim_hash": base64url.encode(hashlib.sha256(os.urandom(32)).digest())}
    answer = await stage.server.http("POST", f"/offers/{offer_of(link)}/invoices", body=body)
    return str(answer.json()["invoice_id"])


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


async def _listen(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(EVENT)
    await asyncio.Event().wait()
    return response


def _serve(port: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    app = web.Application()
    app.router.add_get("/", _listen)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, backlog=1_024)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
