"""A backup of the whole server, taken while it serves.

The database comes first, as it is at one moment; then the blobs it names, which are there by then and never
change. Each backup into a folder adds what is new. The rename of the manifest makes it the backup, and only
then goes what the one before alone needed: whenever it is interrupted, the one before is whole.
"""

import asyncio
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy import insert, select, update

from bitcache import VERSION, backup_manifest
from bitcache.backup_manifest import (
    BLOBS_FOLDER_NAME,
    CHANNEL_SEED_FILE_NAME,
    FILES_FILE_NAME,
    FORMAT,
    MANIFEST_FILE_NAME,
    MASTER_KEY_FILE_NAME,
    UPLOADS_FOLDER_NAME,
    Amount,
    Manifest,
    entry_of,
)
from bitcache.channel_seed import read_channel_seed
from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.db import dump
from bitcache.db.dump import Dump, NamedFile
from bitcache.db.engine import Database
from bitcache.db.tables import files, master_key_backups
from bitcache.errors import BackupRefused
from bitcache.file_lock import lock_or_refuse
from bitcache.master_key import create_private, read_master_key
from bitcache.sealing import Sealer
from payments.ports import Transaction
from storage.durable import sync_folder
from storage.local import blob_paths
from storage.mirror import copy_durably, forget_blobs_but, mirror_blob, sync_shards

SNAPSHOT_PREFIX = "snapshot-"
ATTEMPTS_MAX = 3
"""Files that are deleted between database and blobs make a backup begin anew."""
IDS_PER_QUERY = 500


@dataclass(frozen=True, slots=True)
class BackupDone:
    manifest: Manifest
    copied: Amount
    """Of the blobs, those that were not there from the backup before."""


@dataclass(slots=True)
class _Copied:
    """What one attempt brought together."""

    new_count: int = 0
    new_bytes: int = 0
    uploads_count: int = 0
    uploads_bytes: int = 0
    lacking: list[str] = field(default_factory=list)
    """Ids of files whose bytes were not there."""


async def back_up(config: Config, folder: Path, *, with_master_key: bool, now: int) -> BackupDone:
    """Bring the backup in `folder` up to date, or begin one.

    `with_master_key`: the channel seed too, where there are channels. Raises BackupRefused,
    MasterKeyUnusable, ChannelSeedUnusable.
    """
    master_key = read_master_key(config.master_key)
    with_seed = with_master_key and config.channels.enabled
    seed = read_channel_seed(config.channel_seed) if with_seed else None
    sealer = Sealer(master_key)
    _make_folder(folder)
    with _alone(folder):
        _check_folder(folder, sealer)
        database = Database(config.database)
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                snapshot = folder / f"{SNAPSHOT_PREFIX}{_stamp(now)}-{secrets.token_hex(4)}"
                snapshot.mkdir(mode=0o700)
                taken = await dump.dump(database, snapshot)
                copied = await asyncio.to_thread(_copy_blobs, config.blobs, folder, snapshot, taken.files)
                # What was deleted since is no damage, and a backup without it would look damaged.
                kept = await database.read(partial(_still_named, ids=copied.lacking))
                if len(kept) == len(copied.lacking) or attempt == ATTEMPTS_MAX:
                    break
        finally:
            await database.close()
        if with_master_key:
            create_private(snapshot / MASTER_KEY_FILE_NAME, master_key)
        if seed is not None:
            create_private(snapshot / CHANNEL_SEED_FILE_NAME, seed)
        copy_durably(config.data_folder / CONFIG_FILE_NAME, snapshot / CONFIG_FILE_NAME)
        create_private(snapshot / FILES_FILE_NAME, backup_manifest.encode_files(taken.files))
        manifest = backup_manifest.sealed(_manifest(config, snapshot, taken, copied, sealer, now), sealer)
        await asyncio.to_thread(_conclude, folder, snapshot, manifest, taken.files)
    return BackupDone(manifest, Amount(count=copied.new_count, size_bytes=copied.new_bytes))


def copy_master_key(config: Config, path: Path) -> str:
    """A copy of the master key in a new file that only its owner can read; the key's fingerprint.

    Raises BackupRefused, MasterKeyUnusable.
    """
    master_key = read_master_key(config.master_key)
    try:
        create_private(path, master_key)
    except FileExistsError as exc:
        raise BackupRefused(f"{path} is there already and was not touched. Name a new file.") from exc
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise BackupRefused(
            f"{path} cannot be written ({reason}). Name a new file, in a folder that is there."
        ) from exc
    sync_folder(path.absolute().parent)
    return backup_manifest.fingerprint(Sealer(master_key))


async def note_key_backup(tx: Transaction, fingerprint: str, *, now: int) -> None:
    """Remember that this key was copied, so that the doctor need not warn."""
    known = await key_backed_up_at(tx, fingerprint)
    if known is None:
        await tx.execute(insert(master_key_backups).values(fingerprint=fingerprint, backed_up_at=now))
    else:
        await tx.execute(
            update(master_key_backups)
            .where(master_key_backups.c.fingerprint == fingerprint)
            .values(backed_up_at=now)
        )


async def key_backed_up_at(tx: Transaction, fingerprint: str) -> int | None:
    """When this key was last copied, as far as this database knows."""
    at: int | None = await tx.scalar(
        select(master_key_backups.c.backed_up_at).where(master_key_backups.c.fingerprint == fingerprint)
    )
    return at


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BackupRefused(f"Others can look into {folder}. Run: chmod 700 {folder}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two backups at once into one folder would each delete what the other made."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock_or_refuse(file, BackupRefused(f"Another backup into {folder} is under way. Wait for it."))
        yield
    finally:
        os.close(file)


def _check_folder(folder: Path, sealer: Sealer) -> None:
    """It holds nothing but backups of this server."""
    theirs = sorted(path.name for path in folder.iterdir() if not _is_ours(path))
    if theirs:
        raise BackupRefused(
            f"{folder} holds other things, such as {theirs[0]}: name an empty folder, or a new one."
        )
    previous = backup_manifest.read(folder)
    if previous is not None and previous.master_key != backup_manifest.fingerprint(sealer):
        raise BackupRefused(
            f"{folder} holds the backup of a server with another master key: name a folder of its own."
        )


def _is_ours(path: Path) -> bool:
    return path.name.startswith((SNAPSHOT_PREFIX, MANIFEST_FILE_NAME)) or path.name in {
        BLOBS_FOLDER_NAME,
        "lost+found",
    }


def _copy_blobs(source: Path, folder: Path, snapshot: Path, named: Iterable[NamedFile]) -> _Copied:
    blobs, uploads = folder / BLOBS_FOLDER_NAME, snapshot / UPLOADS_FOLDER_NAME
    for made in (blobs, uploads):
        made.mkdir(mode=0o700, exist_ok=True)
    copied = _Copied()
    for file in named:
        try:
            if file.complete:
                if mirror_blob(source, blobs, file.id, file.size_bytes):
                    copied.new_count += 1
                    copied.new_bytes += file.size_bytes
            else:
                copied.uploads_bytes += _copy_upload(source, uploads, file.id)
                copied.uploads_count += 1
        except FileNotFoundError:
            copied.lacking.append(file.id)
    sync_shards(blobs)
    sync_folder(uploads)
    return copied


def _copy_upload(source: Path, uploads: Path, file_id: str) -> int:
    """What has come of an unfinished upload, and maybe more; its bytes. Raises FileNotFoundError."""
    finished, uploading = blob_paths(source, file_id)
    target = uploads / file_id
    try:
        copy_durably(uploading, target)
    except FileNotFoundError:
        copy_durably(finished, target)  # since the snapshot; the last request of its upload can come again
    return target.stat().st_size


async def _still_named(tx: Transaction, ids: list[str]) -> set[str]:
    """Those of these files that the running server still has."""
    found: set[str] = set()
    for start in range(0, len(ids), IDS_PER_QUERY):
        some = ids[start : start + IDS_PER_QUERY]
        found |= set((await tx.scalars(select(files.c.id).where(files.c.id.in_(some)))).all())
    return found


def _manifest(
    config: Config, snapshot: Path, taken: Dump, copied: _Copied, sealer: Sealer, now: int
) -> Manifest:
    whole = [file for file in taken.files if file.complete and file.id not in copied.lacking]
    return Manifest(
        format=FORMAT,
        version=VERSION,
        taken_at=now,
        network=config.network,
        database="sqlite" if taken.path.name == dump.SQLITE_FILE_NAME else "postgresql",
        revision=taken.revision,
        snapshot=snapshot.name,
        files={path.name: entry_of(path) for path in sorted(snapshot.iterdir()) if path.is_file()},
        blobs=Amount(count=len(whole), size_bytes=sum(file.size_bytes for file in whole)),
        uploads=Amount(count=copied.uploads_count, size_bytes=copied.uploads_bytes),
        missing=sorted(copied.lacking),
        master_key=backup_manifest.fingerprint(sealer),
    )


def _conclude(folder: Path, snapshot: Path, manifest: Manifest, named: Iterable[NamedFile]) -> None:
    """Make it the backup, then delete what no backup needs any more."""
    sync_folder(snapshot)
    sync_folder(folder)
    written = folder / f"{MANIFEST_FILE_NAME}.new"
    written.unlink(missing_ok=True)
    create_private(written, backup_manifest.encode(manifest))
    written.rename(folder / MANIFEST_FILE_NAME)
    sync_folder(folder)
    for old in folder.glob(f"{SNAPSHOT_PREFIX}*"):
        if old != snapshot:
            shutil.rmtree(old)
    forget_blobs_but(folder / BLOBS_FOLDER_NAME, {file.id for file in named if file.complete})


def _stamp(now: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
