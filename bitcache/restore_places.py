"""Where the parts of a restored server are made, and how they get to their places.

Parts inside the data folder are made in a folder in it, those elsewhere beside their places: a rename moves
each. Without its configuration a data folder does not start, so that comes last.
"""

import os
import shutil
from pathlib import Path

from sqlalchemy import make_url

from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.errors import RestoreRefused
from storage.durable import sync_folder

STAGED_SUFFIX = ".restoring"
STAGING_FOLDER_NAME = ".restoring"
SQLITE_SUFFIXES = ("-wal", "-shm", "-journal")


class Places:
    """Where the parts of a server go, and where they are made."""

    def __init__(self, config: Config, *, with_seed: bool = False) -> None:
        self._data_folder = config.data_folder
        self._staging = config.data_folder / STAGING_FOLDER_NAME
        self.config = config.data_folder / CONFIG_FILE_NAME
        self.blobs = normal(config.blobs)
        self.master_key = normal(config.master_key)
        self.channel_seed = normal(config.channel_seed) if with_seed else None
        url = make_url(config.database)
        on_sqlite = url.get_backend_name() == "sqlite"
        self.database = normal(Path(url.database or "")) if on_sqlite else None
        parts = (self.blobs, self.database, self.master_key, self.channel_seed, self.config)
        self._parts = [part for part in parts if part is not None]
        self._moved_in: list[Path] = []

    def check_free(self) -> None:
        """Raises RestoreRefused."""
        remains = [self._data_folder, *(part for part in self._parts if not self._inside(part))]
        if self.database is not None:
            # SQLite would play back the journal of the database that was here into the one that comes.
            remains += [self.database.with_name(self.database.name + suffix) for suffix in SQLITE_SUFFIXES]
        for place in [*remains, *(self.staged(part) for part in self._parts if not self._inside(part))]:
            if place.exists() and not (place.is_dir() and not any(place.iterdir())):
                raise RestoreRefused(
                    f"{place} is there already, and nothing is overwritten. Name a new folder; what an "
                    "interrupted restore left there can be deleted."
                )

    def staged(self, part: Path) -> Path:
        """Where a part is made: on the file system of its place."""
        if self._inside(part):
            return self._staging / part.relative_to(self._data_folder)
        return part.with_name(part.name + STAGED_SUFFIX)

    def make_folders(self) -> None:
        self._data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._data_folder.chmod(0o700)
        self._staging.mkdir(mode=0o700)
        for part in self._parts:
            self.staged(part).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.staged(self.blobs).mkdir(mode=0o700)

    def move_in(self) -> None:
        """Every part to its place, durably, the configuration last."""
        for part in self._parts:
            part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self.staged(part).parent)
            self._moved_in.append(part)
            self.staged(part).rename(part)
            sync_folder(part.parent)
        shutil.rmtree(self._staging)
        sync_folder(self._data_folder)
        sync_folder(self._data_folder.parent)

    def clear(self) -> None:
        """Take away what was made so far."""
        shutil.rmtree(self._staging, ignore_errors=True)
        outside = [self.staged(part) for part in self._parts if not self._inside(part)]
        for made in [*outside, *self._moved_in]:
            if made.is_dir():
                shutil.rmtree(made, ignore_errors=True)
            else:
                made.unlink(missing_ok=True)

    def _inside(self, part: Path) -> bool:
        return part.is_relative_to(self._data_folder)


def normal(path: Path) -> Path:
    """Without `..` and the like."""
    return Path(os.path.normpath(path))
