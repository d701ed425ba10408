"""The server's disk is full to the last byte, then there is room again: a real process on a real file system.

Uploading, buying and settling stop with words (507 `disk-full`), downloads and pages go on; with room, all
goes on in the same process and nothing is lost, payments made meanwhile included.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from regtest.node import wait_until
from regtest.served import ServerFailed
from regtest.world import RegtestWorld
from storage import base64url, digests
from tests.plain_browser import Browser
from tests.small_disk import SmallDisk, small_disk
from tests.stand import Stand, open_stand, parcel_of

DISK_BYTES = 64 << 20
PART = 8 << 20
PRICE_SAT = 5_000
CONTENT = random.Random(3).randbytes(PART + 12_345)
DISK_FULL = (507, "/problems/disk-full")
UNAVAILABLE = (503, "/problems/database-unavailable")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_bytes=DISK_BYTES) as disk:
        yield disk


def goods(folder: Path) -> Path:
    source = folder / "goods"
    source.mkdir()
    (source / "one.bin").write_bytes(random.Random(1).randbytes(1_500_000))
    (source / "two.txt").write_text("two")
    return source


async def announce(stand: Stand, size_bytes: int) -> str:
    status, view = await stand.as_seller("POST", "/files", json={"size_bytes": size_bytes})
    assert status == 201, view
    return str(view["file_id"])


async def put(stand: Stand, file_id: str, part_no: int, content: bytes = CONTENT) -> tuple[int, Any]:
    part = content[part_no * PART : (part_no + 1) * PART]
    headers = {"Bitcache-Chunk-Digests": base64url.encode(digests.chunk_digests(part))}
    path = f"/files/{file_id}/parts/{part_no}"
    return await stand.as_seller("PUT", path, data=io.BytesIO(part), headers=headers)


async def complete(stand: Stand, file_id: str, content: bytes = CONTENT) -> tuple[int, Any]:
    root = base64url.encode(digests.root(digests.chunk_digests(content)))
    return await stand.as_seller("POST", f"/files/{file_id}/complete", json={"root": root})


def problem(answer: tuple[int, Any]) -> tuple[int, str]:
    status, body = answer
    return status, body.get("type", "") if isinstance(body, dict) else ""


def check_database(stand: Stand) -> None:
    path = stand.server.data_folder / "bitcache.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_a_full_disk_stops_what_writes_and_nothing_else(
    world: RegtestWorld, tmp_path: Path, disk: SmallDisk
) -> None:
    async with open_stand(world, tmp_path, data_folder=disk.folder / "data") as stand:
        source = goods(tmp_path)
        link = await stand.sell(source, price_sat=PRICE_SAT)
        paid = await stand.buy(link)
        await stand.pay(paid)
        await world.mine()
        await stand.until(paid, "settled")
        _, claimed = await stand.claim(paid)
        unpaid, secret = await stand.buy(link), os.urandom(32)
        begun, whole = await announce(stand, len(CONTENT)), await announce(stand, 1_000)
        assert (await put(stand, begun, 0))[0] == 204
        assert (await put(stand, whole, 0, CONTENT[:1_000]))[0] == 204

        disk.fill()
        assert problem(await put(stand, begun, 1)) == DISK_FULL
        assert problem(await complete(stand, whole, CONTENT[:1_000])) == DISK_FULL
        assert problem(await stand.ask(link, secret)) == DISK_FULL
        assert problem(await stand.as_seller("POST", "/tokens", json={"label": "more"})) == DISK_FULL
        payment = await stand.pay(unpaid)
        await world.mine()
        # Claiming writes nothing where the payment allows no more than it did.
        assert (await stand.claim(paid))[0] == 200
        assert await stand.fetch(paid) == parcel_of(source)
        file_id = claimed["files"][0]["file_id"]
        content = f"/offers/{link.offer_id}/files/{file_id}/content"
        ranged = {"Range": "bytes=0-99"}
        status, octets = await stand.request("GET", content, token=claimed["grant_token"], headers=ranged)
        assert (status, len(octets)) == (206, 100)
        for path in (f"//d/{link.offer_id}", f"//r/{paid.id}", "//", "//healthz", "//readyz", "//metrics"):
            assert (await stand.request("GET", path))[0] == 200, path
        async with Browser(stand) as browser:
            await browser.get(f"/d/{link.offer_id}")
            await browser.submit(f"/d/{link.offer_id}/pay")
            assert browser.status == 507
            assert "The disk of this server is full." in browser.text

        async def noticed() -> bool:
            return "could not be written down" in stand.server.log()

        await wait_until(noticed, "the watcher to fail to write the payment")
        assert (await stand.invoice(unpaid))["received_sat"] == 0

        disk.make_room()
        assert (await put(stand, begun, 1))[0] == 204
        for file_id, sent in ((begun, CONTENT), (whole, CONTENT[:1_000])):
            status, view = await complete(stand, file_id, sent)
            assert (status, view["state"]) == (200, "complete")
            blob = stand.server.data_folder / "blobs" / file_id[:2] / file_id
            assert hashlib.sha256(blob.read_bytes()).digest() == hashlib.sha256(sent).digest()
        settled = await stand.until(unpaid, "settled")
        assert [output["txid"] for output in settled["outputs"]] == [payment.txid]
        assert await stand.fetch(unpaid) == parcel_of(source)
        again = await stand.buy(link, claim_secret=secret)
        assert again.invoice["address"] not in {paid.invoice["address"], unpaid.invoice["address"]}
        _, earnings = await stand.as_seller("GET", "/earnings")
        assert (earnings["sales"], earnings["received_sat"]) == (2, 2 * PRICE_SAT)
        check_database(stand)

        # It does not start on a full disk, and says why.
        await stand.server.stop()
        disk.fill()
        with pytest.raises(ServerFailed, match="disk is full"):
            await stand.server.start()
        assert "Traceback" not in stand.server.log()
        disk.make_room()
        await stand.server.start()
        assert await stand.fetch(unpaid) == parcel_of(source)


async def test_a_disk_that_fails_is_told_until_it_works(world: RegtestWorld, tmp_path: Path) -> None:
    """The kernel refuses every write past a limit set on the running process: an I/O error for SQLite too."""
    async with open_stand(world, tmp_path) as stand:
        link = await stand.sell(goods(tmp_path), price_sat=PRICE_SAT)
        unpaid, secret = await stand.buy(link), os.urandom(32)
        begun = await announce(stand, len(CONTENT))
        pid = stand.server.pid
        wal = stand.server.data_folder / "bitcache.db-wal"
        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, unlimited[1]))
        assert problem(await put(stand, begun, 0)) == (503, "/problems/storage-unavailable")
        assert problem(await stand.ask(link, secret)) == UNAVAILABLE
        payment = await stand.pay(unpaid)
        await world.mine()
        assert (await stand.request("GET", f"//d/{link.offer_id}"))[0] == 200
        assert (await stand.invoice(unpaid))["received_sat"] == 0
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        assert (await put(stand, begun, 0))[0] == 204
        settled = await stand.until(unpaid, "settled")
        assert [output["txid"] for output in settled["outputs"]] == [payment.txid]
        await stand.buy(link, claim_secret=secret)
        check_database(stand)
