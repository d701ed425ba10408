"""What is measured: a server as its operator runs it on a real node, a seller signed in, files, purchases."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from regtest.served import ServedBitcache
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import RegtestWorld
from storage import base64url

FEE_SAT = 20_000
PAYMENT_S_MAX = 60


@dataclass(frozen=True)
class Claimed:
    """What one invoice allows."""

    content: str
    """Path of the first file's ciphertext."""
    headers: dict[str, str]
    """The grant's token, for `content`."""
    size_bytes: int


class Stage:
    def __init__(self, server: ServedBitcache, folder: Path) -> None:
        self.world, self.server, self.folder = server.world, server, folder
        self.home = folder / "seller"
        self.token = ""

    async def prepare(self, token: str | None = None) -> None:
        """Sign a seller in and set their wallet: who has `token`, or a new one."""
        self.home.mkdir()
        if token is None:
            data = ("--data", str(self.server.data_folder))
            token = str((await self.server.command_json("account", "create", "Bench", *data))["token"])
        self.token = token
        await self.server.command("login", self.server.url, home=self.home, stdin=self.token)
        wallet = await OutsideWallet.create(self.world, "bench")
        await self.server.command("payout", "set", await wallet.descriptor(), "--yes", home=self.home)

    def file(self, name: str, size_bytes: int) -> Path:
        """Bytes that nothing can compress, the same 64 MiB over and over."""
        path = self.folder / name
        block = os.urandom(min(size_bytes, 64 << 20))
        with path.open("wb") as out:
            for _ in range(size_bytes // len(block)):
                out.write(block)
            out.write(block[: size_bytes % len(block)])
        return path

    async def upload(self, file: Path, price: str = "0") -> tuple[str, float]:
        """(link, seconds) of the command line."""
        started_at = time.monotonic()
        words = ("upload", str(file), "--price", price)
        link = str((await self.server.command_json(*words, home=self.home))["link"])
        return link, time.monotonic() - started_at

    async def claim_free(self, link: str) -> Claimed:
        """A grant of a free offer, another one each time."""
        offer_id = offer_of(link)
        secret, invoice = await self._invoice(offer_id)
        return _claimed(offer_id, await self._claim(invoice["invoice_id"], secret))

    async def claim_paid(self, link: str) -> Claimed:
        """Pay, wait for the block, and claim."""
        offer_id = offer_of(link)
        secret, invoice = await self._invoice(offer_id)
        payer = await BitWallet.create(self.world, coin_sat=1_000_000, coin_count=1)
        payment = await payer.pay([(invoice["address"], invoice["due_sat"])], fee_sat=FEE_SAT)
        await self.world.mempool_wait(payment.txid)
        await self.world.mine()
        async with asyncio.timeout(PAYMENT_S_MAX):
            while not (claim := await self._claim(invoice["invoice_id"], secret))["bytes_allowed"]:
                await asyncio.sleep(0.05)
        return _claimed(offer_id, claim)

    async def _invoice(self, offer_id: str) -> tuple[bytes, dict[str, Any]]:
        secret = secrets.token_bytes(32)
        body = {"claim_hash": base64url.encode(hashlib.sha256(secret).digest())}
        return secret, (await self.server.http("POST", f"/offers/{offer_id}/invoices", body=body)).json()

    async def _claim(self, invoice_id: str, secret: bytes) -> dict[str, Any]:
        body = {"claim_secret": base64url.encode(secret)}
        claim: dict[str, Any] = (
            await self.server.http("POST", f"/invoices/{invoice_id}/claim", body=body)
        ).json()
        return claim


@asynccontextmanager
async def open_server(settings: Mapping[str, str] | None = None) -> AsyncIterator[ServedBitcache]:
    """Not started yet, on a node of its own; `settings` are BITCACHE_* variables without the prefix."""
    async with RegtestWorld() as world:
        server = ServedBitcache(world, settings=settings)
        try:
            yield server
        finally:
            await server.close()


@asynccontextmanager
async def open_stage(settings: Mapping[str, str] | None = None) -> AsyncIterator[Stage]:
    """A running server with a seller."""
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        async with open_server(settings) as server:
            await server.start()
            stage = Stage(server, Path(folder))
            await stage.prepare()
            yield stage


def offer_of(link: str) -> str:
    return urlsplit(link).path.rpartition("/")[2]


def _claimed(offer_id: str, claim: Mapping[str, Any]) -> Claimed:
    file = claim["files"][0]
    return Claimed(
        content=f"/api/v1/offers/{offer_id}/files/{file['file_id']}/content",
        headers={"Authorization": f"Bearer {claim['grant_token']}"},
        size_bytes=int(file["size_bytes"]),
    )
