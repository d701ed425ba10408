"""Uploading: what is collected, and what survives a crash so that no nonce seals two different chunks."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bitcache.client.api import ServerApi
from bitcache.client.errors import AlreadyRunning, SourceRefused
from bitcache.client.places import only_one, write_private
from bitcache.client.sealing import SourceDiffers, seal_part
from bitcache.client.sources import Source, collect, open_source
from bitcache.client.upload import ANNOUNCING_LANES, Description, Upload, state_name
from bitcache.client.upload_state import UploadState
from storage.errors import PathRefused
from tests.client_shop import CountingProgress, Shop, open_shop, tree
from tests.hostile_server import Answered, Lie, lying

PART = 8 << 20


def source_of(path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    (source,) = collect([path])
    return source


def test_files_and_folders_are_collected_with_their_paths(tmp_path: Path) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("photos/b.jpg", "photos/more/a 'quoted' name.txt", "alone.pdf", "photos/.hidden"):
        (tmp_path / name).write_text(name)
    sources = collect([tmp_path / "photos", tmp_path / "alone.pdf"])
    assert [source.path for source in sources] == [
        "alone.pdf", "photos/.hidden", "photos/b.jpg", "photos/more/a 'quoted' name.txt",
    ]  # fmt: skip
    assert [source.media_type for source in sources][:3] == [
        "application/pdf", "application/octet-stream", "image/jpeg",
    ]  # fmt: skip


def test_links_pipes_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("link", "symbolic link"),
        ("pipe", "pipe"),
        ("folder", "no file"),
        ("absent", "No such file"),
    ):
        with pytest.raises(SourceRefused, match=words):
            collect([tmp_path / name])
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(SourceRefused, match="symbolic link"):
        collect([tmp_path / "folder"])


def test_names_that_cannot_be_sold_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "con.txt").write_text("x")
    with pytest.raises(PathRefused):
        collect([tmp_path / "con.txt"])
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "A").write_text("x")
    with pytest.raises(PathRefused, match="same path"):
        collect([tmp_path / "a", tmp_path / "below" / "A"])


def test_a_file_replaced_by_a_link_is_not_opened(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a", b"x")
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("/etc/passwd")
    with pytest.raises(SourceRefused):
        open_source(source)


def test_the_state_is_private_and_stays(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a", b"x" * 100)
    path = tmp_path / "states" / "one.db"
    state = UploadState(path)
    file = state.file(source)
    state.set_file_id(file, "f" * 26)
    secrets = state.link_secret, state.release_secret
    state.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    state = UploadState(path)
    assert (state.link_secret, state.release_secret) == secrets
    again = state.file(source)
    assert (again.file_key, again.header, again.file_id) == (file.file_key, file.header, "f" * 26)
    state.remove()
    assert not path.exists()


def test_a_changed_file_gets_fresh_keys(tmp_path: Path) -> None:
    state = UploadState(tmp_path / "one.db")
    before = state.file(source_of(tmp_path / "a", b"old"))
    state.record_digests(before, 0, bytes(32))
    after = state.file(source_of(tmp_path / "a", b"newer"))
    assert before.file_key != after.file_key
    assert before.header != after.header
    assert state.digests(after, 0) is None
    state.close()


def test_digests_are_on_record_before_a_part_leaves(tmp_path: Path) -> None:
    state = UploadState(tmp_path / "one.db")
    source = source_of(tmp_path / "a", os.urandom(PART + 5))
    file, descriptor = state.file(source), open_source(source)
    part, digests = seal_part(state, source, file, descriptor, 0)
    assert len(part) == PART
    after_a_crash = UploadState(tmp_path / "one.db")
    assert after_a_crash.digests(file, 0) == digests
    after_a_crash.close()
    assert seal_part(state, source, file, descriptor, 0)[0] == part
    os.close(descriptor)
    state.close()


def test_a_chunk_that_encrypts_differently_is_never_sealed_again(tmp_path: Path) -> None:
    """The file was changed within the clock's grain: size and time are the same, the bytes are not."""
    state = UploadState(tmp_path / "one.db")
    source = source_of(tmp_path / "a", b"a" * 1000)
    file, descriptor = state.file(source), open_source(source)
    seal_part(state, source, file, descriptor, 0)
    with source.file.open("r+b") as changed:
        changed.seek(500)
        changed.write(b"b")
    os.utime(source.file, ns=(source.modified_ns, source.modified_ns))
    with pytest.raises(SourceDiffers):
        seal_part(state, source, file, descriptor, 0)
    os.close(descriptor)
    state.close()


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "lock", "This upload"),
        pytest.raises(AlreadyRunning),
        only_one(tmp_path / "lock", "This upload"),
    ):
        pass
    with only_one(tmp_path / "lock", "This upload"):
        pass


def test_private_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "deep" / "secret", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    assert tree(tmp_path) == {"deep/secret": b"x"}


def test_the_same_command_finds_the_same_state(tmp_path: Path) -> None:
    assert state_name("https://a", [tmp_path / "x"]) == state_name("https://a", [tmp_path / "y" / ".." / "x"])
    assert state_name("https://a", [tmp_path / "x"]) != state_name("https://b", [tmp_path / "x"])


class Cut(Exception):
    """The upload broke off."""


async def upload(shop: Shop, url: str, state: UploadState, source: Path, progress: CountingProgress) -> str:
    async with ServerApi(url, shop.token, retry_for_s=1) as api:
        return await Upload(
            api, state, collect([source]), Description(title="t"), meterable=False, progress=progress
        ).run()


async def test_a_broken_upload_sends_only_what_is_missing(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        source = shop.files("big", {"a.bin": 5 * PART, "b.bin": 100})
        state = UploadState(tmp_path / "state.db")
        sent: list[str] = []

        class Stop(CountingProgress):
            def advance(self, length_bytes: int) -> None:
                super().advance(length_bytes)
                if self.done_bytes >= 3 * PART:
                    raise Cut

        with pytest.raises(Cut):
            await upload(shop, shop.server.url, state, source, Stop())
        state.close()
        async with lying(shop.server.url, {"part": noting(sent)}) as url:
            state = UploadState(tmp_path / "state.db")
            await upload(shop, url, state, source, CountingProgress())
            assert 1 <= len(sent) <= 4
            # And a third time, all is there.
            sent.clear()
            await upload(shop, url, state, source, CountingProgress())
            assert not sent
            state.close()


async def test_a_file_that_changed_between_two_runs_starts_anew(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        source = shop.files("big", {"a.bin": 2 * PART})
        state = UploadState(tmp_path / "state.db")
        first_key = state.file(collect([source])[0]).file_key
        await upload(shop, shop.server.url, state, source, CountingProgress())
        (source / "a.bin").write_bytes(b"quite another file")
        await upload(shop, shop.server.url, state, source, CountingProgress())
        assert state.file(collect([source])[0]).file_key != first_key
        state.close()


async def test_other_bytes_on_the_server_mean_fresh_keys(tmp_path: Path) -> None:
    """A server that says 409 has something else under our file: it is announced again, under a fresh key."""
    async with open_shop(tmp_path) as shop:
        source = shop.files("small", {"a.bin": 1000})
        state = UploadState(tmp_path / "state.db")
        keys = [state.file(collect([source])[0]).file_key]
        refusals = [409]

        async def conflict(request: web.Request, answered: Answered) -> None:
            if refusals:
                answered.status = refusals.pop()
                answered.headers["Content-Type"] = "application/problem+json"
                answered.body = b'{"type":"/problems/part-conflict","title":"","status":409,"detail":"other"}'

        async with lying(shop.server.url, {"part": conflict}) as url:
            await upload(shop, url, state, source, CountingProgress())
        keys.append(state.file(collect([source])[0]).file_key)
        assert keys[0] != keys[1]
        state.close()


def noting(sent: list[str]) -> Lie:
    async def note(request: web.Request, answered: Answered) -> None:
        sent.append(request.path)

    return note


class _Announcing(ServerApi):
    """Counts how many announcements wait for their answer at the same time."""

    under_way = most = 0

    async def post(self, path: str, *args: Any, **options: Any) -> Any:
        self.under_way += path == "/files"
        self.most = max(self.most, self.under_way)
        try:
            return await super().post(path, *args, **options)
        finally:
            self.under_way -= path == "/files"


async def test_many_small_files_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        goods = shop.files("goods", {f"{number}.txt": number for number in range(20)})
        state = UploadState(tmp_path / "state.db")
        async with _Announcing(shop.server.url, shop.token) as api:
            progress = CountingProgress()
            about = Description(title="Small things")
            sources = collect([goods])
            await Upload(api, state, sources, about, meterable=False, progress=progress).run()
        state.close()
    assert api.most == ANNOUNCING_LANES
    assert progress.done_bytes == progress.total_bytes
