"""A seller and buyers at a server that is a process of its own; the money is on a real node.

    async with open_stand(world, tmp_path) as stand:
        link = await stand.sell(files, price_sat=5_000)
        bought = await stand.buy(link)
        await stand.pay(bought)
        assert await stand.fetch(bought) == what_was_sold

The server may be killed and started again in between. Answers are checked against the API's document.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.download import Download
from bitcache.client.link import Link, Receipt
from bitcache.client.purchase import recall
from bitcache.client.sources import collect
from bitcache.client.target import choose_target
from bitcache.client.upload import Description, Upload, make_offer
from bitcache.client.upload_state import UploadState
from regtest.node import wait_until
from regtest.served import ServedBitcache
from regtest.wallet import OutsideWallet, Payment
from regtest.world import MINER, RegtestWorld
from storage import base64url
from tests.client_shop import CountingProgress, tree
from tests.service import API_CHECK

SETTINGS = {"DISK_RESERVE_BYTES": "0", "OPEN_INVOICES_PER_CLIENT_MAX": "1000", "NODE_POLL_INTERVAL_S": "1"}
RETRY_FOR_S = 1.0

Answer = tuple[int, Any]
"""Status, and the decoded body of what is JSON."""


@dataclass
class Bought:
    """What a buyer holds: the link, a claim secret, and the invoice as it was answered."""

    link: Link
    claim_secret: bytes
    invoice: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.invoice["invoice_id"])


@dataclass
class Stand:
    world: RegtestWorld
    server: ServedBitcache
    token: str
    folder: Path
    http: aiohttp.ClientSession
    payer: OutsideWallet

    async def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        """One call below /api/v1, or of a page for a path that begins with `//`."""
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        url = path[1:] if path.startswith("//") else f"/api/v1{path}"
        async with self.http.request(method, url, headers=sent, **more) as answer:
            if answer.content_type.endswith("json"):
                return answer.status, await answer.json()
            return answer.status, await answer.read()

    async def as_seller(self, method: str, path: str, **more: Any) -> Answer:
        return await self.request(method, path, token=self.token, **more)

    # Selling

    async def sell(self, source: Path, *, price_sat: int = 0, retry_for_s: float = RETRY_FOR_S) -> Link:
        """Upload `source` and offer it, as `bitcache upload` does; again, it goes on where it was."""
        state = UploadState(self.folder / "states" / f"{source.name}.db")
        try:
            async with ServerApi(self.server.url, self.token, retry_for_s=retry_for_s) as api:
                upload = Upload(
                    api,
                    state,
                    collect([source]),
                    Description(title=source.name),
                    meterable=False,
                    progress=CountingProgress(),
                )
                terms = wire.OfferRequest(
                    parcel_id=await upload.run(), price=wire.FixedPrice(amount_msat=price_sat * 1000)
                )
                offer = await make_offer(api, terms)
            return Link(self.server.url, offer.offer_id, state.link_secret)
        finally:
            state.close()

    # Buying

    async def ask(self, link: Link, claim_secret: bytes) -> Answer:
        claim_hash = base64url.encode(hashlib.sha256(claim_secret).digest())
        return await self.request(
            "POST", f"/offers/{link.offer_id}/invoices", json={"claim_hash": claim_hash}
        )

    async def buy(self, link: Link, *, claim_secret: bytes | None = None) -> Bought:
        """Ask for an invoice; fails unless there is one."""
        secret = claim_secret or os.urandom(32)
        status, invoice = await self.ask(link, secret)
        assert status in (200, 201), invoice
        return Bought(link, secret, invoice)

    async def pay(self, bought: Bought) -> Payment:
        """From the miner's wallet, unconfirmed."""
        payment = await self.payer.pay(
            [(bought.invoice["address"], bought.invoice["due_sat"])], feerate_sat_vb=20
        )
        await self.world.mempool_wait(payment.txid)
        return payment

    async def claim(self, bought: Bought) -> Answer:
        secret = base64url.encode(bought.claim_secret)
        return await self.request("POST", f"/invoices/{bought.id}/claim", json={"claim_secret": secret})

    async def invoice(self, bought: Bought) -> dict[str, Any]:
        status, view = await self.request("GET", f"/invoices/{bought.id}")
        assert status == 200, view
        return dict(view)

    async def until(self, bought: Bought, status: str) -> dict[str, Any]:
        latest: dict[str, Any] = {}

        async def look() -> bool:
            nonlocal latest
            latest = await self.invoice(bought)
            return bool(latest["status"] == status)

        await wait_until(look, f"the invoice to be {status}")
        return latest

    async def fetch(self, bought: Bought) -> dict[str, bytes]:
        """Every file of the parcel in plain, as `bitcache get` with the receipt brings it."""
        receipt = Receipt(self.server.url, bought.id, bought.claim_secret, bought.link.link_secret)
        output = self.folder / "out" / bought.id
        output.mkdir(parents=True, exist_ok=True)
        async with ServerApi(self.server.url, retry_for_s=RETRY_FOR_S) as api:
            purchase = await recall(api, receipt)
            with choose_target(output, [file.path for file in purchase.parcel.files]) as target:
                await Download(
                    api,
                    receipt,
                    bought.link.offer_id,
                    purchase.parcel,
                    target,
                    progress=CountingProgress(),
                    on_invoice=lambda invoice: None,
                    force=True,
                ).run()
        return tree(output)


def parcel_of(source: Path) -> dict[str, bytes]:
    """The files of the folder `source` by their paths in a parcel made of it."""
    return {f"{source.name}/{path}": octets for path, octets in tree(source).items()}


@asynccontextmanager
async def open_stand(
    world: RegtestWorld,
    folder: Path,
    *,
    data_folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
    program: Sequence[str | Path] | None = None,
) -> AsyncIterator[Stand]:
    """A server on the world's node, with a seller who has a wallet on the outside node.

    `program`: what runs in place of `bitcache`.
    """
    server = ServedBitcache(world, settings={**SETTINGS, **(settings or {})}, data_folder=data_folder)
    server.program = program or server.program
    try:
        await server.start()
        made = await server.command_json("account", "create", "seller", "--data", str(server.data_folder))
        wallet = await OutsideWallet.create(world, f"seller-{os.urandom(4).hex()}")
        async with aiohttp.ClientSession(server.url, middlewares=(API_CHECK.middleware,)) as http:
            stand = Stand(world, server, made["token"], folder, http, OutsideWallet(world.outside, MINER))
            wanted = {"payout_descriptor": await wallet.descriptor()}
            status, view = await stand.as_seller("PATCH", "/account", json=wanted)
            assert status == 200, view
            await wait_online(stand)
            yield stand
    finally:
        await server.close()


async def wait_online(stand: Stand) -> None:
    """Until the server has seen its node."""

    async def online() -> bool:
        _, health = await stand.request("GET", "//healthz")
        return bool(health["node_online"])

    await wait_until(online, "the server to see its node")
