"""The pages in a real browser, beside `curl` and the command line with the same bytes.

One server process, one headless Chromium, loopback, one run: what they share, they share in every line.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import zmq
import zmq.asyncio
from playwright.async_api import Browser, Page

from bench.processes import Peak, renderers_mib, run
from bench.report import CannotMeasure, Line
from bench.stage import FEE_SAT, Stage, open_stage
from regtest.chromium import HOW_TO_INSTALL, find_chromium
from regtest.wallet import BitWallet
from tests.browser import Visitor, open_chromium, until
from tests.market import invoice_id_of, ordered, ready, unlocked
from tests.page_tour import sign_in

MB = 1_000_000
GIB = 1 << 30
PAYMENTS = 15
PRICE_SAT = 5_000
PATIENCE_S = 600.0

NOTE_STATES = """() => {
  window.noted = {};
  const note = () => {
    const state = document.getElementById('live').dataset.state;
    window.noted[state] ??= Date.now() / 1000;
    if (document.body.dataset.unlocked) window.noted.unlocked ??= Date.now() / 1000;
  };
  new MutationObserver(note).observe(document.body, {attributes: true, subtree: true, childList: true});
  note();
}"""
TRANSFERRED = """() => ['navigation', 'resource']
  .flatMap((kind) => performance.getEntriesByType(kind))
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""


class Bench:
    """The stage, and buyers with fresh profiles."""

    def __init__(self, stage: Stage, browser: Browser) -> None:
        self.stage, self.browser = stage, browser
        self.server, self.world = stage.server, stage.world

    async def visitor(self) -> Visitor:
        return await Visitor.open(self.browser)


async def download(bench: Bench, link: str, size_bytes: int) -> tuple[float, float]:
    """(seconds, growth of the renderers in MiB) from the click to the last byte saved and checked."""
    visitor = await bench.visitor()
    page = await ready(await visitor.goto(link))
    await ordered(page)
    await unlocked(page)
    with Peak(renderers_mib) as peak:
        started_at = time.monotonic()
        async with page.expect_download(timeout=PATIENCE_S * 1000) as saving:
            await page.locator("#get-all").click()
        saved = await saving.value
        path = Path(await saved.path())
        took_s = time.monotonic() - started_at
    assert path.stat().st_size == size_bytes
    await saved.delete()
    await visitor.close()
    visitor.check()
    return took_s, peak.growth_mib


async def curl(bench: Bench, link: str) -> float:
    """Seconds in which `curl` saves the ciphertext of the first file to disk."""
    claimed = await bench.stage.claim_free(link)
    target = bench.stage.folder / "curl.out"
    header = f"Authorization: {claimed.headers['Authorization']}"
    words = ("curl", "-sSf", "-o", target, "-H", header, bench.server.url + claimed.content)
    spent = await asyncio.to_thread(run, words)
    target.unlink()
    return spent.took_s


async def upload_by_page(bench: Bench, file: Path) -> float:
    """Seconds from the click to the link."""
    visitor = await bench.visitor()
    page = await visitor.goto(f"{bench.server.url}/sign-in")
    await sign_in(page, bench.stage.token)
    await visitor.goto(f"{bench.server.url}/upload", page)
    await page.locator("#choose-files").set_input_files(file)
    await page.locator("#price").fill("0")
    started_at = time.monotonic()
    await page.locator("#start").click()
    await page.locator("#result").wait_for(state="visible", timeout=PATIENCE_S * 1000)
    took_s = time.monotonic() - started_at
    await visitor.close()
    return took_s


async def latencies(bench: Bench, link: str, payments: int) -> dict[str, list[float]]:
    """Milliseconds from the node's own word (ZMQ) to the page, and of `seen` also from the broadcast."""
    payer = await BitWallet.create(bench.world, coin_sat=1_000_000, coin_count=payments)
    found: dict[str, list[float]] = {"broadcast": [], "seen": [], "unlocked": [], "zmq": []}
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.connect(bench.world.server.zmq_url)
    socket.subscribe(b"sequence")
    for _ in range(payments):
        visitor = await bench.visitor()
        page = await ready(await visitor.goto(link))
        invoice_id = await ordered(page)
        assert invoice_id_of(page.url) == invoice_id
        await page.evaluate(NOTE_STATES)
        view = (await bench.server.http("GET", f"/invoices/{invoice_id}")).json()
        payment = await payer.pay([(view["address"], view["due_sat"])], fee_sat=FEE_SAT, broadcast=False)
        sent_at = time.time()
        # To the server's own node: how long the network takes to relay is not ours to measure.
        await payer.send(payment, node=bench.world.server)
        told_at = await _told(socket, b"A")
        seen_at = await _noted(page, "seen")
        await bench.world.mempool_wait(payment.txid, node=bench.world.outside)
        await bench.world.mine()
        block_at = await _told(socket, b"C")
        unlocked_at = await _noted(page, "unlocked")
        found["broadcast"].append((seen_at - sent_at) * 1000)
        found["zmq"].append((told_at - sent_at) * 1000)
        found["seen"].append((seen_at - told_at) * 1000)
        found["unlocked"].append((unlocked_at - block_at) * 1000)
        await visitor.close()
    socket.close()
    context.term()
    return found


async def _told(socket: zmq.asyncio.Socket, kind: bytes) -> float:
    """When the node tells of the next event of this kind (A: in the mempool, C: block connected)."""
    async with asyncio.timeout(30):
        while True:
            _, body, _ = await socket.recv_multipart()
            if body[32:33] == kind:
                return time.time()


async def _noted(page: Page, what: str) -> float:
    return float(await until(page, "(what) => window.noted[what]", f"the page to be {what}", what))


async def first_page_bytes(bench: Bench, link: str) -> int:
    visitor = await bench.visitor()
    page = await ready(await visitor.goto(link))
    transferred = int(await page.evaluate(TRANSFERRED))
    await visitor.close()
    return transferred


async def lines(*, tiny: bool = False) -> list[Line]:
    chromium = find_chromium()
    if chromium is None:
        raise CannotMeasure(HOW_TO_INSTALL)
    small_bytes, large_bytes, payments = (16 << 20, 24 << 20, 1) if tiny else (GIB, 4 * GIB, PAYMENTS)
    settings = {"OPEN_INVOICES_PER_CLIENT_MAX": "1000"}
    async with open_stage(settings) as stage, open_chromium(chromium) as browser:
        return await _measured(Bench(stage, browser), small_bytes, large_bytes, payments)


async def _measured(bench: Bench, small_bytes: int, large_bytes: int, payments: int) -> list[Line]:
    small = bench.stage.file("small.bin", small_bytes)
    link, cli_s = await bench.stage.upload(small)
    await curl(bench, link)  # both read from a warm page cache
    curl_s = await curl(bench, link)
    page_s, growth_mib = await download(bench, link, small_bytes)
    upload_s = await upload_by_page(bench, small)
    small.unlink()
    large = bench.stage.file("large.bin", large_bytes)
    large_link, _ = await bench.stage.upload(large)
    large.unlink()
    large_curl_s = await curl(bench, large_link)
    large_s, large_growth_mib = await download(bench, large_link, large_bytes)
    tiny = bench.stage.file("tiny.bin", 100_000)
    paid_link, _ = await bench.stage.upload(tiny, f"{PRICE_SAT}sat")
    first_bytes = await first_page_bytes(bench, paid_link)
    took = await latencies(bench, paid_link, payments)
    median = {name: statistics.median(values) for name, values in took.items()}
    return [
        _rate_line("download and decrypt", small_bytes, page_s, curl_s, "curl -o", 100),
        # Asked for is its memory; the disk of the machine has its say in the rate.
        _rate_line("download and decrypt", large_bytes, large_s, large_curl_s, "curl -o", None),
        _memory_line(small_bytes, growth_mib),
        _memory_line(large_bytes, large_growth_mib),
        _rate_line("encrypt and upload", small_bytes, upload_s, cli_s, "bitcache upload", 60),
        Line(
            "broadcast to “seen” on the page, median",
            f"{median['broadcast']:.0f} ms",
            f"{median['zmq']:.1f} ms (raw ZMQ)",
            f"{median['broadcast'] / median['zmq']:.0f}",
            "<= 150 ms",
            median["broadcast"] <= 150,
        ),
        Line(
            "block to unlocked on the page, median",
            f"{median['unlocked']:.0f} ms",
            "0 ms (raw ZMQ)",
            "",
            "<= 250 ms",
            median["unlocked"] <= 250,
        ),
        Line(
            "first page, all that is transferred",
            f"{first_bytes / 1000:.1f} kB",
            "",
            "",
            "<= 60 kB",
            first_bytes <= 60_000,
        ),
    ]


def _rate_line(
    what: str, size_bytes: int, took_s: float, reference_s: float, reference: str, budget_mb_s: int | None
) -> Line:
    rate, reference_rate = size_bytes / took_s / MB, size_bytes / reference_s / MB
    return Line(
        f"{what}, {size_bytes / GIB:g} GiB",
        f"{rate:.0f} MB/s",
        f"{reference_rate:.0f} MB/s ({reference})",
        f"{rate / reference_rate:.2f}",
        f">= {budget_mb_s} MB/s" if budget_mb_s else "",
        rate >= (budget_mb_s or 0),
    )


def _memory_line(size_bytes: int, growth_mib: float) -> Line:
    return Line(
        f"memory of the renderers while downloading {size_bytes / GIB:g} GiB",
        f"+{growth_mib:.0f} MiB",
        "",
        "",
        "<= +150 MiB",
        growth_mib <= 150,
    )
