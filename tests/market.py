"""Sellers and buyers in real browsers: the real server on a real node, selling real encrypted parcels.

async with open_market(world, tmp_path) as market:
    link = await market.sell(price_sat=5_000)
    page = await (await new_visitor()).goto(link)
"""

from __future__ import annotations

import hashlib
import re
import secrets
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Page

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.link import Link, Receipt, parse
from bitcache.client.sources import collect
from bitcache.client.upload import Description, Upload, make_offer
from bitcache.client.upload_state import UploadState
from regtest.node import wait_until
from regtest.wallet import BitWallet, Coin, Payment
from regtest.world import RegtestWorld
from storage import base64url
from storage.metadata import Preview
from tests.browser import until
from tests.client_shop import CountingProgress
from tests.till import Till, open_nodeless_till, open_till

FEE_SAT = 20_000
"""Far above what shared nodes have learnt to estimate: fit for bytes before a block."""
GOODS = {
    "Read me.txt": b"You paid for this. Thank you.\n",
    "Photos/Été à Lyon.bin": bytes(range(256)) * 5_000,
    "Photos/empty": b"",
}


@dataclass
class Market:
    till: Till
    folder: Path
    payer: BitWallet | None = None
    _sources: int = 0
    _parcels: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _addresses: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.till.server.url

    @property
    def world(self) -> RegtestWorld:
        assert self.till.world is not None
        return self.till.world

    async def sell(
        self,
        *,
        price_sat: int | None = 0,
        metered_msat: int | None = None,
        goods: dict[str, bytes] | None = None,
        policy: wire.PolicyView | None = None,
        title: str = "Summer in Lyon",
        note: str = "",
        preview: bytes | None = None,
        **terms: Any,
    ) -> str:
        """Upload `goods` (once for the same description) and offer them; the link.

        `metered_msat`: of a chunk; without `price_sat` they are sold so alone.
        """
        meterable = metered_msat is not None
        key = repr((goods, title, note, meterable))
        if key not in self._parcels:
            self._parcels[key] = await self._uploaded(goods or GOODS, title, note, preview, meterable)
        parcel_id, link_secret = self._parcels[key]
        request = wire.OfferRequest(
            parcel_id=parcel_id,
            price=None if price_sat is None else wire.FixedPrice(amount_msat=price_sat * 1000),
            metered=None if metered_msat is None else wire.MeteredPrice(amount_msat=metered_msat),
            policy=policy or wire.PolicyView(),
            **terms,
        )
        async with ServerApi(self.url, self.till.account.token) as api:
            offer = await make_offer(api, request)
        return str(Link(self.url, offer.offer_id, link_secret))

    async def _uploaded(
        self, goods: dict[str, bytes], title: str, note: str, preview: bytes | None, meterable: bool
    ) -> tuple[str, bytes]:
        self._sources += 1
        source = self.folder / f"goods {self._sources}"
        for path, content in goods.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
        state = UploadState(self.folder / f"upload {self._sources}.db")
        try:
            async with ServerApi(self.url, self.till.account.token) as api:
                upload = Upload(
                    api,
                    state,
                    collect(sorted(source.iterdir())),
                    Description(title, note, _preview(preview)),
                    meterable=meterable,
                    progress=CountingProgress(),
                )
                return await upload.run(), state.link_secret
        finally:
            state.close()

    async def buy(self, link: str) -> tuple[str, str]:
        """(invoice id, receipt) of an invoice asked for without a page."""
        where = parse(link)
        assert isinstance(where, Link)
        claim_secret = secrets.token_bytes(32)
        claim_hash = base64url.encode(hashlib.sha256(claim_secret).digest())
        place = f"/api/v1/offers/{where.offer_id}/invoices"
        async with self.till.http.post(place, json={"claim_hash": claim_hash}) as answer:
            invoice = await answer.json()
        invoice_id = str(invoice["invoice_id"])
        self._addresses[invoice_id] = invoice["address"]
        return invoice_id, str(Receipt(self.url, invoice_id, claim_secret, where.link_secret))

    async def invoice(self, invoice_id: str) -> dict[str, Any]:
        async with self.till.http.get(f"/api/v1/invoices/{invoice_id}") as answer:
            view: dict[str, Any] = await answer.json()
            return view

    async def until(
        self, invoice_id: str, holds: Callable[[dict[str, Any]], bool], what: str
    ) -> dict[str, Any]:
        """Wait until the server sees it so."""
        latest: dict[str, Any] = {}

        async def look() -> bool:
            nonlocal latest
            latest = await self.invoice(invoice_id)
            return holds(latest)

        await wait_until(look, what)
        return latest

    async def pay(
        self,
        invoice_id: str,
        amount_sat: int | None = None,
        *,
        fee_sat: int = FEE_SAT,
        inputs: tuple[Coin, ...] | None = None,
        elsewhere: bool = False,
    ) -> Payment:
        """From the wallet of the `bit` library. `elsewhere`: to its own address, to take `inputs` back."""
        if self.payer is None:
            self.payer = await BitWallet.create(self.world, coin_sat=2_000_000, coin_count=30)
        view = await self.invoice(invoice_id)
        # Who is late still has the address, though the server hides it by then.
        shown: str = view["address"] or self._addresses[invoice_id]
        address = self.payer.address if elsewhere else shown
        due_sat = int(view["due_sat"] if amount_sat is None else amount_sat)
        payment = await self.payer.pay([(address, due_sat)], fee_sat=fee_sat, inputs=inputs)
        await self.world.mempool_wait(payment.txid)
        return payment


@asynccontextmanager
async def open_market(world: RegtestWorld, folder: Path, **changes: Any) -> AsyncIterator[Market]:
    """A server on the world's node; `changes` are fields of Config."""
    async with open_till(world, _made(folder / "server"), **changes) as till:
        yield Market(till, folder)


@asynccontextmanager
async def open_free_market(folder: Path, **changes: Any) -> AsyncIterator[Market]:
    """A server without a node, for what costs nothing."""
    async with open_nodeless_till(_made(folder / "server"), **changes) as till:
        yield Market(till, folder)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


async def ready(page: Page) -> Page:
    """Wait until the page's script has done its first work."""
    await until(page, "document.body.dataset.ready === 'true'", "the page to be ready")
    return page


async def ordered(page: Page) -> str:
    """Press the offer's button; the id of the invoice on whose page the buyer arrives."""
    await ready(page)
    await page.locator("#pay button").click()
    await page.wait_for_url("**/r/**")
    await ready(page)
    return invoice_id_of(page.url)


def invoice_id_of(url: str) -> str:
    found = re.search(r"/r/([a-z2-7]{26})", url)
    assert found, url
    return found[1]


async def until_state(page: Page, state: str) -> None:
    """Wait until the page itself, without being asked, shows this state."""
    await until(
        page,
        "(state) => document.getElementById('live').dataset.state === state",
        f"the page to say {state}",
        state,
    )


async def unlocked(page: Page) -> None:
    """Wait until the files can be saved."""
    await until(page, "document.body.dataset.unlocked === 'true'", "the files to be unlocked")


def png(width: int = 96, height: int = 64) -> bytes:
    """A small picture: a sunset of some sort."""
    rows = b"".join(
        b"\0" + bytes(c for x in range(width) for c in (230 - y, 90 + x, 40 + 2 * y)) for y in range(height)
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _preview(image: bytes | None) -> Preview | None:
    return Preview(media_type="image/png", image=image) if image else None
