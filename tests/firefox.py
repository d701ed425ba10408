"""Firefox through WebDriver BiDi, the W3C's protocol that it speaks by itself: enough for our pages.

async with open_firefox(path, folder) as firefox:
    await firefox.goto(link)
    await firefox.until("document.body.dataset.ready === 'true'")
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from regtest.node import wait_until
from regtest.processes import GuardedProcess, free_ports

NAMES = ("firefox-esr", "firefox")
HOW_TO_INSTALL = "There is no Firefox here (Debian: apt-get install firefox-esr)."
MESSAGE_BYTES_MAX = 64 << 20
COMMAND_TIMEOUT_S = 60
# It calls home otherwise, asks where to save, and counts on hardware that tests have not.
PREFERENCES: dict[str, str | int | bool] = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.download.folderList": 2,
    "browser.download.useDownloadDir": True,
    "browser.download.always_ask_before_handling_new_types": False,
    "browser.helperApps.neverAsk.saveToDisk": "application/octet-stream,application/zip",
    "browser.safebrowsing.downloads.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.getAddons.cache.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "http://127.0.0.1:9/",
    "toolkit.telemetry.enabled": False,
}


class FirefoxRefused(Exception):
    """Firefox answered a command with an error."""


def find_firefox() -> Path | None:
    found = (shutil.which(name) for name in NAMES)
    return next((Path(path) for path in found if path), None)


class Firefox:
    """One window of one profile."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, downloads: Path) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._context = ""
        self.downloads = downloads

    async def start(self) -> None:
        await self.command("session.new", capabilities={})
        tree = await self.command("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def command(self, method: str, **params: Any) -> Any:
        """One command of the protocol; its result. Raises FirefoxRefused."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") != number:
                    continue  # an event
                if answer["type"] == "error":
                    raise FirefoxRefused(f"{method}: {answer['message']}")
                return answer["result"]

    async def goto(self, url: str) -> None:
        await self.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression that is a string, number, boolean or null."""
        result = await self.command(
            "script.evaluate", expression=script, target={"context": self._context}, awaitPromise=True
        )
        if result["type"] == "exception":
            raise FirefoxRefused(result["exceptionDetails"]["text"])
        return result["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until the expression is true; its value."""
        found: Any = None

        async def look() -> bool:
            nonlocal found
            try:
                found = await self.evaluate(script)
            except FirefoxRefused:
                return False  # between two pages
            return bool(found)

        await wait_until(look, script)
        return found

    async def click(self, selector: str) -> None:
        await self.evaluate(f"document.querySelector({selector!r}).click()")

    async def fill(self, selector: str, text: str) -> None:
        """Put `text` into a field, as typing does."""
        await self.evaluate(
            f"""(() => {{
              const field = document.querySelector({selector!r});
              field.value = {text!r};
              for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {{bubbles: true}}));
            }})()"""
        )

    async def choose_files(self, selector: str, *files: Path) -> None:
        found = await self.command(
            "browsingContext.locateNodes", context=self._context, locator={"type": "css", "value": selector}
        )
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        await self.command(
            "input.setFiles", context=self._context, element=element, files=[str(file) for file in files]
        )

    async def downloaded(self, name: str) -> bytes:
        """The file that was saved under `name`, once it is whole."""
        file = self.downloads / name

        async def whole() -> bool:
            return file.exists() and file.stat().st_size > 0 and not list(self.downloads.glob("*.part"))

        await wait_until(whole, f"Firefox to save {name}")
        return file.read_bytes()


@asynccontextmanager
async def open_firefox(path: Path, folder: Path) -> AsyncIterator[Firefox]:
    """A headless Firefox with a fresh profile in `folder`."""
    profile, downloads = folder / "profile", folder / "downloads"
    profile.mkdir(parents=True)
    downloads.mkdir()
    chosen = {**PREFERENCES, "browser.download.dir": str(downloads)}
    lines = (f"user_pref({_js(name)}, {_js(value)});\n" for name, value in chosen.items())
    (profile / "user.js").write_text("".join(lines))
    port = free_ports(1)[0]
    process = GuardedProcess(
        [path, "--headless", "--no-remote", "--profile", profile, f"--remote-debugging-port={port}"],
        log=folder / "firefox.log",
        environment={**os.environ, "HOME": str(folder)},
        doomed_folder=folder,
    )
    try:
        async with aiohttp.ClientSession() as http:
            socket: list[aiohttp.ClientWebSocketResponse] = []

            async def connected() -> bool:
                try:
                    place = f"ws://127.0.0.1:{port}/session"
                    socket.append(await http.ws_connect(place, max_msg_size=MESSAGE_BYTES_MAX))
                except aiohttp.ClientError:
                    return False
                return True

            await wait_until(connected, "Firefox to start", timeout_s=60, poll_s=0.1)
            firefox = Firefox(socket[0], downloads)
            await firefox.start()
            yield firefox
            await socket[0].close()
    finally:
        await asyncio.to_thread(process.kill)


def _js(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{value}"'
