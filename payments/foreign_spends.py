"""Transactions that spend coins of the operator's wallet and are no batch of ours.

What such a transaction takes out of the wallet, beyond what it pays back to it, is `unexplained` until the
operator says whose money it was. What they said is kept apart from the books, for a reorg and back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, or_, select, union, update

from payments import books, chain_facts, coins, ledger, payable, unassigned
from payments.errors import ExplanationRefused, SpendNotFound
from payments.ledger import Code, desired_uninvoiced
from payments.money import Msat, Sat, msat_from_sat
from payments.outputs import Presence
from payments.payout import desired_spend
from payments.ports import Transaction
from payments.tables import (
    descriptors,
    invoices,
    paying_inputs,
    paying_transactions,
    payout_versions,
    payouts,
    spend_explanations,
    unassigned_addresses,
    unassigned_outputs,
    version_shares,
)
from payments.unassigned import GIFT_PREFIX, Purpose


@dataclass(frozen=True, slots=True)
class Explained:
    """What the operator said about a transaction, as it stands in the books now."""

    txid: str
    net_out_sat: Sat
    """What it took out of the wallet."""
    shares: dict[str, Sat]
    """Account of the ledger -> what of it this account bears."""

    @property
    def left_sat(self) -> Sat:
        """What nobody has explained."""
        return Sat(self.net_out_sat - sum(self.shares.values()))


async def mark_change(tx: Transaction) -> None:
    """Whoever can spend the wallet's coins chose where its change goes.

    After a restore the change of a payout that was forgotten comes to an address that is watched as one that
    an invoice may have had: it is nobody's payment, and is booked as none.
    """
    unknown = (
        select(unassigned_outputs.c.txid)
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .join(descriptors, descriptors.c.id == unassigned_addresses.c.descriptor_id)
        .where(descriptors.c.hosted, unassigned_addresses.c.purpose.is_(None))
    )
    spending = union(coins.sold_among_inputs(unknown), coins.own_among_inputs(unknown)).subquery()
    found = select(unassigned_outputs.c.script_pubkey).where(
        unassigned_outputs.c.txid.in_(select(spending.c.txid))
    )
    hosted = select(descriptors.c.id).where(descriptors.c.hosted)
    await tx.execute(
        update(unassigned_addresses)
        .where(
            unassigned_addresses.c.purpose.is_(None),
            unassigned_addresses.c.descriptor_id.in_(hosted),
            unassigned_addresses.c.script_pubkey.in_(found),
        )
        .values(purpose=Purpose.CHANGE)
    )


async def lately(tx: Transaction, from_height: int) -> set[str]:
    """Those in blocks from this height on, and those that a reorg took out."""
    ours = select(payout_versions.c.txid).where(payout_versions.c.txid.is_not(None))
    recent = select(paying_transactions.c.txid).where(
        or_(paying_transactions.c.height >= from_height, paying_transactions.c.reorged),
        paying_transactions.c.txid.not_in(ours),
    )
    spent_by = select(paying_inputs.c.txid).where(paying_inputs.c.txid.in_(recent)).distinct()
    found: set[str] = set()
    for coins_of in (coins.sold_among_inputs(spent_by), coins.own_among_inputs(spent_by)):
        found |= {row.txid for row in (await tx.execute(coins_of)).all()}
    return found


async def book(tx: Transaction, txid: str, *, now: int) -> None:
    """Make the books say what this transaction took out, and whose that was."""
    standing = (await books.booked(tx, [txid]))[txid]
    row = (
        await tx.execute(select(paying_transactions.c.presence).where(paying_transactions.c.txid == txid))
    ).one_or_none()
    mined = row is not None and row.presence == Presence.BLOCK
    net_out_sat = await _net_out_sat(tx, txid) if mined else Sat(0)
    desired = desired_spend(txid, net_out_sat, await _said(tx, txid), mined=mined)
    await books.append_missing(tx, desired, standing, reference=txid, now=now)


async def book_gifts(tx: Transaction, *, now: int) -> None:
    """What others pay to an address of change, or of closes, is the operator's, as a deposit is: blocks tell
    such addresses."""
    own = select(unassigned_addresses.c.script_pubkey).where(
        unassigned_addresses.c.purpose.in_((Purpose.CHANGE, Purpose.CHANNEL))
    )
    txids = select(unassigned_outputs.c.txid).where(unassigned_outputs.c.script_pubkey.in_(own))
    paying_back = union(coins.sold_among_inputs(txids), coins.own_among_inputs(txids))
    closes = coins.deposits_among_inputs(txids)
    gifts = await unassigned.given(tx, but_by=paying_back, closes=closes)
    chain = await chain_facts.view(tx, now)
    for descriptor_id in await payable.hosted_descriptors(tx):
        reference = f"{GIFT_PREFIX}{descriptor_id}"
        outputs = [gift.output for gift in gifts if gift.descriptor_id == descriptor_id]
        desired = desired_uninvoiced(ledger.operator(), outputs, chain)
        standing = (await books.booked(tx, [reference]))[reference]
        await books.append_missing(tx, desired, standing, reference=reference, now=now)


async def explain(tx: Transaction, txid: str, shares: Mapping[str, Sat | None], *, now: int) -> Explained:
    """Say which accounts bear what this transaction took out; None: all that the others leave.

    Takes the place of what was said before; nothing at all takes it back. Raises SpendNotFound,
    ExplanationRefused.
    """
    before = await explained(tx, txid)
    if before is None:
        raise SpendNotFound(txid)
    given_sat = sum(share or 0 for share in shares.values())
    if given_sat > before.net_out_sat or any(share is not None and share <= 0 for share in shares.values()):
        raise ExplanationRefused(
            f"the transaction took {before.net_out_sat:,} sat out of the wallet: name amounts of 1 sat or "
            f"more that add up to that at most, not to {given_sat:,}"
        )
    rest = [account for account, share in shares.items() if share is None]
    if len(rest) > 1:
        raise ExplanationRefused("only one account can bear the rest: give the others an amount")
    for account, share in shares.items():
        borne_sat = Sat(before.net_out_sat - given_sat) if share is None else share
        await _check_account(tx, account, borne_sat, had=before.shares)
    await tx.execute(delete(spend_explanations).where(spend_explanations.c.txid == txid))
    for account, share in shares.items():
        await tx.execute(insert(spend_explanations).values(txid=txid, account=account, amount_sat=share))
    await book(tx, txid, now=now)
    after = await explained(tx, txid)
    assert after is not None, "it took out what it took out"
    return after


async def explained(tx: Transaction, txid: str) -> Explained | None:
    """How this spend stands in the books; None: nothing stands for such a transaction."""
    standing = (await books.booked(tx, [txid]))[txid]
    # By account, reversals included.
    spent_msat, shares = 0, dict[str, int]()
    for transfer in standing:
        match transfer.code:
            case Code.SPENT:
                spent_msat += transfer.amount_msat
            case Code.SPENT_REVERSED:
                spent_msat -= transfer.amount_msat
            case Code.EXPLAINED:
                shares[transfer.debit] = shares.get(transfer.debit, 0) + transfer.amount_msat
            case Code.EXPLAINED_REVERSED:
                shares[transfer.credit] = shares.get(transfer.credit, 0) - transfer.amount_msat
            case _:
                pass
    if not spent_msat:
        return None
    return Explained(
        txid,
        Sat(spent_msat // 1_000),
        {account: Sat(amount // 1_000) for account, amount in sorted(shares.items()) if amount},
    )


async def _check_account(tx: Transaction, account: str, borne_sat: Sat, *, had: Mapping[str, Sat]) -> None:
    """A seller or the operator may be left owing; a buyer's money is there or it is not."""
    kind, _, invoice_id = account.partition(":")
    if account == ledger.operator() or kind == "seller":
        return
    hosted = select(invoices.c.id).where(invoices.c.id == invoice_id, invoices.c.mode == "hosted")
    if kind != "owed" or (await tx.execute(hosted)).first() is None:
        raise ExplanationRefused(
            f"{account} can bear nothing: name `operator`, `seller:NAME`, or `owed:INVOICE` with the id of a "
            "hosted sale"
        )
    there = await books.balance(tx, account) + msat_from_sat(had.get(account, Sat(0)))
    if msat_from_sat(borne_sat) > there:
        raise ExplanationRefused(
            f"only {Msat(there) // 1_000:,} sat are owed on invoice {invoice_id}, and the transaction took "
            f"{borne_sat:,}: name another account, or several with their amounts"
        )


async def _net_out_sat(tx: Transaction, txid: str) -> Sat:
    # A batch that was given up and mined all the same took out what it paid beside our books.
    if (astray_sat := await _astray_sat(tx, txid)) is not None:
        return astray_sat
    inputs = (await chain_facts.inputs_by_txid(tx, paying_transactions.c.txid == txid)).get(txid, [])
    spent_sat = sum((await coins.among(tx, inputs)).values())
    return Sat(max(0, spent_sat - await coins.change_among(tx, txid)))


async def _astray_sat(tx: Transaction, txid: str) -> Sat | None:
    """What this transaction takes for payouts that are not in its batch now; None: it is no version."""
    version = (await tx.execute(select(payout_versions).where(payout_versions.c.txid == txid))).one_or_none()
    if version is None:
        return None
    taken: int | None = await tx.scalar(
        select(func.sum(version_shares.c.arrives_sat + version_shares.c.fee_sat))
        .join(payouts, payouts.c.id == version_shares.c.payout_id)
        .where(
            version_shares.c.batch_id == version.batch_id,
            version_shares.c.n == version.n,
            payouts.c.batch_id.is_distinct_from(version.batch_id),
        )
    )
    return Sat(int(taken or 0))


async def _said(tx: Transaction, txid: str) -> dict[str, Sat | None]:
    rows = await tx.execute(select(spend_explanations).where(spend_explanations.c.txid == txid))
    return {row.account: row.amount_sat for row in rows.all()}
