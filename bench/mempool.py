"""How long a poll of a full mempool holds up everybody else: the longest stall of the event loop.

The node's answer is made here, of random txids, and another process serves it as bitcoind would: a regtest
node would need minutes for a hundred thousand real transactions. A poll that finds nothing new is measured,
as nearly all do. `python -m bench.mempool PORT COUNT` is that other process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import json

from bench.report import PROJECT, Line
from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from payments.bitcoind import Bitcoind
from payments.errors import NodeUnavailable
from payments.node_view import NodeObserver, NodeView
from payments.watch_list import WatchList
from regtest.processes import GuardedProcess, free_ports

TRANSACTIONS = 100_000
POLLS = 5
TICK_S = 0.001
STALL_MS_MAX = 50
START_S = 20


async def line(transactions: int) -> Line:
    async with AsyncExitStack() as closing:
        folder = Path(closing.enter_context(TemporaryDirectory(prefix="bitcache-bench-")))
        port = free_ports(1)[0]
        served = GuardedProcess(
            [sys.executable, "-m", "bench.mempool", str(port), str(transactions)],
            log=folder / "served.log",
            folder=PROJECT,
        )
        closing.callback(served.kill)
        node = Bitcoind(f"http://127.0.0.1:{port}", user="bench", password="bench")
        closing.push_async_callback(node.close)
        database = Database(f"sqlite+aiosqlite:///{folder}/bench.db")
        closing.push_async_callback(database.close)
        await upgrade(database)
        known = set(await _first(node))
        observer = NodeObserver(node, database, WatchList())
        idle_ms, _ = await _longest_stall(asyncio.sleep(0.2))
        stalls, polls = [], []
        for _ in range(POLLS):
            stall_ms, took_ms = await _longest_stall(observer._look_at_mempool(NodeView(), known))
            stalls.append(stall_ms)
            polls.append(took_ms)
    stall_ms = sorted(stalls)[POLLS // 2]
    return Line(
        f"a poll of {transactions:,} mempool transactions, longest stall of the loop",
        f"{stall_ms:.0f} ms (the poll: {sorted(polls)[POLLS // 2]:.0f} ms)",
        f"{idle_ms:.0f} ms (no poll)",
        "",
        f"<= {STALL_MS_MAX} ms",
        stall_ms <= STALL_MS_MAX,
    )


async def _first(node: Bitcoind) -> list[str]:
    async with asyncio.timeout(START_S):
        while True:
            try:
                return (await node.raw_mempool()).txids
            except NodeUnavailable:
                await asyncio.sleep(0.05)


async def _longest_stall(work: Awaitable[object]) -> tuple[float, float]:
    """Milliseconds: the longest wait of a task that wants to run every one, and the work itself."""
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            longest_s = max(longest_s, time.perf_counter() - before - TICK_S)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    started_at = time.perf_counter()
    await work
    took_s = time.perf_counter() - started_at
    await asyncio.sleep(0)
    ticking.cancel()
    return longest_s * 1000, took_s * 1000


def _serve(port: int, transactions: int) -> None:
    txids = [os.urandom(32).hex() for _ in range(transactions)]
    answer = json.encode({"result": {"txids": txids, "mempool_sequence": 1}, "error": None, "id": 0})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
