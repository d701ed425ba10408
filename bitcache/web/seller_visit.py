"""A page for sellers only: who is not signed in gets the sign-in page in its place, then comes back."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from bitcache.accounts import Seller
from bitcache.api.routing import Route
from bitcache.web import sessions
from bitcache.web.visit import Visit, page_route

SIGN_IN_FORM = "sign-in"

SellerHandler = Callable[[Visit, Seller], Awaitable[web.Response]]


async def seller_of_visit(visit: Visit) -> Seller | None:
    """Who is signed in on this browser."""
    services = visit.services
    session = sessions.session_of(visit.call.http, services.sealer, visit.now())
    if session is None:
        return None
    return await services.database.read(lambda tx: sessions.seller_of(tx, session))


def seller_route(method: str, path: str, handler: SellerHandler, summary: str, *, back: str = "") -> Route:
    """As `page_route`, for who is signed in."""

    async def visited(visit: Visit) -> web.Response:
        seller = await seller_of_visit(visit)
        if seller is not None:
            return await handler(visit, seller)
        status = 200 if method == "GET" else 401
        return visit.page("sign_in.html", {"refused": False}, form=SIGN_IN_FORM, status=status)

    visited.__name__ = handler.__name__
    return page_route(method, path, visited, summary, back=back)
