"""A backup's manifest: what belongs to it, and how to tell that nothing was altered.

    <folder>/manifest.json                  the backup; what it does not name is no part of it
    <folder>/<snapshot>/bitcache.db         or database.dump, of PostgreSQL
    <folder>/<snapshot>/bitcache.toml
    <folder>/<snapshot>/files               "<id> <size> whole" or "<id> <size> part", a line for each
    <folder>/<snapshot>/master.key          only if it was asked for
    <folder>/<snapshot>/channel.seed        with the master key, where channels are enabled
    <folder>/<snapshot>/uploads/<id>        what has come of unfinished uploads
    <folder>/blobs/<ab>/<id>                finished files

Its seal is an HMAC under the server's master key: who has the backup alone cannot alter it unseen.
"""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from bitcache.db.dump import NamedFile
from bitcache.errors import RestoreRefused
from bitcache.sealing import Sealer

MANIFEST_FILE_NAME = "manifest.json"
BLOBS_FOLDER_NAME = "blobs"
UPLOADS_FOLDER_NAME = "uploads"
MASTER_KEY_FILE_NAME = "master.key"
CHANNEL_SEED_FILE_NAME = "channel.seed"
FILES_FILE_NAME = "files"
FORMAT = 1
FINGERPRINT_BYTES = 8


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the snapshot."""

    size_bytes: int
    sha256: str


class Amount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    count: int
    size_bytes: int


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest.json`."""

    format: int
    version: str
    """Of the program that made it."""
    taken_at: int
    network: str
    database: str
    """`sqlite` or `postgresql`."""
    revision: str
    """Of the database's schema."""
    snapshot: str
    """Name of the folder with the files below."""
    files: dict[str, FileEntry]
    blobs: Amount
    uploads: Amount
    missing: list[str]
    """Ids of files whose bytes the server itself had lost."""
    master_key: str
    """Fingerprint of the key that seals the database."""
    seal: str = ""
    """HMAC-SHA256 of all the rest, in hex."""


def fingerprint(sealer: Sealer) -> str:
    """Tells master keys apart; from it nobody learns anything about the key."""
    return sealer.mac_key("fingerprint")[:FINGERPRINT_BYTES].hex()


def sealed(manifest: Manifest, sealer: Sealer) -> Manifest:
    return msgspec.structs.replace(manifest, seal=_seal(manifest, sealer))


def is_sealed(manifest: Manifest, sealer: Sealer) -> bool:
    """Whether nobody without this master key altered it."""
    return hmac.compare_digest(manifest.seal.encode(), _seal(manifest, sealer).encode())


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def encode_files(files: Iterable[NamedFile]) -> bytes:
    """The file FILES_FILE_NAME."""
    return b"".join(
        f"{file.id} {file.size_bytes} {'whole' if file.complete else 'part'}\n".encode() for file in files
    )


def decode_files(octets: bytes) -> tuple[NamedFile, ...]:
    """Its hash was checked."""
    lines = (line.split() for line in octets.decode().splitlines())
    return tuple(NamedFile(file_id, int(size), state == "whole") for file_id, size, state in lines)


def read(folder: Path) -> Manifest | None:
    """The manifest of the backup in `folder`; None if there is none. Raises RestoreRefused."""
    path = folder / MANIFEST_FILE_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as exc:
        raise RestoreRefused(f"{path} is damaged or not of a backup ({exc}). Take another backup.") from exc
    if manifest.format != FORMAT:
        raise RestoreRefused(
            f"{path} is of format {manifest.format}, this version reads {FORMAT}: use the newer version."
        )
    if Path(manifest.snapshot).name != manifest.snapshot or any(Path(f).name != f for f in manifest.files):
        raise RestoreRefused(f"{path} names files outside its folder: it was altered. Take another backup.")
    return manifest


def entry_of(path: Path) -> FileEntry:
    """Reads the whole file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(size_bytes=file.tell(), sha256=digest)


def _seal(manifest: Manifest, sealer: Sealer) -> str:
    unsealed = msgspec.structs.replace(manifest, seal="")
    octets = msgspec.json.encode(unsealed, order="deterministic")
    return hmac.new(sealer.mac_key("backup-manifest"), octets, "sha256").hexdigest()
