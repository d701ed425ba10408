"""The cookie of a seller signed in on the pages; the sessions themselves are `bitcache.sessions`.

It holds a random secret and nothing else, goes to this host only, and no script can read it.
"""

import re

from aiohttp import web

from bitcache.accounts import Seller
from bitcache.sessions import SESSION_LIFETIME_S, Opened, seller_of_secret
from bitcache.web.forms import set_cookie
from payments.ports import Store

COOKIE = "bitcache_session"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


def keep(response: web.StreamResponse, opened: Opened, *, secure: bool) -> None:
    """Sign in on this browser."""
    set_cookie(response, COOKIE, opened.secret, secure=secure, lifetime_s=SESSION_LIFETIME_S)


def forget(response: web.StreamResponse) -> None:
    response.del_cookie(COOKIE, path="/")


async def signed_in(request: web.Request, store: Store, now: int) -> Seller | None:
    """Who is signed in on the browser that asks."""
    secret = request.cookies.get(COOKIE, "")
    if not _SECRET.fullmatch(secret):
        return None
    return await store.read(lambda tx: seller_of_secret(tx, secret, now=now))
