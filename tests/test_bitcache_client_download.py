"""Downloading from the real server: whole parcels, going on after cuts, odd disks, places and names."""

import os
import resource
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from bitcache.cli.getting import Get
from bitcache.client.api import ServerApi
from bitcache.client.errors import (
    ServerProblem,
    ServerUnreachable,
    SpaceMissing,
    TargetExists,
)
from bitcache.client.link import Link
from bitcache.client.purchase import recall
from bitcache.client.receipts import ReceiptBook
from bitcache.client.target import Target, choose_target
from bitcache.client.transfer import ChunkRange, plan_ranges
from payments.tables import invoices
from tests.client_shop import CountingProgress, Shop, open_shop, tree
from tests.hostile_server import Answered, lying

MIB = 1 << 20


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path) as shop:
        # Else the only file of a parcel would get this name.
        (tmp_path / "out").mkdir()
        yield shop


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_ranges_cover_what_is_missing_once(here: list[bool], range_chunks: int) -> None:
    missing = [index for index, there in enumerate(here) if not there]
    ranges = list(plan_ranges(missing, range_chunks=range_chunks))
    assert [index for one in ranges for index in range(one.first, one.end)] == missing
    assert all(1 <= one.end - one.first <= range_chunks for one in ranges)


def test_eight_chunks_are_one_range() -> None:
    assert list(plan_ranges(list(range(17)))) == [ChunkRange(0, 8), ChunkRange(8, 16), ChunkRange(16, 17)]


SIZES = {
    "a name with spaces, 'single' and \"double\" quotes.bin": MIB - 56,
    "é/ü/ß.bin": MIB - 55,
    "0": 0,
    "1": 1,
    "exact three chunks": 3 * MIB - 40 - 3 * 16,
    "20 MiB and more": 20 * MIB + 7,
}


async def test_a_parcel_arrives_as_it_was(shop: Shop) -> None:
    source = shop.files("goods", SIZES)
    os.utime(source / "1", (1_000_000_000, 1_000_000_000))
    link = await shop.sell(source)
    progress = CountingProgress()
    paths = await shop.fetch(link, shop.folder / "out", progress=progress)
    assert tree(shop.folder / "out" / "goods") == tree(source)
    assert sorted(paths) == sorted(shop.folder / "out" / "goods" / name for name in SIZES)
    assert [path.name for path in (shop.folder / "out").iterdir()] == ["goods"]
    assert (shop.folder / "out" / "goods" / "1").stat().st_mtime == 1_000_000_000
    assert progress.done_bytes == progress.total_bytes


async def test_the_server_never_sees_names_or_secrets(shop: Shop) -> None:
    link = await shop.sell(shop.files("goods", {"Telltale Name.txt": 100}))
    await shop.fetch(link, shop.folder / "out")
    stored = b"".join(tree(shop.folder / "server").values())
    assert b"Telltale" not in stored
    assert b"Parcel goods" not in stored
    assert link.link_secret not in stored
    assert str(link).split("#1.")[1].encode() not in stored


async def test_one_file_may_get_another_name(shop: Shop) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 10}))
    await shop.fetch(link, shop.folder / "new name.bin")
    assert (shop.folder / "new name.bin").read_bytes() == (shop.folder / "goods" / "a.bin").read_bytes()


async def test_nothing_is_overwritten_unasked(shop: Shop) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 10, "b.bin": 10}))
    output = shop.folder / "out"
    (output / "goods").mkdir()
    (output / "goods" / "b.bin").write_text("mine")
    with pytest.raises(TargetExists):
        await shop.fetch(link, output)
    assert tree(output) == {"goods/b.bin": b"mine"}
    await shop.fetch(link, output, force=True)
    assert tree(output / "goods") == tree(shop.folder / "goods")


async def test_what_is_there_already_is_proven_and_kept(shop: Shop) -> None:
    """A run that was killed just after the files got their names: the next one finds them."""
    link = await shop.sell(shop.files("goods", {"a.bin": MIB + 1, "empty": 0, "b.bin": 10}))
    output = shop.folder / "out"
    await shop.fetch(link, output)
    (output / "goods" / "b.bin").unlink()
    progress = CountingProgress()
    await shop.fetch(link, output, progress=progress)
    assert tree(output / "goods") == tree(shop.folder / "goods")
    assert progress.total_bytes < MIB, "only what was missing"

    altered = output / "goods" / "a.bin"
    content = altered.read_bytes()
    altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TargetExists):
        await shop.fetch(link, output)
    assert altered.read_bytes() != content


async def test_permissions_follow_the_umask(shop: Shop) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 10}))
    before = os.umask(0o027)
    try:
        await shop.fetch(link, shop.folder / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((shop.folder / "out" / "goods" / "a.bin").stat().st_mode) == 0o640


async def test_a_download_goes_on_after_cuts(shop: Shop) -> None:
    """Every connection breaks after some MiB: no chunk is fetched twice for it but those under way."""
    link = await shop.sell(shop.files("goods", {"a.bin": 40 * MIB}))
    answers = 0

    async def cut(request: web.Request, answered: Answered) -> web.StreamResponse | None:
        nonlocal answers
        answers += 1
        if answers % 2 == 0:
            return None
        response = web.StreamResponse(status=answered.status, headers=answered.headers)
        await response.prepare(request)
        await response.write(answered.body[: len(answered.body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    async with lying(shop.server.url, {"content": cut}) as url:
        await shop.fetch(replace(link, server=url), shop.folder / "out", retry_for_s=20)
    assert tree(shop.folder / "out" / "goods") == tree(shop.folder / "goods")
    assert answers > 6


class Stop(Exception):
    pass


class StopAfter(CountingProgress):
    """Breaks the download off once `bytes_max` have arrived."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self.bytes_max = bytes_max

    def advance(self, length_bytes: int) -> None:
        super().advance(length_bytes)
        if self.done_bytes >= self.bytes_max:
            raise Stop


async def test_a_stopped_download_fetches_only_the_rest(shop: Shop) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 40 * MIB, "b.bin": MIB}))
    with pytest.raises(Stop):
        await shop.fetch(link, shop.folder / "out", progress=StopAfter(20 * MIB))
    fetched_bytes = await fetch_counting(shop, link)
    assert tree(shop.folder / "out" / "goods") == tree(shop.folder / "goods")
    assert fetched_bytes <= 22 * MIB


async def test_what_rotted_on_disk_is_fetched_again(shop: Shop) -> None:
    """A map that claims more than the disk holds, as after a power cut, costs a chunk and not the file."""
    link = await shop.sell(shop.files("goods", {"a.bin": 10 * MIB}))
    with pytest.raises(Stop):
        await shop.fetch(link, shop.folder / "out", progress=StopAfter(8 * MIB))
    (work,) = (shop.folder / "out").glob(".bitcache-*")
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    (part,) = work.glob("*.part")
    octets = bytearray(part.read_bytes())
    octets[10] ^= 1
    part.write_bytes(octets)
    (chunk_map,) = work.glob("*.part.map")
    chunk_map.write_bytes(b"\x01" * 11)
    await shop.fetch(link, shop.folder / "out")
    assert tree(shop.folder / "out" / "goods") == tree(shop.folder / "goods")


async def test_a_crash_while_files_get_their_names(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 10, "b.bin": 10, "c.bin": 10}))
    placed = 0
    place = Target.place

    def crash_at_the_third(self: Target, work: int, name: str, path: str, *, force: bool) -> None:
        nonlocal placed
        placed += 1
        if placed == 3:
            raise Stop
        place(self, work, name, path, force=force)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(Target, "place", crash_at_the_third)
        await shop.fetch(link, shop.folder / "out")
    assert len(list((shop.folder / "out" / "goods").iterdir())) == 2
    assert await fetch_counting(shop, link) == 0
    assert tree(shop.folder / "out" / "goods") == tree(shop.folder / "goods")


async def test_an_expired_grant_is_claimed_again(shop: Shop) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 20 * MIB}))
    refused = 0

    async def expire_now_and_then(request: web.Request, answered: Answered) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            answered.status = 401
            answered.headers["Content-Type"] = "application/problem+json"
            answered.body = b'{"type":"/problems/token-invalid","title":"","status":401,"detail":"expired"}'

    async with lying(shop.server.url, {"content": expire_now_and_then}) as url:
        await shop.fetch(replace(link, server=url), shop.folder / "out")
    assert refused == 2
    assert tree(shop.folder / "out" / "goods") == tree(shop.folder / "goods")


async def test_the_receipt_works_from_another_device(shop: Shop) -> None:
    link = await shop.sell(shop.files())
    await shop.fetch(link, shop.folder / "out")
    (kept,) = ReceiptBook(shop.folder / "receipts").all()
    shutil.rmtree(shop.folder / "receipts")
    receipt = kept.receipt
    assert receipt is not None
    async with ServerApi(shop.server.url) as api:
        purchase = await recall(api, receipt)
        assert purchase.invoice.offer_id == link.offer_id
        with pytest.raises(ServerProblem) as refusal:
            await recall(api, replace(receipt, claim_secret=bytes(32)))
    assert (refusal.value.status, refusal.value.name) == (403, "claim-refused")


async def test_the_same_link_is_the_same_invoice(shop: Shop) -> None:
    link = await shop.sell(shop.files())
    await shop.fetch(link, shop.folder / "out")
    await shop.fetch(link, shop.folder / "again")
    assert len(ReceiptBook(shop.folder / "receipts").all()) == 1
    names = [path.stat().st_mode for path in (shop.folder / "receipts").glob("*.json")]
    assert [stat.S_IMODE(mode) for mode in names] == [0o600]


async def test_a_disk_without_room_is_told_before_the_download(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 3 * MIB}))
    monkeypatch.setattr(os, "fstatvfs", lambda file: SimpleNamespace(f_bavail=256, f_frsize=4096))
    with pytest.raises(SpaceMissing) as refusal:
        await shop.fetch(link, shop.folder / "out")
    assert (refusal.value.needed_bytes, refusal.value.free_bytes) == (3 * MIB, MIB)
    assert not list((shop.folder / "out").iterdir())


async def test_a_disk_without_room_is_told_before_anybody_pays(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await shop.sell(shop.files("goods", {"a.bin": 3 * MIB}))
    monkeypatch.setenv("XDG_DATA_HOME", str(shop.folder / "home"))
    monkeypatch.setattr(os, "fstatvfs", lambda file: SimpleNamespace(f_bavail=256, f_frsize=4096))
    get = Get(output=shop.folder / "out", wallet=None, wait=False, yes=False, force=False, as_json=True)
    with pytest.raises(SpaceMissing):
        await get.run(str(link))
    made = await shop.server.services.database.read(lambda tx: tx.scalar(select(func.count(invoices.c.id))))
    assert made == 0


async def test_a_full_disk_keeps_what_arrived(shop: Shop) -> None:
    """RLIMIT_FSIZE stands in for the disk; the download goes on when there is room again."""
    link = await shop.sell(shop.files("goods", {"a.bin": 3 * MIB}))
    with pytest.raises(OSError, match=r"too large|No space"):
        await with_file_size_limit(2 * MIB, shop.fetch(link, shop.folder / "out"))
    assert await fetch_counting(shop, link) <= 3 * MIB
    assert tree(shop.folder / "out" / "goods") == tree(shop.folder / "goods")


async def test_a_silent_server_is_given_up(tmp_path: Path, free_port: int) -> None:
    async with ServerApi(f"http://127.0.0.1:{free_port}", retry_for_s=0.5) as api:
        with pytest.raises(ServerUnreachable, match="run the same command again"):
            await api.get("/anything", dict)


async def test_a_server_that_comes_back_is_not_given_up(shop: Shop) -> None:
    troubles = [502, 503, 504, 429]

    async def trouble(request: web.Request, answered: Answered) -> None:
        if troubles:
            answered.status = troubles.pop()
            answered.headers["Retry-After"] = "0"
            answered.body = b""

    link = await shop.sell(shop.files("goods", {"a.bin": 10}))
    async with lying(shop.server.url, {"offer": trouble}) as url:
        await shop.fetch(replace(link, server=url), shop.folder / "out", retry_for_s=20)
    assert not troubles


def test_places_for_output(tmp_path: Path) -> None:
    for output, paths, shown in (
        (tmp_path / "new.bin", ["a/b.bin"], tmp_path / "new.bin"),
        (tmp_path, ["a/b.bin"], tmp_path / "a" / "b.bin"),
        (tmp_path / "folder", ["a", "b"], tmp_path / "folder" / "a"),
    ):
        with choose_target(output, paths) as target:
            assert target.shown(paths[0]) == shown


async def fetch_counting(shop: Shop, link: Link) -> int:
    """Download, and count the bytes of content that the server sends for it."""
    sent = 0

    async def count(request: web.Request, answered: Answered) -> None:
        nonlocal sent
        sent += len(answered.body)

    async with lying(shop.server.url, {"content": count}) as url:
        book = ReceiptBook(shop.folder / "receipts")
        for kept in book.all():
            # The same receipt, reached by another way.
            book.save(msgspec.structs.replace(kept, link=str(replace(link, server=url))))
        await shop.fetch(replace(link, server=url), shop.folder / "out")
    return sent


async def with_file_size_limit(bytes_max: int, work: Awaitable[object]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, before[1]))
    try:
        await work
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
