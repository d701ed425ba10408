"""What about an invoice its seller must see to. Pure; kept with the invoice so that a list finds it at once.

    taken_down  what was sold may not be given any more, and money came
    suspended   the key was given, and the chain has taken the payment back since
    late        money came after every deadline and settled nothing
    underpaid   too little came, and every deadline has passed
    overpaid    settled, with a surplus above a tip

All but `suspended` are money that belongs to the buyer.
"""

from enum import StrEnum

from payments.invoice import TIP_SAT_MAX, Flag, Invoice, Mode, Standing, Status
from payments.policy import permission


class Attention(StrEnum):
    TAKEN_DOWN = "taken_down"
    SUSPENDED = "suspended"
    LATE = "late"
    UNDERPAID = "underpaid"
    OVERPAID = "overpaid"


def attention(invoice: Invoice, standing: Standing, *, released: bool) -> Attention | None:
    """`released`: the key was given on this invoice before."""
    if invoice.revoked:
        return Attention.TAKEN_DOWN if standing.received_sat else None
    if invoice.refunded:
        # A hosted refund is listed by itself; else its seller must pay it, by hand.
        if invoice.mode is Mode.HOSTED or not standing.received_sat:
            return None
        return Attention.LATE if Flag.LATE in standing.flags else Attention.UNDERPAID
    permitted = permission(
        invoice.policy, standing, released=released, zero_conf_key_allowed=False, prefetch_fit=False
    )
    if permitted.withdrawn:
        return Attention.SUSPENDED
    if standing.status is Status.EXPIRED and standing.received_sat > TIP_SAT_MAX:
        return Attention.LATE if Flag.LATE in standing.flags else Attention.UNDERPAID
    if standing.status is Status.SETTLED and Flag.OVER in standing.flags:
        return Attention.OVERPAID
    return None
