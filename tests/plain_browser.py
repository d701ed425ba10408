"""A browser without JavaScript, as far as pages need one: cookies, forms, and nothing by itself."""

import html
import json
import re
from typing import Any

import aiohttp
from yarl import URL

from tests.stand import Stand
from tests.till import Till


class Browser:
    """Keeps cookies, reads forms, follows nothing by itself."""

    def __init__(self, shop: Till | Stand) -> None:
        self._url = shop.server.url
        # Cookies of an address, as the tests have no name for the server.
        self._http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        self.address = ""
        """Where it is, as a trusted proxy would say."""
        self.text = ""
        self.status = 0
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> "Browser":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def get(self, path: str, **headers: str) -> None:
        if self.address:
            headers["X-Forwarded-For"] = self.address
        await self._take(self._http.get(self._url + path, headers=headers, allow_redirects=False))

    async def send(self, action: str, **fields: str) -> None:
        headers = {"X-Forwarded-For": self.address} if self.address else {}
        sent = self._http.post(self._url + action, data=fields, headers=headers, allow_redirects=False)
        await self._take(sent)

    async def post_json(self, action: str, **headers: str) -> Any:
        """The JSON answer, whatever its status."""
        await self._take(self._http.post(self._url + action, headers=headers))
        return json.loads(self.text)

    def kept(self, cookie: str) -> str:
        return self._http.cookie_jar.filter_cookies(URL(self._url))[cookie].value

    def keep(self, cookie: str, text: str) -> None:
        self._http.cookie_jar.update_cookies({cookie: text}, URL(self._url))

    async def submit(self, action: str, **fields: str) -> None:
        """The page's form that goes to `action`, with its hidden fields."""
        form = re.search(
            rf'<form [^>]*action="({re.escape(action)}[^"]*)"[^>]*>(.*?)</form>', self.text, re.S
        )
        assert form, f"no form to {action}"
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form[2]))
        await self.send(html.unescape(form[1]), **hidden, **fields)

    async def _take(self, request: object) -> None:
        async with request as answer:  # type: ignore[attr-defined]
            self.status, self.headers = answer.status, dict(answer.headers)
            self.cookies = answer.headers.getall("Set-Cookie", [])
            # What scripts may say is not said yet.
            self.text = re.sub(r' data-words="[^"]*"', "", await answer.text())
