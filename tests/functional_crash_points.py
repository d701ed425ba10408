"""SIGKILL at every commit point of a sale, and the client goes on: nothing is lost, nothing is done twice.

A real server process kills itself at a point between two writes (`tests.crashing_server`) and is started
again; the seller's or buyer's client repeats what it asked, with the same keys and secrets. The points of
each step are found by running it once and noting them, so a new one is covered by itself. Here all points
around money and a few of an upload; `make soak-crash` takes all of them, in an order that SEED decides.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from bitcache.client.errors import ClientError
from bitcache.client.link import Link
from regtest.node import wait_until
from regtest.wallet import Payment
from regtest.world import RegtestWorld
from storage.ports import PART_SIZE_BYTES
from tests import crashing_server
from tests.crashing_server import CHAIN, REQUESTS, Armed
from tests.stand import Bought, Stand, open_stand, parcel_of, wait_online

PRICE_SAT = 5_000
CRASHED = (ClientError, aiohttp.ClientError, OSError)
"""What a client sees of a server that is gone."""
UPLOAD_SAMPLE = ("blob half written", "blob _finish after")
SOAK = bool(os.environ.get("SOAK_CRASH"))
SEED = int(os.environ.get("SEED") or 1)

T = TypeVar("T")
Point = tuple[str, int]
"""Its name, and at which time of coming by."""
Step = Callable[[], Awaitable[T]]
"""Asks for something; again, it asks for the very same."""


@dataclass
class Drill:
    """One server, killed again and again, and what it must hold by now."""

    stand: Stand
    control: Path
    link: Link
    """Of the parcel that is bought, at PRICE_SAT."""
    goods: Path
    runs: int = 0
    uploads: int = 0
    bought: int = 0
    settled: int = 0
    txids: list[str] = field(default_factory=list)

    async def points(self, scope: str, step: Step[T]) -> tuple[list[Point], T]:
        """The points that `step` comes by, from one run of it."""
        self.runs += 1
        label = f"count {self.runs}"
        Armed(label, scope, "", 0).write(self.control)
        result = await step()
        (self.control / "armed").unlink()
        noted = (line.split("\t") for line in (self.control / "passed").read_text().splitlines())
        names = Counter(name for run, name in noted if run == label)
        return [(name, time) for name, count in sorted(names.items()) for time in range(1, count + 1)], result

    async def crash(self, scope: str, point: Point, step: Step[T]) -> T:
        """Kill the server at `point` of `step`, start it again, and let the client go on to the end."""
        self.runs += 1
        Armed(f"crash {self.runs}", scope, *point).write(self.control)
        # The answer may have been on its way.
        with suppress(*CRASHED):
            await step()

        async def gone() -> bool:
            return not self.stand.server.running

        await wait_until(gone, f"the server to come by {point}")
        (self.control / "armed").unlink()
        await self.stand.server.kill()  # what it left behind
        await self.stand.server.start()
        await wait_online(self.stand)
        return await step()

    async def upload(self, point: Point | None, rng: random.Random) -> list[Point]:
        """A parcel of two files, one of them in two parts; it is then downloaded."""
        source = self.stand.folder / f"goods {self.uploads}"
        source.mkdir()
        (source / "large.bin").write_bytes(rng.randbytes(PART_SIZE_BYTES + 50_000))
        (source / "small.txt").write_bytes(rng.randbytes(100))
        before = self.rows("files", "parcels", "offers")
        found, link = await self.done(REQUESTS, point, lambda: self.stand.sell(source))
        self.uploads += 1
        files, parcels, offers = (
            now - then for now, then in zip(self.rows("files", "parcels", "offers"), before, strict=True)
        )
        assert (files, parcels, offers) == (2, 1, 1), point
        blobs = self.stand.server.data_folder / "blobs"
        on_disk = sorted(path.name for path in blobs.rglob("*") if path.is_file())
        assert on_disk == sorted(self.select("SELECT id FROM files")), point
        free = await self.stand.buy(link)
        assert await self.stand.fetch(free) == parcel_of(source), point
        return found

    async def buy(self, point: Point | None) -> tuple[list[Point], Bought]:
        """An invoice; asked for again with the same secret it is the same one, with the same address."""
        before = self.rows("invoices", "grants")
        secret = os.urandom(32)
        found, bought = await self.done(
            REQUESTS, point, lambda: self.stand.buy(self.link, claim_secret=secret)
        )
        self.bought += 1
        assert [now - then for now, then in zip(self.rows("invoices", "grants"), before, strict=True)] == [
            1,
            1,
        ], point
        assert self.select("SELECT count(DISTINCT address) FROM invoices") == [self.bought], point
        # No index was left out either: a wallet bridges only so many.
        assert self.select("SELECT next_index FROM descriptors") == [self.bought], point
        return found, bought

    async def settle(self, point: Point | None) -> tuple[list[Point], Bought]:
        """Paid, seen, mined, booked once."""
        _, bought = await self.buy(None)
        payments: list[Payment] = []
        mined: list[str] = []

        async def settled() -> None:
            if not payments:
                payments.append(await self.stand.pay(bought))
            if not mined:
                await self.stand.until(bought, "seen")
                mined.extend(await self.stand.world.mine())
            await self.stand.until(bought, "settled")

        found, _ = await self.done(CHAIN, point, settled)
        self.settled += 1
        self.txids.append(payments[0].txid)
        self.check_books(point)
        return found, bought

    async def claim(self, point: Point | None, bought: Bought) -> list[Point]:
        """The same grant each time, and the key with it."""
        found, (status, claimed) = await self.done(REQUESTS, point, lambda: self.stand.claim(bought))
        assert status == 200, point
        (grant_id,) = self.select("SELECT id FROM grants WHERE invoice_id = ?", bought.id)
        assert claimed["grant_id"] == grant_id, point
        assert await self.stand.fetch(bought) == parcel_of(self.goods), point
        return found

    async def done(self, scope: str, point: Point | None, step: Step[T]) -> tuple[list[Point], T]:
        if point is None:
            return await self.points(scope, step)
        return [], await self.crash(scope, point, step)

    def check_books(self, point: Point | None) -> None:
        """Every payment is booked once, to the satoshi."""
        owed = self.select("SELECT txid FROM received_outputs")
        assert sorted(owed) == sorted(self.txids), point
        direct = self.select("SELECT sum(amount_msat) FROM transfers WHERE credit LIKE 'direct:%'")
        assert direct == [self.settled * PRICE_SAT * 1000], point
        chain = self.select("SELECT sum(amount_msat) FROM transfers WHERE debit = 'chain'")
        assert chain == direct, point

    def rows(self, *tables: str) -> list[int]:
        return [int(self.select(f"SELECT count(*) FROM {table}")[0]) for table in tables]

    def select(self, statement: str, *values: str) -> list[Any]:
        """The first column."""
        path = self.stand.server.data_folder / "bitcache.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return [row[0] for row in database.execute(statement, values)]


@asynccontextmanager
async def open_drill(world: RegtestWorld, folder: Path) -> AsyncIterator[Drill]:
    control, goods = folder / "control", folder / "goods"
    control.mkdir()
    goods.mkdir()
    (goods / "sold.bin").write_bytes(random.Random(SEED).randbytes(200_000))
    program = (sys.executable, Path(crashing_server.__file__), control)
    async with open_stand(world, folder, program=program) as stand:
        yield Drill(stand, control, await stand.sell(goods, price_sat=PRICE_SAT), goods)
        with closing(sqlite3.connect(stand.server.data_folder / "bitcache.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def chosen(points: Sequence[Point], rng: random.Random) -> list[Point]:
    """All in a soak, in some order; else a few."""
    if SOAK:
        return rng.sample(points, len(points))
    return [(name, 1) for name in UPLOAD_SAMPLE]


async def test_killed_at_every_commit_point_nothing_is_lost_or_done_twice(
    world: RegtestWorld, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    async with open_drill(world, tmp_path) as drill:
        buying, _ = await drill.buy(None)
        settling, paid = await drill.settle(None)
        claiming = await drill.claim(None, paid)
        uploading = await drill.upload(None, rng)
        for step, points in {
            "invoice": buying,
            "settlement": settling,
            "claim": claiming,
            "upload": uploading,
        }.items():
            print(f"{step}: {len(points)} points: {', '.join(f'{name} ({time})' for name, time in points)}")
        assert {name for name, _ in uploading} >= set(UPLOAD_SAMPLE)
        assert len(settling) >= 4, "seen and settled, before and after each commit"

        for point in rng.sample(buying, len(buying)):
            await drill.buy(point)
        for point in rng.sample(settling, len(settling)):
            await drill.settle(point)
        for point in rng.sample(claiming, len(claiming)):
            await drill.claim(point, paid)
        for point in chosen(uploading, rng):
            await drill.upload(point, rng)
        _, earnings = await drill.stand.as_seller("GET", "/earnings")
        assert earnings["received_sat"] == drill.settled * PRICE_SAT
        drill.check_books(None)
