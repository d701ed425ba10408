"""Requests that meet: on SQLite and on PostgreSQL one of them wins, and the others are told in words."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest_asyncio

from tests.test_bitcache_catalog import ask, make_parcel, upload
from tests.till import Till, open_nodeless_till

AT_ONCE = 12
ACCOUNT_BYTES_MAX = 50 << 20


@pytest_asyncio.fixture
async def till(tmp_path: Path, each_with_tables: str) -> AsyncIterator[Till]:
    async with open_nodeless_till(
        tmp_path, database_url=each_with_tables, registration="open", account_bytes_max=ACCOUNT_BYTES_MAX
    ) as till:
        yield till


def seller(till: Till) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    return till.server.session(till.account.token)


async def test_a_name_is_given_once(till: Till) -> None:
    for name in ("Ada", "École"):
        asked = [ask(till.http, "POST", "/accounts", {"name": name}) for _ in range(4)]
        answers = sorted((status, body) for status, body in await asyncio.gather(*asked) if status != 201)
        assert answers == [(409, "name-taken")] * 3


async def test_one_idempotency_key_makes_one_file(till: Till) -> None:
    async with seller(till) as http:

        async def announced() -> tuple[int, str]:
            headers = {"Idempotency-Key": "once"}
            async with http.post("/api/v1/files", json={"size_bytes": 100}, headers=headers) as answer:
                return answer.status, await answer.text()

        answers = set(await asyncio.gather(*(announced() for _ in range(AT_ONCE))))
        assert [status for status, _ in answers] == [201]


async def test_announcements_at_once_do_not_pass_the_cap(till: Till) -> None:
    async with seller(till) as http:
        asked = [ask(http, "POST", "/files", {"size_bytes": ACCOUNT_BYTES_MAX // 5}) for _ in range(AT_ONCE)]
        statuses = Counter(status for status, _ in await asyncio.gather(*asked))
    assert statuses == {201: 5, 413: AT_ONCE - 5}


async def test_the_last_copies_go_to_as_many_buyers(till: Till) -> None:
    sold = await till.offer(price_sat=0, max_downloads=3)

    async def asked() -> int:
        async with till.ask(sold, os.urandom(32)) as answer:
            return int(answer.status)

    statuses = Counter(await asyncio.gather(*(asked() for _ in range(AT_ONCE))))
    assert statuses == {201: 3, 410: AT_ONCE - 3}


async def test_one_claim_hash_is_one_invoice_and_its_claims_one_grant(till: Till) -> None:
    sold, secret = await till.offer(price_sat=0), os.urandom(32)
    bought = await asyncio.gather(*(till.buy(sold, secret=secret) for _ in range(AT_ONCE)))
    assert len({one.id for one in bought}) == 1
    claims = await asyncio.gather(*(till.claim(one) for one in bought))
    assert {(status, claimed["grant_id"]) for status, claimed in claims} == {(200, claims[0][1]["grant_id"])}


async def test_what_the_sweep_takes_is_in_no_parcel(till: Till) -> None:
    """Files past their time, put into parcels while the sweep runs: each is kept whole or gone whole."""
    services = till.server.services
    async with seller(till) as http:
        file_ids = [await upload(http) for _ in range(6)]
        till.server.clock.advance(services.config.upload_expiry_s + 1)
        made, _ = await asyncio.gather(
            asyncio.gather(*(make_parcel(http, file_id) for file_id in file_ids)), services.sweep.poll_once()
        )
    assert {status for status, _ in made} <= {201, 404}
    kept = {file_id for file_id, (status, _) in zip(file_ids, made, strict=True) if status == 201}
    assert {blob.file_id async for blob in services.blobs.list()} == kept
