"""A blob that lost bytes: found by a buyer or a scrub, named, not sold until mended, and others go on."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from bitcache import doctor
from bitcache.db.tables import files, parcel_files
from bitcache.doctor import Verdict
from bitcache.ids import new_id
from bitcache.scrub import scrub, scrub_file
from payments.ports import Transaction
from regtest.node import wait_until
from regtest.world import RegtestWorld
from storage.errors import StoreUnavailable
from storage.local import LocalBlobStore
from storage.scrub import Pace
from storage.stream import CHUNK_SIZE_BYTES
from tests.command_server import quick_bitcache
from tests.test_storage_scrub import flip
from tests.till import Sold, Till, open_nodeless_till, open_till

PACE = Pace(1e12)


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


def path_of(till: Till, file_id: str) -> Path:
    return till.server.services.config.blobs / file_id[:2] / file_id


async def state_of(till: Till, sold: Sold) -> str:
    async with till.http.get(f"/api/v1/offers/{sold.offer_id}") as answer:
        return str((await answer.json())["state"])


async def scrubbed(till: Till) -> dict[str, list[int]]:
    found = [file async for file in scrub(till.server.services, pace=PACE)]
    assert [file.file_id for file in found] == sorted(file.file_id for file in found)
    return {file.file_id: file.damaged for file in found}


async def test_a_scrub_names_damage_and_ends_the_sale_until_it_is_mended(till: Till) -> None:
    sold = await till.offer(price_sat=0, sizes=(3 * CHUNK_SIZE_BYTES, 70))
    other = await till.offer(price_sat=0)
    assert await scrubbed(till) == {file_id: [] for file_id in (*sold.blobs, *other.blobs)}
    flip(path_of(till, sold.file_id), 2 * CHUNK_SIZE_BYTES)
    found = await scrubbed(till)
    assert found.pop(sold.file_id) == [2]
    assert not any(found.values())

    assert await state_of(till, sold) == "damaged"
    assert await state_of(till, other) == "open"
    async with till.ask(sold, os.urandom(32)) as answer:
        assert answer.status == 410
        assert "damaged" in (await answer.json())["detail"]
    finding = await doctor.check_files(till.server.services)
    assert finding.verdict is Verdict.WRONG
    assert sold.file_id in finding.words
    async with till.http.get("/metrics") as answer:
        assert "bitcache_damaged_files 1.0" in await answer.text()

    path_of(till, sold.file_id).write_bytes(sold.blobs[sold.file_id])
    assert (await scrub_file(till.server.services, sold.file_id, pace=PACE)).damaged == []
    assert await state_of(till, sold) == "open"
    assert (await doctor.check_files(till.server.services)).verdict is Verdict.OK


async def test_a_parcel_waits_for_all_its_files(till: Till) -> None:
    sold = await till.offer(price_sat=0, sizes=(100, 100))
    first, second = sold.blobs
    for file_id in sold.blobs:
        flip(path_of(till, file_id), 0)
    await scrubbed(till)
    path_of(till, first).write_bytes(sold.blobs[first])
    await scrubbed(till)
    assert await state_of(till, sold) == "damaged"
    path_of(till, second).write_bytes(sold.blobs[second])
    await scrubbed(till)
    assert await state_of(till, sold) == "open"


async def test_a_buyer_hears_of_a_lost_blob_keeps_the_right_and_others_are_served(till: Till) -> None:
    sold = await till.offer(price_sat=0, sizes=(5000, 6000))
    lost, kept = sold.blobs
    token = await till.token(await till.buy(sold))
    path_of(till, lost).unlink()
    async with till.http.get(sold.content, headers=token) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        problem = await answer.json()
    assert problem["type"] == "/problems/file-damaged"
    assert lost in problem["detail"]
    async with till.http.get(sold.content.replace(lost, kept), headers=token) as answer:
        assert await answer.read() == sold.blobs[kept]
    assert await state_of(till, sold) == "damaged"

    path_of(till, lost).write_bytes(sold.blobs[lost])
    async with till.http.get(sold.content, headers=token) as answer:
        assert await answer.read() == sold.blobs[lost]


async def test_a_blob_that_ends_early_is_found_while_it_is_sent(till: Till) -> None:
    sold = await till.offer(price_sat=0)
    token = await till.token(await till.buy(sold))
    async with till.http.get(sold.content, headers=token) as answer:
        assert await answer.read() == sold.blobs[sold.file_id]
    os.truncate(path_of(till, sold.file_id), 1000)

    async def damaged() -> bool:
        return await state_of(till, sold) == "damaged"

    with pytest.raises(aiohttp.ClientPayloadError):
        async with till.http.get(sold.content, headers=token) as answer:
            await answer.read()
    await wait_until(damaged, "the damage to be written down")
    assert await till.status_of(sold.content, token) == (503, "file-damaged"), "no second answer breaks off"


async def test_a_blob_that_is_lost_is_not_sought_by_nginx(tmp_path: Path) -> None:
    """Its 404 would be the buyer's answer, who paid, and nobody would hear of it."""
    behind: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "accel_redirect_prefix": "/inside"}
    async with open_nodeless_till(tmp_path, **behind) as till:
        sold = await till.offer(price_sat=0)
        headers = await till.token(await till.buy(sold)) | {"X-Forwarded-For": "203.0.113.9"}
        async with till.http.get(sold.content, headers=headers) as answer:
            assert answer.headers["X-Accel-Redirect"].startswith("/inside/")
        path_of(till, sold.file_id).unlink()
        assert await till.status_of(sold.content, headers) == (503, "file-damaged")
        assert await state_of(till, sold) == "damaged"


async def test_what_the_sweep_took_is_no_damage(till: Till) -> None:
    sold = await till.offer(price_sat=0)
    token = await till.token(await till.buy(sold))
    async with till.http.get(sold.content, headers=token) as answer:
        assert answer.status == 200

    async def forget(tx: Transaction) -> None:
        await tx.execute(parcel_files.delete())
        await tx.execute(files.delete())

    await till.server.services.database.write(forget)
    await till.server.services.blobs.delete(sold.file_id)
    assert await till.status_of(sold.content, token) == (410, "offer-gone")
    assert await state_of(till, sold) == "open"


async def doctor_says(*arguments: str) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        quick_bitcache(),
        *("doctor", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    return process.returncode or 0, told


async def test_the_command_reads_names_and_fails(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        config = till.server.services.config
        (config.data_folder / "bitcache.toml").write_text(
            f'network = "regtest"\nlisten = "{config.listen}"\n[node]\nrpc_url = "{config.node.rpc_url}"\n'
            'rpc_user = "none"\nrpc_password = "none"\n'
        )
        sold = await till.offer(price_sat=0, sizes=(2 * CHUNK_SIZE_BYTES, 100))
        flip(path_of(till, sold.file_id), CHUNK_SIZE_BYTES + 1)
        code, told = await doctor_says("--scrub", "--json", "--data", str(config.data_folder))
        assert code == 1, told
        found = json.loads(told)
        assert found["scrubbed"]["files"] == 2
        assert found["scrubbed"]["size_bytes"] == 2 * CHUNK_SIZE_BYTES + 100
        assert found["scrubbed"]["damaged"] == {sold.file_id: [1]}
        assert await state_of(till, sold) == "damaged"
        code, _ = await doctor_says("--file", sold.file_id, "--data", str(config.data_folder))
        assert code == 2, "without --scrub it would be left out without a word"


@pytest.mark.parametrize("served_before", [False, True])
async def test_a_disk_that_is_away_for_a_moment_damages_no_file(till: Till, served_before: bool) -> None:
    """An empty mount point has none of the files: that is not their loss, and sales go on with the disk."""
    sold = await till.offer(price_sat=0, sizes=(5000, 6000))
    token = await till.token(await till.buy(sold))
    blobs = till.server.services.config.blobs
    if served_before:
        assert (await till.status_of(sold.content, token))[0] == 200
    blobs.rename(blobs.with_name("unplugged"))
    blobs.mkdir()
    try:
        if served_before:
            with pytest.raises(aiohttp.ClientPayloadError):
                async with till.http.get(sold.content, headers=token) as answer:
                    await answer.read()
        else:
            assert await till.status_of(sold.content, token) == (503, "storage-unavailable")
        with pytest.raises(StoreUnavailable):
            await scrubbed(till)
    finally:
        blobs.rmdir()
        blobs.with_name("unplugged").rename(blobs)
    assert await state_of(till, sold) == "open"
    async with till.http.get(sold.content, headers=token) as answer:
        assert await answer.read() == sold.blobs[sold.file_id]


async def test_what_is_uploaded_goes_to_the_disk_or_nowhere(tmp_path: Path) -> None:
    """Under a disk that is not mounted it would be hidden when that comes back."""
    folder = tmp_path / "blobs"
    store = LocalBlobStore(folder)
    first, second = new_id(), new_id()
    await store.write_part(first, 0, b"kept")
    folder.rename(tmp_path / "unplugged")
    folder.mkdir()
    for file_id in (first, second):
        with pytest.raises(StoreUnavailable):
            await store.write_part(file_id, 0, b"lost")
    with pytest.raises(StoreUnavailable):
        await store.finish(first, 4)
    assert not any(folder.iterdir())
    folder.rmdir()
    (tmp_path / "unplugged").rename(folder)
    await store.write_part(second, 0, b"lost")
    await store.finish(first, 4)
    await store.close()


async def test_an_open_payment_page_says_not_to_pay(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path) as till:
        sold = await till.offer()
        receipt = f"/r/{(await till.buy(sold)).id}"
        async with till.http.get(receipt) as page:
            assert "bitcoin:" in await page.text()
        path_of(till, sold.file_id).unlink()
        await scrubbed(till)
        async with till.http.get(receipt) as page:
            text = await page.text()
        assert "Do not pay: some of these files are damaged" in text
        assert "bitcoin:" not in text
