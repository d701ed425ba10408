"""Proof of work: what a buyer's program is asked for before a seller's addresses run out.

    challenge = payload || HMAC-SHA256(key, payload)
    payload   = 0x01 || offer_id[16] || claim_hash[32] || uint64_be(expires_at) || bits[1]
    solution  = nonce[8] such that SHA-256(SHA-256(challenge) || nonce) begins with `bits` zero bits

Every invoice takes an address for ever, and a wallet stops looking after as many unused ones as its gap
limit. Who asks and never pays could so hide the next payment from a seller, and a flat refusal would let him
stop all sales. So addresses get dearer instead, for everybody alike, the further they go. Nothing is kept:
the challenge says all, and is good for one claim hash, which always leads to the same invoice.
"""

import hashlib
import struct
from typing import NamedTuple

from bitcache.config import LimitsConfig
from bitcache.errors import WorkRequired
from bitcache.ids import raw_id
from bitcache.signed import payload_of, sign

MAC_PURPOSE = "work-challenge"
GAP_MARGIN = 5
"""Addresses that a wallet still looks at when work begins to be asked for."""
ADDRESSES_PER_BIT = 4
BITS_PER_EXCESS = 8
"""More bits for each minute's worth of invoices beyond the pace."""
BITS_BEHIND_MAX = 2
"""So much easier a solved challenge may be than one of now: who computes must not run after a crowd."""
LIFETIME_S = 900
NONCE_BYTES = 8

_VERSION = 1
_PAYLOAD = struct.Struct(">B16s32sQB")


class Solution(NamedTuple):
    challenge: bytes
    nonce: bytes


def bits_needed(
    limits: LimitsConfig, *, unused_streak: int, gap_limit: int, seller_full: bool, excess: float
) -> int:
    """Zero bits that one more invoice costs; 0 mostly. Pure.

    `unused_streak`: addresses in a row that were handed out and never paid; `gap_limit`: how many of them the
    seller's wallet bridges; `seller_full`: as many invoices are unpaid as the operator allows one seller;
    `excess`: as `Pressure.excess` has it.
    """
    if not limits.work_bits_max:
        return 0
    wanted = [0]
    beyond = unused_streak - (gap_limit - GAP_MARGIN)
    if beyond >= 0:
        wanted.append(limits.work_bits_min + beyond // ADDRESSES_PER_BIT)
    if excess > 0:
        wanted.append(limits.work_bits_min + int(excess * BITS_PER_EXCESS))
    if seller_full:
        wanted.append(limits.work_bits_max)
    return min(max(wanted), limits.work_bits_max)


def streak_counted_max(limits: LimitsConfig, gap_limit: int) -> int:
    """A longer streak costs no more. Pure."""
    return gap_limit + (limits.work_bits_max - limits.work_bits_min + 1) * ADDRESSES_PER_BIT


def zero_bits(digest: bytes) -> int:
    """Leading zero bits. Pure."""
    return len(digest) * 8 - int.from_bytes(digest).bit_length()


class Work:
    """Asks for work and recognises it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def demand(self, offer_id: str, claim_hash: bytes, *, bits: int, now: int) -> WorkRequired:
        """To be raised: a fresh challenge of `bits`."""
        expires_at = now + LIFETIME_S
        payload = _PAYLOAD.pack(_VERSION, raw_id(offer_id), claim_hash, expires_at, bits)
        return WorkRequired(sign(self._key, payload), bits=bits, expires_at=expires_at)

    def check(
        self, solution: Solution | None, offer_id: str, claim_hash: bytes, *, bits: int, now: int
    ) -> None:
        """Raises WorkRequired unless enough was done for this very purchase."""
        done = 0 if solution is None else self._done(solution, offer_id, claim_hash, now)
        if done < max(bits - BITS_BEHIND_MAX, 1 if bits else 0):
            raise self.demand(offer_id, claim_hash, bits=bits, now=now)

    def _done(self, solution: Solution, offer_id: str, claim_hash: bytes, now: int) -> int:
        """Bits of a challenge of ours that is solved; 0 for any other."""
        challenge, nonce = solution
        payload = payload_of(self._key, challenge)
        if payload is None:
            return 0
        version, offer, claim, expires_at, bits = _PAYLOAD.unpack(payload)
        if version != _VERSION or (offer, claim) != (raw_id(offer_id), claim_hash) or now >= expires_at:
            return 0
        return bits if zero_bits(attempt(challenge, nonce)) >= bits else 0


def attempt(challenge: bytes, nonce: bytes) -> bytes:
    """The digest that must begin with zeros. Pure."""
    return hashlib.sha256(hashlib.sha256(challenge).digest() + nonce).digest()
