"""Addresses get dearer before they run out: nobody is refused, and nobody uses them up for free."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bitcache import payout_wallet
from bitcache.api import wire
from bitcache.client.errors import ServerAnswerWrong
from bitcache.client.work import earn
from bitcache.config import LimitsConfig
from bitcache.errors import WorkRequired
from bitcache.rate_limits import Pressure
from bitcache.work import (
    ADDRESSES_PER_BIT,
    GAP_MARGIN,
    LIFETIME_S,
    Solution,
    Work,
    attempt,
    bits_needed,
    streak_counted_max,
    zero_bits,
)
from payments.descriptors import GAP_LIMIT_DEFAULT
from regtest.world import RegtestWorld
from storage import base64url
from tests.client_shop import open_shop
from tests.plain_browser import Browser
from tests.till import Sold, Till, open_nodeless_till, open_till

FREE_ADDRESSES = GAP_LIMIT_DEFAULT - GAP_MARGIN
LIGHT = LimitsConfig(work_bits_min=4, work_bits_max=7)


def hash_of(secret: bytes) -> str:
    return base64url.encode(hashlib.sha256(secret).digest())


async def ask(till: Till, sold: Sold, secret: bytes, work: object = None) -> tuple[int, dict[str, Any]]:
    body = {"claim_hash": hash_of(secret)} | ({"work": work} if work else {})
    async with till.http.post(f"/api/v1/offers/{sold.offer_id}/invoices", json=body) as answer:
        return answer.status, await answer.json()


async def solved(problem: dict[str, Any]) -> dict[str, str]:
    work = problem["work"]
    proof = await earn(wire.WorkView(**work), lambda share: None)
    return {"challenge": proof.challenge, "nonce": proof.nonce}


def needed(**changes: Any) -> int:
    facts = {"unused_streak": 0, "gap_limit": 20, "seller_full": False, "excess": 0.0}
    return bits_needed(LimitsConfig(), **(facts | changes))


def test_an_address_gets_dearer_the_further_the_wallet_is_behind() -> None:
    default = LimitsConfig()
    assert [needed(unused_streak=streak) for streak in (0, 14, 15, 18, 19, 23)] == [0, 0, 18, 18, 19, 20]
    assert needed(unused_streak=10**6) == default.work_bits_max
    assert needed(unused_streak=94, gap_limit=100) == 0
    assert needed(unused_streak=95, gap_limit=100) == default.work_bits_min
    assert needed(seller_full=True) == default.work_bits_max
    assert [needed(excess=excess) for excess in (0.0, 0.01, 0.5, 99.0)] == [0, 18, 22, 26]
    assert (
        bits_needed(
            LimitsConfig(work_bits_max=0), unused_streak=999, gap_limit=20, seller_full=True, excess=9
        )
        == 0
    )


def test_a_streak_is_counted_as_far_as_it_matters() -> None:
    limits = LimitsConfig()
    counted_max = streak_counted_max(limits, 20)
    assert needed(unused_streak=counted_max) == needed(unused_streak=10**9) == limits.work_bits_max
    assert counted_max < 100
    assert needed(unused_streak=counted_max - GAP_MARGIN - 2 * ADDRESSES_PER_BIT) < limits.work_bits_max


def test_pressure_is_what_outruns_the_pace() -> None:
    now = 100.0
    pressure = Pressure(amount=10, period_s=60, monotonic=lambda: now)
    for _ in range(10):
        pressure.note()
    assert pressure.excess() == 0
    for _ in range(5):
        pressure.note()
    assert pressure.excess() == pytest.approx(0.5)
    now += 30
    assert pressure.excess() == pytest.approx(0)


def test_only_a_solved_challenge_of_ours_for_this_very_purchase_counts() -> None:
    work, now = Work(bytes(32)), 1_000
    offer, other = "mfrggzdfmztwq2lknnwg23tpoa", "nrqw4zdpoe2tmnbthaydgmjrga"
    claim = bytes(range(32))
    challenge = work.demand(offer, claim, bits=6, now=now).challenge
    nonce = next(octets for n in range(10**6) if zero_bits(attempt(challenge, octets := n.to_bytes(8))) >= 6)
    bad = next(octets for n in range(10**6) if zero_bits(attempt(challenge, octets := n.to_bytes(8))) < 4)

    def refused(
        solution: Solution | None, offer_id: str = offer, hashed: bytes = claim, **facts: int
    ) -> bool:
        try:
            work.check(solution, offer_id, hashed, **({"bits": 6, "now": now} | facts))
        except WorkRequired:
            return True
        return False

    good = Solution(challenge, nonce)
    assert not refused(good)
    assert not refused(None, bits=0)
    assert not refused(good, now=now + LIFETIME_S - 1)
    assert refused(good, now=now + LIFETIME_S)
    # A little dearer meanwhile is forgiven, much is not.
    assert not refused(good, bits=8)
    assert refused(good, bits=9)
    assert refused(None)
    assert refused(Solution(challenge, bad))
    assert refused(good, offer_id=other)
    assert refused(good, hashed=bytes(32))
    for place in range(len(challenge)):
        altered = bytearray(challenge)
        altered[place] ^= 1
        assert refused(Solution(bytes(altered), nonce))
    assert refused(Solution(challenge[:-1], nonce))
    assert refused(Solution(b"", nonce))
    easy = Work(bytes(31) + b"1").demand(offer, claim, bits=0, now=now).challenge
    assert refused(Solution(easy, nonce)), "somebody else's challenge"


async def test_addresses_beyond_the_gap_are_earned_and_sales_go_on(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(world, tmp_path, limits=LIGHT, open_invoices_per_client_max=500) as till:
        sold, another = await till.offer(), await till.offer()
        bought = [await till.buy(sold) for _ in range(FREE_ADDRESSES)]
        secret = os.urandom(32)
        status, problem = await ask(till, sold, secret)
        assert (status, problem["type"]) == (428, "/problems/proof-of-work-required")
        assert problem["work"]["bits"] == 4
        assert problem["work"]["expires_at"] > till.server.clock()
        # Another claim hash, another offer: another purchase.
        proof = await solved(problem)
        assert (await ask(till, sold, os.urandom(32), proof))[0] == 428
        assert (await ask(till, another, secret, proof))[0] == 428
        status, invoice = await ask(till, sold, secret, proof)
        assert status == 201
        assert invoice["address"]
        # The same purchase again is the same invoice, with work or without.
        for work in (proof, None):
            status, again = await ask(till, sold, secret, work)
            assert (status, again["invoice_id"]) == (200, invoice["invoice_id"])
        for _ in range(ADDRESSES_PER_BIT):
            one = os.urandom(32)
            _, problem = await ask(till, sold, one)
            assert (await ask(till, sold, one, await solved(problem)))[0] == 201
        assert (await ask(till, sold, os.urandom(32)))[1]["work"]["bits"] == 5

        # The dialect that has no place for work leads to where there is one, and costs no address.
        before = await usage(till)
        headers = {"Accept-Payment": "bitcoin/charge"}
        async with till.http.get(sold.content, headers=headers) as answer:
            assert answer.status == 402
            request = re.search(r'request="([^"]+)"', answer.headers["WWW-Authenticate"])
            assert request is not None
            asked = base64url.decode(request[1])
            assert b"recipient" not in asked
            assert f"offers/{sold.offer_id}/invoices".encode() in asked
        assert await usage(till) == before

        # Without scripts nobody can compute: the page says what to do.
        async with Browser(till) as browser:
            await browser.get(f"/d/{sold.offer_id}")
            await browser.submit(f"/d/{sold.offer_id}/pay")
            assert browser.status == 428
            assert "bitcache get" in browser.text

        # A seller whose wallet bridges more says so; then a payment ends the row of unpaid ones.
        async with till.server.session(till.account.token) as http:
            async with http.patch("/api/v1/account", json={"gap_limit": 100}) as answer:
                assert (await answer.json())["payout"]["gap_limit"] == 100
            await till.buy(sold)
            async with http.patch("/api/v1/account", json={"gap_limit": 20}) as answer:
                assert (await answer.json())["payout"]["advice"]
        assert (await ask(till, sold, os.urandom(32)))[0] == 428
        await till.pay(bought[-1])
        await till.until(bought[-1], lambda view: view["status"] == "seen", "the payment")
        assert await usage(till) < FREE_ADDRESSES
        await till.buy(sold)


async def usage(till: Till) -> int:
    """The streak, counted in both ways."""
    services = till.server.services
    store, database = services.descriptors, services.database
    wallet = await database.read(
        lambda tx: payout_wallet.wallet(tx, till.account.account_id, now=till.server.clock())
    )
    assert wallet is not None
    account = await database.read(lambda tx: store.usage(tx, wallet.descriptor_id))
    bounded = await database.read(lambda tx: store.unused_streak(tx, wallet.descriptor_id, at_most=1_000))
    assert await database.read(lambda tx: store.unused_streak(tx, wallet.descriptor_id, at_most=3)) <= 3
    assert bounded == account.unused_streak
    return bounded


async def test_a_seller_with_too_many_unpaid_invoices_sells_on_for_hard_work(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(world, tmp_path, limits=LIGHT, open_invoices_per_seller_max=1) as till:
        sold = await till.offer()
        await till.buy(sold)
        secret = os.urandom(32)
        status, problem = await ask(till, sold, secret)
        assert (status, problem["work"]["bits"]) == (428, LIGHT.work_bits_max)
        assert (await ask(till, sold, secret, await solved(problem)))[0] == 201


async def test_a_crowd_makes_invoices_dearer_for_a_while(tmp_path: Path) -> None:
    limits = LimitsConfig(invoices_per_minute_in_total=5, work_bits_min=4, work_bits_max=7)
    async with open_nodeless_till(tmp_path, limits=limits) as till:
        sold = await till.offer(price_sat=0)
        while True:
            status, problem = await ask(till, sold, secret := os.urandom(32))
            if status != 201:
                break
        assert (status, problem["type"]) == (428, "/problems/proof-of-work-required")
        bits = [problem["work"]["bits"]]
        for _ in range(5):
            assert (await ask(till, sold, secret, await solved(problem)))[0] == 201
            _, problem = await ask(till, sold, secret := os.urandom(32))
            bits.append(problem["work"]["bits"])
        assert bits == sorted(bits)
        assert bits[0] < 7
        assert bits[-1] == 7
        till.server.clock.advance(120)
        assert (await ask(till, sold, secret))[0] == 201


async def test_the_command_line_earns_by_itself(tmp_path: Path) -> None:
    limits = LimitsConfig(invoices_per_minute_in_total=1, work_bits_min=12, work_bits_max=14)
    async with open_shop(tmp_path, limits=limits) as shop:
        link = await shop.sell(shop.files(sizes={"a.txt": 5}))
        for number in range(4):
            paths = await shop.fetch(link, shop.folder / f"copy {number}")
            assert paths[0].read_bytes() == (shop.folder / "goods" / "a.txt").read_bytes()
            for kept in (shop.folder / "receipts").iterdir():
                kept.unlink()
        assert shop.server.services.limits.invoices_in_total.excess() > 1


async def test_no_client_computes_for_ever() -> None:
    for bits, challenge in ((31, bytes(90)), (1, bytes(257))):
        with pytest.raises(ServerAnswerWrong):
            await earn(wire.WorkView(base64url.encode(challenge), bits, 0), lambda share: None)
    with pytest.raises(ServerAnswerWrong):
        await earn(wire.WorkView("no base64url!", 1, 0), lambda share: None)
