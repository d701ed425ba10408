"""What a link or receipt leads to, once the sealed description vouches for what the server says. Pure.

The description is sealed by the seller; sizes and roots of the server must agree with it, file by file,
before anybody pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bitcache.api import wire
from bitcache.client.errors import FileAltered, ParcelAltered
from storage import base64url, keys, stream
from storage.errors import KeyUnwrapFailed, MetadataInvalid
from storage.metadata import ParcelMetadata, open_metadata


@dataclass(frozen=True)
class ParcelFile:
    """One file to download. `path` is checked; `header` and `root` are the seller's."""

    position: int
    file_id: str
    path: str
    modified_at: int
    plain_bytes: int
    cipher_bytes: int
    header: bytes
    root: bytes
    wrapped_key: bytes

    @property
    def chunk_count(self) -> int:
        return stream.chunk_count(self.cipher_bytes)


@dataclass(frozen=True)
class OpenedParcel:
    metadata: ParcelMetadata
    files: tuple[ParcelFile, ...]

    @property
    def plain_bytes(self) -> int:
        return sum(file.plain_bytes for file in self.files)

    @property
    def cipher_bytes(self) -> int:
        return sum(file.cipher_bytes for file in self.files)


def open_parcel(
    link_secret: bytes, *, files: Sequence[wire.ParcelFileView], sealed_metadata: str
) -> OpenedParcel:
    """The parcel, its description opened and compared with the server's list of files.

    Raises ParcelAltered, and of storage MetadataAuthenticationFailed, MetadataInvalid, PathRefused.
    """
    metadata = open_metadata(link_secret, _binary("description", sealed_metadata))
    if len(files) != len(metadata.files):
        raise ParcelAltered(
            "file-count", f"The server has {len(files)} files, the seller describes {len(metadata.files)}."
        )
    opened = []
    for position, (entry, view) in enumerate(zip(metadata.files, files, strict=True)):
        cipher_bytes = stream.ciphertext_size(entry.size_bytes)
        if view.size_bytes != cipher_bytes:
            raise ParcelAltered("file-size", f"The server has another size for {entry.path}.")
        if _binary("root", view.root) != entry.root:
            raise ParcelAltered("file-root", f"The server has another file in the place of {entry.path}.")
        opened.append(
            ParcelFile(
                position=position,
                file_id=view.file_id,
                path=entry.path,
                modified_at=entry.modified_at,
                plain_bytes=entry.size_bytes,
                cipher_bytes=cipher_bytes,
                header=entry.header,
                root=entry.root,
                wrapped_key=_binary("wrapped key", view.wrapped_key),
            )
        )
    return OpenedParcel(metadata=metadata, files=tuple(opened))


def check_unchanged(before: OpenedParcel, after: OpenedParcel) -> None:
    """Raises ParcelAltered if the server described something else after the payment than before."""
    if before.metadata != after.metadata:
        raise ParcelAltered("description-changed", "The server gives another description than before.")


def file_keys(parcel: OpenedParcel, *, link_secret: bytes, release_secret: bytes) -> tuple[bytes, ...]:
    """The key of each file, once the release secret is proven right.

    Raises ReleaseSecretWrong, and FileAltered for a wrapped key that does not open.
    """
    parcel_key = keys.proven_parcel_key(
        link_secret,
        release_secret,
        expected_commitment=parcel.metadata.release_commitment,
        expected_key_check=parcel.metadata.key_check,
    )
    return tuple(_file_key(parcel_key, file) for file in parcel.files)


def check_invoice(invoice: wire.InvoiceView, offer: wire.OfferView) -> None:
    """Raises ParcelAltered if the invoice demands something else than the offer promised."""
    if invoice.offer_id != offer.offer_id or invoice.parcel_id != offer.parcel_id:
        raise ParcelAltered("offer", "The server's invoice is for another offer.")
    if offer.price is None:
        raise ParcelAltered("price", "The offer is sold per chunk alone, and the server made an invoice.")
    offered_sat = offer.price.amount_msat // 1000
    if invoice.price_sat != offered_sat:
        raise ParcelAltered(
            "price", f"The offer said {offered_sat} sat, the invoice says {invoice.price_sat} sat."
        )


def check_price(invoice: wire.InvoiceView, price_sat_max: int | None) -> None:
    """Raises ParcelAltered if more is due than was ever shown. None: no price was."""
    if price_sat_max is not None and invoice.due_sat and invoice.price_sat > price_sat_max:
        raise ParcelAltered(
            "price",
            f"The price was {price_sat_max} sat, the invoice says {invoice.price_sat} sat. Do not pay.",
        )


def _file_key(parcel_key: bytes, file: ParcelFile) -> bytes:
    try:
        return keys.unwrap_file_key(parcel_key, file.wrapped_key, file.header)
    except KeyUnwrapFailed as exc:
        raise FileAltered(file.path, exc) from exc


def _binary(name: str, text: str) -> bytes:
    try:
        return base64url.decode(text)
    except ValueError as exc:
        raise MetadataInvalid(f"{name}: {exc}") from exc
