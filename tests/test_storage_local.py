"""Writing past the page cache: whatever the size and place of the bytes in memory, they are on disk so."""

import errno
import fcntl
import mmap
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from storage.local import DIRECT_BLOCK_BYTES, LocalBlobStore
from storage.ports import PART_SIZE_BYTES

FILE_ID = "abcdefghijklmnopqrstuvwxyz"
BLOCK = DIRECT_BLOCK_BYTES
SIZES = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, PART_SIZE_BYTES - 1, PART_SIZE_BYTES)


@pytest_asyncio.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(tmp_path)
    yield store
    await store.close()


def aligned(octets: bytes, *, shift: int = 0) -> memoryview:
    """`octets` in memory that begins at a page, or `shift` bytes after."""
    memory = memoryview(mmap.mmap(-1, len(octets) + shift))[shift:]
    memory[:] = octets
    return memory


def stored(folder: Path) -> bytes:
    return (folder / FILE_ID[:2] / f"{FILE_ID}.uploading").read_bytes()


@pytest.mark.parametrize("shift", [0, 1])
async def test_parts_of_every_size_and_place(local: LocalBlobStore, tmp_path: Path, shift: int) -> None:
    first = os.urandom(PART_SIZE_BYTES)
    await local.write_part(FILE_ID, 0, aligned(first, shift=shift))
    for size_bytes in SIZES:
        second = os.urandom(size_bytes)
        await local.write_part(FILE_ID, 1, aligned(second, shift=shift))
        found = stored(tmp_path)
        assert found[: PART_SIZE_BYTES + size_bytes] == first + second
    await local.write_part(FILE_ID, 0, aligned(first[::-1], shift=shift))
    assert stored(tmp_path)[:PART_SIZE_BYTES] == first[::-1]


async def test_whole_blocks_go_past_the_page_cache_and_only_they(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[bool, int]] = []
    pwrite = os.pwrite

    def noted(file: int, octets: memoryview, offset: int) -> int:
        writes.append((bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT), len(octets)))
        return pwrite(file, octets, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    await local.write_part(FILE_ID, 0, aligned(bytes(2 * BLOCK + 5)))
    assert writes[0] == (True, 2 * BLOCK)
    assert writes[-1][0] is False


async def test_a_file_system_without_it_is_written_as_ever(
    local: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fcntl.fcntl

    def refusing(file: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct access here")
        return control(file, command, flags)

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    octets = os.urandom(2 * BLOCK + 5)
    await local.write_part(FILE_ID, 0, aligned(octets))
    assert stored(tmp_path) == octets
