"""The money rules of payment channels. Pure: heights, depths and balances are arguments.

What the payer signed rises and never falls (`accepted`); what was delivered is charged against it (`spent`).
A voucher below the accepted one changes nothing by itself: requests that run side by side arrive in any
order, and each of them is paid out of what the highest voucher covers.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from payments.channel_errors import (
    ChannelTermsRefused,
    ChannelTermsStale,
    ConfirmationsNeeded,
    ExpiryTooNear,
    NetworkForeign,
    PayerKeyInvalid,
    VoucherShort,
    VoucherStale,
)
from payments.channel_keys import public_key
from payments.channel_script import Contract
from payments.money import Msat, Sat, sat_rounded_up
from payments.outputs import Presence

CLOSE_MARGIN_BLOCKS = 144
"""So long before EXPIRY a channel serves no more and is closed: blocks enough to be mined in any weather."""
OPEN_MARGIN_BLOCKS = CLOSE_MARGIN_BLOCKS + 6
LIFE_BLOCKS_MIN = 2 * CLOSE_MARGIN_BLOCKS
LIFE_BLOCKS_MAX = 52_560
"""A year: so long at most a payer waits for the refund if the payee is never heard of again."""
TERMS_STALE_BLOCKS = 144
BATCH_DEPTH = 6
"""Only fundings so deep are closed together: one that is double-spent would take the others with it."""
BATCH_BEFORE_EXPIRY_BLOCKS = 288
FINAL_DEPTH = 100
"""A close is watched until it is so deep."""
RETRIES_FREE = 3
RETRIES_S = 86_400
LOST_S = 86_400
"""So long what was lost to double spends counts against what may be lost before a confirmation."""
UNITS_PER_REQUEST_MAX = 8


@dataclass(frozen=True, slots=True)
class ChannelTerms:
    """On what the payee opens a channel. Given to whoever asks: nothing is kept of them."""

    network: str
    nonce: bytes
    """16 random bytes, from which the payee's key of this channel follows."""
    payee_key: bytes
    """33 bytes, compressed."""
    expiry_height: int
    close_fee_sat: Sat
    deposit_min_sat: Sat
    issued_height: int
    """The tip when they were given; stale TERMS_STALE_BLOCKS later."""

    def contract(self, payer_key: bytes, change_script_pubkey: bytes) -> Contract:
        """With this payer. Raises PayerKeyInvalid, ChangeScriptRefused, ExpiryImpossible."""
        return Contract(
            payer_key, self.payee_key, self.expiry_height, change_script_pubkey, self.close_fee_sat
        ).checked()


def check_terms(terms: ChannelTerms, *, network: str, tip_height: int) -> None:
    """Raises NetworkForeign, ChannelTermsStale, ExpiryTooNear."""
    if terms.network != network:
        raise NetworkForeign(terms.network, network)
    if tip_height > terms.issued_height + TERMS_STALE_BLOCKS:
        raise ChannelTermsStale
    check_life(terms.expiry_height, tip_height)


def check_terms_as_payer(terms: ChannelTerms, *, network: str, tip_height: int) -> None:
    """Before the payer funds: whether the deposit surely comes back after EXPIRY, whatever the payee does.

    `tip_height`: as the payer sees it; without a node of its own `terms.issued_height`, which a hostile
    payee may have made up. Raises NetworkForeign, ChannelTermsRefused.
    """
    if terms.network != network:
        raise NetworkForeign(terms.network, network)
    try:
        public_key(terms.payee_key)
    except PayerKeyInvalid as exc:
        # No wallet would restore the backup line.
        raise ChannelTermsRefused("The payee's key is no public key: do not fund this channel.") from exc
    life_blocks = terms.expiry_height - tip_height
    if life_blocks > LIFE_BLOCKS_MAX:
        raise ChannelTermsRefused(
            f"The deposit could not be refunded for {life_blocks:,} blocks: do not fund this channel."
        )


class ChannelState(StrEnum):
    """What was decided about a channel; where its coins are, the chain says."""

    FUNDED = "funded"
    """A deposit was seen, and nobody has signed anything yet."""
    OPEN = "open"
    CLOSING = "closing"
    """It pays for nothing more, and is to be closed."""
    CLOSED = "closed"
    """A block has its close, its refund, or what double-spent its funding."""


class CloseReason(StrEnum):
    PAYER = "payer"
    """Asked for, cooperative."""
    MARGIN = "margin"
    """EXPIRY is near."""
    OPERATOR = "operator"
    REFUNDED = "refunded"
    """The payer took the deposit back after EXPIRY."""
    LOST = "lost"
    """The funding was double-spent, or in no block when the channel expired."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Of one channel."""

    accepted_sat: Sat
    """The highest cumulative amount that the payer signed."""
    signature: bytes | None
    """Over it: 64 bytes, compact. None before the first voucher."""
    spent_msat: Msat
    """What was charged: at most `accepted_sat`."""


class Voucher(NamedTuple):
    """What the payer signed: so much in all, over the channel's life."""

    channel_id: str
    cumulative_sat: int
    signature: bytes
    """64 bytes, compact."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What is asked for: `units` of one item from `first_unit` on, each at the same price."""

    subject: str
    """Whose price it is: an offer's id."""
    seller_id: str
    fee_ppm: int
    """The operator's part, in millionths."""
    item: str
    """A file's id."""
    first_unit: int
    units: int
    price_msat: int
    """Of one unit."""


def charged(
    balance: Balance,
    *,
    cumulative_sat: int,
    signature: bytes,
    cost_msat: int,
    limit_sat: int,
    confirmations: int,
) -> Balance:
    """The balance once `cost_msat` was paid with this voucher, whose signature fits its amount.

    A cost of 0 is a retry, or a voucher alone. Raises ConfirmationsNeeded, VoucherShort, VoucherStale.
    """
    if cumulative_sat > limit_sat:
        raise ConfirmationsNeeded(confirmations=confirmations, max_sat=Sat(limit_sat))
    covered_sat = max(cumulative_sat, balance.accepted_sat)
    spent_msat = Msat(balance.spent_msat + cost_msat)
    # A retry costs nothing, and is covered already: what was spent never is more than what was accepted.
    if sat_rounded_up(spent_msat) > covered_sat:
        refusal = VoucherStale if cumulative_sat < balance.accepted_sat else VoucherShort
        raise refusal(
            required_sat=sat_rounded_up(spent_msat),
            accepted_sat=balance.accepted_sat,
            spent_msat=balance.spent_msat,
        )
    if cumulative_sat >= balance.accepted_sat:
        return Balance(Sat(cumulative_sat), signature, spent_msat)
    return replace(balance, spent_msat=spent_msat)


def suspended(funding: Presence, *, accepted_sat: int, limit_sat: int) -> bool:
    """Whether a channel pays for nothing just now: its deposit is nowhere, or less deep than was trusted."""
    return funding not in (Presence.BLOCK, Presence.MEMPOOL) or accepted_sat > limit_sat


def check_life(expiry_height: int, tip_height: int) -> None:
    """Raises ExpiryTooNear if a channel with this expiry is not opened any more."""
    if tip_height > expiry_height - OPEN_MARGIN_BLOCKS:
        raise ExpiryTooNear(expiry_height)


def must_close(expiry_height: int, tip_height: int) -> bool:
    return tip_height >= expiry_height - CLOSE_MARGIN_BLOCKS


def may_batch(expiry_height: int, *, confirmations: int, tip_height: int) -> bool:
    """Whether a channel may be closed together with others."""
    return confirmations >= BATCH_DEPTH and expiry_height - tip_height > BATCH_BEFORE_EXPIRY_BLOCKS


def deposit_for_fees_under(percent: int, *, funding_fee_sat: int, close_fee_sat: int) -> Sat:
    """The least deposit of which funding and close together take less than `percent`, from 1 on."""
    return Sat((funding_fee_sat + close_fee_sat) * 100 // percent + 1)
