"""Files on their way in: announced, sent in parts, completed.

A part is acknowledged only when its bytes are on disk and its digests in the database; so after a crash of
either side what `parts_present` says is there, is there. Bytes that were acknowledged never change.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from sqlalchemy import and_, bindparam, delete, exists, insert, select, update

from bitcache import accounts
from bitcache.config import Config
from bitcache.db.tables import file_parts, files, parcel_files
from bitcache.errors import (
    AccountFull,
    FileInUse,
    NotFound,
    PartDigestsWrong,
    PartOutOfRange,
    PartsMissing,
    ServerFull,
)
from bitcache.ids import new_id
from payments.ports import Clock, Store, Transaction
from storage.digests import DIGEST_SIZE_BYTES, chunk_digests, verify_root
from storage.errors import PartConflict
from storage.ports import PART_SIZE_BYTES, BlobStore
from storage.stream import CHUNK_SIZE_BYTES, chunk_count, plaintext_size

TOUCH_PRECISION = 100
"""An upload's last part is noted to a hundredth of its expiry: not every part need write that row too."""
PARTS_LISTED_MAX = 20
"""Missing parts named in a refusal; `GET /files/{id}` has all that are there."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One row of `files`, without its digests."""

    id: str
    account_id: str
    size_bytes: int
    created_at: int
    touched_at: int
    completed_at: int | None
    root: bytes | None

    @property
    def part_count(self) -> int:
        return -(-self.size_bytes // PART_SIZE_BYTES)

    def part_length(self, part_no: int) -> int:
        """Bytes of part `part_no`. Raises PartOutOfRange."""
        if part_no >= self.part_count:
            raise PartOutOfRange(
                f"The file has {self.size_bytes} bytes: parts 0 to {self.part_count - 1}, not {part_no}."
            )
        return min(PART_SIZE_BYTES, self.size_bytes - part_no * PART_SIZE_BYTES)


class Uploads:
    """Everything a seller does to one file."""

    def __init__(self, *, config: Config, store: Store, blobs: BlobStore, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._part_locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    async def announce(self, tx: Transaction, account_id: str, size_bytes: int) -> StoredFile:
        """Make room for a file of `size_bytes` of ciphertext.

        Raises SizeImpossible, AccountFull, ServerFull.
        """
        plaintext_size(size_bytes)
        account = await accounts.load(tx, account_id)
        account_max = account.bytes_allowed(self._config)
        if account.bytes_stored + size_bytes > account_max:
            raise AccountFull(
                f"The account holds {account.bytes_stored} of {account_max} bytes; this file has "
                f"{size_bytes}. Delete parcels you no longer sell, or ask the operator for more."
            )
        if await accounts.bytes_stored(tx) + size_bytes > self._config.total_bytes_max:
            raise ServerFull("The server has no room for a file of this size. Ask its operator for more.")
        now = self._clock()
        file_id = new_id()
        await tx.execute(
            insert(files).values(
                id=file_id, account_id=account_id, size_bytes=size_bytes, created_at=now, touched_at=now
            )
        )
        return StoredFile(
            id=file_id,
            account_id=account_id,
            size_bytes=size_bytes,
            created_at=now,
            touched_at=now,
            completed_at=None,
            root=None,
        )

    async def check_disk(self, size_bytes: int) -> None:
        """Refuse before anything is sent what cannot fit. Raises ServerFull."""
        free_bytes = await self._blobs.free_bytes()
        if free_bytes is not None and size_bytes > free_bytes:
            raise ServerFull(f"The server's disk has {free_bytes} bytes left; this file has {size_bytes}.")

    async def store_part(
        self, account_id: str, file_id: str, part_no: int, part: memoryview, announced: bytes
    ) -> bool:
        """Keep `part`, whose chunks have the SHA-256s `announced`. True if it is new, False if it was there.

        Its length was checked. Raises NotFound, PartDigestsWrong, PartConflict, DiskFull,
        StoreUnavailable.
        """
        # Several milliseconds of SHA-256, which lets go of the interpreter: in a thread it stops nobody.
        actual = await asyncio.to_thread(chunk_digests, part)
        if not hmac.compare_digest(actual, announced):
            raise PartDigestsWrong(
                f"Part {part_no} does not have the digests announced with it. Send it again."
            )
        async with self._alone(file_id, part_no):
            _, is_stored = await self._store.read(
                lambda tx: _is_stored(tx, account_id, file_id, part_no, actual)
            )
            if is_stored:
                return False
            await self._blobs.write_part(file_id, part_no, part)
            return await self._store.write(lambda tx: self._note(tx, account_id, file_id, part_no, actual))

    async def complete(self, account_id: str, file_id: str, root: bytes) -> StoredFile:
        """Make the file whole and unchangeable. Again with the same root is harmless.

        Raises NotFound, PartsMissing, RootMismatch.
        """
        stored, digests = await self._store.read(lambda tx: _all_digests(tx, account_id, file_id))
        verify_root(digests, root, chunk_count=chunk_count(stored.size_bytes))
        if stored.completed_at is None:
            await self._blobs.finish(file_id, stored.size_bytes)
        return await self._store.write(lambda tx: self._seal(tx, account_id, file_id, root, digests))

    async def remove(self, account_id: str, file_id: str) -> None:
        """Forget a file that is in no parcel. Raises NotFound, FileInUse."""

        async def forget(tx: Transaction) -> None:
            await load(tx, account_id, file_id)
            if await is_in_parcel(tx, file_id):
                raise FileInUse("A parcel holds this file. Delete the parcel; the file goes with it.")
            await delete_rows(tx, [file_id])

        await self._store.write(forget)
        # A crash before this leaves a blob that no row names: the sweep takes it.
        await self._blobs.delete(file_id)

    def expires_at(self, stored: StoredFile, *, in_parcel: bool) -> int | None:
        """When the sweep takes the file; None while a parcel holds it."""
        return None if in_parcel else stored.touched_at + self._config.upload_expiry_s

    async def _note(
        self, tx: Transaction, account_id: str, file_id: str, part_no: int, digests: bytes
    ) -> bool:
        # Another process may have been quicker, and the seller may have deleted the file meanwhile.
        stored, is_stored = await _is_stored(tx, account_id, file_id, part_no, digests)
        if is_stored:
            return False
        await tx.execute(insert(file_parts).values(file_id=file_id, part_no=part_no, digests=digests))
        now = self._clock()
        if now - stored.touched_at >= self._config.upload_expiry_s // TOUCH_PRECISION:
            await tx.execute(update(files).where(files.c.id == file_id).values(touched_at=now))
        return True

    async def _seal(
        self, tx: Transaction, account_id: str, file_id: str, root: bytes, digests: bytes
    ) -> StoredFile:
        stored = await load(tx, account_id, file_id)
        if stored.completed_at is not None:
            return stored
        now = self._clock()
        await tx.execute(
            update(files)
            .where(files.c.id == file_id)
            .values(completed_at=now, touched_at=now, root=root, digests=digests)
        )
        await tx.execute(delete(file_parts).where(file_parts.c.file_id == file_id))
        return replace(stored, completed_at=now, touched_at=now, root=root)

    @asynccontextmanager
    async def _alone(self, file_id: str, part_no: int) -> AsyncIterator[None]:
        """One writer per part: two at once could leave a mixture of their bytes under one's digests."""
        # The lock lives as long as somebody holds or awaits it.
        lock = self._part_locks.setdefault((file_id, part_no), asyncio.Lock())
        async with lock:
            yield


_FILE_COLUMNS = tuple(files.c[name] for name in StoredFile.__dataclass_fields__)
_FILE_OF_ACCOUNT = and_(files.c.id == bindparam("file_id"), files.c.account_id == bindparam("account_id"))
_FILE = select(*_FILE_COLUMNS).where(_FILE_OF_ACCOUNT)
_FILE_AND_PART = (
    select(*_FILE_COLUMNS, file_parts.c.digests)
    .outerjoin(
        file_parts, and_(file_parts.c.file_id == files.c.id, file_parts.c.part_no == bindparam("part_no"))
    )
    .where(_FILE_OF_ACCOUNT)
)


async def load(tx: Transaction, account_id: str, file_id: str) -> StoredFile:
    """Raises NotFound: no such file, or another's."""
    row = (await tx.execute(_FILE, {"file_id": file_id, "account_id": account_id})).first()
    if row is None:
        raise NotFound("file", file_id)
    return StoredFile(*row)


async def parts_present(tx: Transaction, stored: StoredFile) -> list[int]:
    """Numbers of the parts that were acknowledged, in order."""
    if stored.completed_at is not None:
        return list(range(stored.part_count))
    numbers = select(file_parts.c.part_no).where(file_parts.c.file_id == stored.id)
    return list((await tx.scalars(numbers.order_by(file_parts.c.part_no))).all())


async def is_in_parcel(tx: Transaction, file_id: str) -> bool:
    return bool(await tx.scalar(select(exists().where(parcel_files.c.file_id == file_id))))


async def delete_rows(tx: Transaction, file_ids: Iterable[str]) -> None:
    """Forget files in the database; their blobs go after the commit."""
    ids = list(file_ids)
    await tx.execute(delete(file_parts).where(file_parts.c.file_id.in_(ids)))
    await tx.execute(delete(files).where(files.c.id.in_(ids)))


async def _is_stored(
    tx: Transaction, account_id: str, file_id: str, part_no: int, digests: bytes
) -> tuple[StoredFile, bool]:
    """The file, and whether the part is acknowledged with these digests. Raises NotFound, PartConflict."""
    wanted = {"file_id": file_id, "account_id": account_id, "part_no": part_no}
    row = (await tx.execute(_FILE_AND_PART, wanted)).first()
    if row is None:
        raise NotFound("file", file_id)
    *fields, kept = row
    stored = StoredFile(*fields)
    if stored.completed_at is not None:
        whole = await tx.scalar(select(files.c.digests).where(files.c.id == file_id))
        start = part_no * PART_SIZE_BYTES // CHUNK_SIZE_BYTES * DIGEST_SIZE_BYTES
        kept = whole[start : start + len(digests)] if whole else None
    if kept is not None and kept != digests:
        raise PartConflict(file_id, part_no)
    return stored, kept is not None


async def _all_digests(tx: Transaction, account_id: str, file_id: str) -> tuple[StoredFile, bytes]:
    """The file and the digests of all its chunks. Raises NotFound, PartsMissing."""
    stored = await load(tx, account_id, file_id)
    if stored.completed_at is not None:
        return stored, bytes(await tx.scalar(select(files.c.digests).where(files.c.id == file_id)) or b"")
    rows = (
        await tx.execute(
            select(file_parts.c.part_no, file_parts.c.digests)
            .where(file_parts.c.file_id == file_id)
            .order_by(file_parts.c.part_no)
        )
    ).all()
    if len(rows) < stored.part_count:
        raise PartsMissing(_missing_words({row.part_no for row in rows}, stored.part_count))
    return stored, b"".join(row.digests for row in rows)


def _missing_words(present: set[int], part_count: int) -> str:
    missing = [part_no for part_no in range(part_count) if part_no not in present]
    shown = ", ".join(str(part_no) for part_no in missing[:PARTS_LISTED_MAX])
    more = f" and {len(missing) - PARTS_LISTED_MAX} more" if len(missing) > PARTS_LISTED_MAX else ""
    return f"Send the missing parts first: {shown}{more}."
