"""What can happen in a soak of payouts, a step at a time.

A step says what is tried, and names whom by a number: the one of those that are there then, modulo how many.
So a step always means something, whatever the steps before it have come to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

REORG_DEPTH_MAX = 6


class Paying(StrEnum):
    EXACT = "exactly"
    TOO_LITTLE = "too little"
    TOP_UP = "too little, then the rest"
    OVER = "too much"
    TIP = "a little more"
    LATE = "late"
    FEE_BUMP = "and raises the fee"
    TAKEN_AWAY = "and replaces it by a payment elsewhere"
    DOUBLE_SPEND = "and has another mined"
    NOTHING = "nothing"


class Bad(StrEnum):
    """Payouts that must be refused."""

    ABOVE = "more than there is"
    DUST = "dust"
    NEGATIVE = "less than nothing"
    OURS = "to an invoice's address"


class Altered(StrEnum):
    """How a signed batch differs from the one that was asked for."""

    AMOUNT = "amount"
    PAYEE = "payee"
    CHANGE = "change"
    EXTRA_OUTPUT = "extra output"
    EXTRA_INPUT = "extra input"


class Signer(StrEnum):
    WALLET = "the node's wallet"
    PSBT = "a PSBT signed elsewhere"
    HEX = "a transaction signed elsewhere"
    ELSEWHERE = "signed and sent elsewhere, never imported"


class Task(StrEnum):
    """What an admin does in a process of its own, which dies on the way."""

    BUILD = "build"
    SIGN = "sign"
    BUMP = "bump"
    IMPORT = "import"


@dataclass(frozen=True)
class Buys:
    seller: int
    paying: Paying
    waits: bool
    """Until the server has seen each payment."""


@dataclass(frozen=True)
class Mines:
    blocks: int
    full: bool
    """With what waits in the mempool; else empty blocks."""


@dataclass(frozen=True)
class Reorgs:
    depth: int
    keeps: bool
    """The new branch holds again what the old one held."""
    robs: int
    """So many buyers take their payments back in it."""
    leaves_payouts: bool
    """Payouts are left out of the new branch."""


@dataclass(frozen=True)
class AsksPayout:
    seller: int
    percent: int
    """Of what is payable."""
    twice: bool
    """At once, under the same id."""
    bad: Bad | None


@dataclass(frozen=True)
class PlansPayouts:
    seller: int
    threshold_sat: int


@dataclass(frozen=True)
class ClaimsRefund:
    buyer: int
    elsewhere: bool
    """Then again, to another address: the first one is final."""


@dataclass(frozen=True)
class Decides:
    payout: int
    approves: bool
    by_operator: bool
    contradicted: bool
    """Another admin decides the contrary at once."""


@dataclass(frozen=True)
class Cancels:
    payout: int


@dataclass(frozen=True)
class Withdraws:
    percent: int


@dataclass(frozen=True)
class Deposits:
    amount_sat: int


@dataclass(frozen=True)
class Builds:
    feerate_sat_vb: int
    twice: bool
    """By two admins at once."""


@dataclass(frozen=True)
class Signs:
    batch: int
    signer: Signer
    altered: Altered | None
    twice: bool


@dataclass(frozen=True)
class Bumps:
    batch: int
    more_sat_vb: int
    twice: bool


@dataclass(frozen=True)
class Abandons:
    batch: int


@dataclass(frozen=True)
class SpendsForeign:
    """A transaction of the operator's own, made in the wallet behind the server's back."""

    coin: int
    mined: bool
    """At once, in a block; else by way of the mempool."""


@dataclass(frozen=True)
class Explains:
    whose: int


@dataclass(frozen=True)
class Reconciles:
    """The operator compares ledger and node at this moment."""


@dataclass(frozen=True)
class ClockMoves:
    seconds: int


@dataclass(frozen=True)
class ServerDies:
    moment: int
    """Of the commits to come, before and after each; 0: now."""


@dataclass(frozen=True)
class AdminDies:
    task: Task
    moment: int
    """Of its commits and its calls of the node, before and after each."""


@dataclass(frozen=True)
class NodeDown:
    steps: int
    crash: bool


Step = (
    Buys
    | Mines
    | Reorgs
    | AsksPayout
    | PlansPayouts
    | ClaimsRefund
    | Decides
    | Cancels
    | Withdraws
    | Deposits
    | Builds
    | Signs
    | Bumps
    | Abandons
    | SpendsForeign
    | Explains
    | Reconciles
    | ClockMoves
    | ServerDies
    | AdminDies
    | NodeDown
)


@dataclass(frozen=True)
class Story:
    sellers: int
    depth: int
    """Confirmations of money that is paid out, and of a payout that is done."""
    steps: tuple[Step, ...]

    @property
    def buyers(self) -> int:
        return sum(isinstance(step, Buys) for step in self.steps)
