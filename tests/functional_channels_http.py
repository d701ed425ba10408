"""Channels over HTTP against the real server and node: terms, deposits, vouchers, chunks, closes, refunds.

One server serves the whole file: each test has channels and offers of its own. Every answer is held against
the API's document.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from coincurve import PublicKey
from coincurve.ecdsa import cdata_to_der, deserialize_compact
from sqlalchemy import select

from bitcache import takedown
from bitcache.session_auth import RECORD_LABEL
from payments.channel_close import refund_transaction
from payments.ports import Transaction
from payments.tables import channel_sales, channels
from payments.tables import metadata as payments_tables
from regtest.world import RegtestWorld
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES as CHUNK
from tests.hosted_shop import open_hosted_till
from tests.metered_shop import API, Answered, MeteredShop, Payer, open_metered_shop, piece
from tests.till import RELEASE_SECRET

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeteredShop]:
    async with open_metered_shop(world, tmp_path_factory.mktemp("metered")) as shop:
        yield shop


async def opened(shop: MeteredShop, *, deposit_sat: int = 20_000, confirmations: int = 1) -> Payer:
    payer = await shop.payer(deposit_sat=deposit_sat, confirmations=confirmations)
    answer = await payer.open()
    assert answer.status == 200, answer.body
    return payer


async def row(shop: MeteredShop, payer: Payer) -> Any:
    """The channel as it is on the disk: (accepted_sat, spent_msat, state)."""

    async def read(tx: Transaction) -> Any:
        chosen = select(channels.c.accepted_sat, channels.c.spent_msat, channels.c.state)
        return (await tx.execute(chosen.where(channels.c.id == payer.id))).one()

    return await shop.services.database.read(read)


# --- terms and deposits -------------------------------------------------------------------------------------


async def test_terms_and_demands_write_nothing(shop: MeteredShop) -> None:
    sold = await shop.offer(whole_sat=5_000)

    async def dump() -> dict[str, Any]:
        async def read(tx: Transaction) -> dict[str, Any]:
            tables = [
                table
                for table in payments_tables.tables.values()
                # The watcher's and the lease's heartbeats.
                if table.name not in {"watcher_state", "channel_host", "blocks", "outages"}
            ]
            return {t.name: sorted(map(repr, await tx.execute(select(t)))) for t in tables}

        found: dict[str, Any] = await shop.services.database.read(read)
        return found

    before = await dump()
    for _ in range(20):
        await shop.terms()
        assert (await shop.ask("GET", sold.content, headers={"Range": "bytes=0-9"})).status == 402
        assert (await shop.ask("HEAD", sold.content)).status == 402
    assert await dump() == before


async def test_each_answer_has_terms_of_its_own(shop: MeteredShop) -> None:
    first, second = await shop.terms(), await shop.terms()
    assert first["payee_key"] != second["payee_key"]
    assert first["network"] == "regtest"
    assert first["expiry_height"] == first["tip_height"] + shop.services.config.channels.life_blocks
    assert first["exposure"]["unconfirmed_sat"] == 500


async def test_a_402_names_every_way_to_pay(shop: MeteredShop) -> None:
    alone, both = await shop.offer(), await shop.offer(whole_sat=5_000)
    (session,) = (await shop.ask("GET", alone.content)).challenges
    assert 'intent="session"' in session
    charge, session = (await shop.ask("GET", both.content)).challenges
    assert 'intent="charge"' in charge
    assert 'intent="session"' in session
    # Who asks for an invoice gets one, where there is one.
    wanted = {"Accept-Payment": "bitcoin/charge"}
    bound, session = (await shop.ask("GET", both.content, headers=wanted)).challenges
    request = json.loads(base64url.decode(bound.split('request="')[1].rstrip('"')))
    assert "recipient" in request
    (session,) = (await shop.ask("GET", alone.content, headers=wanted)).challenges
    assert 'intent="session"' in session
    plain = await shop.hosted.till.offer(price_sat=5_000)
    (charge,) = (await shop.ask("GET", plain.content)).challenges
    assert 'intent="charge"' in charge


async def test_an_announced_deposit_is_seen_and_several_are_several_channels(shop: MeteredShop) -> None:
    payer = await shop.payer(deposit_sat=5_000, confirmations=0)
    first = payer.id
    await payer.deposit(7_000)
    views = {view["channel_id"]: view for view in (await payer.announce())["channels"]}
    assert [views[first]["capacity_sat"], views[payer.id]["capacity_sat"]] == [5_000, 7_000]
    assert {view["state"] for view in views.values()} == {"funded"}
    assert {view["payable_sat_max"] for view in views.values()} == {500}
    assert (await payer.open(10)).status == 200
    payer.hold(first, 5_000)
    assert (await payer.open(20)).status == 200
    mine = (await payer.mine()).json["channels"]
    assert {one["channel_id"]: one["accepted_sat"] for one in mine} == {
        first: 20,
        **{view: 10 for view in views if view != first},
    }


async def test_who_paid_first_and_told_nobody_opens_by_the_outpoint(shop: MeteredShop) -> None:
    terms = await shop.terms()
    payer = await shop.announced()
    payer.terms = terms  # of which the server knows nothing
    payer.address = str(
        (await shop.world.outside.rpc("decodescript", payer.contract.script_pubkey.hex()))["address"]
    )
    await payer.deposit(20_000, seen=False)
    answer = await payer.open(100)
    assert answer.status == 200, answer.body
    assert (answer.json["state"], answer.json["confirmations"]) == ("open", 0)
    assert answer.receipt["acceptedCumulative"] == "100"
    again = await payer.open(100)
    assert again.json["accepted_sat"] == 100, "asked again it is the same channel"


# --- paying -------------------------------------------------------------------------------------------------


async def test_a_chunk_comes_with_key_and_receipt(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(chunks=3), await opened(shop)
    answer = await payer.get(sold, 1, price_sat=10)
    assert (answer.status, answer.body) == (206, piece(sold, 1))
    assert answer.headers["Content-Range"] == f"bytes {CHUNK}-{2 * CHUNK - 1}/{2 * CHUNK + 100}"
    assert base64url.decode(answer.headers["Bitcache-Release-Secret"]) == RELEASE_SECRET
    assert answer.receipt | {"timestamp": ""} == {
        "method": "bitcoin",
        "intent": "session",
        "status": "success",
        "timestamp": "",
        "reference": payer.id,
        "acceptedCumulative": "10",
        "spent": "10",
        "spentMsat": "10000",
    }
    # The last chunk is short and costs as much; several in one request cost each.
    assert (await payer.get(sold, 2, price_sat=10)).body == piece(sold, 2)
    both = await payer.get(sold, 0, chunks=2, price_sat=10)
    assert (both.body, both.receipt["spentMsat"]) == (piece(sold, 0, 2), "30000")
    assert tuple(await row(shop, payer)) == (30, 30_000, "open")


async def test_a_small_file_needs_no_range(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(chunks=2), await opened(shop)
    answer = await payer.get(sold, price_sat=20, headers={})
    assert (answer.status, answer.body) == (200, piece(sold, 0, 2))


async def test_a_head_costs_nothing_and_tells_no_key(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    answer = await payer.get(sold, method="HEAD", payload=payer.voucher(10))
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(2 * CHUNK + 100))
    assert "Bitcache-Release-Secret" not in answer.headers
    assert "Payment-Receipt" not in answer.headers
    assert tuple(await row(shop, payer)) == (0, 0, "open")


async def test_a_thousand_payments(shop: MeteredShop) -> None:
    sold = await shop.offer(chunks=21)
    payer = await opened(shop, confirmations=0)
    for _ in range(40):
        assert (await payer.sign_away(10)).status == 200
    # Below a confirmation up to 500 sat in all, then a block is needed, and nothing is lost.
    assert (await payer.sign_away(110)).problem == "confirmations-needed"
    assert tuple(await row(shop, payer)) == (400, 0, "open")
    await shop.hosted.mine()
    await payer.until(lambda view: bool(view["payable_sat_max"] > 500))
    await shop.services.channels.registry.poll_once()

    for chunk in range(20):  # of what was signed away already
        answer = await payer.get(sold, chunk)
        assert (answer.status, answer.body) == (206, piece(sold, chunk)), answer.body[:300]
    for _ in range(6):
        vouchers = [payer.voucher(payer.paid_sat + 10 * (n + 1)) for n in range(160)]
        payer.paid_sat += 1_600
        answers = await asyncio.gather(*(payer.use(voucher) for voucher in vouchers))
        assert {answer.status for answer in answers} == {200}
    assert payer.paid_sat == 10_000
    assert tuple(await row(shop, payer)) == (10_000, 200_000, "open")


async def test_sixteen_at_once_are_all_served_and_charged_once(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(chunks=16), await opened(shop)
    chunks = list(range(16))
    random.Random(6).shuffle(chunks)
    vouchers = [payer.voucher(10 * (n + 1)) for n in range(16)]
    answers = await asyncio.gather(
        *(payer.get(sold, chunk, payload=voucher) for chunk, voucher in zip(chunks, vouchers, strict=True))
    )
    served = [(answer.status, answer.body) for answer in answers]
    assert served == [(206, piece(sold, chunk)) for chunk in chunks]
    assert tuple(await row(shop, payer)) == (160, 160_000, "open")


async def test_more_than_sixteen_at_once_are_refused_and_cost_nothing(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    sales = shop.services.channels.sales
    with ExitStack() as held:
        for _ in range(16):
            held.enter_context(sales.connection(payer.id))
        answer = await payer.get(sold, payload=payer.voucher(10))
    assert (answer.status, answer.problem) == (429, "channel-busy")
    assert answer.headers["Retry-After"] == "1"
    assert tuple(await row(shop, payer)) == (0, 0, "open")
    assert (await payer.get(sold, price_sat=10)).status == 206


async def test_what_was_paid_comes_again_three_times(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    for _ in range(4):
        answer = await payer.get(sold, payload=payer.voucher(10))
        assert (answer.status, answer.receipt["spentMsat"]) == (206, "10000")
    refused = await payer.get(sold, payload=payer.voucher(10))
    assert (refused.status, refused.problem) == (429, "retries-exhausted")
    assert int(refused.headers["Retry-After"]) > 3_600


async def test_the_price_is_that_of_now(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    assert (await payer.get(sold, 0, price_sat=10)).status == 206
    headers = {"Authorization": f"Bearer {shop.hosted.till.account.token}"}
    dearer = {"metered": {"kind": "per_chunk", "amount_msat": 25_500}}
    target = {"payout_target": {"kind": "address", "address": await shop.hosted.new_address()}}
    changed = await shop.ask("PATCH", f"{API}/offers/{sold.offer_id}", json=dearer, headers=headers)
    assert changed.status == 200, (changed.body, target)
    short = await payer.get(sold, 1, payload=payer.voucher(20))
    assert (short.status, short.problem) == (402, "voucher-short")
    (challenge,) = short.challenges
    request = json.loads(base64url.decode(challenge.split('request="')[1].rstrip('"')))
    assert (request["amount"], request["methodDetails"]["priceMsat"]) == ("26", "25500")
    assert (await payer.get(sold, 1, payload=payer.voucher(36))).receipt["spentMsat"] == "35500"
    # A fraction of a sat is the payer's until it is spent: 61,000 msat are covered by 61 sat.
    assert (await payer.get(sold, 2, payload=payer.voucher(61))).receipt["spentMsat"] == "61000"


async def test_one_channel_buys_from_two_sellers(shop: MeteredShop) -> None:
    till, payer = shop.hosted.till, await opened(shop)
    first = await shop.offer()
    mine, till.account = till.account, await till.server.new_seller("Another seller")
    try:
        second = await shop.offer(price_msat=1_500)
    finally:
        theirs, till.account = till.account, mine
    assert (await payer.get(first, 0, price_sat=10)).body == piece(first, 0)
    assert (await payer.get(second, 0, price_sat=2)).body == piece(second, 0)
    assert (await payer.get(second, 1, price_sat=1)).body == piece(second, 1)

    async def read(tx: Transaction) -> dict[str, tuple[int, int]]:
        chosen = select(channel_sales).where(channel_sales.c.channel_id == payer.id)
        return {one.seller_id: (one.units, one.spent_msat) for one in await tx.execute(chosen)}

    sales = await shop.services.database.read(read)
    assert sales == {mine.account_id: (1, 10_000), theirs.account_id: (2, 3_000)}


async def test_a_sold_out_offer_still_sells_per_chunk(shop: MeteredShop) -> None:
    sold = await shop.offer(whole_sat=1_000, max_downloads=1)
    await shop.hosted.till.paid(sold)
    (challenge,) = (await shop.ask("GET", sold.content)).challenges
    assert 'intent="session"' in challenge
    payer = await opened(shop)
    assert (await payer.get(sold, price_sat=10)).status == 206


# --- looking and ending -------------------------------------------------------------------------------------


async def test_the_payers_own_channels_with_a_signed_record(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    await payer.get(sold, price_sat=10)
    (own,) = (await payer.mine()).json["channels"]
    record = json.loads(own["record"]["json"])
    assert (record["acceptedCumulative"], record["spentMsat"], record["state"]) == ("10", "10000", "open")
    assert record["signature"] == payer.voucher(10)["signature"], "the payer's own"
    assert own["change_script"] == payer.change_script.hex()
    digest = hashlib.sha256(RECORD_LABEL + own["record"]["json"].encode()).digest()
    signature = cdata_to_der(deserialize_compact(bytes.fromhex(own["record"]["signature"])))
    payee = PublicKey(bytes.fromhex(payer.terms["payee_key"]))
    assert payee.verify(signature, digest, hasher=None)


async def test_a_cooperative_close_is_asked_for_and_ends_paying(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    await payer.get(sold, price_sat=10)
    view = (await payer.mine()).json["channels"][0]
    quote = view["close_quote"]
    assert quote["paid_sat_min"] == 10
    # 182 vB at 2 sat/vB, the change being P2WPKH: less than was set aside for the longest.
    assert (quote["fee_sat"], view["close_fee_sat"]) == (364, 388)

    def closing(paid_sat: int, fee_sat: int) -> dict[str, Any]:
        signature = payer.channel.sign(payer.key, paid_sat, fee_sat).hex()
        return {
            **payer.voucher(0),
            "action": "close",
            "cumulativeAmount": str(paid_sat),
            "closeFee": str(fee_sat),
            "signature": signature,
        }

    fee_sat = quote["fee_sat"]
    for paid, fee in ((9, fee_sat), (10, fee_sat - 1), (10, payer.channel.contract.close_fee_sat + 1)):
        refused = await payer.use(closing(paid, fee))
        assert (refused.status, refused.problem) == (422, "close-refused")
    forged = await payer.use({**closing(10, fee_sat), "signature": payer.voucher(10)["signature"]})
    # The fee set aside and the fee of today may be one and the same, and so the signature.
    assert forged.status == 202 or forged.problem == "voucher-signature-invalid"
    closed = await payer.use(closing(10, fee_sat))
    assert closed.status == 202, closed.body
    assert closed.json["state"] == "closing"
    assert closed.json["close"]["reason"] == "payer"
    assert closed.json["close_quote"] is None
    assert (await payer.get(sold, 1, payload=payer.voucher(20))).problem == "channel-closed"
    assert (await payer.sign_away(10)).problem == "channel-closed"


async def test_a_refund_before_its_time_and_of_something_else(shop: MeteredShop) -> None:
    payer, other = await opened(shop), await opened(shop)
    script = payer.change_script

    async def refund(of: Payer, raw: str) -> Answered:
        body = {"channel_id": of.id, "transaction": raw}
        return await shop.ask("POST", f"{API}/channels/refund", json=body)

    raw = refund_transaction(payer.channel, payer.key, script, feerate_sat_kvb=2_000).hex()
    early = await refund(payer, raw)
    assert (early.status, early.problem) == (422, "channel-refund-refused")
    assert "non-final" in early.json["detail"]
    assert (await refund(other, raw)).problem == "channel-refund-refused"
    assert (await refund(payer, "00")).problem == "channel-refund-refused"
    assert (await refund(payer, "zz")).problem == "channel-refund-refused"


# --- what is not for sale -----------------------------------------------------------------------------------


async def test_nothing_is_charged_for_what_cannot_be_served(shop: MeteredShop) -> None:
    payer = await opened(shop)
    headers = {"Authorization": f"Bearer {shop.hosted.till.account.token}"}
    closed = await shop.offer()
    assert (await payer.get(closed, price_sat=10)).status == 206
    deleted = await shop.ask("DELETE", f"{API}/offers/{closed.offer_id}", headers=headers)
    assert deleted.status == 204
    assert (await payer.get(closed, 1, payload=payer.voucher(20))).problem == "offer-unavailable"

    gone = await shop.offer()
    source = await shop.services.blobs.open_range(gone.file_id, 0, 1)
    source.path.unlink()
    missing = await payer.get(gone, 1, payload=payer.voucher(20))
    assert (missing.status, missing.problem) == (503, "file-damaged")

    whole = await shop.hosted.till.offer(price_sat=5_000)
    assert (await payer.get(whole, 0, payload=payer.voucher(20))).problem == "not-metered"
    other = await payer.get(await shop.offer(), 0, file_id=gone.file_id, payload=payer.voucher(20))
    assert other.problem == "not-found"
    assert tuple(await row(shop, payer)) == (10, 10_000, "open")


async def test_a_takedown_counts_within_a_second(shop: MeteredShop) -> None:
    sold, payer = await shop.offer(), await opened(shop)
    assert (await payer.get(sold, price_sat=10)).status == 206
    services = shop.services
    await services.database.write(
        lambda tx: takedown.take_down(
            tx, services.registry, services.access, sold.offer_id, reason="a reason", now=services.clock()
        )
    )
    shop.hosted.till.server.clock.advance(2)
    answer = await payer.get(sold, 1, payload=payer.voucher(20))
    assert (answer.status, answer.problem) == (451, "taken-down")
    assert (await payer.get(sold, 0, payload=payer.voucher(20))).problem == "taken-down", "retries too"
    assert tuple(await row(shop, payer)) == (10, 10_000, "open")


async def test_a_server_without_channels_says_so(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path) as hosted:
        shop = MeteredShop(hosted)
        assert (await shop.ask("GET", f"{API}/channels/terms")).problem == "channels-off"
        sold = await shop.offer()
        assert (await shop.ask("GET", sold.content)).problem == "channels-off"
        credential = base64url.encode(
            json.dumps(
                {
                    "challenge": dict.fromkeys(("id", "realm", "method", "request", "expires"), "x")
                    | {"intent": "session"},
                    "payload": {},
                }
            ).encode()
        )
        paying = {"Authorization": f"Payment {credential}"}
        assert (await shop.ask("GET", sold.content, headers=paying)).problem == "channels-off"
        assert not (tmp_path / "channel.seed").exists()
