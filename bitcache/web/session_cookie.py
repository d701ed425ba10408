"""The cookie of a seller signed in on the pages; the sessions themselves are `bitcache.sessions`.

It holds a random secret and nothing else, goes to this host only, and no script can read it.
"""

import re

from aiohttp import web

from bitcache.accounts import Seller
from bitcache.services import Services
from bitcache.sessions import SESSION_LIFETIME_S, Opened, seller_of_secret
from bitcache.web.forms import cookie_name, over_https, set_cookie

COOKIE = "bitcache_session"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


def keep(response: web.StreamResponse, opened: Opened, *, secure: bool) -> None:
    """Sign in on this browser."""
    set_cookie(response, COOKIE, opened.secret, secure=secure, lifetime_s=SESSION_LIFETIME_S)


def forget(response: web.StreamResponse, *, secure: bool) -> None:
    set_cookie(response, COOKIE, "", secure=secure, lifetime_s=0)


async def signed_in(request: web.Request, services: Services) -> Seller | None:
    """Who is signed in on the browser that asks."""
    secret = request.cookies.get(cookie_name(COOKIE, secure=over_https(services.config)), "")
    if not _SECRET.fullmatch(secret):
        return None
    return await services.database.read(lambda tx: seller_of_secret(tx, secret, now=services.clock()))
