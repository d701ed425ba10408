"""The client against answers that are too long, too slow, packed, nested without end, or not as they say."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from bitcache.client.api import ServerApi
from bitcache.client.errors import (
    ServerAnswerWrong,
    ServerProblem,
    ServerUnreachable,
    SpaceMissing,
    TargetUnsafe,
)
from bitcache.client.invoices import follow
from bitcache.client.link import Link
from bitcache.client.purchase import buy, look
from bitcache.client.receipts import ReceiptBook
from storage import stream
from storage.errors import MetadataInvalid, PathRefused
from tests.client_shop import Shop, open_shop, tree
from tests.hostile_server import Answered, Lie, lying
from tests.test_bitcache_client_hostile import Buyer, both, sealed_by_hand

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEEP = 300_000
BOMB = gzip.compress(bytes(64 << 20))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def link(shop: Shop) -> Link:
    return await shop.sell(shop.files())


@pytest.fixture
def buyer(shop: Shop, link: Link, tmp_path: Path) -> Buyer:
    return Buyer(shop, link, tmp_path)


async def packed(request: web.Request, answered: Answered) -> web.StreamResponse:
    """A few kilobytes that would be 64 MiB; nobody asked for them packed."""
    assert request.headers["Accept-Encoding"] == "identity"
    kept = {
        name: text for name, text in answered.headers.items() if name in ("Content-Range", "Content-Type")
    }
    return web.Response(status=answered.status, body=BOMB, headers={**kept, "Content-Encoding": "gzip"})


@pytest.mark.parametrize("kind", ["offer", "buy", "claim", "digests", "content"])
async def test_packed_answers_are_not_unpacked(buyer: Buyer, kind: str) -> None:
    with pytest.raises(ServerAnswerWrong):
        await buyer.fetch({kind: packed})


@pytest.mark.parametrize("kind", ["offer", "buy", "claim"])
@pytest.mark.parametrize("field", ["metadata", "files", "something_new"])
async def test_nesting_without_end_is_refused(buyer: Buyer, kind: str, field: str) -> None:
    """In a field that we know, and in one that we would skip."""

    async def nested(request: web.Request, answered: Answered) -> None:
        answered.body = answered.body[:-1] + f',"{field}":'.encode() + b"[" * DEEP + b"]" * DEEP + b"}"

    with pytest.raises(ServerAnswerWrong):
        await buyer.fetch({kind: nested})


@pytest.mark.parametrize(
    "body",
    [b"[" * DEEP, b'{"type":"' + b"\xff" * 10 + b'"}', b"{" * 70_000, b'{"new":' + b"[" * 20_000, b""],
    ids=["nested", "not utf-8", "too long", "nested in what we would skip", "nothing"],
)
async def test_a_problem_that_cannot_be_read_is_a_problem_still(buyer: Buyer, body: bytes) -> None:
    async def broken(request: web.Request, answered: Answered) -> web.StreamResponse:
        return web.Response(status=410, body=body, content_type="application/problem+json")

    with pytest.raises((ServerProblem, ServerAnswerWrong)):
        await buyer.fetch({"buy": broken})


async def test_a_server_that_drips_is_left(buyer: Buyer) -> None:
    async def drip(request: web.Request, answered: Answered) -> web.StreamResponse:
        response = web.StreamResponse(status=answered.status)
        response.headers["Content-Range"] = answered.headers["Content-Range"]
        response.content_length = len(answered.body)
        await response.prepare(request)
        for octet in answered.body:
            await response.write(bytes([octet]))
            await asyncio.sleep(0.01)
        return response

    async with lying(buyer.shop.server.url, {"content": drip}) as url:
        with pytest.raises(ServerUnreachable):
            await buyer.shop.fetch(
                replace(buyer.link, server=url), buyer.output, retry_for_s=0, chunk_s_max=0.3
            )
    assert not [path for path in tree(buyer.folder) if not path.startswith("out/.bitcache-")]


@pytest.mark.parametrize("kind", ["offer", "claim", "digests", "content"])
async def test_a_length_that_is_announced_and_never_comes(buyer: Buyer, kind: str) -> None:
    """Nothing is reserved for it, and the end of the connection is no end of the answer."""

    async def announce(request: web.Request, answered: Answered) -> web.StreamResponse:
        kept = {name: text for name, text in answered.headers.items() if name == "Content-Range"}
        response = web.StreamResponse(status=answered.status, headers=kept)
        response.content_length = 1 << 50
        await response.prepare(request)
        await response.write(answered.body)
        assert request.transport is not None
        request.transport.close()
        return response

    with pytest.raises((ServerAnswerWrong, ServerUnreachable)):
        await buyer.fetch({kind: announce})


async def test_files_larger_than_the_disk_are_refused_before_anything_is_bought(buyer: Buyer) -> None:
    """Server and seller agree on 8 TiB."""
    size_bytes = 2**43

    def describe(description: dict[str, Any]) -> None:
        description["files"][0]["size_bytes"] = size_bytes

    seal = sealed_by_hand(buyer.link.link_secret, describe)

    def change(document: dict[str, Any]) -> None:
        seal(document)
        document["files"][0]["size_bytes"] = stream.ciphertext_size(size_bytes)

    with pytest.raises(SpaceMissing):
        await buyer.fetch(both(change))
    assert not tree(buyer.folder)


@pytest.mark.parametrize(
    "path",
    [
        "//host/share",
        "C:/evil",
        "a\x00b",
        "name:stream",
        "trailing.",
        "trailing ",
        "com1.txt",
        "a/LPT9",
        "x" * 256,
        "y/" * 600 + "y",
        "ONE.BIN/below",
        "goods/TWO.bin",
        "e\u0301\u200b",
        "a\u2028b",
        "",
    ],
)
async def test_no_name_leads_astray(buyer: Buyer, path: str) -> None:
    def change(description: dict[str, Any]) -> None:
        names = [file["path"] for file in description["files"]]
        at = names.index("goods/one.bin")
        description["files"][at]["path"] = path.replace("ONE.BIN", "GOODS/two.BIN")

    with pytest.raises((PathRefused, MetadataInvalid)):
        await buyer.fetch(both(sealed_by_hand(buyer.link.link_secret, change)))
    assert not tree(buyer.folder)


@pytest.mark.parametrize("path", [".bitcache-aaa/0.whole", ".BITCACHE-x", ".Bitcache-/a"])
@pytest.mark.parametrize("force", [False, True])
async def test_no_file_is_put_where_unfinished_ones_are(buyer: Buyer, path: str, force: bool) -> None:
    """Server and seller in league: one chooses the invoice's id, the other the name."""

    def change(description: dict[str, Any]) -> None:
        description["files"][0]["path"] = path

    lies = both(sealed_by_hand(buyer.link.link_secret, change))
    async with lying(buyer.shop.server.url, lies) as url:
        with pytest.raises(TargetUnsafe):
            await buyer.shop.fetch(replace(buyer.link, server=url), buyer.output, force=force)


def event(invoice: dict[str, Any], **changes: object) -> bytes:
    return b"data: " + json.dumps({**invoice, **changes}).encode() + b"\n\n"


@pytest.mark.parametrize(
    "chunk",
    [
        b"x" * 65_536,
        b"data: " + b"x" * 65_530,
        b"data: {}\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\xfe\n\n",
        b"\x00\r\n" * 1_000,
    ],
    ids=["a line", "data", "no invoice", "nested", "not utf-8", "nothing of use"],
)
async def test_an_event_stream_of_rubbish_is_left_and_asked_again(buyer: Buyer, chunk: bytes) -> None:
    """Polling goes on, so the buyer learns of the payment all the same."""
    sent_bytes = 0
    asked = 0

    async def rubbish(request: web.Request, answered: Answered) -> web.StreamResponse:
        nonlocal sent_bytes
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(64):
            await response.write(chunk)
            sent_bytes += len(chunk)
        return response

    async def not_yet(request: web.Request, answered: Answered) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            changed = {**json.loads(answered.body), "key_allowed": False, "status": "seen"}
            answered.body = json.dumps(changed).encode()

    seen = await followed(buyer, {"events": rubbish, "invoice": not_yet})
    assert seen == ["seen", "settled"]
    assert sent_bytes <= 64 * len(chunk)


@pytest.mark.parametrize("changes", [{"invoice_id": "b" * 26}, {"due_sat": 5}, {"due_sat": -1}])
async def test_an_event_that_lies_is_not_passed_on(buyer: Buyer, changes: dict[str, object]) -> None:
    first = True
    told: dict[str, Any] = {}

    async def lie(request: web.Request, answered: Answered) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event(told, **changes))
        return response

    async def not_yet(request: web.Request, answered: Answered) -> None:
        nonlocal first
        told.update(json.loads(answered.body))
        if first:
            first = False
            answered.body = json.dumps({**told, "key_allowed": False, "status": "seen"}).encode()

    assert await followed(buyer, {"events": lie, "invoice": not_yet}) == ["seen", "settled"]


async def followed(buyer: Buyer, lies: dict[str, Lie]) -> list[str]:
    """What a buyer of the free parcel hears until it is settled."""
    statuses: list[str] = []
    async with lying(buyer.shop.server.url, lies) as url, ServerApi(url, retry_for_s=1) as api:
        link = replace(buyer.link, server=url)
        offer, parcel = await look(api, link)
        purchase = await buy(api, link, offer, parcel, ReceiptBook(buyer.folder / "receipts"))
        async with asyncio.timeout(30):
            async for invoice in follow(api, purchase.invoice.invoice_id, poll_s=0.02):
                statuses.append(invoice.status)
                if invoice.key_allowed:
                    return statuses
    raise AssertionError("an invoice is followed without end")
