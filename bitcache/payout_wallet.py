"""The wallet a seller is paid into: set, changed with a delay, and watched for its gap limit.

The first descriptor counts at once, and so does the next while no address of the one in force was ever handed
out: nobody can have paid it, and a mistake must be mended before anybody does. Any other change waits, and is
told of, so that a thief of a token cannot turn the income around unseen. Once there were hosted sales it
waits even before an address was handed out, since their earnings are paid out to the wallet; and where they
are paid out to a fixed address, the first wallet waits too, since a thief could have new sales paid to it.
"""

from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, or_, select, update

from bitcache import events
from bitcache.db.tables import accounts, payout_plans
from bitcache.errors import NotFound, ValueRefused
from bitcache.work import GAP_MARGIN
from payments.addresses import PayoutDescriptor
from payments.descriptors import DescriptorStore, DescriptorUsage
from payments.invoice import Mode
from payments.ports import Transaction
from payments.tables import invoices

TOPIC = "payout"
GAP_LIMITS = range(20, 10_001)
"""What a seller may say that the wallet bridges."""
GAP_LIMIT_HEADROOM = 100


class PayoutChanged(Struct, frozen=True):
    """An `events` row of topic "payout": the wallet changes at this time."""

    effective_at: int


class SettlementChanged(Struct, frozen=True):
    """An `events` row of topic "payout": who new invoices are paid to."""

    settlement: str


class PayoutTold(Struct, frozen=True):
    """An `events` row of topic "payout": one of the seller's payouts is in this state now."""

    payout_id: str
    state: str


@dataclass(frozen=True, slots=True)
class PayoutWallet:
    descriptor_id: str
    pending_descriptor_id: str | None
    pending_until: int | None


@dataclass(frozen=True, slots=True)
class PendingWallet:
    descriptor_id: str
    effective_at: int


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
    current, waiting = await wallet(tx, account_id, now=now), await pending(tx, account_id, now=now)
    effective_at = await takes_effect_at(tx, store, account_id, descriptor, delay_s=delay_s, now=now)
    await store.register(tx, descriptor, start_index=start_index, now=now)
    columns: dict[str, str | int | None]
    if effective_at <= now:
        columns = {"descriptor_id": descriptor.id, "pending_descriptor_id": None, "pending_until": None}
    elif waiting is not None and descriptor.id == waiting.descriptor_id:
        return
    else:
        # What became due meanwhile is in force: the new change starts from there.
        columns = {
            "descriptor_id": current.descriptor_id if current else None,
            "pending_descriptor_id": descriptor.id,
            "pending_until": effective_at,
        }
    await tx.execute(update(accounts).where(accounts.c.id == account_id).values(**columns))
    told = PayoutChanged(effective_at=effective_at)
    await events.append(tx, topic=TOPIC, subject=account_id, payload=told, now=now)


async def takes_effect_at(
    tx: Transaction,
    store: DescriptorStore,
    account_id: str,
    descriptor: PayoutDescriptor,
    *,
    delay_s: int,
    now: int,
) -> int:
    """When `descriptor`, set now, would be paid into. Raises NotFound."""
    current, waiting = await wallet(tx, account_id, now=now), await pending(tx, account_id, now=now)
    if current is not None and descriptor.id == current.descriptor_id:
        return now
    if current is None:
        waits = await _has_payout_address(tx, account_id) and await _sold_hosted(tx, account_id)
    else:
        handed_out = (await store.usage(tx, current.descriptor_id)).highest_index_used is not None
        waits = handed_out or await _sold_hosted(tx, account_id)
    if not waits:
        return now
    if waiting is not None and descriptor.id == waiting.descriptor_id:
        return waiting.effective_at
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
    return in_force(await _row(tx, account_id), now)


async def pending(tx: Transaction, account_id: str, *, now: int) -> PendingWallet | None:
    """The wallet that will be in force, if a change waits: the first one may, too. Raises NotFound."""
    row = await _row(tx, account_id)
    if row.pending_descriptor_id is None or row.pending_until <= now:
        return None
    return PendingWallet(row.pending_descriptor_id, row.pending_until)


async def _row(tx: Transaction, account_id: str) -> Row[*tuple[Any, ...]]:
    row = (
        await tx.execute(
            select(
                accounts.c.descriptor_id, accounts.c.pending_descriptor_id, accounts.c.pending_until
            ).where(accounts.c.id == account_id)
        )
    ).first()
    if row is None:
        raise NotFound("account", account_id)
    return row


async def _sold_hosted(tx: Transaction, account_id: str) -> bool:
    """Whether the operator's wallet was ever named to a buyer for this seller."""
    hosted = select(invoices.c.id).where(
        invoices.c.seller_id == account_id,
        invoices.c.mode == Mode.HOSTED,
        invoices.c.script_pubkey.is_not(None),
    )
    return (await tx.execute(hosted.limit(1))).first() is not None


async def _has_payout_address(tx: Transaction, account_id: str) -> bool:
    """Whether earnings are paid out to a fixed address, or will be."""
    plan = select(payout_plans.c.account_id).where(
        payout_plans.c.account_id == account_id,
        or_(payout_plans.c.address.is_not(None), payout_plans.c.pending_until.is_not(None)),
    )
    return (await tx.execute(plan)).first() is not None


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
