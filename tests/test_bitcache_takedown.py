"""Takedowns on a real node: nothing more is given, everything paid is owed, and whoever waits is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select
from typer.testing import CliRunner

from bitcache import passwords, sessions, takedown
from bitcache.cli.main import app
from bitcache.config import CONFIG_FILE_NAME
from bitcache.db.tables import offers, reports
from bitcache.doctor import recompute
from bitcache.errors import NotFound, ValueRefused
from bitcache.reports import list_reports
from bitcache.takedown import Reached
from payments import ledger
from payments.books import transfer_of
from payments.tables import transfers
from regtest.node import wait_until
from regtest.world import RegtestWorld
from storage import base64url
from tests.functional_client_crash import bitcache, finished
from tests.plain_browser import Browser
from tests.test_bitcache_payment_gate import ACCEPT, credential
from tests.test_bitcache_payment_gate import get as ask_with_scheme
from tests.test_bitcache_sse import reading
from tests.till import RELEASE_SECRET, Bought, Sold, Till, open_nodeless_till, open_till

PRICE_SAT = 5_000
OFFER = "a" * 26
CONFIG = """\
network = "regtest"
[node]
rpc_user = "nobody is asked"
rpc_password = "nobody is asked"
"""


@pytest_asyncio.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def nodeless(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


async def operator(till: Till, *words: str) -> Any:
    """A command, a process of its own, on the data folder of the server that runs."""
    folder = till.server.services.config.data_folder
    (folder / CONFIG_FILE_NAME).write_text(CONFIG)
    return await finished(await bitcache(folder, *words, "--data", str(folder), "--json"))


async def take_down(till: Till, sold: Sold) -> Any:
    return await operator(till, "takedown", sold.offer_id, "--reason", "court order 7", "--yes")


async def take_down_here(till: Till, sold: Sold, *, undo: bool = False, reason: str = "a reason") -> Reached:
    """In this process, where no other is needed to prove something."""
    services, now = till.server.services, till.server.clock()
    registry, access = services.registry, services.access
    if undo:
        return await services.database.write(
            lambda tx: takedown.put_back(tx, registry, access, sold.offer_id, now=now)
        )
    return await services.database.write(
        lambda tx: takedown.take_down(tx, registry, access, sold.offer_id, reason=reason, now=now)
    )


async def books_sat(till: Till, bought: Bought) -> dict[str, int]:
    """What stands in each account of the books for one invoice; nothing where nothing does."""
    query = select(transfers).where(transfers.c.reference == bought.id)
    rows = await till.server.services.database.read(lambda tx: tx.execute(query))
    found = ledger.balances([transfer_of(row) for row in rows.all()])
    names = {
        ledger.chain(): "chain",
        ledger.owed(bought.id): "owed",
        ledger.direct(till.account.account_id): "direct",
    }
    return {names[account]: amount // 1_000 for account, amount in found.items() if amount}


async def earned(till: Till) -> tuple[int, int, int]:
    """(received, pending, owed), as the seller sees them."""
    async with till.server.session(till.account.token) as http, http.get("/api/v1/earnings") as answer:
        view = await answer.json()
        return view["received_sat"], view["pending_sat"], view["owed_sat"]


async def second_offer(till: Till, sold: Sold) -> Sold:
    """Of the same parcel, for another price."""
    async with till.server.session(till.account.token) as http:
        body = {"parcel_id": sold.parcel_id, "price": {"kind": "fixed", "amount_msat": 2_000_000}}
        async with http.post("/api/v1/offers", json=body) as answer:
            assert answer.status == 201, await answer.text()
            return Sold((await answer.json())["offer_id"], sold.parcel_id, sold.blobs)


async def until_served(till: Till, sold: Sold, headers: dict[str, str], outcome: tuple[int, str]) -> None:
    async def there() -> bool:
        return await till.status_of(sold.content, headers) == outcome

    await wait_until(there, f"the content to answer {outcome}")


async def test_a_paid_invoice_is_owed_and_nothing_is_served(till: Till) -> None:
    sold = await till.offer(price_sat=PRICE_SAT)
    other = await second_offer(till, sold)
    bought = await till.paid(sold)
    token = await till.token(bought)
    assert await till.status_of(sold.content, token) == (200, "")
    assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "direct": PRICE_SAT}
    assert await earned(till) == (PRICE_SAT, 0, 0)

    reached = await take_down(till, sold)
    assert reached["offer_ids"] == sorted([sold.offer_id, other.offer_id])
    assert (reached["invoices"], reached["invoices_with_money"]) == (1, 1)

    await until_served(till, sold, token, (451, "taken-down"))
    status, problem = await till.claim(bought)
    assert (status, problem["type"]) == (451, "/problems/taken-down")
    view = await till.invoice(bought)
    assert view["taken_down"]
    assert (view["status"], view["owed_sat"], view["received_sat"]) == ("settled", PRICE_SAT, PRICE_SAT)
    assert (view["address"], view["uri"], view["due_sat"]) == (None, None, 0)
    assert (view["bytes_allowed"], view["key_allowed"], view["suspended"]) == (False, False, False)
    assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "owed": PRICE_SAT}
    assert await earned(till) == (0, 0, PRICE_SAT)
    assert await recompute(till.server.services) == (1, 0)
    for offer in (sold, other):
        async with till.ask(offer, bytes(32)) as answer:
            assert answer.status == 451
        assert (await ask_with_scheme(till, offer)).status == 451


async def test_undoing_it_gives_everything_back(till: Till) -> None:
    sold = await till.offer(price_sat=PRICE_SAT)
    bought = await till.paid(sold)
    token = await till.token(bought)
    await take_down(till, sold)
    await until_served(till, sold, token, (451, "taken-down"))
    await operator(till, "takedown", sold.offer_id, "--undo", "--yes")
    await until_served(till, sold, token, (200, ""))
    view = await till.invoice(bought)
    assert (view["taken_down"], view["key_allowed"], view["owed_sat"]) == (False, True, 0)
    assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "direct": PRICE_SAT}
    assert await earned(till) == (PRICE_SAT, 0, 0)
    assert await recompute(till.server.services) == (1, 0)
    await till.buy(sold)
    await second_offer(till, sold)


async def test_a_payment_under_way_never_opens_and_is_owed_once_mined(till: Till) -> None:
    sold = await till.offer(price_sat=PRICE_SAT)
    bought = await till.buy(sold)
    await till.pay(bought)
    await till.until(bought, lambda view: view["status"] == "seen", "the payment to be seen")
    assert await earned(till) == (0, PRICE_SAT, 0)
    async with reading(till, bought) as reader:
        await reader.event()
        await take_down(till, sold)
        async with asyncio.timeout(20):
            while not (view := (await reader.event())[1])["taken_down"]:
                pass
        assert (view["owed_sat"], view["address"], view["key_allowed"]) == (PRICE_SAT, None, False)
        assert await books_sat(till, bought) == {}
        assert await earned(till) == (0, 0, 0)
        assert till.world is not None
        await till.world.mine()
        view = await reader.until("settled")
        assert (view["taken_down"], view["key_allowed"], view["bytes_allowed"]) == (True, False, False)
    assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "owed": PRICE_SAT}
    assert await earned(till) == (0, 0, PRICE_SAT)
    assert (await till.claim(bought))[0] == 451


async def test_who_has_not_paid_is_told_not_to(till: Till) -> None:
    sold = await till.offer(price_sat=PRICE_SAT)
    bought = await till.buy(sold)
    async with reading(till, bought) as reader:
        await reader.event()
        assert (await take_down(till, sold))["invoices_with_money"] == 0
        _, view = await reader.event()
    assert (view["taken_down"], view["address"], view["uri"], view["due_sat"]) == (True, None, None, 0)
    assert view["owed_sat"] == 0
    async with till.http.post(f"/api/v1/invoices/{bought.id}/renew", json={}) as answer:
        assert answer.status == 409
    # Somebody pays all the same: it is theirs.
    await till.pay(bought)
    assert till.world is not None
    await till.world.mine()
    view = await till.until(bought, lambda view: view["status"] == "settled", "the payment")
    assert (view["owed_sat"], view["key_allowed"]) == (PRICE_SAT, False)
    assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "owed": PRICE_SAT}


async def test_what_came_of_a_price_is_owed_too_and_a_tip_is_none(till: Till) -> None:
    sold = await till.offer(price_sat=PRICE_SAT)
    bought = await till.buy(sold)
    await till.pay(bought, amount_sat=600)
    assert till.world is not None
    await till.world.mine()
    await till.until(bought, lambda view: view["confirmed_sat"] == 600, "the part")
    await take_down_here(till, sold)
    assert (await till.invoice(bought))["owed_sat"] == 600
    assert await books_sat(till, bought) == {"chain": -600, "owed": 600}
    assert await earned(till) == (0, 0, 600)


async def test_a_reorg_after_a_takedown_owes_nothing_until_it_is_mined_again(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path) as till:
        sold = await till.offer(price_sat=PRICE_SAT)
        bought = await till.paid(sold)
        await take_down_here(till, sold)
        height = await own_world.server.rpc("getblockcount")
        gone = await own_world.server.rpc("getblockhash", height)
        await own_world.server.rpc("invalidateblock", gone)
        await till.until(bought, lambda view: view["confirmed_sat"] == 0, "the block to go")
        assert await books_sat(till, bought) == {}
        await own_world.server.rpc("reconsiderblock", gone)
        view = await till.until(bought, lambda view: view["confirmed_sat"] == PRICE_SAT, "it to come back")
        assert (view["taken_down"], view["key_allowed"], view["owed_sat"]) == (True, False, PRICE_SAT)
        assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "owed": PRICE_SAT}


async def test_all_of_it_works_on_postgresql_too(
    world: RegtestWorld, tmp_path: Path, postgres_tables: str
) -> None:
    async with open_till(world, tmp_path, database_url=postgres_tables) as till, Browser(till) as browser:
        services, now = till.server.services, till.server.clock()
        hashed = await services.passwords.hashed("correct horse battery")
        account_id = till.account.account_id
        assert await services.database.write(
            lambda tx: passwords.keep(tx, account_id, hashed, instead_of=None)
        )
        await browser.get("/sign-in")
        await browser.submit("/sign-in", name="SELLER 1", password="correct horse battery")
        assert browser.status == 303
        sold = await till.offer(price_sat=PRICE_SAT)
        bought = await till.paid(sold)
        await browser.get(f"/d/{sold.offer_id}/report")
        await browser.submit(f"/d/{sold.offer_id}/report", reason="fraud", message="𝄞")
        listed = await services.database.read(lambda tx: list_reports(tx, handled=False))
        assert [report.message for report in listed] == ["𝄞"]
        assert (await take_down_here(till, sold)).reports_handled == 1
        assert await earned(till) == (0, 0, PRICE_SAT)
        assert await books_sat(till, bought) == {"chain": -PRICE_SAT, "owed": PRICE_SAT}
        assert await recompute(services) == (1, 0)
        await take_down_here(till, sold, undo=True)
        assert await earned(till) == (PRICE_SAT, 0, 0)
        await browser.get("/account")
        assert "with the password" in browser.text
        await services.database.write(lambda tx: sessions.end_all(tx, account_id, now=now))
        await services.sweep.poll_once()
        await browser.get("/account")
        assert "Seller token" in browser.text


async def test_a_free_offer_is_taken_down_and_put_back(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0)
    bought = await nodeless.buy(sold)
    token = await nodeless.token(bought)
    assert await nodeless.status_of(sold.content, token) == (200, "")
    await take_down_here(nodeless, sold)
    await until_served(nodeless, sold, token, (451, "taken-down"))
    digests = sold.content.replace("/content", "/digests")
    assert await nodeless.status_of(digests, {}) == (451, "taken-down")
    assert (await nodeless.invoice(bought))["owed_sat"] == 0
    await take_down_here(nodeless, sold, undo=True)
    await until_served(nodeless, sold, token, (200, ""))


async def test_an_echoed_challenge_is_told_at_once(nodeless: Till) -> None:
    """Not held for its money, nor asked for more: 451."""
    sold = await nodeless.offer(price_sat=0)
    paid = credential((await ask_with_scheme(nodeless, sold, **ACCEPT)).challenge)
    assert (await ask_with_scheme(nodeless, sold, Authorization=paid)).status == 200
    await take_down_here(nodeless, sold)
    nodeless.server.services.gate.hold_s = 60
    async with asyncio.timeout(20):
        answer = await ask_with_scheme(nodeless, sold, Authorization=paid)
    assert (answer.status, answer.problem) == (451, "taken-down")


async def test_the_parcel_is_not_sold_again_under_another_offer(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0)
    await take_down_here(nodeless, sold)
    async with nodeless.server.session(nodeless.account.token) as http:
        body = {"parcel_id": sold.parcel_id, "price": {"kind": "fixed", "amount_msat": 0}}
        async with http.post("/api/v1/offers", json=body) as answer:
            assert answer.status == 451
            assert (await answer.json())["type"] == "/problems/taken-down"
    other = await nodeless.offer(price_sat=0)
    assert (await nodeless.buy(other)).invoice["key_allowed"]


async def test_the_same_stored_files_are_not_sold_in_another_parcel(nodeless: Till) -> None:
    """One stored file may be in several parcels: with a second one at hand, selling would just go on."""
    sold = await nodeless.offer(price_sat=0)
    wrapped = base64url.encode(bytes(60))
    async with nodeless.server.session(nodeless.account.token) as http:

        async def parcel() -> str:
            files = [{"file_id": file_id, "wrapped_key": wrapped} for file_id in sold.blobs]
            async with http.post("/api/v1/parcels", json={"files": files}) as answer:
                made: str = (await answer.json())["parcel_id"]
            sealing = {
                "metadata": base64url.encode(b"sealed"),
                "release_secret": base64url.encode(RELEASE_SECRET),
            }
            async with http.post(f"/api/v1/parcels/{made}/seal", json=sealing) as answer:
                assert answer.status == 200
            return made

        async def offered(parcel_id: str) -> tuple[int, dict[str, Any]]:
            body = {"parcel_id": parcel_id, "price": {"kind": "fixed", "amount_msat": 0}}
            async with http.post("/api/v1/offers", json=body) as answer:
                return answer.status, await answer.json()

        status, beside = await offered(await parcel())
        assert status == 201
        bought = await nodeless.buy(Sold(beside["offer_id"], beside["parcel_id"], sold.blobs))
        assert bought.invoice["key_allowed"]
        reached = await take_down_here(nodeless, sold)
        assert set(reached.offer_ids) == {sold.offer_id, beside["offer_id"]}
        assert (await nodeless.invoice(bought))["taken_down"]
        assert (await offered(beside["parcel_id"]))[0] == 451
        assert (await offered(await parcel()))[0] == 451
    await take_down_here(nodeless, sold, undo=True)
    assert (await nodeless.invoice(bought))["key_allowed"]


async def test_a_link_will_do_for_the_offer_and_nothing_happens_without_yes(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0)
    folder = nodeless.server.services.config.data_folder
    (folder / CONFIG_FILE_NAME).write_text(CONFIG)
    link = f"{nodeless.server.url}/d/{sold.offer_id}?lang=fr#1.{'A' * 43}"
    words = ("takedown", link, "--reason", "no \x1b[31m rights", "--data", str(folder))

    async def is_taken_down() -> bool:
        query = select(offers.c.taken_down_at)
        return (await nodeless.server.services.database.read(lambda tx: tx.scalar(query))) is not None

    process = await bitcache(folder, *words)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"Nothing was changed" in err
    assert not await is_taken_down()
    process = await bitcache(folder, *words, "--yes")
    out, err = await process.communicate()
    assert process.returncode == 0, err
    assert sold.parcel_id in out.decode()
    assert await is_taken_down()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((OFFER, "--yes"), "Give either --reason or --undo"),
        ((OFFER, "--yes", "--undo", "--reason", "x"), "Give either --reason or --undo"),
        (("short", "--yes", "--undo"), "Give an offer's id"),
        (("https://files.example/d/short", "--yes", "--undo"), "Give an offer's id"),
        ((f"https://files.example/r/{OFFER}", "--yes", "--undo"), "Give an offer's id"),
        ((f"{OFFER}; rm -rf /", "--yes", "--undo"), "Give an offer's id"),
    ],
)
def test_a_takedown_that_makes_no_sense_is_refused(words: tuple[str, ...], told: str) -> None:
    ended = CliRunner().invoke(app, ["takedown", *words, "--json"])
    assert ended.exit_code == 2
    assert told in json.loads(ended.stdout)["error"]["detail"]


async def test_its_reports_are_handled_with_it(nodeless: Till) -> None:
    sold, other = await nodeless.offer(price_sat=0), await nodeless.offer(price_sat=0)
    for number, offer_id in enumerate((sold.offer_id, sold.offer_id, other.offer_id)):
        row = {"offer_id": offer_id, "reason": "other", "message": "", "contact": "", "created_at": number}
        await nodeless.server.services.database.write(
            lambda tx, row=row, number=number: tx.execute(  # type: ignore[misc]
                reports.insert().values(id=f"report-{number}", **row)
            )
        )
    assert (await take_down_here(nodeless, sold)).reports_handled == 2
    query = select(reports.c.offer_id).where(reports.c.handled_at.is_(None))
    waiting = await nodeless.server.services.database.read(lambda tx: tx.scalars(query))
    assert waiting.all() == [other.offer_id]


async def test_unknown_offers_and_reasons_without_words_are_refused(nodeless: Till) -> None:
    sold = await nodeless.offer(price_sat=0)
    with pytest.raises(NotFound):
        await take_down_here(nodeless, Sold("a" * 26, "", {}))
    for reason in ("", " \n ", "x" * 501):
        with pytest.raises(ValueRefused):
            await take_down_here(nodeless, sold, reason=reason)
    await take_down_here(nodeless, sold, reason="first")
    await take_down_here(nodeless, sold, reason="second\nline")
    query = select(offers.c.taken_down_reason)
    kept = await nodeless.server.services.database.read(lambda tx: tx.scalar(query))
    assert kept == "second line"


async def test_a_seller_sees_what_is_owed_after_a_takedown(till: Till) -> None:
    sold = await till.offer(price_sat=PRICE_SAT)
    bought = await till.paid(sold)
    await take_down_here(till, sold)
    async with till.server.session(till.account.token) as http, http.get("/api/v1/invoices") as answer:
        (line,) = (await answer.json())["items"]
    assert (line["invoice_id"], line["owed_sat"]) == (bought.id, PRICE_SAT)
