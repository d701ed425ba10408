"""Sellers and buyers with the `bitcache` command on a real node; a bitcoind wallet pays, once."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.errors import WalletRefused
from bitcache.client.invoices import get_invoice
from bitcache.client.link import Receipt, parse
from bitcache.client.wallets import BitcoindWallet, parse_wallet
from regtest.node import wait_until
from regtest.served import CommandFailed, ServedBitcache
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.functional_client_crash import bitcache
from tests.test_storage_scrub import flip

PRICE_SAT = 25_000
BUYER_WALLET = "market-buyer"
MIB = 1 << 20


@dataclass
class Market:
    """A server on the shared world, a seller who is signed in, and a buyer with a wallet."""

    server: ServedBitcache
    seller: Path
    seller_wallet: OutsideWallet
    buyer: Path
    wallet: str
    file: Path

    @property
    def world(self) -> RegtestWorld:
        return self.server.world

    async def sell(self, *options: str) -> str:
        words = ("upload", str(self.file), "--price", f"{PRICE_SAT}sat", *options)
        upload = await self.server.command_json(*words, home=self.seller)
        return str(upload["link"])

    async def get(self, *words: str) -> Any:
        return await self.server.command_json("get", *words, home=self.buyer)

    async def invoice(self, receipt: str) -> wire.InvoiceView:
        where = parse(receipt)
        assert isinstance(where, Receipt)
        async with ServerApi(self.server.url) as api:
            return await get_invoice(api, where.invoice_id)

    async def until(self, receipt: str, status: str) -> wire.InvoiceView:
        async def there() -> bool:
            return (await self.invoice(receipt)).status == status

        await wait_until(there, f"the invoice to be {status}")
        return await self.invoice(receipt)

    async def until_received(self, receipt: str, amount_sat: int) -> None:
        async def there() -> bool:
            return (await self.invoice(receipt)).received_sat == amount_sat

        await wait_until(there, f"{amount_sat} sat to be received")


# One for all tests: each command costs a start of Python, and a market takes six.
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Market]:
    folder = tmp_path_factory.mktemp("market")
    server = ServedBitcache(world)
    try:
        await server.start()
        seller_wallet = await OutsideWallet.create(world, "market-seller")
        buyer_wallet = await OutsideWallet.create(world, BUYER_WALLET)
        for _ in range(10):
            await world.faucet(await buyer_wallet.new_address(), 1_000_000, confirmations=0)
        await world.mine()
        seller, buyer = folder / "seller", folder / "buyer"
        seller.mkdir()
        buyer.mkdir()
        words = ("account", "create", "Ada's music", "--data", str(server.data_folder))
        token = (await server.command_json(*words))["token"]
        await server.command("login", server.url, home=seller, stdin=token)
        descriptor = await seller_wallet.descriptor("wpkh")
        await server.command("payout", "set", "-", "--yes", home=seller, stdin=descriptor)
        file = folder / 'a "quoted" song.flac'
        file.write_bytes(random.Random(7).randbytes(20 * MIB + 5))
        cookie = f"?cookie={world.outside.cookie_path}"
        url = f"bitcoind:{world.outside.rpc_url}/wallet/{buyer_wallet.name}{cookie}"
        yield Market(server, seller, seller_wallet, buyer, url, file)
    finally:
        await server.close()


async def test_get_pays_waits_downloads_and_pays_once(market: Market, tmp_path: Path) -> None:
    earned_before = await market.server.command_json("earnings", home=market.seller)
    link = await market.sell("--title", "A song", "--note", "Two\nlines")
    target = tmp_path / "out"
    target.mkdir()
    getting = asyncio.create_task(market.get(link, "-o", str(target), "--pay", market.wallet, "--yes"))

    async def bought() -> bool:
        receipts = await market.server.command_json("receipts", home=market.buyer)
        return getting.done() or "A song" in {kept["title"] for kept in receipts}

    await wait_until(bought, "the first command to have its receipt")
    waiting = await market.get(link, "--no-wait")
    await market.until(waiting["receipt"], "seen")
    # Again while it is unconfirmed: the same invoice, the same transaction, nothing more.
    again = await market.get(link, "--no-wait", "--pay", market.wallet, "--yes")
    assert again["invoice_id"] == waiting["invoice_id"]
    await market.world.mine()
    done = await asyncio.wait_for(getting, 60)
    assert done["receipt"] == waiting["receipt"]
    assert (target / market.file.name).read_bytes() == market.file.read_bytes()
    assert [Path(file["path"]) for file in done["files"]] == [target / market.file.name]
    invoice = await market.until(waiting["receipt"], "settled")
    assert len(invoice.outputs) == 1
    assert invoice.received_sat == PRICE_SAT
    assert await market.seller_wallet.received_sat(waiting["address"], confirmations=1) == PRICE_SAT

    receipts = await market.server.command_json("receipts", home=market.buyer)
    kept = [(kept["receipt"], kept["title"], kept["price_sat"]) for kept in receipts]
    assert (done["receipt"], "A song", PRICE_SAT) in kept
    earned = await market.server.command_json("earnings", home=market.seller)
    assert earned["received_sat"] - earned_before["received_sat"] == PRICE_SAT
    csv = await market.server.command("earnings", "--csv", home=market.seller)
    assert str(PRICE_SAT) in csv


async def test_who_waits_to_pay_is_told_of_a_takedown(market: Market) -> None:
    link = await market.sell("--title", "Soon gone")
    getting = asyncio.create_task(market.get(link))
    receipt = (await market.get(link, "--no-wait"))["receipt"]
    assert (await market.invoice(receipt)).address is not None
    words = ("--reason", "court order 7", "--yes", "--data", str(market.server.data_folder))
    await market.server.command("takedown", link, *words)
    with pytest.raises(CommandFailed, match="taken these files down") as failed:
        await asyncio.wait_for(getting, 60)
    assert "Do not pay" in failed.value.output
    with pytest.raises(CommandFailed, match="taken these files down"):
        await market.get(receipt, "--no-wait")


async def test_nothing_is_paid_for_files_that_the_server_lost(market: Market) -> None:
    link = await market.sell()
    receipt = (await market.get(link, "--no-wait"))["receipt"]
    blob = max(market.server.data_folder.glob("blobs/*/*"), key=lambda path: path.stat().st_mtime)
    flip(blob, 0)
    with pytest.raises(CommandFailed):
        scrubbing = ("doctor", "--scrub", "--file", blob.name, "--data", str(market.server.data_folder))
        await market.server.command(*scrubbing)
    for bought in (link, receipt):
        with pytest.raises(CommandFailed, match="do not pay until") as refused:
            await market.get(bought, "--no-wait", "--pay", market.wallet, "--yes")
        assert refused.value.code == 1
    assert (await market.invoice(receipt)).received_sat == 0


async def test_prefetched_ciphertext_is_opened_after_the_block(market: Market, tmp_path: Path) -> None:
    link = await market.sell("--prefetch")
    waiting = await market.get(link, "--no-wait")
    invoice = await market.invoice(waiting["receipt"])
    assert invoice.address is not None
    # Above whatever the nodes' estimate has grown to: poorer payments are not prefetched.
    wallet = OutsideWallet(market.world.outside, BUYER_WALLET)
    await wallet.pay([(invoice.address, invoice.due_sat)], feerate_sat_vb=1_000)
    await market.until(waiting["receipt"], "seen")
    target = tmp_path / "out"
    target.mkdir()
    getting = asyncio.create_task(market.get(waiting["receipt"], "-o", str(target)))

    async def all_there() -> bool:
        maps = list(target.glob(".bitcache-*/0.sealed.map"))
        return bool(maps) and maps[0].read_bytes() == b"\x01" * 21

    await wait_until(all_there, "the ciphertext to be prefetched")
    assert not (target / market.file.name).exists()
    assert not list(target.glob(".bitcache-*/*.part"))
    await market.world.mine()
    await asyncio.wait_for(getting, 60)
    assert (target / market.file.name).read_bytes() == market.file.read_bytes()
    assert [path.name for path in target.iterdir()] == [market.file.name]


async def test_a_payment_is_signed_once_and_sent_as_often_as_it_takes(market: Market, tmp_path: Path) -> None:
    """A crash after signing, before or after broadcasting: the record makes it one and the same payment."""
    waiting = await market.get(await market.sell(), "--no-wait")
    invoice = await market.invoice(waiting["receipt"])
    record = tmp_path / "payments" / "one.json"
    first = BitcoindWallet(parse_wallet(market.wallet), "regtest")
    payment = await first.prepare(invoice, record)
    again = BitcoindWallet(parse_wallet(market.wallet), "regtest")
    assert await again.prepare(invoice, record) == payment
    assert record.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        await again.broadcast(payment)
    await market.until(waiting["receipt"], "seen")
    await market.world.mine()
    await again.broadcast(payment)
    assert (await market.until(waiting["receipt"], "settled")).received_sat == PRICE_SAT


async def test_a_wallet_of_another_network_does_not_pay(market: Market, tmp_path: Path) -> None:
    waiting = await market.get(await market.sell(), "--no-wait")
    wallet = BitcoindWallet(parse_wallet(market.wallet), "mainnet")
    with pytest.raises(WalletRefused, match="Nothing was paid"):
        await wallet.prepare(await market.invoice(waiting["receipt"]), tmp_path / "payment.json")
    assert not (tmp_path / "payment.json").exists()


async def test_a_wallet_without_money_says_so(market: Market) -> None:
    poor = await OutsideWallet.create(market.world, "market-poor")
    address = market.wallet.replace("market-buyer", poor.name)
    link = await market.sell()
    with pytest.raises(CommandFailed) as refusal:
        await market.get(link, "--pay", address, "--yes")
    assert refusal.value.code == 1
    error = json.loads(refusal.value.output[: refusal.value.output.index("\n}\n") + 2])
    assert error["error"]["name"] == "WalletRefused"
    assert "Insufficient funds" in error["error"]["detail"]


async def test_underpaid_then_topped_up(market: Market, tmp_path: Path) -> None:
    waiting = await market.get(await market.sell(), "--no-wait")
    payer = await OutsideWallet.create(market.world, "market-payer")
    await market.world.faucet(await payer.new_address(), 1_000_000)
    await payer.pay([(waiting["address"], PRICE_SAT - 10_000)])
    await market.until_received(waiting["receipt"], PRICE_SAT - 10_000)
    asked = await market.get(waiting["receipt"], "--no-wait")
    assert asked["amount_sat"] == 10_000
    assert "amount=0.00010000" in asked["uri"]
    getting = asyncio.create_task(
        market.get(waiting["receipt"], "-o", str(tmp_path / "song"), "--pay", market.wallet, "--yes")
    )
    await market.until_received(waiting["receipt"], PRICE_SAT)
    await market.world.mine()
    await asyncio.wait_for(getting, 60)
    assert (tmp_path / "song").read_bytes() == market.file.read_bytes()


async def test_the_seller_manages_offers(market: Market) -> None:
    link = await market.sell("--max-downloads", "5", "--expires", "30d")
    command = market.server.command_json
    offers = await command("offers", home=market.seller)
    (offer,) = [one["offer"] for one in offers if one["link"] == link]
    parcel_id, offer_id = offer["parcel_id"], offer["offer_id"]
    parcels = await command("parcels", home=market.seller)
    assert [one["files_count"] for one in parcels if one["parcel_id"] == parcel_id] == [1]
    added = await command("offer", "add", parcel_id, "--price", "0.0005btc", home=market.seller)
    assert added["link"].split("#")[1] == link.split("#")[1]
    words = ("offer", "edit", offer_id, "--price", "9000", "--expires", "never")
    edited = await command(*words, home=market.seller)
    assert edited["price"]["amount_msat"] == 9_000_000
    closed = await command("offer", "close", offer_id, home=market.seller)
    assert closed["state"] == "closed"
    with pytest.raises(CommandFailed, match="offer-unavailable") as refusal:
        await market.get(link, "--no-wait")
    assert refusal.value.code == 1
    await command("rm", parcel_id, "--yes", home=market.seller)
    parcels = await command("parcels", home=market.seller)
    assert parcel_id not in {one["parcel_id"] for one in parcels}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("get", "https://files.example.org/d/abcdefghijklmnopqrstuvwx23"), 1),
        (("get",), 2),
        (("upload", "/dev/null", "--price", "5"), 1),
        (("upload", ".", "--price", "-5"), 2),
        (("upload", "."), 2),
        (("offers",), 1),
        (("earnings", "--tz", "Nowhere/Land"), 2),
        (("payout", "set"), 2),
        (("login", "not-an-address", "--token", "bcs_x"), 1),
    ],
)
async def test_errors_are_words_and_exit_codes(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    process = await bitcache(tmp_path, *words)
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    assert b"Traceback" not in err
    assert err.strip()
