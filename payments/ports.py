"""What the shell of this package needs from whoever runs it."""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from payments.invoice import Standing, Term
from payments.payout import Payout
from payments.records import InvoiceRecord

Transaction = AsyncConnection
"""An open database transaction. Stores take it as an argument and never begin, commit or roll back."""

T = TypeVar("T")


class Clock(Protocol):
    """Unix seconds, UTC."""

    def __call__(self) -> int: ...


class Store(Protocol):
    """The only way to the database. `fn` may run again, so its only effects are the rows it writes."""

    async def write(self, fn: Callable[[Transaction], Awaitable[T]]) -> T: ...

    async def read(self, fn: Callable[[Transaction], Awaitable[T]]) -> T: ...


class WriteAtOnce(Protocol):
    """On SQLite: as `Store.write`, in one trip to its thread. `fn` gets sqlite3's own connection."""

    async def __call__(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...


class OnChange(Protocol):
    """Told of a status change inside the transaction that makes it: money and access commit together."""

    async def __call__(self, tx: Transaction, before: Standing, after: InvoiceRecord) -> None: ...


class OnPayouts(Protocol):
    """Told, inside the transaction, of payouts that a block paid or a reorg took out of one; as they were."""

    async def __call__(self, tx: Transaction, changed: Sequence[Payout]) -> None: ...


class OnChannels(Protocol):
    """Told, inside the transaction, of channels that a block ended or a reorg opened again, by id."""

    async def __call__(self, tx: Transaction, changed: Sequence[str]) -> None: ...


class Quote(Protocol):
    """The price of an invoice's subject now, as one more term; None when it is not for sale any more."""

    async def __call__(self, tx: Transaction, subject: str, now: int) -> Term | None: ...
