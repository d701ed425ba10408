"""Receipts and links as they are kept on this computer: small files, for the user alone, written durably.

A claim secret is on disk before the server hears of it, so no crash can cost a buyer what was paid. A
seller's link secret is on disk before there is an offer, since nobody else could ever make the link again.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from bitcache.client.errors import LinkInvalid
from bitcache.client.link import Link, Receipt, parse
from bitcache.client.places import make_private_folder, write_private
from storage import base64url, keys


class KeptReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a buyer must not lose. `invoice_id` is None between making the secret and the server's answer."""

    link: str
    claim_secret: str
    created_at: int
    title: str
    invoice_id: str | None = None
    price_sat: int = 0
    reference: str = ""

    @property
    def receipt(self) -> Receipt | None:
        """The receipt proper, once there is an invoice."""
        if self.invoice_id is None:
            return None
        link = _link(self.link)
        return Receipt(link.server, self.invoice_id, base64url.decode(self.claim_secret), link.link_secret)


class ReceiptBook:
    """All receipts in one folder, each in a file named after its claim secret's hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, link: Link, *, title: str) -> KeptReceipt:
        """A new claim secret for this link, durably kept."""
        kept = KeptReceipt(
            link=str(link),
            claim_secret=base64url.encode(keys.new_secret()),
            created_at=int(time.time()),
            title=title,
        )
        self.save(kept)
        return kept

    def save(self, kept: KeptReceipt) -> None:
        write_private(self._path(kept), msgspec.json.encode(kept))

    def forget(self, kept: KeptReceipt) -> None:
        self._path(kept).unlink(missing_ok=True)

    def all(self) -> list[KeptReceipt]:
        """Newest first. Damaged files are left alone."""
        return sorted(_load(self._folder, KeptReceipt), key=lambda kept: kept.created_at, reverse=True)

    def newest(self, link: Link) -> KeptReceipt | None:
        """The last receipt for exactly this link."""
        return next((kept for kept in self.all() if kept.link == str(link)), None)

    def payment_path(self, invoice_id: str) -> Path:
        """Where the payment of an invoice is recorded before it is broadcast."""
        return self._folder / "payments" / f"{invoice_id}.json"

    def _path(self, kept: KeptReceipt) -> Path:
        return self._folder / f"{hashlib.sha256(kept.claim_secret.encode()).hexdigest()[:32]}.json"


class KeptParcel(msgspec.Struct, frozen=True, kw_only=True):
    """What a seller must not lose of a parcel. `title` is for the seller's own lists."""

    server: str
    parcel_id: str
    link_secret: str
    title: str
    created_at: int

    def link(self, offer_id: str) -> Link:
        return Link(self.server, offer_id, base64url.decode(self.link_secret))


class ParcelBook:
    """The parcels uploaded from this computer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, server: str, parcel_id: str, link_secret: bytes, *, title: str) -> KeptParcel:
        """Keep the secret of a parcel, durably."""
        kept = KeptParcel(
            server=server,
            parcel_id=parcel_id,
            link_secret=base64url.encode(link_secret),
            title=title,
            created_at=int(time.time()),
        )
        write_private(self._folder / f"{parcel_id}.json", msgspec.json.encode(kept))
        return kept

    def get(self, server: str, parcel_id: str) -> KeptParcel | None:
        """None for a parcel of another computer or another server."""
        parcels = _load(self._folder, KeptParcel)
        return next((kept for kept in parcels if (kept.server, kept.parcel_id) == (server, parcel_id)), None)


K = TypeVar("K")


def _load(folder: Path, kind: type[K]) -> Iterator[K]:
    make_private_folder(folder)
    for path in sorted(folder.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


def _link(text: str) -> Link:
    link = parse(text)
    if not isinstance(link, Link):
        raise LinkInvalid("A kept receipt holds no link. Look for another copy of it.")
    return link
