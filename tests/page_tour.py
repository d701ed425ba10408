"""Every page in every state there is, reached on real nodes by real payments, to be looked at and checked.

    async for stop in tour(world, folder): ...

A stop is a page that stands still in one state until the next is asked for. The tour leaves its world with
another chain and needs one of its own.

`python -m tests.page_tour [--all]` writes a picture of every stop to build/screens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, FilePayload, Page

from bitcache.api.accounts import change_account
from bitcache.api.wire import AccountPatch, PolicyView
from bitcache.config import ChannelsConfig, HostedConfig
from bitcache.ids import new_id
from bitcache.takedown import take_down
from payments.channel import ChannelState
from payments.ports import Transaction
from regtest.chromium import HOW_TO_INSTALL, find_chromium
from regtest.world import RegtestWorld
from storage import base64url
from tests.browser import DESKTOP, PHONE, Visitor, open_chromium, until
from tests.hosted_shop import operator_wallet
from tests.market import Market, open_market, png, ready, unlocked, until_state
from tests.metered_counter import with_seed
from tests.statement_histories import History, Step, put_channel

SCREENS = Path(__file__).parent.parent / "build" / "screens"
SHORT_HOLD_S = 5
OPERATOR = {
    "operator_name": "Ada’s server",
    "operator_terms": "https://example.org/terms",
    "operator_contact": "mailto:ada@example.org",
    "registration": "open",
}


async def _nothing(_page: Page) -> None:
    """The page is what it is as soon as it is loaded."""


@dataclass(frozen=True)
class Stop:
    name: str
    url: str
    signed_in: bool = False
    prepare: Callable[[Page], Awaitable[object]] = _nothing
    """Brings the loaded page into the state that is to be looked at."""


@dataclass(frozen=True)
class View:
    """One way of looking: language, colours, width."""

    language: str
    theme: str
    width: str

    def __str__(self) -> str:
        return f"{self.language}-{self.theme}-{self.width}"

    @property
    def options(self) -> dict[str, Any]:
        viewport = PHONE if self.width == "phone" else DESKTOP
        return {"color_scheme": self.theme, "viewport": viewport}


ALL_VIEWS = tuple(
    View(*view) for view in itertools.product(("en", "fr"), ("light", "dark"), ("phone", "desktop"))
)
# Two that have nothing in common show every value of each.
TWO_VIEWS = (View("en", "light", "phone"), View("fr", "dark", "desktop"))


class Tourist:
    """Opens stops in views; one browser profile for each kind of view."""

    def __init__(self, browser: Browser, market_token: Callable[[], str]) -> None:
        self._browser = browser
        self._token = market_token
        self._visitors: dict[tuple[object, ...], Visitor] = {}

    async def open(self, stop: Stop, view: View) -> Page:
        visitor = await self._visitor(stop, view)
        before, mark, fragment = stop.url.partition("#")
        page = await visitor.goto(f"{before}?lang={view.language}{mark}{fragment}")
        await stop.prepare(page)
        return page

    async def close(self) -> None:
        for visitor in self._visitors.values():
            await visitor.close()
        for visitor in self._visitors.values():
            visitor.check()

    async def _visitor(self, stop: Stop, view: View) -> Visitor:
        server = "/".join(stop.url.split("/")[:3])
        key = (server, stop.signed_in, view.theme, view.width)
        if key not in self._visitors:
            visitor = self._visitors[key] = await Visitor.open(self._browser, **view.options)
            if stop.signed_in:
                await sign_in(await visitor.goto(f"{server}/sign-in"), self._token())
        return self._visitors[key]


async def sign_in(page: Page, token: str) -> None:
    """On the sign-in page, with a seller's token."""
    await page.locator("#token").fill(token)
    async with page.expect_navigation():
        await page.locator("form:has(#token) button").click()


class Tour:
    """`async for stop in tour.stops()`; `token` signs the seller in at the server of the present stop."""

    def __init__(self, world: RegtestWorld, folder: Path) -> None:
        self._world = world
        self._folder = folder
        self.token = ""

    async def stops(self) -> AsyncIterator[Stop]:
        async with open_market(self._world, self._folder / "first", **OPERATOR) as market:
            self.token = market.till.account.token
            async for stop in _offers(market):
                yield stop
            async for stop in _payments(market):
                yield stop
            async for stop in _sellers(market):
                yield stop
            async for stop in _troubled(market):
                yield stop
        keys = await operator_wallet(self._world.outside)
        hosted = HostedConfig(descriptor=await keys.descriptor(), fee_percent="2.5", depth=1)
        metered = {"channels": ChannelsConfig(enabled=True), "prepare": with_seed}
        short = {"price_hold_s": SHORT_HOLD_S, "hosted": hosted, **metered, **OPERATOR}
        async with open_market(self._world, self._folder / "second", **short) as market:
            self.token = market.till.account.token
            async for stop in _too_late(market):
                yield stop


async def _offers(market: Market) -> AsyncIterator[Stop]:
    url = market.url
    priced = await market.sell(price_sat=21_000, note="Every picture of it.", preview=png())
    free = await market.sell()
    sold_out = await market.sell(max_downloads=1)
    await market.buy(sold_out)
    closed = await market.sell()
    await _close(market, closed)
    yield Stop("front", f"{url}/")
    yield Stop("not-found", f"{url}/d/{'a' * 26}")
    yield Stop("offer", priced, prepare=ready)
    yield Stop("offer-free", free, prepare=ready)
    yield Stop("offer-link-cut", priced.partition("#")[0], prepare=ready)
    yield Stop("offer-link-wrong", priced[:-43] + "A" * 43, prepare=ready)
    yield Stop("offer-sold-out", sold_out, prepare=ready)
    yield Stop("offer-closed", closed, prepare=ready)
    yield Stop("report", f"{priced.partition('#')[0]}/report")
    yield Stop("sign-in", f"{url}/sign-in")
    yield Stop("sign-up", f"{url}/sign-up")


async def _payments(market: Market) -> AsyncIterator[Stop]:
    link = await market.sell(price_sat=21_000)
    slow = await market.sell(price_sat=21_000, policy=PolicyView(bytes_at=3, key_at=3))
    world = market.world

    waiting, receipt = await market.buy(link)
    yield Stop("pay-waiting", receipt, prepare=ready)
    _, stranger = await market.buy(link)
    yield Stop("pay-no-secret", stranger.partition("#")[0], prepare=ready)
    await market.pay(waiting, 9_000)
    yield Stop("pay-underpaid", receipt, prepare=in_state("underpaid"))
    payment = await market.pay(waiting)
    yield Stop("pay-seen", receipt, prepare=in_state("seen"))
    await market.pay(waiting, 9_000, inputs=payment.inputs, fee_sat=60_000, elsewhere=True)
    yield Stop("pay-underpaid-again", receipt, prepare=in_state("underpaid"))

    replaced, receipt = await market.buy(link)
    payment = await market.pay(replaced)
    await market.until(replaced, lambda view: view["status"] == "seen", "the payment")
    await market.pay(replaced, 9_000, inputs=payment.inputs, fee_sat=60_000, elsewhere=True)
    yield Stop("pay-replaced", receipt, prepare=in_state("replaced"))

    confirming, receipt = await market.buy(slow)
    overpaid, overpaid_receipt = await market.buy(link)
    await market.pay(confirming)
    await market.pay(overpaid, 26_000)
    await world.mine()
    yield Stop("pay-confirming", receipt, prepare=in_state("confirming"))
    yield Stop("pay-overpaid", overpaid_receipt, prepare=unlocked_in_state("overpaid"))
    await world.mine(2)
    yield Stop("pay-paid", receipt, prepare=unlocked_in_state("paid"))

    # A takedown takes every offer of the parcel.
    doomed = await market.sell(price_sat=21_000, title="Spring in Lyon")
    paid, receipt = await market.buy(doomed)
    await market.pay(paid)
    await world.mine()
    await market.until(paid, lambda view: bool(view["key_allowed"]), "the key")
    await _take_down(market, doomed)
    yield Stop("pay-taken-down", receipt, prepare=in_state("taken_down"))
    yield Stop("offer-taken-down", doomed, prepare=ready)


async def _sellers(market: Market) -> AsyncIterator[Stop]:
    upload = f"{market.url}/upload"
    yield Stop("upload", upload, signed_in=True)
    yield Stop("upload-files", upload, signed_in=True, prepare=choose_files)
    yield Stop("upload-result", upload, signed_in=True, prepare=sell)
    yield Stop("dashboard", f"{market.url}/dashboard", signed_in=True)
    yield Stop("offers", f"{market.url}/dashboard/offers", signed_in=True)
    yield Stop("money", f"{market.url}/dashboard/money", signed_in=True)
    yield Stop("account", f"{market.url}/account", signed_in=True)


async def _troubled(market: Market) -> AsyncIterator[Stop]:
    world = market.world
    link = await market.sell(price_sat=21_000, title="Autumn in Lyon")
    suspended, receipt = await market.buy(link)
    await market.pay(suspended)
    await world.mine()
    await market.until(suspended, lambda view: bool(view["key_allowed"]), "the key")
    await world.reorg(1, keep_transactions=False)
    yield Stop("pay-suspended", receipt, prepare=in_state("suspended"))
    await world.mine()

    missing, receipt = await market.buy(link)
    waiting, waiting_receipt = await market.buy(link)
    await market.pay(missing)
    await market.until(missing, lambda view: view["status"] == "seen", "the payment")
    await world.server_out()
    await market.until(waiting, lambda view: not view["node_online"], "the node to be away")
    yield Stop("pay-offline", waiting_receipt, prepare=in_state("offline"))
    yield Stop("offer-offline", link, prepare=ready)
    # It comes back without its mempool, and wants higher fees than the payment has.
    world.server.mempool_path.unlink(missing_ok=True)
    await world.server_in("-minrelaytxfee=0.01")
    await market.until(missing, lambda view: "missing" in view["flags"], "the payment to be out of sight")
    yield Stop("pay-missing", receipt, prepare=in_state("missing"))
    await world.server_out()
    await world.server_in()


async def _too_late(market: Market) -> AsyncIterator[Stop]:
    link = await market.sell(price_sat=21_000)
    gone = await market.sell(price_sat=21_000, title="Winter in Lyon")
    expired, expired_receipt = await market.buy(link)
    lapsed, lapsed_receipt = await market.buy(link)
    late, late_receipt = await market.buy(link)
    _, gone_receipt = await market.buy(gone)
    owed, owed_receipt = await market.buy(gone)
    await market.pay(lapsed, 9_000)
    await _close(market, gone)
    async for stop in _hosted(market):  # prices run out meanwhile
        yield stop
    for invoice_id in (expired, lapsed, late, owed):
        await _until_expired(market, invoice_id)
    yield Stop("pay-expired", expired_receipt, prepare=in_state("expired"))
    yield Stop("pay-lapsed", lapsed_receipt, prepare=in_state("lapsed"))
    yield Stop("pay-gone", gone_receipt, prepare=in_state("gone"))
    await market.pay(late, 9_000)
    await market.pay(owed, 21_000)
    yield Stop("pay-owed", owed_receipt, prepare=in_state("owed"))
    # Late money gets a new price at once; that one expires too. The node has no more to say of when it came.
    await market.until(late, lambda view: view["received_sat"] == 9_000, "the late money")
    market.till.server.clock.advance(SHORT_HOLD_S + 1)
    await _until_expired(market, late)
    yield Stop("pay-late", late_receipt, prepare=in_state("late"))


async def _hosted(market: Market) -> AsyncIterator[Stop]:
    """Sales that the operator is paid for: one overpaid, its surplus asked back, earnings paid out."""
    services = market.till.server.services
    await change_account(services, market.till.account.account_id, AccountPatch(settlement="hosted"))
    link = await market.sell(price_sat=21_000, title="A year in Lyon")
    overpaid, receipt = await market.buy(link)
    await market.pay(overpaid, 26_000)
    await market.world.mine()
    await market.until(overpaid, lambda view: view["status"] == "settled", "the sale")
    yield Stop("pay-refundable", receipt, prepare=unlocked_in_state("overpaid"))
    address = await market.world.new_miner_address()
    await services.refunds.claim(overpaid, base64url.decode(receipt.partition("#")[2].split(".")[1]), address)
    yield Stop("pay-refund-asked", receipt, prepare=unlocked_in_state("overpaid"))
    desk, account_id = services.seller_payouts, market.till.account.account_id
    await desk.with_addresses(
        lambda tx: desk.request(tx, account_id, payout_id=new_id(), amount_sat=12_000, now=services.clock())
    )
    async for stop in _metered(market):
        yield stop
    yield Stop("money-hosted", f"{market.url}/dashboard/money", signed_in=True)
    yield Stop("dashboard-hosted", f"{market.url}/dashboard", signed_in=True)


async def _metered(market: Market) -> AsyncIterator[Stop]:
    """Sold per chunk: one offer in both ways, one in this alone; an open channel, and a closed one."""
    alone = await market.sell(price_sat=None, metered_msat=500, title="Lyon, frame by frame")
    both = await market.sell(price_sat=21_000, metered_msat=10_000, title="Lyon, frame by frame")
    yield Stop("offer-metered", alone, prepare=ready)
    yield Stop("offer-metered-and-whole", both, prepare=ready)
    yield Stop("offer-metered-link-wrong", alone[:-43] + "A" * 43, prepare=ready)
    history = History(market.till.account.account_id, now=market.till.server.clock())
    history.offer_ids = (_offer_id(alone), _offer_id(both))

    async def sold(tx: Transaction) -> None:
        await history.play(tx, [Step("metered", 0, 0, (90_000,), 2)] * 2)
        closed, still_open = history.channels
        await put_channel(tx, closed, state=ChannelState.CLOSED)
        await put_channel(tx, still_open)
        await history.play(tx, [Step("close", 0, 0, (0,), 0)])

    await market.till.server.services.database.write(sold)
    yield Stop("offers-metered", f"{market.url}/dashboard/offers", signed_in=True)


def in_state(state: str) -> Callable[[Page], Awaitable[None]]:
    async def wait(page: Page) -> None:
        await ready(page)
        await until_state(page, state)

    return wait


def unlocked_in_state(state: str) -> Callable[[Page], Awaitable[None]]:
    async def wait(page: Page) -> None:
        await in_state(state)(page)
        await unlocked(page)

    return wait


async def choose_files(page: Page) -> None:
    names = ("Chapter 1.txt", "Chapter 2.txt")
    files = [
        FilePayload(name=name, mimeType="text/plain", buffer=b"It was a dark night.\n") for name in names
    ]
    await page.locator("#choose-files").set_input_files(files)
    await page.locator("#title").fill("A story in two chapters")
    await page.locator("#price").fill("2100")
    await until(page, "document.querySelectorAll('#files li').length === 2")


async def sell(page: Page) -> None:
    await choose_files(page)
    await page.locator("#start").click()
    await page.locator("#result").wait_for(state="visible")


async def _until_expired(market: Market, invoice_id: str) -> None:
    await market.until(invoice_id, lambda view: view["status"] == "expired", "the price to expire")


async def _close(market: Market, link: str) -> None:
    place = f"/api/v1/offers/{_offer_id(link)}"
    headers = {"Authorization": f"Bearer {market.till.account.token}"}
    async with market.till.http.patch(place, json={"closed": True}, headers=headers) as answer:
        assert answer.status == 200


def _offer_id(link: str) -> str:
    return link.partition("#")[0].rpartition("/")[2]


async def _take_down(market: Market, link: str) -> None:
    """As the operator's command does it."""
    services, now = market.till.server.services, market.till.server.clock()

    async def taken(tx: Transaction) -> None:
        await take_down(tx, services.registry, services.access, _offer_id(link), reason="A mistake.", now=now)

    await services.database.write(taken)


async def take_pictures(views: Sequence[View], target: Path = SCREENS) -> int:
    """A picture of every stop in each of `views`; how many."""
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit(HOW_TO_INSTALL)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    count = 0
    with tempfile.TemporaryDirectory(prefix="bitcache-tour-") as folder:
        async with RegtestWorld() as world, open_chromium(chromium) as browser:
            tour = Tour(world, Path(folder))
            tourist = Tourist(browser, lambda: tour.token)
            async for stop in tour.stops():
                for view in views:
                    page = await tourist.open(stop, view)
                    await page.screenshot(path=target / f"{stop.name}-{view}.png", full_page=True)
                    await page.close()
                    count += 1
            await tourist.close()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of every page in every state.")
    parser.add_argument("--all", action="store_true", help="in both languages, themes and widths")
    options = parser.parse_args()
    count = asyncio.run(take_pictures(ALL_VIEWS if options.all else TWO_VIEWS))
    print(f"{count} pictures in {SCREENS.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
