"""Memory for parts on their way from the network to the disk: bounded, and lent fairly.

A part is read whole before it is stored, since only whole chunks have digests. Buffers are used again, so
that steady uploads fault no fresh pages in.
"""

import asyncio
import mmap
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bitcache.errors import TooManyRequests
from storage.ports import PART_SIZE_BYTES

RETRY_AFTER_S = 2


class PartBuffers:
    """At most `count` buffers of one part each; who finds none free waits in line."""

    def __init__(self, *, count: int, per_account: int) -> None:
        self._free: list[mmap.mmap] = []
        self._permits = asyncio.Semaphore(count)
        self._per_account = per_account
        self._asking: Counter[str] = Counter()

    @asynccontextmanager
    async def lend(self, account_id: str) -> AsyncIterator[memoryview]:
        """A buffer of 8 MiB. Raises TooManyRequests if the account has too many parts under way."""
        if self._asking[account_id] >= self._per_account:
            raise TooManyRequests(
                f"Send at most {self._per_account} parts at the same time.", retry_after_s=RETRY_AFTER_S
            )
        self._asking[account_id] += 1
        try:
            async with self._permits:
                # Anonymous memory costs nothing until bytes come: a slow sender holds only what was sent.
                buffer = self._free.pop() if self._free else mmap.mmap(-1, PART_SIZE_BYTES)
                yield memoryview(buffer)
                # After an error a thread may still read from it: then it is left to the garbage collector.
                self._free.append(buffer)
        finally:
            self._asking[account_id] -= 1
            if not self._asking[account_id]:
                del self._asking[account_id]
