"""Balances beside the ledger: what is kept is what the whole history adds up to, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from payments import books
from payments.ledger import Booking, Code, Leg, chain, operator, owed, seller
from payments.money import Msat
from payments.ports import Transaction
from payments.tables import balances, transfers

NOW = 1_800_000_000
ACCOUNTS = (chain(), operator(), owed("i"), seller("s"))
LEGS = (Leg.IN, Leg.SELLER, Leg.HOLD, Leg.PAID)


@pytest_asyncio.fixture
async def blank(each_database: str) -> AsyncIterator[Database]:
    database = Database(each_database)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def database(each_with_tables: str) -> AsyncIterator[Database]:
    database = Database(each_with_tables)
    yield database
    await database.close()


def booking(subject: str, leg: Leg, debit: str, credit: str, amount_msat: int) -> Booking:
    return Booking(subject, leg, debit, credit, Msat(amount_msat), Code.RECEIVED)


desired_sets = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.sampled_from(LEGS)),
    st.tuples(st.permutations(ACCOUNTS), st.integers(1, 10**15)),
    max_size=5,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(desired_sets, min_size=1, max_size=4))
async def test_kept_balances_are_those_of_the_history(
    database: Database,
    wishes: list[dict[tuple[str, Leg], tuple[list[str], int]]],
) -> None:
    async def follow(tx: Transaction) -> None:
        for wished in wishes:
            desired = [
                booking(subject, leg, accounts[0], accounts[1], amount)
                for (subject, leg), (accounts, amount) in wished.items()
            ]
            standing = (await books.booked(tx, ["r"]))["r"]
            await books.append_missing(tx, desired, standing, reference="r", now=NOW)
            assert await books.wrong_balances(tx) == {}
            kept = await books.balances_like(tx, "")
            assert sum(kept.values()) == 0
            assert 0 not in kept.values()
            expected: dict[str, int] = {}
            for one in desired:
                expected[one.debit] = expected.get(one.debit, 0) - one.amount_msat
                expected[one.credit] = expected.get(one.credit, 0) + one.amount_msat
            for account in ACCOUNTS:
                assert await books.balance(tx, account) == expected.get(account, 0)

    await database.write(follow)


async def test_a_balance_that_was_tampered_with_is_found(database: Database) -> None:
    async def tamper(tx: Transaction) -> dict[str, tuple[Msat, Msat]]:
        desired = [booking("a", Leg.IN, chain(), seller("s"), 5_000)]
        await books.append_missing(tx, desired, [], reference="r", now=NOW)
        await tx.execute(update(balances).where(balances.c.account == seller("s")).values(amount_msat=6_000))
        return await books.wrong_balances(tx)

    assert await database.write(tamper) == {seller("s"): (6_000, 5_000)}


async def test_accounts_are_found_by_the_beginning_of_their_names_alone(database: Database) -> None:
    async def read(tx: Transaction) -> list[str]:
        desired = [booking("a", Leg.IN, chain(), "seller:1", 5), booking("b", Leg.IN, chain(), "sellerX2", 5)]
        await books.append_missing(tx, desired, [], reference="r", now=NOW)
        return list(await books.balances_like(tx, "seller:"))

    assert await database.write(read) == ["seller:1"]


async def test_a_database_with_a_history_gets_its_balances(blank: Database) -> None:
    """The ledger was there before the balances."""
    await upgrade(blank, to="0003")

    async def append(tx: Transaction) -> None:
        for n, (debit, credit, amount) in enumerate(
            [(chain(), owed("i"), 7_000), (owed("i"), "direct:s", 7_000), (chain(), owed("k"), 300)]
        ):
            row = {"id": str(n), "debit": debit, "credit": credit, "amount_msat": amount, "code": "received"}
            await tx.execute(transfers.insert().values(**row, reference="r", created_at=NOW))

    await blank.write(append)
    await upgrade(blank)
    kept = await blank.read(lambda tx: books.balances_like(tx, ""))
    assert kept == {chain(): -7_300, "direct:s": 7_000, owed("k"): 300}
    assert await blank.read(books.wrong_balances) == {}
