"""The contract of every BlobStore, and what only the local folder has to keep."""

import asyncio
import errno
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from storage.errors import (
    BlobIncomplete,
    BlobMissing,
    DiskFull,
    FileIdInvalid,
    PartConflict,
    PartSizeWrong,
    RangeOutside,
    StoreUnavailable,
)
from storage.local import LocalBlobStore
from storage.ports import PART_SIZE_BYTES, BlobState, BlobStore, LocalRange, StreamRange

FILE_ID = "abcdefghijklmnopqrstuvwxyz"
OTHER_ID = "abcdefghijklmnopqrstuvwx23"
FULL_PART = bytes(range(256)) * (PART_SIZE_BYTES // 256)
TAIL = b"the last part is shorter"

ADAPTERS: dict[str, Callable[[Path], BlobStore]] = {"local": lambda folder: LocalBlobStore(folder / "blobs")}


@pytest.fixture(params=sorted(ADAPTERS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    blob_store = ADAPTERS[request.param](tmp_path)
    yield blob_store
    await blob_store.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    blob_store = LocalBlobStore(tmp_path / "blobs")
    yield blob_store
    await blob_store.close()


async def read(store: BlobStore, file_id: str, offset: int, length: int) -> bytes:
    match await store.open_range(file_id, offset=offset, length=length):
        case LocalRange(path, at, count):
            assert count == length
            return path.read_bytes()[at : at + count]
        case StreamRange(pieces, count):
            assert count == length
            return b"".join([piece async for piece in pieces])


async def listed(store: BlobStore) -> dict[str, tuple[BlobState, int]]:
    return {blob.file_id: (blob.state, blob.stored_bytes) async for blob in store.list()}


async def upload(store: BlobStore, file_id: str, *parts: bytes) -> int:
    for part_no, part in enumerate(parts):
        await store.write_part(file_id, part_no, part)
    size_bytes = sum(map(len, parts))
    await store.finish(file_id, size_bytes)
    return size_bytes


# The contract


async def test_parts_in_any_order_make_one_blob(store: BlobStore) -> None:
    await store.write_part(FILE_ID, 2, TAIL)
    await store.write_part(FILE_ID, 0, FULL_PART)
    await store.write_part(FILE_ID, 1, FULL_PART[::-1])
    whole = FULL_PART + FULL_PART[::-1] + TAIL
    await store.finish(FILE_ID, len(whole))

    assert await read(store, FILE_ID, 0, len(whole)) == whole
    assert await read(store, FILE_ID, PART_SIZE_BYTES - 3, 7) == whole[PART_SIZE_BYTES - 3 :][:7]
    assert await read(store, FILE_ID, len(whole) - 1, 1) == TAIL[-1:]


async def test_parts_in_parallel(store: BlobStore) -> None:
    parts = [bytes([number]) * PART_SIZE_BYTES for number in range(4)] + [TAIL]
    await asyncio.gather(*(store.write_part(FILE_ID, part_no, part) for part_no, part in enumerate(parts)))
    await store.finish(FILE_ID, sum(map(len, parts)))

    assert await read(store, FILE_ID, 0, sum(map(len, parts))) == b"".join(parts)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_bytes_will_do(store: BlobStore, kind: Callable[[bytes], bytes]) -> None:
    await store.write_part(FILE_ID, 0, kind(TAIL))
    await store.finish(FILE_ID, len(TAIL))
    await store.write_part(FILE_ID, 0, kind(TAIL))
    assert await read(store, FILE_ID, 0, len(TAIL)) == TAIL


async def test_an_unfinished_part_may_be_written_again(store: BlobStore) -> None:
    await store.write_part(FILE_ID, 0, b"torn by a crash!")
    await store.write_part(FILE_ID, 0, b"written in full.")
    await store.finish(FILE_ID, 16)
    assert await read(store, FILE_ID, 0, 16) == b"written in full."


async def test_a_finished_blob_never_changes(store: BlobStore) -> None:
    size_bytes = await upload(store, FILE_ID, FULL_PART, TAIL)

    await store.write_part(FILE_ID, 1, TAIL)
    for part_no, other in [(1, TAIL.upper()), (1, TAIL + b"x"), (2, b"x"), (0, TAIL)]:
        if part_no == 0:
            other = b"\xff" + FULL_PART[1:]
        with pytest.raises(PartConflict) as refused:
            await store.write_part(FILE_ID, part_no, other)
        assert refused.value.part_no == part_no
    assert await read(store, FILE_ID, 0, size_bytes) == FULL_PART + TAIL
    assert await listed(store) == {FILE_ID: (BlobState.FINISHED, size_bytes)}


async def test_finishing_again_is_harmless(store: BlobStore) -> None:
    size_bytes = await upload(store, FILE_ID, TAIL)
    await asyncio.gather(*(store.finish(FILE_ID, size_bytes) for _ in range(8)))
    assert await read(store, FILE_ID, 0, size_bytes) == TAIL


async def test_finishing_at_once_from_many_sides(store: BlobStore) -> None:
    await store.write_part(FILE_ID, 0, TAIL)
    await asyncio.gather(*(store.finish(FILE_ID, len(TAIL)) for _ in range(8)))
    assert await listed(store) == {FILE_ID: (BlobState.FINISHED, len(TAIL))}


async def test_finishing_at_another_size(store: BlobStore) -> None:
    await store.write_part(FILE_ID, 0, TAIL)
    for size_bytes in (len(TAIL) - 1, len(TAIL) + 1):
        with pytest.raises(BlobIncomplete) as refused:
            await store.finish(FILE_ID, size_bytes)
        assert (refused.value.size_bytes, refused.value.stored_bytes) == (size_bytes, len(TAIL))
    await store.finish(FILE_ID, len(TAIL))
    with pytest.raises(BlobIncomplete):
        await store.finish(FILE_ID, len(TAIL) + 1)


async def test_what_is_not_there_is_missing(store: BlobStore) -> None:
    with pytest.raises(BlobMissing):
        await store.finish(FILE_ID, 1)
    with pytest.raises(BlobMissing):
        await store.open_range(FILE_ID, offset=0, length=1)
    await store.write_part(FILE_ID, 0, TAIL)
    with pytest.raises(BlobMissing):
        await store.open_range(FILE_ID, offset=0, length=1)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, 25), (24, 1), (23, 2), (5, -1)])
async def test_ranges_outside_the_blob(store: BlobStore, offset: int, length: int) -> None:
    assert await upload(store, FILE_ID, TAIL) == 24
    with pytest.raises(RangeOutside):
        await store.open_range(FILE_ID, offset=offset, length=length)


async def test_delete_forgets_and_may_be_said_twice(store: BlobStore) -> None:
    await upload(store, FILE_ID, TAIL)
    assert await read(store, FILE_ID, 0, len(TAIL)) == TAIL
    await store.write_part(OTHER_ID, 0, TAIL)
    for file_id in (FILE_ID, OTHER_ID, FILE_ID, "z" * 26):
        await store.delete(file_id)

    assert await listed(store) == {}
    with pytest.raises(BlobMissing):
        await store.open_range(FILE_ID, offset=0, length=1)
    await upload(store, FILE_ID, b"anew")
    assert await read(store, FILE_ID, 0, 4) == b"anew"


async def test_list_tells_state_size_and_age(store: BlobStore) -> None:
    before = int(time.time()) - 1
    size_bytes = await upload(store, FILE_ID, TAIL)
    await store.write_part(OTHER_ID, 1, TAIL)
    await store.write_part("z" * 26, 0, b"x")

    assert await listed(store) == {
        FILE_ID: (BlobState.FINISHED, size_bytes),
        OTHER_ID: (BlobState.UPLOADING, PART_SIZE_BYTES + len(TAIL)),
        "z" * 26: (BlobState.UPLOADING, 1),
    }
    assert all([before <= blob.modified_at <= time.time() + 1 async for blob in store.list()])


@pytest.mark.parametrize(
    ("part_no", "length"), [(0, 0), (0, PART_SIZE_BYTES + 1), (-1, 1), (1 << 29, 1), (1 << 62, 1)]
)
async def test_parts_that_cannot_be(store: BlobStore, part_no: int, length: int) -> None:
    with pytest.raises(PartSizeWrong):
        await store.write_part(FILE_ID, part_no, bytes(length))
    assert await listed(store) == {}


@pytest.mark.parametrize(
    "file_id",
    [
        "",
        "a" * 25,
        "a" * 27,
        "A" * 26,
        "a" * 25 + "1",
        "../" + "a" * 23,
        "/" * 26,
        "a" * 26 + "\n",
        "é" * 26,
        "." * 26,
    ],
)
async def test_nothing_but_an_id_reaches_the_store(store: BlobStore, file_id: str) -> None:
    calls: list[Awaitable[object]] = [
        store.write_part(file_id, 0, TAIL),
        store.finish(file_id, 1),
        store.open_range(file_id, offset=0, length=1),
        store.delete(file_id),
    ]
    for call in calls:
        with pytest.raises(FileIdInvalid):
            await call
    assert await listed(store) == {}


# The local folder


async def test_only_the_owner_can_read(local: LocalBlobStore, tmp_path: Path) -> None:
    await upload(local, FILE_ID, TAIL)
    await local.write_part(OTHER_ID, 0, TAIL)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    folder_modes = {
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "blobs", *tmp_path.glob("blobs/*"))
    }
    assert modes == {0o600}
    assert folder_modes == {0o700}


async def test_the_reserve_is_never_touched(tmp_path: Path) -> None:
    tight = LocalBlobStore(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(DiskFull) as refused:
        await tight.write_part(FILE_ID, 0, TAIL)

    assert refused.value.reserve_bytes == 1 << 60
    assert refused.value.free_bytes is not None
    assert await listed(tight) == {}
    assert await tight.free_bytes() == 0
    await tight.close()


async def test_free_bytes_leave_the_reserve(tmp_path: Path) -> None:
    plain, reserved = LocalBlobStore(tmp_path), LocalBlobStore(tmp_path, reserve_bytes=1 << 30)
    difference = await plain.free_bytes() - await reserved.free_bytes()
    await plain.close()
    await reserved.close()
    assert difference == pytest.approx(1 << 30, abs=1 << 29)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_loses_nothing(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    await local.write_part(FILE_ID, 0, FULL_PART)

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as disk:
        disk.setattr(os, call, full)
        with pytest.raises(DiskFull):
            await local.write_part(FILE_ID, 1, TAIL)
    await local.write_part(FILE_ID, 1, TAIL)
    await local.finish(FILE_ID, PART_SIZE_BYTES + len(TAIL))
    assert await read(local, FILE_ID, 0, PART_SIZE_BYTES + len(TAIL)) == FULL_PART + TAIL


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
async def test_a_disk_that_fails_is_not_a_full_one(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as disk:
        disk.setattr(os, call, broken)
        with pytest.raises(StoreUnavailable):
            await local.write_part(FILE_ID, 0, TAIL)
    await local.write_part(FILE_ID, 0, TAIL)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", broken)
        with pytest.raises(StoreUnavailable):
            await local.finish(FILE_ID, len(TAIL))
    await local.finish(FILE_ID, len(TAIL))
    assert await read(local, FILE_ID, 0, len(TAIL)) == TAIL


async def test_short_writes_are_continued(local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, rest, at: pwrite(file, rest[:1_000_003], at))
    assert await upload(local, FILE_ID, FULL_PART, TAIL)
    assert await read(local, FILE_ID, 0, PART_SIZE_BYTES + len(TAIL)) == FULL_PART + TAIL


async def test_durable_before_acknowledged(local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part ends with fsync of file and folder; finishing renames, then syncs the folder that names it."""
    calls: list[str] = []
    fsync, pwrite, rename = os.fsync, os.pwrite, Path.rename

    def recording_fsync(file: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "sync file")
        fsync(file)

    def recording_pwrite(file: int, rest: memoryview, offset: int) -> int:
        calls.append("write")
        return pwrite(file, rest, offset)

    def recording_rename(path: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "pwrite", recording_pwrite)
    monkeypatch.setattr(Path, "rename", recording_rename)

    await local.write_part(FILE_ID, 0, TAIL)
    assert calls == ["sync folder", "write", "sync file", "sync folder"]  # the first names the new shard
    calls.clear()
    await local.write_part(FILE_ID, 0, TAIL)
    assert calls == ["write", "sync file", "sync folder"]
    calls.clear()
    await local.finish(FILE_ID, len(TAIL))
    assert calls == ["rename", "sync folder"]
    calls.clear()
    await local.delete(FILE_ID)
    assert calls == ["sync folder"]


async def test_a_new_process_goes_on(tmp_path: Path) -> None:
    first = LocalBlobStore(tmp_path)
    await first.write_part(FILE_ID, 1, TAIL)
    await first.close()

    second = LocalBlobStore(tmp_path)
    await second.write_part(FILE_ID, 0, FULL_PART)
    await second.finish(FILE_ID, PART_SIZE_BYTES + len(TAIL))
    assert await read(second, FILE_ID, PART_SIZE_BYTES, len(TAIL)) == TAIL
    await second.close()


async def test_foreign_files_are_left_alone(local: LocalBlobStore, tmp_path: Path) -> None:
    await upload(local, FILE_ID, TAIL)
    (tmp_path / "blobs" / "lost+found").mkdir()
    (tmp_path / "blobs" / "README").write_text("not ours")
    (tmp_path / "blobs" / FILE_ID[:2] / "note.txt").write_text("not ours")
    assert set(await listed(local)) == {FILE_ID}


async def test_a_symbolic_link_is_not_followed(local: LocalBlobStore, tmp_path: Path) -> None:
    await local.write_part(OTHER_ID, 0, TAIL)
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep")
    (tmp_path / "blobs" / FILE_ID[:2] / f"{FILE_ID}.uploading").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"):
        await local.write_part(FILE_ID, 0, TAIL)
    assert precious.read_bytes() == b"keep"


async def test_a_slow_disk_does_not_hold_the_loop(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    entered, may_go_on = asyncio.Event(), threading.Event()
    fsync = os.fsync

    def slow_fsync(file: int) -> None:
        loop.call_soon_threadsafe(entered.set)
        assert may_go_on.wait(10)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    writing = asyncio.create_task(local.write_part(FILE_ID, 0, TAIL))
    async with asyncio.timeout(10):
        await entered.wait()  # the loop runs although the disk does not answer
        assert not writing.done()
        may_go_on.set()
        await writing


async def test_a_cancelled_write_ends_before_the_cancellation_does(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    entered, may_go_on = asyncio.Event(), threading.Event()
    pwrite = os.pwrite

    def slow_pwrite(file: int, rest: memoryview, offset: int) -> int:
        loop.call_soon_threadsafe(entered.set)
        assert may_go_on.wait(10)
        return pwrite(file, rest, offset)

    monkeypatch.setattr(os, "pwrite", slow_pwrite)
    buffer = bytearray(TAIL)
    writing = asyncio.create_task(local.write_part(FILE_ID, 0, buffer))
    async with asyncio.timeout(10):
        await entered.wait()
        writing.cancel()
        for _ in range(10):  # turns of the loop, more than an early end would need
            await asyncio.sleep(0)
        assert not writing.done()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
    buffer[:] = bytes(len(buffer))  # ours again
    await local.finish(FILE_ID, len(TAIL))
    assert await read(local, FILE_ID, 0, len(TAIL)) == TAIL
