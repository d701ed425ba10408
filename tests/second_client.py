"""A seller's and a buyer's client, written a second time from docs/PROTOCOL.md and docs/FORMAT.md alone.

It imports nothing of ours, so it can only do what the pages say. It holds files in memory, keeps no state on
disk and does one thing at a time: a proof that the pages are enough, not a client to use.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from tests import second_format as second
from tests.second_metadata import open_metadata, seal_metadata

API = "/api/v1"
PART_CHUNKS = 8
RANGE_CHUNKS = 2
ANSWER_BYTES_MAX = 32 << 20
WAIT_S = 30.0
POLL_S = 0.1
SECRET = r"[A-Za-z0-9_-]{43}"
LINK = re.compile(rf"(https?://[^#?]+)/d/([a-z2-7]{{26}})#1\.({SECRET})")
RECEIPT = re.compile(rf"(https?://[^#?]+)/r/([a-z2-7]{{26}})#1\.({SECRET})\.({SECRET})")


class Problem(Exception):
    """The server refused. `name` is the last segment of the problem's type."""

    def __init__(self, status: int, headers: Message, document: dict[str, Any]) -> None:
        self.status = status
        self.headers = headers
        self.name = document["type"].rsplit("/", 1)[-1]
        super().__init__(f"{status} {self.name}: {document['detail']}")


class Mismatch(Exception):
    """The server shows or sends something else than the seller sealed."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A server at its public URL. Redirects are never followed."""

    public_url: str
    token: str | None = None

    def send(
        self,
        method: str,
        path: str,
        *,
        document: object = None,
        octets: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request below /api/v1. Raises Problem."""
        address = urlsplit(self.public_url)
        connect = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = connect(address.netloc, timeout=60)
        sent = dict(headers or {})
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        if document is not None:
            octets = json.dumps(document).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, address.path + API + path, body=octets, headers=sent)
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX)
        finally:
            connection.close()
        answer = Answer(response.status, response.headers, body)
        if answer.status >= 300:
            raise Problem(answer.status, answer.headers, answer.json())
        return answer

    def as_bearer(self, token: str) -> Server:
        return Server(self.public_url, token)


@dataclass(frozen=True)
class Shown:
    """An offer whose metadata opened and agrees with what the server lists."""

    server: Server
    offer: dict[str, Any]
    link_secret: bytes
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Order:
    """An invoice and the receipt that claims it. Nothing is paid yet."""

    invoice: dict[str, Any]
    receipt: str


def sell(server: Server, files: Mapping[str, bytes], *, title: str, price_sat: int, bytes_at: int = 1) -> str:
    """Encrypt, upload and offer files by path; the link."""
    link_secret, release_secret = os.urandom(32), os.urandom(32)
    parcel_key = second.parcel_key(link_secret, release_secret)
    entries, listed = [], []
    for path, plaintext in files.items():
        sealed = second.seal_content(plaintext)
        wrapped = second.wrap(parcel_key, sealed.key, sealed.header)
        listed.append({"file_id": upload(server, sealed), "wrapped_key": second.encode(wrapped)})
        entries.append(
            {
                "path": path,
                "media_type": "application/octet-stream",
                "size_bytes": len(plaintext),
                "modified_at": int(time.time()),
                "header": second.encode(sealed.header),
                "root": second.encode(sealed.root),
            }
        )
    metadata = {
        "version": 1,
        "title": title,
        "note": "",
        "preview": None,
        "files": entries,
        "release_commitment": second.encode(second.release_commitment(release_secret)),
        "key_check": second.encode(second.key_check(parcel_key)),
    }
    parcel_id = server.send("POST", "/parcels", document={"files": listed}).json()["parcel_id"]
    seal = {
        "metadata": second.encode(seal_metadata(link_secret, metadata)),
        "release_secret": second.encode(release_secret),
    }
    server.send("POST", f"/parcels/{parcel_id}/seal", document=seal)
    terms = {
        "parcel_id": parcel_id,
        "price": {"kind": "fixed", "amount_msat": price_sat * 1000},
        "policy": {"bytes_at": bytes_at, "key_at": 1},
    }
    offer_id = server.send("POST", "/offers", document=terms).json()["offer_id"]
    return f"{server.public_url}/d/{offer_id}#1.{second.encode(link_secret)}"


def upload(server: Server, sealed: second.Sealed) -> str:
    """Send the parts last first, and the last one twice; the id of the complete file."""
    file_id: str = server.send("POST", "/files", document={"size_bytes": sealed.size_bytes}).json()["file_id"]
    numbers = list(range(-(-len(sealed.chunks) // PART_CHUNKS)))
    for part_no in [*reversed(numbers), numbers[-1]]:
        of_part = slice(part_no * PART_CHUNKS, (part_no + 1) * PART_CHUNKS)
        server.send(
            "PUT",
            f"/files/{file_id}/parts/{part_no}",
            octets=b"".join(sealed.chunks[of_part]),
            headers={"Bitcache-Chunk-Digests": second.encode(b"".join(sealed.digests[of_part]))},
        )
    server.send("POST", f"/files/{file_id}/complete", document={"root": second.encode(sealed.root)})
    return file_id


def look(link: str) -> Shown:
    """Open a link and check all that can be checked before paying. Raises Mismatch, Refused, Problem."""
    found = LINK.fullmatch(link)
    if found is None:
        raise ValueError("this is not a whole link")
    server, link_secret = Server(found[1]), second.decode(found[3])
    offer = server.send("GET", f"/offers/{found[2]}").json()
    return Shown(server, offer, link_secret, _checked_metadata(link_secret, offer))


def order(shown: Shown, *, network: str) -> Order:
    """Ask for an invoice to pay on `network`."""
    if shown.offer["network"] != network:
        raise Mismatch(f"the offer is to be paid on {shown.offer['network']}")
    claim_secret = os.urandom(32)
    claim_hash = second.encode(hashlib.sha256(claim_secret).digest())
    invoice = shown.server.send(
        "POST", f"/offers/{shown.offer['offer_id']}/invoices", document={"claim_hash": claim_hash}
    ).json()
    secrets = f"{second.encode(claim_secret)}.{second.encode(shown.link_secret)}"
    return Order(invoice, f"{shown.server.public_url}/r/{invoice['invoice_id']}#1.{secrets}")


def download(receipt: str, *, wait_s: float = WAIT_S) -> dict[str, bytes]:
    """Wait for the key, then fetch, verify and decrypt all that the receipt paid for, by path."""
    found = RECEIPT.fullmatch(receipt)
    if found is None:
        raise ValueError("this is not a whole receipt")
    server, invoice_id, link_secret = Server(found[1]), found[2], second.decode(found[4])
    offer_id = server.send("GET", f"/invoices/{invoice_id}").json()["offer_id"]
    claim = _claim(server, invoice_id, claim_secret=found[3], wait_s=wait_s)
    metadata = _checked_metadata(link_secret, claim)
    granted = server.as_bearer(claim["grant_token"])
    ciphertexts = [fetch(granted, offer_id, file) for file in claim["files"]]
    return opened(metadata, claim["files"], ciphertexts, link_secret, second.decode(claim["release_secret"]))


def opened(
    metadata: dict[str, Any],
    files: list[dict[str, Any]],
    ciphertexts: list[bytes],
    link_secret: bytes,
    release_secret: bytes,
) -> dict[str, bytes]:
    """Prove the release secret, unwrap the keys and decrypt; the files by path."""
    parcel_key = second.proven_key(
        link_secret,
        release_secret,
        commitment=second.decode(metadata["release_commitment"]),
        check=second.decode(metadata["key_check"]),
    )
    plaintexts = {}
    for entry, file, ciphertext in zip(metadata["files"], files, ciphertexts, strict=True):
        header = second.decode(entry["header"])
        if not ciphertext.startswith(header):
            raise Mismatch("the file begins with another header")
        file_key = second.unwrap(parcel_key, second.decode(file["wrapped_key"]), header)
        plaintexts[entry["path"]] = second.open_content(ciphertext, key=file_key)
    return plaintexts


def fetch(granted: Server, offer_id: str, file: dict[str, Any]) -> bytes:
    """A file's ciphertext, range by range: the list has its root, and each chunk its digest in the list."""
    base = f"/offers/{offer_id}/files/{file['file_id']}"
    digests = granted.send("GET", f"{base}/digests").body
    if second.encode(hashlib.sha256(digests).digest()) != file["root"]:
        raise Mismatch("the digests are not those of the root")
    size_bytes, chunks = file["size_bytes"], []
    for first in range(0, size_bytes, RANGE_CHUNKS * second.CHUNK_BYTES):
        last = min(first + RANGE_CHUNKS * second.CHUNK_BYTES, size_bytes) - 1
        asked = {"Range": f"bytes={first}-{last}", "If-Range": f'"{file["root"]}"'}
        answer = granted.send("GET", f"{base}/content", headers=asked)
        if answer.status != 206 or answer.headers["Content-Range"] != f"bytes {first}-{last}/{size_bytes}":
            raise Mismatch("the answer is not the range that was asked for")
        step = second.CHUNK_BYTES
        chunks += [answer.body[at : at + step] for at in range(0, len(answer.body), step)]
    if b"".join(hashlib.sha256(chunk).digest() for chunk in chunks) != digests:
        raise Mismatch("a chunk has another digest")
    return b"".join(chunks)


def _checked_metadata(link_secret: bytes, shown: dict[str, Any]) -> dict[str, Any]:
    """The metadata, if the server lists the very files that it describes."""
    metadata = open_metadata(link_secret, second.decode(shown["metadata"]))
    described = [(second.ciphertext_size(file["size_bytes"]), file["root"]) for file in metadata["files"]]
    if described != [(file["size_bytes"], file["root"]) for file in shown["files"]]:
        raise Mismatch("the server lists other files than the seller sealed")
    return metadata


def _claim(server: Server, invoice_id: str, *, claim_secret: str, wait_s: float) -> dict[str, Any]:
    """The claim, once the key is out. Raises TimeoutError."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        claim: dict[str, Any] = server.send(
            "POST", f"/invoices/{invoice_id}/claim", document={"claim_secret": claim_secret}
        ).json()
        if claim["key_allowed"]:
            return claim
        time.sleep(POLL_S)
    raise TimeoutError("the payment did not confirm in time")
