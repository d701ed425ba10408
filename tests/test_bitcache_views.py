"""Counting views: in memory, added to sums per offer and UTC day; not the seller's own, never an address."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import insert, select

from bitcache import accounts
from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from bitcache.db.tables import offer_views, offers, parcels
from bitcache.ids import new_id
from bitcache.views import OfferViews, day_of
from payments.ports import Transaction
from tests.seller_browser import seller_browser
from tests.service import Clock, running_server
from tests.till import Till, open_nodeless_till

# 2026-03-10, half an hour before its end in UTC.
LATE = 1_773_185_400


@pytest_asyncio.fixture
async def database(each_with_tables: str) -> AsyncIterator[Database]:
    database = Database(each_with_tables)
    yield database
    await database.close()


async def new_offer(database: Database) -> str:
    offer_id, parcel_id = new_id(), new_id()

    async def put(tx: Transaction) -> None:
        account_id = await accounts.register(tx, name=offer_id, now=1)
        await tx.execute(
            insert(parcels).values(
                id=parcel_id,
                account_id=account_id,
                created_at=1,
                meterable=False,
                size_bytes=0,
                files_count=0,
            )
        )
        await tx.execute(
            insert(offers).values(
                id=offer_id,
                account_id=account_id,
                parcel_id=parcel_id,
                created_at=1,
                price_msat=0,
                bytes_at=0,
                key_at=0,
            )
        )

    await database.write(put)
    return offer_id


async def written(database: Database) -> dict[tuple[str, str], int]:
    rows = await database.read(lambda tx: tx.execute(select(offer_views)))
    return {(row.offer_id, row.day): row.views for row in rows.all()}


@pytest.mark.parametrize(
    ("at", "day"),
    [(0, "1970-01-01"), (LATE, "2026-03-10"), (LATE + 1_799, "2026-03-10"), (LATE + 1_800, "2026-03-11")],
)
def test_days_are_those_of_utc(at: int, day: str) -> None:
    assert day_of(at) == day


async def test_two_processes_add_up_day_by_day(database: Database) -> None:
    one, other = await new_offer(database), await new_offer(database)
    now = LATE
    first = OfferViews(store=database, clock=lambda: now)
    second = OfferViews(store=database, clock=lambda: now)
    for views, offer_id in ((first, one), (first, one), (first, other), (second, one)):
        views.count(offer_id)
    await first.poll_once()
    await second.poll_once()
    await second.poll_once()  # nothing is written twice
    now += 3_600
    first.count(one)
    await first.poll_once()
    assert await written(database) == {
        (one, "2026-03-10"): 3,
        (other, "2026-03-10"): 1,
        (one, "2026-03-11"): 1,
    }


async def test_many_offers_at_once_are_all_written(database: Database) -> None:
    offer_id = await new_offer(database)
    now = LATE
    views = OfferViews(store=database, clock=lambda: now)
    for day in range(1_201):
        now = LATE + day * 86_400
        views.count(offer_id)
    await views.poll_once()
    assert sum((await written(database)).values()) == 1_201


async def test_unknown_offers_leave_nothing_behind(database: Database) -> None:
    offer_id = await new_offer(database)
    views = OfferViews(store=database, clock=lambda: LATE)
    views.count(new_id())
    views.count(offer_id)
    await views.poll_once()
    assert await written(database) == {(offer_id, "2026-03-10"): 1}


async def test_memory_is_bounded_and_known_offers_go_on_counting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitcache.views.ENTRIES_MAX", 1)
    one, other = await new_offer(database), await new_offer(database)
    views = OfferViews(store=database, clock=lambda: LATE)
    for offer_id in (one, other, one):
        views.count(offer_id)
    await views.poll_once()
    assert await written(database) == {(one, "2026-03-10"): 2}
    views.count(other)  # there is room again
    await views.poll_once()
    assert (await written(database))[other, "2026-03-10"] == 1


async def test_what_could_not_be_written_is_written_the_next_time(each_database: str) -> None:
    database = Database(each_database)
    views = OfferViews(store=database, clock=lambda: LATE)
    views.count("a" * 26)
    with pytest.raises(Exception, match="offers"):
        await views.poll_once()  # there are no tables yet
    await upgrade(database)
    offer_id = await new_offer(database)
    views.count(offer_id)
    await views.poll_once()
    assert await written(database) == {(offer_id, "2026-03-10"): 1}
    await database.close()


# On the running server.


async def look(till: Till, offer_id: str, **headers: str) -> int:
    async with till.http.get(f"/d/{offer_id}", headers=headers) as answer:
        return answer.status


async def test_everybody_is_counted_but_the_seller_and_who_finds_nothing(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        sold, closed = await till.offer(), await till.offer(closed_at=1)
        services = till.server.services
        other = await till.server.new_seller()
        for offer_id in (sold.offer_id, sold.offer_id, closed.offer_id):
            assert await look(till, offer_id) == 200
        assert await look(till, new_id()) == 404
        async with seller_browser(till) as own, seller_browser(till, other.account_id) as rival:
            for browser in (own, rival):
                await browser.get(f"/d/{sold.offer_id}")
                assert browser.status == 200
        await services.views.poll_once()
        day = day_of(till.server.clock())
        assert await written(services.database) == {(sold.offer_id, day): 3, (closed.offer_id, day): 1}


async def test_views_survive_the_end_of_the_server(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        sold = await till.offer()
        assert await look(till, sold.offer_id) == 200
        assert await written(till.server.services.database) == {}
        day = day_of(Clock()())
    async with running_server(tmp_path) as server:
        assert await written(server.services.database) == {(sold.offer_id, day): 1}
