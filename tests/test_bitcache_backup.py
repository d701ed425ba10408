"""Backups and restores without a node: what they hold, what they refuse, and what is left of cut-off ones."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio
from msgspec import structs

from bitcache import backup_checks, backup_manifest
from bitcache.backup import BackupDone, back_up, copy_master_key, note_key_backup
from bitcache.backup_manifest import Manifest
from bitcache.client.link import Link
from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.doctor import Verdict
from bitcache.errors import BackupRefused, MasterKeyUnusable, RestoreRefused
from bitcache.master_key import write_master_key
from bitcache.restore import Restored, restore
from bitcache.sealing import Sealer
from tests.client_shop import Shop, open_shop, tree
from tests.postgres import PostgresCluster
from tests.service import running_server

NOW = 1_800_000_000


@dataclass
class Kept:
    """A shop with one parcel on a free offer, and its backup."""

    shop: Shop
    link: Link
    folder: Path

    @property
    def config(self) -> Config:
        return self.shop.server.services.config

    @property
    def backup(self) -> Path:
        return self.folder / "backup"

    @property
    def key(self) -> Path:
        return self.config.master_key

    async def back_up(self, *, with_master_key: bool = False, into: Path | None = None) -> BackupDone:
        return await back_up(self.config, into or self.backup, with_master_key=with_master_key, now=NOW)

    async def restore(self, *, key: Path | None, **environment: str) -> Restored:
        return await restore(
            self.backup,
            self.folder / "restored",
            master_key_file=key,
            environment={f"BITCACHE_{name}": value for name, value in environment.items()},
            now=NOW + 60,
        )

    async def check_restored(self, restored: Restored) -> None:
        """A server on what was restored gives the same files for the old link."""
        config = restored.config
        async with running_server(config.data_folder, database_url=config.database_url) as server:
            await self.shop.fetch(self.link, self.folder / "fetched", server=server.url, force=True)
        assert tree(self.folder / "fetched" / "goods") == tree(self.folder / "goods")
        for path in config.data_folder.rglob("*"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest_asyncio.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    async with open_shop(tmp_path) as shop:
        (shop.server.services.config.data_folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
        yield Kept(shop, await shop.sell(shop.files()), tmp_path)


async def test_what_is_restored_is_what_was_backed_up(kept: Kept) -> None:
    done = await kept.back_up()
    assert done.manifest.blobs.count == done.copied.count == 4
    assert {path.name for path in (kept.backup / done.manifest.snapshot).iterdir()} == {
        "bitcache.db",
        "bitcache.toml",
        "files",
        "uploads",
    }
    for path in [kept.backup, *kept.backup.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    with pytest.raises(RestoreRefused, match="--master-key"):
        await kept.restore(key=None)
    await kept.check_restored(await kept.restore(key=kept.key))


async def test_with_the_key_in_it_a_backup_is_enough(kept: Kept) -> None:
    await kept.back_up(with_master_key=True)
    restored = await kept.restore(key=None)
    assert restored.config.master_key.read_bytes() == kept.key.read_bytes()
    await kept.check_restored(restored)


async def test_the_next_backup_takes_what_is_new_and_drops_what_is_gone(kept: Kept) -> None:
    first = await kept.back_up()
    inodes = _inodes(kept.backup / "blobs")
    assert inodes.items() <= _inodes(kept.config.blobs).items(), "hard links, on one file system"
    again = await kept.back_up()
    assert (again.copied.count, again.manifest.blobs) == (0, first.manifest.blobs)
    assert [path.name for path in kept.backup.glob("snapshot-*")] == [again.manifest.snapshot]

    await kept.shop.sell(kept.shop.files("more", {"new.bin": 10_000}))
    more = await kept.back_up()
    assert (more.copied.count, more.manifest.blobs.count) == (1, 5)
    with closing(sqlite3.connect(kept.config.data_folder / "bitcache.db")) as database:
        database.execute("DELETE FROM parcel_files")
        gone = {row[0] for row in database.execute("DELETE FROM files RETURNING id")}
        database.commit()
    assert len(gone) == 5
    assert (await kept.back_up()).manifest.blobs.count == 0
    assert _inodes(kept.backup / "blobs") == {}


async def test_another_file_system_gets_copies(kept: Kept, other_file_system: Path) -> None:
    done = await kept.back_up(into=other_file_system / "backup")
    assert done.copied.count == 4
    stored = {path.name: path.read_bytes() for path in kept.config.blobs.glob("*/*")}
    assert {path.name: path.read_bytes() for path in other_file_system.glob("backup/blobs/*/*")} == stored
    assert (await kept.back_up(into=other_file_system / "backup")).copied.count == 0
    shutil.move(other_file_system / "backup", kept.backup)
    await kept.check_restored(await kept.restore(key=kept.key))


async def test_postgresql_by_its_own_programs(
    tmp_path: Path, postgres_database: str, postgres_cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_shop(tmp_path, database_url=postgres_database) as shop:
        (shop.server.services.config.data_folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
        kept = Kept(shop, await shop.sell(shop.files()), tmp_path)
        with monkeypatch.context() as nothing_on_the_path:
            nothing_on_the_path.setenv("PATH", "")
            with pytest.raises(BackupRefused, match="pg_dump is not on the PATH"):
                await kept.back_up()
        assert (await kept.back_up()).manifest.database == "postgresql"
        with pytest.raises(RestoreRefused, match="is not empty"):
            await kept.restore(key=kept.key, DATABASE_URL=postgres_database)
        assert not (tmp_path / "restored").exists()
        postgres_cluster.create_database("put_back")
        try:
            await kept.check_restored(
                await kept.restore(key=kept.key, DATABASE_URL=postgres_cluster.url("put_back"))
            )
        finally:
            postgres_cluster.drop_database("put_back")


async def test_what_the_server_itself_has_lost_is_named_and_stops_nothing(kept: Kept) -> None:
    lost = sorted(kept.config.blobs.glob("*/*"))[0]
    lost.unlink()
    done = await kept.back_up()
    assert done.manifest.missing == [lost.name]
    assert done.manifest.blobs.count == 3
    restored = await kept.restore(key=kept.key)
    assert len(list(restored.config.blobs.glob("*/*"))) == 3


async def test_doctor_asks_for_a_copy_of_this_very_key(kept: Kept) -> None:
    services = kept.shop.server.services
    assert (await backup_checks.check_key_backup(services)).verdict is Verdict.WARNING
    copy = kept.folder / "copy"
    fingerprint = copy_master_key(kept.config, copy)
    assert copy.read_bytes() == kept.key.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with pytest.raises(BackupRefused, match="is there already"):
        copy_master_key(kept.config, copy)
    await services.database.write(lambda tx: note_key_backup(tx, "another", now=NOW))
    assert (await backup_checks.check_key_backup(services)).verdict is Verdict.WARNING
    await services.database.write(lambda tx: note_key_backup(tx, fingerprint, now=NOW))
    assert (await backup_checks.check_key_backup(services)).verdict is Verdict.OK
    assert await backup_checks.check_restore(services) == []


# --- refused, and nothing is written ----------------------------------------------------------------------


@dataclass
class Stored:
    """A backup and its key; the server is gone."""

    backup: Path
    key: Path
    target: Path

    @property
    def manifest(self) -> Manifest:
        manifest = backup_manifest.read(self.backup)
        assert manifest is not None
        return manifest

    def write(self, manifest: Manifest) -> None:
        (self.backup / "manifest.json").write_bytes(backup_manifest.encode(manifest))

    async def restore(self, *, key: Path | None = None) -> Restored:
        return await restore(
            self.backup, self.target, master_key_file=key or self.key, environment={}, now=NOW + 60
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`before` and `after`: data folders of one server, which sold and deleted in between; `backup`."""
    folder = tmp_path_factory.mktemp("stored")
    async with open_shop(folder) as shop:
        kept = Kept(shop, await shop.sell(shop.files("few", {"one": 5_000, "two": 0})), folder)
        (kept.config.data_folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
        await kept.back_up()
        _copy_data(kept, folder / "before")
        await shop.sell(shop.files("more", {"three": 6_000}))
        with closing(sqlite3.connect(kept.config.data_folder / "bitcache.db")) as database:
            database.execute("DELETE FROM parcel_files WHERE position = 1")
            sold = "SELECT file_id FROM parcel_files"
            (gone,) = database.execute(f"DELETE FROM files WHERE id NOT IN ({sold}) RETURNING id").fetchone()
            database.commit()
        next(kept.config.blobs.glob(f"*/{gone}")).unlink()
        _copy_data(kept, folder / "after")
        shutil.copyfile(kept.key, folder / "key")
        (folder / "key").chmod(0o600)
    return folder


@pytest.fixture
def stored(server_folders: Path, tmp_path: Path) -> Stored:
    shutil.copytree(server_folders / "backup", tmp_path / "backup")
    return Stored(tmp_path / "backup", server_folders / "key", tmp_path / "restored")


def _manifest(**changes: object) -> Callable[[Stored], None]:
    """As one who has not the key would alter it."""
    return lambda stored: stored.write(structs.replace(stored.manifest, **changes))


def _sealed_manifest(**changes: object) -> Callable[[Stored], None]:
    def alter(stored: Stored) -> None:
        sealer = Sealer(stored.key.read_bytes())
        stored.write(backup_manifest.sealed(structs.replace(stored.manifest, **changes), sealer))

    return alter


def _one_bit_of(name: str) -> Callable[[Stored], None]:
    def alter(stored: Stored) -> None:
        path = stored.backup / stored.manifest.snapshot / name
        octets = bytearray(path.read_bytes())
        octets[len(octets) // 2] ^= 1
        path.write_bytes(octets)

    return alter


def _no_manifest(stored: Stored) -> None:
    (stored.backup / "manifest.json").unlink()


def _broken_manifest(stored: Stored) -> None:
    (stored.backup / "manifest.json").write_bytes(b"{")


def _no_blob(stored: Stored) -> None:
    next(stored.backup.glob("blobs/*/*")).unlink()


def _short_blob(stored: Stored) -> None:
    blob = max(stored.backup.glob("blobs/*/*"), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1])


def _full_folder(stored: Stored) -> None:
    stored.target.mkdir()
    (stored.target / "precious").write_text("mine")


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (_no_manifest, "no whole backup"),
        (_broken_manifest, "damaged"),
        (_manifest(taken_at=1), "altered"),
        (_manifest(network="mainnet"), "altered"),
        (_manifest(missing=["a" * 26]), "altered"),
        (_manifest(snapshot="../elsewhere"), "outside its folder"),
        (_sealed_manifest(format=2), "newer version"),
        (_sealed_manifest(revision="9999"), "revision 9999"),
        (_sealed_manifest(network="signet"), "is of signet"),
        (_sealed_manifest(database="postgresql"), "is of postgresql"),
        (_one_bit_of("bitcache.db"), "not the file"),
        (_one_bit_of("bitcache.toml"), "not the file"),
        (_one_bit_of("files"), "not the file"),
        (_no_blob, "lacks file"),
        (_short_blob, "lacks file"),
        (_full_folder, "is there already"),
    ],
)
async def test_refused(stored: Stored, alter: Callable[[Stored], None], words: str) -> None:
    alter(stored)
    before = tree(stored.target)
    with pytest.raises(RestoreRefused, match=words):
        await stored.restore()
    assert tree(stored.target) == before


async def test_another_key_is_refused(stored: Stored, tmp_path: Path) -> None:
    another, shared = tmp_path / "another", tmp_path / "shared"
    write_master_key(another)
    with pytest.raises(RestoreRefused, match="another master key"):
        await stored.restore(key=another)
    shutil.copyfile(stored.key, shared)
    shared.chmod(0o644)
    with pytest.raises(MasterKeyUnusable, match="chmod 600"):
        await stored.restore(key=shared)
    assert not stored.target.exists()


def test_killed_at_any_moment(server_folders: Path, tmp_path: Path) -> None:
    """Of a backup, what was there before is whole, or the new one is; of a restore, nothing that starts."""
    folders = (str(tmp_path), str(server_folders / "before"), str(server_folders / "after"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_backups", *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout.splitlines()[-1])
    assert rounds["backups"] > 10
    assert rounds["restores"] > 10


async def test_a_key_that_does_not_open_what_is_sealed_is_refused(kept: Kept) -> None:
    """The server runs with a key that is not its database's: the backup is sealed with the wrong one."""
    kept.key.unlink()
    write_master_key(kept.key)
    await kept.back_up()
    with pytest.raises(RestoreRefused, match="does not open what is sealed"):
        await kept.restore(key=kept.key)
    assert not (kept.folder / "restored").exists()


async def test_folders_that_no_backup_goes_into(kept: Kept) -> None:
    full, shared, anothers = (kept.folder / name for name in ("full", "shared", "anothers"))
    full.mkdir(mode=0o700)
    (full / "precious").write_text("mine")
    with pytest.raises(BackupRefused, match="such as precious"):
        await kept.back_up(into=full)
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(BackupRefused, match="chmod 700"):
        await kept.back_up(into=shared)
    await kept.back_up(into=anothers)
    kept.key.unlink()
    write_master_key(kept.key)
    with pytest.raises(BackupRefused, match="another master key"):
        await kept.back_up(into=anothers)


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm", prefix="bitcache-backup-") as folder:
        assert os.stat(folder).st_dev != tmp_path.stat().st_dev
        yield Path(folder)


def _inodes(blobs: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in blobs.glob("*/*")}


def _copy_data(kept: Kept, target: Path) -> None:
    """The data folder as a server that was stopped leaves it."""
    shutil.copytree(kept.config.data_folder, target, ignore=shutil.ignore_patterns("bitcache.db*"))
    with closing(sqlite3.connect(kept.config.data_folder / "bitcache.db")) as database:
        database.execute("VACUUM INTO ?", (str(target / "bitcache.db"),))
