"""The metadata of a parcel and its paths, written a second time from docs/FORMAT.md alone (its 8 and 9)."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests import second_format as second

METADATA_BYTES_MAX = 4_194_304
PREVIEW_BYTES_MAX = 262_144
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")
REORDERING = {
    "\u061c",
    "\u200e",
    "\u200f",
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
}
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"
}


def seal_metadata(link_secret: bytes, document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    nonce = os.urandom(second.NONCE_BYTES)
    return nonce + AESGCM(second.metadata_key(link_secret)).encrypt(nonce, text, b"bitcache/v1/metadata")


def open_metadata(link_secret: bytes, sealed: bytes) -> dict[str, Any]:
    """The document, once every rule of sections 8 and 9 holds."""
    key = second.metadata_key(link_secret)
    if not second.NONCE_BYTES + second.TAG_BYTES <= len(sealed) <= METADATA_BYTES_MAX:
        raise second.Refused("metadata-authentication-failed")
    try:
        text = AESGCM(key).decrypt(
            sealed[: second.NONCE_BYTES], sealed[second.NONCE_BYTES :], b"bitcache/v1/metadata"
        )
    except InvalidTag as exc:
        raise second.Refused("metadata-authentication-failed") from exc
    try:
        document = json.loads(text.decode("utf-8"))
        paths = _checked_document(document)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise second.Refused("metadata-invalid") from exc
    except second.Refused as exc:
        raise second.Refused("metadata-invalid") from exc
    if normal_paths(paths) != paths:
        raise second.Refused("path-refused")
    checked: dict[str, Any] = document
    return checked


def normal_paths(paths: Sequence[str]) -> list[str]:
    """A parcel's paths in form C, if each is safe and they do not collide."""
    normal = [unicodedata.normalize("NFC", path) for path in paths]
    folded = [unicodedata.normalize("NFC", path.casefold()) for path in normal]
    taken = set(folded)
    folders = {
        "/".join(path.split("/")[:depth]) for path in folded for depth in range(1, path.count("/") + 1)
    }
    if not all(map(_path_is_safe, normal)) or len(taken) < len(folded) or taken & folders:
        raise second.Refused("path-refused")
    return normal


def _checked_document(document: Any) -> list[str]:
    """The paths of a document that keeps every rule but those on paths."""
    _require(isinstance(document, dict) and _integer(document["version"], 1, 1))
    _require(_is_text(document["title"], 512) and _is_text(document["note"], 16_384, allowed="\n\t"))
    preview = document["preview"]
    if preview is not None:
        image = second.decode(preview["image"])
        _require(len(image) <= PREVIEW_BYTES_MAX and _begins_as(preview["media_type"], image))
    _require(
        len(second.decode(document["release_commitment"])) == 32
        and len(second.decode(document["key_check"])) == 32
    )
    files = document["files"]
    _require(isinstance(files, list) and 1 <= len(files) <= 10_000)
    for file in files:
        _require(isinstance(file, dict) and isinstance(file["path"], str))
        _require(MEDIA_TYPE.fullmatch(file["media_type"]) is not None)
        _require(_integer(file["size_bytes"], 0, 4_503_530_907_893_720))
        _require(_integer(file["modified_at"], -62_135_596_800, 253_402_300_799))
        second.checked_header(second.decode(file["header"]))
        _require(len(second.decode(file["root"])) == 32)
    return [file["path"] for file in files]


def _require(kept: bool) -> None:
    if not kept:
        raise second.Refused("metadata-invalid")


def _integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_text(value: Any, bytes_max: int, *, allowed: str = "") -> bool:
    banned = ("Cc", "Cs", "Zl", "Zp")
    return (
        isinstance(value, str)
        and all(
            c in allowed or (unicodedata.category(c) not in banned and c not in REORDERING) for c in value
        )
        and len(value.encode()) <= bytes_max
    )


def _begins_as(media_type: str, image: bytes) -> bool:
    match media_type:
        case "image/png":
            return image.startswith(bytes.fromhex("89504e470d0a1a0a"))
        case "image/jpeg":
            return image.startswith(bytes.fromhex("ffd8ff"))
        case "image/webp":
            return image[:4] == b"RIFF" and image[8:12] == b"WEBP"
    return False


def _path_is_safe(path: str) -> bool:
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") or c in "\\:" for c in path):
        return False
    return 1 <= len(path.encode()) <= 1_024 and all(map(_segment_is_safe, path.split("/")))


def _segment_is_safe(segment: str) -> bool:
    stem = segment.split(".")[0].rstrip(" ").upper()
    return 1 <= len(segment.encode()) <= 255 and segment[-1] not in ". " and stem not in DEVICES
