"""Puts a backup back: into a new data folder, which starts when everything is in it and not before.

Everything is checked first: the manifest's seal and hashes, the master key, the blobs, the places to write
to. Then the parts are made beside their places and renamed, the configuration last. The database is marked as
restored, so that no address is handed out twice.
"""

import asyncio
import sqlite3
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitcache import backup_manifest
from bitcache.backup import note_key_backup
from bitcache.backup_manifest import (
    BLOBS_FOLDER_NAME,
    CHANNEL_SEED_FILE_NAME,
    FILES_FILE_NAME,
    MANIFEST_FILE_NAME,
    MASTER_KEY_FILE_NAME,
    UPLOADS_FOLDER_NAME,
    Manifest,
    entry_of,
)
from bitcache.channel_seed import fingerprint
from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.config_file import parse
from bitcache.db import dump, migrate
from bitcache.db.dump import NamedFile
from bitcache.db.engine import Database
from bitcache.errors import RestoreRefused, SealBroken
from bitcache.master_key import create_private, read_master_key
from bitcache.restore_places import Places, normal
from bitcache.sealing import Sealer
from payments import restores
from payments.ports import Transaction
from storage.local import blob_paths
from storage.mirror import copy_durably, is_whole, mirror_blob, sync_shards

SEALED_COLUMNS = (("descriptors", "sealed_text"), ("parcels", "sealed_release_secret"))


@dataclass(frozen=True, slots=True)
class Restored:
    manifest: Manifest
    config: Config


@dataclass(frozen=True, slots=True)
class CheckedBackup:
    """A backup that can be put back."""

    folder: Path
    manifest: Manifest
    master_key: bytes
    config: Config
    """As it will be read from the new data folder."""
    files: tuple[NamedFile, ...]

    @property
    def snapshot(self) -> Path:
        return self.folder / self.manifest.snapshot

    @property
    def database(self) -> Path:
        sqlite = self.manifest.database == "sqlite"
        return self.snapshot / (dump.SQLITE_FILE_NAME if sqlite else dump.POSTGRESQL_FILE_NAME)


async def restore(
    folder: Path,
    data_folder: Path,
    *,
    master_key_file: Path | None,
    environment: Mapping[str, str],
    now: int,
) -> Restored:
    """Make `data_folder` from the backup in `folder`.

    Raises RestoreRefused, MasterKeyUnusable, ConfigInvalid.
    """
    checked = check(folder, normal(data_folder), master_key_file, environment)
    places = Places(checked.config, with_seed=CHANNEL_SEED_FILE_NAME in checked.manifest.files)
    places.check_free()
    await _check_database(checked)
    try:
        await asyncio.to_thread(_stage, checked, places)
        await _prepare_database(checked, places, now)
        places.move_in()
    except BaseException:
        places.clear()
        raise
    return Restored(checked.manifest, checked.config)


def check(
    folder: Path, data_folder: Path, master_key_file: Path | None, environment: Mapping[str, str]
) -> CheckedBackup:
    """Whether the backup is whole, and the key its own. Raises RestoreRefused, MasterKeyUnusable."""
    manifest = backup_manifest.read(folder)
    if manifest is None:
        raise RestoreRefused(f"{folder} holds no whole backup: it has no {MANIFEST_FILE_NAME}.")
    if not migrate.knows(manifest.revision):
        raise RestoreRefused(
            f"The backup's database is at revision {manifest.revision}, made by version {manifest.version}: "
            "this version does not know it. Install that version or a newer one."
        )
    snapshot = folder / manifest.snapshot
    for name, entry in manifest.files.items():
        path = snapshot / name
        if not _is_plain_file(path) or entry_of(path) != entry:
            raise RestoreRefused(
                f"{path} is not the file that the backup was made with. Take another backup."
            )
    master_key = _master_key(snapshot, manifest, master_key_file)
    document = tomllib.loads((snapshot / CONFIG_FILE_NAME).read_text())
    config = parse(document, data_folder=data_folder, variables=environment)
    if config.network != manifest.network:
        raise RestoreRefused(
            f"The backup is of {manifest.network}, the configuration says {config.network}: unset "
            "BITCACHE_NETWORK."
        )
    files = backup_manifest.decode_files((snapshot / FILES_FILE_NAME).read_bytes())
    _check_blobs(folder, manifest, files)
    return CheckedBackup(folder, manifest, master_key, config, files)


def _master_key(snapshot: Path, manifest: Manifest, given: Path | None) -> bytes:
    """The key that the backup was sealed with."""
    path = given or snapshot / MASTER_KEY_FILE_NAME
    if given is None and MASTER_KEY_FILE_NAME not in manifest.files:
        raise RestoreRefused("The backup is without the master key: give your copy with --master-key FILE.")
    master_key = read_master_key(path)
    sealer = Sealer(master_key)
    if backup_manifest.fingerprint(sealer) != manifest.master_key:
        raise RestoreRefused(
            f"{path} is another master key: {backup_manifest.fingerprint(sealer)}, and the backup needs "
            f"{manifest.master_key}. Give the key that the server had."
        )
    if not backup_manifest.is_sealed(manifest, sealer):
        raise RestoreRefused("The manifest was altered after the backup was made. Take another backup.")
    return master_key


def _check_blobs(folder: Path, manifest: Manifest, files: Iterable[NamedFile]) -> None:
    lost = set(manifest.missing)
    for file in files:
        if file.id in lost:
            continue
        there = (
            is_whole(folder / BLOBS_FOLDER_NAME, file.id, file.size_bytes)
            if file.complete
            else _is_plain_file(folder / manifest.snapshot / UPLOADS_FOLDER_NAME / file.id)
        )
        if not there:
            raise RestoreRefused(
                f"The backup lacks file {file.id} of {file.size_bytes} bytes. Take another backup, or copy "
                "what is missing into this one."
            )


def _is_plain_file(path: Path) -> bool:
    """No link, which could put a file of this machine into what is served."""
    return path.is_file() and not path.is_symlink()


async def _check_database(checked: CheckedBackup) -> None:
    """The key opens it, and there is a place for it."""
    sealer = Sealer(checked.master_key)
    database = Database(checked.config.database)
    try:
        if database.is_sqlite != (checked.manifest.database == "sqlite"):
            raise RestoreRefused(
                f"The backup's database is of {checked.manifest.database}, and `database_url` is not: "
                "correct it, by BITCACHE_DATABASE_URL."
            )
        if database.is_sqlite:
            _check_seals(checked.database, sealer)
        elif not await dump.is_empty(database):
            raise RestoreRefused(
                f"The database {database.url!r} is not empty. Make a new one, and name it by "
                "BITCACHE_DATABASE_URL or BITCACHE_DATABASE_URL_FILE."
            )
    finally:
        await database.close()


def _check_seals(path: Path, sealer: Sealer) -> None:
    """Every secret in the database was sealed under this key."""
    try:
        with closing(dump.read_sqlite(path)) as database:
            for table, column in SEALED_COLUMNS:
                chosen = f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL"  # noqa: S608  # constants
                for row_id, value in database.execute(chosen):
                    sealer.open(value, table=table, row_id=row_id)
    except sqlite3.Error as exc:
        raise RestoreRefused(f"The database in the backup cannot be read: {exc}.") from exc
    except SealBroken as exc:
        raise RestoreRefused(f"This master key does not open what is sealed in the database: {exc}.") from exc


def _stage(checked: CheckedBackup, places: Places) -> None:
    """Make every part but an SQL server's database, on disk, beside its place."""
    places.make_folders()
    copy_durably(checked.snapshot / CONFIG_FILE_NAME, places.staged(places.config))
    create_private(places.staged(places.master_key), checked.master_key)
    if places.channel_seed is not None:
        seed = (checked.snapshot / CHANNEL_SEED_FILE_NAME).read_bytes()
        create_private(places.staged(places.channel_seed), seed)
    if places.database is not None:
        copy_durably(checked.database, places.staged(places.database))
    blobs, lost = places.staged(places.blobs), set(checked.manifest.missing)
    for file in checked.files:
        if file.id in lost:
            continue
        if file.complete:
            mirror_blob(checked.folder / BLOBS_FOLDER_NAME, blobs, file.id, file.size_bytes)
        else:
            uploading = blob_paths(blobs, file.id)[1]
            uploading.parent.mkdir(mode=0o700, exist_ok=True)
            copy_durably(checked.snapshot / UPLOADS_FOLDER_NAME / file.id, uploading)
    sync_shards(blobs)


async def _prepare_database(checked: CheckedBackup, places: Places, now: int) -> None:
    """Bring it up to date, and mark it: what was sold since the backup is not in it."""
    url = checked.config.database
    if places.database is not None:
        url = f"sqlite+aiosqlite:///{places.staged(places.database)}"
    database = Database(url)
    try:
        if places.database is None:
            await dump.put_back(checked.database, database)
        await migrate.upgrade(database)
        await database.write(partial(_mark, checked=checked, now=now))
    finally:
        await database.close()


async def _mark(tx: Transaction, *, checked: CheckedBackup, now: int) -> None:
    await restores.note_restore(tx, taken_at=checked.manifest.taken_at, now=now)
    await note_key_backup(tx, checked.manifest.master_key, now=now)
    if CHANNEL_SEED_FILE_NAME in checked.manifest.files:
        seed = (checked.snapshot / CHANNEL_SEED_FILE_NAME).read_bytes()
        await note_key_backup(tx, fingerprint(seed), now=now)
