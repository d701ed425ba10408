"""A server that lies in one way: it passes everything on to the honest one, and alters what a case says.

    async with lying(shop.server.url, {"offer": altered(swap_files)}) as url: ...

Kinds of answers: see KINDS.
"""

import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

KINDS = {
    "account": r"/api/v1/account",
    "files": r"/api/v1/files",
    "file": r"/api/v1/files/[a-z2-7]{26}",
    "complete": r"/api/v1/files/[a-z2-7]{26}/complete",
    "parcels": r"/api/v1/parcels",
    "seal": r"/api/v1/parcels/[a-z2-7]{26}/seal",
    "offers": r"/api/v1/offers",
    "offer": r"/api/v1/offers/[a-z2-7]{26}",
    "buy": r"/api/v1/offers/[a-z2-7]{26}/invoices",
    "invoice": r"/api/v1/invoices/[a-z2-7]{26}",
    "events": r"/api/v1/invoices/[a-z2-7]{26}/events",
    "renew": r"/api/v1/invoices/[a-z2-7]{26}/renew",
    "claim": r"/api/v1/invoices/[a-z2-7]{26}/claim",
    "digests": r"/api/v1/offers/[a-z2-7]{26}/files/[a-z2-7]{26}/digests",
    "part": r"/api/v1/files/[a-z2-7]{26}/parts/[0-9]+",
    "terms": r"/api/v1/channels/terms",
    "deposits": r"/api/v1/channels/deposits",
    "channels": r"/api/v1/channels",
    "mine": r"/api/v1/channels/mine",
    "content": r"/api/v1/offers/[a-z2-7]{26}/files/[a-z2-7]{26}/content",
}


@dataclass
class Answered:
    """What the honest server answered; a lie may change it, or send something else itself."""

    status: int
    headers: dict[str, str]
    body: bytes


Lie = Callable[[web.Request, Answered], Awaitable[web.StreamResponse | None]]
"""Alters the answer in place; or gives a response of its own."""


def altered(change: Callable[[Any], None]) -> Lie:
    """A lie about a JSON document, which `change` alters in place."""

    async def lie(request: web.Request, answered: Answered) -> None:
        document = json.loads(answered.body)
        change(document)
        answered.body = json.dumps(document).encode()

    return lie


def rewritten(change: Callable[[bytes], bytes]) -> Lie:
    """A lie about bytes."""

    async def lie(request: web.Request, answered: Answered) -> None:
        answered.body = change(answered.body)

    return lie


@asynccontextmanager
async def lying(honest_url: str, lies: Mapping[str, Lie]) -> AsyncIterator[str]:
    """The address of a server that tells `lies` by kind of answer."""
    assert lies.keys() <= KINDS.keys()
    async with aiohttp.ClientSession(honest_url, auto_decompress=False) as honest:

        async def handle(request: web.Request) -> web.StreamResponse:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            body = io.BytesIO(await request.read()) if request.can_read_body else None
            if request.path.endswith("/events"):
                # It has no end to pass on.
                lie = lies.get("events")
                response = await lie(request, Answered(200, {}, b"")) if lie else None
                return response or web.Response(status=404)
            async with honest.request(request.method, request.path_qs, headers=headers, data=body) as answer:
                answered = Answered(answer.status, dict(answer.headers), await answer.read())
            for kind, lie in lies.items():
                if re.fullmatch(KINDS[kind], request.path):
                    response = await lie(request, answered)
                    if response is not None:
                        return response
            answered.headers.pop("Content-Length", None)
            return web.Response(status=answered.status, headers=answered.headers, body=answered.body)

        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", handle)
        async with TestServer(app) as liar:
            yield str(liar.make_url("/")).rstrip("/")


@asynccontextmanager
async def sending_elsewhere(honest_url: str, kind: str) -> AsyncIterator[tuple[dict[str, Lie], list[str]]]:
    """(lies that redirect to another server, the paths that were asked for there)."""
    asked: list[str] = []

    async def note(request: web.Request, answered: Answered) -> None:
        asked.append(request.path)

    async with lying(honest_url, {kind: note}) as other_url:

        async def send_there(request: web.Request, answered: Answered) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": f"{other_url}{request.path}"})

        yield {kind: send_there}, asked
