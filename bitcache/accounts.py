"""Sellers and their tokens. A token is shown once and kept as a hash; its database alone lets nobody in."""

import hmac
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, func, insert, select, update

from bitcache.config import Config
from bitcache.db.tables import accounts, files, tokens
from bitcache.errors import (
    InviteInvalid,
    NameTaken,
    NotFound,
    RegistrationClosed,
    TokenInvalid,
    ValueRefused,
)
from bitcache.ids import SELLER_TOKEN_PREFIX, new_id, new_token, token_hash
from payments.ports import Transaction

TOKEN_LENGTH_MAX = 200
NAME_LENGTH_MAX = 80
LABEL_LENGTH_MAX = 80


@dataclass(frozen=True, slots=True)
class Seller:
    """Who calls: by an API token, or by a session of the pages."""

    account_id: str
    name: str
    token_id: str | None
    """The API token they came with, or signed in with on the pages; None after a password."""
    session_id: str | None = None
    """Of the pages; None for an API token."""


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    name: str
    created_at: int
    bytes_max: int | None
    """None: the server's default."""
    bytes_stored: int
    """Announced sizes of all its files, finished or not."""
    settlement: Literal["direct", "hosted"]
    """Of new invoices: paid to the seller's own wallet, or to the operator's."""

    def bytes_allowed(self, config: Config) -> int:
        return config.account_bytes_max if self.bytes_max is None else self.bytes_max


@dataclass(frozen=True, slots=True)
class ListedToken:
    """What a seller sees of a token later: never the token."""

    id: str
    label: str
    created_at: int


@dataclass(frozen=True, slots=True)
class IssuedToken:
    token_id: str
    token: str
    account_id: str


def check_registration(config: Config, invite: str | None) -> None:
    """Who may open an account, with this invitation or none. Raises RegistrationClosed, InviteInvalid."""
    if config.registration == "closed":
        raise RegistrationClosed("This server opens no accounts by itself. Ask its operator for one.")
    if config.registration == "invite":
        code = (invite or "").encode()
        if not any(hmac.compare_digest(code, known.encode()) for known in config.invite_codes):
            raise InviteInvalid("Registration needs a valid invitation code. Ask the operator for one.")


async def register(tx: Transaction, *, name: str, now: int) -> str:
    """Open an account; its id. Raises NameTaken, ValueRefused."""
    name = await _free_name(tx, name, account_id=None)
    account_id = new_id()
    await tx.execute(insert(accounts).values(id=account_id, name=name, created_at=now))
    return account_id


async def rename(tx: Transaction, account_id: str, *, name: str) -> None:
    """Raises NameTaken, ValueRefused."""
    name = await _free_name(tx, name, account_id=account_id)
    await tx.execute(update(accounts).where(accounts.c.id == account_id).values(name=name))


async def set_settlement(tx: Transaction, account_id: str, settlement: Literal["direct", "hosted"]) -> bool:
    """Who is paid by new invoices; whether that changed. Raises NotFound."""
    if (await load(tx, account_id)).settlement == settlement:
        return False
    await tx.execute(update(accounts).where(accounts.c.id == account_id).values(settlement=settlement))
    return True


async def issue_token(tx: Transaction, account_id: str, *, label: str, now: int) -> IssuedToken:
    """A new token of an existing account. Raises ValueRefused."""
    if not label.isprintable() or len(label) > LABEL_LENGTH_MAX:
        raise ValueRefused(f"A label is up to {LABEL_LENGTH_MAX} printable characters.", field="label")
    issued = IssuedToken(token_id=new_id(), token=new_token(SELLER_TOKEN_PREFIX), account_id=account_id)
    await tx.execute(
        insert(tokens).values(
            id=issued.token_id,
            account_id=account_id,
            token_hash=token_hash(issued.token),
            label=label,
            created_at=now,
        )
    )
    return issued


async def id_of_name(tx: Transaction, name: str) -> str | None:
    """The account of this name, however it is spaced and capitalised."""
    return await tx.scalar(select(accounts.c.id).where(is_named(name)))


def is_named(name: str) -> ColumnElement[bool]:
    """The condition on `accounts` for that."""
    # Both sides in the database: Python's lower case knows letters that SQLite's does not.
    return func.lower(accounts.c.name) == func.lower(" ".join(name.split()))


async def list_tokens(tx: Transaction, account_id: str) -> list[ListedToken]:
    """The account's tokens that are valid, newest first."""
    query = (
        select(tokens.c.id, tokens.c.label, tokens.c.created_at)
        .where(tokens.c.account_id == account_id, tokens.c.revoked_at.is_(None))
        .order_by(tokens.c.created_at.desc(), tokens.c.id)
    )
    return [ListedToken(*row) for row in (await tx.execute(query)).all()]


async def revoke_all_tokens(tx: Transaction, account_id: str, *, now: int) -> int:
    """Revoke every token of the account; how many were valid until now."""
    revoked = await tx.execute(
        update(tokens)
        .where(tokens.c.account_id == account_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return int(revoked.rowcount)


async def revoke_token(tx: Transaction, account_id: str, token_id: str, *, now: int) -> None:
    """Raises NotFound: no such token, or another's. Revoking again is harmless."""
    revoked = await tx.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.account_id == account_id)
        .values(revoked_at=func.coalesce(tokens.c.revoked_at, now))
    )
    if revoked.rowcount == 0:
        raise NotFound("token", token_id)


async def seller_of_token(tx: Transaction, token: str) -> Seller:
    """Raises TokenInvalid, in the same words whatever is wrong with it."""
    refusal = TokenInvalid(
        "This token is not valid here, or was revoked. Sign in again with `bitcache login`."
    )
    if not token.startswith(SELLER_TOKEN_PREFIX) or len(token) > TOKEN_LENGTH_MAX:
        raise refusal
    wanted = token_hash(token)
    row = (
        await tx.execute(
            select(tokens.c.id, tokens.c.token_hash, accounts.c.id.label("account_id"), accounts.c.name)
            .join(accounts, accounts.c.id == tokens.c.account_id)
            .where(tokens.c.token_hash == wanted, tokens.c.revoked_at.is_(None))
        )
    ).first()
    if row is None or not hmac.compare_digest(row.token_hash, wanted):
        raise refusal
    return Seller(account_id=row.account_id, name=row.name, token_id=row.id)


async def load(tx: Transaction, account_id: str) -> Account:
    """Raises NotFound."""
    row = (await tx.execute(select(accounts).where(accounts.c.id == account_id))).first()
    if row is None:
        raise NotFound("account", account_id)
    return Account(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        bytes_max=row.bytes_max,
        bytes_stored=await bytes_stored(tx, account_id),
        settlement=row.settlement,
    )


async def list_all(tx: Transaction) -> list[Account]:
    """Every account, oldest first; for the operator."""
    ids = (await tx.scalars(select(accounts.c.id).order_by(accounts.c.created_at, accounts.c.id))).all()
    return [await load(tx, account_id) for account_id in ids]


async def bytes_stored(tx: Transaction, account_id: str | None = None) -> int:
    """Announced sizes of the files of one account, or of all."""
    total = select(func.sum(files.c.size_bytes))
    if account_id is not None:
        total = total.where(files.c.account_id == account_id)
    return int(await tx.scalar(total) or 0)


async def _free_name(tx: Transaction, name: str, *, account_id: str | None) -> str:
    name = " ".join(name.split())
    if not name.isprintable() or not 1 <= len(name) <= NAME_LENGTH_MAX:
        said = f"A name is 1 to {NAME_LENGTH_MAX} printable characters: it is shown to buyers."
        raise ValueRefused(said, field="name")
    holder = await id_of_name(tx, name)
    if holder is not None and holder != account_id:
        raise NameTaken(f"The name {name!r} is taken. Choose another one.")
    return name
