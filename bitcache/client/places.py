"""Where the client keeps things, readable by the user alone, and written so that a crash loses nothing.

XDG base directories: configuration (tokens), data (receipts, channels), state (uploads under way).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bitcache.client.errors import AlreadyRunning
from bitcache.file_lock import lock_or_refuse
from storage.durable import make_folder, sync_folder

APPLICATION = "bitcache"
_DEFAULTS = {
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
}


def config_folder(environment: Mapping[str, str] = os.environ) -> Path:
    return _folder("XDG_CONFIG_HOME", environment)


def receipts_folder(environment: Mapping[str, str] = os.environ) -> Path:
    return _folder("XDG_DATA_HOME", environment) / "receipts"


def parcels_folder(environment: Mapping[str, str] = os.environ) -> Path:
    return _folder("XDG_DATA_HOME", environment) / "parcels"


def channels_folder(environment: Mapping[str, str] = os.environ) -> Path:
    return _folder("XDG_DATA_HOME", environment) / "channels"


def uploads_folder(environment: Mapping[str, str] = os.environ) -> Path:
    return _folder("XDG_STATE_HOME", environment) / "uploads"


def make_private_folder(folder: Path) -> None:
    """Create `folder` and what is missing above it, durably and for the user alone."""
    make_folder(folder, mode=0o700)


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, durably: after a crash it holds the old content or the new."""
    make_private_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock at `path` (left there; it is empty). Raises AlreadyRunning."""
    make_private_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        lock_or_refuse(
            descriptor, AlreadyRunning(f"{what} is already under way in another process. Wait for it.")
        )
        yield
    finally:
        os.close(descriptor)


def _folder(variable: str, environment: Mapping[str, str]) -> Path:
    # The specification says: a relative path is to be ignored.
    configured = environment.get(variable, "")
    if configured.startswith("/"):
        return Path(configured) / APPLICATION
    return Path(environment.get("HOME") or Path.home()) / _DEFAULTS[variable] / APPLICATION
