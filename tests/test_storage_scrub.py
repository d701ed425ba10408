"""Reading stored chunks again: what is damaged is named, what is whole is not, at the pace asked for."""

import os
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bitcache.ids import new_id
from storage.digests import chunk_digests
from storage.errors import StoreUnavailable
from storage.local import LocalBlobStore
from storage.scrub import Pace, damaged_chunks
from storage.stream import CHUNK_SIZE_BYTES

SIZE = 3 * CHUNK_SIZE_BYTES + 17
UNHURRIED = 1e12


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(tmp_path)
    yield store
    await store.close()


async def stored(blobs: LocalBlobStore, size: int = SIZE) -> tuple[str, bytes]:
    file_id, octets = new_id(), os.urandom(size)
    await blobs.write_part(file_id, 0, octets)
    await blobs.finish(file_id, size)
    return file_id, chunk_digests(octets)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        octet = file.read(1)
        file.seek(at)
        file.write(bytes([octet[0] ^ 1]))


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip_two(path: Path) -> None:
    flip(path, CHUNK_SIZE_BYTES)
    flip(path, 3 * CHUNK_SIZE_BYTES)


DAMAGES: dict[str, tuple[Callable[[Path], None], list[int]]] = {
    "nothing": (lambda path: None, []),
    "one bit of the first chunk": (lambda path: flip(path, 0), [0]),
    "the last byte of the last chunk": (lambda path: flip(path, SIZE - 1), [3]),
    "two chunks": (flip_two, [1, 3]),
    "the end is gone": (lambda path: os.truncate(path, CHUNK_SIZE_BYTES + 5), [1, 2, 3]),
    "all is gone": (lambda path: os.truncate(path, 0), [0, 1, 2, 3]),
    "the file is gone": (Path.unlink, [0, 1, 2, 3]),
    "a folder stands in its place": (put_a_folder, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_is_damaged_is_named(blobs: LocalBlobStore, tmp_path: Path, damage: str) -> None:
    file_id, digests = await stored(blobs)
    beside, their_digests = await stored(blobs)
    inflict, expected = DAMAGES[damage]
    inflict(tmp_path / file_id[:2] / file_id)
    pace = Pace(UNHURRIED)
    found = await damaged_chunks(blobs, file_id, size_bytes=SIZE, digests=digests, pace=pace)
    assert found == expected
    assert not await damaged_chunks(blobs, beside, size_bytes=SIZE, digests=their_digests, pace=pace)


class Waiting:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_no_more_is_read_than_the_pace_allows(blobs: LocalBlobStore) -> None:
    file_id, digests = await stored(blobs)
    waiting = Waiting()
    pace = Pace(CHUNK_SIZE_BYTES / 2, monotonic=waiting.monotonic, sleep=waiting.sleep)
    await damaged_chunks(blobs, file_id, size_bytes=SIZE, digests=digests, pace=pace)
    assert waiting.now == pytest.approx(SIZE / (CHUNK_SIZE_BYTES / 2))


async def test_a_pause_is_not_made_up_for(blobs: LocalBlobStore) -> None:
    waiting = Waiting()
    pace = Pace(100, monotonic=waiting.monotonic, sleep=waiting.sleep)
    waiting.now = 1000.0
    await pace(100)
    assert waiting.now == pytest.approx(1001)


async def test_a_process_without_room_for_another_file_calls_nothing_damaged(blobs: LocalBlobStore) -> None:
    file_id, digests = await stored(blobs)
    await blobs.open_range(file_id, 0, 1)  # its threads are up
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(StoreUnavailable):
            await damaged_chunks(blobs, file_id, size_bytes=SIZE, digests=digests, pace=Pace(UNHURRIED))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in taken:
            os.close(file)
