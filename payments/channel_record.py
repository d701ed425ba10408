"""A channel as it is kept: what was decided of it, and where the chain has its deposit. Pure."""

from dataclasses import dataclass

from payments.channel import Balance, ChannelState, CloseReason
from payments.channel_script import Channel
from payments.money import Sat
from payments.outputs import Presence, block_depth


@dataclass(frozen=True, slots=True)
class Agreed:
    """What payer and payee agreed on for a cooperative close."""

    paid_sat: Sat
    fee_sat: Sat
    signature: bytes
    """The payer's, over both: 64 bytes, compact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRecord:
    """A channel as it is kept, with where the chain has its deposit."""

    channel: Channel
    nonce: bytes
    """Of its terms: with the channel seed it gives the payee's key."""
    state: ChannelState
    balance: Balance
    close_reason: CloseReason | None
    close_asked_at: int | None
    agreed: Agreed | None
    funding: Presence
    """Of the transaction that made the deposit."""
    funding_height: int | None
    """Of its block; set exactly when `funding` is BLOCK."""
    funding_lost_height: int | None
    """Of the block that took its inputs; set exactly when `funding` is GONE."""
    seen_at: int
    opened_at: int | None
    closed_at: int | None
    trouble: str | None
    """Why it is not closed yet, in words."""

    @property
    def id(self) -> str:
        return self.channel.id

    def confirmations(self, tip_height: int) -> int:
        """Of the deposit: 0 while no block has it."""
        return block_depth(self.funding_height, tip_height)
