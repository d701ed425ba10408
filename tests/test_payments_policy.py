"""What a standing permits: bytes, the key, nothing more, or nothing any more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.errors import PolicyInvalid
from payments.invoice import Policy, Presence, ReceivedOutput, standing
from payments.money import Sat
from payments.policy import CONFIRMATIONS_MAX, TOLERANCE_PPM_MAX, Permission, permission, validate_policy
from tests.payments_facts import CHAIN, CREATED_AT, LAWS, World, invoice_of, paid, worlds

NOTHING = Permission(False, False, False)
BYTES = Permission(True, False, False)
BOTH = Permission(True, True, False)
WITHDRAWN = Permission(False, False, True)
GONE, MISSING = Presence.GONE, Presence.MISSING

DEFAULT, PREFETCH, AT_ONCE, DEEP = Policy(), Policy(0, 1), Policy(0, 0), Policy(3, 3)

SEEN = (paid("a", 5_000),)
MINED = (paid("a", 5_000, confirmations=1),)
TWO_DEEP = (paid("a", 5_000, confirmations=2),)
THREE_DEEP = (paid("a", 5_000, confirmations=3),)
SHORT = (paid("a", 4_999, confirmations=9),)
LOST_SIGHT = (paid("a", 5_000, presence=MISSING),)
REORGED = (paid("a", 5_000, reorged=True),)
REORGED_AWAY = (paid("a", 5_000, presence=MISSING, reorged=True),)
DOUBLE_SPENT = (paid("a", 5_000, presence=GONE),)
REPLACED = (paid("a", 5_000, presence=Presence.CONFLICTED),)
DEEP_BUT_PART_MISSING = (paid("a", 4_000, confirmations=9), paid("b", 1_000, presence=MISSING))


def permitted(
    policy: Policy,
    outputs: tuple[ReceivedOutput, ...],
    *,
    released: bool = False,
    capped: bool = False,
    fit: bool = True,
) -> Permission:
    invoice = invoice_of(key_at=policy.key_at, bytes_at=policy.bytes_at)
    found = standing(invoice, outputs, CHAIN, CREATED_AT + 600)
    return permission(policy, found, released=released, zero_conf_key_allowed=not capped, prefetch_fit=fit)


@pytest.mark.parametrize(
    ("policy", "outputs", "expected"),
    [
        (DEFAULT, (), NOTHING),
        (DEFAULT, SHORT, NOTHING),
        (DEFAULT, SEEN, NOTHING),
        (DEFAULT, LOST_SIGHT, NOTHING),
        (DEFAULT, MINED, BOTH),
        (DEFAULT, DOUBLE_SPENT, NOTHING),
        (PREFETCH, SHORT, NOTHING),
        (PREFETCH, SEEN, BYTES),
        (PREFETCH, LOST_SIGHT, NOTHING),
        (PREFETCH, MINED, BOTH),
        (AT_ONCE, SEEN, BOTH),
        (AT_ONCE, LOST_SIGHT, NOTHING),
        (DEEP, MINED, NOTHING),
        (DEEP, TWO_DEEP, NOTHING),
        (DEEP, THREE_DEEP, BOTH),
        (DEEP, DEEP_BUT_PART_MISSING, NOTHING),
        (AT_ONCE, DEEP_BUT_PART_MISSING, NOTHING),
    ],
)
def test_permission(policy: Policy, outputs: tuple[ReceivedOutput, ...], expected: Permission) -> None:
    assert permitted(policy, outputs) == expected


@pytest.mark.parametrize(
    ("policy", "outputs", "capped", "fit", "expected"),
    [
        (PREFETCH, SEEN, False, False, NOTHING),
        (PREFETCH, MINED, True, False, BOTH),
        (AT_ONCE, SEEN, True, True, BYTES),
        (AT_ONCE, SEEN, False, False, NOTHING),
        (AT_ONCE, SEEN, True, False, NOTHING),
        (AT_ONCE, MINED, True, False, BOTH),
    ],
)
def test_unconfirmed_money_needs_more(
    policy: Policy, outputs: tuple[ReceivedOutput, ...], capped: bool, fit: bool, expected: Permission
) -> None:
    assert permitted(policy, outputs, capped=capped, fit=fit) == expected


@pytest.mark.parametrize(
    ("policy", "outputs", "expected"),
    [
        (DEFAULT, MINED, BOTH),
        (DEFAULT, DOUBLE_SPENT, WITHDRAWN),
        (DEFAULT, REPLACED, WITHDRAWN),
        (DEFAULT, REORGED, WITHDRAWN),
        (DEFAULT, REORGED_AWAY, WITHDRAWN),
        (DEFAULT, LOST_SIGHT, NOTHING),
        (DEFAULT, (), WITHDRAWN),
        (PREFETCH, SEEN, BYTES),
        (PREFETCH, LOST_SIGHT, NOTHING),
        (PREFETCH, DOUBLE_SPENT, WITHDRAWN),
        (PREFETCH, REORGED, WITHDRAWN),
        (AT_ONCE, SEEN, BOTH),
        (AT_ONCE, LOST_SIGHT, NOTHING),
        (AT_ONCE, REPLACED, WITHDRAWN),
        (AT_ONCE, REORGED, BOTH),
        (DEEP, TWO_DEEP, WITHDRAWN),
        (DEEP, THREE_DEEP, BOTH),
    ],
)
def test_what_was_released(policy: Policy, outputs: tuple[ReceivedOutput, ...], expected: Permission) -> None:
    assert permitted(policy, outputs, released=True) == expected


@LAWS
@given(worlds, st.booleans(), st.booleans(), st.booleans())
def test_permission_laws(world: World, released: bool, uncapped: bool, fit: bool) -> None:
    found, policy = world.standing(), world.invoice.policy
    given_now = permission(policy, found, released=released, zero_conf_key_allowed=uncapped, prefetch_fit=fit)
    if given_now.withdrawn:
        assert released
        assert not given_now.bytes_allowed
        assert not given_now.key_allowed
    if given_now.bytes_allowed or given_now.key_allowed:
        assert found.covered_now
    if found.depth < 1:
        assert not given_now.key_allowed or (policy.key_at == 0 and uncapped)
        assert not given_now.bytes_allowed or (policy.bytes_at == 0 and fit)
    if not found.covered:
        assert given_now == Permission(False, False, released)
    confirmed_well = found.depth >= max(policy.key_at, policy.bytes_at, 1) and found.covered_now
    assert not confirmed_well or given_now == BOTH


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(0, 0),
        Policy(0, 1),
        Policy(0, CONFIRMATIONS_MAX),
        Policy(CONFIRMATIONS_MAX, CONFIRMATIONS_MAX),
        Policy(tolerance_sat=Sat(1_000), tolerance_ppm=TOLERANCE_PPM_MAX),
    ],
)
def test_policies_an_offer_may_have(policy: Policy) -> None:
    validate_policy(policy)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(-1, 1),
        Policy(0, -1),
        Policy(2, 1),
        Policy(1, 0),
        Policy(1, CONFIRMATIONS_MAX + 1),
        Policy(tolerance_sat=Sat(-1)),
        Policy(tolerance_ppm=-1),
        Policy(tolerance_ppm=TOLERANCE_PPM_MAX + 1),
    ],
)
def test_policies_no_offer_may_have(policy: Policy) -> None:
    with pytest.raises(PolicyInvalid):
        validate_policy(policy)
