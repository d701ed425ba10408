"""Where a seller's hosted earnings are paid out to: a fixed address, or the next address of the own wallet.

The first target counts at once; any other waits, and is told of, so that a thief of a token cannot send the
balance elsewhere unseen. Nothing gets round the wait: a payout names no address, it goes to the target that
is in force when it is asked for. A change of the seller's wallet waits by itself (`bitcache.payout_wallet`).
"""

from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct
from sqlalchemy import Row, insert, select, update

from bitcache import events, payout_wallet
from bitcache.db.tables import payout_plans
from bitcache.errors import ValueRefused
from payments import payout_requests
from payments.errors import PayoutRefused
from payments.ports import Transaction

FIELD = "payout_address"


class AddressNode(Protocol):
    async def validate_address(self, address: str) -> bytes | None: ...


class PayoutTargetChanged(Struct, frozen=True):
    """An `events` row of topic "payout": from this time on earnings are paid out to another target."""

    target_effective_at: int


@dataclass(frozen=True, slots=True)
class Target:
    address: str | None
    """None: the next address of the seller's wallet."""
    script_pubkey: bytes | None
    """Of `address`."""


WALLET = Target(None, None)


@dataclass(frozen=True, slots=True)
class Targets:
    current: Target | None
    """None: there is no target yet."""
    pending: Target | None = None
    pending_until: int | None = None


async def read_address(node: AddressNode, address: str, network: str) -> Target:
    """Raises ValueRefused for what is no address of this network, NodeUnavailable."""
    # The node answers for any text, and would be sent every character of it.
    script = await node.validate_address(address) if address.isascii() and address.isprintable() else None
    if script is None:
        raise ValueRefused(
            f"This is no address on {network}: a character is wrong, or it is of another network. Copy it "
            "again from your wallet.",
            field=FIELD,
        )
    return Target(address, script)


async def set_target(tx: Transaction, account_id: str, target: Target, *, delay_s: int, now: int) -> None:
    """Pay out there from now on, or after the delay; setting the present one calls a change off.

    Raises ValueRefused for an address that is watched here, and for a wallet that is not set.
    """
    if target.script_pubkey is not None:
        try:
            await payout_requests.check_target(tx, target.script_pubkey)
        except PayoutRefused as exc:
            raise ValueRefused(f"{str(exc)[0].upper()}{str(exc)[1:]}.", field=FIELD) from exc
    elif await payout_wallet.wallet(tx, account_id, now=now) is None:
        raise ValueRefused(
            "You have no wallet set: set one with `bitcache payout set` (`payout_descriptor`), or give an "
            "address.",
            field=FIELD,
        )
    known = await targets(tx, account_id, now=now)
    if _same(target, known.current):
        if known.pending is None:
            return
        changed = Targets(known.current)
    elif known.current is None:
        changed = Targets(target)
    elif _same(target, known.pending):
        return
    else:
        # What became due meanwhile is in force: the new change starts from there.
        changed = Targets(known.current, target, now + delay_s)
    current = changed.current or WALLET
    values = {
        "address": current.address,
        "script_pubkey": current.script_pubkey,
        "pending_address": changed.pending.address if changed.pending else None,
        "pending_script_pubkey": changed.pending.script_pubkey if changed.pending else None,
        "pending_until": changed.pending_until,
    }
    await keep_plan(tx, account_id, values)
    told = PayoutTargetChanged(target_effective_at=changed.pending_until or now)
    await events.append(tx, topic=payout_wallet.TOPIC, subject=account_id, payload=told, now=now)


async def targets(tx: Transaction, account_id: str, *, now: int) -> Targets:
    """As of `now`, a due change counted. Raises NotFound."""
    wallet = await payout_wallet.wallet(tx, account_id, now=now)
    row = (await tx.execute(select(payout_plans).where(payout_plans.c.account_id == account_id))).first()
    return in_force(row, has_wallet=wallet is not None, now=now)


def in_force(row: Row[*tuple[Any, ...]] | None, *, has_wallet: bool, now: int) -> Targets:
    """What this row of `payout_plans` means at `now`; without one the wallet is paid. Pure."""
    kept = WALLET if row is None else Target(row.address, row.script_pubkey)
    if row is None or row.pending_until is None:
        found = Targets(kept)
    else:
        pending = Target(row.pending_address, row.pending_script_pubkey)
        found = Targets(pending) if row.pending_until <= now else Targets(kept, pending, row.pending_until)
    if found.current == WALLET and not has_wallet:
        return Targets(None, found.pending, found.pending_until)
    return found


async def keep_plan(tx: Transaction, account_id: str, values: dict[str, Any]) -> None:
    """Write these columns of the account's row of `payout_plans`, which may not be there yet."""
    changed = await tx.execute(
        update(payout_plans).where(payout_plans.c.account_id == account_id).values(**values)
    )
    if changed.rowcount == 0:
        await tx.execute(insert(payout_plans).values(account_id=account_id, **values))


def _same(one: Target, other: Target | None) -> bool:
    """An address may be written in more than one way."""
    return other is not None and one.script_pubkey == other.script_pubkey
