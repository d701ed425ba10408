"""Bytes as text in metadata, links and receipts: base64url without padding (RFC 4648, 5), canonical only."""

import base64
import binascii
import re

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


def encode(octets: bytes) -> str:
    """`octets` as text of ceil(4 n / 3) characters."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes that `encode` turns into `text`. Raises ValueError for anything `encode` never gives.

    Python's decoder skips foreign characters and ignores loose bits at the end: many texts would stand for
    one secret.
    """
    if not _ALPHABET.fullmatch(text):
        raise ValueError("base64url has only the characters A-Z, a-z, 0-9, - and _")
    try:
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError("base64url is cut off") from exc
    if encode(octets) != text:
        raise ValueError("base64url has loose bits at its end")
    return octets
