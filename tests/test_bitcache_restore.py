"""What a restore refuses before it writes anything, and what is left of one, or of a backup, cut off."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs

from bitcache import backup_manifest
from bitcache.backup_manifest import Manifest
from bitcache.errors import MasterKeyUnusable, RestoreRefused
from bitcache.master_key import write_master_key
from bitcache.restore import Restored, restore
from bitcache.sealing import Sealer
from tests.client_shop import tree
from tests.kept_shop import NOW, Kept, open_kept


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
    async with open_kept(folder, sizes={"one": 5_000, "two": 0}) as kept:
        await kept.back_up()
        _copy_data(kept, folder / "before")
        await kept.shop.sell(kept.shop.files("more", {"three": 6_000}))
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


def _linked(pattern: str) -> Callable[[Stored], None]:
    """As one who can write to the backup, and not read what the server can, might alter it."""

    def alter(stored: Stored) -> None:
        found = max(stored.backup.glob(pattern), key=lambda path: path.stat().st_size)
        secret = stored.backup.parent / "secret"
        shutil.copyfile(found, secret)
        found.unlink()
        found.symlink_to(secret)

    return alter


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
        (_linked("blobs/*/*"), "lacks file"),
        (_linked("snapshot-*/bitcache.toml"), "not the file"),
        (_full_folder, "is there already"),
    ],
)
async def test_refused(stored: Stored, alter: Callable[[Stored], None], words: str) -> None:
    alter(stored)
    before = tree(stored.target)
    with pytest.raises(RestoreRefused, match=words):
        await stored.restore()
    assert tree(stored.target) == before


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
async def test_a_journal_that_another_database_left_is_not_played_back(
    stored: Stored, tmp_path: Path, suffix: str
) -> None:
    database = tmp_path / "elsewhere.db"
    database.with_name(database.name + suffix).touch()
    before = tree(tmp_path)
    with pytest.raises(RestoreRefused, match=f"elsewhere.db{suffix} is there already"):
        await restore(
            stored.backup,
            stored.target,
            master_key_file=stored.key,
            environment={"BITCACHE_DATABASE_URL": f"sqlite+aiosqlite:///{database}"},
            now=NOW + 60,
        )
    assert tree(tmp_path) == before


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


async def test_a_key_that_does_not_open_what_is_sealed_is_refused(tmp_path: Path) -> None:
    """The server runs with a key that is not its database's: the backup is sealed with the wrong one."""
    async with open_kept(tmp_path) as kept:
        kept.key.unlink()
        write_master_key(kept.key)
        await kept.back_up()
        with pytest.raises(RestoreRefused, match="does not open what is sealed"):
            await kept.restore(key=kept.key)
        assert not (tmp_path / "restored").exists()


def _copy_data(kept: Kept, target: Path) -> None:
    """The data folder as a server that was stopped leaves it."""
    shutil.copytree(kept.config.data_folder, target, ignore=shutil.ignore_patterns("bitcache.db*"))
    with closing(sqlite3.connect(kept.config.data_folder / "bitcache.db")) as database:
        database.execute("VACUUM INTO ?", (str(target / "bitcache.db"),))
