"""Which payouts could be in a batch now, and of what coins; why others wait.

In a fixed number of queries, however many payouts are ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select, union_all

from payments import chain_facts, coins, payout_store
from payments.bitcoind_coins import DescriptorRange
from payments.descriptors import DescriptorStore
from payments.money import Sat
from payments.outputs import OutPoint
from payments.payout import (
    COINS_PER_BATCH_MAX,
    PAYOUTS_PER_BATCH_MAX,
    Choice,
    Coin,
    Kind,
    Payout,
    State,
    choose_coins,
)
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import (
    balances,
    invoices,
    paying_transactions,
    received_outputs,
    unassigned_addresses,
    unassigned_outputs,
)


@dataclass(frozen=True, slots=True)
class Candidates:
    payouts: tuple[Payout, ...]
    """Those ready first come first; each could be paid, if there are coins enough."""
    coins: tuple[Coin, ...]
    """Deep enough, and in no other batch."""
    troubles: dict[str, str]
    """Payout id -> why it waits."""


@dataclass(frozen=True, slots=True)
class Affordable:
    payouts: tuple[Payout, ...]
    choice: Choice | None
    """None: not even one can be paid."""
    troubles: dict[str, str] = field(default_factory=dict)


async def candidates(tx: Transaction, *, depth: int, now: int) -> Candidates:
    """The approved payouts whose time has come, with money that is there and deep."""
    ready = [one for one in await payout_store.payouts_in(tx, State.APPROVED) if one.ready_at <= now]
    in_debt = await _negative(tx, {payout.account for payout in ready})
    shallow = await _shallow_invoices(tx, {p.invoice_id for p in ready if p.invoice_id}, depth=depth)
    ours = await _ours(tx, {payout.script_pubkey for payout in ready})
    troubles: dict[str, str] = {}
    for payout in ready:
        if payout.account in in_debt:
            troubles[payout.id] = (
                "the chain took money of this balance back: it waits until that is made good"
            )
        elif payout.kind is Kind.REFUND and payout.invoice_id in shallow:
            troubles[payout.id] = f"it waits until the buyer's money is {depth} blocks deep"
        elif payout.script_pubkey in ours:
            troubles[payout.id] = "its address belongs to this server: cancel or decline it"
    fit = [payout for payout in ready if payout.id not in troubles]
    return Candidates(
        payouts=tuple(fit),
        coins=tuple(await coins.free(tx, depth=depth)),
        troubles=troubles,
    )


def take_affordable(payouts: Sequence[Payout], coins: Sequence[Coin], *, dust_sat: Sat) -> Affordable:
    """Those that the coins cover and one transaction carries, in their order, and the coins for them. Pure.

    Those after them have no trouble: the next batch pays them.
    """
    largest = sorted((coin.amount_sat for coin in coins), reverse=True)[:COINS_PER_BATCH_MAX]
    there_sat, sum_sat = sum(largest), 0
    taken: list[Payout] = []
    troubles: dict[str, str] = {}
    for payout in payouts:
        if len(taken) == PAYOUTS_PER_BATCH_MAX:
            break
        if sum_sat + payout.amount_sat <= there_sat:
            taken.append(payout)
            sum_sat += payout.amount_sat
        elif payout.amount_sat > there_sat and len(coins) > len(largest):
            troubles[payout.id] = (
                f"one transaction spends {COINS_PER_BATCH_MAX} coins at most, which are {there_sat:,} sat: "
                "cancel it, and ask for several smaller ones"
            )
        else:
            troubles[payout.id] = (
                f"the wallet has {there_sat - sum_sat:,} sat left that are deep enough and in no other "
                "batch: it waits for more"
            )
    if not taken:
        return Affordable((), None, troubles)
    choice = choose_coins(coins, Sat(sum_sat), dust_sat=dust_sat)
    assert choice is not None, "the largest coins cover the sum"
    return Affordable(tuple(taken), choice, troubles)


async def origins_of(
    tx: Transaction, store: DescriptorStore, outpoints: Sequence[OutPoint], change_script: bytes | None
) -> list[DescriptorRange]:
    """Which addresses of which descriptors these coins were paid to, and the change would be."""
    places: set[tuple[str, int]] = set()
    wanted = set(outpoints)
    for some in portions(outpoint.txid for outpoint in wanted):
        sold = (
            select(received_outputs.c.txid, received_outputs.c.vout, invoices.c.descriptor_id)
            .add_columns(invoices.c.address_index)
            .join(invoices, invoices.c.id == received_outputs.c.invoice_id)
            .where(received_outputs.c.txid.in_(some))
        )
        own = (
            select(unassigned_outputs.c.txid, unassigned_outputs.c.vout, unassigned_addresses.c.descriptor_id)
            .add_columns(unassigned_addresses.c.address_index)
            .join(
                unassigned_addresses,
                unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey,
            )
            .where(unassigned_outputs.c.txid.in_(some))
        )
        for row in (await tx.execute(union_all(sold, own))).all():
            if OutPoint(row.txid, row.vout) in wanted:
                places.add((row.descriptor_id, row.address_index))
    if change_script is not None:
        of_change = unassigned_addresses.c.script_pubkey == change_script
        row = (await tx.execute(select(unassigned_addresses).where(of_change))).one()
        places.add((row.descriptor_id, row.address_index))
    texts = {id_: (await store.load(tx, id_)).text for id_ in sorted({id_ for id_, _ in places})}
    return [DescriptorRange(texts[id_], index, index) for id_, index in sorted(places)]


async def _negative(tx: Transaction, accounts: set[str]) -> set[str]:
    """Those of these accounts of the ledger that stand below zero."""
    found: set[str] = set()
    for some in portions(accounts):
        below = select(balances.c.account).where(balances.c.account.in_(some), balances.c.amount_msat < 0)
        found |= set((await tx.scalars(below)).all())
    return found


async def _shallow_invoices(tx: Transaction, invoice_ids: set[str], *, depth: int) -> set[str]:
    """Those of these invoices with money in a block that is not so deep."""
    height_max = await chain_facts.tip_height(tx) - depth + 1
    found: set[str] = set()
    for some in portions(invoice_ids):
        rows = await tx.scalars(
            select(received_outputs.c.invoice_id)
            .join(paying_transactions, paying_transactions.c.txid == received_outputs.c.txid)
            .where(received_outputs.c.invoice_id.in_(some))
            .group_by(received_outputs.c.invoice_id)
            .having(func.max(paying_transactions.c.height) > height_max)
        )
        found |= set(rows.all())
    return found


async def _ours(tx: Transaction, scripts: set[bytes]) -> set[bytes]:
    """Those of these scripts that are an invoice's, or the wallet's own."""
    found: set[bytes] = set()
    for some in portions(scripts):
        invoiced = select(invoices.c.script_pubkey).where(invoices.c.script_pubkey.in_(some))
        kept = select(unassigned_addresses.c.script_pubkey).where(
            unassigned_addresses.c.script_pubkey.in_(some)
        )
        found |= set((await tx.scalars(union_all(invoiced, kept))).all())
    return found
