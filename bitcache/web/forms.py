"""What makes a form safe to take: it was on our own page, in this browser, not long ago.

A random cookie marks the browser; each form carries a MAC over it, the form's name and its time. Another site
can neither read the cookie nor make the MAC, and SameSite=Strict keeps the cookie from coming with its forms.
"""

import hmac
import re
import secrets

from aiohttp import web

from bitcache.config import Config
from bitcache.errors import FormRefused
from storage import base64url

COOKIE = "bitcache_form"
HOST_ONLY = "__Host-"
"""Browsers take a cookie of such a name from this very host alone, over https: no neighbour can plant it."""
FIELD = "form_token"
FORM_LIFETIME_S = 12 * 3_600
BROWSER_BYTES = 16
_TOKEN = re.compile(r"(?P<made_at>[0-9]{1,12})\.(?P<nonce>[A-Za-z0-9_-]{22})\.(?P<mac>[A-Za-z0-9_-]{43})")
_BROWSER = re.compile(r"[A-Za-z0-9_-]{22}")


class Forms:
    """Makes and checks form tokens under one key."""

    def __init__(self, key: bytes, *, secure: bool) -> None:
        self._key = key
        self.secure = secure

    def browser(self, request: web.Request) -> str:
        """This browser's mark, new if it has none."""
        mark = request.cookies.get(cookie_name(COOKIE, secure=self.secure), "")
        return mark if _BROWSER.fullmatch(mark) else secrets.token_urlsafe(BROWSER_BYTES)

    def keep(self, response: web.StreamResponse, browser: str) -> None:
        """Let the browser keep its mark."""
        set_cookie(response, COOKIE, browser, secure=self.secure, lifetime_s=FORM_LIFETIME_S)

    def token(self, form: str, browser: str, now: int) -> str:
        """A fresh token for the form of this name."""
        head = f"{now}.{secrets.token_urlsafe(16)}"
        return f"{head}.{self._mac(form, browser, head)}"

    def check(self, form: str, browser: str, token: str, now: int) -> str:
        """The token's nonce: the same for as often as this one form is sent. Raises FormRefused."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise FormRefused
        head = f"{match['made_at']}.{match['nonce']}"
        if not hmac.compare_digest(self._mac(form, browser, head), match["mac"]):
            raise FormRefused
        if not 0 <= now - int(match["made_at"]) <= FORM_LIFETIME_S:
            raise FormRefused
        return match["nonce"]

    def secret(self, purpose: str, nonce: str) -> bytes:
        """32 bytes that follow from a form's nonce, so that a form sent twice is one order."""
        return hmac.digest(self._key, f"secret\0{purpose}\0{nonce}".encode(), "sha256")

    def _mac(self, form: str, browser: str, head: str) -> str:
        octets = hmac.digest(self._key, f"form\0{form}\0{browser}\0{head}".encode(), "sha256")
        return base64url.encode(octets)


def over_https(config: Config) -> bool:
    """Whether browsers come by https, so that cookies can be kept to it."""
    return config.public_url.startswith("https://")


def cookie_name(name: str, *, secure: bool) -> str:
    """What a cookie is called in the browser. Pure."""
    return f"{HOST_ONLY}{name}" if secure else name


def set_cookie(response: web.StreamResponse, name: str, text: str, *, secure: bool, lifetime_s: int) -> None:
    """For our own pages only, and out of reach of any script."""
    response.set_cookie(
        cookie_name(name, secure=secure),
        text,
        max_age=lifetime_s,
        path="/",
        secure=secure,
        httponly=True,
        samesite="Strict",
    )
