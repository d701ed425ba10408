"""Passwords of the pages: argon2id with its authors' parameters, in a thread, a few at a time.

A hash takes 64 MiB and tens of milliseconds on purpose, so attempts are counted before anything is hashed,
and an unknown name costs the same time as a wrong password.
"""

import asyncio
import secrets
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select, update

from bitcache import sessions
from bitcache.accounts import is_named
from bitcache.db.tables import accounts
from bitcache.errors import NotFound, TooManyRequests
from payments.ports import Transaction

LENGTH_MIN = 12
LENGTH_MAX = 200
AT_ONCE_MAX = 2
WAITING_MAX = 20
RETRY_AFTER_S = 10


class Fault(StrEnum):
    """Why a password is not taken."""

    SHORT = "short"
    LONG = "long"
    NAME = "name"
    """It is the account's name, which every buyer sees."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept of an account's password."""

    account_id: str
    password_hash: str | None
    """None: the account has no password yet."""


@dataclass(frozen=True, slots=True)
class Checked:
    right: bool
    better_hash: str | None = None
    """Of the right password, where the kept hash is of weaker parameters than new ones: keep it instead."""


def fault_of(password: str, *, name: str) -> Fault | None:
    """Pure."""
    text = _normal(password)
    if len(text) < LENGTH_MIN:
        return Fault.SHORT
    if len(text) > LENGTH_MAX:
        return Fault.LONG
    same = " ".join(text.split()).casefold() == " ".join(_normal(name).split()).casefold()
    return Fault.NAME if same else None


class Passwords:
    """Hashes and checks. One for a process."""

    def __init__(self, *, at_once_max: int = AT_ONCE_MAX, waiting_max: int = WAITING_MAX) -> None:
        self.hasher = PasswordHasher()
        """Its parameters are those of new hashes."""
        self._room = asyncio.Semaphore(at_once_max)
        self._inside_max = at_once_max + waiting_max
        self._inside: Counter[bool] = Counter()
        """Those that wait or are looked at: of browsers that are known, and of others."""
        self._nobodys: str | None = None

    async def hashed(self, password: str, *, known: bool = False) -> str:
        """What to keep of `password`. Raises TooManyRequests, as `check` does."""
        async with self._turn(known):
            return await asyncio.to_thread(self.hasher.hash, _normal(password))

    async def check(self, password: str, password_hash: str | None, *, known: bool = False) -> Checked:
        """Whether `password` is the one. Without a hash it is wrong, and takes as long to say.

        `known`: it comes from a browser that was signed in before, for which places are kept. Raises
        TooManyRequests while too many wait.
        """
        if self._nobodys is None:
            self._nobodys = await self.hashed(secrets.token_urlsafe(), known=known)
        async with self._turn(known):
            right = await asyncio.to_thread(self._verify, password_hash or self._nobodys, password)
        if password_hash is None or not right:
            return Checked(False)
        if self.hasher.check_needs_rehash(password_hash):
            return Checked(True, await self.hashed(password, known=known))
        return Checked(True)

    @asynccontextmanager
    async def _turn(self, known: bool) -> AsyncIterator[None]:
        """A crowd at the door waits, takes no more memory, and has an end."""
        if self._inside[known] >= self._inside_max:
            raise TooManyRequests(
                f"Too many people are signing in. Try again in {RETRY_AFTER_S} s.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._inside[known] += 1
        try:
            async with self._room:
                yield
        finally:
            self._inside[known] -= 1

    def _verify(self, password_hash: str, password: str) -> bool:
        # What is longer was never set: it must not keep a thread busy.
        text = _normal(password[: LENGTH_MAX + 1])
        try:
            return self.hasher.verify(password_hash, text)
        except (VerificationError, InvalidHashError):
            return False


async def known_of_name(tx: Transaction, name: str) -> Known | None:
    """The account of this name, however it is spaced and capitalised."""
    query = select(accounts.c.id, accounts.c.password_hash).where(is_named(name))
    row = (await tx.execute(query)).one_or_none()
    return Known(row.id, row.password_hash) if row else None


async def known_of(tx: Transaction, account_id: str) -> Known:
    """Raises NotFound."""
    query = select(accounts.c.id, accounts.c.password_hash).where(accounts.c.id == account_id)
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        raise NotFound("account", account_id)
    return Known(row.id, row.password_hash)


async def keep(tx: Transaction, account_id: str, password_hash: str, *, instead_of: str | None) -> bool:
    """Keep `password_hash`, unless somebody has changed what was there when it was checked; whether it is."""
    kept = await tx.execute(
        update(accounts)
        .where(accounts.c.id == account_id, accounts.c.password_hash.is_not_distinct_from(instead_of))
        .values(password_hash=password_hash)
    )
    return bool(kept.rowcount)


async def reset(tx: Transaction, account_id: str, password_hash: str, *, now: int) -> None:
    """The operator's: a new password whatever was there, and nobody stays signed in by the old one."""
    await tx.execute(update(accounts).where(accounts.c.id == account_id).values(password_hash=password_hash))
    await sessions.end_all(tx, account_id, now=now)


def _normal(text: str) -> str:
    """One form for what keyboards of different systems type for the same letter."""
    return unicodedata.normalize("NFKC", text)
