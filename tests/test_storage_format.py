"""docs/FORMAT.md says what the code does: its schema, table of sizes, limits and kinds of vectors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from storage import metadata, paths, ports, stream

from .test_storage_vectors import CASES

FORMAT = (Path(__file__).parent.parent / "docs" / "FORMAT.md").read_text(encoding="utf-8")
DOCUMENTS = [case["document"] for case in CASES if "document" in case]


def schema() -> dict[str, Any]:
    blocks = re.findall(r"```json\n(.*?)```", FORMAT, re.DOTALL)
    assert len(blocks) == 1
    parsed: dict[str, Any] = json.loads(blocks[0])
    Draft202012Validator.check_schema(parsed)
    return parsed


def section(number: int) -> str:
    return FORMAT.split(f"\n## {number} ", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_schema_accepts_what_is_sealed(document: dict[str, Any]) -> None:
    Draft202012Validator(schema()).validate(document)


@pytest.mark.parametrize("member", sorted(DOCUMENTS[0]))
def test_the_schema_knows_every_member(member: str) -> None:
    incomplete = {name: value for name, value in DOCUMENTS[0].items() if name != member}
    with pytest.raises(ValidationError):
        Draft202012Validator(schema()).validate(incomplete)
    assert member in schema()["properties"]


def test_the_table_of_sizes() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| (\d+) \|$", section(5), re.MULTILINE)
    assert len(rows) == 6
    for plaintext, ciphertext, chunks in rows:
        length = int(ciphertext.replace(",", ""))
        assert stream.plaintext_size(length) == int(plaintext.replace(",", ""))
        assert stream.chunk_count(length) == int(chunks)


@pytest.mark.parametrize(
    ("number", "limit"),
    [
        (13, stream.CHUNK_SIZE_BYTES),
        (13, stream.CHUNK_COUNT_MAX),
        (13, stream.PLAINTEXT_SIZE_MAX_BYTES),
        (13, metadata.FILE_COUNT_MAX),
        (13, metadata.SEALED_SIZE_MAX_BYTES),
        (13, metadata.PREVIEW_SIZE_MAX_BYTES),
        (13, metadata.TITLE_SIZE_MAX_BYTES),
        (13, metadata.NOTE_SIZE_MAX_BYTES),
        (13, paths.PATH_SIZE_MAX_BYTES),
        (13, paths.SEGMENT_SIZE_MAX_BYTES),
        (8, metadata.MODIFIED_AT_MIN),
        (8, metadata.MODIFIED_AT_MAX),
        (5, ports.PART_SIZE_BYTES),
        (4, stream.FIRST_CHUNK_PLAINTEXT_BYTES),
        (4, stream.NEXT_CHUNK_PLAINTEXT_BYTES),
    ],
)
def test_the_limits(number: int, limit: int) -> None:
    assert re.search(rf"(?<![\d,]){limit:,}(?![\d,]*\d)", section(number))


def test_every_kind_of_vector_is_explained() -> None:
    explained = set(re.findall(r"`([a-z0-9_-]+)`", section(14)))
    assert {case["kind"] for case in CASES} <= explained
    assert {case["expect"] for case in CASES} <= explained
