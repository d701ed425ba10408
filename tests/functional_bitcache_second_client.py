"""Two clients that share no code, and a server on a real node: each buys what the other sold.

The second client knows the documents only. What it cannot do, docs/PROTOCOL.md or docs/FORMAT.md left out.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from regtest.served import ServedBitcache
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import RegtestWorld
from tests import second_client as second
from tests import second_format, second_payment

PRICE_SAT = 2_000
PAYER_COIN_SAT = 1_000_000
# A full part and 3 MiB of another, a file of one chunk with nothing in it, and a name beyond ASCII.
GOODS = {
    "Été/big.bin": random.Random(402).randbytes(11 << 20),
    "empty.txt": b"",
}


@dataclass(frozen=True)
class Market:
    """A server, a signed-in seller with a wallet of their own, and an independent payer."""

    world: RegtestWorld
    server: ServedBitcache
    seller_home: Path
    token: str
    payer: BitWallet

    def as_seller(self) -> second.Server:
        return second.Server(self.server.url, self.token)

    async def pay(self, address: str, amount_sat: int) -> str:
        """Pay and mine; the txid."""
        payment = await self.payer.pay([(address, amount_sat)])
        await self.world.mine()
        return payment.txid


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Market]:
    server = ServedBitcache(world)
    seller_home = tmp_path_factory.mktemp("seller")
    try:
        await server.start()
        made = await server.command_json("account", "create", "Ada", "--data", str(server.data_folder))
        wallet = await OutsideWallet.create(world, f"second-client-{os.urandom(4).hex()}")
        await server.command("login", server.url, home=seller_home, stdin=made["token"])
        await server.command("payout", "set", await wallet.descriptor("wpkh"), "--yes", home=seller_home)
        payer = await BitWallet.create(world, coin_sat=PAYER_COIN_SAT, coin_count=2)
        yield Market(world, server, seller_home, made["token"], payer)
    finally:
        await server.close()


async def test_the_second_client_buys_what_our_command_sold(market: Market, tmp_path: Path) -> None:
    folder = tmp_path / "goods"
    write(folder, GOODS)
    upload = ("upload", str(folder), "--price", f"{PRICE_SAT}sat", "--title", "Goods")
    sold = await market.server.command_json(*upload, home=market.seller_home)

    shown = await asyncio.to_thread(second.look, sold["link"])
    assert shown.metadata["title"] == "Goods"
    order = await asyncio.to_thread(lambda: second.order(shown, network="regtest"))
    assert order.invoice["due_sat"] == PRICE_SAT
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(lambda: second.download(order.receipt, wait_s=0.1))
    await market.pay(order.invoice["address"], order.invoice["due_sat"])

    for _ in range(2):  # The second time as from another device: the receipt is all there is.
        bought = await asyncio.to_thread(second.download, order.receipt)
        assert {path.removeprefix("goods/"): octets for path, octets in bought.items()} == GOODS


async def test_the_second_client_pays_a_challenge(market: Market) -> None:
    words = b"Paid for by its address alone."
    link = await asyncio.to_thread(
        lambda: second.sell(market.as_seller(), {"a.txt": words}, title="402", price_sat=PRICE_SAT)
    )
    shown = await asyncio.to_thread(second.look, link)
    challenge = await asyncio.to_thread(lambda: second_payment.ask(shown, file_no=0))
    txid = await market.pay(challenge.request["recipient"], int(challenge.request["amount"]))

    answer = await asyncio.to_thread(lambda: second_payment.content(shown, challenge, file_no=0))
    receipt = second_payment.receipt_in(answer)
    assert receipt["reference"].split(":")[0] == txid
    released = await asyncio.to_thread(second_payment.release_secret, shown.server, challenge)
    assert second.opened(
        shown.metadata, shown.offer["files"], [answer.body], shown.link_secret, released
    ) == {"a.txt": words}


async def test_what_the_page_says_is_refused(market: Market) -> None:
    seller = market.as_seller()
    sealed = second_format.seal_content(b"")
    file_id = await asyncio.to_thread(second.upload, seller, sealed)
    entry = {"file_id": file_id, "wrapped_key": second_format.encode(bytes(60))}
    key = {"Idempotency-Key": "the-first"}
    digest = {"Bitcache-Chunk-Digests": second_format.encode(sealed.digests[0])}

    async def refusal(method: str, path: str, **sent: Any) -> str:
        with pytest.raises(second.Problem) as refused:
            await asyncio.to_thread(lambda: seller.send(method, path, **sent))
        return f"{refused.value.status} {refused.value.name}"

    part = f"/files/{file_id}/parts/0"
    assert await refusal("PUT", part, octets=sealed.chunks[0]) == "400 bad-request"
    assert await refusal("PUT", part, octets=b"x", headers=digest) == "422 part-size-wrong"
    assert await refusal("POST", "/parcels", document={"files": [entry, entry]}) == "422 invalid-value"
    for _ in range(2):  # One key, one parcel.
        await asyncio.to_thread(
            lambda: seller.send("POST", "/parcels", document={"files": [entry]}, headers=key)
        )
    listed = await asyncio.to_thread(lambda: seller.send("GET", "/parcels?limit=200"))
    assert [parcel["size_bytes"] for parcel in listed.json()["items"]].count(sealed.size_bytes) == 1
    reused = await refusal("POST", "/files", document={"size_bytes": 56}, headers=key)
    assert reused == "409 idempotency-key-reused"


async def test_our_command_buys_what_the_second_client_sold(market: Market, tmp_path: Path) -> None:
    link = await asyncio.to_thread(
        lambda: second.sell(market.as_seller(), GOODS, title="Sold by the book", price_sat=PRICE_SAT)
    )
    payer = await OutsideWallet.create(market.world, f"payer-{os.urandom(4).hex()}")
    await market.world.faucet(await payer.new_address(), PAYER_COIN_SAT)
    node = market.world.outside
    purse = f"bitcoind:{node.rpc_url}/wallet/{payer.name}?cookie={node.cookie_path}"

    buyer_home, bought = tmp_path / "buyer", tmp_path / "bought"
    buyer_home.mkdir()
    get = ("get", link, "-o", str(bought), "--yes", "--pay", purse)
    async with asyncio.TaskGroup() as group:
        getting = group.create_task(market.server.command(*get, home=buyer_home))
        while not getting.done():
            if await node.rpc("getrawmempool"):
                await market.world.mine()
            await asyncio.sleep(0.05)
    assert read(bought) == GOODS


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, octets in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(octets)


def read(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
