"""A page for sellers only: who is not signed in gets the sign-in page in its place, then comes back."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from aiohttp import web

from bitcache.accounts import Seller
from bitcache.api.routing import Route
from bitcache.web.session_cookie import signed_in
from bitcache.web.sign_in import sign_in_page
from bitcache.web.visit import Visit, page_route

SellerHandler = Callable[[Visit, Seller], Awaitable[web.StreamResponse]]


def seller_route(method: str, path: str, handler: SellerHandler, summary: str, *, back: str = "") -> Route:
    """As `page_route`, for who is signed in."""

    async def visited(visit: Visit) -> web.StreamResponse:
        seller = await signed_in(visit.call.http, visit.services)
        if seller is not None:
            return await handler(replace(visit, account_id=seller.account_id), seller)
        if method == "GET":
            return sign_in_page(visit, wanted=visit.call.http.path)
        return sign_in_page(visit, wanted=back.format(**visit.call.http.match_info), status=401)

    visited.__name__ = handler.__name__
    return page_route(method, path, visited, summary, back=back)
