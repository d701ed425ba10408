"""A lying server where money and a seller's goods are: what a buyer is to pay, what a seller has sent."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from msgspec import structs

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.credentials import Credentials, save
from bitcache.client.errors import ClientError, ParcelAltered, ServerAnswerWrong, ServerProblem
from bitcache.client.link import Link, parse
from bitcache.client.purchase import buy, look, recall, renewed
from bitcache.client.receipts import ReceiptBook
from bitcache.client.sources import collect
from bitcache.client.upload import Description, Upload, make_offer
from bitcache.client.upload_state import UploadState
from bitcache.ids import new_id
from tests.client_shop import CountingProgress, Shop, open_shop, tree
from tests.functional_client_crash import bitcache, finished
from tests.hostile_server import Answered, Lie, altered, lying, sending_elsewhere

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZES = {"a.bin": (8 << 20) + 5_000, "b.bin": 1_000}
"""Two parts, and one."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def link(shop: Shop) -> Link:
    return await shop.sell(shop.files(sizes={"small": 10}))


def with_fields(**fields: object) -> Lie:
    return altered(lambda document: document.update(fields))


# --- what is to be paid -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lies",
    [
        {"buy": with_fields(due_sat=1)},
        {"buy": with_fields(due_sat=-1)},
        {"buy": with_fields(due_sat=2_100_000_000_000_000)},
        {"buy": with_fields(price_sat=1)},
        {"buy": with_fields(price_sat=1, due_sat=1)},
    ],
)
async def test_an_invoice_demands_what_the_offer_said(
    shop: Shop, link: Link, tmp_path: Path, lies: dict[str, Lie]
) -> None:
    """What is due goes to the wallet, which with --yes pays it unattended."""
    with pytest.raises((ServerAnswerWrong, ParcelAltered)):
        async with lying(shop.server.url, lies) as url, ServerApi(url) as api:
            there = replace(link, server=url)
            await buy(api, there, *await look(api, there), ReceiptBook(tmp_path))


@pytest.mark.parametrize(
    "lie",
    [
        with_fields(due_sat=1),
        with_fields(due_sat=-1),
        with_fields(price_sat=9_000, due_sat=9_000),
        with_fields(invoice_id="b" * 26),
    ],
    ids=["more than the price", "less than nothing", "a higher price", "another invoice"],
)
async def test_a_price_is_not_raised_afterwards(shop: Shop, link: Link, tmp_path: Path, lie: Lie) -> None:
    lies: dict[str, Lie] = {}
    async with lying(shop.server.url, lies) as url, ServerApi(url) as api:
        there, book = replace(link, server=url), ReceiptBook(tmp_path)
        await buy(api, there, *await look(api, there), book)
        lies["invoice"] = lie
        with pytest.raises((ServerAnswerWrong, ParcelAltered)):
            await buy(api, there, *await look(api, there), book)


@pytest.mark.parametrize("lie", [with_fields(due_sat=1), with_fields(invoice_id="b" * 26)])
async def test_a_receipt_is_not_answered_with_another_demand(
    shop: Shop, link: Link, tmp_path: Path, lie: Lie
) -> None:
    lies: dict[str, Lie] = {}
    async with lying(shop.server.url, lies) as url, ServerApi(url) as api:
        there = replace(link, server=url)
        receipt = (await buy(api, there, *await look(api, there), ReceiptBook(tmp_path))).receipt
        lies["invoice"] = lie
        with pytest.raises(ServerAnswerWrong):
            await recall(api, receipt)


async def test_a_renewed_invoice_is_looked_at_too(shop: Shop, link: Link, tmp_path: Path) -> None:
    async def lie(request: web.Request, answered: Answered) -> web.StreamResponse:
        return web.json_response({**told, "due_sat": told["price_sat"] + 1})

    lies: dict[str, Lie] = {"renew": lie}
    async with lying(shop.server.url, lies) as url, ServerApi(url) as api:
        there = replace(link, server=url)
        purchase = await buy(api, there, *await look(api, there), ReceiptBook(tmp_path))
        path = f"{shop.server.api}/invoices/{purchase.invoice.invoice_id}"
        async with shop.server.session() as http, http.get(path) as answer:
            told: dict[str, Any] = await answer.json()
        # As a buyer has it who paid half, too late.
        half = structs.replace(purchase.invoice, status="expired", received_sat=1, due_sat=1, price_sat=2)
        with pytest.raises(ServerAnswerWrong):
            await renewed(api, half)


# --- what is sold -----------------------------------------------------------------------------------------


@dataclass
class Seller:
    """One who uploads through the wrong server."""

    shop: Shop
    folder: Path

    def __post_init__(self) -> None:
        self.source = self.shop.files(f"goods of {self.folder.name}", SIZES)
        self.state_path = self.folder / "state.db"

    async def sell(self, lies: dict[str, Lie]) -> Link:
        """As `bitcache upload` does."""
        state = UploadState(self.state_path)
        try:
            async with (
                lying(self.shop.server.url, lies) as url,
                ServerApi(url, self.shop.token, retry_for_s=0) as api,
            ):
                await api.get("/account", wire.AccountView)
                sources, progress = collect([self.source]), CountingProgress()
                described = Description(title="Goods")
                upload = Upload(api, state, sources, described, meterable=False, progress=progress)
                terms = wire.OfferRequest(parcel_id=await upload.run(), price=wire.FixedPrice(amount_msat=0))
                return Link(url, (await make_offer(api, terms)).offer_id, state.link_secret)
        finally:
            state.close()


@pytest.fixture
def seller(shop: Shop, tmp_path: Path) -> Seller:
    return Seller(shop, tmp_path)


def says_complete(view: dict[str, Any]) -> None:
    view.update(state="complete", parts_present=[0, 1], root="A" * 43)


@pytest.mark.parametrize(
    ("lies", "kind"),
    [
        ({"files": altered(says_complete)}, ServerAnswerWrong),
        ({"files": with_fields(part_size_bytes=1 << 20)}, ServerAnswerWrong),
        ({"files": with_fields(size_bytes=1_000)}, ServerAnswerWrong),
        ({"files": with_fields(file_id="b" * 26)}, ServerProblem),
        ({"files": with_fields(file_id="../../etc")}, ServerAnswerWrong),
        ({"parcels": with_fields(parcel_id="b" * 26)}, ServerProblem),
        ({"parcels": with_fields(parcel_id="/evil")}, ServerAnswerWrong),
    ],
    ids=[
        "has it all",
        "cuts otherwise",
        "another size",
        "another file",
        "a path",
        "another parcel",
        "a path for a parcel",
    ],
)
async def test_a_server_that_lies_about_the_goods_is_refused(
    seller: Seller, lies: dict[str, Lie], kind: type[ClientError]
) -> None:
    with pytest.raises(kind):
        await seller.sell(lies)


async def test_parts_that_the_server_only_claims_to_have_are_sent(seller: Seller) -> None:
    await sold_whole(seller, {"files": with_fields(parts_present=[0, 1])})


async def test_parts_asked_for_again_are_the_same_bytes(seller: Seller) -> None:
    """Under one key and nonce no two different chunks ever leave, whatever the server says is missing."""
    sent: dict[str, set[bytes]] = {}

    async def note(request: web.Request, answered: Answered) -> None:
        sent.setdefault(request.path, set()).add(await request.read())

    async def missing(request: web.Request, answered: Answered) -> web.StreamResponse:
        return web.Response(status=422)

    with pytest.raises(ServerProblem):
        await seller.sell({"part": note, "complete": missing})
    await sold_whole(seller, {"part": note, "file": with_fields(parts_present=[])})
    assert len(sent) == 3
    assert all(len(bodies) == 1 for bodies in sent.values())


async def sold_whole(seller: Seller, lies: dict[str, Lie]) -> None:
    """In the end a buyer gets what the seller has."""
    link = replace(await seller.sell(lies), server=seller.shop.server.url)
    await seller.shop.fetch(link, seller.folder / "out")
    assert tree(seller.folder / "out" / seller.source.name) == tree(seller.source)


@pytest.mark.parametrize("kind", ["account", "files", "part", "complete", "parcels", "seal", "offers"])
async def test_a_seller_is_not_led_elsewhere_and_shows_no_token_there(seller: Seller, kind: str) -> None:
    async with sending_elsewhere(seller.shop.server.url, kind) as (lies, asked):
        with pytest.raises(ServerAnswerWrong, match="elsewhere"):
            await seller.sell(lies)
    assert not asked


@pytest.mark.parametrize(
    "change",
    [
        {"price": {"kind": "fixed", "amount_msat": 1_000_000}},
        {"policy": {"bytes_at": 0, "key_at": 0}},
        {"parcel_id": "b" * 26},
    ],
)
async def test_an_offer_on_other_terms_gives_no_link(seller: Seller, change: dict[str, object]) -> None:
    with pytest.raises(ServerAnswerWrong, match="another offer"):
        await seller.sell({"offers": with_fields(**change)})


async def test_the_link_leads_to_the_server_the_seller_named(seller: Seller) -> None:
    evil = "https://evil.example"
    lies = {"offers": with_fields(link=f"{evil}/d/{new_id()}#1.x", public_url=evil, server=evil)}
    async with lying(seller.shop.server.url, lies) as url:
        save(seller.folder / ".config" / "bitcache", Credentials(url, seller.shop.token))
        process = await bitcache(seller.folder, "upload", str(seller.source), "--price", "0", "--json")
        link = parse(str((await finished(process))["link"]))
    assert link.server == url
