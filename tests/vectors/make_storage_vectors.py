"""Writes storage_v1.json: `python -m tests.vectors.make_storage_vectors`. The same bytes every time.

Nothing here imports the storage package. Formulas are written out a second time, from docs/FORMAT.md, on bare
HMAC, SHA-256 and AES-GCM, so that a mistake would have to be made twice to go unseen.
"""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).with_name("storage_v1.json")

CHUNK = 1 << 20
FIRST, NEXT = CHUNK - 56, CHUNK - 16
LINK_SECRET, RELEASE_SECRET, FILE_KEY = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
HEADER = b"\x28" + bytes(range(100, 139))
OTHER_HEADER = b"\x28" + bytes(range(101, 140))
NONCE = bytes(range(200, 212))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)

Case = dict[str, Any]


def vectors() -> dict[str, Any]:
    """The whole file: one fact per case; `expect` is "ok" or the kind of failure."""
    groups = [
        key_cases,
        wrap_cases,
        size_cases,
        content_cases,
        damage_cases,
        metadata_cases,
        path_cases,
        text_cases,
    ]
    cases = [case for group in groups for case in group()]
    assert len({case["name"] for case in cases}) == len(cases)
    return {
        "format": "bitcache/v1",
        "plaintext": "byte i of every plaintext of n bytes is i mod 251",
        "damage": "done to the ciphertext of the same file_key, header and plaintext_bytes",
        "cases": cases,
    }


def main() -> None:
    VECTORS.write_text(as_text(vectors()), encoding="utf-8")


def as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


# Formulas


def hkdf(key_material: bytes, info: bytes, salt: bytes = bytes(32)) -> bytes:
    """RFC 5869 with SHA-256 for one block of output."""
    pseudorandom_key = hmac.digest(salt, key_material, "sha256")
    return hmac.digest(pseudorandom_key, info + b"\x01", "sha256")


def parcel_key() -> bytes:
    return hkdf(LINK_SECRET + RELEASE_SECRET, b"bitcache/v1/parcel-key")


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def ciphertext(plaintext: bytes, info: bytes = b"bitcache/v1/content") -> bytes:
    cipher = AESGCM(hkdf(FILE_KEY, info, HEADER[1:33]))
    pieces = [plaintext[:FIRST]] + [plaintext[at : at + NEXT] for at in range(FIRST, len(plaintext), NEXT)]
    sealed = HEADER
    for index, piece in enumerate(pieces):
        last = b"\x01" if index == len(pieces) - 1 else b"\x00"
        sealed += cipher.encrypt(HEADER[33:] + index.to_bytes(4, "big") + last, piece, None)
    return sealed


def root(sealed: bytes) -> bytes:
    digests = [hashlib.sha256(sealed[at : at + CHUNK]).digest() for at in range(0, len(sealed), CHUNK)]
    return hashlib.sha256(b"".join(digests)).digest()


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


def flipped(octets: bytes, at: int) -> bytes:
    changed = bytearray(octets)
    changed[at] ^= 1
    return bytes(changed)


# Groups of cases


def case(name: str, kind: str, expect: str = "ok", **fields: object) -> Case:
    return {"name": name, "kind": kind, "expect": expect, **fields}


def key_cases() -> list[Case]:
    key, check = parcel_key(), hkdf(parcel_key(), b"bitcache/v1/key-check")
    commitment = hashlib.sha256(b"bitcache/v1/release" + RELEASE_SECRET).digest()

    def prove(name: str, expect: str, link_secret: bytes, release_secret: bytes) -> Case:
        secrets = {"link_secret": link_secret.hex(), "release_secret": release_secret.hex()}
        proof = {"release_commitment": commitment.hex(), "key_check": check.hex()}
        return case(name, "prove", expect, **secrets, **proof)

    return [
        case(
            "parcel key",
            "parcel_key",
            link_secret=LINK_SECRET.hex(),
            release_secret=RELEASE_SECRET.hex(),
            parcel_key=key.hex(),
        ),
        case(
            "metadata key",
            "metadata_key",
            link_secret=LINK_SECRET.hex(),
            metadata_key=hkdf(LINK_SECRET, b"bitcache/v1/metadata").hex(),
        ),
        prove("secrets proven", "ok", LINK_SECRET, RELEASE_SECRET),
        prove("other release secret", "release-secret-wrong", LINK_SECRET, flipped(RELEASE_SECRET, 0)),
        prove("other link secret", "release-secret-wrong", flipped(LINK_SECRET, 31), RELEASE_SECRET),
        prove("link secret cut short", "secret-size-wrong", LINK_SECRET[:31], RELEASE_SECRET),
        prove("release secret too long", "secret-size-wrong", LINK_SECRET, RELEASE_SECRET + b"\0"),
    ]


def wrap_cases() -> list[Case]:
    right = NONCE + AESGCM(parcel_key()).encrypt(NONCE, FILE_KEY, b"bitcache/v1/file-key" + HEADER)

    def unwrap(
        name: str,
        expect: str,
        wrapped: bytes = right,
        header: bytes = HEADER,
        key: bytes = b"",
        **fields: object,
    ) -> Case:
        opener = (key or parcel_key()).hex()
        return case(
            name, "unwrap", expect, parcel_key=opener, wrapped=wrapped.hex(), header=header.hex(), **fields
        )

    failed = "key-unwrap-failed"
    return [
        unwrap("file key", "ok", file_key=FILE_KEY.hex()),
        unwrap("file key of another file", failed, header=OTHER_HEADER),
        unwrap("file key of another parcel", failed, key=LINK_SECRET),
        unwrap("wrapped nonce altered", failed, flipped(right, 0)),
        unwrap("wrapped key altered", failed, flipped(right, 12)),
        unwrap("wrapped tag altered", failed, flipped(right, 59)),
        unwrap("wrapped key cut", failed, right[:59]),
        unwrap("header does not start with 0x28", "header-invalid", header=b"\x29" + HEADER[1:]),
    ]


def size_cases() -> list[Case]:
    pairs = [
        (0, 56),
        (1, 57),
        (FIRST, CHUNK),
        (FIRST + 1, CHUNK + 17),
        (FIRST + NEXT, 2 * CHUNK),
        (FIRST + 2 * NEXT, 3 * CHUNK),
        ((1 << 32) * NEXT - 40, 1 << 52),
    ]
    impossible = [0, 55, CHUNK + 1, CHUNK + 16, 2 * CHUNK + 16, (1 << 52) + 17]
    return [
        case(f"size {plain}", "size", plaintext_bytes=plain, ciphertext_bytes=sealed)
        for plain, sealed in pairs
    ] + [
        case(f"no ciphertext of {length}", "size", "size-impossible", ciphertext_bytes=length)
        for length in impossible
    ]


def file_fields(size: int) -> Case:
    return {"file_key": FILE_KEY.hex(), "header": HEADER.hex(), "plaintext_bytes": size}


def content_cases() -> list[Case]:
    cases = []
    for size in (0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT, FIRST + 2 * NEXT):
        sealed = ciphertext(pattern(size))
        result = {"ciphertext_sha256": hashlib.sha256(sealed).hexdigest(), "root": root(sealed).hex()}
        if size < 2:
            result["ciphertext"] = sealed.hex()
        cases.append(case(f"content of {size} bytes", "content", **file_fields(size), **result))
    return cases


def damage_cases() -> list[Case]:
    three = FIRST + NEXT + 1000
    altered, truncated = "chunk-authentication-failed", "ciphertext-truncated"
    damages: list[tuple[str, int, list[object], str, int]] = [
        ("bit flipped in the salt", 1, ["flip", 1], altered, 0),
        ("bit flipped in the nonce prefix", 1, ["flip", 39], altered, 0),
        ("bit flipped in the body", three, ["flip", CHUNK + 5], altered, 1),
        ("bit flipped in a tag", three, ["flip", 2 * CHUNK - 1], altered, 1),
        ("cut after a chunk", three, ["cut", 2 * CHUNK], truncated, 1),
        ("cut inside a chunk", three, ["cut", 2 * CHUNK + 500], altered, 2),
        ("cut inside a tag", three, ["cut", 2 * CHUNK + 16], truncated, 2),
        ("cut inside the header", 1, ["cut", 39], truncated, 0),
        ("one byte appended", 1, ["append", "00"], altered, 0),
        ("one byte appended to a full chunk", FIRST, ["append", "00"], altered, 0),
        ("two chunks swapped", FIRST + 2 * NEXT, ["swap", 1, 2], altered, 1),
    ]
    other_use = ciphertext(b"x", b"bitcache/v1/other").hex()
    return [
        case(name, "damage", expect, **file_fields(size), damage=damage, chunk_index=chunk)
        for name, size, damage, expect, chunk in damages
    ] + [
        case("not a header", "damage", "header-invalid", **file_fields(1), damage=["flip", 0]),
        case(
            "other associated data",
            "open",
            altered,
            file_key=FILE_KEY.hex(),
            ciphertext=other_use,
            chunk_index=0,
        ),
    ]


def metadata_document() -> dict[str, Any]:
    file = {
        "path": "a/b c.txt",
        "media_type": "text/plain",
        "size_bytes": 1,
        "modified_at": 1_700_000_000,
        "header": b64(HEADER),
        "root": b64(root(ciphertext(pattern(1)))),
    }
    return {
        "version": 1,
        "title": "Été",
        "note": "one\ntwo",
        "preview": {"media_type": "image/png", "image": b64(PNG)},
        "files": [file],
        "release_commitment": b64(hashlib.sha256(b"bitcache/v1/release" + RELEASE_SECRET).digest()),
        "key_check": b64(hkdf(parcel_key(), b"bitcache/v1/key-check")),
    }


def sealed_metadata(document: object, aad: bytes = b"bitcache/v1/metadata") -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return NONCE + AESGCM(hkdf(LINK_SECRET, b"bitcache/v1/metadata")).encrypt(NONCE, text.encode(), aad)


def metadata_cases() -> list[Case]:
    plain = metadata_document()

    def metadata(name: str, expect: str, sealed: bytes, **fields: object) -> Case:
        return case(name, "metadata", expect, link_secret=LINK_SECRET.hex(), sealed=b64(sealed), **fields)

    def with_file(**changes: object) -> dict[str, Any]:
        return plain | {"files": [plain["files"][0] | changes]}

    bare = plain | {"preview": None}
    accepted = [
        ("metadata", plain, plain),
        ("metadata without preview", bare, bare),
        ("metadata with an unknown member", plain | {"later": [1]}, plain),
    ]
    invalid: list[tuple[str, object]] = [
        ("metadata of a later version", plain | {"version": 2}),
        ("metadata without files", plain | {"files": []}),
        ("metadata that is a list", [plain]),
        ("metadata with a line break in the title", plain | {"title": "a\nb"}),
        ("metadata with an escape sequence in the note", plain | {"note": "a\x1b[2Jb"}),
        ("metadata with a bidi override in the title", plain | {"title": "a\u202eb"}),
        (
            "metadata with a wrong preview",
            plain | {"preview": {"media_type": "image/jpeg", "image": b64(PNG)}},
        ),
        ("metadata with a short key check", plain | {"key_check": "AAAA"}),
        ("metadata with padded base64url", plain | {"key_check": plain["key_check"] + "="}),
        ("metadata with a negative size", with_file(size_bytes=-1)),
        ("metadata with a header of another format", with_file(header=b64(bytes(40)))),
        ("metadata with a short root", with_file(root=b64(bytes(31)))),
        ("metadata with an upper-case media type", with_file(media_type="Text/Plain")),
    ]
    paths = [
        ("metadata with a path that climbs out", "../x"),
        ("metadata with a decomposed path", "e\u0301"),
    ]
    sealed, failed = sealed_metadata(plain), "metadata-authentication-failed"
    return [
        *(metadata(name, "ok", sealed_metadata(given), document=read) for name, given, read in accepted),
        *(metadata(name, "metadata-invalid", sealed_metadata(given)) for name, given in invalid),
        *(metadata(name, "path-refused", sealed_metadata(with_file(path=path))) for name, path in paths),
        metadata("metadata altered", failed, flipped(sealed, 20)),
        metadata("metadata cut to nothing", failed, sealed[:27]),
        metadata("metadata sealed for another use", failed, sealed_metadata(plain, b"")),
    ]


def path_cases() -> list[Case]:
    accepted = ["a", "a/b.txt", ".hidden", "..data", "with space '\"", "文件/é", "com10", "x" * 255]
    refused = [
        "",
        "/a",
        "..",
        "a/../b",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "C:/a",
        "a:b",
        "a\0b",
        "a\nb",
        "a\u202eb",
    ]
    refused += ["a\u200bb", "a\u2028b", "a.", "a ", "a./b", "CON", "a/nul.txt", "NUL .txt", "com1.tar.gz"]
    refused += ["LPT\u00b9", "x" * 256, "/".join(["y" * 128] * 8)]
    clashing = [["a", "a"], ["a", "A"], ["straße", "STRASSE"], ["a", "a/b"], ["A/b", "a"]]
    return [
        *(case(f"path accepted: {path[:40]!a}", "paths", paths=[path], normal=[path]) for path in accepted),
        case("a decomposed path is composed", "paths", paths=["e\u0301"], normal=["é"]),
        case("paths that only look alike", "paths", paths=["a", "ab", "a.b/c"], normal=["a", "ab", "a.b/c"]),
        *(case(f"path refused: {path[:40]!a}", "paths", "path-refused", paths=[path]) for path in refused),
        *(case(f"paths clash: {paths!a}", "paths", "path-refused", paths=paths) for paths in clashing),
    ]


def text_cases() -> list[Case]:
    good = [b"", b"\x00", b"\xfb\xff", bytes(32)]
    bad = ["A", "AA==", "AB", "A+", "A/", "AA\n"]
    return [
        *(
            case(f"base64url {b64(octets)}", "base64url", text=b64(octets), bytes=octets.hex())
            for octets in good
        ),
        *(case(f"no base64url: {text!a}", "base64url", "value-error", text=text) for text in bad),
    ]


if __name__ == "__main__":
    main()
