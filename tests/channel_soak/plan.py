"""What happens in a soak of channels: a pure function of its seed and size."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, islice

from payments.channel import RETRIES_FREE, UNITS_PER_REQUEST_MAX
from payments.money import Msat, sat_rounded_up

PRICES_MSAT = (10_777, 3_331)
"""Of a chunk, by seller: neither they nor the operator's part are even, so that rounding shows."""
LOST_SAT_MAX = 500
"""What a channel may pay whose deposit no block has, as the server is set up by default."""
DEPOSITS_SAT = (20_000, 60_000)
VOUCHER_SAT_MAX = 25
REORG_DEPTH_MAX = 3


class Ending(StrEnum):
    """How a channel ends."""

    COOPERATIVE = "cooperative"
    OPERATOR = "operator"
    MARGIN = "margin"
    REFUNDED = "refunded"
    """The server is away until after the expiry."""
    LOST = "lost"
    """The deposit is double-spent, before any block has it."""


EACH = (Ending.LOST, Ending.REFUNDED, Ending.MARGIN, Ending.OPERATOR, Ending.OPERATOR, Ending.COOPERATIVE)
"""In every soak; two of the operator's are closed together."""
MORE = (Ending.COOPERATIVE, Ending.OPERATOR, Ending.MARGIN)


@dataclass(frozen=True)
class Size:
    payments: int = 5_000
    channels: int = 16
    small_files: int = 90
    """Of one chunk each, in each seller's parcel; and `chunks` of one larger file."""
    chunks: int = 20
    server_kills: int = 40
    payer_kills: int = 40
    reorgs: int = 8
    close_kills: int = 6
    """Of the server while it closes channels."""
    life_blocks: int = 440
    """Of channels: closes are made together while more than 288 are left. They are mined one by one."""
    lease_lapses: bool = True
    """Who follows a killed server waits for its lease; else the lease is ended by hand."""


@dataclass(frozen=True)
class Task:
    """One payment. Without chunks: a voucher alone."""

    seller: int
    file: int
    """0: the larger one."""
    first: int
    chunks: int
    more_sat: int
    """Signed beyond what chunks cost."""
    cumulative_sat: int
    """What is signed with it in all."""

    @property
    def units(self) -> list[tuple[int, int, int]]:
        return [(self.seller, self.file, self.first + n) for n in range(self.chunks)]


@dataclass(frozen=True)
class Kill:
    """Of the server, once so many payments are done."""

    at: int
    moment: int
    """At its so many-th moment from then, see `tests.payout_soak.doomed`; 0: now."""


@dataclass(frozen=True)
class PayerKill:
    at: int
    payer: int


@dataclass(frozen=True)
class Reorg:
    at: int
    depth: int


Fault = Kill | PayerKill | Reorg


@dataclass(frozen=True)
class Plan:
    endings: tuple[Ending, ...]
    deposits_sat: tuple[int, ...]
    tasks: tuple[tuple[Task, ...], ...]
    """By channel."""
    faults: tuple[Fault, ...]
    close_moments: tuple[int, ...]
    """Of the kills while channels are closed."""


def plan_of(seed: int, size: Size) -> Plan:
    rng = random.Random(seed)
    endings = (*EACH, *islice(cycle(MORE), max(0, size.channels - len(EACH))))
    tasks, left = [], size.payments
    for number, ending in enumerate(endings):
        count = left // (len(endings) - number)
        drawn = _tasks(
            rng, size, count, most_sat=LOST_SAT_MAX if ending is Ending.LOST else DEPOSITS_SAT[0] // 2
        )
        tasks.append(drawn)
        left -= len(drawn)
    faults: list[Fault] = [
        *(Kill(at, rng.choice((0, rng.randint(1, 12)))) for at in _moments(rng, size, size.server_kills)),
        *(PayerKill(at, rng.randrange(len(endings))) for at in _moments(rng, size, size.payer_kills)),
        *(Reorg(at, rng.randint(1, REORG_DEPTH_MAX)) for at in _moments(rng, size, size.reorgs)),
    ]
    return Plan(
        endings=endings,
        deposits_sat=tuple(rng.randint(*DEPOSITS_SAT) for _ in endings),
        tasks=tuple(tasks),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        close_moments=tuple(rng.randint(1, 16) for _ in range(size.close_kills)),
    )


def _moments(rng: random.Random, size: Size, count: int) -> list[int]:
    """Counts of payments, none of them among the first or the last few."""
    return rng.sample(range(size.payments // 20 + 1, size.payments * 9 // 10), count)


def _tasks(rng: random.Random, size: Size, count: int, *, most_sat: int) -> tuple[Task, ...]:
    """At most so many, and for at most `most_sat` together."""
    asked: Counter[tuple[int, int, int]] = Counter()
    cost_msat, more_sat = 0, 0
    tasks: list[Task] = []
    while len(tasks) < count:
        seller, file, first, chunks, more = _draw(rng, size)
        units = [(seller, file, first + n) for n in range(chunks)]
        # A chunk that is asked for again may be asked for once more by every kill: some are free.
        if any(asked[unit] >= RETRIES_FREE for unit in units):
            continue
        cost_msat += sum(PRICES_MSAT[seller] for unit in units if not asked[unit])
        more_sat += more
        asked.update(units)
        cumulative_sat = sat_rounded_up(Msat(cost_msat)) + more_sat
        if cumulative_sat > most_sat:
            break
        tasks.append(Task(seller, file, first, chunks, more, cumulative_sat))
    return tuple(tasks)


def _draw(rng: random.Random, size: Size) -> tuple[int, int, int, int, int]:
    """(seller, file, first chunk, chunks, sats of a voucher alone)."""
    seller = rng.randrange(len(PRICES_MSAT))
    what = rng.random()
    if what < 0.4:
        return 0, 0, 0, 0, rng.randint(1, VOUCHER_SAT_MAX)
    if what < 0.55:
        chunks = rng.randint(1, min(3, UNITS_PER_REQUEST_MAX, size.chunks))
        return seller, 0, rng.randint(0, size.chunks - chunks), chunks, 0
    return seller, rng.randint(1, size.small_files), 0, 1, 0
