"""What a payer's process is told to do, and what it keeps of what it did: all that outlives its death.

The journal is a file of lines, each written whole before what it allows: a signature before it is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

ORDERS = "orders.json"
JOURNAL = "journal"


class Order(Struct, frozen=True):
    """One payment."""

    n: int
    offer_id: str
    file_id: str
    first: int
    chunks: int
    """0: a voucher alone."""
    sha256: str
    """Of the bytes that must come."""
    size_bytes: int
    """Of the file."""
    cumulative_sat: int


class Orders(Struct, frozen=True):
    port: int
    challenge: dict[str, Any]
    payer_key: str
    """Hex, as all octets here."""
    payee_key: str
    expiry_height: int
    change_script: str
    close_fee_sat: int
    channel_id: str
    capacity_sat: int
    orders: tuple[Order, ...]

    def save(self, folder: Path) -> None:
        (folder / ORDERS).write_bytes(msgspec.json.encode(self))

    @classmethod
    def load(cls, folder: Path) -> Orders:
        return msgspec.json.decode((folder / ORDERS).read_bytes(), type=cls)


class Signed(Struct, frozen=True, tag=True):
    """Kept before it is sent."""

    n: int
    cumulative_sat: int


class Opened(Struct, frozen=True, tag=True):
    """The channel is open, the server said."""


class Granted(Struct, frozen=True, tag=True):
    """The head of a good answer has come: nothing was said or sent before it was paid for."""

    n: int
    accepted_sat: int
    spent_msat: int


class Done(Struct, frozen=True, tag=True):
    """All of it has come."""

    n: int


class Refused(Struct, frozen=True, tag=True):
    """For a while only."""

    n: int
    problem: str


class Wrong(Struct, frozen=True, tag=True):
    """Something that must not be."""

    n: int
    words: str


class Finished(Struct, frozen=True, tag=True):
    """Every order is done."""


Entry = Signed | Opened | Granted | Done | Refused | Wrong | Finished
_decoder = msgspec.json.Decoder(Entry)


class Journal:
    """Read as it grows."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._read_to = 0
        self.signed: dict[int, int] = {}
        """Cumulative amounts, by order."""
        self.granted: set[int] = set()
        self.done: set[int] = set()
        self.accepted_sat = 0
        """The highest that the server acknowledged; alike the next."""
        self.spent_msat = 0
        self.opened = False
        self.finished = False
        self.wrong: list[str] = []
        self.refused: Counter[str] = Counter()

    def read(self) -> None:
        """What has come since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._read_to)
            fresh = lines.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._take(line for line in whole.split(b"\n") if line)

    @property
    def signed_sat(self) -> int:
        return max(self.signed.values(), default=0)

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                entry = _decoder.decode(line)
            except msgspec.DecodeError:
                continue  # its writer died in the middle: nothing was done yet for which it stands
            match entry:
                case Signed(n, cumulative_sat):
                    self.signed[n] = cumulative_sat
                case Granted(n, accepted_sat, spent_msat):
                    self.granted.add(n)
                    self.accepted_sat = max(self.accepted_sat, accepted_sat)
                    self.spent_msat = max(self.spent_msat, spent_msat)
                case Done(n):
                    self.done.add(n)
                case Refused(_, problem):
                    self.refused[problem] += 1
                case Wrong(n, words):
                    self.wrong.append(f"order {n}: {words}")
                case Opened():
                    self.opened = True
                case Finished():
                    self.finished = True


class JournalWriter:
    """Lines are whole in the file when `note` returns. One writer at a time."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / JOURNAL).open("ab", buffering=0)
        # What a killed one left of its last line ends here.
        self._file.write(b"\n")

    def note(self, entry: Entry) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
