"""What an invoice's standing permits its buyer. Pure: what the server knows beyond it comes as facts.

    bytes       the ciphertext, from `bytes_at` confirmations
    key         the release secret, from `key_at` confirmations
    withdrawn   neither: the key was given before, and the chain has taken the payment back since

Money that our node has only lost sight of gives nothing new and withdraws nothing.
"""

from dataclasses import dataclass

from payments.errors import PolicyInvalid
from payments.invoice import Flag, Policy, Standing

CONFIRMATIONS_MAX = 100
"""More than this protects from nothing: newly mined coins themselves may be spent then."""
TOLERANCE_PPM_MAX = 100_000
"""A tenth of the price: a tolerance is for fees and rounding, not a discount."""


@dataclass(frozen=True, slots=True)
class Permission:
    bytes_allowed: bool
    key_allowed: bool
    withdrawn: bool
    """Suspended until the payment is back; nothing is allowed meanwhile."""


def permission(
    policy: Policy,
    standing: Standing,
    *,
    released: bool,
    zero_conf_key_allowed: bool,
    prefetch_fit: bool,
) -> Permission:
    """What the buyer may have now.

    `released`: the key was given on this invoice before.
    `zero_conf_key_allowed`: the invoice fits under the server-wide cap of unconfirmed exposure, or was
    counted in it before. Matters only at depth 0.
    `prefetch_fit`: the operator permits bytes before a block, and the paying transactions have at least the
    feerate of the node's 6-block estimate and no unconfirmed parents. Matters only at depth 0.
    """
    withdrawn = released and _taken_back(policy, standing)
    if withdrawn or not standing.covered_now:
        return Permission(bytes_allowed=False, key_allowed=False, withdrawn=withdrawn)
    confirmed = standing.depth >= 1
    return Permission(
        bytes_allowed=standing.depth >= policy.bytes_at and (confirmed or prefetch_fit),
        # Parents that are replaced take a payment along, unseen: what was risked on it stays risked.
        key_allowed=standing.depth >= policy.key_at
        and (confirmed or (zero_conf_key_allowed and prefetch_fit)),
        withdrawn=False,
    )


def validate_policy(policy: Policy) -> None:
    """Raises PolicyInvalid, saying what to change, for a policy no offer may have."""
    if not 0 <= policy.bytes_at <= policy.key_at <= CONFIRMATIONS_MAX:
        raise PolicyInvalid(
            f"bytes after {policy.bytes_at} and the key after {policy.key_at} confirmations: "
            f"choose 0 <= bytes <= key <= {CONFIRMATIONS_MAX}"
        )
    if policy.tolerance_sat < 0:
        raise PolicyInvalid(f"a tolerance of {policy.tolerance_sat} sat: choose 0 or more")
    if not 0 <= policy.tolerance_ppm <= TOLERANCE_PPM_MAX:
        raise PolicyInvalid(
            f"a tolerance of {policy.tolerance_ppm} parts per million: choose 0 to {TOLERANCE_PPM_MAX}"
        )


def _taken_back(policy: Policy, standing: Standing) -> bool:
    """Whether the payment no longer carries what it once gave."""
    if not standing.covered:
        return True
    if Flag.REORGED in standing.flags:
        # The key may be out: before the payment is back in a block it must not be joined by more bytes.
        return standing.depth < policy.key_at
    return standing.covered_now and standing.depth < policy.bytes_at
