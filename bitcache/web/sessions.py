"""A seller signed in on the pages: a sealed cookie that names the token, never the token itself.

Revoking the token ends the session at the next click; so does its age.
"""

from aiohttp import web
from msgspec import DecodeError, Struct, json
from sqlalchemy import select

from bitcache.accounts import Seller
from bitcache.db.tables import accounts, tokens
from bitcache.errors import SealBroken
from bitcache.sealing import Sealer
from bitcache.web.forms import set_cookie
from payments.ports import Transaction
from storage import base64url

COOKIE = "bitcache_session"
SESSION_LIFETIME_S = 12 * 3_600
# What the cookie is sealed for: nothing else that is ever sealed can be put in its place.
_TABLE = "web session"
_ROW = "cookie"


class Session(Struct, frozen=True):
    account_id: str
    token_id: str
    expires_at: int


def keep(response: web.StreamResponse, sealer: Sealer, seller: Seller, *, now: int, secure: bool) -> None:
    """Sign `seller` in on this browser."""
    session = Session(seller.account_id, seller.token_id, now + SESSION_LIFETIME_S)
    sealed = sealer.seal(json.encode(session), table=_TABLE, row_id=_ROW)
    set_cookie(response, COOKIE, base64url.encode(sealed), secure=secure, lifetime_s=SESSION_LIFETIME_S)


def forget(response: web.StreamResponse) -> None:
    response.del_cookie(COOKIE, path="/")


def session_of(request: web.Request, sealer: Sealer, now: int) -> Session | None:
    """The session of this browser, if it has one that has not run out."""
    try:
        sealed = base64url.decode(request.cookies.get(COOKIE, ""))
        session = json.decode(sealer.open(sealed, table=_TABLE, row_id=_ROW), type=Session)
    except (ValueError, SealBroken, DecodeError):
        return None
    return session if now < session.expires_at else None


async def seller_of(tx: Transaction, session: Session) -> Seller | None:
    """Who is signed in; None once the token was revoked."""
    row = (
        await tx.execute(
            select(tokens.c.id, tokens.c.account_id, accounts.c.name)
            .join(accounts, accounts.c.id == tokens.c.account_id)
            .where(
                tokens.c.id == session.token_id,
                tokens.c.account_id == session.account_id,
                tokens.c.revoked_at.is_(None),
            )
        )
    ).one_or_none()
    return Seller(account_id=row.account_id, name=row.name, token_id=row.id) if row else None
