"""Servers of channels that lie to a payer: what they get is bounded, and nothing is signed on their word.

The lies are told in front of a real server with a real node; the client is the library that `bitcache` uses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from coincurve import PrivateKey

from bitcache.client.api import ServerApi
from bitcache.client.channels import ChannelServer, close_quote, reconcile
from bitcache.client.errors import (
    ChunksWithheld,
    ClientError,
    CloseQuoteRefused,
    FileAltered,
    PriceRose,
    ServerAnswerWrong,
    ServerUnreachable,
)
from bitcache.client.meter import WINDOW_CHUNKS
from bitcache.session_auth import record_digest
from payments.channel_keys import sign
from regtest.served import CommandFailed
from regtest.world import RegtestWorld
from storage import base64url
from storage.errors import ReleaseSecretWrong
from tests.channel_buyer import ChannelBuyer
from tests.channel_market import PRICE_SAT, ChannelMarket, open_channel_market
from tests.hostile_server import Answered, Lie, altered, lying

CHUNKS = 40
WINDOW_SAT = WINDOW_CHUNKS * PRICE_SAT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(
    world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ChannelMarket]:
    settings = {"CHANNELS_UNCONFIRMED_SAT": "5000", "CHANNELS_UNCONFIRMED_TOTAL_SAT": "1000000"}
    async with open_channel_market(world, tmp_path_factory.mktemp("hostile"), **settings) as market:
        yield market


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def link(market: ChannelMarket) -> str:
    return await market.sell(market.goods(CHUNKS))


@pytest_asyncio.fixture
async def lies() -> dict[str, Lie]:
    """Told from the moment they are put in here."""
    return {}


@pytest_asyncio.fixture
async def buyer(market: ChannelMarket, lies: dict[str, Lie], tmp_path: Path) -> AsyncIterator[ChannelBuyer]:
    async with lying(market.server.url, lies) as url:
        yield ChannelBuyer(market.world, tmp_path, url)


def at(buyer: ChannelBuyer, link: str) -> str:
    """The same offer at the server that lies."""
    return buyer.url + link[link.index("/d/") :]


async def test_another_address_is_not_paid(buyer: ChannelBuyer, lies: dict[str, Lie]) -> None:
    def elsewhere(document: Any) -> None:
        document["address"] = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"

    lies["deposits"] = altered(elsewhere)
    with pytest.raises(ServerAnswerWrong, match="Do not pay"):
        await buyer.open()
    # What takes a deposit back was kept all the same.
    assert len(buyer.book.contracts()) == 1


@pytest.mark.parametrize("swollen", ["fee", "paid", "both"])
async def test_a_close_is_signed_for_what_was_agreed_only(
    buyer: ChannelBuyer, lies: dict[str, Lie], link: str, swollen: str
) -> None:
    """A lower fee with a higher amount is the same signature: neither may be above its bound."""
    own = await buyer.open()
    await buyer.get(at(buyer, link))
    asked: list[str] = []

    def swell(document: Any) -> None:
        for channel in document["channels"]:
            quote = channel["close_quote"]
            quote["fee_sat"] += own.contract.close_fee_sat if swollen != "paid" else 0
            quote["paid_sat_min"] += 1 if swollen != "fee" else 0

    async def note(request: web.Request, answered: Answered) -> None:
        asked.append(request.headers["Authorization"])

    lies |= {"mine": altered(swell), "channels": note}
    async with ServerApi(buyer.url) as api:
        (one,) = await ChannelServer(api, buyer.book).mine(own.contract)
        with buyer.book.counting(own) as count, pytest.raises(CloseQuoteRefused):
            close_quote(own, count, one.view)
        assert not asked
        del lies["mine"]
        (one,) = await ChannelServer(api, buyer.book).mine(own.contract)
        with buyer.book.counting(own) as count:
            quote = close_quote(own, count, one.view)
        assert quote is not None
        assert (quote.paid_sat, quote.fee_sat <= own.contract.close_fee_sat) == (CHUNKS * PRICE_SAT, True)


def forged(change: Callable[[dict[str, Any]], None], key: PrivateKey) -> Lie:
    """A record changed, and signed again by `key`."""

    def lie(document: Any) -> None:
        for channel in document["channels"]:
            record = json.loads(channel["record"]["json"])
            change(record)
            text = json.dumps(record, separators=(",", ":"), sort_keys=True)
            channel["record"] = {"json": text, "signature": sign(key, record_digest(text.encode())).hex()}
            channel["accepted_sat"] = int(record["acceptedCumulative"])

    return altered(lie)


async def test_nothing_is_believed_of_what_was_signed_but_our_own_signature(
    buyer: ChannelBuyer, lies: dict[str, Lie], link: str
) -> None:
    own = await buyer.open()
    stranger = PrivateKey()

    def more(record: dict[str, Any]) -> None:
        record["acceptedCumulative"] = "5000"

    def others(record: dict[str, Any]) -> None:
        digest = own.channel.state(5_000).digest
        record |= {"acceptedCumulative": "5000", "signature": sign(stranger, digest).hex()}

    async with ServerApi(buyer.url) as api:
        talk = ChannelServer(api, buyer.book)
        for lie in (forged(lambda record: None, stranger), forged(more, stranger), forged(others, stranger)):
            lies["mine"] = lie
            with pytest.raises(ServerAnswerWrong):
                await talk.mine(own.contract)

        def higher(document: Any) -> None:
            document["channels"][0]["accepted_sat"] = 5_000

        lies["mine"] = altered(higher)
        (one,) = await talk.mine(own.contract)
        with buyer.book.counting(own) as count, pytest.raises(ServerAnswerWrong, match="shows nothing else"):
            reconcile(own, count, one.view, one.record)

        def lower(document: Any) -> None:
            document["accepted_sat"] -= 1

        lies["channels"] = altered(lower)
        with pytest.raises(ServerAnswerWrong, match="says it has one for"):
            await talk.voucher(own, 10)
    with pytest.raises(ServerAnswerWrong):
        await buyer.get(at(buyer, link))
    assert buyer.count(own).signed_sat == 0


async def test_wrong_bytes_cost_the_window_at_most_however_often_one_tries(
    buyer: ChannelBuyer, lies: dict[str, Lie], link: str
) -> None:
    own = await buyer.open()
    served = 0

    async def spoil(request: web.Request, answered: Answered) -> None:
        nonlocal served
        served += 1
        if served > 3 and answered.status == 206:
            answered.body = bytes(len(answered.body))

    lies["content"] = spoil
    refusals: set[type[ClientError]] = set()
    for _ in range(3):
        with pytest.raises((FileAltered, ChunksWithheld)) as failure:
            await buyer.get(at(buyer, link))
        refusals.add(failure.type)
        count = buyer.count(own)
        assert count.outstanding <= WINDOW_CHUNKS
        assert count.promised_msat - count.arrived_msat <= WINDOW_SAT * 1_000
    assert FileAltered in refusals
    # Once it is honest again, the chunks come, and cost nothing more.
    del lies["content"]
    path = await buyer.get(at(buyer, link))
    assert path.stat().st_size
    assert buyer.count(own).signed_sat == CHUNKS * PRICE_SAT


async def test_silence_costs_the_window_at_most(buyer: ChannelBuyer, lies: dict[str, Lie], link: str) -> None:
    own = await buyer.open()
    over = asyncio.Event()

    async def silent(request: web.Request, answered: Answered) -> web.StreamResponse:
        response = web.StreamResponse(status=answered.status, headers=answered.headers)
        await response.prepare(request)
        await over.wait()
        return response

    lies["content"] = silent
    for _ in range(2):
        with pytest.raises(ServerUnreachable):
            await buyer.get(at(buyer, link), retry_for_s=0.1, chunk_s_max=0.2)
        assert buyer.count(own).promised_msat <= WINDOW_SAT * 1_000
    over.set()


async def test_a_wrong_release_secret_costs_one_chunk(
    buyer: ChannelBuyer, lies: dict[str, Lie], link: str
) -> None:
    own = await buyer.open()

    async def other_secret(request: web.Request, answered: Answered) -> None:
        answered.headers["Bitcache-Release-Secret"] = base64url.encode(bytes(32))

    lies["content"] = other_secret
    for _ in range(3):
        with pytest.raises(ReleaseSecretWrong):
            await buyer.get(at(buyer, link))
    assert buyer.count(own).signed_sat == PRICE_SAT


async def test_a_whole_that_is_less_than_its_chunks_is_not_paid_for(
    market: ChannelMarket, buyer: ChannelBuyer, lies: dict[str, Lie], link: str, tmp_path: Path
) -> None:
    """Nobody is shown the one and pays the other."""

    def cheap(document: Any) -> None:
        document["metered"]["whole_msat"] = 1_000

    lies["offer"] = altered(cheap)
    with pytest.raises(CommandFailed, match="Nothing was paid"):
        await market.get(at(buyer, link), "-o", str(tmp_path / "out"))


def receipt(change: Callable[[dict[str, Any]], None]) -> Lie:
    async def lie(request: web.Request, answered: Answered) -> None:
        document = json.loads(base64url.decode(answered.headers["Payment-Receipt"]))
        change(document)
        answered.headers["Payment-Receipt"] = base64url.encode(msgspec.json.encode(document))

    return lie


async def test_charged_more_than_promised_it_stops(
    buyer: ChannelBuyer, lies: dict[str, Lie], link: str
) -> None:
    """A retry that is charged, or a price that is not the offer's."""
    own = await buyer.open()

    def charged(document: dict[str, Any]) -> None:
        document["spentMsat"] = str(int(document["spentMsat"]) + 1)

    lies["content"] = receipt(charged)
    with pytest.raises(ServerAnswerWrong, match="you agreed to"):
        await buyer.get(at(buyer, link))
    assert buyer.count(own).promised_msat <= WINDOW_SAT * 1_000

    async def short(request: web.Request, answered: Answered) -> web.StreamResponse:
        problem = {
            "type": "/problems/voucher-short",
            "title": "Short",
            "status": 402,
            "detail": "That costs more than the voucher covers: sign 5,000 sat in all.",
        }
        return web.json_response(problem, status=402, content_type="application/problem+json")

    lies["content"] = short
    with pytest.raises(ServerAnswerWrong, match="charges twice"):
        await buyer.get(at(buyer, link))

    def dearer(document: Any) -> None:
        document["metered"]["amount_msat"] *= 2

    lies["offer"] = altered(dearer)
    with pytest.raises(PriceRose):
        await buyer.get(at(buyer, link), price_msat=PRICE_SAT * 1_000)
    assert buyer.count(own).promised_msat <= WINDOW_SAT * 1_000
