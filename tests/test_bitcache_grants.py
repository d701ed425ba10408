"""Grant tokens and the book of grants: forgery, changes that must be heard of, limits."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from bitcache.db.tables import grants
from bitcache.errors import GrantExhausted, GrantForeign, GrantMissing, GrantSuspended, GrantTokenInvalid
from bitcache.grant_tokens import GrantClaims, open_token, seal_token
from bitcache.grants import CONNECTIONS_MAX, FEED_AGE_MAX_S, IDLE_S, PARCELS_SERVED_MAX, GrantBook
from bitcache.ids import id_text, new_id, raw_id
from payments.tables import invoices
from tests.till import Sold, Till, open_nodeless_till

KEY = bytes(range(32))
NOW = 1_800_000_000


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


class Timer:
    """A monotonic clock moved by hand, and a feed that looked when it was told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.looked_at_s = 1_000.0


async def free_grant(till: Till, *, size: int = 1000) -> tuple[Sold, str, GrantBook, Timer, str]:
    """(what was sold, grant id, a book of its own that hears of nothing, its timer, a token)."""
    sold = await till.offer(price_sat=0, sizes=(size,))
    _, claimed = await till.claim(await till.buy(sold))
    timer = Timer()
    services = till.server.services
    book = GrantBook(
        store=services.database,
        key=KEY,
        token_lifetime_s=900,
        feed_looked_at=lambda: timer.looked_at_s,
        clock=services.clock,
        monotonic=lambda: timer.now_s,
    )
    token, _ = book.issue(grant_id=claimed["grant_id"], offer_id=sold.offer_id, parcel_id=sold.parcel_id)
    return sold, claimed["grant_id"], book, timer, token


async def set_row(till: Till, grant_id: str, **columns: object) -> None:
    await till.server.services.database.write(
        lambda tx: tx.execute(update(grants).where(grants.c.id == grant_id).values(**columns))
    )


# Tokens.


def claims(expires_at: int = NOW + 900) -> GrantClaims:
    return GrantClaims(os.urandom(16), os.urandom(16), os.urandom(16), expires_at)


def test_a_token_says_what_was_sealed() -> None:
    said = claims()
    assert open_token(KEY, seal_token(KEY, said), NOW) == said


def test_a_token_dies_on_the_second() -> None:
    token = seal_token(KEY, claims(NOW))
    open_token(KEY, token, NOW - 1)
    with pytest.raises(GrantTokenInvalid, match="expired"):
        open_token(KEY, token, NOW)


def test_every_changed_character_is_noticed() -> None:
    token = seal_token(KEY, claims())
    for at in range(len(token) - 1):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(GrantTokenInvalid):
            open_token(KEY, changed, NOW)


def test_another_key_is_another_server() -> None:
    with pytest.raises(GrantTokenInvalid):
        open_token(bytes(32), seal_token(KEY, claims()), NOW)


@given(st.text(max_size=200))
def test_any_text_is_refused_with_one_error(text: str) -> None:
    for token in (text, "bcg_" + text, ("bcg_" + text).ljust(123, "A")[:123]):
        with pytest.raises(GrantTokenInvalid):
            open_token(KEY, token, NOW)


@given(st.binary(min_size=16, max_size=16))
def test_ids_go_there_and_back(octets: bytes) -> None:
    assert raw_id(id_text(octets)) == octets


@pytest.mark.parametrize("text", ["", "a" * 25, "A" * 26, "a" * 25 + "b", "1" * 26, "ä" * 26])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        raw_id(text)


# The book.


async def test_what_was_once_read_is_believed_while_the_feed_lives(till: Till) -> None:
    sold, grant_id, book, timer, token = await free_grant(till)
    await book.check(token, sold.offer_id)
    await set_row(till, grant_id, bytes_allowed=False)
    await book.check(token, sold.offer_id)
    timer.now_s += FEED_AGE_MAX_S
    await book.check(token, sold.offer_id)
    timer.now_s += 1
    with pytest.raises(GrantSuspended):
        await book.check(token, sold.offer_id)


async def test_a_change_heard_of_is_looked_up(till: Till) -> None:
    sold, grant_id, book, _, token = await free_grant(till)
    await book.check(token, sold.offer_id)
    await set_row(till, grant_id, bytes_allowed=False)
    book.doubt(new_id())  # another's change
    await book.check(token, sold.offer_id)
    book.doubt(grant_id)
    with pytest.raises(GrantSuspended):
        await book.check(token, sold.offer_id)
    await set_row(till, grant_id, bytes_allowed=True)
    book.doubt(grant_id)
    await book.check(token, sold.offer_id)


async def test_a_change_that_comes_while_reading_is_not_lost(till: Till) -> None:
    """The read may have begun before the change was committed."""
    sold, grant_id, book, _, token = await free_grant(till)
    services = till.server.services
    reading = services.database.read

    class Interrupted:
        """The database, with a change between the read and its answer."""

        interruptions = 1

        async def read(self, fn):  # type: ignore[no-untyped-def]
            found = await reading(fn)
            if self.interruptions:
                self.interruptions -= 1
                await set_row(till, grant_id, bytes_allowed=False)
                book.doubt(grant_id)
            return found

        write = staticmethod(services.database.write)

    book._store = Interrupted()
    with pytest.raises(GrantSuspended):
        await book.check(token, sold.offer_id)


async def test_unpaid_foreign_and_unknown_grants_are_told_apart(till: Till) -> None:
    sold, _, book, _, token = await free_grant(till)
    with pytest.raises(GrantForeign):
        await book.check(token, new_id())
    unknown, _ = book.issue(grant_id=new_id(), offer_id=sold.offer_id, parcel_id=sold.parcel_id)
    with pytest.raises(GrantTokenInvalid):
        await book.check(unknown, sold.offer_id)
    await till.server.services.database.write(lambda tx: tx.execute(delete(grants)))
    with pytest.raises(GrantTokenInvalid):
        await _fresh(book).check(token, sold.offer_id)


async def test_never_released_is_unpaid_not_suspended(till: Till) -> None:
    sold, grant_id, book, _, token = await free_grant(till)
    await till.server.services.database.write(
        lambda tx: tx.execute(update(invoices).values(released_at=None))
    )
    await set_row(till, grant_id, bytes_allowed=False)
    with pytest.raises(GrantMissing):
        await book.check(token, sold.offer_id)


async def test_bytes_under_way_count_until_they_are_given_up(till: Till) -> None:
    sold, _, book, _, token = await free_grant(till)
    entry = await book.check(token, sold.offer_id)
    whole = 1000 * PARCELS_SERVED_MAX
    with book.passage(entry, whole - 1) as first:
        with pytest.raises(GrantExhausted), book.passage(entry, 2):
            pass
        with book.passage(entry, 1):
            pass
        first.sent(10)
    assert (entry.bytes_served, entry.bytes_under_way, entry.connections) == (10, 0, 0)
    with book.passage(entry, whole - 10) as rest:
        rest.sent(whole - 10)
    with pytest.raises(GrantExhausted), book.passage(entry, 1):
        pass


async def test_before_the_key_the_parcel_is_sent_once(till: Till) -> None:
    sold, grant_id, book, _, token = await free_grant(till)
    await set_row(till, grant_id, key_allowed=False)
    entry = await book.check(token, sold.offer_id)
    with book.passage(entry, 1000) as passage:
        passage.sent(1000)
    with pytest.raises(GrantExhausted, match="sent once"), book.passage(entry, 1):
        pass


async def test_connections_are_counted(till: Till) -> None:
    sold, _, book, _, token = await free_grant(till)
    entry = await book.check(token, sold.offer_id)
    running = [book.passage(entry, 1) for _ in range(CONNECTIONS_MAX)]
    for passage in running:
        passage.__enter__()
    with pytest.raises(GrantExhausted), book.passage(entry, 1):
        pass
    running[0].__exit__(None, None, None)
    with book.passage(entry, 1):
        pass


async def test_counts_survive_a_restart_and_idle_grants_are_forgotten(till: Till) -> None:
    sold, _, book, timer, token = await free_grant(till)
    entry = await book.check(token, sold.offer_id)
    with book.passage(entry, 700) as passage:
        passage.sent(700)
    await book.flush()
    await book.flush()
    served = await till.server.services.database.read(lambda tx: tx.scalar(select(grants.c.bytes_served)))
    assert served == 700
    again = await _fresh(book).check(token, sold.offer_id)
    assert again.bytes_served == 700
    timer.now_s += IDLE_S + 1
    await book.flush()
    assert not book._entries


def _fresh(book: GrantBook) -> GrantBook:
    """As after a restart."""
    return GrantBook(
        store=book._store,
        key=KEY,
        token_lifetime_s=900,
        feed_looked_at=lambda: 0.0,
        clock=book._clock,
        monotonic=lambda: 0.0,
    )
