"""What this side owes one channel: the chunks that were asked for, and those that arrived and are proven.

A voucher is for the sum of all chunks that were ever asked for, each counted once, at the price of then. So
whatever the server charged is covered, in whatever order requests arrived, and a chunk asked for again costs
nothing. The file is a list of records that only grows:

    16 bytes  file id      4  first chunk      2  chunks      1  kind      1  nothing      8  msat per chunk
    kinds     1 asked for, 2 arrived and proven, 3 msat signed for what this list does not have, in all

Little-endian. A record is written before the request that it is for is sent, and never synced: a killed
process leaves it to the system, which has it. After a power cut the last ones may be missing; then the
server's record, with the payer's own signature in it, says how much was signed (`set_unlisted`). A sync for
each chunk would cost more than the chunk.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from enum import IntEnum
from itertools import groupby
from pathlib import Path

from bitcache.client.places import write_private
from bitcache.ids import id_text, raw_id
from payments.money import Msat, Sat, sat_rounded_up

RECORD = struct.Struct("<16sIHBxQ")
UNITS_MAX = 0xFFFF
NO_FILE = bytes(16)


class Kind(IntEnum):
    ASKED = 1
    ARRIVED = 2
    UNLISTED = 3


class ChannelCount:
    """Of one channel. Whoever writes holds the channel's lock."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        """`writable` rewrites the list as short as can be first, durably."""
        self.asked_msat = Msat(0)
        self.arrived_msat = Msat(0)
        self.unlisted_msat = Msat(0)
        self.outstanding = 0
        """Chunks asked for that have not arrived."""
        self._prices: dict[str, array[int]] = {}
        self._states: dict[str, bytearray] = {}
        octets = path.read_bytes() if path.exists() else b""
        # A crash may have cut off the last record: nothing was sent on it.
        for record in RECORD.iter_unpack(octets[: len(octets) // RECORD.size * RECORD.size]):
            self._apply(*record)
        self._descriptor: int | None = None
        if writable:
            write_private(path, b"".join(self._records()))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def promised_msat(self) -> Msat:
        """What the payer agreed to pay, in all."""
        return Msat(self.asked_msat + self.unlisted_msat)

    @property
    def signed_sat(self) -> Sat:
        return sat_rounded_up(self.promised_msat)

    def is_asked(self, file_id: str, index: int) -> bool:
        return self._state(file_id, index) >= Kind.ASKED

    def is_outstanding(self, file_id: str, index: int) -> bool:
        return self._state(file_id, index) == Kind.ASKED

    def has_outstanding(self, file_id: str) -> bool:
        return Kind.ASKED in self._states.get(file_id, b"")

    def price_msat_max(self, file_id: str) -> int:
        """The most that was agreed to for a chunk of it; 0: none was asked for."""
        return max(self._prices.get(file_id, ()), default=0)

    def ask(self, file_id: str, first: int, units: int, price_msat: int) -> None:
        """These chunks are about to be asked for, none of them before."""
        self._write(file_id, first, units, Kind.ASKED, price_msat)

    def arrive(self, file_id: str, index: int) -> None:
        """A chunk is here and proven."""
        if self._state(file_id, index) == Kind.ASKED:
            self._write(file_id, index, 1, Kind.ARRIVED, self._prices[file_id][index])

    def set_unlisted(self, amount_msat: int) -> None:
        """So much was signed for chunks that this list does not have."""
        self._append(RECORD.pack(NO_FILE, 0, 0, Kind.UNLISTED, amount_msat))
        self._apply(NO_FILE, 0, 0, Kind.UNLISTED, amount_msat)

    def _write(self, file_id: str, first: int, units: int, kind: Kind, price_msat: int) -> None:
        record = (raw_id(file_id), first, units, kind, price_msat)
        self._append(RECORD.pack(*record))
        self._apply(*record)

    def _append(self, record: bytes) -> None:
        assert self._descriptor is not None, "opened to look at only"
        written = os.write(self._descriptor, record)
        if written != len(record):
            raise OSError(f"only {written} bytes of a record could be written")

    def _apply(self, raw_file_id: bytes, first: int, units: int, kind: int, price_msat: int) -> None:
        if kind == Kind.UNLISTED:
            self.unlisted_msat = Msat(price_msat)
            return
        file_id = id_text(raw_file_id)
        prices = self._prices.setdefault(file_id, array("Q"))
        states = self._states.setdefault(file_id, bytearray())
        grown = first + units - len(states)
        if grown > 0:
            states.extend(bytes(grown))
            prices.extend([0] * grown)
        for index in range(first, first + units):
            if states[index] < Kind.ASKED:
                self.asked_msat = Msat(self.asked_msat + price_msat)
                self.outstanding += 1
                states[index], prices[index] = Kind.ASKED, price_msat
            if kind == Kind.ARRIVED and states[index] == Kind.ASKED:
                self.arrived_msat = Msat(self.arrived_msat + prices[index])
                self.outstanding -= 1
                states[index] = Kind.ARRIVED

    def _state(self, file_id: str, index: int) -> int:
        states = self._states.get(file_id, b"")
        return states[index] if index < len(states) else 0

    def _records(self) -> Iterator[bytes]:
        """The same in as few records as can be."""
        if self.unlisted_msat:
            yield RECORD.pack(NO_FILE, 0, 0, Kind.UNLISTED, self.unlisted_msat)
        for file_id, states in self._states.items():
            prices, first = self._prices[file_id], 0
            for (state, price_msat), run in groupby(zip(states, prices, strict=True)):
                end = first + sum(1 for _ in run)
                while state and first < end:
                    units = min(UNITS_MAX, end - first)
                    yield RECORD.pack(raw_id(file_id), first, units, state, price_msat)
                    first += units
                first = end
