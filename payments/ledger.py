"""Double entries, append-only, in millisatoshis. Pure.

What should stand in the books follows from the chain (`desired_bookings`); what is written is the difference
to what stands (`reconcile`). Nothing is ever edited: a booking that no longer holds is reversed.

    leg in         chain -> owed:<invoice>             each output in the active chain, whatever its size
    leg price      owed:<invoice> -> direct:<seller>   once settled, direct mode: a record, never payable
    leg seller     owed:<invoice> -> seller:<seller>   once settled, hosted mode: payable
    leg operator   seller:<seller> -> operator         and the fee of it
    leg in         chain -> unassigned:<descriptor>    what a restored database knows no invoice for
    leg in         chain -> operator                   what the operator put into the hosted wallet

    leg metered    channel:<channel> -> pending:<seller>         what was charged in a channel, now and then;
                   its subject is `<channel>:<offer>:<k>`
    leg in         chain -> channel:<channel>          what its close brought; its subject is
                   `<txid>:<channel>`
    leg earned     pending:<seller> -> seller:<seller> once the close, or a refund, is deep: payable; its
                   subject is `<channel>:<offer>`, as of the leg operator beside it
    leg rest       channel:<channel> -> owed:channel:<channel>   signed away by the payer, and not charged
    leg surplus    channel:<channel> -> operator       what the close's network fee left of the close fee
    leg shortfall  operator -> channel:<channel>       or lacked of it; all that was charged, if the deposit
                   was refunded or double-spent

    leg hold       seller, owed or operator -> payout:<payout>   from the request until paid or called off
    leg paid       payout:<payout> -> chain            what arrives, once its transaction is in a block
    leg fee        payout:<payout> -> chain            and its share of the network's fee
    leg left       operator -> chain                   change of a batch that is too small for an output
    leg spent      unexplained -> chain                left the hosted wallet by a transaction not ours
    leg explained  operator, seller or owed -> unexplained       whose it was, as the operator says; its
                   subject is `<txid>:<account>`, since several may share it

What stays in owed:<invoice> is the buyer's: of a revoked or refunded invoice, all. A transfer's id is
`<subject>/<leg>/<n>`, of an outpoint `<txid>:<vout>` (which is also a channel's id), a payout, a batch or a
txid; n counts the flips of that subject and leg: a retry makes the same transfer, a reorg and back a new one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from payments.errors import LedgerImbalance
from payments.invoice import TIP_SAT_MAX, ChainView, Invoice, Mode, Standing, Status
from payments.money import Msat, Sat, msat_from_sat
from payments.outputs import ReceivedOutput, confirmations, predates, spendable


class Leg(StrEnum):
    """In the order in which money passes them."""

    IN = "in"
    PRICE = "price"
    SELLER = "seller"
    METERED = "metered"
    SHORTFALL = "shortfall"
    EARNED = "earned"
    REST = "rest"
    SURPLUS = "surplus"
    OPERATOR = "operator"
    SPENT = "spent"
    EXPLAINED = "explained"
    HOLD = "hold"
    PAID = "paid"
    NETWORK_FEE = "fee"
    LEFT = "left"


class Code(StrEnum):
    RECEIVED = "received"
    SETTLED = "settled"
    FEE = "fee"
    """The operator's."""
    HELD = "held"
    PAID_OUT = "paid_out"
    NETWORK_FEE = "network_fee"
    SPENT = "spent"
    EXPLAINED = "explained"
    METERED = "metered"
    EARNED = "earned"
    OVERPAID = "overpaid"
    SURPLUS = "surplus"
    SHORTFALL = "shortfall"
    RECEIVED_REVERSED = "received_reversed"
    SETTLED_REVERSED = "settled_reversed"
    FEE_REVERSED = "fee_reversed"
    HELD_REVERSED = "held_reversed"
    PAID_OUT_REVERSED = "paid_out_reversed"
    NETWORK_FEE_REVERSED = "network_fee_reversed"
    SPENT_REVERSED = "spent_reversed"
    EXPLAINED_REVERSED = "explained_reversed"
    METERED_REVERSED = "metered_reversed"
    EARNED_REVERSED = "earned_reversed"
    OVERPAID_REVERSED = "overpaid_reversed"
    SURPLUS_REVERSED = "surplus_reversed"
    SHORTFALL_REVERSED = "shortfall_reversed"


_REVERSAL = {code: Code(f"{code}_reversed") for code in Code if not code.endswith("_reversed")}
_LEG_ORDER = {leg: place for place, leg in enumerate(Leg)}
_ID = re.compile(rf"(?P<subject>[^/]+)/(?P<leg>{'|'.join(Leg)})/(?P<n>\d+)")


class Place(NamedTuple):
    """What a booking is about: at most one stands for each."""

    subject: str
    """The outpoint `<txid>:<vout>`, the id of the payout, the batch or the transaction, or, of a part of what
    that took, `<txid>:<account>`."""
    leg: Leg

    def transfer_id(self, n: int) -> str:
        return f"{self.subject}/{self.leg}/{n}"


@dataclass(frozen=True, slots=True)
class Booking:
    """What should stand in the books."""

    subject: str
    """As in Place."""
    leg: Leg
    debit: str
    credit: str
    amount_msat: Msat
    code: Code


@dataclass(frozen=True, slots=True)
class Transfer:
    """One entry: `amount_msat` (> 0) goes from `debit` to `credit`."""

    id: str
    debit: str
    credit: str
    amount_msat: Msat
    code: Code
    reference: str
    created_at: int


def chain() -> str:
    """The world outside: minus what came from it."""
    return "chain"


def owed(invoice_id: str) -> str:
    """Received on an invoice and not earned, or not yet: the buyer's."""
    return f"owed:{invoice_id}"


def direct(seller_id: str) -> str:
    """Earned, and in the seller's own wallet since it was paid."""
    return f"direct:{seller_id}"


def seller(seller_id: str) -> str:
    """Earned, in the operator's wallet, payable to the seller."""
    return f"seller:{seller_id}"


def channel(channel_id: str) -> str:
    """What a channel's close brought, less what was charged in it: below zero until the close is mined, and
    nothing once that is deep."""
    return f"channel:{channel_id}"


def pending(seller_id: str) -> str:
    """Charged in channels of which no close is deep yet: the seller's, and not payable."""
    return f"pending:{seller_id}"


def owed_of_channel(channel_id: str) -> str:
    """Signed away in a channel and not charged: the payer's."""
    return owed(f"channel:{channel_id}")


def operator() -> str:
    """The operator's own."""
    return "operator"


def payout(payout_id: str) -> str:
    """Set aside for a payout that is not in a block yet."""
    return f"payout:{payout_id}"


def unexplained() -> str:
    """Minus what left the hosted wallet by transactions that nobody has explained yet."""
    return "unexplained"


def unassigned(descriptor_id: str) -> str:
    """In the wallet of this descriptor, for invoices that were lost: whose it is, people must find out."""
    return f"unassigned:{descriptor_id}"


def desired_uninvoiced(
    account: str, outputs: Iterable[ReceivedOutput], view: ChainView
) -> tuple[Booking, ...]:
    """What should stand in the books for outputs that no invoice has, and that are this account's."""
    in_chain = (output for output in outputs if _in_chain(output, view))
    return tuple(
        Booking(
            str(output.outpoint),
            Leg.IN,
            chain(),
            account,
            msat_from_sat(output.amount_sat),
            Code.RECEIVED,
        )
        for output in in_chain
    )


def desired_bookings(
    invoice: Invoice,
    outputs: Iterable[ReceivedOutput],
    standing: Standing,
    view: ChainView,
) -> tuple[Booking, ...]:
    """What should stand in the books for the invoice now, in the order in which the money moves.

    `standing` must follow from the same invoice, outputs and chain.
    """
    in_chain = sorted(
        (output for output in outputs if _bookable(output, invoice, view)),
        key=lambda output: (output.height, output.first_seen_at, output.outpoint),
    )
    received = [
        Booking(
            str(output.outpoint),
            Leg.IN,
            chain(),
            owed(invoice.id),
            msat_from_sat(output.amount_sat),
            Code.RECEIVED,
        )
        for output in in_chain
    ]
    if invoice.withdrawn or standing.status is not Status.SETTLED:
        return tuple(received)
    return (*received, *_earned(invoice, received, standing.price_sat))


def reconcile(
    desired: Iterable[Booking], booked: Iterable[Transfer], *, reference: str, now: int
) -> tuple[Transfer, ...]:
    """The transfers to append so that exactly `desired` stands; none if it does already.

    `booked` is every transfer written for these subjects so far, in any order; one whose id names no
    subject and leg is left alone. Reversals come first, the last leg first: no owed balance dips below zero.
    Raises LedgerImbalance if `booked` has a gap or a wrong reversal, or `desired` names one place twice.
    """
    wanted: dict[Place, Booking] = {}
    for booking in desired:
        place = Place(booking.subject, booking.leg)
        if place in wanted:
            raise LedgerImbalance(f"two bookings for {place.subject}, leg {place.leg}")
        wanted[place] = booking
    histories = _histories(booked)
    reversals: list[Transfer] = []
    bookings: list[Transfer] = []
    for place in sorted(wanted.keys() | histories.keys(), key=_leg_then_subject):
        target = wanted.get(place)
        history = histories.get(place, [])
        n = len(history)
        stands = history[-1] if n % 2 else None
        if stands is not None and (target is None or not _says(stands, target)):
            reversals.append(_reversal(stands, place.transfer_id(n), reference, now))
            stands, n = None, n + 1
        if stands is None and target is not None:
            bookings.append(_transfer(target, place.transfer_id(n), reference, now))
    return (*reversed(reversals), *bookings)


def balances(transfers: Iterable[Transfer]) -> dict[str, Msat]:
    """Credits minus debits of every account named; they sum to zero."""
    totals: dict[str, Msat] = {}
    for transfer in transfers:
        totals[transfer.debit] = Msat(totals.get(transfer.debit, 0) - transfer.amount_msat)
        totals[transfer.credit] = Msat(totals.get(transfer.credit, 0) + transfer.amount_msat)
    return totals


def _bookable(output: ReceivedOutput, invoice: Invoice, view: ChainView) -> bool:
    # Dust is money too. What is older than the invoice is not this buyer's, and not ours to owe to them.
    return _in_chain(output, view) and not predates(output, invoice.created_at)


def _in_chain(output: ReceivedOutput, view: ChainView) -> bool:
    return confirmations(output, view.tip_height) >= 1 and spendable(output, view.tip_height)


def _earned(invoice: Invoice, received: Sequence[Booking], price_sat: Sat) -> Iterator[Booking]:
    """The price and the tip, taken from the received bookings in turn, the fee from the first of it."""
    price_msat = msat_from_sat(price_sat)
    surplus_msat = sum(booking.amount_msat for booking in received) - price_msat
    # Money received beyond a tip is owed whole, not only the part above it.
    tip_msat = surplus_msat if 0 < surplus_msat <= msat_from_sat(TIP_SAT_MAX) else 0
    left_msat = int(price_msat + tip_msat)
    fee_left_msat = int(msat_from_sat(invoice.fee.of(price_sat)))
    for booking in received:
        taken_msat = min(left_msat, booking.amount_msat)
        kept_msat = min(fee_left_msat, taken_msat)
        left_msat -= taken_msat
        fee_left_msat -= kept_msat
        mine, theirs = owed(invoice.id), seller(invoice.seller_id)
        if invoice.mode is Mode.DIRECT:
            shares = [(Leg.PRICE, mine, direct(invoice.seller_id), taken_msat, Code.SETTLED)]
        else:
            # The whole price passes the seller's account, so that it alone tells gross, fee and net.
            shares = [
                (Leg.SELLER, mine, theirs, taken_msat, Code.SETTLED),
                (Leg.OPERATOR, theirs, operator(), kept_msat, Code.FEE),
            ]
        for leg, debit, credit, share_msat, code in shares:
            if share_msat > 0:
                yield Booking(booking.subject, leg, debit, credit, Msat(share_msat), code)


def _histories(booked: Iterable[Transfer]) -> dict[Place, list[Transfer]]:
    """The transfers of each place by n: an even n books, an odd n reverses the one before."""
    numbered: dict[Place, dict[int, Transfer]] = {}
    for transfer in booked:
        parts = _ID.fullmatch(transfer.id)
        if parts is None:
            continue
        steps = numbered.setdefault(Place(parts["subject"], Leg(parts["leg"])), {})
        if steps.setdefault(int(parts["n"]), transfer) != transfer:
            raise LedgerImbalance(f"two different transfers {transfer.id}")
    return {place: _checked(place, steps) for place, steps in numbered.items()}


def _checked(place: Place, steps: dict[int, Transfer]) -> list[Transfer]:
    """`steps` as a list. Raises LedgerImbalance unless they book and reverse in turn, without a gap."""
    if sorted(steps) != list(range(len(steps))):
        raise LedgerImbalance(f"a transfer of {place.subject}, leg {place.leg}, is missing")
    history = [steps[n] for n in range(len(steps))]
    for booking, reversal in zip(history[::2], history[1::2], strict=False):
        if reversal != _reversal(booking, reversal.id, reversal.reference, reversal.created_at):
            raise LedgerImbalance(f"{reversal.id} does not reverse {booking.id}")
    return history


def _says(transfer: Transfer, booking: Booking) -> bool:
    return (transfer.debit, transfer.credit, transfer.amount_msat, transfer.code) == (
        booking.debit,
        booking.credit,
        booking.amount_msat,
        booking.code,
    )


def _reversal(transfer: Transfer, id_: str, reference: str, now: int) -> Transfer:
    return Transfer(
        id=id_,
        debit=transfer.credit,
        credit=transfer.debit,
        amount_msat=transfer.amount_msat,
        code=_REVERSAL[transfer.code],
        reference=reference,
        created_at=now,
    )


def _transfer(booking: Booking, id_: str, reference: str, now: int) -> Transfer:
    return Transfer(
        id=id_,
        debit=booking.debit,
        credit=booking.credit,
        amount_msat=booking.amount_msat,
        code=booking.code,
        reference=reference,
        created_at=now,
    )


def _leg_then_subject(place: Place) -> tuple[int, str]:
    return _LEG_ORDER[place.leg], place.subject
