"""The unspent outputs of the operator's wallet, as our node's blocks tell.

Coins are what hosted sales were paid, the change of payouts, and deposits. A coin is spent once a transaction
that we follow spends it in a block: our own, or anybody's.
"""

from collections.abc import Iterable

from sqlalchemy import CompoundSelect, Select, and_, exists, or_, select, union_all

from payments import chain_facts
from payments.invoice import Mode
from payments.money import Sat
from payments.outputs import COINBASE_MATURITY, OutPoint, Presence
from payments.payout import BatchState, Coin
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import (
    batch_inputs,
    channels,
    descriptors,
    invoices,
    paying_inputs,
    paying_transactions,
    payout_batches,
    received_outputs,
    unassigned_addresses,
    unassigned_outputs,
)
from payments.unassigned import Purpose

_spenders = paying_transactions.alias("spenders")


def ever() -> CompoundSelect[tuple[str, int, int, bytes]]:
    """Every output there ever was to the wallet: txid, vout, amount_sat, script_pubkey."""
    sold = (
        select(
            received_outputs.c.txid,
            received_outputs.c.vout,
            received_outputs.c.amount_sat,
            invoices.c.script_pubkey,
        )
        .join(invoices, invoices.c.id == received_outputs.c.invoice_id)
        .where(invoices.c.mode == Mode.HOSTED)
    )
    own = (
        select(
            unassigned_outputs.c.txid,
            unassigned_outputs.c.vout,
            unassigned_outputs.c.amount_sat,
            unassigned_outputs.c.script_pubkey,
        )
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .join(descriptors, descriptors.c.id == unassigned_addresses.c.descriptor_id)
        .where(descriptors.c.hosted)
    )
    return union_all(sold, own)


def _unspent(*, height_max: int) -> Select[tuple[str, int, int, bytes, int, bool]]:
    """Those in a block of the active chain at most so high that no transaction in one has spent."""
    coins = ever().subquery()
    spent = exists().where(
        and_(
            paying_inputs.c.previous_txid == coins.c.txid,
            paying_inputs.c.previous_vout == coins.c.vout,
            _spenders.c.txid == paying_inputs.c.txid,
            _spenders.c.presence == Presence.BLOCK,
            _spenders.c.height <= height_max,
        )
    )
    return (
        select(
            coins.c.txid,
            coins.c.vout,
            coins.c.amount_sat,
            coins.c.script_pubkey,
            paying_transactions.c.height,
            paying_transactions.c.coinbase,
        )
        .join(paying_transactions, paying_transactions.c.txid == coins.c.txid)
        .where(paying_transactions.c.presence == Presence.BLOCK, ~spent)
    )


async def unspent(tx: Transaction, *, height: int | None = None) -> list[Coin]:
    """All coins, of whatever depth, but for coinbases that are too young to spend; by outpoint.

    As of the block at `height` of the active chain; by default its tip.
    """
    at = await chain_facts.tip_height(tx) if height is None else height
    rows = (await tx.execute(_unspent(height_max=at).where(paying_transactions.c.height <= at))).all()
    return [
        Coin(OutPoint(row.txid, row.vout), Sat(row.amount_sat), row.height)
        for row in rows
        if not row.coinbase or at - row.height + 1 >= COINBASE_MATURITY
    ]


async def watched(tx: Transaction, *, spent_above: int) -> list[OutPoint]:
    """All that are unspent, or were before the blocks above this height: a reorg can bring those back."""
    rows = await tx.execute(_unspent(height_max=spent_above))
    return [OutPoint(row.txid, row.vout) for row in rows.all()]


async def free(tx: Transaction, *, depth: int) -> list[Coin]:
    """Coins at least so deep that no batch spends."""
    tip = await chain_facts.tip_height(tx)
    taken = select(batch_inputs.c.txid, batch_inputs.c.vout).join(
        payout_batches, payout_batches.c.id == batch_inputs.c.batch_id
    )
    rows = await tx.execute(taken.where(payout_batches.c.state != BatchState.DEAD))
    reserved = {OutPoint(row.txid, row.vout) for row in rows.all()}
    return [
        coin for coin in await unspent(tx) if tip - coin.height + 1 >= depth and coin.outpoint not in reserved
    ]


async def among(tx: Transaction, outpoints: Iterable[OutPoint]) -> dict[OutPoint, Sat]:
    """Those of these outpoints that are, or were, coins of the wallet."""
    wanted = set(outpoints)
    found: dict[OutPoint, Sat] = {}
    for some in portions(outpoint.txid for outpoint in wanted):
        coins = ever().subquery()
        rows = await tx.execute(select(coins).where(coins.c.txid.in_(some)))
        for row in rows.all():
            outpoint = OutPoint(row.txid, row.vout)
            if outpoint in wanted:
                found[outpoint] = Sat(row.amount_sat)
    return found


async def spenders_of(tx: Transaction, outpoints: Iterable[OutPoint]) -> dict[str, set[OutPoint]]:
    """Followed transaction -> which of these outpoints it spends, wherever it is now."""
    wanted = set(outpoints)
    found: dict[str, set[OutPoint]] = {}
    for some in portions(outpoint.txid for outpoint in wanted):
        rows = await tx.execute(select(paying_inputs).where(paying_inputs.c.previous_txid.in_(some)))
        for row in rows.all():
            outpoint = OutPoint(row.previous_txid, row.previous_vout)
            if outpoint in wanted:
                found.setdefault(row.txid, set()).add(outpoint)
    return found


def sold_among_inputs(txids: Select[tuple[str]]) -> Select[tuple[str]]:
    """Those of these followed transactions that spend what a hosted sale was paid."""
    return (
        select(paying_inputs.c.txid)
        .join(
            received_outputs,
            and_(
                received_outputs.c.txid == paying_inputs.c.previous_txid,
                received_outputs.c.vout == paying_inputs.c.previous_vout,
            ),
        )
        .join(invoices, invoices.c.id == received_outputs.c.invoice_id)
        .where(invoices.c.mode == Mode.HOSTED, paying_inputs.c.txid.in_(txids))
    )


def own_among_inputs(txids: Select[tuple[str]]) -> Select[tuple[str]]:
    """Those that spend change, a deposit, or other money of the wallet without an invoice."""
    return (
        select(paying_inputs.c.txid)
        .join(
            unassigned_outputs,
            and_(
                unassigned_outputs.c.txid == paying_inputs.c.previous_txid,
                unassigned_outputs.c.vout == paying_inputs.c.previous_vout,
            ),
        )
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .join(descriptors, descriptors.c.id == unassigned_addresses.c.descriptor_id)
        .where(descriptors.c.hosted, paying_inputs.c.txid.in_(txids))
    )


def deposits_among_inputs(txids: Select[tuple[str]]) -> Select[tuple[str]]:
    """Those that spend the deposit of a channel, which is no coin of the wallet."""
    return (
        select(paying_inputs.c.txid)
        .join(channels, chain_facts.spends_deposit())
        .where(paying_inputs.c.txid.in_(txids))
    )


async def change_among(tx: Transaction, txid: str) -> Sat:
    """What this transaction pays back to addresses of the wallet that are not booked when they receive.

    What a close pays to an address of closes is booked, to the channel.
    """
    closes = exists().where(paying_inputs.c.txid == txid, chain_facts.spends_deposit())
    purpose = unassigned_addresses.c.purpose
    rows = await tx.scalars(
        select(unassigned_outputs.c.amount_sat)
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .where(
            unassigned_outputs.c.txid == txid,
            or_(purpose == Purpose.CHANGE, and_(purpose == Purpose.CHANNEL, ~closes)),
        )
    )
    return Sat(sum(rows.all()))
