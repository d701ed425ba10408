"""Nodes that are pruned too far, behind, or another's: nothing is sold meanwhile, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from bitcache import doctor
from bitcache.doctor import Finding, Verdict
from payments import chain_facts
from regtest.node import RegtestNode, wait_until
from regtest.world import RegtestWorld
from tests.service import running_server
from tests.till import Bought, Sold, Till, node_config, open_till

BEHIND_BLOCKS = 200
FIRST_FILE_BLOCKS = 60
"""With -fastprune a file has 64 KiB, and goes as a whole: so many blocks fill up that of the shared chain."""
KEPT_BLOCKS = 288
"""What a pruning node keeps at least (BIP159)."""


@pytest_asyncio.fixture
async def till(own_world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(own_world, tmp_path) as till:
        yield till


async def health(till: Till) -> dict[str, Any]:
    async with till.http.get("/healthz") as answer:
        told: dict[str, Any] = await answer.json()
        return told


async def until_offline(till: Till, words: str) -> None:
    async def offline() -> bool:
        told = await health(till)
        return not told["node_online"] and words in str(told["trouble"])

    await wait_until(offline, f"the server to say {words!r}")


async def assert_nothing_is_sold(till: Till, sold: Sold) -> None:
    async with till.ask(sold, os.urandom(32)) as answer:
        assert answer.status == 503
        assert (await answer.json())["type"] == "/problems/node-offline"
        assert int(answer.headers["Retry-After"]) > 0
    async with till.http.get(f"/d/{sold.offer_id}") as page:
        assert "do not pay" in (await page.text()).lower()


async def assert_is_served(till: Till, sold: Sold, bought: Bought) -> None:
    async with till.http.get(sold.content, headers=await till.token(bought)) as answer:
        assert await answer.read() == sold.blobs[sold.file_id]


async def test_a_node_200_blocks_behind_sells_nothing_and_catches_up(till: Till) -> None:
    world, sold = till.world, await till.offer()
    assert world is not None
    before = await till.paid(sold)
    waiting = await till.buy(sold)
    await world.partition()
    payment = await world.outside.rpc(
        "sendtoaddress",
        address=waiting.invoice["address"],
        amount=f"{waiting.invoice['due_sat'] / 1e8:.8f}",
        fee_rate=5,
        wallet="miner",
    )
    hashes = await world.mine(BEHIND_BLOCKS, sync=False)
    # It hears of the blocks, and has none of them yet.
    for block_hash in hashes:
        await world.server.rpc("submitheader", await world.outside.rpc("getblockheader", block_hash, False))
    await until_offline(till, "catch up")
    await assert_nothing_is_sold(till, sold)
    await assert_is_served(till, sold, before)

    await world.reconnect()
    settled = await till.until(waiting, lambda view: bool(view["key_allowed"]), "the key")
    assert [output["txid"] for output in settled["outputs"]] == [payment]
    await assert_is_served(till, sold, waiting)


async def test_a_node_of_another_chain_in_place_of_ours_changes_nothing(till: Till) -> None:
    world, sold = till.world, await till.offer()
    assert world is not None
    before = await till.paid(sold)
    tip = await till.server.services.database.read(chain_facts.tip)
    await world.server_out()
    stranger = RegtestNode(wallets=False, name="stranger")
    try:
        # Same address, same kind of chain, another history.
        stranger.rpc_port, stranger.zmq_port = world.server.rpc_port, world.server.zmq_port
        await stranger.start()
        address = await world.new_miner_address()
        await stranger.rpc("generatetoaddress", 230, address)
        world.server.cookie_path.write_bytes(stranger.cookie_path.read_bytes())
        await until_offline(till, "not the node used before")
        await assert_nothing_is_sold(till, sold)
        await assert_is_served(till, sold, before)
        assert await till.server.services.database.read(chain_facts.tip) == tip
    finally:
        await stranger.close()
    await world.server_in()

    async def online() -> bool:
        return bool((await health(till))["node_online"])

    await wait_until(online, "the server to see its own node again")
    again = await till.paid(sold)
    await assert_is_served(till, sold, again)


async def test_blocks_pruned_before_they_were_scanned_are_fetched_again(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    world = own_world
    async with open_till(world, tmp_path) as till:
        sold = await till.offer()
        waiting = await till.buy(sold)
    # While the server is down the payment is mined, and later pruned away.
    await till.pay(waiting)
    await world.mine(3)
    await world.server.restart("-prune=1", "-fastprune")
    await world.reconnect()
    await world.mine(KEPT_BLOCKS + FIRST_FILE_BLOCKS)
    await world.server.rpc("pruneblockchain", await world.server.rpc("getblockcount"))

    async with running_server(tmp_path, node=node_config(world)) as server, server.session() as http:
        till.server, till.http = server, http
        await until_offline(till, "doctor --rescan")
        await assert_nothing_is_sold(till, sold)
        found = await pruning(till)
        assert found.verdict is Verdict.WRONG
        assert "--rescan" in found.mend
        assert await doctor.rescan(server.services) > 0
        await till.until(waiting, lambda view: bool(view["key_allowed"]), "the key")
        await assert_is_served(till, sold, waiting)
        assert (await pruning(till)).verdict is Verdict.OK


async def pruning(till: Till) -> Finding:
    findings = {finding.check: finding async for finding in doctor.check_node(till.server.services)}
    return findings["pruning"]
