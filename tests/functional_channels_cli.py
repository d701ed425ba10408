"""A buyer who pays per chunk with the `bitcache` command, on a real node and a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bitcache.client.channel_book import ChannelBook
from regtest.install import BitcoindInstallation
from regtest.node import sat, wait_until
from regtest.served import CommandFailed
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.channel_market import DEPOSIT_SAT, PRICE_SAT, ChannelMarket, open_channel_market

CHUNKS = 12
UNCONFIRMED_SAT = 60


# A world of their own: the last test mines until channels expire.
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(
    bitcoind: BitcoindInstallation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ChannelMarket]:
    folder = tmp_path_factory.mktemp("channels")
    settings = {
        "CHANNELS_UNCONFIRMED_SAT": str(UNCONFIRMED_SAT),
        "CHANNELS_LIFE_BLOCKS": "290",
        "CHANNELS_CONTRACTS_MAX": "1",
    }
    async with (
        RegtestWorld(installation=bitcoind) as world,
        open_channel_market(world, folder, **settings) as market,
    ):
        yield market


@dataclass(frozen=True)
class Sold:
    """What most tests buy, each with channels of its own."""

    file: Path
    link: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sold(market: ChannelMarket) -> Sold:
    file = market.goods(CHUNKS)
    return Sold(file, await market.sell(file))


@pytest_asyncio.fixture(loop_scope="module")
async def clean(market: ChannelMarket) -> ChannelMarket:
    """Without channels of earlier tests."""
    for kept in market.channels_folder.glob("*.json"):
        kept.unlink()
    return market


async def refused(market: ChannelMarket, *words: str) -> tuple[int, dict[str, Any]]:
    """(exit code, error) of a command that fails."""
    with pytest.raises(CommandFailed) as failure:
        await market.command(*words)
    document, _ = json.JSONDecoder().raw_decode(failure.value.output)
    return failure.value.code, document["error"]


async def test_from_the_deposit_to_the_close_every_sat_is_where_it_belongs(
    clean: ChannelMarket, sold: Sold, tmp_path: Path
) -> None:
    market, file, link = clean, sold.file, sold.link
    code, error = await refused(market, "get", link, "--yes")
    assert (code, error["name"]) == (1, "ChannelMissing")
    assert "bitcache channel open" in error["detail"]

    opened = await market.open_channel()
    (channel,) = opened["channels"]
    done = await market.get(link, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    assert (done["status"], done["metered"]["chunks"]) == ("done", CHUNKS)
    assert done["metered"]["spent_msat"] == CHUNKS * PRICE_SAT * 1_000
    standing = await market.standing(channel["channel_id"])
    assert (standing["accepted_sat"], standing["spent_msat"]) == (
        CHUNKS * PRICE_SAT,
        CHUNKS * PRICE_SAT * 1_000,
    )

    # Elsewhere again: nothing is paid twice.
    done = await market.get(link, "-o", str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert done["metered"]["spent_msat"] == 0
    assert (await market.standing(channel["channel_id"]))["accepted_sat"] == CHUNKS * PRICE_SAT

    ended = await market.command("channel", "close", market.server.url, "--yes")
    assert ended["channels"][0]["state"] == "closing"
    outpoint = channel["channel_id"].split(":")

    async def spent() -> bool:
        return await market.world.outside.rpc("gettxout", outpoint[0], int(outpoint[1])) is None

    await wait_until(spent, "the close to reach the network")
    await market.mine()
    kept = ChannelBook(market.channels_folder).channel(channel["channel_id"])
    change = kept.channel.contract.change_script_pubkey
    received = await market.world.outside.rpc("scantxoutset", "start", [f"raw({change.hex()})"])
    (coin,) = received["unspents"]
    # Two sat/vB were set aside for 194 vB, and a close with P2WPKH change has fewer.
    back_sat = DEPOSIT_SAT - CHUNKS * PRICE_SAT - kept.contract.close_fee_sat
    assert back_sat <= sat(coin["amount"]) <= DEPOSIT_SAT - CHUNKS * PRICE_SAT

    async def closed() -> bool:
        view = await market.standing(channel["channel_id"])
        return bool(view["state"] == "closed" and view["close"]["confirmations"] >= 1)

    await wait_until(closed, "the list to show the close")


async def test_the_backup_is_shown_and_kept_before_the_server_hears_of_the_address(
    clean: ChannelMarket, tmp_path: Path
) -> None:
    market = clean
    change = await market.buyer_wallet.new_address()
    words = ("channel", "open", market.server.url, "--deposit", "20000sat", "--change", change)
    process = await market.start(*words, "--no-wait")
    out, err = await process.communicate()
    assert process.returncode == 0, err
    events = [json.loads(line) for line in err.decode().splitlines()]
    assert [event["event"] for event in events] == ["terms", "backup", "address"]
    assert events[0]["fee_percent"] <= 10
    document = json.loads(out)
    assert document["backup"] == events[1]["backup"]
    (kept,) = ChannelBook(market.channels_folder).contracts()
    assert (kept.backup_line, kept.address) == (document["backup"], document["address"])
    listed = await market.command("channel", "list", "--backup")
    assert [one["backup"] for one in listed["awaiting_deposit"]] == [document["backup"]]

    # Any wallet pays, twice: two channels under one contract, which the list opens.
    for amount_sat in (5_000, 6_000):
        await market.world.faucet(document["address"], amount_sat, confirmations=0)

    async def both() -> bool:
        listed = await market.command("channel", "list")
        states = [one["server_view"]["state"] for one in listed["channels"]]
        return states == ["open", "open"] and not listed["awaiting_deposit"]

    await wait_until(both, "both deposits to be open")


async def test_max_spend_stops_before_and_goes_on_later(
    clean: ChannelMarket, sold: Sold, tmp_path: Path
) -> None:
    market, file, link = clean, sold.file, sold.link
    (channel,) = (await market.open_channel())["channels"]
    limit_sat = 5 * PRICE_SAT + PRICE_SAT // 2
    out = tmp_path / "out"
    code, error = await refused(
        market, "get", link, "--yes", "-o", str(out), "--max-spend", f"{limit_sat}sat"
    )
    assert (code, error["name"]) == (3, "SpendingLimitReached")
    assert not out.exists()
    standing = await market.channel(channel["channel_id"])
    assert (standing["signed_sat"], standing["chunks_outstanding"]) == (5 * PRICE_SAT, 0)
    done = await market.get(link, "-o", str(out))
    assert out.read_bytes() == file.read_bytes()
    assert done["metered"]["spent_msat"] == (CHUNKS - 5) * PRICE_SAT * 1_000
    assert (await market.standing(channel["channel_id"]))["spent_msat"] == CHUNKS * PRICE_SAT * 1_000


async def test_max_spend_bounds_chunks_and_says_so(clean: ChannelMarket, tmp_path: Path) -> None:
    market, file = clean, clean.goods(1)
    await market.server.command_json("settlement", "hosted", "--yes", home=market.seller)
    link = await market.sell(file, "--price", "2000sat")
    await market.open_channel()
    get = ("get", link, "--yes", "-o", str(tmp_path / "out"), "--max-spend", f"{PRICE_SAT - 1}sat")
    # The whole has a price that no --max-spend would stop.
    code, error = await refused(market, *get)
    assert (code, error["name"]) == (2, "UsageWrong")
    assert "add --metered" in error["detail"]
    # The same command would never go on.
    code, error = await refused(market, *get, "--metered")
    assert (code, error["name"]) == (3, "SpendingLimitReached")
    assert f"A chunk costs {PRICE_SAT} sat" in error["detail"]


async def test_unconfirmed_it_pays_a_little_and_waits_for_the_block(
    clean: ChannelMarket, sold: Sold, tmp_path: Path
) -> None:
    market, file, link = clean, sold.file, sold.link
    (channel,) = (await market.open_channel(confirmations=0))["channels"]
    assert channel["payable_sat_max"] == UNCONFIRMED_SAT
    out = tmp_path / "out"
    code, error = await refused(market, "get", link, "--yes", "-o", str(out), "--no-wait")
    assert (code, error["name"]) == (1, "DepositUnconfirmed")
    standing = await market.channel(channel["channel_id"])
    assert (standing["signed_sat"], standing["chunks_outstanding"]) == (UNCONFIRMED_SAT, 0)

    getting = await market.start("get", link, "--yes", "-o", str(out))
    assert getting.stderr is not None
    async with asyncio.timeout(60):
        while b'"channel"' not in (told := await getting.stderr.readline()):
            assert told, "it ended without waiting"
    assert "needs a block" in told.decode() or "a block is needed" in told.decode()
    # Two that sign for one channel would promise the same twice.
    _, error = await refused(market, "channel", "close", "--yes")
    assert error["name"] == "AlreadyRunning"
    _, error = await refused(market, "get", link, "--yes", "-o", str(tmp_path / "other"))
    assert error["name"] == "AlreadyRunning"
    await market.mine()
    await asyncio.wait_for(getting.communicate(), 60)
    assert getting.returncode == 0
    assert out.read_bytes() == file.read_bytes()
    assert (await market.standing(channel["channel_id"]))["spent_msat"] == CHUNKS * PRICE_SAT * 1_000


async def test_a_channel_that_is_used_up_is_followed_by_the_next(
    clean: ChannelMarket, tmp_path: Path
) -> None:
    """Two deposits, each too small for the parcel."""
    market, file = clean, clean.goods(CHUNKS)
    link = await market.sell(file, price="200sat/chunk")
    first = (await market.open_channel(deposit_sat=2_100, confirmations=0))["channels"][0]["channel_id"]
    _, error = await refused(market, "get", link, "--yes", "-o", str(tmp_path / "out"))
    assert error["name"] == "ChannelMissing"
    second = (await market.open_channel(deposit_sat=2_600))["channels"][0]["channel_id"]
    await market.get(link, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    spent = [(await market.standing(one))["spent_msat"] for one in (first, second)]
    assert sum(spent) == CHUNKS * 200_000
    assert min(spent) > 0


async def test_a_risen_price_is_asked_for_and_not_paid(clean: ChannelMarket, tmp_path: Path) -> None:
    """The price rises between the runs and, seen by a client that holds the old one, within a run."""
    market, file = clean, clean.goods(CHUNKS)
    link = await market.sell(file)
    await market.open_channel()
    out = tmp_path / "out"
    await refused(market, "get", link, "--yes", "-o", str(out), "--max-spend", "30sat")
    offer_id = link.partition("/d/")[2].partition("#")[0]
    token = json.loads((market.seller / "config-home/bitcache/credentials.json").read_text())["token"]
    body = {"metered": {"kind": "per_chunk", "amount_msat": 20_000}}
    answer = await market.server.http("PATCH", f"/offers/{offer_id}", body=body, token=token)
    assert answer.status == 200, answer.body
    process = await market.start("get", link, "-o", str(out), as_json=False)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert "20 sat/chunk" in err.decode()
    assert "180 sat" in err.decode()
    # Where nobody looks at it, the price of then holds, or a limit.
    _, error = await refused(market, "get", link, "--yes", "-o", str(out))
    assert error["name"] == "PriceRose"
    done = await market.get(link, "-o", str(out), "--max-spend", "1000sat")
    assert out.read_bytes() == file.read_bytes()
    assert done["metered"]["spent_msat"] == (CHUNKS - 3) * 20_000


async def test_a_deposit_that_the_server_forgot_is_opened_by_its_outpoint(clean: ChannelMarket) -> None:
    market = clean
    change = await market.buyer_wallet.new_address()
    words = ("channel", "open", market.server.url, "--deposit", "20000sat", "--change", change, "--no-wait")
    # One contract without a deposit is remembered here: the second drives the first out.
    address, _ = [(await market.command(*words))["address"] for _ in range(2)]
    txid = await market.world.faucet(address, 7_000, confirmations=0)
    listed = await market.command("channel", "list")
    assert (listed["channels"], len(listed["awaiting_deposit"])) == ([], 2)
    outputs = (await market.world.outside.rpc("getrawtransaction", txid, 1))["vout"]
    (vout,) = [one["n"] for one in outputs if one["scriptPubKey"]["address"] == address]
    deposit = f"{txid}:{vout}"
    found = ("channel", "found", deposit, "--amount")
    code, error = await refused(market, *found, "7000sat")
    assert (code, error["name"]) == (2, "UsageWrong")
    await refused(market, *found, "7001sat", "--address", address)
    (channel,) = (await market.command(*found, "7000sat", "--address", address))["channels"]
    assert (channel["channel_id"], channel["state"], channel["capacity_sat"]) == (deposit, "open", 7_000)
    assert (await market.channel(deposit))["left_sat"] > 0


async def test_lost_with_the_computer_and_recovered_with_the_backup_line(
    clean: ChannelMarket, sold: Sold, tmp_path: Path
) -> None:
    market, file, link = clean, sold.file, sold.link
    opened = await market.open_channel()
    channel_id = opened["channels"][0]["channel_id"]
    lost = tmp_path / "lost" / "file"
    await refused(market, "get", link, "--yes", "-o", str(lost), "--max-spend", "50sat")

    home = tmp_path / "new computer"
    home.mkdir()
    backup = tmp_path / "backup.txt"
    backup.write_text(opened["backup"] + "\n")
    words = ("channel", "recover", market.server.url, "--backup-file", str(backup))
    recovered = await market.command(*words, home=home)
    assert [one["channel_id"] for one in recovered["channels"]] == [channel_id]
    assert recovered["channels"][0]["signed_sat"] == 50
    got = await market.command("get", link, "--yes", "-o", str(tmp_path / "out"), home=home)
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    # The five that were paid for came again, for nothing. Signed for they were twice; the next look at what
    # was charged makes that good: later chunks are paid out of it.
    await market.command("channel", "list", home=home)
    standing = await market.channel(channel_id, home=home)
    assert standing["server_view"]["spent_msat"] == CHUNKS * PRICE_SAT * 1_000
    assert got["metered"]["chunks"] == CHUNKS
    assert standing["signed_sat"] == CHUNKS * PRICE_SAT


async def test_refunded_after_expiry_by_the_line_alone(clean: ChannelMarket, tmp_path: Path) -> None:
    """The last one: it stops the server for good."""
    market, world = clean, clean.world
    opened = await market.open_channel()
    channel_id = opened["channels"][0]["channel_id"]
    wallet = await OutsideWallet.create(world, "refunded")
    to = await wallet.new_address()
    early = await market.command("channel", "refund", channel_id, "--to", to, "--yes")
    assert (early["sent"], early["expiry_height"]) == (False, opened["expiry_height"])
    for command in (("refund", channel_id[:12], "--to", to, "--yes"), ("close", channel_id[:64], "--yes")):
        code, error = await refused(market, "channel", *command)
        assert code == 2
        assert "no whole channel id" in error["detail"]
    # Nobody said what it may cost: it is shown, and asked for.
    code, error = await refused(market, "channel", "refund", channel_id, "--to", to)
    assert (code, error["name"]) == (2, "UsageWrong")
    process = await market.start("channel", "refund", channel_id, "--to", to, as_json=False)
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert f"{early['fee_sat']:,} sat network fee" in err.decode()
    assert f"{early['amount_sat']:,} sat to {to}" in err.decode()
    await market.server.stop()
    height = await world.outside.rpc("getblockcount")
    await world.mine(opened["expiry_height"] - height)
    # Another computer, with nothing but the line.
    home = tmp_path / "other"
    home.mkdir()
    words = ("--to", to, "--outpoint", channel_id, "--amount", str(DEPOSIT_SAT), "--feerate", "3")
    made = await market.command("channel", "refund", opened["backup"], *words, home=home)
    await world.outside.rpc("sendrawtransaction", made["transaction"])
    await world.mine()
    assert DEPOSIT_SAT - 600 < await wallet.received_sat(to, confirmations=1) < DEPOSIT_SAT
