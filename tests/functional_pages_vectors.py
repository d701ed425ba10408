"""The format in a real browser: every vector; what a page seals our code opens, and the other way round."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from bitcache.client.errors import LinkInvalid
from bitcache.client.link import Link, Receipt, parse
from storage import base64url, digests, keys, stream
from storage.errors import StorageError
from storage.metadata import encode_metadata, open_metadata, seal_metadata
from storage.paths import check_paths
from tests.browser import NewVisitor
from tests.test_bitcache_client_link import OFFER_ID, OTHER, SECRET, SERVER
from tests.test_storage_metadata import LINK_SECRET, document, entry, forge, parcel
from tests.test_storage_vectors import CASES, kind_of
from tests.till import open_nodeless_till

pytestmark = pytest.mark.asyncio(loop_scope="session")

VECTORS_SCRIPT = (Path(__file__).parent / "pages_vectors.js").read_text(encoding="utf-8")


@asynccontextmanager
async def our_page(new_visitor: NewVisitor, tmp_path: Path) -> AsyncIterator[Page]:
    """Any page of ours: its scripts may import the modules, under the policy of all pages."""
    async with open_nodeless_till(tmp_path) as till:
        visitor = await new_visitor()
        yield await visitor.goto(f"{till.server.url}/dashboard")


async def test_every_vector(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with our_page(new_visitor, tmp_path) as page:
        results = await page.evaluate(VECTORS_SCRIPT, CASES)

    found = {
        case["name"]: (got["expect"], got.get("chunkIndex")) for case, got in zip(CASES, results, strict=True)
    }
    assert found == {case["name"]: (case["expect"], case.get("chunk_index")) for case in CASES}


# Opens what Python sealed and seals it anew, under a key and header of the page's own.
SEAL_AGAIN = """async ({fileKey, ciphertext}) => {
  const {encode, decode} = await import('/static/base64url.js');
  const {ContentCipher, CHUNK_BYTES, HEADER_BYTES, ...content} = await import('/static/content.js');
  const {checkChunk, checkDigests, chunkDigest, rootOf} = await import('/static/digests.js');
  const {newSecret} = await import('/static/keys.js');
  const sealed = decode(ciphertext);
  const opener = await ContentCipher.create(decode(fileKey), sealed.subarray(0, HEADER_BYTES));
  const [freshKey, header] = [newSecret(), content.newHeader()];
  const sealer = await ContentCipher.create(freshKey, header);
  const plaintextBytes = content.plaintextSize(sealed.length);
  const count = content.chunkCount(plaintextBytes);
  const anew = new Uint8Array(content.ciphertextSize(plaintextBytes));
  const list = new Uint8Array(count * 32);
  // From the last to the first: chunks are in no order.
  for (let index = count - 1; index >= 0; index -= 1) {
    const [start, last] = [index * CHUNK_BYTES, index === count - 1];
    const plaintext = await opener.open(index, last, sealed.subarray(start, start + CHUNK_BYTES));
    const place = content.chunkPlaintext(index, plaintextBytes);
    if (plaintext.length !== place.end - place.start) throw new Error(`chunk ${index} in another place`);
    const chunk = await sealer.seal(index, last, plaintext);
    anew.set(chunk, start);
    list.set(await chunkDigest(chunk), index * 32);
    await checkChunk(index, chunk, list);
  }
  const root = await rootOf(list);
  await checkDigests(list, root, count);
  return {fileKey: encode(freshKey), ciphertext: encode(anew), root: encode(root)};
}"""


async def test_content_goes_from_python_to_the_page_and_back(new_visitor: NewVisitor, tmp_path: Path) -> None:
    first, second = stream.FIRST_CHUNK_PLAINTEXT_BYTES, stream.NEXT_CHUNK_PLAINTEXT_BYTES
    sizes = [0, 1, first - 1, first, first + 1, first + second, first + second + 1]
    async with our_page(new_visitor, tmp_path) as page:
        for size in sizes:
            plaintext, file_key = os.urandom(size), keys.new_secret()
            sealed = io.BytesIO()
            stream.encrypt(file_key, io.BytesIO(plaintext), sealed)
            given = {"fileKey": base64url.encode(file_key), "ciphertext": base64url.encode(sealed.getvalue())}

            got = await page.evaluate(SEAL_AGAIN, given)

            ciphertext, opened = base64url.decode(got["ciphertext"]), io.BytesIO()
            stream.decrypt(base64url.decode(got["fileKey"]), io.BytesIO(ciphertext), opened)
            assert opened.getvalue() == plaintext, f"{size} bytes"
            assert ciphertext[:40] != sealed.getvalue()[:40]
            assert got["root"] == base64url.encode(digests.root(digests.chunk_digests(ciphertext)))


# What a page must never do, whoever calls it: each of these is refused.
MISUSE = """async () => {
  const {ContentCipher, newHeader, chunkPlaintext, CHUNK_BYTES} = await import('/static/content.js');
  const {checkChunk, checkDigests, chunkDigest, rootOf} = await import('/static/digests.js');
  const {newSecret} = await import('/static/keys.js');
  const cipher = await ContentCipher.create(newSecret(), newHeader());
  const other = await ContentCipher.create(newSecret(), newHeader());
  const chunk = await cipher.seal(0, true, new Uint8Array(1));
  const list = await chunkDigest(chunk);
  const root = await rootOf(list);
  const tries = [
    () => cipher.seal(0, false, new Uint8Array(1)),
    () => cipher.seal(1, true, new Uint8Array(0)),
    () => cipher.seal(1, false, new Uint8Array(CHUNK_BYTES)),
    () => cipher.seal(2 ** 32, true, new Uint8Array(1)),
    () => cipher.seal(0.5, true, new Uint8Array(1)),
    () => other.open(0, true, chunk),
    () => cipher.open(0, false, chunk),
    () => cipher.open(0, true, new Uint8Array(CHUNK_BYTES + 1)),
    () => ContentCipher.create(new Uint8Array(31), newHeader()),
    async () => chunkPlaintext(1, 1),
    () => rootOf(new Uint8Array()),
    () => checkDigests(list, root, 2),
    () => checkDigests(new Uint8Array(32), root, 1),
    () => checkChunk(0, chunk.subarray(1), list),
    () => checkChunk(1, chunk, list),
  ];
  const kinds = [];
  for (const attempt of tries) {
    kinds.push(await attempt().then(() => 'ok', (failure) => failure.kind ?? failure.name));
  }
  return kinds;
}"""


async def test_misuse_is_refused(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with our_page(new_visitor, tmp_path) as page:
        assert await page.evaluate(MISUSE) == [
            "chunk-size-wrong",
            "chunk-size-wrong",
            "chunk-size-wrong",
            "size-impossible",
            "size-impossible",
            "header-invalid",
            "chunk-size-wrong",
            "chunk-size-wrong",
            "secret-size-wrong",
            "RangeError",
            "digests-invalid",
            "digests-invalid",
            "root-mismatch",
            "digest-mismatch",
            "digest-mismatch",
        ]


MAKE_KEYS = """async ({linkSecret, releaseSecret, wrapped, header}) => {
  const {encode, decode} = await import('/static/base64url.js');
  const keys = await import('/static/keys.js');
  const [link, release] = [decode(linkSecret), decode(releaseSecret)];
  const releaseCommitment = await keys.releaseCommitment(release);
  const keyCheck = await keys.keyCheck(await keys.parcelKey(link, release));
  const proven = await keys.provenParcelKey(link, release, {releaseCommitment, keyCheck});
  const fileKey = await keys.unwrapFileKey(proven, decode(wrapped), decode(header));
  return {
    commitment: encode(releaseCommitment),
    keyCheck: encode(keyCheck),
    claimHash: encode(await keys.claimHash(link)),
    wrapped: encode(await keys.wrapFileKey(proven, fileKey, decode(header))),
  };
}"""


async def test_keys_go_from_python_to_the_page_and_back(new_visitor: NewVisitor, tmp_path: Path) -> None:
    link_secret, release_secret, file_key = (keys.new_secret() for _ in range(3))
    header, parcel_key = stream.new_header(), keys.parcel_key(link_secret, release_secret)
    given = {
        "linkSecret": link_secret,
        "releaseSecret": release_secret,
        "wrapped": keys.wrap_file_key(parcel_key, file_key, header),
        "header": header,
    }
    async with our_page(new_visitor, tmp_path) as page:
        got = await page.evaluate(
            MAKE_KEYS, {name: base64url.encode(octets) for name, octets in given.items()}
        )

    made = {name: base64url.decode(text) for name, text in got.items()}
    assert made["commitment"] == keys.release_commitment(release_secret)
    assert made["keyCheck"] == keys.key_check(parcel_key)
    assert made["claimHash"] == hashlib.sha256(link_secret).digest()
    assert made["wrapped"] != given["wrapped"]
    assert keys.unwrap_file_key(parcel_key, made["wrapped"], header) == file_key


# For each sealed document what the page makes of it: its JSON and it sealed anew, or why it was refused.
OPEN_METADATA = """async ({linkSecret, sealed}) => {
  const {encode, decode} = await import('/static/base64url.js');
  const {metadataKey} = await import('/static/keys.js');
  const {documentText, openMetadata, sealMetadata} = await import('/static/metadata.js');
  const key = await metadataKey(decode(linkSecret));
  const found = [];
  for (const one of sealed) {
    try {
      const document = await openMetadata(key, decode(one));
      found.push({text: documentText(document), sealed: encode(await sealMetadata(key, document))});
    } catch (failure) {
      found.push({kind: failure.kind ?? String(failure)});
    }
  }
  return found;
}"""


async def opened_by(page: Page, sealed: list[bytes]) -> list[dict[str, str]]:
    given = {"linkSecret": base64url.encode(LINK_SECRET), "sealed": [base64url.encode(one) for one in sealed]}
    found: list[dict[str, str]] = await page.evaluate(OPEN_METADATA, given)
    return found


async def test_metadata_goes_from_python_to_the_page_and_back(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    described = [
        parcel(),
        parcel(title="", note="", preview=None),
        parcel(
            title='"\\/<script>\u00ad\u200b', note='\t"é\n\\n \U0001f600', files=(entry('a "b" <c>/é|*?'),)
        ),
        parcel(files=tuple(entry(f"folder {number % 7}/файл {number}") for number in range(10_000))),
    ]
    async with our_page(new_visitor, tmp_path) as page:
        found = await opened_by(page, [seal_metadata(LINK_SECRET, metadata) for metadata in described])

    for metadata, got in zip(described, found, strict=True):
        assert got["text"].encode() == encode_metadata(metadata)
        assert open_metadata(LINK_SECRET, base64url.decode(got["sealed"])) == metadata


def hostile_documents() -> list[bytes]:
    """Each member of a document left out, and with values of every type, length and range."""
    file, picture = document()["files"][0], document()["preview"]
    # 1.0 is not among them: JavaScript cannot see it.
    oddities: list[Any] = [
        None,
        True,
        0,
        -1,
        1.5,
        2**52,
        -(2**60),
        "",
        "x",
        "é" * 257,
        "a/b",
        "a\u202eb",
        "\x7f",
    ]
    oddities += ["A" * 43, "A" * 42 + "B", "K" + "A" * 53, "A" * 54, "x\n\t", "\u2028", "e\u0301"]
    oddities += [[], {}, [{}], [file, file], [None], 253_402_300_799, 253_402_300_800, -62_135_596_801]
    too_large = picture | {"image": picture["image"] + "A" * 349_600}

    def changed(whole: dict[str, Any]) -> list[dict[str, Any]]:
        without = [{name: whole[name] for name in whole if name != left} for left in whole]
        return without + [whole | {name: odd} for name in whole for odd in oddities]

    documents = changed(document())
    documents += [document(files=[one]) for one in changed(file)]
    documents += [document(preview=one) for one in (*changed(picture), too_large)]
    documents += [document(note="a" * size) for size in (16_384, 16_385)]
    documents += [document(preview=picture | {"media_type": "image/jpeg"})]
    texts = [json.dumps(one, ensure_ascii=False).encode() for one in documents]
    plain = json.dumps(document()).encode()
    return [
        *texts,
        b"",
        b"[]",
        b"null",
        b"\xef\xbb\xbf" + plain,
        plain + b"x",
        plain.replace(b"Two", b"\xff"),
    ]


async def test_the_page_refuses_the_descriptions_that_python_refuses(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    sealed = [forge(text) for text in hostile_documents()]
    sealed += [b"", bytes(27), bytes(28), bytes((4 << 20) + 1)]
    async with our_page(new_visitor, tmp_path) as page:
        found = await opened_by(page, sealed)

    verdicts = []
    for one, got in zip(sealed, found, strict=True):
        try:
            expected = {"text": encode_metadata(open_metadata(LINK_SECRET, one)).decode()}
        except StorageError as failure:
            expected = {"kind": kind_of(failure)}
        got.pop("sealed", None)
        verdicts.append(expected.get("kind", "ok"))
        assert got == expected, one[12:-16]
    assert {verdict: verdicts.count(verdict) > 1 for verdict in verdicts} == {
        "ok": True,
        "metadata-invalid": True,
        "path-refused": True,
        "metadata-authentication-failed": True,
    }


CHECK_PATHS = """async (lists) => {
  const {checkPaths} = await import('/static/paths.js');
  return JSON.stringify(JSON.parse(lists).map((paths) => {
    try {
      return checkPaths(paths);
    } catch (failure) {
      return failure.kind ?? String(failure);
    }
  }));
}"""
# Names that meet, or seem to, after folding; and ones that no path may hold.
NAMES = [
    *(
        "a",
        "A",
        "ß",
        "ss",
        "ẞ",
        "ı",
        "I",
        "i",
        "İ",
        "i\u0307",
        "ǆ",
        "ǅ",
        "Σ",
        "σ",
        "ς",
        "ΑΣ",
        "ας",
        "ΑΙ",
        "ᾳ",
        "ΐ",
    ),
    *(
        "é",
        "E\u0301",
        "Ꭰ",
        "ꭰ",
        "ᏸ",
        "ᏰᏠ",
        "K",
        "k",
        "ſt",
        "ﬆ",
        "CON",
        "con .txt",
        "Lpt¹",
        "conın$",
        "COM",
        "COM10",
    ),
    *(
        "..",
        ".",
        "..data",
        "",
        " ",
        "a.",
        "a ",
        " a",
        "\u202e",
        "\x00",
        "\u200b",
        "\\",
        ":",
        "a/",
        "/a",
        "a//b",
        "\ud800",
    ),
    *(
        "x" * 255,
        "x" * 256,
        "é" * 127,
        "é" * 128,
        "/".join(["x" * 204] * 5),
        "/".join(["x" * 204] * 5) + "x",
        "\u2126",
    ),
]


async def test_the_page_refuses_the_paths_that_python_refuses(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    lists = [[one, other] for one, other in itertools.product(NAMES, repeat=2)]
    lists += [[one, f"{other}/b"] for one, other in itertools.product(NAMES, repeat=2)]
    async with our_page(new_visitor, tmp_path) as page:
        # As JSON in JSON: lone surrogates do not travel.
        found = json.loads(await page.evaluate(CHECK_PATHS, json.dumps(lists)))

    for paths, got in zip(lists, found, strict=True):
        try:
            expected: object = check_paths(paths)
        except StorageError as failure:
            expected = kind_of(failure)
        assert got == expected, ascii(paths)


# Of each of these characters that is not its own folding, or that no path may hold: [code, folding, refused].
EVERY_CHARACTER = """async (codes) => {
  const {checkPaths, fold} = await import('/static/paths.js');
  const refused = (character) => {
    try {
      checkPaths([`x${character}x`]);
      return false;
    } catch {
      return true;
    }
  };
  const [unknown, special] = [[], []];
  for (const code of JSON.parse(codes)) {
    const character = String.fromCodePoint(code);
    if (/\\p{Cn}/u.test(character)) unknown.push(code);
    const [folding, hidden] = [fold(character), refused(character)];
    if (folding !== character || hidden) special.push([code, folding, hidden]);
  }
  return JSON.stringify({unknown, special});
}"""


async def test_every_character_folds_and_is_refused_as_in_python(
    new_visitor: NewVisitor, tmp_path: Path
) -> None:
    # What is not assigned or private has no folding to compare.
    categories = {code: unicodedata.category(chr(code)) for code in range(0x110000)}
    codes = [code for code, category in categories.items() if category not in {"Cn", "Co"}]
    async with our_page(new_visitor, tmp_path) as page:
        found = json.loads(await page.evaluate(EVERY_CHARACTER, json.dumps(codes)))
    special = {code: (folding, refused) for code, folding, refused in found["special"]}

    different = []
    for code in set(codes) - set(found["unknown"]):
        folding = unicodedata.normalize("NFC", chr(code).casefold())
        refused = categories[code] in {"Cc", "Cf", "Cs", "Zl", "Zp"} or chr(code) in "\\:"
        if special.get(code, (chr(code), False)) != (folding, refused):
            different.append(f"U+{code:04X}")
    # Python's Unicode and the browser's are not equally old; of what both know they must think the same.
    assert different == []
    assert len(found["unknown"]) < len(codes) // 10


WRITE_AND_READ = """async (texts) => {
  const {encode} = await import('/static/base64url.js');
  const links = await import('/static/links.js');
  const read = (parse, text) => {
    try {
      const parts = Object.values(parse(text));
      return parts.map((part) => (typeof part === 'string' ? part : encode(part)));
    } catch (failure) {
      return `${failure.kind}: ${failure.message}`;
    }
  };
  const written = (text) => {
    try {
      const {publicUrl, offerId, linkSecret} = links.parseLink(text);
      return links.linkUrl(publicUrl, offerId, linkSecret);
    } catch {
      try {
        const {publicUrl, invoiceId, claimSecret, linkSecret} = links.parseReceipt(text);
        return links.receiptUrl(publicUrl, invoiceId, claimSecret, linkSecret);
      } catch {
        return null;
      }
    }
  };
  return texts.map((text) => [read(links.parseLink, text), read(links.parseReceipt, text), written(text)]);
}"""


async def test_links_are_read_as_in_python(new_visitor: NewVisitor, tmp_path: Path) -> None:
    servers = [
        SERVER,
        "http://127.0.0.1:8080",
        "http://[::1]:80/below/a/path",
        f"{SERVER}/d/x",
        f"{SERVER}/",
        "HTTPS://a",
    ]
    servers += [
        "ftp://a",
        "https://me:secret@a",
        "https://@a",
        "https://a:99999",
        "https://",
        "https:\\\\a",
        "https://a b",
    ]
    servers += ["https://é", "", "javascript:alert(1)//", "https:/a", "https://a\nb"]
    places = [
        f"d/{OFFER_ID}",
        f"r/{OFFER_ID}",
        f"d/{OFFER_ID.upper()}",
        "d/",
        f"x/{OFFER_ID}",
        f"d/{OFFER_ID}/",
        "d/..%2f",
    ]
    ends = [
        "",
        "#",
        f"#1.{SECRET}",
        f"#1.{SECRET}.{OTHER}",
        f"#2.{SECRET}",
        f"#{SECRET}",
        f"#1.{SECRET[:-1]}",
        f"#1.{SECRET}AA",
    ]
    ends += [
        f"#1.{SECRET}.",
        f"#1.{SECRET}.{OTHER}.{OTHER}",
        f"#1.{base64url.encode(bytes(31))}",
        f"#1.{SECRET}#",
        f"#1.{SECRET}=",
    ]
    texts = [f"{server}/{place}{end}" for server, place, end in itertools.product(servers, places, ends)]
    texts += [
        f" {SERVER}/d/{OFFER_ID}#1.{SECRET}\n",
        "",
        "hello",
        "x" * 5000,
        f"{SERVER}/{'x' * 4096}/d/{OFFER_ID}#1.{SECRET}",
    ]
    async with our_page(new_visitor, tmp_path) as page:
        found = await page.evaluate(WRITE_AND_READ, texts)
        # What chat programs append is no reason to refuse a buyer; a host that is another to browsers is.
        tracked, disguised = await page.evaluate(
            WRITE_AND_READ,
            [f"{SERVER}/d/{OFFER_ID}?from=chat#1.{SECRET}", f"https://a\\b/d/{OFFER_ID}#1.{SECRET}"],
        )

    understood = 0
    for text, (link, receipt, written) in zip(texts, found, strict=True):
        try:
            expected: Link | Receipt | None = parse(text)
        except LinkInvalid:
            expected = None
        as_link = isinstance(expected, Link) and [expected.server, expected.offer_id, SECRET]
        as_receipt = isinstance(expected, Receipt) and [expected.server, expected.invoice_id, SECRET, OTHER]
        for got, parts in ((link, as_link), (receipt, as_receipt)):
            if parts:
                assert got == parts
            else:
                assert got.startswith("link-invalid: "), text
                assert SECRET[:8] not in got
        assert written == (str(expected) if expected else None)
        understood += expected is not None
    assert understood > 10
    assert tracked[2] == f"{SERVER}/d/{OFFER_ID}#1.{SECRET}"
    assert disguised[2] is None
