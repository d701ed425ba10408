"""What is in a sealed parcel: read once, kept in memory, since it never changes."""

from typing import NamedTuple

from sqlalchemy import select

from bitcache.db.tables import files, offers, parcel_files
from bitcache.errors import FileNotInOffer, NotFound, TakenDown
from payments.ports import Store, Transaction
from storage import base64url

FILES_REMEMBERED_MAX = 200_000
"""Over all parcels, about 250 bytes each."""


class ServedFile(NamedTuple):
    size_bytes: int
    etag: str
    """Strong, with its quotes: the root of the ciphertext's digests."""


class Contents:
    """The files of parcels that are being downloaded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parcels: dict[str, dict[str, ServedFile]] = {}
        self._count = 0

    async def file(self, parcel_id: str, file_id: str) -> ServedFile:
        """Raises FileNotInOffer."""
        parcel = self._parcels.get(parcel_id)
        if parcel is None:
            parcel = await self._store.read(lambda tx: _files_of(tx, parcel_id))
            self._remember(parcel_id, parcel)
        try:
            return parcel[file_id]
        except KeyError as exc:
            raise FileNotInOffer(file_id) from exc

    async def digests(self, offer_id: str, file_id: str) -> tuple[bytes, str]:
        """(32 bytes for each chunk, ETag). Raises NotFound, FileNotInOffer, TakenDown."""
        return await self._store.read(lambda tx: _digests(tx, offer_id, file_id))

    def _remember(self, parcel_id: str, parcel: dict[str, ServedFile]) -> None:
        self._count += len(parcel) - len(self._parcels.pop(parcel_id, {}))
        self._parcels[parcel_id] = parcel
        while self._count > FILES_REMEMBERED_MAX and len(self._parcels) > 1:
            oldest = next(iter(self._parcels))
            self._count -= len(self._parcels.pop(oldest))


async def _files_of(tx: Transaction, parcel_id: str) -> dict[str, ServedFile]:
    joined = (
        select(files.c.id, files.c.size_bytes, files.c.root)
        .join(parcel_files, parcel_files.c.file_id == files.c.id)
        .where(parcel_files.c.parcel_id == parcel_id)
    )
    return {row.id: ServedFile(row.size_bytes, _etag(row.root)) for row in (await tx.execute(joined)).all()}


async def _offered_parcel(tx: Transaction, offer_id: str) -> str:
    offered = select(offers.c.parcel_id, offers.c.taken_down_at).where(offers.c.id == offer_id)
    row = (await tx.execute(offered)).one_or_none()
    if row is None:
        raise NotFound("offer", offer_id)
    if row.taken_down_at is not None:
        raise TakenDown(offer_id)
    parcel_id: str = row.parcel_id
    return parcel_id


async def _digests(tx: Transaction, offer_id: str, file_id: str) -> tuple[bytes, str]:
    parcel_id = await _offered_parcel(tx, offer_id)
    joined = (
        select(files.c.digests, files.c.root)
        .join(parcel_files, parcel_files.c.file_id == files.c.id)
        .where(parcel_files.c.parcel_id == parcel_id, files.c.id == file_id)
        .limit(1)
    )
    row = (await tx.execute(joined)).one_or_none()
    if row is None:
        raise FileNotInOffer(file_id)
    return row.digests, _etag(row.root)


def _etag(root: bytes) -> str:
    return f'"{base64url.encode(root)}"'
