"""Idempotency-Key: a creating request that is repeated after a lost answer creates nothing new.

The stored answer is written in the transaction that creates, so there is no moment in which one exists
without the other. Answers may hold tokens: they are sealed. Keys live a day; another body is refused.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable

from sqlalchemy import delete, insert, select

from bitcache.db.tables import idempotency_keys
from bitcache.errors import IdempotencyKeyReused, RequestInvalid
from bitcache.services import Services
from payments.ports import Transaction

HEADER = "Idempotency-Key"
LIFETIME_S = 86_400

_KEY = re.compile(r"[\x21-\x7e]{1,128}")


def request_hash(method: str, path: str, body: bytes) -> bytes:
    """What makes two requests the same one, 32 bytes."""
    return hashlib.sha256(b"\0".join((method.encode(), path.encode(), body))).digest()


async def once(
    services: Services,
    *,
    account_id: str,
    key: str | None,
    request_hash: bytes,
    make: Callable[[Transaction], Awaitable[tuple[int, bytes]]],
) -> tuple[int, bytes]:
    """(status, body) of `make`, which runs in a write transaction; of its first run if `key` was used before.

    Raises RequestInvalid for a key that is none, IdempotencyKeyReused, and what `make` raises.
    """
    if key is None:
        return await services.database.write(make)
    if not _KEY.fullmatch(key):
        raise RequestInvalid("Idempotency-Key is 1 to 128 visible ASCII characters.", field=HEADER)
    now = services.clock()
    row_id = f"{account_id}/{key}"

    async def make_once(tx: Transaction) -> tuple[int, bytes]:
        await tx.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at <= now - LIFETIME_S))
        kept = (
            await tx.execute(
                select(idempotency_keys).where(
                    idempotency_keys.c.account_id == account_id, idempotency_keys.c.key == key
                )
            )
        ).first()
        if kept is not None:
            if kept.request_hash != request_hash:
                raise IdempotencyKeyReused(
                    "This Idempotency-Key was used for another request. Use a new key for a new request."
                )
            body = services.sealer.open(kept.response, table=idempotency_keys.name, row_id=row_id)
            return kept.status, body
        status, body = await make(tx)
        await tx.execute(
            insert(idempotency_keys).values(
                account_id=account_id,
                key=key,
                request_hash=request_hash,
                status=status,
                response=services.sealer.seal(body, table=idempotency_keys.name, row_id=row_id),
                created_at=now,
            )
        )
        return status, body

    return await services.database.write(make_once)
