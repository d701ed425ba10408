"""Payment channels: what a voucher costs, a start with ten thousand of them, metered bytes beside free ones.

Vouchers are signed beforehand, by as many payers as a busy server has; what is measured is the server's part,
from the voucher to the row on the disk. The download's reference is the same file, free, in the same ranges.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.channel_rows import Payer, channel_rows, payer
from bench.fill import made
from bench.metered import metered_download
from bench.processes import resident_mib, run
from bench.report import Line
from bitcache.config import DATABASE_FILE_NAME
from bitcache.db.engine import Database
from payments.channel import Charge, Voucher
from payments.channel_close import CLOSE_VBYTES
from payments.channel_exposure import Exposure
from payments.channel_registry import ChannelRegistry
from payments.money import Sat

VOUCHERS_PER_S_MIN = 2_000
VOUCHER_US_MAX = 100
START_S_MAX = 5
START_MIB_MAX = 100
PRICE_MSAT = 10_000
FUNDING_VBYTES = 153
"""One P2WPKH input, the deposit (P2WSH) and change (P2WPKH)."""
PAYMENT_VBYTES = 141
"""One P2WPKH input, the seller's output and change."""
PAYMENTS = 1_000
FEERATES_SAT_VB = (1, 2, 5, 10, 20)
EXPOSURE = Exposure(
    unconfirmed_sat=Sat(500),
    unconfirmed_total_sat=Sat(10_000),
    one_sat=Sat(100_000),
    three_sat=Sat(1_000_000),
)


@dataclass(frozen=True)
class Scale:
    channels: int
    payers: int
    vouchers: int
    """Of each payer."""
    size_bytes: int
    rounds: int


FULL = Scale(channels=10_000, payers=64, vouchers=300, size_bytes=1 << 30, rounds=6)
TINY = Scale(channels=50, payers=4, vouchers=10, size_bytes=9 << 20, rounds=1)


async def lines(*, tiny: bool = False) -> list[Line]:
    scale = TINY if tiny else FULL
    return [
        *await _vouchers(scale),
        *await _start(scale),
        *await metered_download(scale.size_bytes, scale.rounds),
        *_costs(),
    ]


# A voucher.


async def _vouchers(scale: Scale) -> list[Line]:
    payers = [payer(n) for n in range(scale.payers)]
    signed = [one.vouchers(scale.vouchers, PRICE_MSAT // 1_000) for one in payers]
    verify_us = _verify_us(payers[0], signed[0])
    async with AsyncExitStack() as closing:
        registry = await _registry(closing, scale.payers)
        cpu_before_s, started_at = time.process_time(), time.perf_counter()
        await asyncio.gather(*(_pay(registry, vouchers) for vouchers in signed))
        took_s, cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_before_s
    count = scale.payers * scale.vouchers
    cpu_us = cpu_s / count * 1e6
    # One core: what the machine's other ones and its disk did meanwhile has no say.
    rate = count / max(took_s, cpu_s)
    return [
        Line(
            f"a voucher verified, charged and recorded, {scale.payers} payers at a time, CPU",
            f"{cpu_us:.0f} us",
            f"{verify_us:.0f} us (its signature alone)",
            f"{cpu_us / verify_us:.1f}",
            f"<= {VOUCHER_US_MAX} us",
            cpu_us <= VOUCHER_US_MAX,
        ),
        Line(
            "vouchers recorded, one process, without bodies",
            f"{rate:,.0f}/s",
            "",
            "",
            f">= {VOUCHERS_PER_S_MIN:,}/s",
            rate >= VOUCHERS_PER_S_MIN,
        ),
    ]


def _verify_us(one: Payer, vouchers: Sequence[Voucher]) -> float:
    started_at = time.thread_time()
    for voucher in vouchers:
        one.channel.verify(voucher.cumulative_sat, voucher.signature)
    return (time.thread_time() - started_at) / len(vouchers) * 1e6


async def _pay(registry: ChannelRegistry, vouchers: Sequence[Voucher]) -> None:
    """One after the other, as a payer who waits for each chunk."""
    for unit, voucher in enumerate(vouchers):
        await registry.pay(
            voucher,
            Charge(
                subject="offer",
                seller_id="seller",
                fee_ppm=0,
                item="file",
                first_unit=unit,
                units=1,
                price_msat=PRICE_MSAT,
            ),
        )


async def _registry(closing: AsyncExitStack, channels: int) -> ChannelRegistry:
    """Of a new database with so many open channels, its loops running."""
    folder = Path(closing.enter_context(TemporaryDirectory(prefix="bitcache-bench-")))
    database = Database(f"sqlite+aiosqlite:///{await _filled(channels, folder)}")
    closing.push_async_callback(database.close)
    registry = ChannelRegistry(
        store=database, at_once=database.write_at_once, exposure=EXPOSURE, clock=lambda: int(time.time())
    )
    await registry.poll_once()
    running = asyncio.create_task(registry.run())

    async def end() -> None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    closing.push_async_callback(end)
    return registry


async def _filled(channels: int, folder: Path) -> Path:
    once = await asyncio.to_thread(
        made,
        f"channels-{channels}",
        lambda: channel_rows(channels),
        Path(__file__).with_name("channel_rows.py"),
    )
    return Path(shutil.copyfile(once, folder / DATABASE_FILE_NAME))


# A start.


async def _start(scale: Scale) -> list[Line]:
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        few = await _filled(1, Path(folder))
        small = _measured(few, Path(folder) / "few")
        many = _measured(await _filled(scale.channels, Path(folder)), Path(folder) / "many")
    grown_mib = many[1] - small[1]
    what = f"{scale.channels:,} open channels read at start"
    return [
        Line(
            what,
            f"{many[0]:.2f} s",
            f"{small[0]:.2f} s (one channel)",
            "",
            f"<= {START_S_MAX} s",
            many[0] <= START_S_MAX,
        ),
        Line(
            f"{what}, memory",
            f"{grown_mib:.0f} MiB",
            f"{small[1]:.0f} MiB (the process with one)",
            "",
            f"<= {START_MIB_MAX} MiB",
            grown_mib <= START_MIB_MAX,
        ),
    ]


def _measured(database: Path, output: Path) -> tuple[float, float]:
    """(seconds, MiB resident) of a process that takes the channels of this database."""
    run((sys.executable, "-m", "bench.channels", str(database)), output=output)
    seconds, mib = output.read_text().split()
    return float(seconds), float(mib)


async def _take(database_file: str) -> None:
    database = Database(f"sqlite+aiosqlite:///{database_file}")
    registry = ChannelRegistry(store=database, exposure=EXPOSURE, clock=lambda: int(time.time()))
    started_at = time.perf_counter()
    await registry.poll_once()
    took_s = time.perf_counter() - started_at
    assert registry.available
    print(took_s, resident_mib(os.getpid()))
    await database.close()


# What it costs on chain.


def _costs() -> list[Line]:
    """One channel, opened and closed, beside as many payments of their own: arithmetic, of real sizes."""
    channel_vbytes = FUNDING_VBYTES + CLOSE_VBYTES
    return [
        Line(
            f"network fees of {PAYMENTS:,} payments of 10 sat at {feerate} sat/vB",
            f"{channel_vbytes * feerate:,} sat (one channel)",
            f"{PAYMENT_VBYTES * feerate * PAYMENTS:,} sat (on chain)",
            f"1/{PAYMENT_VBYTES * PAYMENTS // channel_vbytes}",
        )
        for feerate in FEERATES_SAT_VB
    ]


if __name__ == "__main__":
    asyncio.run(_take(sys.argv[1]))
