"""The wallet a seller is paid into: set, changed with a delay, and watched for its gap limit.

The first descriptor counts at once, and so does the next while no address of the one in force was ever handed
out: nobody can have paid it, and a mistake must be mended before anybody does. Any other change waits, and is
told of, so that a thief of a token cannot turn the income around unseen.
"""

from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, select, update

from bitcache import events
from bitcache.db.tables import accounts
from bitcache.errors import NotFound, ValueRefused
from bitcache.work import GAP_MARGIN
from payments.addresses import PayoutDescriptor
from payments.descriptors import DescriptorStore, DescriptorUsage
from payments.ports import Transaction

TOPIC = "payout"
GAP_LIMITS = range(20, 10_001)
"""What a seller may say that the wallet bridges."""
GAP_LIMIT_HEADROOM = 100


class PayoutChanged(Struct, frozen=True):
    """An `events` row of topic "payout": the wallet changes at this time."""

    effective_at: int


@dataclass(frozen=True, slots=True)
class PayoutWallet:
    descriptor_id: str
    pending_descriptor_id: str | None
    pending_until: int | None


async def set_descriptor(
    tx: Transaction,
    store: DescriptorStore,
    account_id: str,
    descriptor: PayoutDescriptor,
    *,
    start_index: int,
    delay_s: int,
    now: int,
) -> None:
    """Pay into this wallet from `takes_effect_at` on; setting the present one calls a change off."""
    current = await wallet(tx, account_id, now=now)
    effective_at = await takes_effect_at(tx, store, current, descriptor, delay_s=delay_s, now=now)
    await store.register(tx, descriptor, start_index=start_index, now=now)
    if current is None or effective_at <= now:
        changed = PayoutWallet(descriptor.id, None, None)
    elif descriptor.id == current.pending_descriptor_id:
        return
    else:
        # What became due meanwhile is in force: the new change starts from there.
        changed = PayoutWallet(current.descriptor_id, descriptor.id, effective_at)
    await tx.execute(
        update(accounts)
        .where(accounts.c.id == account_id)
        .values(
            descriptor_id=changed.descriptor_id,
            pending_descriptor_id=changed.pending_descriptor_id,
            pending_until=changed.pending_until,
        )
    )
    told = PayoutChanged(effective_at=changed.pending_until or now)
    await events.append(tx, topic=TOPIC, subject=account_id, payload=told, now=now)


async def takes_effect_at(
    tx: Transaction,
    store: DescriptorStore,
    current: PayoutWallet | None,
    descriptor: PayoutDescriptor,
    *,
    delay_s: int,
    now: int,
) -> int:
    """When `descriptor`, set now, would be paid into; `current` is the wallet in force."""
    if current is None or descriptor.id == current.descriptor_id:
        return now
    if (await store.usage(tx, current.descriptor_id)).highest_index_used is None:
        return now
    if descriptor.id == current.pending_descriptor_id and current.pending_until is not None:
        return current.pending_until
    return now + delay_s


async def raise_next_index(
    tx: Transaction, store: DescriptorStore, account_id: str, *, start_index: int, now: int
) -> None:
    """Skip addresses of the wallet in force; the index never goes back. Raises ValueRefused without one."""
    current = await wallet(tx, account_id, now=now)
    if current is None:
        raise ValueRefused("Set `payout_descriptor` first, or together with it.", field="start_index")
    descriptor = await store.load(tx, current.descriptor_id)
    await store.register(tx, descriptor, start_index=start_index, now=now)


async def set_gap_limit(
    tx: Transaction,
    store: DescriptorStore,
    account_id: str,
    gap_limit: int,
    *,
    descriptor_id: str | None = None,
    now: int,
) -> None:
    """The seller says that the wallet bridges so many unused addresses: the one in force, unless another is
    named. Raises ValueRefused without one."""
    if descriptor_id is None:
        current = await wallet(tx, account_id, now=now)
        if current is None:
            raise ValueRefused("Set `payout_descriptor` first, or together with it.", field="gap_limit")
        descriptor_id = current.descriptor_id
    await store.set_gap_limit(tx, descriptor_id, gap_limit)


async def wallet(tx: Transaction, account_id: str, *, now: int) -> PayoutWallet | None:
    """The wallet in force at `now`, a due change counted; None before the first. Raises NotFound."""
    row = (
        await tx.execute(
            select(
                accounts.c.descriptor_id, accounts.c.pending_descriptor_id, accounts.c.pending_until
            ).where(accounts.c.id == account_id)
        )
    ).first()
    if row is None:
        raise NotFound("account", account_id)
    return in_force(row, now)


def in_force(row: Row[*tuple[Any, ...]], now: int) -> PayoutWallet | None:
    """The wallet that these columns of `accounts` mean at `now`, a due change counted. Pure."""
    if row.pending_descriptor_id is not None and row.pending_until <= now:
        return PayoutWallet(row.pending_descriptor_id, None, None)
    if row.descriptor_id is None:
        return None
    return PayoutWallet(row.descriptor_id, row.pending_descriptor_id, row.pending_until)


def is_gap_near(unused_streak: int, gap_limit: int) -> bool:
    """Whether the wallet may soon stop looking; from here on buyers are asked for work, too. Pure."""
    return unused_streak >= gap_limit - GAP_MARGIN


def gap_limit_advice(usage: DescriptorUsage) -> str | None:
    """How to make a wallet find payments behind many unused addresses; None while that is not needed."""
    if not is_gap_near(usage.unused_streak, usage.gap_limit) or usage.highest_index_used is None:
        return None
    limit = usage.unused_streak + GAP_LIMIT_HEADROOM
    last = usage.highest_index_used + GAP_LIMIT_HEADROOM
    return (
        f"{usage.unused_streak} addresses in a row were handed out and never paid. Your wallet stops looking "
        f"after {usage.gap_limit} unused ones: raise its gap limit to {limit}, or it may miss the next "
        "payment. "
        f"Electrum: View > Show Console, then `wallet.change_gap_limit({limit})`. "
        f"Sparrow: Settings > Advanced > Gap limit {limit}, then Apply. "
        f"Bitcoin Core: `bitcoin-cli keypoolrefill {limit}` for the wallet that owns the keys, or import the "
        f'descriptor again with `"range": [0, {last}]`. '
        f"Then say so here: `bitcache payout gap {limit}`. Until then buyers' programs must earn an address "
        "with a proof of work, so that nobody uses up your addresses. "
        "The coins are yours either way: only the view is limited."
    )
