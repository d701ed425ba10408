"""`Database.write` serialises writers, on SQLite and on PostgreSQL; events keep the order of commits."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from msgspec import Struct
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from bitcache import events
from bitcache.db.engine import DATABASE_TROUBLE, Database
from bitcache.db.tables import accounts
from bitcache.events import Event, EventFeed, Reload
from payments.ports import Transaction

WRITERS = 200


class Told(Struct, frozen=True):
    number: int


@pytest_asyncio.fixture
async def database(each_with_tables: str) -> AsyncIterator[Database]:
    database = Database(each_with_tables)
    yield database
    await database.close()


async def test_no_increment_of_200_concurrent_ones_is_lost(database: Database) -> None:
    await database.write(lambda tx: tx.execute(insert(accounts).values(id="a", name="a", created_at=0)))

    async def increment(tx: Transaction) -> None:
        count = (await tx.scalars(select(accounts.c.created_at).where(accounts.c.id == "a"))).one()
        await asyncio.sleep(0)  # let the others read too
        await tx.execute(update(accounts).where(accounts.c.id == "a").values(created_at=count + 1))

    await asyncio.gather(*(database.write(increment) for _ in range(WRITERS)))
    assert await database.read(lambda tx: tx.scalar(select(accounts.c.created_at))) == WRITERS


async def test_two_processes_lose_no_increment_either(database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    await database.write(lambda tx: tx.execute(insert(accounts).values(id="a", name="a", created_at=0)))

    async def increment(tx: Transaction) -> None:
        count = (await tx.scalars(select(accounts.c.created_at).where(accounts.c.id == "a"))).one()
        await asyncio.sleep(0.001)  # let the other process read too
        await tx.execute(update(accounts).where(accounts.c.id == "a").values(created_at=count + 1))

    await asyncio.gather(*(each.write(increment) for each in (database, other) for _ in range(25)))
    assert await other.read(lambda tx: tx.scalar(select(accounts.c.created_at))) == 50
    await other.close()


async def test_what_is_written_at_once_loses_no_increment_of_others_nor_its_own(database: Database) -> None:
    at_once = database.write_at_once
    if at_once is None:
        assert not database.is_sqlite
        return
    await database.write(lambda tx: tx.execute(insert(accounts).values(id="a", name="a", created_at=0)))

    async def increment(tx: Transaction) -> None:
        count = (await tx.scalars(select(accounts.c.created_at))).one()
        await tx.execute(update(accounts).values(created_at=count + 1))

    def increment_at_once(connection: sqlite3.Connection) -> None:
        (count,) = connection.execute("SELECT created_at FROM accounts").fetchone()
        connection.execute("UPDATE accounts SET created_at = ?", (count + 1,))

    def increment_and_fail(connection: sqlite3.Connection) -> None:
        increment_at_once(connection)
        raise ZeroDivisionError

    writes = [write for _ in range(50) for write in (database.write(increment), at_once(increment_at_once))]
    await asyncio.gather(*writes)
    with pytest.raises(ZeroDivisionError):
        await at_once(increment_and_fail)
    await at_once(increment_at_once)
    assert await database.read(lambda tx: tx.scalar(select(accounts.c.created_at))) == 101


async def test_an_error_does_not_tell_what_its_statement_was_about(database: Database) -> None:
    """It ends up in the log: a full disk must not write the invoices down there."""

    async def made(tx: Transaction) -> None:
        await tx.execute(insert(accounts).values(id="a", name="a name", created_at=0))

    await database.write(made)
    with pytest.raises(IntegrityError) as failure:
        await database.write(made)
    assert "INSERT INTO accounts" in str(failure.value)
    assert "a name" not in str(failure.value)


async def test_a_long_write_is_not_put_off_by_many_short_ones(database: Database) -> None:
    """The watcher's write of a block, while buyers keep claiming."""
    await database.write(lambda tx: tx.execute(insert(accounts).values(id="a", name="a", created_at=0)))
    runs: list[int] = []
    long_one_done = asyncio.Event()

    async def long_one(tx: Transaction) -> None:
        runs.append(1)
        count = (await tx.scalars(select(accounts.c.created_at))).one()
        await asyncio.sleep(0.1)
        await tx.execute(update(accounts).values(created_at=count + 1))

    async def short_one(tx: Transaction) -> None:
        await tx.execute(update(accounts).values(created_at=accounts.c.created_at + 1))

    async def keep_writing() -> None:
        while not long_one_done.is_set():
            await database.write(short_one)

    short_ones = [asyncio.create_task(keep_writing()) for _ in range(4)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await database.write(long_one)
    long_one_done.set()
    await asyncio.gather(*short_ones)
    assert len(runs) == 1


async def test_readers_do_not_wait_for_writers(database: Database) -> None:
    writing, read = asyncio.Event(), asyncio.Event()

    async def held(tx: Transaction) -> None:
        await tx.execute(insert(accounts).values(id="a", name="a", created_at=0))
        writing.set()
        await read.wait()

    async def waits(tx: Transaction) -> None:
        await tx.execute(text("SELECT 1"))

    writers = [asyncio.create_task(database.write(held))]
    await writing.wait()
    writers += [asyncio.create_task(database.write(waits)) for _ in range(20)]
    await asyncio.sleep(0.05)  # they all wait now
    async with asyncio.timeout(5):
        seen = await database.read(lambda tx: tx.scalar(select(func.count()).select_from(accounts)))
    assert seen == 0
    read.set()
    await asyncio.gather(*writers)


async def test_what_raises_writes_nothing_and_wakes_nobody(database: Database) -> None:
    told: list[Sequence[Event]] = []
    database.after_events = told.append

    async def fails(tx: Transaction) -> None:
        await tx.execute(insert(accounts).values(id="a", name="a", created_at=0))
        await events.append(tx, topic="t", subject="s", payload=Told(1), now=1)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await database.write(fails)
    assert await database.read(lambda tx: tx.scalar(select(func.count()).select_from(accounts))) == 0
    await database.write(lambda tx: tx.execute(text("SELECT 1")))
    assert told == []
    await database.write(lambda tx: events.append(tx, topic="t", subject="s", payload=Told(1), now=1))
    assert [event.json for event in told[0]] == ['{"number":1}']


async def test_a_reader_of_events_misses_none_while_many_write(database: Database) -> None:
    feed = EventFeed(database)
    await feed.start()
    heard: list[Event] = []
    feed.listen(heard.append)

    async def tell(number: int) -> None:
        await database.write(
            lambda tx: events.append(tx, topic="t", subject=str(number), payload=Told(number), now=number)
        )

    async def read_on() -> None:
        while len(heard) < WRITERS:
            await feed.poll_once()
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await asyncio.gather(read_on(), *(tell(number) for number in range(WRITERS)))
    assert [event.seq for event in heard] == sorted({event.seq for event in heard})
    assert {event.subject for event in heard} == {str(number) for number in range(WRITERS)}


async def test_subscribers_hear_their_subject_and_slow_ones_are_told_to_reload(database: Database) -> None:
    feed = EventFeed(database)
    await feed.start()

    async def tell(subject: str, count: int) -> None:
        async def told(tx: Transaction) -> None:
            for number in range(count):
                await events.append(tx, topic="t", subject=subject, payload=Told(number), now=number)

        await database.write(told)
        await feed.poll_once()

    with feed.subscribe("mine") as mine:
        await tell("other", 1)
        await tell("mine", 1)
        first = await mine.next()
        assert isinstance(first, Event)
        assert (first.subject, first.json) == ("mine", '{"number":0}')
        await tell("mine", events.QUEUE_EVENTS_MAX + 1)
        assert isinstance(await mine.next(), Reload)
        last = await mine.next()
        assert isinstance(last, Event)
        assert last.json == f'{{"number":{events.QUEUE_EVENTS_MAX}}}'
    await tell("mine", 1)  # nobody listens any more


async def test_a_woken_feed_does_not_wait_for_its_turn(database: Database) -> None:
    feed = EventFeed(database)
    database.after_events = feed.hear
    await feed.start()
    running = asyncio.create_task(feed.run())
    await asyncio.sleep(0.05)
    with feed.subscribe("s") as subscription:
        await database.write(lambda tx: events.append(tx, topic="t", subject="s", payload=Told(1), now=1))
        async with asyncio.timeout(events.POLL_INTERVAL_S / 2):
            assert isinstance(await subscription.next(), Event)
    running.cancel()


async def test_what_two_processes_tell_at_once_is_heard_once_and_in_order(each_with_tables: str) -> None:
    """Events of this process are handed on without a look; those of the other lie between them."""
    ours, theirs = Database(each_with_tables), Database(each_with_tables)
    feed = EventFeed(ours)
    ours.after_events = feed.hear
    await feed.start()
    heard: list[int] = []
    feed.listen(lambda event: heard.append(event.seq))
    running = asyncio.create_task(feed.run())

    async def tell(database: Database) -> None:
        for number in range(30):
            await database.write(
                lambda tx, number=number: events.append(  # type: ignore[misc]
                    tx, topic="t", subject="s", payload=Told(number), now=number
                )
            )

    async with asyncio.TaskGroup() as tasks:
        for database in (ours, theirs, ours):
            tasks.create_task(tell(database))
    await feed.poll_once()
    running.cancel()
    written = await ours.read(lambda tx: events.after(tx, 0, limit=1_000))
    assert len(written) == 90
    assert heard == [event.seq for event in written]
    await theirs.close()
    await ours.close()


async def test_a_connection_that_is_cut_is_trouble_that_passes(postgres_database: str) -> None:
    """As when PostgreSQL is restarted in the middle of the watcher's write."""
    database = Database(postgres_database)
    with pytest.raises(DATABASE_TROUBLE):
        await database.write(lambda tx: tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())")))
    assert await database.write(lambda tx: tx.scalar(text("SELECT 1"))) == 1
    await database.close()


async def test_a_write_whose_caller_is_cancelled_ends_by_itself(database: Database) -> None:
    await database.write(lambda tx: tx.execute(insert(accounts).values(id="a", name="a", created_at=0)))
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(tx: Transaction) -> None:
        await tx.execute(update(accounts).values(created_at=accounts.c.created_at + 1))
        begun.set()
        await go_on.wait()

    caller = asyncio.create_task(database.write(slow))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    # The next writer finds neither a lock that nobody gives back nor half a transaction.
    await database.write(
        lambda tx: tx.execute(update(accounts).values(created_at=accounts.c.created_at + 10))
    )
    assert await database.read(lambda tx: tx.scalar(select(accounts.c.created_at))) == 11


async def test_closing_waits_for_a_read_whose_caller_is_cancelled(each_with_tables: str) -> None:
    database = Database(each_with_tables)
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(tx: Transaction) -> None:
        await tx.execute(select(accounts))
        begun.set()
        await go_on.wait()
        await tx.execute(select(accounts))
        ended.set()

    caller = asyncio.create_task(database.read(slow))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    asyncio.get_running_loop().call_soon(go_on.set)
    await database.close()
    assert ended.is_set()
