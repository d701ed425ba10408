"""What is compared when ledger and node are: values only. `payments.reconcile` compares them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from payments.money import NOTHING_SAT, Msat, Sat
from payments.outputs import OutPoint


class Use(StrEnum):
    """Of an address of the wallet."""

    INVOICE = "invoice"
    UNASSIGNED = "unassigned"
    CHANGE = "change"
    DEPOSIT = "deposit"
    CHANNEL = "channel"
    """A close's. Where a transaction that spends coins of the wallet and no deposit pays it, it is change."""


@dataclass(frozen=True, slots=True)
class Received:
    """An output of a transaction to the wallet."""

    vout: int
    amount_sat: Sat
    use: Use
    older: bool = False
    """Than its invoice: the ledger leaves it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What one mined transaction moved of the wallet's, and what the ledger says of it."""

    txid: str
    """Or the id of a batch of which no version is mined."""
    received: tuple[Received, ...] = ()
    spent_sat: Sat = NOTHING_SAT
    """Coins of the wallet that it spends."""
    booked_in_sat: Sat = NOTHING_SAT
    paid_sat: Sat = NOTHING_SAT
    """Booked as paid out, with fees."""
    taken_sat: Sat = NOTHING_SAT
    """Booked as taken out beside all payouts."""
    explained_sat: Sat = NOTHING_SAT
    """Of that, what somebody bears."""
    batch_id: str | None = None
    """Of which it is a version."""
    pays: str = ""
    """To whom, in words."""


class Owner(StrEnum):
    """Whose an output is that the node has and our coins have not."""

    DIRECT = "direct"
    """An invoice's whose seller is paid at once: the seller has this very wallet."""
    YOUNG = "young"
    """Ours, mined, and too young to be spent."""
    OLDER = "older"
    """On an address of ours, from before we handed it out."""
    MISSED = "missed"
    """On an address of ours, and our records lack it, or have it spent."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NodeOnly:
    """An output that the node has unspent, and our coins have not."""

    outpoint: OutPoint
    amount_sat: Sat
    height: int
    owner: Owner
    address_index: int | None = None
    next_index: int = 0
    """The first of its descriptor that was never handed out."""
    invoice_id: str | None = None


@dataclass(frozen=True, slots=True)
class OursOnly:
    """A coin of ours that the node has not unspent."""

    outpoint: OutPoint
    amount_sat: Sat
    spent_by: str | None = None
    """The transaction, if it was found in the last blocks."""
    height: int | None = None


@dataclass(frozen=True, slots=True)
class WaitingBatch:
    """A batch that no block has yet."""

    batch_id: str
    amount_sat: Sat
    payouts_count: int
    in_mempool: bool
    signed: bool


@dataclass(frozen=True, slots=True)
class WaitingSpend:
    """An unconfirmed transaction that spends coins of ours and is no payout."""

    txid: str
    amount_sat: Sat


@dataclass(frozen=True, slots=True)
class ExplainedSpend:
    txid: str
    net_out_sat: Sat
    borne_by: Mapping[str, Sat]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Both sides, as they were at one moment of our records and at one block of the node's."""

    height: int
    """Of the node's block."""
    block_hash: str
    node_sat: Sat
    coins_then_sat: Sat
    """Ours at that block."""
    coins_sat: Sat
    """Ours now."""
    balances: Mapping[str, Msat]
    """Of every account of the operator's wallet, without `unexplained` and what is outside."""
    ledger_sum_msat: Msat
    wrong_balances: Mapping[str, tuple[Msat, Msat]]
    """(kept, by its history)"""
    flows: tuple[Flow, ...]
    """Those that the ledger does not say exactly."""
    node_only: tuple[NodeOnly, ...]
    ours_only: tuple[OursOnly, ...]
    waiting_batches: tuple[WaitingBatch, ...] = ()
    waiting_spends: tuple[WaitingSpend, ...] = ()
    explained_spends: tuple[ExplainedSpend, ...] = ()
