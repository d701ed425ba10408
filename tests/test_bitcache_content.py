"""Downloading ciphertext over real HTTP: ranges, refusals, limits."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from sqlalchemy import select, update

from bitcache import events
from bitcache.api.byte_range import requested_range
from bitcache.db.tables import grants, offers
from bitcache.errors import RangeUnsatisfiable
from bitcache.grant_tokens import GrantClaims, seal_token
from bitcache.grants import CONNECTIONS_MAX, OFFER_TOPIC, PARCELS_SERVED_MAX
from bitcache.ids import raw_id
from payments.ports import Transaction
from regtest.node import wait_until
from storage.stream import CHUNK_SIZE_BYTES
from tests.till import Bought, Sold, Till, open_nodeless_till

SIZE = CHUNK_SIZE_BYTES + 1234


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


async def free_sale(till: Till, sizes: tuple[int, ...] = (SIZE,)) -> tuple[Sold, Bought, dict[str, str]]:
    sold = await till.offer(price_sat=0, sizes=sizes)
    bought = await till.buy(sold)
    return sold, bought, await till.token(bought)


async def test_the_whole_file_comes_with_its_root_as_strong_etag(till: Till) -> None:
    sold, _, token = await free_sale(till)
    blob = sold.blobs[sold.file_id]
    async with till.http.get(sold.content, headers=token) as answer:
        assert answer.status == 200
        assert await answer.read() == blob
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Cache-Control"] == "private, no-transform"
        etag = answer.headers["ETag"]
    digests_url = sold.content.replace("/content", "/digests")
    async with till.http.get(digests_url) as answer:
        listed = await answer.read()
        assert answer.status == 200
        assert answer.headers["ETag"] == etag
        assert "public" in answer.headers["Cache-Control"]
    assert listed == b"".join(
        hashlib.sha256(blob[at : at + CHUNK_SIZE_BYTES]).digest() for at in (0, CHUNK_SIZE_BYTES)
    )


async def test_head_says_the_size_and_sends_nothing(till: Till) -> None:
    sold, _, token = await free_sale(till)
    async with till.http.head(sold.content, headers=token | {"Range": "bytes=0-3"}) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(SIZE)
        assert await answer.read() == b""
    # The line is still good for the next request.
    async with till.http.get(sold.content, headers=token | {"Range": "bytes=0-3"}) as answer:
        assert await answer.read() == sold.blobs[sold.file_id][:4]


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=1048576-1048576", 1048576, 1048576),
        ("bytes=5-99999999999", 5, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-99999999999", 0, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("Bytes=1-2", 1, 2),
    ],
)
async def test_a_range_is_cut_exactly(till: Till, header: str, first: int, last: int) -> None:
    sold, _, token = await free_sale(till)
    async with till.http.get(sold.content, headers=token | {"Range": header}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
        assert await answer.read() == sold.blobs[sold.file_id][first : last + 1]


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=99999999999-", "bytes=-0"])
async def test_a_range_beyond_the_end_is_416_with_the_size(till: Till, header: str) -> None:
    sold, _, token = await free_sale(till)
    async with till.http.get(sold.content, headers=token | {"Range": header}) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
        assert (await answer.json())["type"] == "/problems/range-unsatisfiable"


@pytest.mark.parametrize(
    "header",
    [
        "bytes=2-1",
        "bytes=a-b",
        "lines=0-1",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=0-1,3-4",
        "bytes=--1",
        "=0-1",
    ],
)
async def test_range_nonsense_gives_the_whole_file(till: Till, header: str) -> None:
    sold, _, token = await free_sale(till, (1000,))
    async with till.http.get(sold.content, headers=token | {"Range": header}) as answer:
        assert answer.status == 200
        assert await answer.read() == sold.blobs[sold.file_id]


async def test_if_range_decides_between_rest_and_whole(till: Till) -> None:
    sold, _, token = await free_sale(till, (1000,))
    async with till.http.head(sold.content, headers=token) as answer:
        etag = answer.headers["ETag"]
    rest = token | {"Range": "bytes=10-"}
    for condition, status in (
        (etag, 206),
        ('"other"', 200),
        (f"W/{etag}", 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
    ):
        async with till.http.get(sold.content, headers=rest | {"If-Range": condition}) as answer:
            assert answer.status == status, condition


@given(
    header=st.one_of(
        st.text(max_size=120),
        st.from_regex(r"bytes=[0-9]{0,22}-[0-9]{0,22}", fullmatch=True),
        st.from_regex(r"bytes=([0-9]{0,3}-[0-9]{0,3},?){1,4}", fullmatch=True),
    ),
    size=st.integers(1, 300),
)
def test_any_range_header_gives_bytes_of_the_file_or_416(header: str, size: int) -> None:
    try:
        chosen = requested_range(header, None, etag='"x"', size_bytes=size)
    except RangeUnsatisfiable:
        return
    assert 0 <= chosen.first < chosen.first + chosen.length <= size
    assert chosen.partial or chosen.length == size


async def test_without_a_grant_402(till: Till) -> None:
    sold = await till.offer()
    assert await till.status_of(sold.content, {}) == (402, "payment-required")


async def test_unknown_offers_and_files_are_not_found(till: Till) -> None:
    sold, _, token = await free_sale(till)
    nowhere = sold.content.replace(sold.offer_id, "a" * 26)
    assert (await till.status_of(nowhere, {}))[0] == 404
    assert (await till.status_of(sold.content.replace(sold.file_id, "a" * 26), token))[0] == 404
    assert (await till.status_of(sold.content.replace(sold.file_id, "..%2f..%2fetc"), token))[0] == 404
    assert (await till.status_of(nowhere.replace("/content", "/digests"), {}))[0] == 404


async def test_forged_expired_and_damaged_tokens_are_401(till: Till) -> None:
    sold, bought, token = await free_sale(till)
    good = token["Authorization"].removeprefix("Bearer ")
    _, claimed = await till.claim(bought)
    key = till.server.services.sealer.mac_key("grant-token")
    ids = (raw_id(claimed["grant_id"]), raw_id(sold.offer_id), raw_id(sold.parcel_id))
    now = till.server.clock()
    unknown = GrantClaims(bytes(16), ids[1], ids[2], now + 100)
    for bad in (
        good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
        good[:20] + ("A" if good[20] != "A" else "B") + good[21:],
        good[:-1],
        "bcg_",
        "bcs_" + "a" * 52,
        "bcg_" + "!" * 119,
        seal_token(b"another server's key" + bytes(12), GrantClaims(*ids, now + 100)),
        seal_token(key, GrantClaims(*ids, now)),
        seal_token(key, unknown),
    ):
        assert await till.status_of(sold.content, {"Authorization": f"Bearer {bad}"}) == (
            401,
            "token-invalid",
        ), bad
    assert (await till.status_of(sold.content, token))[0] == 200
    till.server.clock.advance(901)
    assert await till.status_of(sold.content, token) == (401, "token-invalid")


async def test_a_grant_of_another_offer_is_403(till: Till) -> None:
    _, _, token = await free_sale(till)
    other = await till.offer(price_sat=0)
    assert await till.status_of(other.content, token) == (403, "grant-foreign")


async def test_a_takedown_is_451_for_everybody(till: Till) -> None:
    sold, bought, token = await free_sale(till)
    assert (await till.status_of(sold.content, token))[0] == 200

    async def take_down(tx: Transaction) -> None:
        now = till.server.clock()
        await tx.execute(update(offers).where(offers.c.id == sold.offer_id).values(taken_down_at=now))
        await events.append(tx, topic=OFFER_TOPIC, subject=sold.offer_id, payload=Struct(), now=now)

    await till.server.services.database.write(take_down)

    async def refused() -> bool:
        return await till.status_of(sold.content, token) == (451, "taken-down")

    await wait_until(refused, "the feed to tell of the takedown")
    assert await till.status_of(sold.content, {}) == (451, "taken-down")
    assert await till.status_of(sold.content.replace("/content", "/digests"), {}) == (451, "taken-down")
    status, problem = await till.claim(bought)
    assert (status, problem["type"]) == (451, "/problems/taken-down")


async def test_a_parcel_can_be_fetched_twenty_times_and_no_more(till: Till) -> None:
    sold, _, token = await free_sale(till, (1000,))
    for _ in range(PARCELS_SERVED_MAX):
        assert (await till.status_of(sold.content, token))[0] == 200
    assert await till.status_of(sold.content, token) == (429, "grant-exhausted")
    # Counted for good: a restart forgives nothing.
    await till.server.services.grants.flush()
    served = await till.server.services.database.read(lambda tx: tx.scalar(select(grants.c.bytes_served)))
    assert served == 1000 * PARCELS_SERVED_MAX


async def test_refused_ranges_cost_nothing(till: Till) -> None:
    sold, _, token = await free_sale(till, (1000,))
    for _ in range(PARCELS_SERVED_MAX + 1):
        assert (await till.status_of(sold.content, token | {"Range": "bytes=1000-"}))[0] == 416
    assert (await till.status_of(sold.content, token))[0] == 200


async def test_four_downloads_at_once_and_the_fifth_waits(till: Till) -> None:
    sold, _, token = await free_sale(till, (8 * CHUNK_SIZE_BYTES,))
    running = [await till.http.get(sold.content, headers=token) for _ in range(CONNECTIONS_MAX)]
    async with till.http.get(sold.content, headers=token) as answer:
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) > 0
    for answer in running:
        assert await answer.read() == sold.blobs[sold.file_id]
    assert (await till.status_of(sold.content, token))[0] == 200


async def test_a_broken_download_frees_its_place_and_what_it_did_not_send(till: Till) -> None:
    sold, _, token = await free_sale(till, (8 * CHUNK_SIZE_BYTES,))
    for _ in range(PARCELS_SERVED_MAX + CONNECTIONS_MAX):
        answer = await till.http.get(sold.content, headers=token)
        await answer.content.readexactly(10)
        answer.close()
        await _until_idle(till)
    assert (await till.status_of(sold.content, token))[0] == 200


async def _until_idle(till: Till) -> None:
    """The server has noticed that nobody reads any more."""
    book = till.server.services.grants
    async with asyncio.timeout(20):
        while any(entry.connections for entry in book._entries.values()):
            await asyncio.sleep(0.01)
