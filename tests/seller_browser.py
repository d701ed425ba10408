"""A seller's browser without JavaScript, signed in on the pages from the start.

    async with seller_browser(till) as browser:
        await browser.get("/dashboard")

The session is opened as the sign-in page does it; how people sign in is tested elsewhere.
"""

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from bitcache import sessions
from bitcache.web.session_cookie import COOKIE
from tests.till import Till

TAGS = re.compile(r"<[^>]+>")


async def session_secret(till: Till, account_id: str | None = None) -> str:
    """What the cookie of a fresh session holds; by default of the till's own seller."""
    opened = await till.server.services.database.write(
        lambda tx: sessions.open_session(
            tx, account_id or till.account.account_id, token_id=None, now=till.server.clock()
        )
    )
    return opened.secret


def _line(markup: str) -> str:
    # The thin spaces within numbers stay.
    return re.sub("[ \n]+", " ", html.unescape(TAGS.sub(" ", markup))).strip()


class SellerBrowser:
    """Keeps cookies, reads forms, follows nothing by itself."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.text = ""
        self.status = 0
        self.headers: dict[str, str] = {}

    @property
    def words(self) -> str:
        """The page's text, in one line."""
        return _line(self.text)

    def part(self, element_id: str) -> str:
        """The text of one live part of the page, in one line."""
        found = re.search(rf'id="part-{element_id}".*?(?=id="part-|id="live-state")', self.text, re.S)
        assert found, f"there is no part {element_id}"
        return _line(found[0].partition(">")[2])

    async def get(self, path: str) -> None:
        await self._take(self._http.get(path, allow_redirects=False))

    async def send(self, action: str, **fields: str) -> None:
        """The form that goes to `action`, with the page's form token."""
        token = re.search(r'name="form_token" value="([^"]+)"', self.text)
        assert token, "the page has no form"
        data = {"form_token": token[1], **fields}
        await self._take(self._http.post(action, data=data, allow_redirects=False))

    async def _take(self, request: object) -> None:
        async with request as answer:  # type: ignore[attr-defined]
            self.status, self.headers = answer.status, dict(answer.headers)
            self.text = await answer.text()


@asynccontextmanager
async def seller_browser(till: Till, account_id: str | None = None) -> AsyncIterator[SellerBrowser]:
    # Cookies of an address, as the tests have no name for the server.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(till.server.url, cookie_jar=jar) as http:
        jar.update_cookies({COOKIE: await session_secret(till, account_id)}, URL(till.server.url))
        yield SellerBrowser(http)
