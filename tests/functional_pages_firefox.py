"""Another browser: in Firefox a seller sells and a buyer gets every byte, saved by the service worker."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from tests.firefox import HOW_TO_INSTALL, find_firefox, open_firefox
from tests.market import GOODS, open_free_market

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_selling_and_getting_in_firefox(tmp_path: Path) -> None:
    path = find_firefox()
    if path is None:
        pytest.skip(HOW_TO_INSTALL)
    content = bytes(range(256)) * 9_000
    (tmp_path / "film.bin").write_bytes(content)
    async with open_free_market(tmp_path) as market, open_firefox(path, tmp_path / "firefox") as firefox:
        link = await market.sell()
        await firefox.goto(link)
        await firefox.until("document.body.dataset.ready === 'true'")
        assert await firefox.evaluate("document.querySelector('h1').textContent") == "Summer in Lyon"
        await firefox.click("#pay button")
        await firefox.until("document.body.dataset.unlocked === 'true'")
        await firefox.click("#get-all")
        await firefox.until("document.getElementById('get-status').textContent.startsWith('Done')")
        octets = await firefox.downloaded("Summer in Lyon.zip")
        with zipfile.ZipFile(io.BytesIO(octets)) as archive:
            assert {info.filename: archive.read(info) for info in archive.infolist()} == GOODS
        assert await firefox.evaluate("navigator.serviceWorker.ready.then(() => true)")

        await firefox.goto(f"{market.url}/sign-in")
        await firefox.fill("#token", market.till.account.token)
        await firefox.click("form:has(#token) button")
        await firefox.until("!location.pathname.endsWith('/sign-in')")
        await firefox.goto(f"{market.url}/upload")
        await firefox.until("!document.getElementById('upload').hidden")
        await firefox.choose_files("#choose-files", tmp_path / "film.bin")
        await firefox.fill("#price", "0")
        await firefox.click("#start")
        await firefox.until("!document.getElementById('result').hidden")
        await firefox.goto(await firefox.evaluate("document.getElementById('link').textContent"))
        await firefox.until("document.body.dataset.ready === 'true'")
        await firefox.click("#pay button")
        await firefox.until("document.body.dataset.unlocked === 'true'")
        await firefox.click("#get-all")
        assert await firefox.downloaded("film.bin") == content
