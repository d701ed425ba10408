"""The one rule for paths inside a parcel, for those who make a parcel and those who open one.

A path is relative, in NFC, segments joined by "/", and means the same plain file on every system: a buyer on
Windows or macOS must not be led out of the download folder, onto a device, or into one file by two names.
"""

import unicodedata
from collections.abc import Iterable

from storage.errors import PathRefused

PATH_SIZE_MAX_BYTES = 1024
SEGMENT_SIZE_MAX_BYTES = 255

# Control, format (bidi overrides, zero-width), surrogate, line and paragraph separators: they make one name
# look like another on a screen.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_DEVICE_NAMES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    | {f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"}
)


def check_path(path: str) -> str:
    """`path` in NFC, safe to create below a folder of the reader's choice. Raises PathRefused."""
    path = unicodedata.normalize("NFC", path)
    if not path:
        raise PathRefused(path, "it is empty")
    for character in path:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            raise PathRefused(path, f"it contains the invisible character U+{ord(character):04X}")
    if "\\" in path:
        raise PathRefused(path, "it contains a backslash")
    if ":" in path:
        raise PathRefused(path, "it contains a colon")
    if path.startswith("/"):
        raise PathRefused(path, "it is absolute")
    if len(path.encode()) > PATH_SIZE_MAX_BYTES:
        raise PathRefused(path, f"it is longer than {PATH_SIZE_MAX_BYTES} bytes")
    for segment in path.split("/"):
        _check_segment(path, segment)
    return path


def check_paths(paths: Iterable[str]) -> list[str]:
    """The paths in NFC and in order, each right in itself and none in another's way. Raises PathRefused.

    Two paths that differ only in case are one file on Windows and macOS, so they are duplicates.
    """
    checked = [check_path(path) for path in paths]
    files: set[str] = set()
    for path in checked:
        folded = _fold(path)
        if folded in files:
            raise PathRefused(path, "another file has the same path (upper and lower case count as equal)")
        files.add(folded)
    for path in checked:
        folded = _fold(path)
        for at, character in enumerate(folded):
            if character == "/" and folded[:at] in files:
                raise PathRefused(path, "one of its folders is also a file")
    return checked


def _check_segment(path: str, segment: str) -> None:
    if not segment:
        raise PathRefused(path, "it has an empty segment")
    if segment in {".", ".."}:
        raise PathRefused(path, f'it contains the segment "{segment}"')
    if segment[-1] in ". ":
        raise PathRefused(path, "a segment ends with a dot or a space")
    if len(segment.encode()) > SEGMENT_SIZE_MAX_BYTES:
        raise PathRefused(path, f"a segment is longer than {SEGMENT_SIZE_MAX_BYTES} bytes")
    # Windows opens the device for "nul.txt" and "NUL .txt" too.
    if segment.split(".", 1)[0].rstrip(" ").upper() in _DEVICE_NAMES:
        raise PathRefused(path, f'"{segment}" is the name of a device on Windows')


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path.casefold())
