"""Finding a bitcoind, and the folder for what is made once per user."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from regtest.errors import BitcoindMissing
from regtest.install import BitcoindInstallation, cache_folder, find_bitcoind


def _script(path: Path, prints: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)
    return path


def test_found_bitcoind_runs(bitcoind: BitcoindInstallation) -> None:
    answer = subprocess.run([bitcoind.path, "-version"], capture_output=True, text=True, check=True)
    assert bitcoind.version in answer.stdout


def test_named_program_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = _script(tmp_path / "my bitcoind", "Bitcoin Core daemon version v29.1.0 bitcoind")
    monkeypatch.setenv("BITCOIND", str(named))
    assert find_bitcoind() == BitcoindInstallation(path=named, version="29.1.0")


@pytest.mark.parametrize("prints", ["Bitcoin Core version v28.1.0", "hello"])
def test_named_program_that_is_too_old_or_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prints: str
) -> None:
    monkeypatch.setenv("BITCOIND", str(_script(tmp_path / "bitcoind", prints)))
    with pytest.raises(BitcoindMissing, match="or is older than version 29"):
        find_bitcoind()


def test_named_program_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITCOIND", "/nonexistent/bitcoind")
    with pytest.raises(BitcoindMissing, match="BITCOIND=/nonexistent/bitcoind does not run"):
        find_bitcoind()


def test_cache_is_in_the_home_unless_xdg_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bitcache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "bitcache"


def test_user_without_a_home_gets_a_private_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    # Whoever can write there could plant a program for us to run.
    folder.chmod(0o777)
    with pytest.raises(BitcoindMissing, match="is not private to you"):
        cache_folder()
