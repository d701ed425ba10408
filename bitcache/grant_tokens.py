"""Grant tokens: who may download, for a quarter of an hour. Pure.

    token   = "bcg_" || base64url(payload || HMAC-SHA256(key, payload))
    payload = 0x01 || grant_id[16] || offer_id[16] || parcel_id[16] || uint64_be(expires_at)

Nothing of it is stored. A token says who asks; whether the payment still stands is the grant book's to say.
"""

import base64
import struct
from dataclasses import dataclass

from bitcache.errors import GrantTokenInvalid
from bitcache.signed import MAC_SIZE_BYTES, payload_of, sign
from storage import base64url

PREFIX = "bcg_"
VERSION = 1

_PAYLOAD = struct.Struct(">B16s16s16sQ")
_TOKEN_LENGTH = len(PREFIX) + -(-(_PAYLOAD.size + MAC_SIZE_BYTES) * 4 // 3)


@dataclass(frozen=True, slots=True)
class GrantClaims:
    """What a token says. Ids are the 16 raw bytes: they are compared, never shown."""

    grant_id: bytes
    offer_id: bytes
    parcel_id: bytes
    expires_at: int


def seal_token(key: bytes, claims: GrantClaims) -> str:
    payload = _PAYLOAD.pack(VERSION, claims.grant_id, claims.offer_id, claims.parcel_id, claims.expires_at)
    return PREFIX + base64url.encode(sign(key, payload))


def open_token(key: bytes, token: str, now: int) -> GrantClaims:
    """What `token` says, if `key` made it and it lives at `now`. Raises GrantTokenInvalid.

    On every request's path: one HMAC and no allocation to speak of.
    """
    if len(token) != _TOKEN_LENGTH or not token.startswith(PREFIX):
        raise GrantTokenInvalid("is not one of this server, or was cut off")
    try:
        octets = base64.b64decode(token[len(PREFIX) :] + "=" * (-(_TOKEN_LENGTH - len(PREFIX)) % 4), b"-_")
    except ValueError as exc:
        raise GrantTokenInvalid("is damaged") from exc
    payload = payload_of(key, octets)
    if payload is None:
        raise GrantTokenInvalid("is not one of this server")
    version, grant_id, offer_id, parcel_id, expires_at = _PAYLOAD.unpack(payload)
    if version != VERSION:
        raise GrantTokenInvalid("has a version this server does not know")
    if now >= expires_at:
        raise GrantTokenInvalid("has expired")
    return GrantClaims(grant_id, offer_id, parcel_id, expires_at)
