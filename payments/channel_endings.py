"""What became of the deposits of channels in the chain: closed, refunded, or never there. Reads only.

A close that we made has its rows. After a restore one may be mined that we know nothing of any more: what its
witness and outputs say is enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bitcoin.core import CTransaction, b2lx
from sqlalchemy import exists, func, select, update

from payments import chain_facts, channel_store
from payments.channel_books import Ended
from payments.channel_close import shared_out
from payments.channel_record import ChannelRecord
from payments.channel_script import SIGHASH_SINGLE_ANYONECANPAY
from payments.money import NOTHING_SAT, Sat
from payments.outputs import OutPoint, Presence, block_depth
from payments.ports import Transaction
from payments.tables import (
    channel_close_members,
    channel_closes,
    channels,
    descriptors,
    paying_inputs,
    paying_transactions,
    unassigned_addresses,
    unassigned_outputs,
)
from payments.unassigned import Purpose


class Kind(StrEnum):
    CLOSE = "close"
    """By the payee's key: ours."""
    REFUND = "refund"
    """By the payer's alone."""
    DOUBLE_SPEND = "double_spend"
    """Of the funding, or of what it spends."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What ended a channel, in a block of the active chain."""

    kind: Kind
    txid: str | None
    """None: what double-spent the funding, of which we know the block only."""
    height: int
    """Of that block; of a funding that never came, the expiry."""
    received_sat: Sat = NOTHING_SAT
    settled_sat: Sat = NOTHING_SAT

    def ended(self, tip_height: int, *, depth: int) -> Ended:
        deep = block_depth(self.height, tip_height) >= depth
        return Ended(self.txid, self.received_sat, self.settled_sat, deep)


@dataclass(frozen=True, slots=True)
class Spend:
    """How one transaction spends one deposit, by its bytes."""

    by_payee: bool
    change_sat: Sat
    """The payer's, of a close."""


def spends_in(raw: bytes) -> dict[OutPoint, Spend]:
    """Every input of a transaction, read as if it spent a deposit. Pure.

    Nothing where the bytes cannot be read: whoever spends a deposit may choose odd ones.
    """
    try:
        transaction = CTransaction.deserialize(raw)
    except Exception:  # the library raises what its parts raise
        return {}
    found: dict[OutPoint, Spend] = {}
    witnesses = transaction.wit.vtxinwit
    for n, (one, witness) in enumerate(zip(transaction.vin, witnesses, strict=False)):
        stack = list(witness.scriptWitness.stack)
        # <payee's signature or nothing> <payer's signature> <witness script>
        by_payee = len(stack) == 3 and bool(stack[0])
        paired = by_payee and stack[1][-1:] == bytes([SIGHASH_SINGLE_ANYONECANPAY])
        change = transaction.vout[n].nValue if paired and n < len(transaction.vout) else 0
        found[OutPoint(b2lx(one.prevout.hash), one.prevout.n)] = Spend(by_payee, Sat(change))
    return found


async def endings_of(tx: Transaction, records: Sequence[ChannelRecord]) -> dict[str, Ending]:
    """Of those of these channels that a block has ended, by id.

    A deposit that no block has at its expiry was lost, or as good as that: where a parent of it was
    double-spent, no block will ever spend what it spends. Should a block take it yet, all is as it was.
    """
    tip_height = await chain_facts.tip_height(tx)
    spends = await channel_store.spends_of(tx, [record.id for record in records])
    found: dict[str, Ending] = {}
    for txid, height in sorted(set(spends.values())):
        found |= await _of_spend(tx, txid, height)
    for record in records:
        if record.funding is Presence.GONE and record.funding_lost_height is not None:
            found[record.id] = Ending(Kind.DOUBLE_SPEND, None, record.funding_lost_height)
        elif record.funding is not Presence.BLOCK and record.channel.contract.expiry_height <= tip_height:
            found[record.id] = Ending(Kind.DOUBLE_SPEND, None, record.channel.contract.expiry_height)
    wanted = {record.id for record in records}
    return {channel_id: ending for channel_id, ending in found.items() if channel_id in wanted}


async def mark_addresses(tx: Transaction) -> None:
    """Whoever has the payee's key chose where a close pays.

    After a restore a close that was forgotten pays an address that is watched as one that an invoice may have
    had: it is nobody's payment, and `payments.channel_books` books it.
    """
    hosted = select(descriptors.c.id).where(descriptors.c.hosted)
    closes = (
        select(unassigned_outputs.c.script_pubkey)
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .where(
            unassigned_addresses.c.purpose.is_(None),
            exists().where(paying_inputs.c.txid == unassigned_outputs.c.txid, chain_facts.spends_deposit()),
        )
    )
    await tx.execute(
        update(unassigned_addresses)
        .where(
            unassigned_addresses.c.purpose.is_(None),
            unassigned_addresses.c.descriptor_id.in_(hosted),
            unassigned_addresses.c.script_pubkey.in_(closes),
        )
        .values(purpose=Purpose.CHANNEL)
    )


async def _of_spend(tx: Transaction, txid: str, height: int) -> dict[str, Ending]:
    """Of every channel whose deposit this transaction spends."""
    raw = await tx.scalar(select(paying_transactions.c.raw).where(paying_transactions.c.txid == txid))
    spends = spends_in(raw or b"")
    records = await channel_store.load_all(tx, await _channels_of(tx, txid))
    own = await _own_close(tx, txid)
    received_sat = await _received_sat(tx, txid, records, own, spends)
    endings: dict[str, Ending] = {}
    for record in records:
        spend = spends.get(record.channel.outpoint, Spend(by_payee=False, change_sat=NOTHING_SAT))
        if record.id in own:
            settled_sat = own[record.id].settled_sat
        elif spend.by_payee:
            # With the lower fee of a cooperative close the payer signed for more: that fee is forgotten.
            settled_sat = Sat(max(0, record.channel.paid_sat_max - spend.change_sat))
        else:
            settled_sat = NOTHING_SAT
        kind = Kind.CLOSE if spend.by_payee else Kind.REFUND
        endings[record.id] = Ending(kind, txid, height, received_sat[record.id], settled_sat)
    return endings


async def _channels_of(tx: Transaction, txid: str) -> list[str]:
    """Those whose deposit this transaction spends."""
    spending = (
        select(channels.c.id)
        .join(paying_inputs, chain_facts.spends_deposit())
        .where(paying_inputs.c.txid == txid)
    )
    return list((await tx.scalars(spending)).all())


@dataclass(frozen=True, slots=True)
class _Member:
    """A channel in a close of ours."""

    received_sat: Sat
    settled_sat: Sat


async def _own_close(tx: Transaction, txid: str) -> dict[str, _Member]:
    """The channels in the close that this transaction is; none: it is not one that we know."""
    rows = await tx.execute(
        select(channel_close_members, channels.c.agreed_paid_sat)
        .join(
            channel_closes,
            (channel_closes.c.close_id == channel_close_members.c.close_id)
            & (channel_closes.c.n == channel_close_members.c.n),
        )
        .join(channels, channels.c.id == channel_close_members.c.channel_id)
        .where(channel_closes.c.txid == txid)
    )
    members: dict[str, _Member] = {}
    for row in rows.all():
        agreed = row.agreed and row.agreed_paid_sat is not None
        settled_sat = row.agreed_paid_sat if agreed else row.paid_sat
        members[row.channel_id] = _Member(Sat(row.received_sat), Sat(settled_sat))
    return members


async def _received_sat(
    tx: Transaction,
    txid: str,
    records: Sequence[ChannelRecord],
    own: Mapping[str, _Member],
    spends: Mapping[OutPoint, Spend],
) -> dict[str, Sat]:
    """By channel, what this transaction pays to the wallet's addresses for closes: together all of it.

    It may be another amount than we made the close for: a payer may have their change sent to an address of
    ours, and a refund too.
    """
    arrived = (
        select(func.sum(unassigned_outputs.c.amount_sat))
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .where(unassigned_outputs.c.txid == txid, unassigned_addresses.c.purpose == Purpose.CHANNEL)
    )
    arrived_sat = Sat(int(await tx.scalar(arrived) or 0))
    if records and sum(member.received_sat for member in own.values()) == arrived_sat:
        return {
            record.id: own[record.id].received_sat if record.id in own else NOTHING_SAT for record in records
        }
    change_sat = {one.id: spends[one.channel.outpoint].change_sat for one in records} if spends else {}
    brings = [Sat(one.channel.capacity_sat - change_sat.get(one.id, 0)) for one in records]
    shares = shared_out(arrived_sat, brings)
    return {record.id: share for record, share in zip(records, shares, strict=True)}
