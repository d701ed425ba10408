"""Browsers that were signed in before: their sellers are not locked out by who guesses at the name elsewhere.

    cookie  = base64url(payload || HMAC-SHA256(key, payload))
    payload = 0x01 || account_id[16] || browser[16] || uint64_be(made_at)

Names are no secret, so attempts at one are counted together, whoever makes them, and a few strangers could
use them all up. A browser that the password was right in has attempts of its own. The cookie opens nothing.
"""

import os
import struct

from aiohttp import web

from bitcache.ids import raw_id
from bitcache.signed import payload_of, sign
from bitcache.web.forms import cookie_name, set_cookie
from storage import base64url

COOKIE = "bitcache_known"
MAC_PURPOSE = "known-browser"
LIFETIME_S = 365 * 86_400

_VERSION = 1
_PAYLOAD = struct.Struct(">B16s16sQ")


def keep(
    response: web.StreamResponse,
    key: bytes,
    account_id: str,
    browser: bytes | None,
    *,
    now: int,
    secure: bool,
) -> None:
    """Remember that the account was signed in here; `browser` as `known_as` said it."""
    payload = _PAYLOAD.pack(_VERSION, raw_id(account_id), browser or os.urandom(16), now)
    text = base64url.encode(sign(key, payload))
    set_cookie(response, COOKIE, text, secure=secure, lifetime_s=LIFETIME_S)


def known_as(request: web.Request, key: bytes, account_id: str, *, now: int, secure: bool) -> bytes | None:
    """The browser's own name, if the account was signed in on it within a year."""
    text = request.cookies.get(cookie_name(COOKIE, secure=secure), "")
    try:
        payload = payload_of(key, base64url.decode(text))
    except ValueError:
        return None
    if payload is None:
        return None
    version, account, browser, made_at = _PAYLOAD.unpack(payload)
    if version != _VERSION or account != raw_id(account_id) or not 0 <= now - made_at < LIFETIME_S:
        return None
    return bytes(browser)
