"""What of a balance may be paid out now: money that lies deep enough, less what is set aside already."""

from collections import Counter

from sqlalchemy import func, literal, or_, select, union_all

from payments import books, chain_facts, ledger
from payments.books import transfer_of
from payments.errors import PayoutsStopped
from payments.ledger import Code
from payments.money import Msat, Sat, sat_rounded_down
from payments.payout import State
from payments.ports import Transaction
from payments.tables import (
    balances,
    descriptors,
    invoices,
    paying_transactions,
    payouts,
    received_outputs,
    restores,
    transfers,
    unassigned_addresses,
    unassigned_outputs,
)
from payments.unassigned import DEPOSIT_PREFIX, GIFT_PREFIX


async def payable_sat(tx: Transaction, account: str, *, depth: int) -> Sat:
    """Of this account of the ledger, in outputs at least so deep; negative when the chain took money back."""
    balance = await books.balance(tx, account)
    return sat_rounded_down(Msat(balance - max(0, await maturing_msat(tx, account, depth=depth))))


async def maturing_msat(tx: Transaction, account: str, *, depth: int) -> Msat:
    """What the account got from outputs that are not so deep yet, and from sales that one of these completes.

    A sale that was paid in parts falls with the youngest. Were the others payable before, a reorg of one
    block would leave its seller paid, and all of it owed to the buyer.
    """
    height_max = await chain_facts.tip_height(tx) - depth + 1
    young = select(paying_transactions.c.txid).where(paying_transactions.c.height > height_max)
    sold = select(received_outputs.c.txid, received_outputs.c.vout, received_outputs.c.invoice_id).where(
        received_outputs.c.txid.in_(young)
    )
    own = (
        select(unassigned_outputs.c.txid, unassigned_outputs.c.vout, unassigned_addresses.c.descriptor_id)
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .where(unassigned_outputs.c.txid.in_(young))
    )
    sold_rows = (await tx.execute(sold)).all()
    own_rows = (await tx.execute(own)).all()
    outpoints = {f"{row.txid}:{row.vout}" for row in (*sold_rows, *own_rows)}
    references = {row.invoice_id for row in sold_rows}
    references |= {
        f"{prefix}{row.descriptor_id}" for row in own_rows for prefix in (DEPOSIT_PREFIX, GIFT_PREFIX)
    }
    concerns = [transfers.c.debit == account, transfers.c.credit == account]
    if account == ledger.operator():
        # The fee of a sale is taken of the first part of its price, not of the one that completes it.
        concerns.append(transfers.c.code.in_((Code.SETTLED, Code.SETTLED_REVERSED)))
    rows = await tx.execute(select(transfers).where(or_(*concerns), transfers.c.reference.in_(references)))
    completing, young_msat, whole_msat = Counter[str](), Counter[str](), Counter[str]()
    for row in rows.all():
        transfer, reference = transfer_of(row), row.reference
        is_young = transfer.id.partition("/")[0] in outpoints
        if is_young and transfer.code in (Code.SETTLED, Code.SETTLED_REVERSED):
            completing[reference] += transfer.amount_msat * (1 if transfer.code is Code.SETTLED else -1)
        got_msat = transfer.amount_msat * ((transfer.credit == account) - (transfer.debit == account))
        whole_msat[reference] += got_msat
        young_msat[reference] += got_msat if is_young else 0
    return Msat(sum(whole_msat[one] if completing[one] else young_msat[one] for one in references))


async def stopped(tx: Transaction) -> str | None:
    """Why nothing at all may be paid out now, and what to do; None: nothing stops payouts."""
    restored = (await tx.execute(select(restores))).one_or_none()
    if restored is not None and (restored.payouts_resumed_at or 0) < restored.restored_at:
        return (
            "this database was put back from a backup, and does not know the payouts made since: run "
            "`bitcache reconcile`, look for payouts in the wallet, then run `bitcache payouts resume`"
        )
    missing_msat = await books.balance(tx, ledger.unexplained())
    if missing_msat:
        return (
            f"{-missing_msat // 1000:,} sat left the wallet by a transaction that is no payout of ours: run "
            "`bitcache reconcile`, then say whose money it was with `bitcache reconcile --explain`"
        )
    return None


async def check_running(tx: Transaction) -> None:
    """Raises PayoutsStopped."""
    if (reason := await stopped(tx)) is not None:
        raise PayoutsStopped(f"nothing is paid out now: {reason}")


async def is_ours(tx: Transaction, script_pubkey: bytes) -> bool:
    """Whether this script is one we watch: an invoice's, or the wallet's own."""
    invoiced = select(invoices.c.id).where(invoices.c.script_pubkey == script_pubkey)
    kept = select(unassigned_addresses.c.descriptor_id).where(
        unassigned_addresses.c.script_pubkey == script_pubkey
    )
    return (await tx.execute(union_all(invoiced, kept).limit(1))).first() is not None


async def hosted_descriptors(tx: Transaction) -> list[str]:
    """Ids of every wallet that hosted sales were ever paid to."""
    return list((await tx.scalars(select(descriptors.c.id).where(descriptors.c.hosted))).all())


async def reserved_sat(tx: Transaction, account: str) -> Sat:
    """Set aside of this account for payouts that no block has yet."""
    under_way = (State.REQUESTED, State.APPROVED, State.BATCHED)
    held = (
        select(func.sum(balances.c.amount_msat))
        .join(payouts, literal(ledger.payout("")) + payouts.c.id == balances.c.account)
        .where(payouts.c.account == account, payouts.c.state.in_(under_way))
    )
    return sat_rounded_down(Msat(int(await tx.scalar(held) or 0)))
