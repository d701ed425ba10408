"""Whose an output is that the node finds in the operator's wallet, and our coins have not."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, union_all

from payments.bitcoind_coins import UnspentOutput
from payments.invoice import Mode
from payments.outputs import COINBASE_MATURITY, OutPoint
from payments.portions import portions
from payments.ports import Transaction
from payments.reconcile_facts import NodeOnly, Owner
from payments.tables import (
    blocks,
    descriptors,
    invoices,
    payout_batches,
    received_outputs,
    unassigned_addresses,
    unassigned_outputs,
)


@dataclass(frozen=True, slots=True)
class _Address:
    """One that our records know."""

    hosted: bool
    index: int | None
    invoice_id: str | None
    given_at: int | None
    """When it was handed out; None: nobody knows."""


async def whose(tx: Transaction, outputs: Sequence[UnspentOutput], *, height: int) -> tuple[NodeOnly, ...]:
    """In order; `height` is that of the block at which the node has them."""
    if not outputs:
        return ()
    addresses = await _addresses(tx, {output.script_pubkey for output in outputs})
    recorded = await _recorded(tx, {output.outpoint.txid for output in outputs})
    next_index = await tx.scalar(select(func.max(descriptors.c.next_index)).where(descriptors.c.hosted))
    found = []
    for output in outputs:
        address = addresses.get(output.script_pubkey)
        owner = await _owner(tx, output, address, height=height, recorded=output.outpoint in recorded)
        found.append(
            NodeOnly(
                outpoint=output.outpoint,
                amount_sat=output.amount_sat,
                height=output.height,
                owner=owner,
                address_index=output.address_index if address is None else address.index,
                next_index=next_index or 0,
                invoice_id=None if address is None else address.invoice_id,
            )
        )
    return tuple(found)


async def _owner(
    tx: Transaction, output: UnspentOutput, address: _Address | None, *, height: int, recorded: bool
) -> Owner:
    if address is None:
        return Owner.UNKNOWN
    if not address.hosted:
        return Owner.DIRECT
    if recorded and output.coinbase and height - output.height + 1 < COINBASE_MATURITY:
        return Owner.YOUNG
    if recorded:
        return Owner.MISSED
    if address.given_at is None:
        return Owner.UNKNOWN
    before = select(func.max(blocks.c.height)).where(
        blocks.c.active, blocks.c.connected_at <= address.given_at
    )
    return Owner.OLDER if output.height <= (await tx.scalar(before) or 0) else Owner.MISSED


async def _addresses(tx: Transaction, scripts: set[bytes]) -> dict[bytes, _Address]:
    """An invoice has an address for itself, whatever it was before."""
    found: dict[bytes, _Address] = {}
    own = (
        select(unassigned_addresses, descriptors.c.hosted, payout_batches.c.created_at.label("given_at"))
        .join(descriptors, descriptors.c.id == unassigned_addresses.c.descriptor_id)
        .outerjoin(
            payout_batches,
            payout_batches.c.change_script_pubkey == unassigned_addresses.c.script_pubkey,
        )
    )
    for some in portions(scripts):
        for row in (await tx.execute(own.where(unassigned_addresses.c.script_pubkey.in_(some)))).all():
            found[row.script_pubkey] = _Address(row.hosted, row.address_index, None, row.given_at)
        for row in (await tx.execute(select(invoices).where(invoices.c.script_pubkey.in_(some)))).all():
            hosted = row.mode == Mode.HOSTED
            found[row.script_pubkey] = _Address(hosted, row.address_index, row.id, row.created_at)
    return found


async def _recorded(tx: Transaction, txids: set[str]) -> set[OutPoint]:
    found: set[OutPoint] = set()
    for some in portions(txids):
        sold = select(received_outputs.c.txid, received_outputs.c.vout)
        own = select(unassigned_outputs.c.txid, unassigned_outputs.c.vout)
        rows = await tx.execute(
            union_all(
                sold.where(received_outputs.c.txid.in_(some)), own.where(unassigned_outputs.c.txid.in_(some))
            )
        )
        found |= {OutPoint(row.txid, row.vout) for row in rows.all()}
    return found
