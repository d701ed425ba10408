"""PostgreSQL is stopped, crashes and comes back under a server with a buyer, a seller and a real node.

Meanwhile every request is answered 503 `database-unavailable` with a Retry-After, never 500 and never an
empty success; afterwards the same server goes on, and finds what was paid meanwhile.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import select

from bitcache.api import events_stream
from bitcache.db.tables import files
from bitcache.errors import DatabaseUnavailable
from regtest.node import wait_until
from regtest.world import RegtestWorld
from storage import base64url
from tests.postgres import PostgresCluster, find_programs
from tests.service import running_server
from tests.test_bitcache_sse import reading
from tests.till import Bought, Sold, Till, open_till

LANES = 4
UNAVAILABLE = (503, "database-unavailable")


@pytest.fixture
def cluster() -> Iterator[PostgresCluster]:
    """One that a test may stop; the shared one is others' too."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    cluster = PostgresCluster(programs, durable=True)
    yield cluster
    cluster.close()


async def ask(
    http: aiohttp.ClientSession, method: str, path: str, **options: object
) -> tuple[int, str, str | None]:
    """(status, problem's name or "", Retry-After)."""
    async with http.request(method, path, **options) as answer:  # type: ignore[arg-type]
        name = ""
        if answer.content_type == "application/problem+json":
            name = str((await answer.json())["type"]).removeprefix("/problems/")
        return answer.status, name, answer.headers.get("Retry-After")


def requests_of(till: Till, sold: Sold, bought: Bought) -> list[tuple[str, str, dict[str, object]]]:
    """One request of each kind: reading, creating, uploading, paying, claiming."""
    claim_hash = base64url.encode(hashlib.sha256(os.urandom(32)).digest())
    seller = {"Authorization": f"Bearer {till.account.token}"}
    part_digests = {"Bitcache-Chunk-Digests": base64url.encode(hashlib.sha256(bytes(1000)).digest())}
    return [
        ("GET", f"/api/v1/offers/{sold.offer_id}", {}),
        ("POST", f"/api/v1/offers/{sold.offer_id}/invoices", {"json": {"claim_hash": claim_hash}}),
        ("GET", f"/api/v1/invoices/{bought.id}", {}),
        ("GET", f"/api/v1/invoices/{bought.id}/events", {}),
        (
            "POST",
            f"/api/v1/invoices/{bought.id}/claim",
            {"json": {"claim_secret": base64url.encode(bought.claim_secret)}},
        ),
        ("GET", "/api/v1/account", {"headers": seller}),
        ("POST", "/api/v1/files", {"json": {"size_bytes": 1000}, "headers": seller}),
        (
            "PUT",
            f"/api/v1/files/{sold.file_id}/parts/0",
            {"data": bytes(1000), "headers": seller | part_digests},
        ),
    ]


async def all_unavailable(till: Till, sold: Sold, bought: Bought) -> None:
    for method, path, options in requests_of(till, sold, bought):
        status, name, retry_after = await ask(till.http, method, path, **options)
        assert (status, name) == UNAVAILABLE, (method, path)
        assert int(retry_after or 0) > 0
    async with till.http.get(f"/d/{sold.offer_id}", headers={"Accept-Language": "en"}) as answer:
        assert answer.status == 503
        assert "The database of this server does not answer." in await answer.text()
    async with till.http.get("/healthz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "degraded")
    async with till.http.get("/readyz") as answer:
        assert answer.status == 503
    async with till.http.get("/metrics") as answer:
        assert "bitcache_database_online 0.0" in await answer.text()


@asynccontextmanager
async def open_shop(world: RegtestWorld, cluster: PostgresCluster, folder: Path) -> AsyncIterator[Till]:
    cluster.create_database("shop")
    async with open_till(world, folder, database_url=cluster.url("shop")) as till:
        yield till


@pytest.mark.parametrize("how", ["stopped", "crashed"])
async def test_requests_wait_for_a_database_that_was(
    how: str, world: RegtestWorld, cluster: PostgresCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_stream, "PING_INTERVAL_S", 0.2)
    async with open_shop(world, cluster, tmp_path) as till:
        sold = await till.offer(price_sat=5_000)
        paid, unpaid = await till.paid(sold), await till.buy(sold)
        token = await till.token(paid)
        assert (await till.status_of(sold.content, token))[0] == 200
        async with reading(till, unpaid) as reader:
            assert (await reader.event())[1]["status"] == "open"

            if how == "stopped":
                cluster.stop()
            else:
                cluster.crash()
            await all_unavailable(till, sold, unpaid)
            # What a grant in use may have is known without the database.
            assert (await till.status_of(sold.content, token | {"Range": "bytes=0-0"}))[0] == 206
            payment = await till.pay(unpaid)
            await world.mine()

            cluster.start()
            # The stream that was open all the time tells of what came meanwhile.
            settled = await reader.until("settled")
            assert settled["outputs"][0]["txid"] == payment.txid
        view = await till.until(unpaid, lambda view: bool(view["key_allowed"]), "what was paid meanwhile")
        assert view["received_sat"] == 5_000
        for method, path, options in requests_of(till, sold, unpaid):
            if not path.endswith(("/events", "/parts/0")):
                status, name, _ = await ask(till.http, method, path, **options)
                assert status in (200, 201), (method, path, name)
        async with till.http.get("/metrics") as answer:
            assert "bitcache_database_online 1.0" in await answer.text()


async def test_cut_in_the_middle_of_commits_nothing_is_done_twice(
    cluster: PostgresCluster, tmp_path: Path
) -> None:
    """Sellers announce files, again until each is answered, while the database is stopped and crashes."""
    seen: list[tuple[int, str]] = []
    announced: dict[str, str] = {}
    stopping = asyncio.Event()
    cluster.create_database("shop")
    async with running_server(tmp_path, database_url=cluster.url("shop")) as server:
        seller = await server.new_seller()

        async def announce(http: aiohttp.ClientSession, key: str) -> None:
            while key not in announced:
                headers = {"Idempotency-Key": key}
                async with http.post("/api/v1/files", json={"size_bytes": 1000}, headers=headers) as answer:
                    view = await answer.json()
                    seen.append((answer.status, str(view.get("type", ""))))
                    if answer.status == 201:
                        announced[key] = view["file_id"]

        async def announce_many(http: aiohttp.ClientSession, lane: int) -> None:
            for number in count():
                if stopping.is_set():
                    return
                await announce(http, f"{lane}-{number}")

        async def answered(*, with_status: int, since: int) -> bool:
            return any(status == with_status for status, _ in seen[since:])

        async with server.session(seller.token) as http, asyncio.TaskGroup() as tasks:
            for lane in range(LANES):
                tasks.create_task(announce_many(http, lane))
            try:
                for end in (cluster.stop, cluster.crash):
                    for step, status in ((None, 201), (end, 503), (cluster.start, 201)):
                        since = len(seen)
                        if step is not None:
                            await asyncio.to_thread(step)
                            since = len(seen)
                        await wait_until(partial(answered, with_status=status, since=since), f"a {status}")
            finally:
                stopping.set()
        assert set(seen) == {(201, ""), (503, "/problems/database-unavailable")}
        stored = await server.services.database.read(lambda tx: tx.scalars(select(files.c.id)))
        assert sorted(stored) == sorted(announced.values())


async def test_a_server_does_not_start_without_its_database(cluster: PostgresCluster, tmp_path: Path) -> None:
    cluster.stop()
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        async with running_server(tmp_path, database_url=cluster.url()):
            pass
    cluster.start()
