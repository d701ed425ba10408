"""How each cost grows with the invoices that a server has ever had: of a thousand and of a million.

    of the running server   start to ready, memory, an invoice, a claim, a block with payments to us
    of its database         the dashboard, the earnings of a month, a page of invoices, a turn of the sweep

The latter are asked of the same database by this program, once the server has stopped.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.fill import SELLER_TOKEN, filled
from bench.latency import API, FEE_SAT, NodesWord, Shop, open_shop, until_status
from bench.plot import Series, write_plot
from bench.processes import resident_mib
from bench.report import PROJECT, Line
from bitcache.accounts import seller_of_token
from bitcache.config_file import load
from bitcache.earnings import earnings, parse_period
from bitcache.services import Services, open_services
from bitcache.web import dashboard
from bitcache.web.span import chosen_span
from payments.ports import Transaction
from regtest.wallet import BitWallet

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
TINY = (300,)
PLOT = PROJECT / "docs" / "img" / "growth.svg"
REPEATS = 15
PAYMENTS_IN_BLOCK = 20
READY_S_MAX = 15
GROWTH_MAX = 2
"""What a cost may grow by from the last but one to the last, ten times as many, and still count as level: the
machine's moods, and the depth of an index. By then all the days that a seller looks at are full."""


@dataclass(frozen=True)
class Cost:
    """One thing's milliseconds (or MiB), for each count in order."""

    name: str
    values: tuple[float, ...]
    level: bool = True
    """It must not grow."""
    unit: str = "ms"


async def lines(*, tiny: bool = False) -> list[Line]:
    counts = TINY if tiny else COUNTS
    measured = [await _measured(count, repeats=2 if tiny else REPEATS) for count in counts]
    costs = [
        Cost(name, tuple(of_one[name] for of_one in measured), level=name not in (READY, MEMORY), unit=unit)
        for name, unit in _NAMES
    ]
    if not tiny:
        series = [Series(cost.name, cost.values) for cost in costs if cost.unit == "ms"]
        write_plot(PLOT, "Costs by the invoices that a server has ever had", "ms", counts, series)
    return [_line(cost, counts) for cost in costs]


READY, MEMORY = "start to ready", "memory of the server"
INVOICE, CLAIM, BLOCK = "an invoice", "a claim", f"a block with {PAYMENTS_IN_BLOCK} payments"
DASHBOARD, EARNINGS, PAGE, SWEEP = "the dashboard", "earnings of 30 days", "a page of invoices", "the sweep"
_NAMES = (
    (READY, "ms"),
    (MEMORY, "MiB"),
    (INVOICE, "ms"),
    (CLAIM, "ms"),
    (BLOCK, "ms"),
    (DASHBOARD, "ms"),
    (EARNINGS, "ms"),
    (PAGE, "ms"),
    (SWEEP, "ms"),
)


def _line(cost: Cost, counts: tuple[int, ...]) -> Line:
    shown = " / ".join(f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in cost.values)
    growth = cost.values[-1] / cost.values[-2] if len(counts) > 1 else 1.0
    what = f"{cost.name}, with {' / '.join(f'{count:,}' for count in counts)} invoices"
    ratio = f"{growth:.1f} (the last step)"
    if cost.name == READY:
        ready_s = cost.values[-1] / 1000
        return Line(what, f"{shown} ms", "", ratio, f"<= {READY_S_MAX} s", ready_s <= READY_S_MAX)
    if not cost.level:
        return Line(what, f"{shown} {cost.unit}", "", ratio)
    return Line(what, f"{shown} ms", "", ratio, f"<= {GROWTH_MAX}x", growth <= GROWTH_MAX)


async def _measured(count: int, *, repeats: int) -> dict[str, float]:
    await asyncio.to_thread(filled, count)  # not while the server's start is measured
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        kept = Path(folder) / "data"
        async with open_shop(token=SELLER_TOKEN, filled_with=count) as shop:
            found = await _of_the_server(shop, repeats)
            await shop.server.stop()
            shutil.move(shop.server.data_folder, kept)
        return found | await _of_the_database(kept, repeats)


async def _of_the_server(shop: Shop, repeats: int) -> dict[str, float]:
    found = {READY: shop.ready_s * 1000, MEMORY: resident_mib(shop.server.pid)}
    made = []

    async def invoice() -> None:
        made.append(await shop.invoice())

    found[INVOICE] = await _median_ms(invoice, repeats)
    claims = iter(made)

    async def claim() -> None:
        view, secret = next(claims)
        await shop.claim(view["invoice_id"], secret)

    found[CLAIM] = await _median_ms(claim, repeats)
    found[BLOCK] = await _block_ms(shop)
    return found


async def _block_ms(shop: Shop) -> float:
    """From the node's word of a block to the last buyer's event of the payments in it."""
    invoices = [(await shop.invoice())[0] for _ in range(PAYMENTS_IN_BLOCK)]
    payer = await BitWallet.create(shop.world, coin_sat=10_000_000)
    streams = [await shop.http.get(f"{API}/invoices/{invoice['invoice_id']}/events") for invoice in invoices]
    try:
        payment = await payer.pay([(one["address"], one["due_sat"]) for one in invoices], fee_sat=FEE_SAT)
        await asyncio.gather(*(until_status(stream, "seen") for stream in streams))
        await shop.world.mempool_wait(payment.txid, node=shop.world.outside)
        async with NodesWord(shop.world.server.zmq_url) as node:
            told = asyncio.create_task(node.told(b"C"))
            await asyncio.sleep(0.1)  # the subscription
            mining = asyncio.create_task(shop.world.mine(sync=False))
            settled = await asyncio.gather(*(until_status(stream, "settled") for stream in streams))
            await mining
            return (max(settled) - await told) * 1000
    finally:
        for stream in streams:
            stream.close()


async def _of_the_database(data_folder: Path, repeats: int) -> dict[str, float]:
    environment = {"BITCACHE_NETWORK": "regtest"}
    async with open_services(load(data_folder, environment)) as services:
        seller = await services.database.read(lambda tx: seller_of_token(tx, SELLER_TOKEN))
        queries = _queries(services, seller.account_id)
        found: dict[str, float] = {}
        for name, query in queries.items():

            async def ask(query: Query = query) -> None:
                await services.database.read(query)

            found[name] = await _median_ms(ask, repeats)
        found[SWEEP] = await _median_ms(services.sweep.poll_once, repeats)
        return found


Query = Callable[[Transaction], Awaitable[object]]


def _queries(services: Services, account_id: str) -> dict[str, Query]:
    now = int(time.time())
    span, _ = chosen_span({}, now=now)
    period = parse_period(None, None, None, now=now)
    return {
        DASHBOARD: lambda tx: dashboard._overview(tx, services, account_id, span, None, now),
        EARNINGS: lambda tx: earnings(tx, account_id, period),
        PAGE: lambda tx: services.registry.page(tx, seller_id=account_id, after=None, limit=50, now=now),
    }


async def _median_ms(what: Callable[[], Awaitable[object]], repeats: int) -> float:
    took = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        await what()
        took.append((time.perf_counter() - started_at) * 1000)
    return statistics.median(took)
