"""The wheel holds what the server needs and nothing else, and runs from any folder.

It is built and installed as a stranger would: from the sources alone, into an environment of its own, with
the pinned versions.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from regtest.node import wait_until
from regtest.processes import GuardedProcess
from regtest.world import RegtestWorld

PROJECT = Path(__file__).parent.parent
PACKAGES = {"bitcache", "storage", "payments"}
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *sorted(PACKAGES))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves files beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, sources)
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(sources))
    (built,) = folder.glob("bitcache_server-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a clean environment with the wheel in it."""
    environment = tmp_path_factory.mktemp("clean") / "environment"
    # Our own pip installs into it: unpacking another would take longer than many a package.
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    into = ("--python", str(environment / "bin" / "python"))
    constraints = str(PROJECT / "constraints.txt")
    _run(sys.executable, "-m", "pip", *into, "install", "-q", "--no-compile", "-c", constraints, str(wheel))
    return environment / "bin"


def test_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top_folders = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top_folders if not name.endswith(".dist-info")} == PACKAGES


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """A template or migration that setuptools was not told of would be missing only for strangers."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    sources = {
        str(path.relative_to(PROJECT))
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources - packed == set()


async def test_installed_server_starts_and_stops_from_another_folder(
    installed: Path, world: RegtestWorld, free_port: int, tmp_path: Path
) -> None:
    environment = {
        "PATH": f"{installed}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "BITCACHE_NETWORK": "regtest",
        "BITCACHE_LISTEN": f"127.0.0.1:{free_port}",
        "BITCACHE_PUBLIC_URL": f"http://localhost:{free_port}",
        "BITCACHE_NODE_RPC_URL": world.server.rpc_url,
        "BITCACHE_NODE_RPC_COOKIE_FILE": str(world.server.cookie_path),
        "BITCACHE_NODE_ZMQ_SEQUENCE_URL": world.server.zmq_url,
    }
    data = tmp_path / "shop data"
    _run(str(installed / "bitcache"), "init", str(data), environment=environment, folder=tmp_path)
    environment["BITCACHE_DATA"] = str(data)
    server = GuardedProcess(
        [installed / "bitcache", "serve"],
        log=tmp_path / "server.log",
        environment=environment,
        folder=tmp_path,
    )
    try:

        async def ready() -> bool:
            assert server.running, server.log_tail()
            return _status(f"http://127.0.0.1:{free_port}/readyz") == 200

        await wait_until(ready, "the installed server to be ready")
    finally:
        exit_code = server.terminate(signal_number=signal.SIGTERM)
    assert exit_code == 0, server.log_tail()


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code
    except OSError:
        return None


def _run(*command: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment or {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
