"""Parcels: which files are sold together. Sealed once, then immutable; deleted, yet kept for their buyers.

The server sees sizes and wrapped keys. Names are in the metadata, sealed under the link's secret; the
release secret, the other half of the parcel's key, is sealed here under the master key.
"""

import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Row, Select, insert, select, tuple_, update

from bitcache.api.wire import ParcelFileView
from bitcache.db.tables import files, offers, parcel_files, parcels
from bitcache.errors import FileIncomplete, MetadataTooLarge, NotFound, ParcelSealed, ValueRefused
from bitcache.ids import new_id
from bitcache.sealing import Sealer
from payments.ports import Transaction
from storage import base64url
from storage.metadata import SEALED_SIZE_MAX_BYTES

IDS_PER_QUERY = 500


@dataclass(frozen=True, slots=True)
class WrappedFile:
    file_id: str
    wrapped_key: bytes
    """nonce[12] || ciphertext[32] || tag[16]."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One row of `parcels`, without its secrets, and its offers' ids, newest first."""

    id: str
    account_id: str
    created_at: int
    meterable: bool
    size_bytes: int
    files_count: int
    sealed_at: int | None
    offers: tuple[str, ...]


async def create_parcel(
    tx: Transaction, account_id: str, wrapped: Sequence[WrappedFile], *, meterable: bool, now: int
) -> Parcel:
    """A parcel of complete files of this account. Raises NotFound, FileIncomplete, ValueRefused."""
    repeated = [file_id for file_id, count in Counter(file.file_id for file in wrapped).items() if count > 1]
    if repeated:
        raise ValueRefused(f"File {repeated[0]} is listed twice. List each file once.", field="files")
    sizes = await _complete_sizes(tx, account_id, [file.file_id for file in wrapped])
    parcel_id = new_id()
    await tx.execute(
        insert(parcels).values(
            id=parcel_id,
            account_id=account_id,
            created_at=now,
            meterable=meterable,
            size_bytes=sum(sizes.values()),
            files_count=len(wrapped),
        )
    )
    await tx.execute(
        insert(parcel_files),
        [
            {
                "parcel_id": parcel_id,
                "position": position,
                "file_id": file.file_id,
                "wrapped_key": file.wrapped_key,
            }
            for position, file in enumerate(wrapped)
        ],
    )
    return await load_parcel(tx, account_id, parcel_id)


async def seal_parcel(
    tx: Transaction,
    account_id: str,
    parcel_id: str,
    *,
    metadata: bytes,
    release_secret: bytes,
    sealer: Sealer,
    now: int,
) -> Parcel:
    """Fix the parcel; the same again is harmless. Raises NotFound, ParcelSealed, MetadataTooLarge."""
    if len(metadata) > SEALED_SIZE_MAX_BYTES:
        raise MetadataTooLarge(
            f"The sealed description has {len(metadata)} bytes; {SEALED_SIZE_MAX_BYTES} are allowed. "
            "Use a smaller preview or fewer files."
        )
    row = await _row(tx, account_id, parcel_id)
    if row.sealed_at is not None:
        kept_secret = sealer.open(row.sealed_release_secret, table=parcels.name, row_id=parcel_id)
        if row.metadata != metadata or not hmac.compare_digest(kept_secret, release_secret):
            raise ParcelSealed("The parcel is sealed with other contents and never changes. Make a new one.")
        return await load_parcel(tx, account_id, parcel_id)
    sealed_secret = sealer.seal(release_secret, table=parcels.name, row_id=parcel_id)
    await tx.execute(
        update(parcels)
        .where(parcels.c.id == parcel_id)
        .values(sealed_at=now, metadata=metadata, sealed_release_secret=sealed_secret)
    )
    return await load_parcel(tx, account_id, parcel_id)


def sharing_files(parcel_id: str) -> Select[tuple[str]]:
    """Ids of the parcels that hold a file of this one, itself among them while its files are there."""
    own = select(parcel_files.c.file_id).where(parcel_files.c.parcel_id == parcel_id)
    return select(parcel_files.c.parcel_id).where(parcel_files.c.file_id.in_(own))


async def delete_parcel(tx: Transaction, account_id: str, parcel_id: str, *, now: int) -> None:
    """Sell it no more. Its bytes stay until the last buyer's right to them ends. Raises NotFound."""
    await _row(tx, account_id, parcel_id)
    await tx.execute(update(parcels).where(parcels.c.id == parcel_id).values(deleted_at=now))
    await tx.execute(
        update(offers)
        .where(offers.c.parcel_id == parcel_id, offers.c.closed_at.is_(None))
        .values(closed_at=now)
    )


async def load_parcel(tx: Transaction, account_id: str, parcel_id: str) -> Parcel:
    """Raises NotFound: no such parcel, another's, or deleted."""
    row = await _row(tx, account_id, parcel_id)
    return _parcel(row, await _offers_of(tx, [parcel_id]))


async def parcels_page(tx: Transaction, account_id: str, *, after: str | None, limit: int) -> list[Parcel]:
    """The seller's parcels, newest first, those after the parcel `after`. Raises NotFound."""
    # Not what was sealed: that is up to 4 MiB each.
    columns = (parcels.c[name] for name in Parcel.__dataclass_fields__ if name != "offers")
    chosen = select(*columns).where(parcels.c.account_id == account_id, parcels.c.deleted_at.is_(None))
    if after is not None:
        last = (
            await tx.execute(
                select(parcels.c.created_at).where(parcels.c.id == after, parcels.c.account_id == account_id)
            )
        ).first()
        if last is None:
            raise NotFound("parcel", after)
        chosen = chosen.where(tuple_(parcels.c.created_at, parcels.c.id) < (last.created_at, after))
    newest_first = chosen.order_by(parcels.c.created_at.desc(), parcels.c.id.desc()).limit(limit)
    rows = (await tx.execute(newest_first)).all()
    offered = await _offers_of(tx, [row.id for row in rows])
    return [_parcel(row, offered) for row in rows]


async def parcel_file_views(tx: Transaction, parcel_id: str) -> list[ParcelFileView]:
    """The files of a parcel, in the seller's order."""
    joined = (
        select(parcel_files.c.file_id, parcel_files.c.wrapped_key, files.c.size_bytes, files.c.root)
        .join(files, files.c.id == parcel_files.c.file_id)
        .where(parcel_files.c.parcel_id == parcel_id)
        .order_by(parcel_files.c.position)
    )
    return [
        ParcelFileView(
            file_id=row.file_id,
            size_bytes=row.size_bytes,
            root=base64url.encode(row.root),
            wrapped_key=base64url.encode(row.wrapped_key),
        )
        for row in (await tx.execute(joined)).all()
    ]


async def _row(tx: Transaction, account_id: str, parcel_id: str) -> Row[tuple[object, ...]]:
    row = (
        await tx.execute(
            select(parcels).where(
                parcels.c.id == parcel_id, parcels.c.account_id == account_id, parcels.c.deleted_at.is_(None)
            )
        )
    ).first()
    if row is None:
        raise NotFound("parcel", parcel_id)
    return row


async def _complete_sizes(tx: Transaction, account_id: str, file_ids: Sequence[str]) -> dict[str, int]:
    """Size of each file. Raises NotFound, FileIncomplete."""
    sizes: dict[str, int] = {}
    # SQLite takes a bounded number of values in one statement.
    for start in range(0, len(file_ids), IDS_PER_QUERY):
        some = file_ids[start : start + IDS_PER_QUERY]
        rows = (
            await tx.execute(
                select(files.c.id, files.c.size_bytes, files.c.completed_at, files.c.damaged_at).where(
                    files.c.account_id == account_id, files.c.id.in_(some)
                )
            )
        ).all()
        for row in rows:
            if row.completed_at is None:
                raise FileIncomplete(f"File {row.id} is not complete. Send its parts and complete it first.")
            if row.damaged_at is not None:
                raise FileIncomplete(f"The server has lost bytes of file {row.id}. Upload it anew.")
            sizes[row.id] = row.size_bytes
    for file_id in file_ids:
        if file_id not in sizes:
            raise NotFound("file", file_id)
    return sizes


async def _offers_of(tx: Transaction, parcel_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    rows = (
        await tx.execute(
            select(offers.c.parcel_id, offers.c.id)
            .where(offers.c.parcel_id.in_(parcel_ids))
            .order_by(offers.c.created_at.desc(), offers.c.id.desc())
        )
    ).all()
    offered: dict[str, list[str]] = {}
    for row in rows:
        offered.setdefault(row.parcel_id, []).append(row.id)
    return {parcel_id: tuple(ids) for parcel_id, ids in offered.items()}


def _parcel(row: Row[tuple[object, ...]], offered: dict[str, tuple[str, ...]]) -> Parcel:
    return Parcel(
        id=row.id,
        account_id=row.account_id,
        created_at=row.created_at,
        meterable=row.meterable,
        size_bytes=row.size_bytes,
        files_count=row.files_count,
        sealed_at=row.sealed_at,
        offers=offered.get(row.id, ()),
    )
