"""Earning an address: the proof of work that a server asks for when a seller's addresses run short.

The search runs in a thread, a slice at a time, so that it can be stopped and watched.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable

from bitcache.api import wire
from bitcache.client.errors import ServerAnswerWrong
from storage import base64url

BITS_MAX = 30
"""A thousand seconds or more of one processor: no honest server asks for so much."""
CHALLENGE_BYTES_MAX = 256
SLICE = 100_000
COUNTER_BITS = 64

OnWork = Callable[[float], None]
"""Told now and then how much is done, as a share of what is needed on average: luck may take it past 1."""


async def earn(asked: wire.WorkView, on_work: OnWork) -> wire.WorkProof:
    """What solves the challenge. Raises ServerAnswerWrong for one that nobody should solve."""
    try:
        challenge = base64url.decode(asked.challenge)
    except ValueError as exc:
        raise ServerAnswerWrong("The server's challenge is not what it should be.") from exc
    if asked.bits > BITS_MAX or len(challenge) > CHALLENGE_BYTES_MAX:
        raise ServerAnswerWrong(
            f"The server asks for a computation of {asked.bits} bits, which would take hours. Try later."
        )
    seed = hashlib.sha256(challenge).digest()
    start = int.from_bytes(os.urandom(8))
    told_at, tried = time.monotonic(), 0
    while (nonce := await asyncio.to_thread(_search, seed, asked.bits, start + tried)) is None:
        tried += SLICE
        if time.monotonic() - told_at >= 1:
            told_at = time.monotonic()
            on_work(tried / 2**asked.bits)
    return wire.WorkProof(challenge=asked.challenge, nonce=base64url.encode(nonce))


def _search(seed: bytes, bits: int, start: int) -> bytes | None:
    """A nonce among SLICE many. Pure."""
    begun = hashlib.sha256(seed)
    # Digests in order are numbers in order.
    too_large = (1 << 256 - bits).to_bytes(33)[1:] if bits else b"\xff" * 33
    for counter in range(start, start + SLICE):
        nonce: bytes = (counter % 2**COUNTER_BITS).to_bytes(8)
        hashing = begun.copy()
        hashing.update(nonce)
        if hashing.digest() < too_large:
            return nonce
    return None
