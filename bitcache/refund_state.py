"""What of an invoice's money is the buyer's to ask back, and what was asked: by the books and the payouts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from bitcache.api.wire import InvoiceRefundView, RefundView
from bitcache.config import HostedConfig
from payments import chain_facts, ledger
from payments.invoice import DUST_SAT, TIP_SAT_MAX, Invoice, Mode, Standing, Status
from payments.money import NOTHING_MSAT, NOTHING_SAT, Msat, Sat, sat_rounded_down
from payments.payout import Kind, Payout, State
from payments.payout_store import payout_of
from payments.ports import Transaction
from payments.records import InvoiceRecord
from payments.sendings import SEEN, current, sendings_of
from payments.tables import balances, payouts, refund_addresses

AT_REST = (Status.SETTLED, Status.EXPIRED, Status.CANCELLED)
"""Nothing is under way that could still buy something with the money."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The transaction that pays a refund."""

    txid: str
    network_fee_sat: Sat
    """The refund's share of it."""
    confirmations: int


@dataclass(frozen=True, slots=True)
class Refund:
    payout: Payout
    held_sat: Sat
    """Set aside for it, and in no block yet."""
    sent: Sent | None


@dataclass(frozen=True, slots=True)
class RefundFacts:
    """Of one invoice. `NOTHING_CAME` for one that nobody paid."""

    owed_msat: Msat
    """In the books, in blocks, not set aside: never what is in the mempool."""
    address: str | None = None
    """The first that was named; with its script."""
    script_pubkey: bytes = b""
    refunds: tuple[Refund, ...] = ()
    """Newest first."""
    seller_owes: bool = False
    """The seller's hosted balance is below zero: more was paid out than they have earned."""

    @property
    def declined_sat(self) -> Sat:
        """Asked back before and refused: asking again does not ask again."""
        declined = (one.payout for one in self.refunds if one.payout.state is State.DECLINED)
        return Sat(sum(payout.amount_sat for payout in declined))


NOTHING_CAME = RefundFacts(NOTHING_MSAT)


def refundable_sat(invoice: Invoice, standing: Standing, facts: RefundFacts) -> Sat:
    """What asking now would give back. Pure.

    Never while the money may still settle the invoice. Up to a tip is given back only where nothing was, or
    can be, sold for it.
    """
    if not invoice.withdrawn and standing.status not in AT_REST:
        return NOTHING_SAT
    mine_sat = Sat(sat_rounded_down(facts.owed_msat) - facts.declined_sat)
    least_sat = DUST_SAT if invoice.withdrawn else TIP_SAT_MAX + 1
    return mine_sat if mine_sat >= least_sat else NOTHING_SAT


def asks_for_all(invoice: Invoice, standing: Standing) -> bool:
    """Whether asking now calls off the sale, and not only the surplus of one that stands. Pure."""
    return invoice.withdrawn or standing.status is not Status.SETTLED


def approval_needed(record: InvoiceRecord, facts: RefundFacts, hosted: HostedConfig) -> bool:
    """Whether somebody must look at what is asked back now. Pure."""
    if hosted.refund_policy == "ask":
        return True
    # A buyer who has had the key, and of whose payment a part left the chain, would get the rest as well.
    return _gave_the_key(record) and (not record.invoice.revoked or operators_to_approve(record, facts))


def operators_to_approve(record: InvoiceRecord, facts: RefundFacts) -> bool:
    """Whether the seller has been paid out what is asked back, so that the operator would pay it. Pure.

    Else who buys of himself, and brings about a takedown, would be paid twice.
    """
    return record.invoice.mode is Mode.HOSTED and facts.seller_owes and _gave_the_key(record)


def _gave_the_key(record: InvoiceRecord) -> bool:
    """For what is asked back now: it was earned once."""
    return record.released_at is not None and asks_for_all(record.invoice, record.standing)


def owed_by_books(facts: RefundFacts) -> Sat:
    """What has not left for the buyer yet, set aside or not. Pure."""
    held_sat = sum(one.held_sat for one in facts.refunds)
    return Sat(max(0, sat_rounded_down(facts.owed_msat) + held_sat))


def refund_view(record: InvoiceRecord, facts: RefundFacts, hosted: HostedConfig) -> InvoiceRefundView | None:
    """As the buyer sees it. Pure."""
    if not record.outputs:
        return None
    invoice = record.invoice
    return InvoiceRefundView(
        paid_by="operator" if invoice.mode is Mode.HOSTED else "seller",
        refundable_sat=refundable_sat(invoice, record.standing, facts),
        whole=invoice.refunded,
        address=facts.address,
        approval=approval_needed(record, facts, hosted),
        delay_s=hosted.refund_delay_s,
        fee_percent_max=hosted.fee_share_percent_max,
        refunds=[_view(one) for one in facts.refunds],
    )


async def refund_facts(tx: Transaction, record: InvoiceRecord) -> RefundFacts:
    """Cheap for an invoice that nobody paid, as most are."""
    return (await refund_facts_of(tx, [record]))[record.invoice.id]


async def refund_facts_of(tx: Transaction, records: Sequence[InvoiceRecord]) -> dict[str, RefundFacts]:
    """By invoice, in a fixed number of queries."""
    facts = {record.invoice.id: NOTHING_CAME for record in records}
    paid = [record.invoice.id for record in records if record.outputs]
    if not paid:
        return facts
    owed = await _balances(tx, [ledger.owed(invoice_id) for invoice_id in paid])
    sellers = {record.invoice.id: ledger.seller(record.invoice.seller_id) for record in records}
    earned = await _balances(tx, sorted(set(sellers.values())))
    chosen = select(refund_addresses).where(refund_addresses.c.invoice_id.in_(paid))
    named = {row.invoice_id: row for row in (await tx.execute(chosen)).all()}
    refunds = await _asked_back(tx, list(named))
    for invoice_id in paid:
        owed_msat, row = owed.get(ledger.owed(invoice_id), NOTHING_MSAT), named.get(invoice_id)
        owes = earned.get(sellers[invoice_id], NOTHING_MSAT) < 0
        facts[invoice_id] = (
            RefundFacts(owed_msat, seller_owes=owes)
            if row is None
            else RefundFacts(
                owed_msat, row.address, row.script_pubkey, tuple(refunds.get(invoice_id, ())), owes
            )
        )
    return facts


async def refunds_of(tx: Transaction, found: Sequence[Payout]) -> list[Refund]:
    """These payouts, with what is set aside and sent for each, in a fixed number of queries."""
    held = await _balances(tx, [ledger.payout(payout.id) for payout in found])
    sent = await _sent(tx, found)
    return [
        Refund(
            payout, sat_rounded_down(held.get(ledger.payout(payout.id), NOTHING_MSAT)), sent.get(payout.id)
        )
        for payout in found
    ]


async def owed_by_invoice(tx: Transaction, invoice_ids: Iterable[str]) -> dict[str, Sat]:
    """As `owed_by_books`, of those of these invoices of which the server was asked to give something back."""
    asked = select(payouts.c.id, payouts.c.invoice_id).where(
        payouts.c.invoice_id.in_(list(invoice_ids)), payouts.c.kind == Kind.REFUND
    )
    accounts: dict[str, list[str]] = {}
    for row in (await tx.execute(asked)).all():
        accounts.setdefault(row.invoice_id, [ledger.owed(row.invoice_id)]).append(ledger.payout(row.id))
    known = await _balances(tx, [account for some in accounts.values() for account in some])
    return {
        invoice_id: Sat(max(0, sat_rounded_down(Msat(sum(known.get(one, 0) for one in some)))))
        for invoice_id, some in accounts.items()
    }


async def _asked_back(tx: Transaction, invoice_ids: Sequence[str]) -> dict[str, list[Refund]]:
    """Newest first."""
    if not invoice_ids:
        return {}
    asked = select(payouts).where(payouts.c.invoice_id.in_(invoice_ids), payouts.c.kind == Kind.REFUND)
    newest_first = asked.order_by(payouts.c.requested_at.desc(), payouts.c.id.desc())
    found: dict[str, list[Refund]] = {}
    for refund in await refunds_of(tx, [payout_of(row) for row in (await tx.execute(newest_first)).all()]):
        assert refund.payout.invoice_id is not None, "it is by its invoice that it was found"
        found.setdefault(refund.payout.invoice_id, []).append(refund)
    return found


async def _balances(tx: Transaction, accounts: Sequence[str]) -> dict[str, Msat]:
    if not accounts:
        return {}
    rows = await tx.execute(select(balances).where(balances.c.account.in_(accounts)))
    return {row.account: Msat(row.amount_msat) for row in rows.all()}


async def _sent(tx: Transaction, refunds: Sequence[Payout]) -> dict[str, Sent]:
    """The version that is in a block, else the newest that our node sees, of each refund's present batch."""
    batched = [payout for payout in refunds if payout.batch_id is not None]
    if not batched:
        return {}
    tip_height = await chain_facts.tip_height(tx)
    sendings = await sendings_of(tx, [payout.id for payout in batched])
    found: dict[str, Sent] = {}
    for payout in batched:
        one = current(payout, sendings.get(payout.id, ()))
        if one is not None and one.txid is not None and one.presence in SEEN:
            confirmations = 0 if one.height is None else tip_height - one.height + 1
            found[payout.id] = Sent(one.txid, one.fee_sat, confirmations)
    return found


def _view(refund: Refund) -> RefundView:
    payout, sent = refund.payout, refund.sent
    return RefundView(
        refund_id=payout.id,
        amount_sat=payout.amount_sat,
        state=payout.state.value,
        requested_at=payout.requested_at,
        ready_at=payout.ready_at,
        reason=payout.reason,
        txid=sent.txid if sent else None,
        network_fee_sat=sent.network_fee_sat if sent else None,
        confirmations=sent.confirmations if sent else None,
    )
