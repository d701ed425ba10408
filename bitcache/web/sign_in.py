"""Signing in and out, and the token with which the pages' own scripts call the API.

GET  /sign-in
POST /sign-in, /sign-out
POST /session/token          JSON; the header Bitcache-Form-Token shows that one of our pages asks
"""

import re

import msgspec
from aiohttp import web
from msgspec import Struct

from bitcache import accounts, sessions
from bitcache.accounts import Seller
from bitcache.api.bodies import json_response
from bitcache.api.problems import problem_of, problem_response
from bitcache.api.routing import Call, Route
from bitcache.errors import FormRefused, TokenInvalid, TokenMissing
from bitcache.sessions import Opened
from bitcache.web import sessions as cookies
from bitcache.web.visit import API_FORM, Visit, page_route, visit_of
from payments.ports import Transaction

PATH = "/sign-in"
SIGN_IN_FORM = "sign-in"
SELLER_FORM = "seller"
"""Every form of the pages for sellers."""
HOME = "/dashboard"
FORM_TOKEN_HEADER = "Bitcache-Form-Token"  # noqa: S105

# Our own places and what is below them: neither another host nor a page for buyers.
_PLACES = re.compile(r"/(dashboard|upload|account)(/[a-z0-9-]+)*")


class WebToken(Struct, frozen=True):
    """The answer of POST /session/token."""

    token: str
    expires_at: int


def sign_in_page(visit: Visit, *, wanted: str = "", refused: str = "", status: int = 200) -> web.Response:
    """`wanted`: the path to come back to; `refused`: a key of the catalogue that says why it did not work."""
    return visit.page(
        "sign_in.html", {"wanted": place(wanted), "refused": refused}, form=SIGN_IN_FORM, status=status
    )


def place(wanted: str) -> str:
    """The path, where it is one of a seller's; else the first of them. Pure."""
    return wanted if _PLACES.fullmatch(wanted) else HOME


async def show_sign_in(visit: Visit) -> web.Response:
    return sign_in_page(visit)


async def sign_in(visit: Visit) -> web.Response:
    fields, _ = await visit.form(SIGN_IN_FORM)
    token = fields.get("token", "").strip()
    wanted = fields.get("next", "")
    try:
        seller = await visit.services.database.read(lambda tx: accounts.seller_of_token(tx, token))
    except TokenInvalid:
        return sign_in_page(visit, wanted=wanted, refused="token_wrong", status=401)
    return await signed_in_response(visit, seller.account_id, token_id=seller.token_id, wanted=wanted)


async def signed_in_response(
    visit: Visit, account_id: str, *, token_id: str | None, wanted: str = ""
) -> web.Response:
    """Open a session on this browser, end the one it had, and go on to `wanted`."""
    before, now = await _seller(visit), visit.now()

    async def opened(tx: Transaction) -> Opened:
        if before is not None and before.session_id is not None:
            await sessions.end(tx, before.session_id, now=now)
        return await sessions.open_session(tx, account_id, token_id=token_id, now=now)

    response = visit.redirect(place(wanted))
    cookies.keep(response, await visit.services.database.write(opened), secure=visit.forms.secure)
    return response


async def sign_out(visit: Visit) -> web.Response:
    await visit.form(SELLER_FORM)
    seller = await _seller(visit)
    if seller is not None and seller.session_id is not None:
        ended = seller.session_id
        await visit.services.database.write(lambda tx: sessions.end(tx, ended, now=visit.now()))
    response = visit.redirect(PATH)
    cookies.forget(response)
    return response


async def session_token(call: Call) -> web.Response:
    """For scripts: a bearer token of a quarter of an hour, of who is signed in on this browser."""
    try:
        return await _session_token(visit_of(call))
    except (FormRefused, TokenMissing, TokenInvalid) as exc:
        problem = problem_of(exc)
        assert problem is not None
        return problem_response(problem, exc)


async def _session_token(visit: Visit) -> web.Response:
    services, now = visit.services, visit.now()
    visit.forms.check(API_FORM, visit.browser, visit.call.http.headers.get(FORM_TOKEN_HEADER, ""), now)
    seller = await _seller(visit)
    if seller is None or seller.session_id is None:
        raise TokenMissing("You are signed out. Sign in again, in another tab if you like, and go on.")
    session_id, key = seller.session_id, services.sealer.mac_key(sessions.MAC_PURPOSE)
    token, expires_at = await services.database.read(
        lambda tx: sessions.issue_web_token(tx, key, session_id, now=now)
    )
    return json_response(200, msgspec.json.encode(WebToken(token, expires_at)))


async def _seller(visit: Visit) -> Seller | None:
    return await cookies.signed_in(visit.call.http, visit.services.database, visit.now())


ROUTES = (
    page_route("GET", PATH, show_sign_in, "Sign in"),
    page_route("POST", PATH, sign_in, "Sign in", back=PATH),
    page_route("POST", "/sign-out", sign_out, "Sign out", back=HOME),
    Route(
        method="POST",
        path="/session/token",
        handler=session_token,
        operation_id="sessionToken",
        summary="A short-lived token for the scripts of who is signed in",
        responses={200: "application/json"},
        documented=False,
    ),
)
