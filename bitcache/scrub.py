"""Read every stored file again and compare it with its digests: what `bitcache doctor --scrub` does."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Row, select

from bitcache import damage
from bitcache.db.tables import files
from bitcache.errors import NotFound
from bitcache.services import Services
from payments.ports import Transaction
from storage.scrub import Pace, damaged_chunks


@dataclass(frozen=True, slots=True)
class ScrubbedFile:
    """One file that was read. `damaged`: the numbers of its chunks that are not as they were."""

    file_id: str
    size_bytes: int
    damaged: list[int]


async def scrub_file(services: Services, file_id: str, *, pace: Pace) -> ScrubbedFile:
    """One file. Raises NotFound if there is no complete one with this id."""
    found = await services.database.read(partial(_stored_file, chosen=files.c.id == file_id))
    scrubbed = found and await _scrubbed(services, found, pace)
    if scrubbed is None:
        raise NotFound("file", file_id)
    return scrubbed


async def scrub(services: Services, *, pace: Pace, after: str = "") -> AsyncIterator[ScrubbedFile]:
    """Every complete file whose id comes after `after`, in order of ids, as it is read.

    What is found damaged is not sold from then on; what is found whole again, is. Raises StoreUnavailable.
    """
    while found := await services.database.read(partial(_stored_file, chosen=files.c.id > after)):
        after = found.id
        if scrubbed := await _scrubbed(services, found, pace):
            yield scrubbed


async def _scrubbed(services: Services, file: Row[Any, Any, Any], pace: Pace) -> ScrubbedFile | None:
    """Read `file` and write down what it is like; None if its seller deleted it meanwhile."""
    damaged = await damaged_chunks(
        services.blobs, file.id, size_bytes=file.size_bytes, digests=file.digests, pace=pace
    )
    if damaged:
        await services.blobs.check(file.id)
    if not await services.database.read(partial(damage.is_kept, file_id=file.id)):
        return None
    noted = partial(damage.note, file_id=file.id, damaged=bool(damaged), now=services.clock())
    await services.database.write(noted)
    return ScrubbedFile(file.id, file.size_bytes, damaged)


async def _stored_file(tx: Transaction, *, chosen: ColumnElement[bool]) -> Row[Any, Any, Any] | None:
    """The first complete file, by id, for which `chosen` holds."""
    query = select(files.c.id, files.c.size_bytes, files.c.digests).where(chosen)
    query = query.where(files.c.completed_at.is_not(None)).order_by(files.c.id).limit(1)
    return (await tx.execute(query)).first()
