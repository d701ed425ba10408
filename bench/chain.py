"""How fast money is seen: latencies, a full block, a full mempool, and how many invoices a second."""

from __future__ import annotations

import asyncio
import statistics
import time

from bench import block_scan, mempool
from bench.latency import Latencies, Shop, measure, open_shop
from bench.report import Line
from tests.postgres import PostgresCluster, find_programs

PAYMENTS = 40
SEEN_MS_MAX = 10
CREATION_S = 5.0
LANES = 8


async def lines(*, tiny: bool = False) -> list[Line]:
    async with open_shop() as shop:
        found = await measure(shop, 2 if tiny else PAYMENTS)
        sqlite = await _creations_per_s(shop, 0.3 if tiny else CREATION_S)
    measured = [*_latency_lines(found)]
    scale = {"scripts": 1_000, "repeats": 1} if tiny else {}
    measured += await asyncio.to_thread(block_scan.lines, **scale)
    measured.append(await mempool.line(2_000 if tiny else mempool.TRANSACTIONS))
    measured.append(_creation_line("SQLite", sqlite))
    if not tiny:
        measured += await _on_postgresql()
    return measured


def _latency_lines(found: Latencies) -> list[Line]:
    seen, told = statistics.median(found.seen), statistics.median(found.told)
    settled, key = statistics.median(found.settled), statistics.median(found.key)
    return [
        Line(
            f"broadcast to “seen” on the event stream, median of {len(found.seen)}",
            f"{seen:.1f} ms",
            f"{told:.1f} ms (raw ZMQ)",
            f"{seen / told:.1f}",
            f"<= {SEEN_MS_MAX} ms",
            seen <= SEEN_MS_MAX,
        ),
        Line("the same, the slowest in ten", f"{_ninth(found.seen):.1f} ms", f"{_ninth(found.told):.1f} ms"),
        Line("block to “settled” on the event stream, median", f"{settled:.1f} ms", "0 ms (raw ZMQ)"),
        Line("block to the key in a claim's answer, median", f"{key:.1f} ms", "0 ms (raw ZMQ)"),
    ]


def _ninth(values: list[float]) -> float:
    return sorted(values)[len(values) * 9 // 10]


async def _creations_per_s(shop: Shop, for_s: float) -> float:
    """Invoices made in a second, with some asked for at a time."""
    until = time.perf_counter() + for_s
    made = 0

    async def lane() -> None:
        nonlocal made
        while time.perf_counter() < until:
            await shop.invoice()
            made += 1

    started_at = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(LANES):
            tasks.create_task(lane())
    return made / (time.perf_counter() - started_at)


def _creation_line(database: str, per_s: float) -> Line:
    return Line(f"invoices over HTTP, {LANES} asked for at a time, {database}", f"{per_s:.0f} a second")


async def _on_postgresql() -> list[Line]:
    programs = find_programs()
    if programs is None:
        return [Line("invoices over HTTP, PostgreSQL", "not measured: PostgreSQL is not installed")]
    cluster = await asyncio.to_thread(PostgresCluster, programs)
    try:
        await asyncio.to_thread(cluster.create_database, "bench")
        async with open_shop({"DATABASE_URL": cluster.url("bench")}) as shop:
            return [_creation_line("PostgreSQL", await _creations_per_s(shop, CREATION_S))]
    finally:
        await asyncio.to_thread(cluster.close)
