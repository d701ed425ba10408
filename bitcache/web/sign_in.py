"""Signing in and out, and the token with which the pages' own scripts call the API.

GET  /sign-in
POST /sign-in, /sign-out
POST /session/token          JSON; the header Bitcache-Form-Token shows that one of our pages asks
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec
from aiohttp import web
from msgspec import Struct

from bitcache import accounts, passwords, sessions
from bitcache.accounts import Seller
from bitcache.api.bodies import json_response
from bitcache.api.problems import problem_of, problem_response
from bitcache.api.routing import Call, Route
from bitcache.errors import FormRefused, TokenInvalid, TokenMissing, TooManyRequests
from bitcache.passwords import Known
from bitcache.sessions import Opened
from bitcache.web import known_browser, session_cookie
from bitcache.web.visit import API_FORM, Visit, later, page_route, visit_of
from payments.ports import Transaction

PATH = "/sign-in"
SIGN_IN_FORM = "sign-in"
SELLER_FORM = "seller"
"""Every form of the pages for sellers."""
HOME = "/dashboard"
FORM_TOKEN_HEADER = "Bitcache-Form-Token"  # noqa: S105
NAME_LENGTH_COUNTED = 100

# Our own places and what is below them: neither another host nor a page for buyers.
_PLACES = re.compile(r"/(dashboard|upload|account)(/[a-z0-9-]+)*")

Opening = Callable[[Transaction], Awaitable[Opened | None]]
"""Opens a session, or decides in the same transaction that it must not."""


class WebToken(Struct, frozen=True):
    """The answer of POST /session/token."""

    token: str
    expires_at: int


def sign_in_page(
    visit: Visit, *, wanted: str = "", name: str = "", refused: str = "", status: int = 200
) -> web.Response:
    """`wanted`: the path to come back to; `refused`: a key of the catalogue that says why it did not work."""
    fields = {
        "wanted": place(wanted),
        "name": name,
        "refused": refused,
        "sign_up": visit.services.config.registration != "closed",
    }
    return visit.page("sign_in.html", fields, form=SIGN_IN_FORM, status=status)


def place(wanted: str) -> str:
    """The path, where it is one of a seller's; else the first of them. Pure."""
    return wanted if _PLACES.fullmatch(wanted) else HOME


async def show_sign_in(visit: Visit) -> web.Response:
    return sign_in_page(visit)


async def sign_in(visit: Visit) -> web.Response:
    fields, _ = await visit.form(SIGN_IN_FORM)
    wanted, name = fields.get("next", ""), fields.get("name", "")
    guest = None
    try:
        if "token" in fields:
            visit.services.limits.sign_ins.check(visit.call.client)
            opening, refused = await _by_token(visit, fields["token"].strip()), "token_wrong"
        else:
            guest = await _guest(visit, name)
            opening, refused = await _by_password(visit, guest, fields.get("password", "")), "password_wrong"
    except TooManyRequests as exc:
        return later(sign_in_page(visit, wanted=wanted, name=name, refused="sign_in_often", status=429), exc)
    entry = await entered(visit, opening, wanted=wanted) if opening else None
    if entry is not None and guest is not None and guest.known is not None:
        key, account_id = visit.services.sealer.mac_key(known_browser.MAC_PURPOSE), guest.known.account_id
        known_browser.keep(entry, key, account_id, guest.browser, now=visit.now(), secure=visit.forms.secure)
    return entry or sign_in_page(visit, wanted=wanted, name=name, refused=refused, status=401)


async def entered(visit: Visit, opening: Opening, *, wanted: str = "") -> web.Response | None:
    """Sign in on this browser in place of who was, and go on to `wanted`; None where `opening` refuses."""
    before, now = await _seller(visit), visit.now()

    async def opened(tx: Transaction) -> Opened | None:
        made = await opening(tx)
        if made is not None and before is not None and before.session_id is not None:
            await sessions.end(tx, before.session_id, now=now)
        return made

    made = await visit.services.database.write(opened)
    if made is None:
        return None
    response = visit.redirect(place(wanted))
    session_cookie.keep(response, made, secure=visit.forms.secure)
    return response


async def sign_out(visit: Visit) -> web.Response:
    seller = await _seller(visit)
    if seller is None or seller.session_id is None:
        # The cookie stays as it is: a form of another site comes without it, and must not take it away.
        return visit.redirect(PATH)
    await replace(visit, account_id=seller.account_id).form(SELLER_FORM)
    ended = seller.session_id
    await visit.services.database.write(lambda tx: sessions.end(tx, ended, now=visit.now()))
    return signed_out(visit)


def signed_out(visit: Visit) -> web.Response:
    """The answer to who has just signed out."""
    response = visit.redirect(PATH)
    session_cookie.forget(response, secure=visit.forms.secure)
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
    seller = await _seller(visit)
    if seller is None or seller.session_id is None:
        raise TokenMissing("You are signed out. Sign in again, in another tab if you like, and go on.")
    form_token = visit.call.http.headers.get(FORM_TOKEN_HEADER, "")
    replace(visit, account_id=seller.account_id).check_token(API_FORM, form_token)
    session_id, key = seller.session_id, services.sealer.mac_key(sessions.MAC_PURPOSE)
    token, expires_at = await services.database.read(
        lambda tx: sessions.issue_web_token(tx, key, session_id, now=now)
    )
    return json_response(200, msgspec.json.encode(WebToken(token, expires_at)))


async def _by_token(visit: Visit, token: str) -> Opening | None:
    try:
        seller = await visit.services.database.read(lambda tx: accounts.seller_of_token(tx, token))
    except TokenInvalid:
        return None
    # Revoked meanwhile, it opens a session that is over from the start.
    return lambda tx: sessions.open_session(tx, seller.account_id, token_id=seller.token_id, now=visit.now())


@dataclass(frozen=True, slots=True)
class _Guest:
    """Who wants to be let in by a password."""

    known: Known | None
    """The account of the name that was typed."""
    browser: bytes | None
    """It was signed in here before."""


async def _guest(visit: Visit, name: str) -> _Guest:
    """One attempt, counted. Raises TooManyRequests."""
    services = visit.services
    known = await services.database.read(lambda tx: passwords.known_of_name(tx, name))
    browser = None
    if known is not None:
        key = services.sealer.mac_key(known_browser.MAC_PURPOSE)
        browser = known_browser.known_as(
            visit.call.http, key, known.account_id, now=visit.now(), secure=visit.forms.secure
        )
    if browser is not None:
        services.limits.sign_ins_by_browser.check(browser.hex())
    else:
        services.limits.sign_ins.check(visit.call.client)
        # However it is written it is one account; a name that nobody has is counted too, or it would tell.
        counted = known.account_id if known else " ".join(name.split()).casefold()[:NAME_LENGTH_COUNTED]
        services.limits.sign_ins_by_name.check(counted)
    return _Guest(known, browser)


async def _by_password(visit: Visit, guest: _Guest, password: str) -> Opening | None:
    """Raises TooManyRequests."""
    services, known = visit.services, guest.known
    checked = await services.passwords.check(
        password, known.password_hash if known else None, known=guest.browser is not None
    )
    if known is None or not checked.right:
        return None

    async def opening(tx: Transaction) -> Opened | None:
        # Changed while it was checked, it is no longer the password.
        if await passwords.known_of(tx, known.account_id) != known:
            return None
        if checked.better_hash is not None:
            await passwords.keep(tx, known.account_id, checked.better_hash, instead_of=known.password_hash)
        return await sessions.open_session(tx, known.account_id, token_id=None, now=visit.now())

    return opening


async def _seller(visit: Visit) -> Seller | None:
    return await session_cookie.signed_in(visit.call.http, visit.services)


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
