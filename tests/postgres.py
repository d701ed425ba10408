"""A private PostgreSQL cluster in a temporary folder, for as long as a test session runs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from signal import SIGINT

from regtest.processes import GuardedProcess, free_ports, remove_folder

START_TIMEOUT_S = 60
SUPERUSER = "postgres"
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "300"}
# A cluster that nobody crashes need not survive it.
FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresCluster:
    """Started by the constructor; `close()` stops it and removes its data.

    `durable`: what it committed survives `crash()`.
    """

    def __init__(self, programs: Path, *, durable: bool = False) -> None:
        self._programs = programs
        self._settings = SETTINGS if durable else SETTINGS | FORGETFUL
        # initdb refuses to work for root.
        self._user = _unprivileged_user() if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="bitcache-postgres-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        (self.port,) = free_ports(1)
        data = self.folder / "data"
        self._run(
            "initdb", "-D", str(data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
        )
        self.start()

    def start(self) -> None:
        """Start it (again), and wait until it answers."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        self._process = GuardedProcess(
            [self._programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options],
            log=self.folder / "output.log",
            doomed_folder=self.folder,
            folder=self.folder,
            user=self._user,
        )
        self._wait_ready()

    def stop(self) -> None:
        """The "fast" shutdown: sessions are cut, shared memory is given back."""
        self._process.terminate(signal_number=SIGINT)

    def crash(self) -> None:
        """SIGKILL to all of it."""
        self._process.kill()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, like: str | None = None) -> None:
        """Empty, or a copy of the database `like`, which nobody may be connected to."""
        template = ["--template", like] if like else []
        self._run("createdb", *self._address(), *template, name)

    def drop_database(self, name: str) -> None:
        self._run("dropdb", *self._address(), "--force", name)

    def close(self) -> None:
        self.stop()
        remove_folder(self.folder)

    def _address(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", SUPERUSER]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run([self._programs / "pg_isready", "-q", *self._address()], check=False).returncode:
            if not self._process.running or time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError(f"PostgreSQL did not start:\n{self._process.log_tail()}")
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        account = pwd.getpwnam(self._user) if self._user else None
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stderr}")


def find_programs() -> Path | None:
    """The folder with the newest PostgreSQL's `initdb` and `postgres`, which Debian keeps off the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    candidates = [*reversed(versions), *([Path(on_path).resolve().parent] if on_path else [])]
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


def _unprivileged_user() -> str:
    names = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
