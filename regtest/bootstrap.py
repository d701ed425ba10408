"""Make `.venv` with the project in it, on a machine that has nothing but Python. Standard library only.

`python3 regtest/bootstrap.py [--dev]`; `make` calls it. Debian's Python comes without ensurepip: there pip is
unpacked from the package that holds it, which needs no root. A file at the end tells `make` that all is done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
PROJECT = Path(__file__).resolve().parent.parent
PIP_PACKAGE = "python3-pip-whl"


class SetupFailed(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> None:
    """Exits with a message where set-up cannot go on."""
    parser = argparse.ArgumentParser(description="Set up the virtual environment.")
    parser.add_argument("--dev", action="store_true", help="also install what tests and checks need")
    parser.add_argument("--venv", type=Path, default=PROJECT / ".venv", help="folder of the environment")
    options = parser.parse_args()
    _run_on_supported_python()
    try:
        python = make_environment(options.venv)
        install_project(python, dev=options.dev)
    except SetupFailed as exc:
        sys.exit(f"Set-up failed: {exc}")
    (options.venv / "installed-runtime").touch()
    if options.dev:
        _provide_browser()
        (options.venv / "installed-dev").touch()


def make_environment(folder: Path) -> Path:
    """A virtual environment with pip in `folder`, the one there if it works; its python."""
    python = folder / "bin" / "python"
    if _works(python, f"import pip, sys; assert sys.version_info[:2] == {sys.version_info[:2]}"):
        return python
    print(f"making {folder.name} with Python {sys.version.split()[0]} ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    if _works(Path(sys.executable), "import ensurepip"):
        _run([sys.executable, "-m", "venv", str(folder)])
    else:
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        _install_pip_from_debian(python)
    return python


def install_project(python: Path, *, dev: bool) -> None:
    """Install the project, editable, with exactly the versions of constraints.txt."""
    print("installing packages (once) ...", file=sys.stderr, flush=True)
    import tomllib  # an older Python must be able to load this file, to say that it is too old

    # pip learned `--group` only lately, so the group is read here.
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]
    _run(
        [
            str(python),
            *("-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check"),
            *("-c", "constraints.txt", "-e", ".", *(groups["dev"] if dev else ())),
        ]
    )


def _provide_browser() -> None:
    """Browser tests say why they are skipped where there is none; everything else goes on."""
    # Run as a file, our own folder is on the path, not the project's.
    sys.path.insert(0, str(PROJECT))
    from regtest.chromium import HOW_TO_INSTALL, find_chromium, install_chromium

    if find_chromium() is None:
        print("installing Chromium (once) ...", file=sys.stderr, flush=True)
    if not install_chromium():
        print(HOW_TO_INSTALL, file=sys.stderr, flush=True)


def _run_on_supported_python() -> None:
    """Go on under a supported Python of this machine if this one is not."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other and _works(Path(other), "import venv"):
            os.execv(other, [other, *sys.argv])
    needed = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
    sys.exit(
        f"Set-up failed: Python {needed} is needed, this is {sys.version.split()[0]}. "
        "Install one, or name one: make PYTHON=..."
    )


def _install_pip_from_debian(python: Path) -> None:
    advice = (
        "Python has no ensurepip here. Install it (Debian: apt-get install python3-venv) and run make again."
    )
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SetupFailed(advice)
    with tempfile.TemporaryDirectory(prefix="bitcache-pip-") as name:
        work = Path(name)
        (work / "lists" / "partial").mkdir(parents=True)
        # Lists of our own: a fresh machine has none, and an ordinary user may not update the machine's.
        settings = (f"Dir::State::Lists={work}/lists", f"Dir::Cache={work}", "APT::Sandbox::User=root")
        own_lists = [word for setting in settings for word in ("-o", setting)]
        try:
            # One unreachable source of several must not end the set-up: whether pip comes decides.
            subprocess.run(["apt-get", *own_lists, "update"], capture_output=True, stdin=subprocess.DEVNULL)
            _run(["apt-get", *own_lists, "download", PIP_PACKAGE], folder=work)
            (archive,) = work.glob("*.deb")
            _run(["dpkg-deb", "-x", str(archive), str(work)])
            (wheel,) = work.glob("usr/share/python-wheels/pip-*.whl")
        except (SetupFailed, ValueError) as exc:
            raise SetupFailed(advice) from exc
        _run([str(python), f"{wheel}/pip", "install", "-q", "--no-index", str(wheel)])


def _works(python: Path, code: str) -> bool:
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def _run(command: list[str], folder: Path = PROJECT) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SetupFailed(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
