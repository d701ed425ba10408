"""Every vector of the format, given to an implementation that was written from docs/FORMAT.md alone."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests import second_format as second
from tests.second_metadata import normal_paths, open_metadata

VECTORS = json.loads((Path(__file__).parent / "vectors" / "storage_v1.json").read_text())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_the_page_gives_what_the_vector_expects(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        perform(case)
        return
    with pytest.raises(second.Refused) as refused:
        perform(case)
    assert refused.value.kind == case["expect"]
    assert refused.value.chunk_index == case.get("chunk_index")


def perform(case: dict[str, Any]) -> None:
    """Do what the vector's kind says; compare with its results, if it has any."""
    octets = {name: bytes.fromhex(case[name]) for name in case.keys() & HEXADECIMAL}
    match case["kind"]:
        case "parcel_key":
            made = second.parcel_key(octets["link_secret"], octets["release_secret"])
            assert made == octets["parcel_key"]
        case "metadata_key":
            assert second.metadata_key(octets["link_secret"]) == octets["metadata_key"]
        case "prove":
            second.proven_key(
                octets["link_secret"],
                octets["release_secret"],
                commitment=octets["release_commitment"],
                check=octets["key_check"],
            )
        case "unwrap":
            opened = second.unwrap(octets["parcel_key"], octets["wrapped"], octets["header"])
            assert opened == octets["file_key"]
        case "size":
            plaintext_bytes = second.plaintext_size(case["ciphertext_bytes"])
            assert plaintext_bytes == case["plaintext_bytes"]
            assert second.ciphertext_size(plaintext_bytes) == case["ciphertext_bytes"]
        case "content":
            sealed = seal(case, octets)
            ciphertext = b"".join(sealed.chunks)
            assert sha256(ciphertext).hexdigest() == case["ciphertext_sha256"]
            assert sealed.root == octets["root"]
            assert ciphertext == octets.get("ciphertext", ciphertext)
            assert second.open_content(ciphertext, key=octets["file_key"]) == plaintext(case)
        case "damage":
            second.open_content(damaged(seal(case, octets), case["damage"]), key=octets["file_key"])
        case "open":
            second.open_content(octets["ciphertext"], key=octets["file_key"])
        case "metadata":
            sealed_metadata = second.decode(case["sealed"])
            document = open_metadata(octets["link_secret"], sealed_metadata)
            assert {name: document[name] for name in case["document"]} == case["document"]
        case "paths":
            assert normal_paths(case["paths"]) == case["normal"]
        case "base64url":
            assert second.decode(case["text"]) == octets["bytes"]
            assert second.encode(octets["bytes"]) == case["text"]
        case other:
            raise AssertionError(f"the page knows no vectors of kind {other}")


HEXADECIMAL = {
    "link_secret",
    "release_secret",
    "parcel_key",
    "metadata_key",
    "release_commitment",
    "key_check",
    "wrapped",
    "header",
    "file_key",
    "root",
    "ciphertext",
    "bytes",
}


def plaintext(case: dict[str, Any]) -> bytes:
    size_bytes: int = case["plaintext_bytes"]
    return (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]


def seal(case: dict[str, Any], octets: dict[str, bytes]) -> second.Sealed:
    return second.seal_content(plaintext(case), key=octets["file_key"], header=octets["header"])


def damaged(sealed: second.Sealed, damage: list[Any]) -> bytes:
    ciphertext = bytearray(b"".join(sealed.chunks))
    match damage:
        case ["flip", at]:
            ciphertext[at] ^= 1
        case ["cut", at]:
            del ciphertext[at:]
        case ["append", text]:
            ciphertext += bytes.fromhex(text)
        case ["swap", one, other]:
            chunks = list(sealed.chunks)
            chunks[one], chunks[other] = chunks[other], chunks[one]
            return b"".join(chunks)
        case _:
            raise AssertionError(f"the page knows no damage {damage}")
    return bytes(ciphertext)
