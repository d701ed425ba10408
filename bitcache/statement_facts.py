"""What the lines of a statement are about: which sale, which files, which transaction.

The ledger names the outputs that paid a sale, but not the transaction of a payout: that is the version of its
batch by which so much arrived.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Row, select

from bitcache.db.tables import grants, offers
from payments.ledger import Code, Transfer
from payments.money import msat_from_sat
from payments.outputs import Presence
from payments.portions import portions
from payments.ports import Transaction
from payments.sendings import sendings_of
from payments.tables import invoices, payouts

ARRIVING = (Code.PAID_OUT, Code.PAID_OUT_REVERSED)

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    invoice_id: str | None = None
    """Of a sale, or of the sale that is refunded."""
    invoice_reference: str | None = None
    offer_id: str | None = None
    parcel_id: str | None = None
    payout_id: str | None = None
    """Of a payout or refund."""
    transactions: tuple[str, ...] = ()
    """The outputs that paid a sale, or the channel, `<txid>:<vout>`; the transaction of all else."""


def metered_sale(reference: str) -> tuple[str, str] | None:
    """(channel `<txid>:<vout>`, offer) of what was sold per chunk; None for any other reference. Pure."""
    channel_id, _, offer_id = reference.rpartition(":")
    return (channel_id, offer_id) if ":" in channel_id else None


async def facts_of(tx: Transaction, groups: Mapping[Key, Sequence[Transfer]]) -> dict[Key, Facts]:
    """Of each line, whose transfers all have the same reference."""
    references = {of_line[0].reference for of_line in groups.values()}
    paid = await _payouts(tx, references)
    sold = await _invoices(tx, references | {row.invoice_id for row in paid.values() if row.invoice_id})
    sent = await _sent(tx, paid)
    metered = {reference: sale for reference in references if (sale := metered_sale(reference))}
    parcels = await parcels_of(tx, {offer_id for _, offer_id in metered.values()})

    def facts(of_line: Sequence[Transfer]) -> Facts:
        sale = metered.get(of_line[0].reference)
        if sale is None:
            return _facts(of_line, sold, paid, sent)
        channel_id, offer_id = sale
        return Facts(offer_id=offer_id, parcel_id=parcels.get(offer_id), transactions=(channel_id,))

    return {key: facts(of_line) for key, of_line in groups.items()}


def _facts(
    of_line: Sequence[Transfer],
    sold: Mapping[str, Row[tuple[object, ...]]],
    paid: Mapping[str, Row[tuple[object, ...]]],
    sent: Mapping[tuple[str, int], str],
) -> Facts:
    reference = of_line[0].reference
    payout = paid.get(reference)
    sale = sold.get(reference if payout is None else payout.invoice_id or "")
    if payout is not None:
        arrived = (one.amount_msat for one in of_line if one.code in ARRIVING)
        txids = (sent.get((reference, amount)) for amount in arrived)
        transactions = tuple(txid for txid in txids if txid is not None)
    elif sale is not None:
        transactions = tuple(sorted({one.id.partition("/")[0] for one in of_line}))
    else:
        transactions = (reference,)
    return Facts(
        invoice_id=sale.id if sale else None,
        invoice_reference=sale.reference if sale else None,
        offer_id=sale.subject if sale else None,
        parcel_id=sale.parcel_id if sale else None,
        payout_id=reference if payout is not None else None,
        transactions=transactions,
    )


async def _payouts(tx: Transaction, ids: Iterable[str]) -> dict[str, Row[tuple[object, ...]]]:
    found: dict[str, Row[tuple[object, ...]]] = {}
    for some in portions(ids):
        chosen = select(payouts.c.id, payouts.c.invoice_id).where(payouts.c.id.in_(some))
        found |= {row.id: row for row in (await tx.execute(chosen)).all()}
    return found


async def _invoices(tx: Transaction, ids: Iterable[str]) -> dict[str, Row[tuple[object, ...]]]:
    found: dict[str, Row[tuple[object, ...]]] = {}
    for some in portions(ids):
        chosen = (
            select(invoices.c.id, invoices.c.reference, invoices.c.subject, grants.c.parcel_id)
            .outerjoin(grants, grants.c.invoice_id == invoices.c.id)
            .where(invoices.c.id.in_(some))
        )
        found |= {row.id: row for row in (await tx.execute(chosen)).all()}
    return found


async def parcels_of(tx: Transaction, offer_ids: Iterable[str]) -> dict[str, str]:
    """Offer -> its parcel."""
    found: dict[str, str] = {}
    for some in portions(offer_ids):
        chosen = select(offers.c.id, offers.c.parcel_id).where(offers.c.id.in_(some))
        found |= {row.id: row.parcel_id for row in (await tx.execute(chosen)).all()}
    return found


async def _sent(tx: Transaction, payout_ids: Iterable[str]) -> dict[tuple[str, int], str]:
    """(payout, msat that arrive) -> the transaction by which so much arrives; of several, one in a block."""
    found: dict[tuple[str, int], str] = {}
    for payout_id, sendings in (await sendings_of(tx, payout_ids)).items():
        # The last one of an amount counts.
        for one in sorted(sendings, key=lambda one: one.presence is Presence.BLOCK):
            if one.txid is not None:
                found[payout_id, msat_from_sat(one.arrives_sat)] = one.txid
    return found
