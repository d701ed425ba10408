"""What an upload must not forget when it is killed: keys, headers, digests of all chunks before they leave.

AES-GCM breaks if one key and nonce ever seal two different chunks, so a chunk that was perhaps sent is only
ever sent again with the digest recorded here; where the source has changed, the file starts anew with fresh
keys. SQLite, mode 0600, each change durable before the method returns. Methods block; threads may call them.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitcache.client.places import make_private_folder
from bitcache.client.sources import Source
from storage import keys, stream

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size_bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, file_key BLOB NOT NULL, header BLOB NOT NULL, request_key TEXT NOT NULL,
    file_id TEXT, wrapped_key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    file_number INTEGER NOT NULL, part_no INTEGER NOT NULL, digests BLOB NOT NULL,
    PRIMARY KEY (file_number, part_no)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class FileState:
    """One file under way. `digests` of its parts are asked for one by one."""

    number: int
    path: str
    size_bytes: int
    modified_ns: int
    file_key: bytes
    header: bytes
    request_key: str
    """Makes the announcement of the file to the server happen once."""
    file_id: str | None
    wrapped_key: bytes


class UploadState:
    """The state of one upload command. `close()` keeps it, `remove()` ends it."""

    def __init__(self, path: Path) -> None:
        make_private_folder(path.parent)
        self._path = path
        # SQLite would create it with the umask's mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # EXTRA: with FULL a power cut can bring the journal back, and with it undo what was just committed.
        self._database.executescript(f"PRAGMA synchronous = EXTRA; {SCHEMA}")
        self.link_secret = self._secret("link_secret")
        self.release_secret = self._secret("release_secret")

    def close(self) -> None:
        self._database.close()

    def remove(self) -> None:
        """The upload is done: forget it."""
        self.close()
        self._path.unlink()

    def file(self, source: Source) -> FileState:
        """What is known of `source`; a new or changed one starts with fresh keys."""
        known = self._load(source.path)
        if known is not None and (known.size_bytes, known.modified_ns) == (
            source.size_bytes,
            source.modified_ns,
        ):
            return known
        return self.start_anew(source)

    def start_anew(self, source: Source) -> FileState:
        """Fresh keys for `source`; nothing that was sent of it counts any more."""
        file_key, header = keys.new_secret(), stream.new_header()
        parcel_key = keys.parcel_key(self.link_secret, self.release_secret)
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._forget(source.path)
            self._database.execute(
                "INSERT INTO files (path, size_bytes, modified_ns, file_key, header, request_key,"
                " wrapped_key) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    source.path,
                    source.size_bytes,
                    source.modified_ns,
                    file_key,
                    header,
                    os.urandom(16).hex(),
                    keys.wrap_file_key(parcel_key, file_key, header),
                ),
            )
        state = self._load(source.path)
        assert state is not None
        return state

    def keep_only(self, paths: Iterable[str]) -> None:
        """Forget files that are not uploaded any more, and a parcel that held other files than these."""
        wanted = set(paths)
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            known = {path for (path,) in self._database.execute("SELECT path FROM files")}
            for path in known - wanted:
                self._forget(path)

    def set_file_id(self, file: FileState, file_id: str | None) -> None:
        """The server's id; None: it knows the file no more, so that it must be announced again."""
        self._execute(
            "UPDATE files SET file_id = ?, request_key = ? WHERE number = ?",
            (file_id, file.request_key if file_id else os.urandom(16).hex(), file.number),
        )

    def digests(self, file: FileState, part_no: int) -> bytes | None:
        """Digests of the chunks of a part that was, or was about to be, sent; None if it was not."""
        row = self._one(
            "SELECT digests FROM parts WHERE file_number = ? AND part_no = ?", (file.number, part_no)
        )
        return None if row is None else bytes(row[0])

    def record_digests(self, file: FileState, part_no: int, digests: bytes) -> None:
        """To be called before the first byte of the part is sent."""
        self._execute("INSERT INTO parts VALUES (?, ?, ?)", (file.number, part_no, digests))

    def all_digests(self, file: FileState) -> bytes:
        """The digests of all parts on record, in order."""
        with self._lock:
            rows = self._database.execute(
                "SELECT digests FROM parts WHERE file_number = ? ORDER BY part_no", (file.number,)
            ).fetchall()
        return b"".join(digests for (digests,) in rows)

    def fact(self, name: str) -> bytes | None:
        row = self._one("SELECT value FROM facts WHERE name = ?", (name,))
        return None if row is None else bytes(row[0])

    def set_fact(self, name: str, value: bytes) -> None:
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _secret(self, name: str) -> bytes:
        """The secret of this name, made at the first run."""
        self._execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, keys.new_secret()))
        secret = self.fact(name)
        assert secret is not None
        return secret

    def _load(self, path: str) -> FileState | None:
        row = self._one(
            "SELECT number, path, size_bytes, modified_ns, file_key, header, request_key, file_id,"
            " wrapped_key FROM files WHERE path = ?",
            (path,),
        )
        return None if row is None else FileState(*row)

    def _forget(self, path: str) -> None:
        # The parcel, if there is one already, was made of other files.
        self._database.execute("DELETE FROM facts WHERE name = 'parcel_id'")
        self._database.execute(
            "DELETE FROM parts WHERE file_number IN (SELECT number FROM files WHERE path = ?)", (path,)
        )
        self._database.execute("DELETE FROM files WHERE path = ?", (path,))

    def _one(self, statement: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._database.execute(statement, values).fetchone()
        return row

    def _execute(self, statement: str, values: tuple[object, ...]) -> None:
        with self._lock:
            self._database.execute(statement, values)
