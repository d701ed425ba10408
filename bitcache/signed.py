"""What this server hands out and knows again without keeping it: payload || HMAC-SHA256(key, payload). Pure.

Each use has a key of its own (`Sealer.mac_key`), so what is signed for one is nothing to another.
"""

import hmac

MAC_SIZE_BYTES = 32


def sign(key: bytes, payload: bytes) -> bytes:
    return payload + hmac.digest(key, payload, "sha256")


def payload_of(key: bytes, octets: bytes) -> bytes | None:
    """The payload, if `key` signed it: then it is as it was made, its length too. None of anything else."""
    payload, mac = octets[:-MAC_SIZE_BYTES], octets[-MAC_SIZE_BYTES:]
    return payload if hmac.compare_digest(hmac.digest(key, payload, "sha256"), mac) else None
