"""Ids that payments makes for itself."""

import secrets
from base64 import b32encode


def new_id() -> str:
    """128 random bits in 26 characters of base32, as all ids are."""
    return b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()
