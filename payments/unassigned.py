"""Money to addresses that have no invoice.

A backup does not know the addresses that were handed out after it. Those that may have been are kept in
`unassigned_addresses` and watched for ever; what is paid to one is in the seller's wallet, is booked
`unassigned`, and tells how far the descriptor was used. `payments.address_search` finds them.

Others are the operator's own, of the hosted wallet: the change of payouts, which was booked when it came in,
deposits, which are the operator's, and what closes of payment channels pay, which the channels book.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from payments import books, chain_facts, ledger
from payments.addresses import DerivedAddress
from payments.chain_facts import PaidOutput
from payments.outputs import ReceivedOutput
from payments.ports import Transaction
from payments.records import IssuedAddress
from payments.tables import (
    descriptors,
    invoices,
    paying_transactions,
    payout_batches,
    unassigned_addresses,
    unassigned_outputs,
)

INDEX_MARGIN = 100
"""Addresses skipped after the last used one: they may have been handed out, and paid later or never."""
ADDRESSES_PER_QUERY = 1_000
DEPOSIT_PREFIX = "deposit:"
"""Before the id of the descriptor: under which the transfers of its deposits stand."""
GIFT_PREFIX = "gift:"
"""The same of what others paid to its change addresses."""


class Purpose(StrEnum):
    """Of an address that the operator took for themselves."""

    CHANGE = "change"
    DEPOSIT = "deposit"
    CHANNEL = "channel"
    """What closes of payment channels pay: `payments.channel_books` books it."""


@dataclass(frozen=True, slots=True)
class UnassignedOutput:
    """One output that pays an address without an invoice, as our node sees it now."""

    descriptor_id: str
    address_index: int
    address: str
    output: ReceivedOutput
    purpose: Purpose | None
    """None: an invoice that was lost may have had it."""


async def add_own_address(tx: Transaction, issued: IssuedAddress, purpose: Purpose) -> None:
    """Keep an address that `DescriptorStore.issue` gave for change or for a deposit. Watch it from now on."""
    values = {
        "descriptor_id": issued.descriptor_id,
        "address_index": issued.index,
        "address": issued.address,
        "purpose": purpose,
    }
    of_script = unassigned_addresses.c.script_pubkey == issued.script_pubkey
    # After a restore it is watched already, as one that the lost server may have handed out.
    known = await tx.execute(update(unassigned_addresses).where(of_script).values(**values))
    if not known.rowcount:
        await tx.execute(insert(unassigned_addresses).values(script_pubkey=issued.script_pubkey, **values))


async def unused_change_address(tx: Transaction, descriptor_id: str) -> IssuedAddress | None:
    """One that was kept for the change of a batch, and no batch has: its making was given up."""
    used = select(payout_batches.c.change_script_pubkey).where(
        payout_batches.c.change_script_pubkey.is_not(None)
    )
    paid = select(unassigned_outputs.c.script_pubkey)
    script = unassigned_addresses.c.script_pubkey
    row = (
        await tx.execute(
            select(unassigned_addresses)
            .where(
                unassigned_addresses.c.descriptor_id == descriptor_id,
                unassigned_addresses.c.purpose == Purpose.CHANGE,
                script.not_in(used),
                script.not_in(paid),
            )
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        return None
    return IssuedAddress(row.descriptor_id, row.address_index, row.address, row.script_pubkey)


async def own_scripts(tx: Transaction) -> set[bytes]:
    """Those of change and deposits: another process may have taken them."""
    own = unassigned_addresses.c.purpose.is_not(None)
    return set((await tx.scalars(select(unassigned_addresses.c.script_pubkey).where(own))).all())


async def add_addresses(tx: Transaction, descriptor_id: str, addresses: Sequence[DerivedAddress]) -> set[str]:
    """Watch these addresses of a descriptor for ever. Those of another one of the same wallet stay its.

    The ids of all descriptors that have them then.
    """
    owners = {descriptor_id}
    for start in range(0, len(addresses), ADDRESSES_PER_QUERY):
        some = addresses[start : start + ADDRESSES_PER_QUERY]
        scripts = [address.script_pubkey for address in some]
        of_these = unassigned_addresses.c.script_pubkey.in_(scripts)
        known_rows = select(unassigned_addresses.c.script_pubkey, unassigned_addresses.c.descriptor_id)
        rows_found = (await tx.execute(known_rows.where(of_these))).all()
        known = {row.script_pubkey: row.descriptor_id for row in rows_found}
        owners |= set(known.values())
        rows = [
            {
                "script_pubkey": address.script_pubkey,
                "descriptor_id": descriptor_id,
                "address_index": address.index,
                "address": address.address,
            }
            for address in some
            if address.script_pubkey not in known
        ]
        if rows:
            await tx.execute(insert(unassigned_addresses), rows)
    return owners


async def scripts_of(tx: Transaction, descriptor_ids: Iterable[str]) -> set[bytes]:
    of_these = unassigned_addresses.c.descriptor_id.in_(list(descriptor_ids))
    return set((await tx.scalars(select(unassigned_addresses.c.script_pubkey).where(of_these))).all())


async def watched_scripts(tx: Transaction) -> set[bytes]:
    """All of them."""
    return set((await tx.scalars(select(unassigned_addresses.c.script_pubkey))).all())


async def invoice_of(tx: Transaction, output: PaidOutput) -> str | None:
    """The invoice that this output pays: one may have taken the address since the output was looked at."""
    if output.invoice_id is not None:
        return output.invoice_id
    return await tx.scalar(select(invoices.c.id).where(invoices.c.script_pubkey == output.script_pubkey))


async def record(tx: Transaction, txid: str, output: PaidOutput, *, first_seen_at: int) -> None:
    """Keep an output that no invoice is paid by; the next address lies beyond this one.

    One to a script that nobody has any more, as a contract without a deposit that was dropped, is let go.
    """
    place = (
        await tx.execute(
            select(unassigned_addresses).where(unassigned_addresses.c.script_pubkey == output.script_pubkey)
        )
    ).one_or_none()
    if place is None:
        return
    await tx.execute(
        insert(unassigned_outputs).values(
            txid=txid,
            vout=output.vout,
            script_pubkey=output.script_pubkey,
            amount_sat=output.amount_sat,
            first_seen_at=first_seen_at,
        )
    )
    if place.purpose is None:
        await raise_next_index(tx, place.descriptor_id, place.address_index + 1 + INDEX_MARGIN)


async def raise_next_index(tx: Transaction, descriptor_id: str, next_index: int) -> None:
    """An index never goes back."""
    await tx.execute(
        update(descriptors)
        .where(descriptors.c.id == descriptor_id, descriptors.c.next_index < next_index)
        .values(next_index=next_index)
    )


async def highest_watched(tx: Transaction, descriptor_ids: Iterable[str]) -> int | None:
    """The highest index that is watched without an invoice."""
    highest: int | None = await tx.scalar(
        select(func.max(unassigned_addresses.c.address_index)).where(
            unassigned_addresses.c.descriptor_id.in_(list(descriptor_ids))
        )
    )
    return highest


async def highest_used(tx: Transaction, *descriptor_ids: str) -> int | None:
    """The highest index without an invoice that was ever paid."""
    highest: int | None = await tx.scalar(
        select(func.max(unassigned_addresses.c.address_index))
        .join(unassigned_outputs, unassigned_outputs.c.script_pubkey == unassigned_addresses.c.script_pubkey)
        .where(unassigned_addresses.c.descriptor_id.in_(descriptor_ids))
    )
    return highest


async def count_skipped(tx: Transaction, descriptor_id: str, *, above: int, below: int) -> int:
    """How many addresses between these indexes have no invoice."""
    counted = select(func.count()).where(
        unassigned_addresses.c.descriptor_id == descriptor_id,
        unassigned_addresses.c.address_index > above,
        unassigned_addresses.c.address_index < below,
        ~exists().where(invoices.c.script_pubkey == unassigned_addresses.c.script_pubkey),
    )
    return int(await tx.scalar(counted) or 0)


async def listed(tx: Transaction, descriptor_ids: Iterable[str] | None = None) -> list[UnassignedOutput]:
    """What was paid without an invoice and is nobody's yet, to any or to these descriptors; by descriptor, in
    order of index."""
    return [one for one in await _paid(tx, descriptor_ids) if one.purpose is None]


async def given(
    tx: Transaction, *, but_by: CompoundSelect[tuple[str]], closes: Select[tuple[str]]
) -> list[UnassignedOutput]:
    """What came to addresses of change and of closes, other than by these transactions.

    `closes` are those that pay the latter: what they pay to the former is given.
    """
    purpose, txid = unassigned_addresses.c.purpose, unassigned_outputs.c.txid
    to_channels = and_(purpose == Purpose.CHANNEL, txid.not_in(closes))
    condition = and_(or_(purpose == Purpose.CHANGE, to_channels), txid.not_in(but_by))
    return await _paid(tx, condition=condition)


async def _paid(
    tx: Transaction,
    descriptor_ids: Iterable[str] | None = None,
    *,
    condition: ColumnElement[bool] | None = None,
) -> list[UnassignedOutput]:
    chosen = (
        select(unassigned_outputs, unassigned_addresses, paying_transactions)
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .join(paying_transactions, paying_transactions.c.txid == unassigned_outputs.c.txid)
        .order_by(
            unassigned_addresses.c.descriptor_id,
            unassigned_addresses.c.address_index,
            unassigned_outputs.c.first_seen_at,
            unassigned_outputs.c.txid,
            unassigned_outputs.c.vout,
        )
    )
    if descriptor_ids is not None:
        chosen = chosen.where(unassigned_addresses.c.descriptor_id.in_(list(descriptor_ids)))
    if condition is not None:
        chosen = chosen.where(condition)
    return [
        UnassignedOutput(
            descriptor_id=row.descriptor_id,
            address_index=row.address_index,
            address=row.address,
            output=chain_facts.received_output(row),
            purpose=None if row.purpose is None else Purpose(row.purpose),
        )
        for row in (await tx.execute(chosen)).all()
    ]


async def book(tx: Transaction, *, now: int) -> bool:
    """Bring the books of all money without an invoice in line with the chain; whether anything was booked."""
    by_reference: dict[str, list[ReceivedOutput]] = {}
    for one in await _paid(tx):
        outputs = by_reference.setdefault(_reference(one), [])
        if one.purpose in (None, Purpose.DEPOSIT):
            outputs.append(one.output)
    if not by_reference:
        return False
    chain = await chain_facts.view(tx, now)
    booked = False
    for reference, outputs in sorted(by_reference.items()):
        account = ledger.operator() if reference.startswith(DEPOSIT_PREFIX) else reference
        desired = ledger.desired_uninvoiced(account, outputs, chain)
        standing = (await books.booked(tx, [reference]))[reference]
        booked |= await books.append_missing(tx, desired, standing, reference=reference, now=now)
    return booked


def _reference(one: UnassignedOutput) -> str:
    """Under which its transfers stand. Change, and what closes pay, has none, but may have been taken for an
    invoice's at first."""
    if one.purpose is Purpose.DEPOSIT:
        return f"{DEPOSIT_PREFIX}{one.descriptor_id}"
    return ledger.unassigned(one.descriptor_id)
