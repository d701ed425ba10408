"""Selling per chunk from the command line: told, asked, uploaded, listed, changed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bitcache.cli.output import UsageWrong
from bitcache.cli.price_words import parse_metered, show_msat
from bitcache.config import ChannelsConfig
from storage.stream import CHUNK_SIZE_BYTES
from tests.metered_counter import MeteredCounter, open_metered_till
from tests.test_bitcache_cli_seller import Seller

CHUNKS = 3
"""Of `goods`: a file of two, and a file of one."""


@pytest.mark.parametrize(
    ("text", "amount_msat"),
    [
        ("10sat/chunk", 10_000),
        ("10sat", 10_000),
        ("10", 10_000),
        ("10 sat / chunk", 10_000),
        ("500msat/chunk", 500),
        ("1_000MSAT", 1_000),
        ("1msat", 1),
        ("1000000sat", 1_000_000_000),
    ],
)
def test_a_price_of_a_chunk_is_read(text: str, amount_msat: int) -> None:
    assert parse_metered(text).amount_msat == amount_msat


@pytest.mark.parametrize(
    "text",
    ["", "0", "0msat", "-1", "1.5sat", "10btc", "10sat/mib", "1000001sat", "sat", "10sat/chunk/chunk", "٣"],
)
def test_what_is_no_price_of_a_chunk_is_refused(text: str) -> None:
    with pytest.raises(UsageWrong):
        parse_metered(text)


def test_amounts_are_shown_in_whole_sats_where_they_are() -> None:
    assert [show_msat(amount) for amount in (1, 1_000, 1_500, 12_000_000)] == [
        "1 msat",
        "1 sat",
        "1,500 msat",
        "12,000 sat",
    ]


def seller_of(shop: MeteredCounter, home: Path) -> Seller:
    home.mkdir(exist_ok=True)
    return Seller(shop.till.server, shop.till.account.token, home)


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[MeteredCounter]:
    async with open_metered_till(tmp_path) as shop:
        yield shop


@pytest_asyncio.fixture
async def seller(shop: MeteredCounter, tmp_path: Path) -> Seller:
    return seller_of(shop, tmp_path / "home")


def goods(seller: Seller) -> str:
    folder = seller.home / "film"
    folder.mkdir(exist_ok=True)
    (folder / "long").write_bytes(bytes(CHUNK_SIZE_BYTES))
    (folder / "short").write_bytes(b"")
    return str(folder)


async def listed(shop: MeteredCounter) -> list[Any]:
    status, view = await shop.ask("GET", "/offers")
    assert status == 200
    return list(view["items"])


async def test_a_seller_is_told_what_it_means_and_uploads_after_a_yes(
    shop: MeteredCounter, seller: Seller
) -> None:
    upload = ("upload", goods(seller), "--metered", "10sat/chunk")
    code, _, err = await seller.signed_in(*upload, answer="n\n")
    assert code == 1
    for words in (
        "10 sat for each started MiB",
        "3 chunks: 30 sat",
        "The operator holds the money",
        "less 1 %",
        "Nothing was changed",
    ):
        assert words in err, words
    assert await listed(shop) == []
    code, out, err = await seller.signed_in(*upload, answer="y\n")
    assert code == 0, err
    assert out.startswith(f"{seller.server.url}/d/")
    (offer,) = await listed(shop)
    assert (offer["price"], offer["metered"]["amount_msat"], offer["metered"]["chunks"]) == (
        None,
        10_000,
        CHUNKS,
    )
    _, parcel = await shop.ask("GET", f"/parcels/{offer['parcel_id']}")
    assert parcel["meterable"] is True


async def test_who_cannot_be_asked_must_have_said_yes(shop: MeteredCounter, seller: Seller) -> None:
    assert (await shop.ask("PATCH", "/account", {"settlement": "hosted"}))[0] == 200
    upload = ("upload", goods(seller), "--metered", "500msat", "--price", "5000sat")
    assert (await seller.signed_in(*upload))[0] == 1
    assert (await seller.signed_in(*upload, "--json"))[0] == 2
    assert await listed(shop) == []
    code, out, err = await seller.signed_in(*upload, "--json", "--yes")
    assert code == 0, err
    report = json.loads(out)
    assert (report["price_sat"], report["metered"]["whole_msat"]) == (5_000, CHUNKS * 500)
    code, out, _ = await seller.signed_in("offers")
    assert "5,000 sat or 500 msat/chunk" in out

    # Other terms for the same parcel, and changes of them.
    parcel_id, offer_id = report["parcel_id"], report["offer_id"]
    code, _, err = await seller.signed_in("offer", "add", parcel_id, "--metered", "2sat", answer="n\n")
    assert code == 1
    assert "The operator holds the money" in err
    code, out, err = await seller.signed_in("offer", "add", parcel_id, "--metered", "2sat", "--yes")
    assert code == 0, err
    code, out, err = await seller.signed_in("offer", "edit", offer_id, "--metered", "3", "--price", "none")
    assert (code, out.strip()) == (0, f"{offer_id}: open, 3 sat/chunk"), err
    code, _, err = await seller.signed_in("offer", "edit", offer_id, "--metered", "none")
    assert code == 1
    assert "An offer needs a price" in err
    edit = ("offer", "edit", offer_id, "--metered", "none", "--price", "6000sat")
    code, out, err = await seller.signed_in(*edit)
    assert (code, out.strip()) == (0, f"{offer_id}: open, 6,000 sat"), err
    # Who stopped is asked again.
    code, _, err = await seller.signed_in("offer", "edit", offer_id, "--metered", "4")
    assert code == 1
    assert "Answer y, or add --yes" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Say what it costs"),
        (("--metered", "10btc"), "no price of a chunk"),
        (("--metered", "1", "--prefetch"), "leave out --prefetch"),
        (("--metered", "1", "--max-downloads", "3"), "leave out --max-downloads"),
        (("--metered", "1", "--price", "0"), "free as a whole"),
    ],
)
async def test_what_the_server_would_refuse_is_refused_before_the_upload(
    shop: MeteredCounter, seller: Seller, options: tuple[str, ...], words: str
) -> None:
    code, _, err = await seller.signed_in("upload", goods(seller), *options, "--yes")
    assert code == 2
    assert words in err
    _, account = await shop.ask("GET", "/account")
    assert account["bytes_stored"] == 0


@pytest.mark.parametrize(
    ("changes", "target", "words"),
    [
        ({"channels": ChannelsConfig()}, True, "This server sells nothing per chunk"),
        ({}, False, "bitcache payout address"),
    ],
)
async def test_who_cannot_be_paid_uploads_nothing(
    tmp_path: Path, changes: dict[str, Any], target: bool, words: str
) -> None:
    async with open_metered_till(tmp_path, target=target, changes=changes) as shop:
        seller = seller_of(shop, tmp_path / "home")
        code, _, err = await seller.signed_in("upload", goods(seller), "--metered", "1", "--yes")
        assert code == 1
        assert words in err
        _, account = await shop.ask("GET", "/account")
        assert account["bytes_stored"] == 0
