"""The wallet to click beside `make serve`: each button does what it says; only regtest has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlencode

import aiohttp
import pytest
import pytest_asyncio

from bitcache.config_file import parse
from bitcache.errors import ConfigInvalid
from regtest.play_wallet import PlayWallet, parse_uri
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.till import Bought, Till, open_till

COIN_SAT = 1_000_000
COINS = 4


@pytest_asyncio.fixture
async def play_wallet(own_world: RegtestWorld) -> AsyncIterator[PlayWallet]:
    buyer = await OutsideWallet.create(own_world, "buyer")
    for _ in range(COINS):
        await own_world.faucet(await buyer.new_address(), COIN_SAT, confirmations=0)
    await own_world.mine()
    wallet = PlayWallet(own_world, buyer)
    await wallet.start()
    yield wallet
    await wallet.close()


async def press(wallet: PlayWallet, bought: Bought, deed: str, **headers: str) -> tuple[int, str]:
    """(status, page) of pressing a button for this invoice."""
    place = f"{wallet.url}?{urlencode({'uri': bought.invoice['uri']})}"
    async with (
        aiohttp.ClientSession() as http,
        http.post(place, data={"deed": deed}, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def received(till: Till, bought: Bought, amount_sat: int) -> None:
    await till.until(
        bought, lambda view: view["received_sat"] == amount_sat, f"{amount_sat} sat to be received"
    )


async def test_every_button_does_what_it_says(
    play_wallet: PlayWallet, own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path) as till:
        sold = await till.offer(price_sat=8_000)
        half, more, exact = [await till.buy(sold) for _ in range(3)]
        await press(play_wallet, half, "half")
        await received(till, half, 4_000)
        await press(play_wallet, more, "more")
        await received(till, more, 10_000)
        _, page = await press(play_wallet, exact, "pay")
        assert "Paid 8,000 sat" in page
        await received(till, exact, 8_000)
        await press(play_wallet, exact, "mine")
        await till.until(exact, lambda view: bool(view["key_allowed"]), "the key")
        await press(play_wallet, exact, "reorg")
        await till.until(exact, lambda view: bool(view["suspended"]), "the payment to leave the chain")
        await press(play_wallet, exact, "mine")
        await till.until(exact, lambda view: bool(view["key_allowed"]), "the key again")


async def test_a_payment_is_replaced_by_one_to_the_wallet_itself(
    play_wallet: PlayWallet, own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path) as till:
        bought = await till.buy(await till.offer(price_sat=8_000))
        _, page = await press(play_wallet, bought, "replace")
        assert "pay first" in page
        await press(play_wallet, bought, "pay")
        await received(till, bought, 8_000)
        _, page = await press(play_wallet, bought, "replace")
        assert "which pays me" in page
        await received(till, bought, 0)


async def test_other_sites_press_no_button(
    play_wallet: PlayWallet, own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path) as till:
        bought = await till.buy(await till.offer(price_sat=8_000))
        status, _ = await press(play_wallet, bought, "pay", Origin="http://evil.example")
        assert status == 403
        status, page = await press(play_wallet, bought, "steal", Origin=play_wallet.url.rstrip("/"))
        assert (status, "press one of the buttons" in page) == (200, True)
        assert (await till.invoice(bought))["received_sat"] == 0


async def test_what_it_shows_is_escaped(play_wallet: PlayWallet) -> None:
    uri = "bitcoin:<script>alert(1)</script>?amount=0.001"
    async with aiohttp.ClientSession() as http, http.get(f"{play_wallet.url}?uri={quote(uri)}") as answer:
        page = await answer.text()
    assert "100,000 sat" in page
    assert "<script>" not in page


@pytest.mark.parametrize(
    "uri",
    ["", "bitcoin:", "bitcoin:abc", "bitcoin:abc?amount=x", "bitcoin:abc?amount=0", "http://a?amount=1"],
)
def test_nothing_else_is_paid(uri: str) -> None:
    with pytest.raises(ValueError, match="open this page from a payment page"):
        parse_uri(uri)


def test_a_uri_says_whom_and_how_much() -> None:
    assert parse_uri("bitcoin:bcrt1qxyz?amount=0.00005000&label=BC-1") == ("bcrt1qxyz", 5_000)


async def test_the_payment_page_leads_to_it_where_it_is_configured(
    world: RegtestWorld, tmp_path: Path
) -> None:
    wallet = "http://localhost:1/"
    for name, setting, shown in (("with", wallet, True), ("without", "", False)):
        folder = tmp_path / name
        folder.mkdir()
        async with open_till(world, folder, regtest_wallet_url=setting) as till:
            bought = await till.buy(await till.offer(price_sat=8_000))
            async with till.http.get(f"/r/{bought.id}") as answer:
                page = await answer.text()
        assert (f'href="{wallet}?{urlencode({"uri": bought.invoice["uri"]})}"' in page) is shown
        assert ("play wallet" in page) is shown


@pytest.mark.parametrize("network", ["mainnet", "signet", "testnet4"])
def test_no_network_with_real_users_has_it(network: str, tmp_path: Path) -> None:
    document = {"network": network, "regtest_wallet_url": "http://localhost:1/"}
    with pytest.raises(ConfigInvalid, match="regtest"):
        parse(document, data_folder=tmp_path)
    assert parse({**document, "network": "regtest"}, data_folder=tmp_path).regtest_wallet_url
