"""What about an invoice its seller must see to. Pure; kept with the invoice so that a list finds it at once.

    suspended   the key was given, and the chain has taken the payment back since
    late        money came after every deadline and settled nothing
    underpaid   too little came, and every deadline has passed
    overpaid    settled, with a surplus above a tip

All but the first are money that belongs to the buyer.
"""

from enum import StrEnum

from payments.invoice import TIP_SAT_MAX, Flag, Policy, Standing, Status
from payments.policy import permission


class Attention(StrEnum):
    SUSPENDED = "suspended"
    LATE = "late"
    UNDERPAID = "underpaid"
    OVERPAID = "overpaid"


def attention(policy: Policy, standing: Standing, *, released: bool) -> Attention | None:
    """`released`: the key was given on this invoice before."""
    permitted = permission(
        policy, standing, released=released, zero_conf_key_allowed=False, prefetch_fit=False
    )
    if permitted.withdrawn:
        return Attention.SUSPENDED
    if standing.status is Status.EXPIRED and standing.received_sat > TIP_SAT_MAX:
        return Attention.LATE if Flag.LATE in standing.flags else Attention.UNDERPAID
    if standing.status is Status.SETTLED and Flag.OVER in standing.flags:
        return Attention.OVERPAID
    return None
