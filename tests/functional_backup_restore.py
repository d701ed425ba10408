"""A server is backed up while it sells, is lost, and rises elsewhere: nothing that was paid is forgotten.

Real processes and a real node. The backup is taken while an upload and purchases are under way; sales go on
after it; then the server is killed and its data folder deleted. The backup is put back into another folder,
on another port.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from regtest.demo_cases import PRICE_SAT, Sale, Stall
from regtest.node import wait_until
from regtest.served import ServedBitcache
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import RegtestWorld
from storage import base64url, digests
from storage.ports import PART_SIZE_BYTES

SKIPPED = 100
FORGOTTEN_SAT = (PRICE_SAT, 777, 123_456, 546)
SONG_BYTES = 3_000_000
UPLOAD_BYTES = PART_SIZE_BYTES + (1 << 20)
BOUGHT_MEANWHILE_MAX = 6


@dataclass
class Shop:
    """A server, its seller, and where the backup and the key are kept."""

    server: ServedBitcache
    stall: Stall
    link: str
    """Of the offer that the stall buys."""
    home: Path
    token: str
    folder: Path

    @property
    def data(self) -> tuple[str, str]:
        return "--data", str(self.server.data_folder)

    @property
    def backup(self) -> str:
        return str(self.folder / "backup")

    @property
    def key(self) -> str:
        return str(self.folder / "key")

    def value(self, query: str) -> Any:
        with closing(sqlite3.connect(self.server.data_folder / "bitcache.db")) as database:
            return database.execute(query).fetchone()[0]

    def booked_sat(self) -> int:
        """What stands in the ledger as unassigned; all of the ledger sums to zero."""
        with closing(sqlite3.connect(self.server.data_folder / "bitcache.db")) as database:
            rows = database.execute("SELECT debit, credit, amount_msat FROM transfers").fetchall()
        balances: dict[str, int] = {}
        for debit, credit, amount_msat in rows:
            balances[debit] = balances.get(debit, 0) - amount_msat
            balances[credit] = balances.get(credit, 0) + amount_msat
        assert sum(balances.values()) == 0
        return (
            sum(amount for account, amount in balances.items() if account.startswith("unassigned:")) // 1000
        )


@asynccontextmanager
async def open_shop(world: RegtestWorld, folder: Path) -> AsyncIterator[Shop]:
    server = ServedBitcache(world, settings={"OPEN_INVOICES_PER_CLIENT_MAX": "100"})
    try:
        await server.start()
        home = folder / "seller"
        home.mkdir()
        words = ("account", "create", "Ada", "--data", str(server.data_folder))
        token = (await server.command_json(*words))["token"]
        await server.command("login", server.url, home=home, stdin=token)
        wallet = await OutsideWallet.create(world, "seller")
        await server.command("payout", "set", "-", "--yes", home=home, stdin=await wallet.descriptor())
        link, stall = await _open_stall(server, home, folder)
        yield Shop(server, stall, link, home, token, folder)
    finally:
        await server.close()


@asynccontextmanager
async def restored(shop: Shop) -> AsyncIterator[Shop]:
    """The shop, risen from its backup in another folder and on another port."""
    elsewhere = ServedBitcache(shop.server.world)
    assert elsewhere.port != shop.server.port
    try:
        words = ("restore", shop.backup, "--data", str(elsewhere.data_folder), "--master-key", shop.key)
        await elsewhere.command(*words)
        await elsewhere.start()
        shop.stall.server = elsewhere
        yield replace(shop, server=elsewhere)
    finally:
        await elsewhere.close()


async def test_lost_and_restored(own_world: RegtestWorld, tmp_path: Path) -> None:
    async with open_shop(own_world, tmp_path) as shop:
        buyer = tmp_path / "buyer"
        buyer.mkdir()
        bought = await shop.server.command_json("get", shop.link, "--no-wait", home=buyer)
        settled, waiting = await shop.stall.buy(), await shop.stall.buy()
        await shop.stall.payer.pay([(bought["address"], PRICE_SAT), (settled.address, PRICE_SAT)])
        await shop.stall.settle(settled)

        upload, made = await _back_up_under_load(shop)
        await shop.server.command("backup-key", shop.key, *shop.data)
        forgotten = [await shop.stall.buy() for _ in FORGOTTEN_SAT]
        paid = dict(zip([sale.address for sale in forgotten], FORGOTTEN_SAT, strict=True))
        payment = await shop.stall.payer.pay([(waiting.address, PRICE_SAT), *paid.items()], fee_sat=9_000)
        await own_world.mempool_wait(payment.txid)
        await shop.server.kill()
        shutil.rmtree(shop.server.data_folder)
        await own_world.mine()

        async with restored(shop) as risen:
            await risen.stall.until(waiting, lambda s: bool(s["status"] == "settled"), "settled")
            assert await risen.stall.download_status(settled) == 200
            assert await risen.stall.download_status(waiting) == 200
            receipt = bought["receipt"].replace(shop.server.url, risen.server.url)
            await risen.server.command("get", receipt, "-o", str(tmp_path / "again"), home=buyer)
            assert (tmp_path / "again").read_bytes() == (tmp_path / "song").read_bytes()
            await upload.go_on(risen)

            found = await _searched(risen)
            assert {one["address"]: one["amount_sat"] for one in found["payments"]} == paid
            assert {tuple(one["sellers"]) for one in found["payments"]} == {("Ada",)}
            assert found["confirmed_sat"] == sum(FORGOTTEN_SAT) == risen.booked_sat()

            earnings = await risen.server.http("GET", "/earnings", token=risen.token)
            assert earnings.json()["unassigned_sat"] == sum(FORGOTTEN_SAT)

            fresh = await risen.stall.buy()
            assert fresh.address not in {sale.address for sale in [settled, waiting, *made, *forgotten]}
            last_used = max(one["address_index"] for one in found["payments"])
            assert risen.value("SELECT max(address_index) FROM invoices") == last_used + 1 + SKIPPED

            await own_world.reorg(2, drop=[payment.txid])
            await _until_booked(risen, 0)
            await own_world.mempool_wait(payment.txid, node=own_world.outside)
            await own_world.mine()
            await _until_booked(risen, sum(FORGOTTEN_SAT))


@dataclass
class Upload:
    """An upload of two parts, of which the second stops half-way."""

    token: str
    content: bytes
    file_id: str = ""

    async def start(self, shop: Shop, go_on: asyncio.Event, half_way: asyncio.Event) -> None:
        async with self._session(shop) as http:
            async with http.post("/api/v1/files", json={"size_bytes": len(self.content)}) as answer:
                self.file_id = (await answer.json())["file_id"]
            await self._put(http, 0, BytesIO(self.content[:PART_SIZE_BYTES]))

            async def halting() -> AsyncIterator[bytes]:
                second = self.content[PART_SIZE_BYTES:]
                yield second[:1000]
                half_way.set()
                await go_on.wait()
                yield second[1000:]

            await self._put(http, 1, halting())

    async def go_on(self, shop: Shop) -> None:
        """On the restored server, which has what was acknowledged before the backup."""
        async with self._session(shop) as http:
            async with http.get(f"/api/v1/files/{self.file_id}") as answer:
                assert (await answer.json())["parts_present"] == [0]
            await self._put(http, 1, BytesIO(self.content[PART_SIZE_BYTES:]))
            root = base64url.encode(digests.root(digests.chunk_digests(self.content)))
            async with http.post(f"/api/v1/files/{self.file_id}/complete", json={"root": root}) as answer:
                assert answer.status == 200, await answer.text()

    async def _put(
        self, http: aiohttp.ClientSession, part_no: int, body: BytesIO | AsyncIterator[bytes]
    ) -> None:
        part = self.content[part_no * PART_SIZE_BYTES :][:PART_SIZE_BYTES]
        headers = {
            "Bitcache-Chunk-Digests": base64url.encode(digests.chunk_digests(part)),
            "Content-Length": str(len(part)),
        }
        path = f"/api/v1/files/{self.file_id}/parts/{part_no}"
        async with http.put(path, data=body, headers=headers) as answer:
            assert answer.status in (201, 204), await answer.text()

    def _session(self, shop: Shop) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(shop.server.url, headers={"Authorization": f"Bearer {self.token}"})


async def _open_stall(server: ServedBitcache, home: Path, folder: Path) -> tuple[str, Stall]:
    """(link, who buys there)"""
    song = folder / "song"
    song.write_bytes(random.Random(4).randbytes(SONG_BYTES))
    words = ("upload", str(song), "--price", f"{PRICE_SAT}sat")
    link = str((await server.command_json(*words, home=home))["link"])
    offer_id = urlsplit(link).path.rsplit("/", 1)[-1]
    offer = (await server.http("GET", f"/offers/{offer_id}")).json()
    content = f"/offers/{offer_id}/files/{offer['files'][0]['file_id']}/content"
    payer = await BitWallet.create(server.world, coin_sat=500_000, coin_count=10)
    # Deep enough that the reorg does not undo the payer's own coins.
    await server.world.mine(2)
    return link, Stall(server, home, content, offer_id, payer)


async def _back_up_under_load(shop: Shop) -> tuple[Upload, list[Sale]]:
    """The upload that ran meanwhile, and what was bought meanwhile."""
    upload = Upload(shop.token, random.Random(5).randbytes(UPLOAD_BYTES))
    half_way, go_on = asyncio.Event(), asyncio.Event()
    uploading = asyncio.create_task(upload.start(shop, go_on, half_way))
    stopping = asyncio.create_task(half_way.wait())
    await asyncio.wait({uploading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    assert not uploading.done(), uploading.result()
    backing_up = asyncio.create_task(shop.server.command("backup", shop.backup, *shop.data))
    made: list[Sale] = []
    while not backing_up.done() and len(made) < BOUGHT_MEANWHILE_MAX:
        made.append(await shop.stall.buy())
        await asyncio.wait({backing_up}, timeout=0.1)
    await backing_up
    go_on.set()
    await uploading
    return upload, made


async def _searched(shop: Shop) -> dict[str, Any]:
    """What is unassigned, once no seller waits."""

    async def ended() -> bool:
        return not shop.value("SELECT count(*) FROM address_searches WHERE ended_at IS NULL")

    await wait_until(ended, "the search for used addresses")
    found: dict[str, Any] = await shop.server.command_json("unassigned", *shop.data)
    assert found["searching"] == []
    return found


async def _until_booked(shop: Shop, amount_sat: int) -> None:
    async def booked() -> bool:
        return shop.booked_sat() == amount_sat

    await wait_until(booked, f"{amount_sat} sat in the books as unassigned")
