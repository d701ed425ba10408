"""Paths inside a parcel: what is accepted as it is, what is normalised, what is refused."""

import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import PathRefused
from storage.paths import check_path, check_paths

ACCEPTED = [
    "a",
    "a/b/c.txt",
    "with space and 'quotes' \"double\".txt",
    ".hidden",
    "..data/x",
    "a...b",
    "naïve/文件/файл/ملف.bin",
    "console.txt",
    "com10",
    "lpt.txt",
    " leading",
    "-rf",
    "x" * 255,
    "/".join(["y" * 127] * 8),
    "🙂" * 63,
]

REFUSED = [
    ("", "empty"),
    ("/etc/passwd", "absolute"),
    ("//host/share", "absolute"),
    ("..", "segment"),
    ("../x", "segment"),
    ("a/../b", "segment"),
    ("a/..", "segment"),
    (".", "segment"),
    ("./a", "segment"),
    ("a/./b", "segment"),
    ("a//b", "empty segment"),
    ("a/", "empty segment"),
    ("a\\b", "backslash"),
    ("..\\x", "backslash"),
    ("C:", "colon"),
    ("C:/x", "colon"),
    ("file.txt:stream", "colon"),
    ("a\0b", "U+0000"),
    ("a\nb", "U+000A"),
    ("a\x1b[2Jb", "U+001B"),
    ("a\x7f", "U+007F"),
    ("a\x85", "U+0085"),
    ("photo\u202egnp.exe", "U+202E"),
    ("a\u2066b", "U+2066"),
    ("a\u200bb", "U+200B"),
    ("\ufeffa", "U+FEFF"),
    ("a\u2028b", "U+2028"),
    ("a\ud800", "U+D800"),
    ("a.", "dot or a space"),
    ("a ", "dot or a space"),
    ("a./b", "dot or a space"),
    ("...", "dot or a space"),
    ("con", "device"),
    ("CON", "device"),
    ("a/nul.txt", "device"),
    ("NUL .txt", "device"),
    ("Com1.tar.gz", "device"),
    ("LPT9", "device"),
    ("com¹", "device"),
    ("conin$", "device"),
    ("aux/x", "device"),
    ("x" * 256, "longer than 255"),
    ("🙂" * 64, "longer than 255"),
    ("/".join(["y" * 127] * 8) + "/", "longer than 1024 bytes|empty segment"),
    ("/".join(["y" * 128] * 8), "longer than 1024"),
]


@pytest.mark.parametrize("path", ACCEPTED)
def test_accepted_as_it_is(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(("path", "reason"), REFUSED)
def test_refused_with_its_reason(path: str, reason: str) -> None:
    with pytest.raises(PathRefused, match="refused") as refused:
        check_path(path)
    assert any(part in refused.value.reason for part in reason.split("|"))


def test_the_message_never_prints_the_path_raw() -> None:
    with pytest.raises(PathRefused) as refused:
        check_path("a\x1b[2J\u202e" + "b" * 5000)
    message = str(refused.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 300


def test_decomposed_names_are_composed() -> None:
    decomposed = unicodedata.normalize("NFD", "été/naïve.txt")
    assert check_path(decomposed) == "été/naïve.txt" != decomposed


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["a", "a"], "same path"),
        (["Readme", "README"], "same path"),
        (["straße", "STRASSE"], "same path"),
        (["é", "e\u0301"], "same path"),
        (["a", "a/b"], "also a file"),
        (["a/b/c", "A/B"], "also a file"),
        (["x", "y", "a/b/c/d", "a"], "also a file"),
    ],
)
def test_paths_in_each_others_way(paths: list[str], reason: str) -> None:
    with pytest.raises(PathRefused) as refused:
        check_paths(paths)
    assert reason in refused.value.reason


def test_paths_that_only_look_alike() -> None:
    paths = ["a", "ab", "a.b/c", "b/a", "ab.c"]
    assert check_paths(paths) == paths
    assert check_paths([]) == []


@given(st.text() | st.text(alphabet="./\\:ab \0\u202e", max_size=12))
def test_what_is_accepted_stays_below_its_folder(path: str) -> None:
    try:
        checked = check_path(path)
    except PathRefused:
        return
    assert check_path(checked) == checked
    posix, windows = PurePosixPath(checked), PureWindowsPath(checked)
    assert not posix.is_absolute()
    assert not windows.is_absolute()
    assert not windows.drive
    assert ".." not in posix.parts + windows.parts
    assert "/".join(posix.parts) == checked == "/".join(windows.parts)
    assert checked.isprintable() or any(unicodedata.category(c) in {"Cn", "Co", "Zs"} for c in checked)
