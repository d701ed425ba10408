"""Money that a restored server knows no invoice for, as its operator sees it, and what they decide."""

from dataclasses import dataclass

from sqlalchemy import or_, select

from bitcache.db.tables import accounts
from payments import chain_facts, restores, unassigned
from payments.money import Sat
from payments.outputs import confirmations
from payments.ports import Transaction
from payments.unassigned import UnassignedOutput


@dataclass(frozen=True, slots=True)
class UnassignedPayment:
    outpoint: str
    amount_sat: Sat
    address: str
    address_index: int
    sellers: tuple[str, ...]
    """Names of the accounts that are paid into this wallet now."""
    first_seen_at: int
    presence: str
    confirmations: int


@dataclass(frozen=True, slots=True)
class UnassignedMoney:
    payments: tuple[UnassignedPayment, ...]
    confirmed_sat: Sat
    searching: tuple[tuple[str, ...], ...]
    """The sellers of each wallet whose used addresses are still searched for: they get no new invoices."""


async def listed(tx: Transaction) -> UnassignedMoney:
    sellers = await _sellers(tx)
    tip = await chain_facts.tip(tx)
    found = [
        _payment(one, sellers.get(one.descriptor_id, ()), tip.height if tip else 0)
        for one in await unassigned.listed(tx)
    ]
    return UnassignedMoney(
        payments=tuple(found),
        confirmed_sat=Sat(sum(payment.amount_sat for payment in found if payment.confirmations)),
        searching=tuple(sellers.get(search.descriptor_id, ()) for search in await restores.searches(tx)),
    )


def _payment(one: UnassignedOutput, sellers: tuple[str, ...], tip_height: int) -> UnassignedPayment:
    return UnassignedPayment(
        outpoint=str(one.output.outpoint),
        amount_sat=one.output.amount_sat,
        address=one.address,
        address_index=one.address_index,
        sellers=sellers,
        first_seen_at=one.output.first_seen_at,
        presence=one.output.presence.value,
        confirmations=confirmations(one.output, tip_height),
    )


async def _sellers(tx: Transaction) -> dict[str, tuple[str, ...]]:
    """Names of the accounts with each descriptor, in force or about to be."""
    named: dict[str, tuple[str, ...]] = {}
    with_one = or_(accounts.c.descriptor_id.is_not(None), accounts.c.pending_descriptor_id.is_not(None))
    for row in (await tx.execute(select(accounts).where(with_one).order_by(accounts.c.name))).all():
        for descriptor_id in {row.descriptor_id, row.pending_descriptor_id} - {None}:
            named[descriptor_id] = (*named.get(descriptor_id, ()), row.name)
    return named


async def decide_start_index(tx: Transaction, seller: str, start_index: int) -> int:
    """End the search for the used addresses of this seller's wallets; how many there are.

    Raises StartIndexUsed, StartIndexTooHigh.
    """
    ids = [descriptor_id for descriptor_id, names in (await _sellers(tx)).items() if seller in names]
    return await restores.decide(tx, ids, start_index=start_index)
