"""From an offer to an invoice to a key, on a real node; and everything that gives no invoice."""

import asyncio
import ipaddress
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import func, select, update

from bitcache.api.client_address import client_address
from bitcache.config import LimitsConfig
from bitcache.db.tables import accounts, offers
from bitcache.purchases import new_reference
from payments.tables import invoices
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld
from storage import base64url
from tests.till import (
    RELEASE_SECRET,
    RICH_SAT_VB,
    Bought,
    Sold,
    Till,
    open_nodeless_till,
    open_till,
    pretend_node_online,
)


@pytest_asyncio.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


async def refusal(till: Till, sold: Sold) -> tuple[int, str]:
    """(status, problem) of asking to pay; nothing may be left of it."""
    before = await _count_invoices(till)
    async with till.ask(sold, os.urandom(32)) as answer:
        problem = await answer.json()
    assert await _count_invoices(till) == before
    return answer.status, str(problem.get("type", "")).removeprefix("/problems/")


# Paying.


async def test_a_payment_opens_bytes_and_key_after_one_block(till: Till) -> None:
    sold = await till.offer(price_sat=5_000)
    bought = await till.buy(sold)
    view = bought.invoice
    assert view["status"] == "open"
    assert view["due_sat"] == view["price_sat"] == 5_000
    assert view["address"].startswith("bcrt1q")
    assert view["uri"] == f"bitcoin:{view['address']}?amount=0.00005000&label={view['reference']}"
    assert view["confirmations"] == -1
    token = await till.token(bought)
    assert await till.status_of(sold.content, token) == (402, "payment-required")

    payment = await till.pay(bought)
    view = await till.until(bought, lambda view: view["status"] == "seen", "the payment in the mempool")
    assert [output["txid"] for output in view["outputs"]] == [payment.txid]
    assert (view["due_sat"], view["uri"], view["confirmations"]) == (0, None, 0)
    # Never 402 again: there are clients that pay whatever asks them to.
    assert await till.status_of(sold.content, token) == (503, "payment-unconfirmed")
    _, claimed = await till.claim(bought)
    assert (claimed["bytes_allowed"], claimed["key_allowed"], claimed["release_secret"]) == (
        False,
        False,
        None,
    )

    assert till.world is not None
    await till.world.mine()
    view = await till.until(bought, lambda view: view["status"] == "settled", "the block")
    assert view["bytes_allowed"]
    assert view["key_allowed"]
    assert await till.status_of(sold.content, token) == (200, "")
    _, claimed = await till.claim(bought)
    assert claimed["release_secret"] == base64url.encode(RELEASE_SECRET)
    assert [file["file_id"] for file in claimed["files"]] == [sold.file_id]
    assert claimed["retained_until"] >= till.server.clock() + 89 * 86_400


async def test_a_prefetch_offer_gives_bytes_before_the_block_and_the_key_after(till: Till) -> None:
    sold = await till.offer(bytes_at=0, key_at=1, sizes=(1000,))
    bought = await till.buy(sold)
    await till.pay(bought, feerate_sat_vb=RICH_SAT_VB)
    await till.until(bought, lambda view: bool(view["bytes_allowed"]), "bytes before the block")
    _, claimed = await till.claim(bought)
    assert (claimed["bytes_allowed"], claimed["key_allowed"]) == (True, False)
    token = await till.token(bought)
    assert (await till.status_of(sold.content, token))[0] == 200
    # Once: whoever double-spends has cost the seller one download.
    assert await till.status_of(sold.content, token) == (429, "grant-exhausted")
    assert till.world is not None
    await till.world.mine()
    await till.until(bought, lambda view: bool(view["key_allowed"]), "the key")
    assert (await till.status_of(sold.content, token))[0] == 200


async def test_a_payment_with_a_poor_feerate_is_not_prefetched(till: Till) -> None:
    """It may wait for days and be replaced at leisure."""
    assert till.world is not None
    bought = await till.buy(await till.offer(bytes_at=0, key_at=1))
    parent = await till.world.faucet(
        bought.invoice["address"], bought.invoice["due_sat"] - 1000, confirmations=0
    )
    view = await till.until(bought, lambda view: bool(view["outputs"]), "the partial payment")
    assert view["outputs"][0]["txid"] == parent
    assert "partial" in view["flags"]
    assert not view["bytes_allowed"]
    assert view["due_sat"] == 1000
    assert "amount=0.00001000" in view["uri"]
    await till.world.mine()


async def test_the_operator_may_forbid_prefetch(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path, prefetch_allowed=False) as till:
        bought = await till.buy(await till.offer(bytes_at=0, key_at=1))
        await till.pay(bought, feerate_sat_vb=RICH_SAT_VB)
        view = await till.until(bought, lambda view: view["status"] == "seen", "the payment")
        assert not view["bytes_allowed"]
        await world.mine()


async def test_a_meterable_parcel_gives_no_bytes_before_the_key(till: Till) -> None:
    bought = await till.buy(await till.offer(bytes_at=0, key_at=1, meterable=True))
    await till.pay(bought, feerate_sat_vb=RICH_SAT_VB)
    view = await till.until(bought, lambda view: view["status"] == "seen", "the payment")
    assert not view["bytes_allowed"]
    assert till.world is not None
    await till.world.mine()


async def test_keys_before_a_block_are_capped_over_the_whole_server(till: Till) -> None:
    assert till.world is not None
    first = await till.buy(await till.offer(price_sat=6_000, bytes_at=0, key_at=0))
    second = await till.buy(await till.offer(price_sat=6_000, bytes_at=0, key_at=0))
    await till.pay(first, feerate_sat_vb=RICH_SAT_VB)
    await till.until(first, lambda view: bool(view["key_allowed"]), "the key before a block")
    await till.pay(second, feerate_sat_vb=RICH_SAT_VB)
    view = await till.until(second, lambda view: view["status"] == "seen", "the second payment")
    assert not view["key_allowed"]
    assert (await till.claim(second))[1]["release_secret"] is None
    await till.world.mine()
    await till.until(second, lambda view: bool(view["key_allowed"]), "the key after the block")


async def test_a_reorg_suspends_the_grant_and_mining_again_restores_it(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path) as till:
        # Coins deep enough that the reorg leaves them mature.
        payer = await BitWallet.create(own_world)
        await own_world.mine(3)
        sold = await till.offer(sizes=(1000,))
        bought = await till.buy(sold)
        await payer.pay([(bought.invoice["address"], bought.invoice["due_sat"])])
        await own_world.mine()
        await till.until(bought, lambda view: bool(view["key_allowed"]), "the key")
        token = await till.token(bought)
        assert (await till.status_of(sold.content, token))[0] == 200
        await own_world.reorg(2, keep_transactions=False)
        view = await till.until(bought, lambda view: bool(view["suspended"]), "the reorg")
        assert "reorged" in view["flags"] or view["status"] != "settled"
        assert await till.status_of(sold.content, token) == (403, "grant-suspended")
        assert (await till.claim(bought))[1]["release_secret"] is None
        await own_world.mine()
        await till.until(bought, lambda view: bool(view["key_allowed"]), "the payment in a block again")
        assert (await till.status_of(sold.content, token))[0] == 200


async def test_buying_works_on_postgresql_too(
    world: RegtestWorld, tmp_path: Path, postgres_tables: str
) -> None:
    async with open_till(world, tmp_path, database_url=postgres_tables) as till:
        sold = await till.offer(price_sat=5_000, bytes_at=0, key_at=0, sizes=(1000,))
        bought, others = await asyncio.gather(
            till.buy(sold), asyncio.gather(*(till.buy(sold) for _ in range(4)))
        )
        assert len({one.invoice["address"] for one in (bought, *others)}) == 5
        await till.pay(bought, feerate_sat_vb=RICH_SAT_VB)
        await till.until(bought, lambda view: bool(view["key_allowed"]), "the key")
        await world.mine()
        await till.until(bought, lambda view: view["status"] == "settled", "the block")
        assert (await till.status_of(sold.content, await till.token(bought)))[0] == 200
        await till.server.services.grants.flush()
        headers = {"Authorization": f"Bearer {till.account.token}"}
        async with till.http.get("/api/v1/earnings", headers=headers) as answer:
            view = await answer.json()
        assert (view["received_sat"], view["sales"], view["pending_sat"], view["owed_sat"]) == (
            5_000,
            1,
            0,
            0,
        )


# The same invoice.


async def test_the_same_claim_hash_is_the_same_invoice_even_at_once(till: Till) -> None:
    sold = await till.offer()
    secret = os.urandom(32)

    async def asked() -> tuple[int, str]:
        async with till.ask(sold, secret) as answer:
            return answer.status, str((await answer.json())["invoice_id"])

    answers = await asyncio.gather(*(asked() for _ in range(8)))
    assert len({invoice_id for _, invoice_id in answers}) == 1
    assert sorted(status for status, _ in answers) == [200] * 7 + [201]


async def test_every_invoice_has_an_address_of_its_own(till: Till) -> None:
    sold = await till.offer()
    bought = await asyncio.gather(*(till.buy(sold) for _ in range(8)))
    assert len({one.invoice["address"] for one in bought}) == 8
    assert len({one.invoice["reference"] for one in bought}) == 8


async def test_any_device_with_the_secret_gets_the_same_grant(nodeless: Till) -> None:
    bought = await nodeless.buy(await nodeless.offer(price_sat=0))
    _, first = await nodeless.claim(bought)
    _, again = await nodeless.claim(bought)
    assert first["grant_id"] == again["grant_id"]


async def test_a_wrong_secret_is_403_and_says_nothing(nodeless: Till) -> None:
    bought = await nodeless.buy(await nodeless.offer(price_sat=0))
    status, problem = await nodeless.claim(bought, secret=bytes(32))
    assert (status, problem["type"]) == (403, "/problems/claim-refused")
    assert "grant_token" not in problem


async def test_unreadable_secrets_and_hashes_are_422(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0)
    bought = await nodeless.buy(sold)
    loose = "A" * 42 + "B"  # 43 characters whose last has bits that belong to no byte
    for path, field in (
        (f"/api/v1/offers/{sold.offer_id}/invoices", "claim_hash"),
        (f"/api/v1/invoices/{bought.id}/claim", "claim_secret"),
    ):
        for text in ("", "short", "A" * 44, "!" * 43, loose):
            async with nodeless.http.post(path, json={field: text}) as answer:
                assert answer.status == 422, text
                assert (await answer.json())["field"] == field
        async with nodeless.http.post(path, json={field: "A" * 43, "more": 1}) as answer:
            assert answer.status == 422
        async with nodeless.http.post(
            path, data=b"\xff{", headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 400


async def test_unknown_invoices_are_not_found(nodeless: Till) -> None:
    nobody = Bought({"invoice_id": "a" * 26}, bytes(32))
    assert (await nodeless.claim(nobody))[0] == 404
    for path in ("", "/events"):
        async with nodeless.http.get(f"/api/v1/invoices/{nobody.id}{path}") as answer:
            assert answer.status == 404


# Free.


async def test_a_free_offer_needs_no_node_and_no_address(nodeless: Till) -> None:
    bought = await nodeless.buy(await nodeless.offer(price_sat=0))
    view = bought.invoice
    assert (view["status"], view["due_sat"], view["address"], view["uri"]) == ("settled", 0, None, None)
    status, claimed = await nodeless.claim(bought)
    assert status == 200
    assert claimed["release_secret"] == base64url.encode(RELEASE_SECRET)


# No invoice.


async def test_node_offline_is_503_and_nothing_is_created(nodeless: Till) -> None:
    assert await refusal(nodeless, await nodeless.offer()) == (503, "node-offline")


async def test_a_silent_watcher_is_as_bad_as_no_node(nodeless: Till) -> None:
    sold = await nodeless.offer()
    await pretend_node_online(nodeless)
    assert await refusal(nodeless, sold) == (409, "seller-not-payable")
    nodeless.server.clock.advance(31)
    assert await refusal(nodeless, sold) == (503, "node-offline")


async def test_a_seller_without_a_wallet_cannot_be_paid(nodeless: Till) -> None:
    sold = await nodeless.offer()
    await pretend_node_online(nodeless)
    assert await refusal(nodeless, sold) == (409, "seller-not-payable")


async def test_closed_expired_and_taken_down_offers_sell_nothing(nodeless: Till) -> None:
    past = nodeless.server.clock() - 1
    assert await refusal(nodeless, await nodeless.offer(closed_at=past)) == (410, "offer-unavailable")
    assert await refusal(nodeless, await nodeless.offer(expires_at=past)) == (410, "offer-unavailable")
    assert await refusal(nodeless, await nodeless.offer(taken_down_at=past)) == (451, "taken-down")
    unknown = Sold("a" * 26, "b" * 26, {})
    assert await refusal(nodeless, unknown) == (404, "not-found")


async def test_what_was_bought_outlives_the_offer(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0, sizes=(1000,))
    bought = await nodeless.buy(sold)
    now = nodeless.server.clock()
    await nodeless.server.services.database.write(
        lambda tx: tx.execute(update(offers).values(closed_at=now, price_msat=9_000_000))
    )
    assert await refusal(nodeless, sold) == (410, "offer-unavailable")
    assert (await nodeless.status_of(sold.content, await nodeless.token(bought)))[0] == 200


async def test_the_last_copy_is_sold_once(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0, max_downloads=2)
    await nodeless.buy(sold)
    bought = await nodeless.buy(sold)
    assert await refusal(nodeless, sold) == (410, "offer-unavailable")
    # Who has it may ask again.
    assert (await nodeless.buy(sold, secret=bought.claim_secret)).id == bought.id


async def test_an_unpaid_invoice_takes_no_copy(till: Till) -> None:
    sold = await till.offer(max_downloads=1)
    await till.buy(sold)
    bought = await till.buy(sold)
    await till.pay(bought)
    await till.until(bought, lambda view: view["status"] == "seen", "the payment")
    assert await refusal(till, sold) == (410, "offer-unavailable")
    assert till.world is not None
    await till.world.mine()


async def test_unpaid_invoices_are_capped_by_client_even_at_once(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path, open_invoices_per_client_max=3) as till:
        sold = await till.offer()

        async def asked() -> int:
            async with till.ask(sold, os.urandom(32)) as answer:
                return int(answer.status)

        statuses = sorted(await asyncio.gather(*(asked() for _ in range(6))))
        assert statuses.count(201) <= 3
        assert set(statuses) == {201, 429}
        while await asked() == 201:
            pass
        assert await _count_invoices(till) == 3
        assert await refusal(till, sold) == (429, "too-many-invoices")


async def test_asking_and_claiming_have_a_pace(tmp_path: Path) -> None:
    limits = LimitsConfig(invoices_per_minute=5, claims_per_minute=5)
    async with open_nodeless_till(tmp_path, limits=limits) as till:
        sold = await till.offer(price_sat=0)
        bought = await till.buy(sold)
        asked, claimed = [], []
        for _ in range(10):
            async with till.ask(sold, bought.claim_secret) as answer:
                asked.append(answer.status)
            claimed.append((await till.claim(bought, secret=bytes(32)))[0])
        assert (asked[0], asked[-1], set(asked)) == (200, 429, {200, 429})
        assert (claimed[0], claimed[-1], set(claimed)) == (403, 429, {403, 429})
        async with till.ask(sold, bought.claim_secret) as answer:
            assert 1 <= int(answer.headers["Retry-After"]) <= 60


async def test_beyond_a_sellers_unpaid_invoices_one_must_work(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path, open_invoices_per_seller_max=2, price_hold_s=60) as till:
        sold = await till.offer()
        await till.buy(sold)
        await till.buy(sold)
        assert await refusal(till, sold) == (428, "proof-of-work-required")
        # When they have expired there is room again.
        await pass_watched(till, 61)
        await till.buy(sold)


async def test_an_expired_invoice_hides_its_address_until_it_is_renewed(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(world, tmp_path, price_hold_s=60) as till:
        sold = await till.offer(price_sat=5_000)
        bought = await till.buy(sold)
        await till.server.services.database.write(
            lambda tx: tx.execute(update(offers).values(price_msat=7_000_000))
        )
        renew = f"/api/v1/invoices/{bought.id}/renew"
        async with till.http.post(renew) as answer:
            assert answer.status == 409  # it still holds its price
        await pass_watched(till, 61)
        view = await till.invoice(bought)
        assert (view["status"], view["address"], view["uri"]) == ("expired", None, None)
        async with till.http.post(renew) as answer:
            view = await answer.json()
            assert answer.status == 200, view
        assert (view["status"], view["due_sat"]) == ("open", 7_000)
        assert view["address"] == bought.invoice["address"]
        await pass_watched(till, 61)
        await till.server.services.database.write(lambda tx: tx.execute(update(offers).values(closed_at=1)))
        async with till.http.post(renew) as answer:
            assert answer.status == 409  # nothing to renew for


async def test_a_change_of_wallet_counts_from_its_time_on(till: Till) -> None:
    """Rows as setting a payout descriptor leaves them."""
    sold = await till.offer()
    services = till.server.services
    now = till.server.clock()
    old = await services.database.read(lambda tx: tx.scalar(select(accounts.c.descriptor_id)))
    for pending_until, error in ((now + 1_000, None), (now, "unknown")):
        await services.database.write(
            lambda tx, until=pending_until: tx.execute(  # type: ignore[misc]
                update(accounts).values(pending_descriptor_id="unknown", pending_until=until)
            )
        )
        if error is None:
            bought = await till.buy(sold)
            used = await services.database.read(
                lambda tx, id_=bought.id: tx.scalar(  # type: ignore[misc]
                    select(invoices.c.descriptor_id).where(invoices.c.id == id_)
                )
            )
            assert used == old
        else:
            assert (await refusal(till, sold))[0] == 422


# Small things.


def test_references_are_short_and_unmistakable() -> None:
    references = {new_reference() for _ in range(1_000)}
    assert len(references) == 1_000
    assert all(len(reference) == 12 and reference.startswith("BC-") for reference in references)
    assert not {character for reference in references for character in reference[3:]} & set("01OILU")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # not our proxy: its word counts for nothing
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, nonsense", "unknown"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::"),
        ("::ffff:203.0.113.7", None, "203.0.113.7"),
        (None, "198.51.100.1", "unknown"),
    ],
)
def test_a_client_is_who_stands_before_our_proxies(
    peer: str | None, forwarded_for: str | None, client: str
) -> None:
    assert client_address(peer, forwarded_for, [ipaddress.ip_network("10.0.0.0/8")]) == client


async def pass_watched(till: Till, seconds: int) -> None:
    """Let time pass under the watcher's eyes: a leap would count as an outage, which moves deadlines."""
    for _ in range(0, seconds, 10):
        till.server.clock.advance(10)
        await till.server.services.watcher.poll_once()


async def _count_invoices(till: Till) -> int:
    count = await till.server.services.database.read(
        lambda tx: tx.scalar(select(func.count()).select_from(invoices))
    )
    return int(count or 0)
