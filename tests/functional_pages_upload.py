"""A seller at the page /upload, in a real browser: what the page encrypts and uploads, our own client opens.

What goes wrong is made to go wrong: parts held on the way, pages reloaded, networks taken away, files changed
under the same name, size and time.
"""

from __future__ import annotations

import asyncio
import html
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Dialog, Error, Page, Request, Route
from sqlalchemy import func, select

from bitcache import sessions
from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.link import Link, parse
from bitcache.client.parcel import OpenedParcel
from bitcache.client.purchase import look
from bitcache.db.tables import accounts, file_parts
from bitcache.db.tables import files as file_rows
from payments.ports import Transaction
from regtest.node import wait_until
from storage import base64url
from storage.ports import PART_SIZE_BYTES
from tests.browser import PHONE, NewVisitor, Visitor, violations
from tests.client_shop import Shop, open_shop, tree

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTS = "**/api/v1/files/*/parts/*"
_PART = re.compile(r".*/files/(?P<file_id>[a-z2-7]{26})/parts/(?P<part_no>[0-9]+)")
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
# A picture of noise, which PNG cannot make small: 400 x 400 x 3 bytes.
NOISE = """async () => {
  const canvas = new OffscreenCanvas(400, 400);
  const pen = canvas.getContext('2d');
  const pixels = pen.createImageData(400, 400);
  pixels.data.forEach((_, at) => { pixels.data[at] = at % 4 === 3 ? 255 : Math.random() * 256; });
  pen.putImageData(pixels, 0, 0);
  return [...new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer())];
}"""


@dataclass
class Desk:
    """A seller in front of the page."""

    shop: Shop
    visitor: Visitor
    page: Page
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Requests with a part, by file id and part number."""
    held: int = 0
    warnings: int = 0
    """How often the browser asked whether to leave the page."""
    _holds: Callable[[int], bool] | None = None
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, request: Request) -> None:
        match = _PART.fullmatch(request.url)
        if match and request.method == "PUT":
            self.sent[match["file_id"], int(match["part_no"])] += 1

    async def text(self, selector: str) -> str:
        return await self.page.locator(selector).inner_text()

    async def says(self, selector: str, words: str) -> None:
        """Wait until the words are there."""
        await self.page.locator(selector, has_text=words).wait_for()

    async def choose(self, *paths: Path) -> None:
        await self.page.set_input_files("#choose-files", list(paths))

    async def drop(self, path: Path) -> None:
        """As a person does with the mouse, folders and all."""
        box = await self.page.locator("#drop").bounding_box()
        assert box
        dragged = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        devtools = await self.visitor.context.new_cdp_session(self.page)
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": box["x"] + 9, "y": box["y"] + 9, "data": dragged}
            await devtools.send("Input.dispatchDragEvent", event)
        await devtools.detach()

    async def start(self, *, price: str = "0") -> None:
        await self.page.fill("#price", price)
        await self.page.click("#start")

    async def link(self) -> Link:
        """The result, once it is there; from now on no request may hold its secret."""
        await self.page.locator("#result").wait_for()
        link = parse(await self.text("#link"))
        assert isinstance(link, Link)
        self.visitor.secrets.add(base64url.encode(link.link_secret))
        return link

    async def bought(self, link: Link) -> dict[str, bytes]:
        """What our own client gets for the link."""
        output = self.shop.folder / "out"
        output.mkdir()
        await self.shop.fetch(link, output)
        return tree(output)

    async def described(self, link: Link) -> tuple[wire.OfferView, OpenedParcel]:
        async with ServerApi(self.shop.server.url) as api:
            return await look(api, link)

    async def hold(self, holds: Callable[[int], bool]) -> None:
        """From now on, let the parts whose numbers `holds` go no further than the browser."""
        if self._holds is None:
            await self.visitor.context.route(PARTS, self._routed)
        self._holds = holds

    async def _routed(self, route: Route) -> None:
        match = _PART.fullmatch(route.request.url)
        assert match
        assert self._holds
        # The page may be gone, and the request with it.
        with suppress(Error):
            if not self._holds(int(match["part_no"])):
                await route.continue_()
                return
            self.held += 1
            await self._released.wait()
            await route.abort()

    async def until_held(self, count: int) -> None:
        async def held() -> bool:
            return self.held >= count

        await wait_until(held, f"{count} parts on their way")

    async def let_go(self) -> None:
        """Hold no more; what is held was lost on the way."""
        self._holds = lambda _: False
        self._released.set()
        self._released, self.held = asyncio.Event(), 0

    async def come_back(self) -> None:
        """The page goes away in mid-upload, and is opened again."""
        await self.page.reload()
        await self.let_go()
        await self.page.locator("#unfinished").wait_for()

    async def hear(self, dialog: Dialog) -> None:
        if dialog.type == "beforeunload":
            self.warnings += 1
            await dialog.accept()
        else:
            self.visitor.faults.append(f"a dialog: {dialog.message}")
            await dialog.dismiss()


async def open_desk(new_visitor: NewVisitor, shop: Shop, **options: object) -> Desk:
    visitor = await new_visitor(**options)
    page = await visitor.goto(f"{shop.server.url}/upload")
    await page.fill("#token", shop.token)
    await page.press("#token", "Enter")
    await page.locator("#sale").wait_for()
    desk = Desk(shop, visitor, page)
    visitor.context.on("request", desk.note)
    page.on("dialog", desk.hear)
    return desk


def film(folder: Path, name: str = "film.bin", *, parts: float = 3.4) -> Path:
    """A file of so many parts, each time the same."""
    path = folder / name
    path.write_bytes(random.Random(name).randbytes(int(parts * PART_SIZE_BYTES)))
    return path


async def in_the_table(shop: Shop, file_id: str) -> bool:
    async def count(tx: Transaction) -> int:
        return await tx.scalar(select(func.count()).where(file_rows.c.id == file_id)) or 0

    return bool(await shop.server.services.database.read(count))


async def test_what_is_sold_is_what_was_chosen(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        page = desk.page
        assert await page.locator("#no-wallet a").get_attribute("href") == "/account?lang=en"
        assert await violations(page) == []

        # One file by itself and a folder: one parcel, its paths kept.
        folder = shop.files("goods", {"one.bin": PART_SIZE_BYTES + 5, "a/é.txt": 11, "a/b/empty": 0})
        (folder / HOSTILE.replace("/", "")).write_bytes(b"harmless")
        alone = film(tmp_path, "alone.dat", parts=0.1)
        await page.set_input_files("#choose-folder", folder)
        await desk.choose(alone)
        await desk.says("#files-sum", "5 files, 9.2 MB")
        await page.get_by_label("Remove alone.dat").click()
        await desk.says("#files-sum", "4 files, 8.3 MB")
        await desk.choose(alone)
        await page.fill("#title", f"Title {HOSTILE}")
        await page.fill("#note", f"Two\nlines {HOSTILE}")
        noise = bytes(await page.evaluate(NOISE))
        assert len(noise) > 256 << 10
        await page.set_input_files("#preview", {"name": "p.png", "mimeType": "image/png", "buffer": noise})
        await page.locator("#preview-image").wait_for()
        await page.fill("#limit", "5")
        await page.fill("#expires", "2999-12-31")
        assert await violations(page) == []
        await desk.start()

        link = await desk.link()
        assert await violations(page) == []
        offer, parcel = await desk.described(link)
        said = parcel.metadata
        assert (said.title, said.note) == (f"Title {HOSTILE}", f"Two\nlines {HOSTILE}")
        assert said.preview is not None
        assert 0 < len(said.preview.image) <= 256 << 10
        assert offer.price is not None
        assert (offer.price.amount_msat, offer.policy.bytes_at, offer.policy.key_at) == (0, 1, 1)
        assert offer.downloads_left == 5
        assert (offer.expires_at or 0) > 32_500_000_000
        wanted = {f"goods/{path}": octets for path, octets in tree(folder).items()}
        assert await desk.bought(link) == {**wanted, "alone.dat": alone.read_bytes()}
        times = {file.path: int((tmp_path / file.path).stat().st_mtime) for file in said.files}
        assert {file.path: file.modified_at for file in said.files} == times

        # The words of a stranger are words, here and on the site the button is put on.
        snippet = await desk.text("#snippet")
        tags = re.fullmatch('<a href="([^"]*)" rel="noopener" style="[^"]*">([^<>]*)</a>', snippet)
        assert tags
        assert [html.unescape(text) for text in tags.groups()] == [str(link), f"Download Title {HOSTILE}"]
        assert await page.locator("#qr svg").count() == 1
        kept = await page.evaluate(f"JSON.parse(localStorage.getItem('bitcache.link.{link.offer_id}'))")
        assert kept["linkSecret"] == base64url.encode(link.link_secret)
        # Nothing is left to go on with.
        await page.reload()
        await page.locator("#sale").wait_for()
        assert not await page.locator("#unfinished").is_visible()


async def test_a_dropped_folder_in_french_on_a_phone_then_deleted(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop, locale="fr-FR", viewport=PHONE, color_scheme="dark")
        page = desk.page
        # More than the 100 entries that a folder's reader gives at a time.
        await desk.drop(shop.files("many", {f"{n:03}.txt": n for n in range(120)}))
        await desk.says("#files-sum", "120 fichiers")
        await page.reload()
        await page.locator("#sale").wait_for()
        folder = shop.files("album", {"cd 1/a.txt": 1, "cd 1/cd 2/b.txt": 2, "cover.png": 9})
        await desk.drop(folder)
        await desk.says("#files-sum", "3 fichiers")
        assert await page.input_value("#title") == "album"
        assert await violations(page) == []
        await page.check("#prefetch")
        await page.fill("#confirmations", "3")
        await desk.start(price="21 000")
        link = await desk.link()
        assert await violations(page) == []
        offer, parcel = await desk.described(link)
        assert offer.price is not None
        assert (offer.price.amount_msat, offer.policy.bytes_at, offer.policy.key_at) == (21_000_000, 0, 3)
        assert [file.path for file in parcel.files] == sorted(f"album/{path}" for path in tree(folder))
        media_types = {file.path: file.media_type for file in parcel.metadata.files}
        assert media_types["album/cover.png"] == "image/png"

        await page.click("#delete")
        await page.click("#delete-no")
        await page.click("#delete")
        await page.click("#delete-yes")
        await page.locator("#deleted").wait_for()
        assert await violations(page) == []
        async with ServerApi(shop.server.url) as api:
            view = await api.get(f"/offers/{link.offer_id}", wire.OfferView)
        assert view.state == "closed"
        assert await page.evaluate("localStorage.length") == 0


async def test_a_reload_in_mid_upload_sends_only_what_is_missing(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        page = desk.page
        source, other = film(tmp_path, parts=2.2), film(tmp_path, "small.bin", parts=0.1)
        await desk.hold(lambda part_no: part_no == 1)
        await desk.choose(source, other)
        await page.fill("#title", "A film")
        await desk.start(price="1000")
        await desk.until_held(1)
        # Parts 0 and 2 of the film are on the server before the page goes away.
        await until_parts(desk, 2)
        sent_before = Counter(desk.sent)
        await desk.come_back()
        assert desk.warnings == 1
        await desk.says("#unfinished", "A film (2 files, 19.2 MB)")
        assert await violations(page) == []
        await page.get_by_label("Go on with A film").click()
        assert await page.input_value("#price") == "1000"

        # Not every file, then a file that is no part of it.
        await desk.choose(source)
        await page.click("#start")
        await desk.says("#files-wrong", "Still missing: small.bin")
        await desk.choose(film(tmp_path, "stranger.bin", parts=0.1))
        await desk.says("#files-wrong", "stranger.bin is not in this upload")
        assert await violations(page) == []
        await desk.choose(other)
        await page.fill("#price", "0")
        await page.click("#start")

        link = await desk.link()
        film_id = next(file_id for file_id, part_no in sent_before if part_no == 1)
        again = (desk.sent - sent_before).elements()
        assert [part_no for file_id, part_no in again if file_id == film_id] == [1]
        assert await desk.bought(link) == {path.name: path.read_bytes() for path in (source, other)}


@pytest.mark.parametrize(("changed_at", "same_time"), [(-1, True), (0, False)])
async def test_a_changed_file_gets_a_new_key(
    new_visitor: NewVisitor, tmp_path: Path, changed_at: int, same_time: bool
) -> None:
    """The same name and size: only the digests tell. The old key must see no other byte.

    A byte of the part that was on its way, at the same time of change; or one of a part that the server has.
    """
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        source = film(tmp_path, parts=1.5)
        await desk.hold(lambda part_no: part_no == 1)
        await desk.choose(source)
        await desk.start()
        await desk.until_held(1)
        await until_parts(desk, 1)
        (old_id,) = {file_id for file_id, _ in desk.sent}
        sent_before = Counter(desk.sent)

        then = source.stat()
        octets = bytearray(source.read_bytes())
        octets[changed_at] ^= 1
        source.write_bytes(octets)
        modified_ns = then.st_mtime_ns + (0 if same_time else 60_000_000_000)
        os.utime(source, ns=(then.st_atime_ns, modified_ns))
        await desk.come_back()
        await desk.page.get_by_label("Go on with film.bin").click()
        await desk.choose(source)
        await desk.page.click("#start")
        link = await desk.link()
        # The part that was the same all along may have gone on its way again.
        again = {part_no for file_id, part_no in desk.sent - sent_before if file_id == old_id}
        assert again <= (set() if changed_at else {1})
        assert not await in_the_table(shop, old_id)
        assert await desk.bought(link) == {"film.bin": bytes(octets)}


async def test_another_time_of_change_is_no_change(new_visitor: NewVisitor, tmp_path: Path) -> None:
    """A copied file has another time: its bytes are compared, and what is on the server stays there."""
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        source = film(tmp_path, parts=1.5)
        await desk.hold(lambda part_no: part_no == 1)
        await desk.choose(source)
        await desk.start()
        await desk.until_held(1)
        await until_parts(desk, 1)
        os.utime(source, (1_700_000_000, 1_700_000_000))
        await desk.come_back()
        await desk.page.get_by_label("Go on with film.bin").click()
        await desk.choose(source)
        await desk.page.click("#start")
        link = await desk.link()
        assert sorted(part_no for _, part_no in desk.sent.elements()) == [0, 1, 1]
        assert await desk.bought(link) == {"film.bin": source.read_bytes()}


async def test_pause_lost_network_and_lost_session(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        page, source = desk.page, film(tmp_path, parts=2.4)
        await desk.hold(lambda part_no: part_no > 0)
        await desk.choose(source)
        await desk.start()
        await desk.until_held(2)
        await until_parts(desk, 1)
        await page.click("#pause")
        await desk.says("#news", "Paused")
        assert await violations(page) == []
        await desk.let_go()

        # The network goes away while nobody looks, and comes back.
        await desk.visitor.context.set_offline(True)
        await page.click("#go-on")
        await desk.says("#news", "Connection lost, trying again")
        await desk.hold(lambda part_no: part_no > 1)
        await desk.visitor.context.set_offline(False)
        await desk.until_held(1)

        # Signed out elsewhere: the answer to the next part says so.
        await end_sessions(shop)
        await desk.let_go()
        await desk.says("#why", "You have been signed out")
        assert await violations(page) == []
        # Whoever else signs in on this browser is not paid for these files.
        await sign_in_again(desk, (await shop.server.new_seller()).token)
        await page.click("#go-on")
        await desk.says("#why", "You have been signed out")
        await sign_in_again(desk, shop.token)
        await page.click("#go-on")
        link = await desk.link()
        # What was there was not sent again, whatever happened in between.
        assert {part_no: count for (_, part_no), count in desk.sent.items()}[0] == 1
        assert await desk.bought(link) == {"film.bin": source.read_bytes()}


async def test_a_file_that_changes_on_the_way(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        page, source = desk.page, film(tmp_path, parts=4.1)
        await desk.hold(lambda part_no: part_no < 3)
        await desk.choose(source)
        await desk.start()
        await desk.until_held(3)
        source.write_bytes(b"another film")
        os.utime(source, (1_700_000_000, 1_700_000_000))
        await desk.let_go()
        await desk.says("#why", "film.bin was changed, moved or deleted")
        await desk.choose(source)
        await page.click("#start")
        link = await desk.link()
        assert await desk.bought(link) == {"film.bin": b"another film"}


async def test_what_is_refused_is_refused_in_words(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        desk = await open_desk(new_visitor, shop)
        page = desk.page
        await page.click("#start")
        await desk.says("#files-wrong", "Choose at least one file")
        await desk.choose(*(shop.files("odd", {"CON.txt": 1, "good.txt": 1, "GOOD.txt": 1}).iterdir()))
        await desk.says("#files-wrong", "CON.txt cannot be sold under this name. Rename it")
        await page.click("#start")
        assert await page.evaluate("document.activeElement.id") == "files-wrong"
        await page.get_by_label("Remove CON.txt").click()
        await desk.says("#files-wrong", "good.txt is there twice")
        await page.get_by_label("Remove GOOD.txt", exact=True).click()
        await page.locator("#files-wrong").wait_for(state="hidden")

        wrong: list[tuple[str, str, str]] = [
            ("price", "999", "The price is 0, or at least 1\u202f000 sat"),
            ("price", "1.5", "Write the price in sat, in digits"),
            ("confirmations", "101", "from 0 to 100"),
            ("expires", "2020-01-01", "Choose a day from today on"),
            ("limit", "0", "The limit is a whole number"),
            ("title", "é" * 300, "The title is too long"),
            ("title", "left\u202eright", "invisible control characters"),
        ]
        for name, value, words in wrong:
            await page.fill("#price", "1000")
            before = await page.input_value(f"#{name}")
            await page.fill(f"#{name}", value)
            await page.click("#start")
            await desk.says(f"#{name}-wrong", words)
            assert await page.evaluate("document.activeElement.id") == name
            assert await page.get_attribute(f"#{name}", "aria-invalid") == "true"
            await page.fill(f"#{name}", before)
        assert await violations(page) == []
        # A key for nothing confirmed is for cheap files.
        await page.fill("#confirmations", "0")
        await desk.start(price="10001")
        await desk.says("#confirmations-wrong", "at least 1 confirmation")
        await page.set_input_files(
            "#preview", {"name": "p.png", "mimeType": "image/png", "buffer": b"no picture"}
        )
        await desk.says("#preview-wrong", "not a PNG, JPEG or WebP")
        assert not desk.sent


async def test_a_full_account_stops_and_a_discarded_upload_is_gone(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    async with open_shop(tmp_path, account_bytes_max=10_000_000) as shop:
        desk = await open_desk(new_visitor, shop)
        page, source = desk.page, film(tmp_path, parts=0.1)
        async with ServerApi(shop.server.url, shop.token) as api:
            # Since the page was loaded, somebody else has filled the account.
            request = wire.FileRequest(size_bytes=9_999_000)
            filler = await api.post("/files", request, wire.FileView)
            await desk.choose(source)
            await desk.start()
            await desk.says("#why", "Your account is full")
            await api.delete(f"/files/{filler.file_id}")
        await desk.hold(lambda _: True)
        await page.click("#go-on")
        await desk.until_held(1)
        await page.click("#pause")
        await desk.let_go()
        ((file_id, _),) = desk.sent
        assert await in_the_table(shop, file_id)
        await page.click("#discard")
        await page.locator("#discard", has_text="Really discard").click()
        await page.locator("#sale").wait_for()
        assert not await page.locator("#unfinished").is_visible()
        assert not await in_the_table(shop, file_id)


async def test_without_javascript_the_page_says_what_to_do(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        visitor = await new_visitor(java_script_enabled=False)
        page = await visitor.goto(f"{shop.server.url}/upload")
        await page.fill("#token", shop.token)
        await page.press("#token", "Enter")
        await page.locator("code", has_text="bitcache upload").wait_for()
        assert not await page.locator("#sale").is_visible()


async def until_parts(desk: Desk, count: int) -> None:
    """Wait until so many parts of one file, not complete yet, are acknowledged."""

    async def stored(tx: Transaction) -> int:
        counts = await tx.scalars(select(func.count(file_parts.c.part_no)).group_by(file_parts.c.file_id))
        return max(counts.all(), default=0)

    async def there() -> bool:
        return await desk.shop.server.services.database.read(stored) >= count

    await wait_until(there, f"{count} parts on the server")


async def sign_in_again(desk: Desk, token: str) -> None:
    """In another tab, as the page says."""
    async with desk.visitor.context.expect_page() as opened:
        await desk.page.click("#sign-in-again")
    tab = await opened.value
    await tab.fill("#token", token)
    await tab.press("#token", "Enter")
    await tab.wait_for_url("**/dashboard*")
    await tab.close()


async def end_sessions(shop: Shop) -> None:
    async def end(tx: Transaction) -> None:
        account_id = await tx.scalar(select(accounts.c.id))
        assert account_id is not None
        await sessions.end_all(tx, account_id, now=shop.server.clock())

    await shop.server.services.database.write(end)
