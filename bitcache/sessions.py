"""Sellers signed in on the pages: a row per session, and short-lived tokens for the pages' own scripts.

    token   = "bcw_" || base64url(payload || HMAC-SHA256(key, payload))
    payload = 0x01 || session_id[16] || uint64_be(expires_at)

The browser keeps a random secret of which the row has the hash, so the database alone lets nobody in.
Nothing of a token is stored; its session is looked up at every use, so signing out ends its tokens too. A
session that was opened with a seller token lives no longer than that token.
"""

import secrets
import struct
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update

from bitcache.accounts import Seller
from bitcache.db.tables import accounts, sessions, tokens
from bitcache.errors import TokenInvalid
from bitcache.ids import id_text, new_id, raw_id, token_hash
from bitcache.signed import MAC_SIZE_BYTES, payload_of, sign
from payments.ports import Transaction
from storage import base64url

SESSION_LIFETIME_S = 12 * 3_600
WEB_TOKEN_PREFIX = "bcw_"  # noqa: S105
WEB_TOKEN_LIFETIME_S = 900
MAC_PURPOSE = "web-token"

_VERSION = 1
_PAYLOAD = struct.Struct(">B16sQ")
_TOKEN_LENGTH = len(WEB_TOKEN_PREFIX) + -(-(_PAYLOAD.size + MAC_SIZE_BYTES) * 4 // 3)


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session; `secret` is the browser's and is known nowhere else."""

    session_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session as its seller sees it in a list."""

    id: str
    created_at: int
    expires_at: int
    token_label: str | None
    """Of the token that opened it; None: the password did."""


async def open_session(tx: Transaction, account_id: str, *, token_id: str | None, now: int) -> Opened:
    """Sign in: always a new session, so that nobody can plant one. `token_id`: what it was opened with."""
    opened = Opened(new_id(), secrets.token_urlsafe(32))
    await tx.execute(
        insert(sessions).values(
            id=opened.session_id,
            account_id=account_id,
            secret_hash=token_hash(opened.secret),
            token_id=token_id,
            created_at=now,
            expires_at=now + SESSION_LIFETIME_S,
        )
    )
    return opened


async def seller_of_secret(tx: Transaction, secret: str, *, now: int) -> Seller | None:
    """Who is signed in with `secret`; None once the session is over."""
    return await _seller(tx, sessions.c.secret_hash == token_hash(secret), now)


async def list_live(tx: Transaction, account_id: str, *, now: int) -> list[ListedSession]:
    """The account's sessions that are not over, newest first."""
    query = (
        select(sessions.c.id, sessions.c.created_at, sessions.c.expires_at, tokens.c.label)
        .join(tokens, tokens.c.id == sessions.c.token_id, isouter=True)
        .where(sessions.c.account_id == account_id, *_live(now))
        .order_by(sessions.c.created_at.desc(), sessions.c.id)
    )
    return [ListedSession(*row) for row in (await tx.execute(query)).all()]


async def end(tx: Transaction, session_id: str, *, now: int) -> None:
    """Sign out. Ending again is harmless."""
    await _end(tx, sessions.c.id == session_id, now)


async def end_all(
    tx: Transaction, account_id: str, *, now: int, except_session_id: str | None = None
) -> None:
    """Sign the account out everywhere, or everywhere else."""
    await _end(tx, (sessions.c.account_id == account_id) & (sessions.c.id != (except_session_id or "")), now)


async def forget_over(tx: Transaction, *, now: int) -> None:
    """Delete the rows of sessions that have ended or run out; for the sweep."""
    await tx.execute(delete(sessions).where(or_(sessions.c.expires_at <= now, sessions.c.ended_at <= now)))


async def issue_web_token(tx: Transaction, key: bytes, session_id: str, *, now: int) -> tuple[str, int]:
    """(token, when it expires) for a live session: its scripts call the API with it. Raises TokenInvalid."""
    session_ends_at = await tx.scalar(select(sessions.c.expires_at).where(sessions.c.id == session_id))
    if session_ends_at is None:
        raise _refusal()
    expires_at = min(now + WEB_TOKEN_LIFETIME_S, session_ends_at)
    payload = _PAYLOAD.pack(_VERSION, raw_id(session_id), expires_at)
    return WEB_TOKEN_PREFIX + base64url.encode(sign(key, payload)), expires_at


async def seller_of_web_token(tx: Transaction, key: bytes, token: str, *, now: int) -> Seller:
    """Raises TokenInvalid, in the same words whatever is wrong with it."""
    seller = await _seller(tx, sessions.c.id == _session_id(key, token, now), now)
    if seller is None:
        raise _refusal()
    return seller


def _session_id(key: bytes, token: str, now: int) -> str:
    """What a token names, if `key` made it and it lives. Pure. Raises TokenInvalid."""
    if len(token) != _TOKEN_LENGTH or not token.startswith(WEB_TOKEN_PREFIX):
        raise _refusal()
    try:
        octets = base64url.decode(token.removeprefix(WEB_TOKEN_PREFIX))
    except ValueError as exc:
        raise _refusal() from exc
    payload = payload_of(key, octets)
    if payload is None:
        raise _refusal()
    version, session_id, expires_at = _PAYLOAD.unpack(payload)
    if version != _VERSION or now >= expires_at:
        raise _refusal()
    return id_text(session_id)


def _refusal() -> TokenInvalid:
    return TokenInvalid("This token of the pages has run out, or you have signed out. Sign in again.")


async def _seller(tx: Transaction, which: ColumnElement[bool], now: int) -> Seller | None:
    query = (
        select(sessions.c.id, sessions.c.account_id, sessions.c.token_id, accounts.c.name)
        .join(accounts, accounts.c.id == sessions.c.account_id)
        .join(tokens, tokens.c.id == sessions.c.token_id, isouter=True)
        .where(which, *_live(now))
    )
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        return None
    return Seller(account_id=row.account_id, name=row.name, token_id=row.token_id, session_id=row.id)


def _live(now: int) -> tuple[ColumnElement[bool], ...]:
    """Where `sessions` is joined with the tokens that opened them, if any did."""
    return sessions.c.ended_at.is_(None), sessions.c.expires_at > now, tokens.c.revoked_at.is_(None)


async def _end(tx: Transaction, which: ColumnElement[bool], now: int) -> None:
    await tx.execute(update(sessions).where(which).values(ended_at=func.coalesce(sessions.c.ended_at, now)))
