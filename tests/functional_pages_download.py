"""Files are fetched, checked, decrypted and saved by a real browser, whatever network and server do.

The modules run on a page of the server, called as the pages of a sale call them. Parcels are free and really
encrypted. Between browser and server there may be one that lies (tests/hostile_server.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Download, Page
from playwright.async_api import Error as PlaywrightError

from bitcache.client.link import Link
from regtest.node import wait_until
from storage import base64url, keys
from tests.browser import NewVisitor, until
from tests.client_shop import Shop, open_shop
from tests.hostile_server import Answered, Lie, lying, rewritten

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHUNK_BYTES = 1 << 20
SIZES = {
    "big.bin": 5 * CHUNK_BYTES + 123,
    "été/vide.txt": 0,
    "été/one": 1,
    "été/noël 🎄.txt": 1_048_520,
    "z/deep/er/last.bin": 2 * CHUNK_BYTES,
}
ANY_PAGE = "/d/" + "a" * 26
"""Of an offer that does not exist: a page with nothing on it that runs by itself."""
STUCK_S = 60
WAYS = ["service-worker", "opfs", "blob"]

OPEN = """async ({claim, offerId, invoiceId, claimSecret, linkSecret}) => {
  const { openParcel, unlock } = await import('/static/parcel.js');
  const { decode } = await import('/static/base64url.js');
  const told = ({kind, message}) => { throw new Error(`${kind}: ${message}`); };
  const parcel = await openParcel(claim, decode(linkSecret)).catch(told);
  await unlock(parcel, claim, decode(linkSecret), decode(claim.release_secret)).catch(told);
  window.job = {offerId, invoiceId, claimSecret, files: parcel.files, zipName: 'all.zip'};
  const named = (path) => job.files.filter((file) => file.path === `goods/${path}`);
  window.fileJob = (path) => ({...job, files: named(path), zipName: null});
}"""
# Starts, and keeps what came of it for later looks.
START = """([module, what, job, options]) => {
  window.heard = {bytes: 0, totalBytes: 0, waiting: [], outcome: null};
  window.stop = new AbortController();
  const told = {
    onProgress: (bytes, totalBytes) => Object.assign(heard, {bytes, totalBytes}),
    onWaiting: (problem) => heard.waiting.push(problem.kind),
    signal: stop.signal,
    ...options,
  };
  const begin = (loaded) => loaded[what](job === null ? window.job : fileJob(job), told);
  const failed = ({kind, name, chunkIndex, path}) => ({failed: kind ?? name, chunkIndex, path});
  import(module).then(begin).catch(failed).then((outcome) => Object.assign(heard, {outcome}));
}"""

# As in browsers that cannot read a response into memory of the page's own.
WITHOUT_BYTE_READERS = """() => {
  const { getReader } = ReadableStream.prototype;
  ReadableStream.prototype.getReader = function (options) {
    if (options) throw new TypeError('no byte reader here');
    return getReader.call(this);
  };
}"""


@dataclass
class Purchase:
    shop: Shop
    link: Link
    source: Path
    claim_secret: bytes
    invoice_id: str
    claim: dict[str, Any] = field(repr=False)

    def content(self, path: str) -> bytes:
        return (self.source / path).read_bytes()

    async def opened(self, page: Page) -> Page:
        """`page` with the parcel opened and unlocked in it."""
        argument = {
            "claim": self.claim,
            "offerId": self.link.offer_id,
            "invoiceId": self.invoice_id,
            "claimSecret": base64url.encode(self.claim_secret),
            "linkSecret": base64url.encode(self.link.link_secret),
        }
        await page.evaluate(OPEN, argument)
        return page

    async def page(self, new_visitor: NewVisitor, server: str | None = None) -> Page:
        """A page of `server`, in a fresh profile, with the parcel opened and unlocked in it."""
        visitor = await new_visitor()
        return await self.opened(await visitor.goto(f"{server or self.shop.server.url}{ANY_PAGE}"))


@dataclass
class Sale:
    shop: Shop
    link: Link
    source: Path

    async def purchase(self) -> Purchase:
        """A grant of its own: each may fetch only so much."""
        secret = keys.new_secret()
        async with self.shop.server.session() as http:
            body = {"claim_hash": base64url.encode(hashlib.sha256(secret).digest())}
            async with http.post(f"/api/v1/offers/{self.link.offer_id}/invoices", json=body) as answer:
                invoice_id = (await answer.json())["invoice_id"]
            body = {"claim_secret": base64url.encode(secret)}
            async with http.post(f"/api/v1/invoices/{invoice_id}/claim", json=body) as answer:
                claim = await answer.json()
        return Purchase(self.shop, self.link, self.source, secret, invoice_id, claim)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sale(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sale]:
    async with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        source = shop.files(sizes=SIZES)
        yield Sale(shop, await shop.sell(source), source)


@pytest_asyncio.fixture(loop_scope="session")
async def bought(sale: Sale) -> Purchase:
    return await sale.purchase()


async def start(page: Page, job: str | None, *, module: str = "save", **options: Any) -> None:
    """Begin saving the file `job`, or the whole parcel."""
    what = {"save": "saveFiles", "prefetch": "prefetch"}[module]
    await page.evaluate(START, [f"/static/{module}.js", what, job, options])


async def outcome(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = await until(page, "heard.outcome", "the download to end")
    return found


async def save(page: Page, job: str | None, **options: Any) -> tuple[str, bytes]:
    """(name, content) of what the browser saved."""
    downloads: list[Download] = []
    page.once("download", lambda download: downloads.append(download))
    await start(page, job, **options)
    ended = await outcome(page)
    assert "way" in ended, ended

    async def begun() -> bool:
        return bool(downloads)

    await wait_until(begun, "the browser's download")
    failure = await downloads[0].failure()
    assert failure is None, failure
    return downloads[0].suggested_filename, Path(await downloads[0].path()).read_bytes()


async def refused(page: Page, job: str | None, **options: Any) -> dict[str, Any]:
    """How saving failed, which must leave no file."""
    failures = []

    async def look(download: Any) -> None:
        failures.append(await download.failure())

    page.on("download", look)
    await start(page, job, **options)
    ended = await outcome(page)
    assert None not in failures, "there is a file"
    return ended


async def test_a_parcel_that_was_swapped_is_not_opened(new_visitor: NewVisitor, bought: Purchase) -> None:
    """Each lie about the parcel alone, in a claim that is right otherwise."""
    page = await bought.page(new_visitor)
    first, second, *others = bought.claim["files"]
    other_key = {"wrapped_key": second["wrapped_key"]}
    lies: list[tuple[str, dict[str, Any]]] = [
        ("parcel-mismatch", {"files": [first, second, *others[1:]]}),
        ("parcel-mismatch", {"files": [second, first, *others]}),
        ("parcel-mismatch", {"files": [{**first, "size_bytes": 60}, second, *others]}),
        ("parcel-mismatch", {"files": [{**first, "root": second["root"]}, second, *others]}),
        ("key-unwrap-failed", {"files": [{**first, **other_key}, second, *others]}),
        ("release-secret-wrong", {"release_secret": base64url.encode(bytes(32))}),
    ]
    for kind, lie in lies:
        with pytest.raises(PlaywrightError, match=kind):
            await replace(bought, claim={**bought.claim, **lie}).opened(page)


@pytest.mark.parametrize("way", WAYS)
async def test_every_size_is_saved_by_every_way(new_visitor: NewVisitor, bought: Purchase, way: str) -> None:
    page = await bought.page(new_visitor)
    for path in SIZES:
        name, content = await save(page, path, way=way)
        assert (name, content) == (path.rpartition("/")[2], bought.content(path))
        heard = await page.evaluate("heard")
        assert heard["outcome"] == {"way": way}
        assert heard["bytes"] == heard["totalBytes"] == SIZES[path]


class Line:
    """The content requests that pass: each gets the next of `acts`, those after them the honest answer."""

    def __init__(self, *acts: Lie) -> None:
        self.acts = list(acts)
        self.starts: list[int] = []
        """First byte of each request."""
        self.closed = asyncio.Event()
        """A buyer left while a `stuck` answer was on its way."""

    async def __call__(self, request: web.Request, answered: Answered) -> web.StreamResponse | None:
        self.starts.append(int(request.headers["Range"].removeprefix("bytes=").partition("-")[0]))
        act = self.acts.pop(0) if self.acts else None
        return await act(request, answered) if act else None

    def cut(self, after_bytes: int, when: Callable[[], Awaitable[object]]) -> Lie:
        """Sends so much, and ends the connection after `when()`."""

        async def act(request: web.Request, answered: Answered) -> web.StreamResponse:
            response = await _begin(request, answered, after_bytes)
            await when()
            assert request.transport is not None
            request.transport.close()
            return response

        return act

    def stuck(self, after_bytes: int) -> Lie:
        """Sends so much and then nothing, until the buyer leaves."""

        async def act(request: web.Request, answered: Answered) -> web.StreamResponse:
            try:
                await _begin(request, answered, after_bytes)
                # The server ends this when the connection does.
                await asyncio.sleep(STUCK_S)
            except asyncio.CancelledError:
                self.closed.set()
                raise
            raise AssertionError("the buyer did not leave")

        return act

    def problem(self, status: int, name: str, **headers: str) -> Lie:
        async def act(request: web.Request, answered: Answered) -> None:
            answered.status = status
            answered.headers = {"Content-Type": "application/problem+json", **headers}
            answered.body = json.dumps({"type": f"/problems/{name}", "detail": "A lie."}).encode()

        return act


async def _begin(request: web.Request, answered: Answered, length_bytes: int) -> web.StreamResponse:
    """The answer's head, and its first bytes."""
    response = web.StreamResponse(status=answered.status, headers=answered.headers)
    await response.prepare(request)
    await response.write(answered.body[:length_bytes])
    return response


def damaged(chunk_index: int) -> Lie:
    """A bit of that chunk is another one, in every answer that has it."""

    async def lie(request: web.Request, answered: Answered) -> None:
        place = chunk_index * CHUNK_BYTES + 77 - int(answered.headers["Content-Range"][6:].partition("-")[0])
        if 0 <= place < len(answered.body):
            answered.body = answered.body[:place] + flipped(answered.body[place:])

    return lie


def flipped(octets: bytes) -> bytes:
    return bytes([octets[0] ^ 1]) + octets[1:]


@pytest.mark.parametrize(("way", "prepare"), [("service-worker", ""), ("blob", WITHOUT_BYTE_READERS)])
async def test_a_download_outlives_what_passes(
    new_visitor: NewVisitor, bought: Purchase, way: str, prepare: str
) -> None:
    """Cut, busy, silent, and a token that runs out: the bytes are the same, and none is asked for twice."""
    line = Line()

    async def some_arrived() -> None:
        # A browser forgets what its page has not read when the connection breaks.
        await until(page, "heard.bytes > 0")

    async def token_ran_out() -> None:
        bought.shop.server.clock.advance(3600)

    line.acts = [
        line.cut(4 * CHUNK_BYTES + 1000, some_arrived),
        line.problem(503, "payment-unconfirmed", **{"Retry-After": "0"}),
        line.problem(429, "grant-exhausted"),
        line.stuck(1000),
        line.cut(1, token_ran_out),
    ]
    async with lying(bought.shop.server.url, {"content": line}) as url:
        page = await bought.page(new_visitor, url)
        await page.evaluate(prepare)
        _, content = await save(page, "big.bin", way=way, tuning={"stallMs": 2000})
    assert content == bought.content("big.bin")
    heard = await page.evaluate("heard.waiting")
    assert heard == ["unreachable", "payment-unconfirmed", "grant-exhausted", "unreachable", "unreachable"]
    first, cut, busy, stuck, silent, *renewed = line.starts
    assert first == 0
    assert 3 * CHUNK_BYTES <= cut <= 4 * CHUNK_BYTES + 1000
    assert cut == busy == stuck
    assert silent == cut + 1000
    # Once more because the token had run out, and with a new one.
    assert len(renewed) == 2
    assert silent <= renewed[0] == renewed[1]


async def test_what_will_not_pass_is_told_at_once(new_visitor: NewVisitor, bought: Purchase) -> None:
    line = Line()
    async with lying(bought.shop.server.url, {"content": line}) as url:
        page = await bought.page(new_visitor, url)
        for status, name in ((403, "grant-suspended"), (410, "offer-gone"), (451, "taken-down")):
            line.acts, line.starts = [line.problem(status, name)], []
            assert (await refused(page, "big.bin"))["failed"] == name
            assert line.starts == [0]
        line.acts, line.starts = [line.problem(429, "grant-exhausted", **{"Retry-After": "3600"})], []
        assert (await refused(page, "big.bin"))["failed"] == "grant-exhausted"


@pytest.mark.parametrize("way", WAYS)
async def test_a_damaged_chunk_is_named_and_no_file_appears(
    new_visitor: NewVisitor, bought: Purchase, way: str
) -> None:
    line = Line(*[damaged(3)] * 9)
    async with lying(bought.shop.server.url, {"content": line}) as url:
        page = await bought.page(new_visitor, url)
        ended = await refused(page, "big.bin", way=way)
        assert ended == {"failed": "digest-mismatch", "chunkIndex": 3, "path": "goods/big.bin"}
        assert line.starts == [0, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES]
        # Damaged on its way only: it is fetched again.
        line.acts, line.starts = [damaged(3)], []
        _, content = await save(page, "big.bin", way=way)
        assert content == bought.content("big.bin")
        assert line.starts == [0, 3 * CHUNK_BYTES]


async def test_digests_and_keys_of_another_file_give_no_file(
    new_visitor: NewVisitor, bought: Purchase
) -> None:
    async with lying(bought.shop.server.url, {"digests": rewritten(flipped)}) as url:
        page = await bought.page(new_visitor, url)
        assert (await refused(page, "big.bin"))["failed"] == "root-mismatch"
    page = await bought.page(new_visitor)
    begun = []
    page.on("download", lambda download: begun.append(download))
    await page.evaluate("job.files.forEach((file) => { file.fileKey[0] ^= 1; })")
    for way in WAYS:
        for job in ("big.bin", "été/vide.txt", None):
            ended = await refused(page, job, way=way)
            assert ended["failed"] == "chunk-authentication-failed"
    assert begun == [], "a download began"


@pytest.mark.parametrize("who", ["page", "browser"])
async def test_cancelling_stops_fetching(new_visitor: NewVisitor, bought: Purchase, who: str) -> None:
    line = Line()
    line.acts = [line.stuck(4 * CHUNK_BYTES)]
    async with lying(bought.shop.server.url, {"content": line}) as url:
        page = await bought.page(new_visitor, url)
        async with page.expect_download() as began:
            await start(page, "big.bin")
        download = await began.value
        if who == "page":
            await page.evaluate("stop.abort()")
        else:
            await download.cancel()
        ended = await outcome(page)
        assert ended["failed"] == ("AbortError" if who == "page" else "cancelled")
        await asyncio.wait_for(line.closed.wait(), timeout=10)
        assert await download.failure()
        assert line.starts == [0]


async def test_a_worker_that_is_gone_is_noticed(new_visitor: NewVisitor, bought: Purchase) -> None:
    line = Line()
    line.acts = [line.stuck(4 * CHUNK_BYTES)]
    async with lying(bought.shop.server.url, {"content": line}) as url:
        page = await bought.page(new_visitor, url)
        async with page.expect_download():
            await start(page, "big.bin", tuning={"lookMs": 100})
        browser = await page.context.new_cdp_session(page)
        await browser.send("ServiceWorker.enable")
        await browser.send("ServiceWorker.stopAllWorkers")
        assert (await outcome(page))["failed"] == "worker-lost"


async def test_without_a_service_worker_the_next_way_is_taken(
    new_visitor: NewVisitor, bought: Purchase
) -> None:
    visitor = await new_visitor(service_workers="block")
    page = await bought.opened(await visitor.goto(f"{bought.shop.server.url}{ANY_PAGE}"))
    _, content = await save(page, "big.bin")
    assert content == bought.content("big.bin")
    assert await page.evaluate("heard.outcome") == {"way": "opfs"}


async def test_what_was_fetched_ahead_is_not_fetched_again(new_visitor: NewVisitor, bought: Purchase) -> None:
    """Fetched while the payment confirms, over a reload; saved from there; then deleted."""
    line = Line()
    line.acts = [line.stuck(3 * CHUNK_BYTES + 5)]
    async with lying(bought.shop.server.url, {"content": line}) as url:
        page = await bought.page(new_visitor, url)
        await start(page, None, module="prefetch")
        await until(page, f"heard.bytes >= {3 * CHUNK_BYTES}")
        await page.reload()
        await bought.opened(page)
        await start(page, None, module="prefetch")
        assert await outcome(page) == {"outcome": "stored"}
        assert line.starts == [0, 3 * CHUNK_BYTES, 0, 0, 0, 0]
        heard = await page.evaluate("heard")
        assert (
            heard["bytes"] == heard["totalBytes"] == sum(file["size_bytes"] for file in bought.claim["files"])
        )

        line.starts.clear()
        await page.evaluate(DAMAGE_KEPT, [bought.invoice_id, 2 * CHUNK_BYTES + 9])
        _, content = await save(page, "big.bin")
        assert content == bought.content("big.bin")
        # Only what was damaged here came from there.
        assert line.starts == [2 * CHUNK_BYTES]
        await save(page, "z/deep/er/last.bin", way="opfs")
        assert line.starts == [2 * CHUNK_BYTES]
        assert await page.evaluate(KEPT, bought.invoice_id) == 3
        await page.evaluate(
            "id => import('/static/kept-ciphertext.js').then((m) => m.forgetKept(id))", bought.invoice_id
        )
        assert await page.evaluate(KEPT, bought.invoice_id) == 0


DAMAGE_KEPT = """async ([invoiceId, at]) => {
  const { invoiceFolder } = await import('/static/kept-ciphertext.js');
  const { fileId } = job.files.find((file) => file.path === 'goods/big.bin');
  const handle = await (await invoiceFolder(invoiceId)).getFileHandle(fileId);
  const byte = new Uint8Array(await (await handle.getFile()).slice(at, at + 1).arrayBuffer());
  const writable = await handle.createWritable({keepExistingData: true});
  await writable.write({type: 'write', position: at, data: new Uint8Array([byte[0] ^ 1])});
  await writable.close();
}"""
KEPT = """async (invoiceId) => {
  const { invoiceFolder } = await import('/static/kept-ciphertext.js');
  const names = [];
  for await (const name of (await invoiceFolder(invoiceId, {create: true})).keys()) names.push(name);
  return names.length;
}"""


async def test_fetching_ahead_stops_where_there_is_no_room(new_visitor: NewVisitor, bought: Purchase) -> None:
    page = await bought.page(new_visitor)
    browser = await page.context.new_cdp_session(page)
    # Chromium tells pages of more room than there is: it shows when it is used up.
    quota = {"origin": bought.shop.server.url, "quotaSize": 3 * CHUNK_BYTES}
    await browser.send("Storage.overrideQuotaForOrigin", quota)
    await start(page, None, module="prefetch")
    assert await outcome(page) == {"outcome": "no-room"}
    # What found room is of use.
    _, content = await save(page, "big.bin")
    assert content == bought.content("big.bin")
