"""Parcels and offers over real HTTP, and what the sweep takes away and leaves."""

import hashlib
import io
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import insert, update

from bitcache.db.tables import grants, offers
from bitcache.ids import new_id
from bitcache.role import Role
from storage import base64url
from tests.service import RunningServer, running_server

SIZE = 100_000
SAT = 1000
DAY_S = 86_400
WRAPPED = base64url.encode(bytes(60))
SEAL = {"metadata": base64url.encode(b"sealed names"), "release_secret": base64url.encode(bytes(32))}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def http(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with server.session((await server.new_seller("Ada")).token) as http:
        yield http


async def ask(http: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """(status, JSON body); of a problem its name."""
    data = None if body is None else io.BytesIO(json.dumps(body).encode())
    async with http.request(method, f"/api/v1{path}", data=data) as answer:
        if answer.status == 204:
            return 204, None
        document = await answer.json(content_type=None)
        if answer.status >= 400:
            assert answer.content_type == "application/problem+json"
            return answer.status, document["type"].removeprefix("/problems/")
        return answer.status, document


async def upload(http: aiohttp.ClientSession, *, complete: bool = True) -> str:
    content = os.urandom(SIZE)
    _, view = await ask(http, "POST", "/files", {"size_bytes": SIZE})
    file_id = str(view["file_id"])
    digest = hashlib.sha256(content).digest()
    headers = {"Bitcache-Chunk-Digests": base64url.encode(digest)}
    async with http.put(f"/api/v1/files/{file_id}/parts/0", data=content, headers=headers) as answer:
        assert answer.status == 204
    if complete:
        root = base64url.encode(hashlib.sha256(digest).digest())
        status, _ = await ask(http, "POST", f"/files/{file_id}/complete", {"root": root})
        assert status == 200
    return file_id


async def make_parcel(http: aiohttp.ClientSession, *file_ids: str, **more: object) -> tuple[int, Any]:
    listed = [{"file_id": file_id, "wrapped_key": WRAPPED} for file_id in file_ids]
    return await ask(http, "POST", "/parcels", {"files": listed, **more})


async def sealed_parcel(http: aiohttp.ClientSession, **more: object) -> str:
    _, parcel = await make_parcel(http, await upload(http), **more)
    status, sealed = await ask(http, "POST", f"/parcels/{parcel['parcel_id']}/seal", SEAL)
    assert (status, sealed["state"]) == (200, "sealed")
    return str(parcel["parcel_id"])


async def make_offer(
    http: aiohttp.ClientSession, parcel_id: str, price_sat: int = 5000, **more: object
) -> tuple[int, Any]:
    price = {"kind": "fixed", "amount_msat": price_sat * SAT}
    return await ask(http, "POST", "/offers", {"parcel_id": parcel_id, "price": price, **more})


async def test_a_parcel_holds_complete_files_of_its_seller(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    whole, partial = await upload(http), await upload(http, complete=False)
    status, parcel = await make_parcel(http, whole, await upload(http))
    assert status == 201
    assert (parcel["state"], parcel["files_count"], parcel["size_bytes"]) == ("open", 2, 2 * SIZE)
    assert await make_parcel(http, partial) == (409, "file-incomplete")
    assert await make_parcel(http, whole, whole) == (422, "invalid-value")
    assert await make_parcel(http) == (422, "invalid-value")
    assert await make_parcel(http, new_id()) == (404, "not-found")
    async with server.session((await server.new_seller()).token) as other:
        assert await make_parcel(other, whole) == (404, "not-found")
    assert await ask(http, "DELETE", f"/files/{whole}") == (409, "file-in-use")


async def test_malformed_parcels_are_refused(http: aiohttp.ClientSession) -> None:
    file_id = await upload(http)
    for listed in (
        [{"file_id": file_id, "wrapped_key": "short"}],
        [{"file_id": "../../etc/passwd", "wrapped_key": WRAPPED}],
        [{"file_id": file_id, "wrapped_key": WRAPPED, "path": "secret.txt"}],
        [{"file_id": file_id}],
        "none",
    ):
        assert await ask(http, "POST", "/parcels", {"files": listed}) == (422, "invalid-value")


async def test_a_sealed_parcel_never_changes(http: aiohttp.ClientSession) -> None:
    parcel_id = await sealed_parcel(http)
    status, _ = await ask(http, "POST", f"/parcels/{parcel_id}/seal", SEAL)
    assert status == 200, "the same again is harmless"
    for change in ({"metadata": base64url.encode(b"x")}, {"release_secret": base64url.encode(b"\1" * 32)}):
        assert await ask(http, "POST", f"/parcels/{parcel_id}/seal", SEAL | change) == (409, "parcel-sealed")


async def test_metadata_is_bounded_and_secrets_have_their_length(http: aiohttp.ClientSession) -> None:
    _, parcel = await make_parcel(http, await upload(http))
    path = f"/parcels/{parcel['parcel_id']}/seal"
    at_most = base64url.encode(bytes(4 << 20))
    too_much = base64url.encode(bytes((4 << 20) + 1))
    assert await ask(http, "POST", path, SEAL | {"metadata": too_much}) == (413, "metadata-too-large")
    assert await ask(http, "POST", path, SEAL | {"metadata": "A" * (7 << 20)}) == (413, "too-large")
    assert await ask(http, "POST", path, SEAL | {"release_secret": base64url.encode(bytes(31))}) == (
        422,
        "invalid-value",
    )
    # 43 characters carry two bits too many: they must be zero.
    assert await ask(http, "POST", path, SEAL | {"release_secret": "A" * 42 + "B"}) == (422, "invalid-value")
    status, _ = await ask(http, "POST", path, SEAL | {"metadata": at_most})
    assert status == 200


async def test_the_release_secret_is_not_in_the_database(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    secret = os.urandom(32)
    _, parcel = await make_parcel(http, await upload(http))
    body = SEAL | {"release_secret": base64url.encode(secret)}
    await ask(http, "POST", f"/parcels/{parcel['parcel_id']}/seal", body)
    folder = server.services.config.data_folder
    stored = b"".join(path.read_bytes() for path in folder.glob("bitcache.db*"))
    assert secret not in stored
    assert base64url.encode(secret).encode() not in stored


async def test_an_offer_is_seen_by_anyone_and_changed_by_its_seller(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    parcel_id = await sealed_parcel(http)
    status, offer = await make_offer(http, parcel_id, max_downloads=3)
    assert (status, offer["state"], offer["sales"]) == (201, "open", 0)
    path = f"/offers/{offer['offer_id']}"
    async with server.session() as anyone:
        status, view = await ask(anyone, "GET", path)
        assert status == 200
        assert view["seller_name"] == "Ada"
        assert view["metadata"] == SEAL["metadata"]
        assert view["downloads_left"] == 3
        assert view["price"] == {"kind": "fixed", "amount_msat": 5_000_000}
        assert [file["size_bytes"] for file in view["files"]] == [SIZE]
        assert await ask(anyone, "PATCH", path, {"closed": True}) == (401, "token-missing")
    async with server.session((await server.new_seller()).token) as other:
        assert await ask(other, "PATCH", path, {"closed": True}) == (404, "not-found")
        assert await ask(other, "DELETE", path) == (404, "not-found")
    patch = {"price": {"kind": "fixed", "amount_msat": 7_000_000}, "max_downloads": None}
    status, offer = await ask(http, "PATCH", path, patch)
    assert (offer["price"]["amount_msat"], offer["max_downloads"]) == (7_000_000, None)
    for _ in range(2):
        assert await ask(http, "DELETE", path) == (204, None)
    assert (await ask(http, "GET", path))[1]["state"] == "closed"
    assert await ask(http, "PATCH", path, patch) == (409, "offer-not-open")


@pytest.mark.parametrize(
    "amount_msat",
    [-1, -1000, 999_000, 1, 1500, 5_000_500, 1000.5, "5000", 10**30, 2_100_000_000_000_001_000, None],
)
async def test_prices_that_make_no_sense_are_refused(
    http: aiohttp.ClientSession, amount_msat: object
) -> None:
    body = {"parcel_id": await sealed_parcel(http), "price": {"kind": "fixed", "amount_msat": amount_msat}}
    assert await ask(http, "POST", "/offers", body) == (422, "invalid-value")


async def test_terms_that_make_no_sense_are_refused(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    parcel_id = await sealed_parcel(http)
    past = server.clock() - 1
    for more in (
        {"expires_at": past},
        {"max_downloads": 0},
        {"policy": {"bytes_at": 2, "key_at": 1}},
        {"policy": {"bytes_at": 0, "key_at": 101}},
        {"policy": {"bytes_at": 1, "key_at": 1, "extra": 1}},
        {"hidden": True},
    ):
        assert await make_offer(http, parcel_id, **more) == (422, "invalid-value"), more
    assert await make_offer(http, parcel_id, 10_001, policy={"bytes_at": 0, "key_at": 0}) == (
        422,
        "invalid-value",
    )
    status, offer = await make_offer(http, parcel_id, 10_000, policy={"bytes_at": 0, "key_at": 0})
    assert status == 201
    dearer = {"price": {"kind": "fixed", "amount_msat": 10_001_000}}
    assert await ask(http, "PATCH", f"/offers/{offer['offer_id']}", dearer) == (422, "invalid-value")
    assert (await make_offer(http, parcel_id, 0))[0] == 201
    assert (await make_offer(http, parcel_id, 1000))[0] == 201


async def test_a_meterable_parcel_never_gives_bytes_before_the_key(http: aiohttp.ClientSession) -> None:
    parcel_id = await sealed_parcel(http, meterable=True)
    assert await make_offer(http, parcel_id, policy={"bytes_at": 0, "key_at": 1}) == (422, "invalid-value")
    assert await make_offer(http, parcel_id, policy={"bytes_at": 1, "key_at": 3}) == (422, "invalid-value")
    assert (await make_offer(http, parcel_id))[0] == 201
    assert (await make_offer(http, parcel_id, policy={"bytes_at": 3, "key_at": 3}))[0] == 201


async def test_the_operator_may_forbid_prefetch(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, prefetch_allowed=False) as server,
        server.session((await server.new_seller()).token) as http,
    ):
        parcel_id = await sealed_parcel(http)
        assert await make_offer(http, parcel_id, policy={"bytes_at": 0}) == (422, "invalid-value")


async def test_an_unsealed_parcel_is_not_offered(http: aiohttp.ClientSession) -> None:
    _, parcel = await make_parcel(http, await upload(http))
    assert await make_offer(http, parcel["parcel_id"]) == (409, "parcel-not-sealed")
    assert await make_offer(http, new_id()) == (404, "not-found")


async def test_an_offer_expires(server: RunningServer, http: aiohttp.ClientSession) -> None:
    parcel_id = await sealed_parcel(http)
    _, offer = await make_offer(http, parcel_id, expires_at=server.clock() + 100)
    server.clock.advance(101)
    assert (await ask(http, "GET", f"/offers/{offer['offer_id']}"))[1]["state"] == "expired"


async def test_lists_are_paged_newest_first(http: aiohttp.ClientSession) -> None:
    parcel_id = await sealed_parcel(http)
    made = {(await make_offer(http, parcel_id))[1]["offer_id"] for _ in range(5)}
    seen: list[str] = []
    after = ""
    while True:
        _, page = await ask(http, "GET", f"/offers?limit=2{after}")
        seen += [offer["offer_id"] for offer in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert len(seen) == 5
    assert set(seen) == made
    _, parcels = await ask(http, "GET", "/parcels")
    assert parcels["items"][0]["parcel_id"] == parcel_id
    assert set(parcels["items"][0]["offers"]) == made
    for query in ("limit=0", "limit=201", "limit=x", "after=nonsense", "sort=price"):
        assert await ask(http, "GET", f"/offers?{query}") == (400, "bad-request")
    assert await ask(http, "GET", f"/offers?after={new_id()}") == (404, "not-found")


async def test_a_deleted_parcel_closes_its_offers_and_goes(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    parcel_id = await sealed_parcel(http)
    _, offer = await make_offer(http, parcel_id)
    assert await ask(http, "DELETE", f"/parcels/{parcel_id}") == (204, None)
    assert await ask(http, "GET", f"/parcels/{parcel_id}") == (404, "not-found")
    assert (await ask(http, "GET", f"/offers/{offer['offer_id']}"))[1]["state"] == "closed"
    server.clock.advance(server.services.config.upload_expiry_s + 1)
    await server.services.sweep.poll_once()
    assert [blob.file_id async for blob in server.services.blobs.list()] == []
    assert await ask(http, "GET", f"/offers/{offer['offer_id']}") == (410, "offer-gone")
    assert (await ask(http, "GET", "/account"))[1]["bytes_stored"] == 0


async def test_a_buyers_right_outlives_the_parcel(server: RunningServer, http: aiohttp.ClientSession) -> None:
    parcel_id = await sealed_parcel(http)
    _, offer = await make_offer(http, parcel_id)
    ends_at = server.clock() + 90 * DAY_S
    await server.services.database.write(
        lambda tx: tx.execute(
            insert(grants).values(
                id=new_id(),
                invoice_id=new_id(),
                offer_id=offer["offer_id"],
                parcel_id=parcel_id,
                created_at=0,
                bytes_allowed=True,
                key_allowed=True,
                retained_until=ends_at,
                bytes_served=0,
            )
        )
    )
    await ask(http, "DELETE", f"/parcels/{parcel_id}")
    server.clock.advance(90 * DAY_S - 10)
    await server.services.sweep.poll_once()
    assert len([blob async for blob in server.services.blobs.list()]) == 1
    server.clock.advance(20)
    await server.services.sweep.poll_once()
    assert [blob async for blob in server.services.blobs.list()] == []


async def test_the_sweep_takes_abandoned_uploads_and_orphans_only(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    kept_parcel = await sealed_parcel(http)
    abandoned = await upload(http, complete=False)
    orphan = new_id()
    await server.services.blobs.write_part(orphan, 0, b"nobody's")
    await server.services.sweep.poll_once()
    assert len([blob async for blob in server.services.blobs.list()]) == 3
    server.clock.advance(server.services.config.upload_expiry_s + 1)
    await server.services.sweep.poll_once()
    left = [blob.file_id async for blob in server.services.blobs.list()]
    assert len(left) == 1
    assert left[0] not in {abandoned, orphan}
    assert await ask(http, "GET", f"/files/{abandoned}") == (404, "not-found")
    assert (await ask(http, "GET", f"/parcels/{kept_parcel}"))[0] == 200


async def test_an_old_blob_outlives_the_restoring_of_an_older_backup(tmp_path: Path) -> None:
    # A web process has no sweep of its own that would come in between.
    async with running_server(tmp_path, role=Role.WEB) as server:
        server.clock.advance(365 * DAY_S)
        await server.services.blobs.write_part(new_id(), 0, b"uploaded after the backup, a year ago")
        for wait_s, left in ((0, 1), (7 * DAY_S - 10, 1), (20, 0)):
            server.clock.advance(wait_s)
            await server.services.sweep.poll_once()
            assert len([blob async for blob in server.services.blobs.list()]) == left


async def test_a_takedown_shows_in_the_offer(server: RunningServer, http: aiohttp.ClientSession) -> None:
    _, offer = await make_offer(http, await sealed_parcel(http))
    await server.services.database.write(lambda tx: tx.execute(update(offers).values(taken_down_at=1)))
    assert (await ask(http, "GET", f"/offers/{offer['offer_id']}"))[1]["state"] == "taken_down"
