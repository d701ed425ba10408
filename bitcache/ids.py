"""Ids and tokens. Ids name rows and are no secret unless said so; tokens are, and only hashes are kept."""

import base64
import hashlib
import re
import secrets

ID_PATTERN = "[a-z2-7]{26}"
"""128 random bits as lower-case base32 without padding."""
SELLER_TOKEN_PREFIX = "bcs_"  # noqa: S105

_ID = re.compile(ID_PATTERN)


def new_id() -> str:
    """A fresh id: 26 characters, 128 random bits."""
    return id_text(secrets.token_bytes(16))


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def id_text(octets: bytes) -> str:
    """The id of 16 bytes as text."""
    return _base32(octets)


def raw_id(text: str) -> bytes:
    """The 16 bytes of an id. Raises ValueError for any other text."""
    if not is_id(text):
        raise ValueError("an id is 26 characters of a-z and 2-7")
    octets = base64.b32decode(text.upper() + "======")
    if id_text(octets) != text:
        raise ValueError("an id has no loose bits at its end")
    return octets


def new_token(prefix: str) -> str:
    """A fresh secret: 256 random bits after `prefix`, which tells people and scanners what it opens."""
    return prefix + _base32(secrets.token_bytes(32))


def token_hash(token: str) -> bytes:
    """What is stored of a token, 32 bytes. Tokens are random, so one fast hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def _base32(octets: bytes) -> str:
    return base64.b32encode(octets).decode().rstrip("=").lower()
