"""How long a buyer waits for our word: from the broadcast to "seen", from the block to the key.

A server process, a real node and this program share one machine, over loopback. Both references are the
node's own word, heard by this program on the same ZMQ topic in the same payments.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import zmq
import zmq.asyncio

from bench.fill import put_copy
from bench.stage import Stage, offer_of, open_server
from bitcache.config import DATABASE_FILE_NAME
from regtest.served import ServedBitcache
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from storage import base64url

API = "/api/v1"
PRICE_SAT = 5_000
FEE_SAT = 20_000
PATIENCE_S = 60
UNLIMITED = {
    "OPEN_INVOICES_PER_CLIENT_MAX": "1000000",
    "OPEN_INVOICES_PER_SELLER_MAX": "1000000",
    "LIMITS_INVOICES_PER_MINUTE": "1000000",
    "LIMITS_INVOICES_PER_MINUTE_IN_TOTAL": "1000000",
    "LIMITS_CLAIMS_PER_MINUTE": "1000000",
    # Addresses are earned with work when they run short: that is the buyer's time, none of ours.
    "LIMITS_WORK_BITS_MIN": "0",
    "LIMITS_WORK_BITS_MAX": "0",
}
"""One client asks here for what many do."""


@dataclass(frozen=True)
class Shop:
    """A server that sells one small parcel."""

    world: RegtestWorld
    server: ServedBitcache
    http: aiohttp.ClientSession
    offer_id: str
    ready_s: float
    """From the start of the process until it gave invoices."""

    async def invoice(self) -> tuple[dict[str, Any], str]:
        """(a new invoice, its claim secret)."""
        secret = secrets.token_bytes(32)
        body = {"claim_hash": base64url.encode(hashlib.sha256(secret).digest())}
        async with self.http.post(f"{API}/offers/{self.offer_id}/invoices", json=body) as answer:
            view: dict[str, Any] = await answer.json()
            assert answer.status == 201, view
            return view, base64url.encode(secret)

    async def claim(self, invoice_id: str, secret: str) -> dict[str, Any]:
        body = {"claim_secret": secret}
        async with self.http.post(f"{API}/invoices/{invoice_id}/claim", json=body) as answer:
            claimed: dict[str, Any] = await answer.json()
            assert answer.status == 200, claimed
            return claimed


@asynccontextmanager
async def open_shop(
    settings: Mapping[str, str] | None = None, *, token: str | None = None, filled_with: int = 0
) -> AsyncIterator[Shop]:
    """A world, a server process on its node, a seller and what is sold.

    `filled_with` that many invoices of earlier years, of the seller who has `token`.
    """
    async with open_server(UNLIMITED | dict(settings or {})) as server:
        await server.command("init", str(server.data_folder))
        if filled_with:
            await asyncio.to_thread(put_copy, filled_with, server.data_folder / DATABASE_FILE_NAME)
        started_at = time.perf_counter()
        await server.start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
            await _online(http)
            ready_s = time.perf_counter() - started_at
            stage = Stage(server, server.folder)
            await stage.prepare(token)
            link, _ = await stage.upload(stage.file("goods.bin", 100_000), f"{PRICE_SAT}sat")
            yield Shop(server.world, server, http, offer_of(link), ready_s)


async def _online(http: aiohttp.ClientSession) -> None:
    """Until the server's watcher has loaded what it watches and has seen the whole chain."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with http.get("/readyz") as answer:
                if answer.status == 200 and (await answer.json())["status"] == "ok":
                    return
            await asyncio.sleep(0.02)


@dataclass
class Latencies:
    """Milliseconds, one of each kind per payment."""

    seen: list[float] = field(default_factory=list)
    """From handing the payment to the node, to our event stream."""
    told: list[float] = field(default_factory=list)
    """The same to the node's own ZMQ event: the reference."""
    settled: list[float] = field(default_factory=list)
    """From the node's ZMQ event of the block to our event stream."""
    key: list[float] = field(default_factory=list)
    """The same to the release secret in the answer to a claim."""


class NodesWord:
    """The node's `sequence` events, stamped on arrival. Use with `async with`."""

    def __init__(self, zmq_url: str) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.connect(zmq_url)
        self._socket.subscribe(b"sequence")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    async def told(self, kind: bytes) -> float:
        """When the next event of this kind came (A: in the mempool, C: block connected)."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                _, body, _ = await self._socket.recv_multipart()
                if body[32:33] == kind:
                    return time.perf_counter()


async def measure(shop: Shop, payments: int) -> Latencies:
    """One payment after the other, each in a block of its own."""
    found = Latencies()
    payer = await BitWallet.create(shop.world, coin_sat=1_000_000, coin_count=payments)
    async with NodesWord(shop.world.server.zmq_url) as node:
        for _ in range(payments):
            invoice, secret = await shop.invoice()
            async with shop.http.get(f"{API}/invoices/{invoice['invoice_id']}/events") as stream:
                await until_status(stream, "open")
                payment = await payer.pay(
                    [(invoice["address"], invoice["due_sat"])], fee_sat=FEE_SAT, broadcast=False
                )
                told = asyncio.create_task(node.told(b"A"))
                sent_at = time.perf_counter()
                # To the server's own node: how long the network takes to relay is not ours to measure.
                sending = asyncio.create_task(payer.send(payment, node=shop.world.server))
                seen_at = await until_status(stream, "seen")
                await sending
                found.seen.append((seen_at - sent_at) * 1000)
                found.told.append((await told - sent_at) * 1000)
                await shop.world.mempool_wait(payment.txid, node=shop.world.outside)
                told = asyncio.create_task(node.told(b"C"))
                mining = asyncio.create_task(shop.world.mine(sync=False))
                settled_at = await until_status(stream, "settled")
                claimed = await shop.claim(invoice["invoice_id"], secret)
                key_at = time.perf_counter()
                assert claimed["release_secret"]
                block_at = await told
                await mining
                found.settled.append((settled_at - block_at) * 1000)
                found.key.append((key_at - block_at) * 1000)
    return found


async def until_status(stream: aiohttp.ClientResponse, status: str) -> float:
    """When the event stream says that the invoice has this status."""
    async with asyncio.timeout(PATIENCE_S):
        async for line in stream.content:
            if line.startswith(b"data:") and json.loads(line[5:])["status"] == status:
                return time.perf_counter()
    raise AssertionError("the event stream ended")
