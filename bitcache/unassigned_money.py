"""Money that a restored server knows no invoice for, as its operator sees it, and what they decide."""

from dataclasses import dataclass

from sqlalchemy import or_, select

from bitcache.db.tables import accounts
from payments import chain_facts, payable, restores, unassigned
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
    hosted: bool
    """Whether it is, or was, the operator's wallet for hosted sales."""
    first_seen_at: int
    presence: str
    confirmations: int


@dataclass(frozen=True, slots=True)
class UnassignedMoney:
    payments: tuple[UnassignedPayment, ...]
    confirmed_sat: Sat
    searching: tuple[tuple[str, ...], ...]
    """The sellers of each wallet whose used addresses are still searched for: they get no new invoices."""
    hosted_searching: bool
    """Whether one of these is the operator's: nobody gets new invoices of hosted sales, nor payouts."""


async def listed(tx: Transaction) -> UnassignedMoney:
    sellers, hosted = await _sellers(tx), set(await payable.hosted_descriptors(tx))
    tip_height = await chain_facts.tip_height(tx)
    found = [
        _payment(
            one,
            sellers.get(one.descriptor_id, ()),
            hosted=one.descriptor_id in hosted,
            tip_height=tip_height,
        )
        for one in await unassigned.listed(tx)
    ]
    searches = await restores.searches(tx)
    return UnassignedMoney(
        payments=tuple(found),
        confirmed_sat=Sat(sum(payment.amount_sat for payment in found if payment.confirmations)),
        searching=tuple(sellers.get(search.descriptor_id, ()) for search in searches),
        hosted_searching=any(search.descriptor_id in hosted for search in searches),
    )


def _payment(
    one: UnassignedOutput, sellers: tuple[str, ...], *, hosted: bool, tip_height: int
) -> UnassignedPayment:
    return UnassignedPayment(
        outpoint=str(one.output.outpoint),
        amount_sat=one.output.amount_sat,
        address=one.address,
        address_index=one.address_index,
        sellers=sellers,
        hosted=hosted,
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


async def decide_hosted_start_index(tx: Transaction, start_index: int) -> int:
    """As `decide_start_index`, for the operator's wallets."""
    ids = await payable.hosted_descriptors(tx)
    return await restores.decide(tx, ids, start_index=start_index)
