"""What a drill does and when: a pure function of the seed and the sizes, so that a run can be had again.

Whom a fault hits depends on who is about at that moment; that it comes, when, and how hard, does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

CLOCK_JUMP_S = 7_200
REORG_DEPTH_MAX = 6
SECONDS_PER_FAULT = 4.0
BUYERS_COME_UNTIL = 0.8
"""Of the whole time: the last ones must be able to pay while faults go on."""
ROBBER_COMES_BEFORE_S = 3.0
COMMAND_EVERY = 6
"""One buyer of so many runs the command, a process or two each; the others are in the drill's own."""
MIB = 1 << 20

T = TypeVar("T")


class Fault(StrEnum):
    SERVER_KILLED = "SIGKILL of the server"
    NODE_KILLED = "SIGKILL of the server's node"
    NODE_RESTARTED = "the server's node restarts"
    CLIENT_KILLED = "SIGKILL of a client"
    REORG = "reorg"
    CLOCK = "the server's clock jumps"
    DISK_FULL = "the server's disk is full"
    SLOW = "slow connections"
    CUT = "cut connections"
    ZMQ_SILENT = "ZMQ says nothing"


class Paying(StrEnum):
    EXACT = "pays exactly"
    TWO_PAYMENTS = "pays in two transactions"
    TOP_UP = "pays too little, then the rest"
    TOO_LITTLE = "pays too little"
    TIP = "pays a little more"
    OVER = "pays far more"
    LATE = "pays late"
    FEE_BUMP = "raises the fee (RBF)"
    TAKEN_AWAY = "replaces the payment by one elsewhere (RBF)"
    DOUBLE_SPEND = "double-spends in a block"
    REORG_ROBBERY = "pays, and takes it back in a reorg"
    NOTHING = "pays nothing"


class Way(StrEnum):
    COMMAND = "bitcache get"
    LIBRARY = "bitcache.client"


@dataclass(frozen=True)
class FaultAt:
    at_s: float
    fault: Fault
    lasts_s: float
    depth: int = 0
    """Of a reorg."""
    keeps: bool = True
    """Whether the new branch of a reorg holds again what the old one held."""
    ahead_s: int = 0
    """Of the clock, from now on."""


@dataclass(frozen=True)
class ParcelPlan:
    seller: int
    at_s: float
    sizes_bytes: tuple[int, ...]
    price_sat: int
    confirmations: int
    prefetch: bool
    abandoned: bool
    """Its seller kills the upload half way, and never comes back."""


@dataclass(frozen=True)
class BuyerPlan:
    number: int
    at_s: float
    parcel: int
    """Which of the parcels then on offer, modulo their number."""
    way: Way
    paying: Paying


@dataclass(frozen=True)
class Schedule:
    seed: int
    seconds: int
    wallets: tuple[str, ...]
    """The kind of descriptor of each seller."""
    parcels: tuple[ParcelPlan, ...]
    buyers: tuple[BuyerPlan, ...]
    faults: tuple[FaultAt, ...]

    def lines(self) -> Iterator[str]:
        """The faults, for people."""
        for one in self.faults:
            how = f"{one.lasts_s:.1f} s"
            if one.fault is Fault.REORG:
                how = f"{one.depth} deep, {'mined again' if one.keeps else 'back to the mempool'}"
            if one.fault is Fault.CLOCK:
                how = f"to {one.ahead_s:+d} s"
            yield f"{one.at_s:7.1f} s  {one.fault}, {how}"


WALLETS = ("wpkh", "tr", "sh(wpkh", "pkh", "wsh")
# In every drill, however short.
FIRST_FAULTS = (Fault.REORG, Fault.SERVER_KILLED)
FIRST_PAYING = (
    Paying.EXACT,
    Paying.DOUBLE_SPEND,
    Paying.REORG_ROBBERY,
    Paying.TOP_UP,
    Paying.FEE_BUMP,
    Paying.OVER,
)


def schedule(seed: int, *, seconds: int, sellers: int, buyers: int, parcels_each: int) -> Schedule:
    rng = random.Random(seed)
    faults = tuple(_faults(rng, seconds))
    parcels = sorted(_parcels(rng, seconds, sellers, parcels_each), key=lambda parcel: parcel.at_s)
    return Schedule(
        seed=seed,
        seconds=seconds,
        wallets=tuple(WALLETS[number % len(WALLETS)] for number in range(sellers)),
        parcels=tuple(parcels),
        buyers=_with_robbers(tuple(_buyers(rng, seconds, buyers)), faults),
        faults=faults,
    )


def _faults(rng: random.Random, seconds: int) -> Iterator[FaultAt]:
    count = max(len(FIRST_FAULTS) + 2, int(seconds / SECONDS_PER_FAULT))
    kinds = _rounds(rng, list(Fault), FIRST_FAULTS)
    moments = sorted(rng.uniform(0.1 * seconds, 0.95 * seconds) for _ in range(count))
    ahead_s = 0
    for at_s, kind in zip(moments, kinds, strict=False):
        if kind is Fault.CLOCK:
            # Never more than one jump from the time before: that is what "by two hours" means.
            jumps = [-CLOCK_JUMP_S, CLOCK_JUMP_S] if ahead_s == 0 else [-ahead_s]
            ahead_s += rng.choice(jumps)
        yield FaultAt(
            at_s=round(at_s, 1),
            fault=kind,
            lasts_s=round(rng.uniform(0.5, min(8.0, seconds / 6)), 1),
            depth=rng.randint(1, REORG_DEPTH_MAX),
            keeps=rng.random() < 0.5,
            ahead_s=ahead_s,
        )


def _parcels(rng: random.Random, seconds: int, sellers: int, each: int) -> Iterator[ParcelPlan]:
    for seller in range(sellers):
        for number in range(each):
            sizes = [rng.choice((0, 1, 17, MIB, MIB + 1, rng.randrange(3 * MIB))) for _ in range(3)]
            confirmations = rng.choice((0, 1, 1, 3))
            yield ParcelPlan(
                seller=seller,
                # The first of each is there before the faults: somebody must have something to buy.
                at_s=0.0 if number == 0 else round(rng.uniform(0, 0.7 * seconds), 1),
                sizes_bytes=tuple(sizes[: rng.randint(1, 3)]),
                price_sat=rng.randrange(1_000, 20_000),
                confirmations=confirmations,
                prefetch=confirmations > 0 and rng.random() < 0.4,
                abandoned=number > 0 and rng.random() < 0.2,
            )


def _buyers(rng: random.Random, seconds: int, count: int) -> Iterator[BuyerPlan]:
    kinds = _rounds(rng, list(Paying), FIRST_PAYING)
    for number in range(count):
        at_s = BUYERS_COME_UNTIL * seconds * number / count
        yield BuyerPlan(
            number=number,
            at_s=round(at_s, 1),
            parcel=rng.randrange(1_000),
            way=Way.COMMAND if number % COMMAND_EVERY == 0 else Way.LIBRARY,
            paying=next(kinds),
        )


def _with_robbers(buyers: tuple[BuyerPlan, ...], faults: Sequence[FaultAt]) -> tuple[BuyerPlan, ...]:
    """Before each reorg somebody pays who takes it back then: by chance too few would be in its blocks."""
    robbers = set()
    for reorg in (one for one in faults if one.fault is Fault.REORG):
        come = [
            buyer.number
            for buyer in buyers[len(FIRST_PAYING) :]
            if buyer.at_s <= reorg.at_s - ROBBER_COMES_BEFORE_S
        ]
        robbers |= set(come[-1:])
    return tuple(
        replace(buyer, way=Way.LIBRARY, paying=Paying.REORG_ROBBERY) if buyer.number in robbers else buyer
        for buyer in buyers
    )


def _rounds(rng: random.Random, every: list[T], first: Sequence[T]) -> Iterator[T]:
    """`first`, then the others in some order, then all of them in some order, again and again."""
    yield from first
    others = [one for one in every if one not in first]
    while True:
        rng.shuffle(others)
        yield from others
        others = list(every)
