"""What is sold per chunk in the operator's books, in the journal, and in the seller's earnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest_asyncio

from bitcache import accounts
from bitcache.api.wire_money import EarningsView
from bitcache.db.engine import Database
from bitcache.earnings import Period, by_day, earnings, time_zone
from bitcache.ids import new_id
from bitcache.ledger_export import CHAIN, Format, export
from bitcache.metered_earnings import Earned, OfferChunks, sold_of
from bitcache.operator_books import OperatorBooks, operator_books
from payments import books
from payments.channel import ChannelState
from payments.money import Msat
from payments.ports import Transaction
from tests.functional_statements import journal_totals
from tests.statement_histories import CHUNKS, START, History, Step, put_channel

ALWAYS = Period(0, START + 10**6, time_zone("UTC"))
SPENT_SAT = 700
"""What `step("metered")` buys, and 1 msat: fractions of a sat are what these sales come in."""


async def new_seller(database: Database) -> str:
    return await database.write(lambda tx: accounts.register(tx, name=new_id(), now=START))


Play = Callable[..., Awaitable[History]]


@pytest_asyncio.fixture
async def play(database: Database) -> Play:
    async def played(*steps: Step) -> History:
        history = History(await new_seller(database))
        await database.write(lambda tx: history.play(tx, steps))
        return history

    return played


def step(what: str) -> Step:
    return Step(what, 1, 0, (SPENT_SAT * 1_000 // 7,), 10)


async def books_of(database: Database) -> OperatorBooks:
    return await database.read(lambda tx: operator_books(tx, ALWAYS))


async def journal_of(database: Database) -> Counter[str]:
    """Account -> msat. A debit is above zero."""

    async def read(tx: Transaction) -> str:
        return "".join([text async for text in export(tx, Format.HLEDGER, since=0, until=2**62)])

    return journal_totals(await database.read(read))


async def chain_msat(database: Database) -> int:
    return -await database.read(lambda tx: books.balance(tx, "chain"))


async def test_what_is_in_channels_is_nobodys_money_in_the_wallet(database: Database, play: Play) -> None:
    history = await play(step("metered"))
    (channel,) = history.channels
    found = await books_of(database)
    assert (found.held.sum_msat, found.held.channels_msat, found.sums.metered_msat) == (0, 0, 0)
    totals = await journal_of(database)
    spent = channel.sold.spent_msat
    assert totals == {
        f"assets:channels:{channel.id}": spent,
        f"liabilities:sellers pending:{history.seller_id}": -spent,
    }


async def test_a_close_is_shared_out_and_every_sat_is_somebodys(database: Database, play: Play) -> None:
    history = await play(step("metered"), step("unclose"))
    (channel,) = history.channels
    spent = channel.sold.spent_msat
    # Mined, and not deep: it came in, and may go again.
    found = await books_of(database)
    assert found.held.sum_msat == await chain_msat(database) > spent
    assert (found.held.channels_msat, found.held.payers_msat) == (found.held.sum_msat, 0)

    closed = History(new_id(), now=START + 9)
    await database.write(lambda tx: closed.play(tx, (step("metered"), step("close"))))
    found = await books_of(database)
    held, sums = found.held, found.sums
    assert held.sum_msat == await chain_msat(database)
    fee = spent // 10
    assert held.sellers_msat == {closed.seller_id: spent - fee}
    # Three sats more than was charged are the payer's; the fee, and what the close left over, the operator's.
    settled_msat = (-(-spent // 1_000) + 3) * 1_000
    assert held.payers_msat == settled_msat - spent
    assert held.operator_msat == fee + 100_000
    assert (sums.metered_msat, sums.fees_msat, sums.channels_msat) == (spent, fee, 100_000)
    totals = await journal_of(database)
    assert totals[CHAIN] == held.sum_msat
    assert totals[f"liabilities:channels:{closed.channels[0].id}"] == -held.payers_msat
    assert (totals["revenues:fees"], totals["revenues:channels"]) == (-fee, -100_000)
    assert totals[f"assets:channels:{closed.channels[0].id}"] == 0


# What a seller is told.


async def test_what_is_in_channels_is_told_beside_what_is_earned(database: Database, play: Play) -> None:
    history = await play(step("metered"), step("metered"))
    shut, still_open = history.channels

    async def more(tx: Transaction) -> None:
        await put_channel(tx, shut, state=ChannelState.CLOSED)
        await put_channel(tx, still_open, unbooked_msat=2_500)

    await database.write(more)
    spent = shut.sold.spent_msat

    async def told() -> EarningsView:
        return await database.read(lambda tx: earnings(tx, history.seller_id, ALWAYS))

    view = await told()
    assert (view.received_sat, view.chunks, view.in_channels_sat) == (0, 0, (2 * spent + 2_500) // 1_000)
    await database.write(lambda tx: history.play(tx, [step("close")]))
    view = await told()
    assert view.in_channels_sat == (spent + 2_500) // 1_000
    fee = spent // 10
    assert (view.received_sat, view.fee_sat, view.chunks, view.sales) == (
        (spent - fee) // 1_000,
        fee // 1_000,
        CHUNKS,
        0,
    )
    # Another seller has none of it.
    other_id = await new_seller(database)
    other = await database.read(lambda tx: earnings(tx, other_id, ALWAYS))
    assert (other.in_channels_sat, other.chunks, other.received_sat) == (0, 0, 0)
    await database.write(lambda tx: history.play(tx, [step("unclose")]))
    view = await told()
    assert (view.received_sat, view.chunks, view.in_channels_sat) == (0, 0, (2 * spent + 2_500) // 1_000)

    subjects = [shut.sold.subject, still_open.sold.subject, new_id()]
    sold = await database.read(lambda tx: sold_of(tx, subjects))
    assert sold == {
        subjects[0]: OfferChunks(CHUNKS, spent, Msat(0)),
        subjects[1]: OfferChunks(CHUNKS, Msat(spent + 2_500), Msat(spent + 2_500)),
    }


def test_fractions_of_days_and_parcels_add_up_to_whole_sats() -> None:
    def earned(day: int, parcel_id: str, amount_msat: int) -> Earned:
        return Earned(START + day * 86_400, "offer", parcel_id, Msat(amount_msat), Msat(100), 1)

    metered = [earned(0, "p", 1_700), earned(0, "q", 700), earned(1, "p", 700), earned(2, "p", -700)]
    days = by_day([], {}, ALWAYS, metered)
    assert sum(day.received_sat for day in days) == 2
    assert all(abs(day.received_sat) <= 2 for day in days)
    assert [day.chunks for day in days] == [1, 1, 1, 1]
    assert sum(day.fee_sat for day in days) == 0
