"""What stands in the books for a channel, by what became of its deposit. Pure.

While it is open, what is charged goes `channel -> pending` in steps. Whatever ends it then settles all at
once: what came in less what was charged is shared among payer and operator, so that the channel's own account
ends at nothing, and the sellers have what was charged, whether the deposit ever arrived or not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from payments import ledger
from payments.ledger import Booking, Code, Leg
from payments.money import Msat, Sat, msat_from_sat

PPM = 1_000_000
ROUNDING_MSAT = 1_000
"""A voucher is in whole sats: the fraction of the last one is nobody's loss, and goes to the operator."""


@dataclass(frozen=True, slots=True)
class Sold:
    """What a channel bought of one offer."""

    subject: str
    """The offer's id."""
    seller_id: str
    fee_ppm: int
    """The operator's part."""
    spent_msat: Msat


@dataclass(frozen=True, slots=True)
class Ended:
    """What took the deposit, in a block: a close, a refund, or what double-spent the funding."""

    txid: str | None
    """Of the transaction that spent the deposit; None: there never was one."""
    received_sat: Sat
    """What the operator's wallet got for this channel."""
    settled_sat: Sat
    """What the payer had signed for: 0 but for closes."""
    deep: bool
    """So deep that it is not in doubt any more."""


def desired_spending(channel_id: str, sold: Sold, amount_msat: Msat, *, k: int) -> Booking:
    """What was charged since the last such booking; `k` numbers them."""
    debit, credit = ledger.channel(channel_id), ledger.pending(sold.seller_id)
    return Booking(f"{channel_id}:{sold.subject}:{k}", Leg.METERED, debit, credit, amount_msat, Code.METERED)


def sale_reference(channel_id: str, subject: str) -> str:
    """Under which a seller's part of a channel stands; the subject of its transfers too."""
    return f"{channel_id}:{subject}"


def desired_channel(
    channel_id: str, sold: Iterable[Sold], ended: Ended | None
) -> dict[str, tuple[Booking, ...]]:
    """Reference -> what should stand under it, beside what was charged; `ended` None: it is still open.

    All that was charged must be booked by then.
    """
    sold = tuple(sold)
    by_sale = {sale_reference(channel_id, one.subject): _earned(channel_id, one, ended) for one in sold}
    spent_msat = sum(one.spent_msat for one in sold)
    return {channel_id: _settled(channel_id, spent_msat, ended), **by_sale}


def _earned(channel_id: str, sold: Sold, ended: Ended | None) -> tuple[Booking, ...]:
    if ended is None or not ended.deep or not sold.spent_msat:
        return ()
    subject, theirs = sale_reference(channel_id, sold.subject), ledger.seller(sold.seller_id)
    earned = Booking(
        subject, Leg.EARNED, ledger.pending(sold.seller_id), theirs, sold.spent_msat, Code.EARNED
    )
    fee_msat = Msat(sold.spent_msat * sold.fee_ppm // PPM)
    if not fee_msat:
        return (earned,)
    return earned, Booking(subject, Leg.OPERATOR, theirs, ledger.operator(), fee_msat, Code.FEE)


def _settled(channel_id: str, spent_msat: int, ended: Ended | None) -> tuple[Booking, ...]:
    if ended is None:
        return ()
    mine, operator = ledger.channel(channel_id), ledger.operator()
    bookings: list[Booking] = []
    received_msat = msat_from_sat(ended.received_sat)
    if received_msat:
        assert ended.txid is not None, "money comes by a transaction"
        subject = f"{ended.txid}:{channel_id}"
        bookings.append(Booking(subject, Leg.IN, ledger.chain(), mine, received_msat, Code.RECEIVED))
    if not ended.deep:
        return tuple(bookings)
    rest_msat = msat_from_sat(ended.settled_sat) - spent_msat
    if rest_msat < ROUNDING_MSAT:
        rest_msat = 0
    over_msat = received_msat - spent_msat - rest_msat
    owed = ledger.owed_of_channel(channel_id)
    for leg, debit, credit, amount_msat, code in (
        (Leg.REST, mine, owed, rest_msat, Code.OVERPAID),
        (Leg.SURPLUS, mine, operator, over_msat, Code.SURPLUS),
        (Leg.SHORTFALL, operator, mine, -over_msat, Code.SHORTFALL),
    ):
        if amount_msat > 0:
            bookings.append(Booking(channel_id, leg, debit, credit, Msat(amount_msat), code))
    return tuple(bookings)
