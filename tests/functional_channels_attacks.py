"""Payers who try to get more than they pay for, over HTTP: each is refused by name, and nothing is charged.

One server serves the whole file. What each test did to a channel is read from the disk at its end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from coincurve import PrivateKey
from msgspec import structs
from sqlalchemy import select

from payments.channel_keys import CURVE_ORDER
from payments.ports import Transaction
from payments.tables import channel_pages, channel_sales, channels
from regtest.world import RegtestWorld
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES as CHUNK
from tests.metered_shop import API, Answered, MeteredShop, Payer, open_metered_shop, piece
from tests.till import RELEASE_SECRET, Sold

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeteredShop]:
    async with open_metered_shop(world, tmp_path_factory.mktemp("metered")) as shop:
        yield shop


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def long(shop: MeteredShop) -> Sold:
    return await shop.offer(chunks=10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def payer(shop: MeteredShop) -> Payer:
    """With 100 sat accepted and 10 of them spent."""
    payer = await shop.payer(deposit_sat=20_000)
    assert (await payer.open(100)).status == 200
    return payer


async def balance(shop: MeteredShop, channel_id: str) -> tuple[int, int]:
    """(accepted_sat, spent_msat) on the disk."""

    async def read(tx: Transaction) -> tuple[int, int]:
        chosen = select(channels.c.accepted_sat, channels.c.spent_msat).where(channels.c.id == channel_id)
        found = (await tx.execute(chosen)).one()
        return found.accepted_sat, found.spent_msat

    found: tuple[int, int] = await shop.services.database.read(read)
    return found


async def refused_everywhere(
    shop: MeteredShop, payer: Payer, sold: Sold, payload: dict[str, Any], problem: str
) -> None:
    """As a voucher alone and for bytes; nothing changes."""
    before = await balance(shop, payer.id)
    for answer in (await payer.use(payload), await payer.get(sold, payload=payload)):
        assert answer.problem == problem, answer.body
        assert "Bitcache-Release-Secret" not in answer.headers
        if answer.status == 402:
            (challenge,) = answer.challenges
            assert 'intent="session"' in challenge
    assert await balance(shop, payer.id) == before


def high_s(signature: str) -> str:
    s = int(signature[64:], 16)
    return signature[:64] + f"{CURVE_ORDER - s:064x}"


@pytest.mark.parametrize(
    "forge",
    [
        lambda payer: payer.channel.sign(payer.key, 109).hex(),
        lambda payer: payer.channel.sign(PrivateKey(), 110).hex(),
        lambda payer: high_s(payer.channel.sign(payer.key, 110).hex()),
        lambda payer: "ff" * 64,
        lambda payer: "00" * 64,
        lambda payer: payer.channel.sign(payer.key, 110).hex().upper(),
        lambda payer: payer.channel.sign(payer.key, 110).hex() + "83",
        lambda payer: payer.channel.sign(payer.key, 110).hex()[:-2],
        lambda _: "",
    ],
    ids=["of less", "wrong key", "high S", "garbage", "zeros", "capitals", "longer", "shorter", "none"],
)
async def test_signatures_that_do_not_fit(shop: MeteredShop, payer: Payer, forge: Any) -> None:
    sold = await shop.offer()
    payload = payer.voucher(110, signature=forge(payer))
    await refused_everywhere(shop, payer, sold, payload, "voucher-signature-invalid")


async def test_a_close_signature_is_a_voucher_of_more_and_counts_as_such_only(
    shop: MeteredShop, payer: Payer
) -> None:
    fee_sat = payer.channel.contract.close_fee_sat - 50
    signature = payer.channel.sign(payer.key, 110, fee_sat).hex()
    sold = await shop.offer()
    await refused_everywhere(
        shop, payer, sold, payer.voucher(110, signature=signature), "voucher-signature-invalid"
    )


async def test_amounts_beyond_the_deposit_and_dust(shop: MeteredShop, payer: Payer) -> None:
    sold, most_sat = await shop.offer(), payer.channel.paid_sat_max
    for amount_sat in (most_sat + 1, 20_001, 10**15):
        await refused_everywhere(
            shop, payer, sold, payer.voucher(amount_sat, signature="11" * 64), "voucher-over-deposit"
        )
    for amount_sat in (most_sat - 1, most_sat - 329):
        await refused_everywhere(
            shop, payer, sold, payer.voucher(amount_sat, signature="11" * 64), "voucher-dust-change"
        )


async def test_a_deposit_can_be_spent_to_its_last_sat_and_not_one_more(shop: MeteredShop) -> None:
    drained = await shop.payer(deposit_sat=3_000)
    sold = await shop.offer(price_msat=1_000)
    assert (await drained.open(drained.channel.paid_sat_max)).status == 200
    assert (await drained.get(sold, payload=drained.voucher(drained.channel.paid_sat_max))).status == 206
    more = drained.voucher(drained.channel.paid_sat_max + 1, signature="11" * 64)
    await refused_everywhere(shop, drained, sold, more, "voucher-over-deposit")


async def test_replayed_vouchers_buy_what_they_bought(shop: MeteredShop) -> None:
    payer, sold = await shop.payer(), await shop.offer(chunks=4)
    await payer.open()
    old = payer.voucher(10)
    assert (await payer.get(sold, 0, payload=old)).status == 206
    assert (await payer.get(sold, 1, payload=old)).problem == "voucher-short", "one voucher, one chunk"
    assert (await payer.get(sold, 1, payload=payer.voucher(20))).status == 206
    stale = await payer.get(sold, 2, payload=old)
    assert (stale.status, stale.problem) == (402, "voucher-stale")
    told = [stale.json[name] for name in ("required_sat", "accepted_sat", "spent_msat")]
    assert told == [30, 20, 20_000]
    assert (await payer.get(sold, 0, payload=old)).body == piece(sold, 0), "paid before: a retry"
    assert await balance(shop, payer.id) == (20, 20_000)
    # Several chunks at once for the price of one.
    assert (await payer.get(sold, 0, chunks=4, payload=payer.voucher(39))).problem == "voucher-short"
    assert await balance(shop, payer.id) == (20, 20_000)


async def test_another_channels_voucher_and_outpoints_written_otherwise(
    shop: MeteredShop, payer: Payer
) -> None:
    other, sold = await shop.payer(), await shop.offer()
    await other.open()
    stolen = payer.voucher(110, channelId=other.id)
    assert (await payer.use(stolen)).problem == "voucher-signature-invalid"
    txid, vout = payer.id.split(":")
    for spelling in (
        f"{txid.upper()}:{vout}",
        f"{txid}:0{vout}",
        f"{txid}:+{vout}",
        f"{txid}:{int(vout) + 2**32}",
        f"{txid}:{vout} ",
        f" {txid}:{vout}",
        txid,
        f"{txid[2:]}:{vout}",
        "",
    ):
        answer = await payer.get(sold, payload=payer.voucher(110, channelId=spelling))
        assert (answer.status, answer.problem) == (422, "outpoint-malformed"), spelling
        opening = {**payer.opening(110), "channelId": spelling}
        assert (await payer.use(opening)).problem == "outpoint-malformed"
    unknown = f"{'00' * 32}:0"
    assert (await payer.use(payer.voucher(110, channelId=unknown))).problem == "channel-not-found"
    assert (await payer.use({**payer.opening(110), "channelId": unknown})).problem == "funding-not-found"


# --- terms --------------------------------------------------------------------------------------------------


def changed(challenge: dict[str, Any], **details: Any) -> dict[str, Any]:
    request = json.loads(base64url.decode(challenge["request"]))
    request["methodDetails"] |= details
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return {**challenge, "request": base64url.encode(text.encode())}


@pytest.mark.parametrize(
    "details",
    [
        {"expiry": 10**6},
        {"closeFee": 0},
        {"network": "mainnet"},
        {"minDeposit": 1},
        {"issued": 10**6},
        {"nonce": "A" * 22},
        {"payeeKey": "02" + "11" * 32},
        {"priceMsat": "1"},
    ],
    ids=lambda details: next(iter(details)),
)
async def test_forged_terms(shop: MeteredShop, payer: Payer, details: dict[str, Any]) -> None:
    forged = changed(payer.terms["challenge"], **details)
    sold = await shop.offer()
    for payload in (payer.opening(110), payer.voucher(110)):
        answer = await payer.use(payload, forged)
        assert (answer.status, answer.problem) == (401, "credential-invalid")
    headers = payer.authorization(payer.voucher(110), forged)
    assert (await shop.ask("GET", sold.content, headers=headers)).problem == "credential-invalid"
    asked = {"challenge": forged, "payer_key": "02" + "11" * 32, "change_script": "0014" + "22" * 20}
    answer = await shop.ask("POST", f"{API}/channels/deposits", json=asked)
    assert answer.problem == "credential-invalid"


async def test_terms_of_another_network_and_stale_ones(shop: MeteredShop) -> None:
    """Written with the server's own key: as if it had been on another chain before, or long ago."""
    services = shop.services
    opening, desk = services.channels.opening, services.channels.desk
    good = await opening.terms()
    height = good.issued_height
    for terms, problem in (
        (replace(good, network="mainnet"), "network-foreign"),
        (replace(good, issued_height=height - 145), "channel-terms-stale"),
        (replace(good, expiry_height=height + 149), "expiry-too-near"),
    ):
        challenge = desk._challenger.challenge(terms, price_msat=None, now=services.clock())
        echo = {
            "id": challenge.id,
            "realm": challenge.realm,
            "method": "bitcoin",
            "intent": "session",
            "request": challenge.request,
            "expires": challenge.expires,
        }
        payer = Payer(shop, PrivateKey(), await shop.terms(), bytes.fromhex("0014" + "22" * 20))
        payer.hold(f"{'11' * 32}:0", 20_000)
        assert (await payer.use(payer.opening(0), echo)).problem == problem
        asked = {
            "challenge": echo,
            "payer_key": payer.opening(0)["payerKey"],
            "change_script": payer.change_script.hex(),
        }
        assert (await shop.ask("POST", f"{API}/channels/deposits", json=asked)).problem == problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"payer_key": "02" + "ff" * 32}, "payer-key-invalid"),
        ({"payer_key": "04" + "11" * 64}, "payer-key-invalid"),
        ({"payer_key": ""}, "payer-key-invalid"),
        ({"change_script": "76a914" + "44" * 20 + "88ac"}, "change-script-refused"),
        ({"change_script": "a914" + "55" * 20 + "87"}, "change-script-refused"),
        ({"change_script": "6a"}, "change-script-refused"),
        ({"change_script": "0014" + "11" * 19}, "change-script-refused"),
        ({"change_script": ""}, "change-script-refused"),
    ],
)
async def test_keys_and_change_that_no_channel_takes(
    shop: MeteredShop, payer: Payer, changes: dict[str, str], problem: str
) -> None:
    terms = await shop.terms()
    asked = {
        "challenge": terms["challenge"],
        "payer_key": payer.opening(0)["payerKey"],
        "change_script": payer.change_script.hex(),
        **changes,
    }
    answer = await shop.ask("POST", f"{API}/channels/deposits", json=asked)
    assert (answer.status, answer.problem) == (422, problem)
    names = {"payer_key": "payerKey", "change_script": "changeScript"}
    payload = {**payer.opening(0), **{names[name]: value for name, value in changes.items()}}
    payload["channelId"] = f"{'11' * 32}:0"
    assert (await payer.use(payload, terms["challenge"])).problem == problem


async def test_a_deposit_too_small_opens_nothing(shop: MeteredShop) -> None:
    payer = await shop.payer(deposit_sat=1_000, confirmations=0)
    answer = await payer.use(payer.opening(0))
    assert (answer.status, answer.problem) == (422, "deposit-too-small")
    assert (await payer.use(payer.voucher(0))).problem == "channel-not-found"


async def test_a_deposit_that_its_terms_allowed_opens_though_more_is_asked_by_now(shop: MeteredShop) -> None:
    """Else it would be locked until it expires."""
    payer, desk = await shop.payer(confirmations=0), shop.services.channels.desk
    before = desk._config
    desk._config = structs.replace(
        before, channels=structs.replace(before.channels, deposit_min_sat=payer.channel.capacity_sat + 1)
    )
    try:
        assert (await payer.open()).status == 200
    finally:
        desk._config = before


async def test_unconfirmed_channels_together_have_a_cap(shop: MeteredShop) -> None:
    services = shop.services
    registry = services.channels.registry
    total = services.config.channels.unconfirmed_total_sat
    before = registry._live.unconfirmed_sat
    registry._live.unconfirmed_sat = total - 100
    try:
        payer = await shop.payer(confirmations=0)
        assert (await payer.open(100)).status == 200
        assert (await payer.sign_away(1)).problem == "unconfirmed-cap-reached"
    finally:
        registry._live.unconfirmed_sat += before - (total - 100)


# --- ranges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": f"bytes=0-{9 * CHUNK - 1}"},
        {"Range": f"bytes=1-{CHUNK - 1}"},
        {"Range": f"bytes=0-{CHUNK}"},
        {"Range": "bytes=0-0"},
        {"Range": f"bytes=-{CHUNK}"},
        {"Range": "bytes=-1"},
        {"Range": f"bytes=0-{CHUNK - 1},{CHUNK}-{2 * CHUNK - 1}"},
        {"Range": "items=0-1"},
        {"Range": "nonsense"},
        {"Range": ""},
        {"Range": f"bytes={20 * CHUNK}-"},
        {"Range": f"bytes=0-{CHUNK - 1}", "If-Range": '"another"'},
        {"Range": f"bytes=0-{CHUNK - 1}", "If-Range": "Wed, 21 Oct 2026 07:28:00 GMT"},
        {},
    ],
)
async def test_ranges_that_are_not_chunks(
    shop: MeteredShop, payer: Payer, long: Sold, headers: dict[str, str]
) -> None:
    before = await balance(shop, payer.id)
    answer = await payer.get(long, payload=payer.voucher(200), headers=headers)
    assert (answer.status, answer.problem) == (416, "range-not-chunks")
    assert answer.headers["Content-Range"] == f"bytes */{9 * CHUNK + 100}"
    assert await balance(shop, payer.id) == before


# --- bytes and keys without paying --------------------------------------------------------------------------


async def test_ciphertext_of_both_prices_is_not_had_before_the_key(shop: MeteredShop) -> None:
    """By the invoice's way the bytes would come before a block; this parcel was sealed to sell per chunk."""
    till = shop.hosted.till
    sold = await shop.offer(whole_sat=5_000, bytes_at=1, key_at=1)
    headers = {"Authorization": f"Bearer {till.account.token}"}
    early = {
        "parcel_id": sold.parcel_id,
        "price": {"kind": "fixed", "amount_msat": 5_000_000},
        "policy": {"bytes_at": 0, "key_at": 1},
    }
    refused = await shop.ask("POST", f"{API}/offers", json=early, headers=headers)
    assert (refused.status, refused.problem) == (422, "invalid-value")

    bought = await till.buy(sold)
    await till.pay(bought)
    await till.until(bought, lambda view: bool(view["outputs"]), "the payment")
    grant = await till.token(bought)
    for method in ("GET", "HEAD"):
        for more in ({}, {"Range": "bytes=0-99"}):
            answer = await shop.ask(method, sold.content, headers={**grant, **more})
            assert answer.status in (402, 503)
    digests = await shop.ask("GET", sold.content.replace("/content", "/digests"))
    assert len(digests.body) == 32 * 3, "what is public are hashes"
    offer = await shop.ask("GET", f"{API}/offers/{sold.offer_id}")
    for answer in (digests, offer):
        assert base64url.encode(RELEASE_SECRET).encode() not in answer.body


async def test_a_grant_token_or_a_charge_is_no_voucher(shop: MeteredShop, payer: Payer) -> None:
    sold = await shop.offer(whole_sat=5_000)
    wanted = {"Accept-Payment": "bitcoin/charge"}
    charge, _ = (await shop.ask("GET", sold.content, headers=wanted)).challenges
    parameters = dict(part.split('="') for part in charge.removeprefix("Payment ").rstrip('"').split('", '))
    headers = payer.authorization(payer.voucher(110), {**parameters, "intent": "session"})
    assert (await shop.ask("GET", sold.content, headers=headers)).problem == "credential-invalid"
    headers = payer.authorization({"invoiceId": "a" * 26}, {**payer.terms["challenge"], "intent": "charge"})
    assert (await shop.ask("GET", sold.content, headers=headers)).problem == "credential-invalid"
    answer = await shop.ask("POST", f"{API}/channels", headers={"Authorization": "Bearer x"})
    assert (answer.status, answer.problem) == (401, "credential-invalid")
    assert (await shop.ask("POST", f"{API}/channels")).problem == "credential-invalid"


async def test_a_close_is_not_asked_for_at_the_content(shop: MeteredShop, payer: Payer) -> None:
    sold = await shop.offer()
    closing = {**payer.voucher(100), "action": "close", "closeFee": "368"}
    assert (await payer.get(sold, payload=closing)).problem == "credential-invalid"


async def test_own_channels_are_told_to_their_key_alone(shop: MeteredShop, payer: Payer) -> None:
    nobody = Payer(shop, PrivateKey(), payer.terms, payer.change_script)
    strangers: list[Answered] = [
        await payer.mine(key=PrivateKey()),
        await payer.mine(at=shop.services.clock() - 301),
        await payer.mine(at=shop.services.clock() + 301),
        # The same refusals for a key that has no channel.
        await nobody.mine(key=PrivateKey()),
        await nobody.mine(at=shop.services.clock() - 301),
    ]
    assert {(one.status, one.problem) for one in strangers} == {(403, "proof-refused")}
    assert strangers[0].json["detail"] == strangers[3].json["detail"]
    assert (await nobody.mine()).json == {"channels": []}
    assert len((await payer.mine(at=shop.services.clock() - 290)).json["channels"]) == 1


async def test_nothing_secret_is_in_the_log(
    shop: MeteredShop, payer: Payer, caplog: pytest.LogCaptureFixture
) -> None:
    sold = await shop.offer()
    with caplog.at_level(logging.DEBUG, "bitcache"), caplog.at_level(logging.DEBUG, "payments"):
        served = await payer.get(sold, payload=payer.voucher(100))
        assert served.status == 206
        forged = payer.voucher(120, signature="ab" * 64)
        assert (await payer.get(sold, 1, payload=forged)).status == 402
        assert (await payer.mine()).status == 200
    said = caplog.text
    assert "/content" in said, "the log was listened to"
    for secret in (
        base64url.encode(RELEASE_SECRET),
        payer.voucher(100)["signature"],
        "ab" * 64,
        payer.authorization(payer.voucher(100))["Authorization"],
        payer.id,
        served.headers["Payment-Receipt"],
    ):
        assert secret not in said


async def test_what_the_attacks_left(shop: MeteredShop, payer: Payer) -> None:
    """The last test: the books of the channel that all of them tried."""

    async def read(tx: Transaction) -> tuple[int, int, int]:
        sales = (await tx.execute(select(channel_sales).where(channel_sales.c.channel_id == payer.id))).all()
        pages = (await tx.execute(select(channel_pages).where(channel_pages.c.channel_id == payer.id))).all()
        bits = sum(bin(octet).count("1") for one in pages for octet in one.paid)
        return sum(one.units for one in sales), sum(one.spent_msat for one in sales), bits

    accepted_sat, spent_msat = await balance(shop, payer.id)
    units, sold_msat, bits = await shop.services.database.read(read)
    assert (units, sold_msat, bits) == (1, spent_msat, 1)
    assert (accepted_sat, spent_msat) == (100, 10_000)
