"""Several processes on one database: web processes sell, another one watches the node.

Each has its own services, connections, feed and memory, as separate processes have; what they share is the
database, the blobs and the master key.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio

from bitcache.role import Role
from regtest.node import wait_until
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from tests.service import running_server
from tests.test_bitcache_sse import reading
from tests.till import Bought, Sold, Till, node_config, open_till


@dataclass(frozen=True)
class Farm:
    """Two web processes with one seller; `watching` ends the watcher."""

    first: Till
    second: Till
    world: RegtestWorld
    watching: AsyncExitStack

    @property
    def webs(self) -> tuple[Till, Till]:
        return self.first, self.second


@pytest_asyncio.fixture
async def farm(own_world: RegtestWorld, tmp_path: Path, each_with_tables: str) -> AsyncIterator[Farm]:
    node = node_config(own_world)
    async with AsyncExitStack() as stack:
        watching = await stack.enter_async_context(AsyncExitStack())
        await watching.enter_async_context(
            running_server(tmp_path, role=Role.WATCHER, node=node, database_url=each_with_tables)
        )
        first = await stack.enter_async_context(
            open_till(own_world, tmp_path, role=Role.WEB, database_url=each_with_tables)
        )
        server = await stack.enter_async_context(
            running_server(tmp_path, role=Role.WEB, node=node, database_url=each_with_tables)
        )
        second = Till(server, first.account, own_world)
        second.http = await stack.enter_async_context(server.session())
        yield Farm(first, second, own_world, watching)


async def test_what_one_process_sells_another_sees_paid_and_a_third_delivers(farm: Farm) -> None:
    # Coins deep enough that the reorg leaves them mature.
    payer = await BitWallet.create(farm.world)
    await farm.world.mine(3)
    sold = await farm.first.offer(price_sat=5_000, sizes=(1_000,))
    bought = await farm.first.buy(sold)
    async with reading(farm.second, bought) as reader:
        assert (await reader.event())[1]["status"] == "open"
        await payer.pay([(bought.invoice["address"], bought.invoice["due_sat"])])
        await reader.until("seen")
        await farm.world.mine()
        assert (await reader.until("settled"))["key_allowed"]
    token = await farm.first.token(bought)
    for web in farm.webs:
        assert (await web.status_of(sold.content, token))[0] == 200
    headers = {"Authorization": f"Bearer {farm.second.account.token}"}
    async with farm.second.http.get("/api/v1/earnings", headers=headers) as answer:
        view = await answer.json()
    assert (view["received_sat"], view["sales"]) == (5_000, 1)

    await farm.world.reorg(2, keep_transactions=False)
    for web in farm.webs:
        await web.until(bought, lambda view: bool(view["suspended"]), "the reorg")
        await _until_status(web, sold, token, 403)
    await farm.world.mine()
    for web in farm.webs:
        await web.until(bought, lambda view: bool(view["key_allowed"]), "the payment in a block again")
        await _until_status(web, sold, token, 206)


async def test_a_script_is_watched_from_the_moment_its_address_is_told(farm: Farm) -> None:
    """Paid and mined at once, each time: no poll of the watcher need have come in between."""
    sold = await farm.first.offer(price_sat=5_000, sizes=(1_000,))
    for web in farm.webs * 2:
        bought = await web.buy(sold)
        await web.pay(bought)
        await farm.world.mine()
        await web.until(bought, lambda view: bool(view["key_allowed"]), "the payment and its block")


async def test_buyers_at_two_doors_are_served_as_at_one(farm: Farm) -> None:
    sold = await farm.first.offer(price_sat=5_000)
    twins = [os.urandom(32) for _ in range(4)]
    bought: list[Bought] = await asyncio.gather(
        *(web.buy(sold, secret=secret) for secret in twins for web in farm.webs)
    )
    assert len({one.id for one in bought}) == len(twins)
    assert len({one.invoice["address"] for one in bought}) == len(twins)

    last = await farm.first.offer(price_sat=0, max_downloads=3)
    statuses = Counter(await asyncio.gather(*(_asked(web, last) for web in farm.webs * 5)))
    assert statuses == {201: 3, 410: 7}


async def test_without_a_watcher_nobody_is_asked_to_pay(farm: Farm) -> None:
    sold, free = await farm.first.offer(), await farm.first.offer(price_sat=0, sizes=(1_000,))
    assert await _asked(farm.second, sold) == 201
    await farm.watching.aclose()
    farm.second.server.clock.advance(31)
    assert await _asked(farm.second, sold) == 503
    token = await farm.second.token(await farm.second.buy(free))
    assert (await farm.second.status_of(free.content, token))[0] == 200


async def _asked(web: Till, sold: Sold) -> int:
    async with web.ask(sold, os.urandom(32)) as answer:
        return int(answer.status)


async def _until_status(web: Till, sold: Sold, token: dict[str, str], status: int) -> None:
    async def answers() -> bool:
        # One byte at a time: a grant may fetch its parcel so many times only.
        return (await web.status_of(sold.content, token | {"Range": "bytes=0-0"}))[0] == status

    await wait_until(answers, f"the content to answer {status}")
