"""The vectors of the format, tests/vectors/storage_v1.json: our code agrees, and they can be made again."""

import hashlib
import io
import json
import re
from typing import Any

import msgspec
import pytest

from storage import base64url, digests, keys, stream
from storage.errors import StorageError
from storage.metadata import encode_metadata, open_metadata
from storage.paths import check_paths

from .test_storage_stream import pattern
from .vectors.make_storage_vectors import VECTORS, as_text, vectors

Case = dict[str, Any]
CASES: list[Case] = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]


def test_the_vectors_are_made_again_byte_for_byte() -> None:
    assert VECTORS.read_bytes() == as_text(vectors()).encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vector(case: Case) -> None:
    failure = failure_of(case)
    assert kind_of(failure) == case["expect"], failure
    if "chunk_index" in case:
        assert getattr(failure, "chunk_index", None) == case["chunk_index"]


def failure_of(case: Case) -> StorageError | ValueError | None:
    try:
        CHECKS[case["kind"]](case)
    except (StorageError, ValueError) as failure:
        return failure
    return None


def kind_of(failure: Exception | None) -> str:
    """`HeaderInvalid` is "header-invalid", None is "ok"."""
    return "ok" if failure is None else re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(failure).__name__).lower()


def check_parcel_key(case: Case) -> None:
    link_secret, release_secret = bytes.fromhex(case["link_secret"]), bytes.fromhex(case["release_secret"])
    assert keys.parcel_key(link_secret, release_secret).hex() == case["parcel_key"]


def check_metadata_key(case: Case) -> None:
    assert keys.metadata_key(bytes.fromhex(case["link_secret"])).hex() == case["metadata_key"]


def check_prove(case: Case) -> None:
    keys.proven_parcel_key(
        bytes.fromhex(case["link_secret"]),
        bytes.fromhex(case["release_secret"]),
        expected_commitment=bytes.fromhex(case["release_commitment"]),
        expected_key_check=bytes.fromhex(case["key_check"]),
    )


def check_unwrap(case: Case) -> None:
    parcel_key, wrapped, header = (bytes.fromhex(case[name]) for name in ("parcel_key", "wrapped", "header"))
    assert keys.unwrap_file_key(parcel_key, wrapped, header).hex() == case["file_key"]


def check_size(case: Case) -> None:
    assert stream.plaintext_size(case["ciphertext_bytes"]) == case["plaintext_bytes"]
    assert stream.ciphertext_size(case["plaintext_bytes"]) == case["ciphertext_bytes"]


def sealed(case: Case) -> bytearray:
    plaintext = pattern(case["plaintext_bytes"])
    cipher = stream.ContentCipher(bytes.fromhex(case["file_key"]), bytes.fromhex(case["header"]))
    ciphertext = bytearray()
    total_bytes = stream.ciphertext_size(len(plaintext))
    count = stream.chunk_count(total_bytes)
    for index in range(count):
        at, length = stream.plaintext_span(index, total_bytes)
        ciphertext += cipher.seal_chunk(index, plaintext[at : at + length], last=index == count - 1)
    return ciphertext


def decrypted(file_key: str, ciphertext: bytes | bytearray) -> bytes:
    sink = io.BytesIO()
    stream.decrypt(bytes.fromhex(file_key), io.BytesIO(ciphertext), sink)
    return sink.getvalue()


def check_content(case: Case) -> None:
    ciphertext = sealed(case)
    chunks = [ciphertext[at : at + (1 << 20)] for at in range(0, len(ciphertext), 1 << 20)]

    assert hashlib.sha256(ciphertext).hexdigest() == case["ciphertext_sha256"]
    assert digests.root(b"".join(map(digests.chunk_digest, chunks))).hex() == case["root"]
    assert ciphertext.hex() == case.get("ciphertext", ciphertext.hex())
    assert decrypted(case["file_key"], ciphertext) == pattern(case["plaintext_bytes"])


def check_damage(case: Case) -> None:
    ciphertext = sealed(case)
    match case["damage"]:
        case ["flip", at]:
            ciphertext[at] ^= 1
        case ["cut", length]:
            del ciphertext[length:]
        case ["append", tail]:
            ciphertext += bytes.fromhex(tail)
        case ["swap", one, two]:
            places = [slice(index << 20, (index + 1) << 20) for index in (one, two)]
            ciphertext[places[0]], ciphertext[places[1]] = ciphertext[places[1]], ciphertext[places[0]]
        case unknown:
            pytest.fail(f"unknown damage {unknown}")
    decrypted(case["file_key"], ciphertext)


def check_open(case: Case) -> None:
    decrypted(case["file_key"], bytes.fromhex(case["ciphertext"]))


def check_metadata(case: Case) -> None:
    metadata = open_metadata(bytes.fromhex(case["link_secret"]), base64url.decode(case["sealed"]))
    document = json.dumps(case["document"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert encode_metadata(metadata).decode() == document
    assert msgspec.json.decode(encode_metadata(metadata)) == case["document"]


def check_path_list(case: Case) -> None:
    assert check_paths(case["paths"]) == case["normal"]


def check_base64url(case: Case) -> None:
    assert base64url.decode(case["text"]).hex() == case["bytes"]
    assert base64url.encode(bytes.fromhex(case["bytes"])) == case["text"]


CHECKS = {
    "parcel_key": check_parcel_key,
    "metadata_key": check_metadata_key,
    "prove": check_prove,
    "unwrap": check_unwrap,
    "size": check_size,
    "content": check_content,
    "damage": check_damage,
    "open": check_open,
    "metadata": check_metadata,
    "paths": check_path_list,
    "base64url": check_base64url,
}
