"""What all others than the server know of a soak: payers by what they kept, the outside node by its coins."""

from __future__ import annotations

from msgspec import Struct

Unit = tuple[str, int]
"""(file, chunk)."""


class Sale(Struct, frozen=True):
    """Of a file: whose it is, and what a chunk of it costs."""

    offer_id: str
    seller_id: str
    price_msat: int


class Told(Struct, frozen=True):
    """Of one channel, by its payer."""

    name: str
    ending: str
    channel_id: str
    capacity_sat: int
    close_fee_sat: int
    signed_sat: int
    """The highest amount that was ever signed."""
    accepted_sat: int
    """The highest that the server acknowledged; alike the next."""
    spent_msat: int
    got: frozenset[Unit]
    """Of what the head of a good answer has come."""
    asked: frozenset[Unit]
    """All that is to be bought in the end."""
    agreed_paid_sat: int | None = None
    """In a cooperative close; alike the fee."""
    agreed_fee_sat: int | None = None
    change_sat: int | None = None
    """What the payer got back, by the outside node."""
    refunded_sat: int | None = None


class Evidence(Struct, frozen=True):
    sales: dict[str, Sale]
    """By file."""
    told: tuple[Told, ...]
    fee_ppm: int
    wallet_sat: int | None = None
    """What the operator's descriptor has, by the node's `scantxoutset`."""
