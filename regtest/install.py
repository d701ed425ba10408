"""Find a bitcoind that runs here, or fetch a private one. Standard library only.

Looked for in this order: `$BITCOIND`, then `bitcoind` on the PATH, then, on Debian, a copy of our own in
the cache folder: Bitcoin Knots (a derivative of Bitcoin Core with the same RPC) from the machine's own Debian
mirror. apt does the work with a private configuration, so neither root nor any change to the machine is
needed. Elsewhere the error says how to install Bitcoin Core.

`python -m regtest.install` prints the path.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from regtest.errors import BitcoindMissing

# `getdescriptorinfo` lists multipath branches from version 29 on.
OLDEST_MAJOR_VERSION = 29
# The package depends on libraries newer than those of older Debian releases, so all of them come along.
DEBIAN_SUITES = "trixie trixie-backports"
DEBIAN_PACKAGE = "bitcoin-knots"
DEBIAN_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
APT_TIMEOUT_S = 540

HOW_TO_INSTALL = (
    f"Install Bitcoin Core {OLDEST_MAJOR_VERSION} or newer from https://bitcoincore.org/en/download/ "
    "(macOS: brew install bitcoin) and put bitcoind on the PATH, or set BITCOIND=/path/to/bitcoind."
)

# The loader of the same release starts the program, because this machine's C library may be older.
WRAPPER = """#!/bin/sh
root=${0%/*}
exec "$root/LOADER" --library-path "$root/LIBRARIES" "$root/usr/bin/bitcoind" "$@"
"""


@dataclass(frozen=True)
class BitcoindInstallation:
    """A bitcoind that was seen to run: its path, and its version such as `29.5.0` or `29.5.knots20260508`."""

    path: Path
    version: str


def find_bitcoind() -> BitcoindInstallation:
    """The bitcoind to use on this machine; fetches one on Debian if there is none.

    Raises BitcoindMissing with advice if there is none and none can be fetched.
    """
    chosen = os.environ.get("BITCOIND")
    if chosen:
        installation = probe(Path(chosen).absolute())
        if installation is None:
            raise BitcoindMissing(
                f"BITCOIND={chosen} does not run, or is older than version {OLDEST_MAJOR_VERSION}. "
                f"{HOW_TO_INSTALL}"
            )
        return installation
    on_path = shutil.which("bitcoind")
    if on_path and (installation := probe(Path(on_path).absolute())):
        return installation
    return _private_copy()


def probe(path: Path) -> BitcoindInstallation | None:
    """The installation at `path`, or None if it does not run here or is too old."""
    try:
        answer = subprocess.run(
            [path, "-version"],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"version v?((\d+)\.\S+)", answer.stdout)
    if found is None or int(found[2]) < OLDEST_MAJOR_VERSION:
        return None
    return BitcoindInstallation(path=path, version=found[1])


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/bitcache` or `~/.cache/bitcache`: for what is made once per user. Created if needed.

    A user without a writable home gets one of their own under the temporary folder.
    """
    home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path(home) / ".cache")
    folder = base / "bitcache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"bitcache-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Anyone may create names there: run nothing out of a folder that someone else can write.
    seen = folder.lstat()
    if seen.st_uid != os.getuid() or seen.st_mode & 0o077 or folder.is_symlink():
        raise BitcoindMissing(f"{folder} is not private to you. Remove it, or set XDG_CACHE_HOME.")
    return folder


@contextmanager
def exclusively(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder`, so that two processes do not make the same thing at once."""
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _private_copy() -> BitcoindInstallation:
    folder = cache_folder()
    prefix = folder / f"{DEBIAN_PACKAGE}-{os.uname().machine}"
    with exclusively(folder, prefix.name):
        if installation := probe(prefix / "bitcoind"):
            return installation
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as name:
            unpacked = _fetch(Path(name))
            if probe(unpacked / "bitcoind") is None:
                raise BitcoindMissing(f"The fetched {DEBIAN_PACKAGE} does not run here. {HOW_TO_INSTALL}")
            shutil.rmtree(prefix, ignore_errors=True)
            unpacked.rename(prefix)
        installation = probe(prefix / "bitcoind")
    if installation is None:
        raise BitcoindMissing(f"{prefix} stopped running after it was moved there. {HOW_TO_INSTALL}")
    return installation


def _fetch(work: Path) -> Path:
    """Download and unpack the package with all it depends on; the folder with the starter `bitcoind`."""
    configuration = _private_apt(work)
    print(f"fetching {DEBIAN_PACKAGE} (about 35 MB, once) ...", file=sys.stderr, flush=True)
    _apt(configuration, "apt-get", "update")
    _apt(
        configuration,
        "apt-get",
        "--download-only",
        "--no-install-recommends",
        "-y",
        "install",
        DEBIAN_PACKAGE,
    )
    unpacked = work / "unpacked"
    unpacked.mkdir()
    for archive in sorted((work / "cache" / "archives").glob("*.deb")):
        _apt(configuration, "dpkg-deb", "-x", str(archive), str(unpacked))
    loaders = sorted(unpacked.glob("usr/lib/*/ld-linux*.so.*"))
    if not loaders:
        raise BitcoindMissing(f"{DEBIAN_PACKAGE} came without a loader. {HOW_TO_INSTALL}")
    loader = loaders[0].relative_to(unpacked)
    starter = unpacked / "bitcoind"
    starter.write_text(WRAPPER.replace("LOADER", str(loader)).replace("LIBRARIES", str(loader.parent)))
    starter.chmod(0o755)
    return unpacked


def _private_apt(work: Path) -> Path:
    """An apt configuration that lives in `work` alone and knows nothing but the machine's Debian mirror."""
    keyring = next((path for path in DEBIAN_KEYRINGS if path.exists()), None)
    if keyring is None or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise BitcoindMissing(f"No bitcoind on the PATH, and this is not a Debian system. {HOW_TO_INSTALL}")
    for name in ("lists/partial", "cache/archives/partial", "sources"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources" / "mirror.sources").write_text(
        f"Types: deb\nURIs: {_debian_mirror()}\nSuites: {DEBIAN_SUITES}\nComponents: main\n"
        f"Signed-By: {keyring}\n"
    )
    # Proxies and the like are the machine's; hooks and extra indexes are left behind.
    acquire = [
        line
        for line in _apt(None, "apt-config", "dump", "Acquire").splitlines()
        if not line.startswith("Acquire::IndexTargets")
    ]
    configuration = work / "apt.conf"
    configuration.write_text(
        "\n".join(
            [
                *acquire,
                'Acquire::Languages "none";',
                'Dir::Etc::main "/dev/null";',
                'Dir::Etc::parts "/dev/null";',
                'Dir::Etc::sourcelist "/dev/null";',
                f'Dir::Etc::sourceparts "{work}/sources";',
                'Dir::Etc::preferences "/dev/null";',
                'Dir::Etc::preferencesparts "/dev/null";',
                f'Dir::State "{work}";',
                f'Dir::State::Lists "{work}/lists";',
                f'Dir::State::status "{work}/status";',
                f'Dir::Cache "{work}/cache";',
                # As root, apt would drop to a user who may not enter this folder.
                'APT::Sandbox::User "root";',
                "",
            ]
        )
    )
    return configuration


def _debian_mirror() -> str:
    """The mirror that this machine's own sources name for Debian itself (not security, not other vendors)."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", "")
    suites = {codename, "stable", "oldstable", "testing", "unstable", "sid", "trixie"}
    # Unlike `apt-get indextargets` this needs no lists: a fresh machine may never have run `apt-get update`.
    listed = _apt(None, "apt-get", "update", "--print-uris")
    for uri, suite in re.findall(r"'(\S+?)/dists/([^/']+)/InRelease'", listed):
        if suite in suites and release.get("ID") == "debian":
            return str(uri)
    raise BitcoindMissing(
        f"No bitcoind on the PATH, and no Debian mirror in this machine's sources. {HOW_TO_INSTALL}"
    )


def _apt(configuration: Path | None, *command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if configuration is not None:
        environment["APT_CONFIG"] = str(configuration)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=APT_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as exc:
        last_words = "\n".join(exc.stderr.strip().splitlines()[-5:])
        raise BitcoindMissing(f"`{' '.join(command)}` failed:\n{last_words}\n{HOW_TO_INSTALL}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BitcoindMissing(f"`{' '.join(command)}` did not finish: {exc}. {HOW_TO_INSTALL}") from exc
    return done.stdout


if __name__ == "__main__":
    try:
        print(find_bitcoind().path)
    except BitcoindMissing as exc:
        sys.exit(str(exc))
