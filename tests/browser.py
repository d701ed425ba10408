"""A real browser for tests: Chromium, one profile per visitor, and what no page may ever do.

    pytestmark = pytest.mark.asyncio(loop_scope="session")

    async def test_it(new_visitor: NewVisitor, ...) -> None:
        buyer = await new_visitor()
        page = await buyer.goto(link)

A visitor is checked when its test ends: no error on any page, nothing the policy had to block, no request to
another host, and no request of any kind that holds a secret of a link.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, BrowserContext, Page, Request, async_playwright

from regtest.chromium import FLAGS
from regtest.node import wait_until

NewVisitor = Callable[..., Awaitable["Visitor"]]

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
OWN_SCHEMES = {"blob", "data", "about"}
BODY_BYTES_SEARCHED_MAX = 1 << 20
# Violations of the policy come as events, whatever the page does with its errors.
WATCH = """addEventListener('securitypolicyviolation', (found) =>
    console.error('POLICY', found.violatedDirective, found.blockedURI))"""
_AXE = Path(AXE_FILE_PATH).read_text()


@asynccontextmanager
async def open_chromium(path: Path) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield browser
        await browser.close()


class Visitor:
    """One person at one browser, with a fresh profile."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.faults: list[str] = []
        self.secrets: set[str] = set()
        """Must be in no request. Those of links that are opened come by themselves."""
        self._requests: list[tuple[str, str]] = []
        self._hosts: set[str] = set()

    @classmethod
    async def open(cls, browser: Browser, **options: Any) -> Visitor:
        """`options` are those of a Playwright context, such as `locale` or `java_script_enabled`."""
        defaults = {"locale": "en-US", "viewport": DESKTOP, "accept_downloads": True}
        visitor = cls(await browser.new_context(**{**defaults, **options}))
        await visitor.context.add_init_script(WATCH)
        visitor.context.on("request", visitor._note)
        visitor.context.on("weberror", lambda error: visitor.faults.append(f"error: {error.error}"))
        visitor.context.on("console", lambda said: visitor._hear(said.type, said.text))
        return visitor

    async def goto(self, url: str, page: Page | None = None) -> Page:
        """Open `url`, in a new tab unless `page` is given."""
        page = page or await self.context.new_page()
        self._hosts.add(urlsplit(url).netloc)
        fragment = urldefrag(url).fragment
        if fragment.count("."):
            # Of a link and of a receipt alike, the last field is the link secret.
            self.secrets.add(fragment.rpartition(".")[2])
        await page.goto(url)
        return page

    async def close(self) -> None:
        await self.context.close()

    def check(self) -> None:
        """Raises AssertionError with everything that was wrong."""
        for url, sent in self._requests:
            parts = urlsplit(url)
            if parts.scheme not in OWN_SCHEMES and parts.netloc not in self._hosts:
                self.faults.append(f"a request to another host: {url}")
            for secret in self.secrets:
                if secret in urldefrag(url).url or secret in sent:
                    self.faults.append(f"a link secret was sent to {urldefrag(url).url}")
        assert not self.faults, "\n".join(self.faults)

    def _note(self, request: Request) -> None:
        try:
            body = (request.post_data_buffer or b"")[:BODY_BYTES_SEARCHED_MAX].decode(errors="replace")
        except Exception:  # the body of a stream cannot be read
            body = ""
        self._requests.append((request.url, f"{request.headers} {body}"))

    def _hear(self, kind: str, text: str) -> None:
        if text.startswith("POLICY") or "Content Security Policy" in text or "Trusted" in text:
            self.faults.append(f"blocked by the policy: {text}")
        elif kind == "error" and not text.startswith("Failed to load resource"):
            self.faults.append(f"console: {text}")


async def until(page: Page, script: str, what: str = "", argument: object = None) -> Any:
    """Wait until `script`, a JavaScript expression or function, is true on the page; its value.

    Playwright's own waiting for functions needs eval, which the policy refuses.
    """
    found: Any = None

    async def look() -> bool:
        nonlocal found
        found = await page.evaluate(script, argument)
        return bool(found)

    await wait_until(look, what or script)
    return found


async def downloaded(page: Page, start: Callable[[], Awaitable[object]]) -> tuple[str, bytes]:
    """(suggested name, content) of the file that the browser saves after `start()`."""
    async with page.expect_download(timeout=60_000) as download:
        await start()
    saved = await download.value
    return saved.suggested_filename, (await _saved_path(saved)).read_bytes()


async def _saved_path(download: Any) -> Path:
    failure = await download.failure()
    assert failure is None, f"the browser could not save: {failure}"
    return Path(await download.path())


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong on the page, as lines: rule, help, where."""
    await page.evaluate(_AXE)
    # Asked for nothing else, it works out nothing else: a third of the time.
    found_wrong = await page.evaluate("async () => (await axe.run({resultTypes: ['violations']})).violations")
    return [
        f"{found['id']}: {found['help']}: {node['target']} {node['html'][:200]}"
        for found in found_wrong
        for node in found["nodes"]
    ]
