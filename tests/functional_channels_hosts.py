"""Two real processes on one database: one has the channels, whatever becomes of the other.

The first is killed, or frozen in the middle of a payment; the second goes on with all that was answered, and
the first, when it wakes, charges nothing and serves nothing of what it remembers.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio
from sqlalchemy import update

from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from payments.ports import Transaction
from payments.tables import channel_host
from regtest.node import wait_until
from tests.channel_house import PRICE_MSAT, House, Payer
from tests.channel_process import Process

ELSEWHERE = "ChannelsElsewhere"


@dataclass
class Pair:
    house: House
    first: Process
    second: Process
    payer: Payer

    async def lapse(self) -> None:
        """The lease's seconds pass; one test waits for them."""

        async def write(tx: Transaction) -> None:
            await tx.execute(update(channel_host).values(held_until=0))

        await self.house.database.write(write)

    async def second_has_them(self) -> None:
        async def look() -> bool:
            return bool(await self.second.ask("state"))

        await wait_until(look, "the second process to have the channels")


@pytest_asyncio.fixture
async def pair(each_database: str) -> AsyncIterator[Pair]:
    """The first has the channels, and one of them has paid for chunk 0."""
    database = Database(each_database)
    await upgrade(database)
    house = await House.build(database)
    payer = await house.deposit()
    async with house.running() as registry:
        await registry.open(payer.id, payer.voucher(0))
    processes: list[Process] = []
    try:
        for _ in range(2):
            processes.append(await Process.start(each_database))

            async def look() -> bool:
                return bool(await processes[0].ask("state"))

            await wait_until(look, "the first process to have the channels")
        made = Pair(house, processes[0], processes[1], payer)
        assert await made.first.pay(payer.voucher(3), 0) == [PRICE_MSAT, PRICE_MSAT]
        yield made
    finally:
        for process in processes:
            await process.close()
        await database.close()


async def test_after_a_crash_the_next_goes_on_when_the_lease_lapses(pair: Pair) -> None:
    payer = pair.payer
    pair.first.signal(signal.SIGKILL)
    await pair.first.ended()
    assert await pair.second.pay(payer.voucher(3), 1) == ELSEWHERE
    if not pair.house.database.is_sqlite:
        await pair.lapse()
    await pair.second_has_them()
    assert await pair.second.pay(payer.voucher(3), 0) == [0, PRICE_MSAT]
    assert await pair.second.pay(payer.voucher(3), 1) == [PRICE_MSAT, 2 * PRICE_MSAT]


async def test_a_frozen_process_charges_and_serves_nothing_when_it_wakes(pair: Pair) -> None:
    payer, house = pair.payer, pair.house
    # It has decided, and is about to write.
    await pair.first.ask("hold")
    deciding = pair.first.pay(payer.voucher(6), 1)
    free_copy = pair.first.pay(payer.voucher(3), 0)
    assert await pair.first.ask("state") is True
    pair.first.signal(signal.SIGSTOP)
    await pair.lapse()
    await pair.second_has_them()
    assert await pair.second.pay(payer.voucher(3), 2) == [PRICE_MSAT, 2 * PRICE_MSAT]

    pair.first.signal(signal.SIGCONT)
    assert await pair.first.ask("state") is True, "it does not know yet"
    await pair.first.ask("go")
    assert await deciding == ELSEWHERE
    assert await free_copy == ELSEWHERE
    assert await pair.first.pay(payer.voucher(9), 3) == ELSEWHERE
    assert await house.paid_units(payer) == {0, 2}
    assert (await house.record(payer)).balance.accepted_sat == 3

    # The second goes on undisturbed, and hands them back with all it did.
    assert await pair.second.pay(payer.voucher(6), 1) == [PRICE_MSAT, 3 * PRICE_MSAT]
    await pair.second.stop()

    async def back() -> bool:
        return bool(await pair.first.ask("state"))

    await wait_until(back, "the first process to have the channels again")
    assert await pair.first.pay(payer.voucher(6), 2) == [0, 3 * PRICE_MSAT]
    assert await pair.first.pay(payer.voucher(6), 3) == [PRICE_MSAT, 4 * PRICE_MSAT]
