"""Backups, and what restores make of them, without a node."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio
from sqlalchemy import update
from typer.testing import CliRunner, Result

from bitcache import backup_checks, unassigned_money
from bitcache.backup import copy_master_key, note_key_backup
from bitcache.cli.main import app
from bitcache.db.tables import accounts
from bitcache.doctor import Verdict
from bitcache.errors import BackupRefused, RestoreRefused
from bitcache.master_key import write_master_key
from bitcache.services import open_services
from payments import restores
from payments.addresses import PayoutDescriptor
from payments.ports import Transaction
from tests.kept_shop import NOW, Kept, open_kept
from tests.postgres import PostgresCluster


@pytest_asyncio.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    async with open_kept(tmp_path) as kept:
        yield kept


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
    async with open_kept(tmp_path, database_url=postgres_database) as kept:
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
    with pytest.raises(BackupRefused, match="in a folder that is there"):
        copy_master_key(kept.config, kept.folder / "unplugged" / "copy")
    await services.database.write(lambda tx: note_key_backup(tx, "another", now=NOW))
    assert (await backup_checks.check_key_backup(services)).verdict is Verdict.WARNING
    await services.database.write(lambda tx: note_key_backup(tx, fingerprint, now=NOW))
    assert (await backup_checks.check_key_backup(services)).verdict is Verdict.OK
    assert await backup_checks.check_restore(services) == []


async def test_a_seller_waits_until_the_operator_decides_where_the_blocks_do_not_tell(kept: Kept) -> None:
    """No node was ever seen: there is no block to search from."""
    services = kept.shop.server.services

    async def set_wallet(tx: Transaction) -> None:
        await services.descriptors.register(
            tx, PayoutDescriptor("wpkh(...)", "wallet"), start_index=5, now=NOW
        )
        await tx.execute(update(accounts).values(name="Ada", descriptor_id="wallet"))

    await services.database.write(set_wallet)
    await kept.back_up()
    restored = await kept.restore(key=kept.key, NODE_RPC_USER="nobody", NODE_RPC_PASSWORD="none")
    async with open_services(restored.config) as elsewhere:
        waiting, money = await backup_checks.check_restore(elsewhere)
        assert waiting.verdict is Verdict.WRONG
        assert "account start-index" in waiting.mend
        assert money.words.startswith("0 sat")
        read, write = elsewhere.database.read, elsewhere.database.write
        assert (await read(unassigned_money.listed)).searching == (("Ada",),)
        assert (await backup_checks.check_key_backup(elsewhere)).verdict is Verdict.OK, "it was just used"

        async def decide(index: str) -> Result:
            words = ["account", "start-index", "Ada", index, "--data", str(restored.config.data_folder)]
            return await asyncio.to_thread(CliRunner().invoke, app, words)

        assert "give that index or a higher one" in (await decide("4")).output
        assert (await decide("40")).exit_code == 0
        (search,) = await read(restores.searches)
        await write(partial(restores.end_search, search=search, now=NOW))
        assert await read(lambda tx: elsewhere.descriptors.next_index(tx, "wallet")) == 40
        waiting, _ = await backup_checks.check_restore(elsewhere)
        assert waiting.verdict is Verdict.OK


async def test_a_second_backup_at_once_is_refused_and_the_folder_is_free_again(kept: Kept) -> None:
    into = kept.folder / "busy"
    into.mkdir(mode=0o700)
    other = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(BackupRefused, match="is under way"):
        await kept.back_up(into=into)
    os.close(other)
    await kept.back_up(into=into)
    await kept.back_up(into=into)


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
