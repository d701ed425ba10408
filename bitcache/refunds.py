"""Money that is owed to a buyer, asked back with the receipt, and what its seller decides.

Hosted, asking sets the money aside in the ledger at once, in the transaction that calls off the sale: what
goes out again can never buy the goods as well. Direct, the server has no money: it keeps the address for the
seller, who pays by hand. The first address is final: whoever finds a receipt later turns nothing away.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct, json
from sqlalchemy import Column, Row, Select, case, insert, literal, select, tuple_, union_all, update

from bitcache import events
from bitcache.access import Access, grant_of
from bitcache.api.wire import InvoiceView
from bitcache.api.wire_money import RefundSummary
from bitcache.claims import check_claim_secret
from bitcache.config import Config
from bitcache.errors import (
    NotFound,
    NothingOwed,
    RefundAddressFinal,
    RefundAddressInvalid,
    RefundDecided,
    ValueRefused,
)
from bitcache.ids import new_id
from bitcache.invoice_view import FrozenOffer, invoice_view, payment_uri
from bitcache.node_state import node_state
from bitcache.payout_wallet import TOPIC
from bitcache.refund_state import (
    Refund,
    RefundFacts,
    approval_needed,
    asks_for_all,
    operators_to_approve,
    refund_facts,
    refund_facts_of,
    refundable_sat,
    refunds_of,
)
from payments import ledger, payout_requests
from payments.errors import PayoutConflict, PayoutNotFound, PayoutRefused
from payments.invoice import Mode, Status
from payments.money import Sat
from payments.payout import Kind, Payout, State
from payments.payout_store import find_payout, payout_of
from payments.ports import Clock, Store, Transaction
from payments.records import InvoiceRecord
from payments.registry import InvoiceRegistry
from payments.tables import invoices, payouts, refund_addresses

BY_SELLER = "seller"
BY_POLICY = "policy"
OTHERS = {BY_POLICY: "this server's policy", "operator": "the operator"}
REASON_LENGTH_MAX = 500


class RefundNode(Protocol):
    async def validate_address(self, address: str) -> bytes | None: ...


class RefundChanged(Struct, frozen=True):
    """A row of `events`, topic "payout", subject the seller."""

    invoice_id: str


@dataclass(frozen=True, slots=True)
class _Named:
    """Where the buyer wants the money."""

    address: str
    script_pubkey: bytes


class Refunds:
    """Takes claims and decisions. Holds no state."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        registry: InvoiceRegistry,
        access: Access,
        node: RefundNode,
        clock: Clock,
    ) -> None:
        self._config = config
        self._store = store
        self._registry = registry
        self._access = access
        self._node = node
        self._clock = clock

    async def claim(self, invoice_id: str, claim_secret: bytes, address: str) -> InvoiceView:
        """Ask back what is owed now. With nothing new, the invoice as it is.

        Raises InvoiceNotFound, ClaimRefused, NothingOwed, RefundAddressInvalid, RefundAddressFinal,
        NodeUnavailable.
        """
        address = address.strip()

        async def look(tx: Transaction) -> RefundFacts:
            await check_claim_secret(tx, invoice_id, claim_secret)
            record = await self._registry.load(tx, invoice_id, now=self._clock())
            facts = await refund_facts(tx, record)
            if facts.address is None:
                _check_owed(record, facts)
            return facts

        # Who has no receipt, or nothing to ask for, costs no call of the node and no turn of the writer.
        facts = await self._store.read(look)
        if address == facts.address:
            named = _Named(address, facts.script_pubkey)
        else:
            script_pubkey = await self._node.validate_address(address)
            if script_pubkey is None:
                raise RefundAddressInvalid(
                    f"This is no bitcoin address of this server's network, {self._config.network}: copy a "
                    "receiving address of your wallet again."
                )
            named = _Named(address, script_pubkey)
        return await self._store.write(lambda tx: self._claimed(tx, invoice_id, named))

    async def page(self, seller_id: str, *, after: str | None, limit: int) -> list[RefundSummary]:
        """What buyers of this seller asked back, newest first, those after `after`. Raises NotFound."""
        return await self._store.read(lambda tx: self._page(tx, seller_id, after, limit))

    async def approve(self, seller_id: str, refund_id: str) -> RefundSummary:
        """Raises NotFound, RefundDecided, NothingOwed."""

        async def approved(tx: Transaction) -> RefundSummary:
            payout = await _sellers(tx, seller_id, refund_id)
            if payout.state is State.DECLINED and payout.decided_by != BY_SELLER:
                raise RefundDecided(f"Declined by {_other(payout)}: only the operator can approve it now.")
            if payout.state in (State.REQUESTED, State.DECLINED):
                await self._check_sellers_to_approve(tx, payout)
            return await self.decide(tx, refund_id, approve=True, by=BY_SELLER)

        return await self._store.write(approved)

    async def decline(self, seller_id: str, refund_id: str, reason: str) -> RefundSummary:
        """The buyer reads `reason`. Raises NotFound, RefundDecided, ValueRefused."""
        reason = " ".join(reason.split())
        if not 1 <= len(reason) <= REASON_LENGTH_MAX or any(
            unicodedata.category(character) == "Cc" for character in reason
        ):
            raise ValueRefused(
                f"Give a reason of 1 to {REASON_LENGTH_MAX} characters: the buyer reads it.", field="reason"
            )

        async def declined(tx: Transaction) -> RefundSummary:
            payout = await _sellers(tx, seller_id, refund_id)
            if payout.state is State.APPROVED and payout.decided_by != BY_SELLER:
                raise RefundDecided(f"Approved by {_other(payout)}: only the operator can decline it now.")
            return await self.decide(tx, refund_id, approve=False, by=BY_SELLER, reason=reason)

        return await self._store.write(declined)

    async def decide(
        self, tx: Transaction, refund_id: str, *, approve: bool, by: str, reason: str = ""
    ) -> RefundSummary:
        """In the caller's transaction, by whoever may; buyer and seller are told.

        Raises NotFound, RefundDecided, NothingOwed (what a refund that was declined asked for is gone).
        """
        now = self._clock()
        try:
            if approve:
                payout = await payout_requests.approve(tx, refund_id, by=by, now=now)
            else:
                payout = await payout_requests.decline(tx, refund_id, by=by, reason=reason, now=now)
        except PayoutNotFound as exc:
            raise NotFound("refund", refund_id) from exc
        except PayoutConflict as exc:
            raise RefundDecided(f"{exc}") from exc
        except PayoutRefused as exc:
            raise NothingOwed(f"{exc}") from exc
        await self.tell(tx, [payout])
        (row,) = (await tx.execute(_hosted_rows().where(payouts.c.id == refund_id))).all()
        (refund,) = await refunds_of(tx, [payout])
        return _hosted_summary(row, refund)

    async def tell(self, tx: Transaction, changed: Sequence[Payout]) -> None:
        """Buyers and sellers of the refunds among these payouts: their pages read themselves again."""
        asked = {payout.invoice_id for payout in changed if payout.kind is Kind.REFUND}
        ids = {invoice_id for invoice_id in asked if invoice_id is not None}
        if ids:
            await self._tell(tx, await self._registry.load_all(tx, ids, now=self._clock()))

    async def _claimed(self, tx: Transaction, invoice_id: str, named: _Named) -> InvoiceView:
        now = self._clock()
        # Two claims at once come one after the other: the writer is one, and the row is locked.
        await tx.execute(select(invoices.c.id).where(invoices.c.id == invoice_id).with_for_update())
        record = await self._registry.load(tx, invoice_id, now=now)
        facts = await refund_facts(tx, record)
        if facts.address is not None and facts.script_pubkey != named.script_pubkey:
            raise RefundAddressFinal(facts.address)
        amount_sat = refundable_sat(record.invoice, record.standing, facts)
        if facts.address is None:
            _check_owed(record, facts)
            await _keep_address(tx, invoice_id, named, now)
        if amount_sat:
            record = await self._asked(tx, record, facts, amount_sat, named, now)
        return await self._view(tx, record)

    async def _asked(
        self,
        tx: Transaction,
        record: InvoiceRecord,
        facts: RefundFacts,
        amount_sat: Sat,
        named: _Named,
        now: int,
    ) -> InvoiceRecord:
        invoice = record.invoice
        hosted = invoice.mode is Mode.HOSTED
        calls_off = asks_for_all(invoice, record.standing) and not invoice.refunded
        if not hosted and facts.address is not None and not calls_off:
            return record  # the seller knows
        approval = approval_needed(record, facts, self._config.hosted)
        if calls_off:
            record = await self._registry.refund(tx, invoice.id, now=now)
        if hosted:
            await self._request(tx, record, amount_sat, facts.address or named.address, approval, named, now)
        # A refund is listed by itself; a debt that is paid by hand is shown again.
        attended = invoices.c.attention if hosted else None
        await tx.execute(update(invoices).where(invoices.c.id == invoice.id).values(attended=attended))
        await self._tell(tx, [record])
        return record

    async def _request(
        self,
        tx: Transaction,
        record: InvoiceRecord,
        amount_sat: Sat,
        address: str,
        approval: bool,
        named: _Named,
        now: int,
    ) -> None:
        hosted = self._config.hosted
        payout = Payout(
            id=new_id(),
            kind=Kind.REFUND,
            seller_id=record.invoice.seller_id,
            invoice_id=record.invoice.id,
            account=ledger.owed(record.invoice.id),
            amount_sat=amount_sat,
            address=address,
            script_pubkey=named.script_pubkey,
            state=State.REQUESTED if approval else State.APPROVED,
            requested_at=now,
            ready_at=now + hosted.refund_delay_s,
            decided_at=None if approval else now,
            decided_by=None if approval else BY_POLICY,
        )
        try:
            await payout_requests.request(tx, payout, depth=hosted.depth, now=now)
        except PayoutRefused as exc:
            raise NothingOwed(f"Nothing was asked back: {exc}.") from exc

    async def _check_sellers_to_approve(self, tx: Transaction, payout: Payout) -> None:
        """Raises RefundDecided."""
        assert payout.invoice_id is not None, "of a sale"
        record = await self._registry.load(tx, payout.invoice_id, now=self._clock())
        if operators_to_approve(record, await refund_facts(tx, record)):
            raise RefundDecided(
                "Your balance is below zero: what is asked back here was paid out to you. The operator would "
                "pay it, and only the operator can approve it."
            )

    async def _tell(self, tx: Transaction, records: Sequence[InvoiceRecord]) -> None:
        now = self._clock()
        await self._access.settle_all(tx, records)
        for invoice in (record.invoice for record in records):
            changed = RefundChanged(invoice.id)
            await events.append(tx, topic=TOPIC, subject=invoice.seller_id, payload=changed, now=now)

    async def _view(self, tx: Transaction, record: InvoiceRecord) -> InvoiceView:
        now = self._clock()
        permitted = await self._access.permission(tx, record, await grant_of(tx, record.invoice.id))
        facts = await refund_facts(tx, record)
        return invoice_view(record, permitted, await node_state(tx, now), facts, self._config.hosted, now)

    async def _page(
        self, tx: Transaction, seller_id: str, after: str | None, limit: int
    ) -> list[RefundSummary]:
        both = union_all(
            _hosted_rows().where(payouts.c.seller_id == seller_id, payouts.c.kind == Kind.REFUND),
            _direct_rows().where(invoices.c.seller_id == seller_id, invoices.c.mode == Mode.DIRECT),
        ).subquery()
        chosen = select(both)
        if after is not None:
            found = await tx.execute(select(both.c.requested_at).where(both.c.refund_id == after))
            last = found.one_or_none()
            if last is None:
                raise NotFound("refund", after)
            chosen = chosen.where(tuple_(both.c.requested_at, both.c.refund_id) < (last.requested_at, after))
        newest_first = chosen.order_by(both.c.requested_at.desc(), both.c.refund_id.desc()).limit(limit)
        rows = (await tx.execute(newest_first)).all()
        asked = select(payouts).where(payouts.c.id.in_([row.refund_id for row in rows if row.hosted]))
        hosted = [payout_of(row) for row in (await tx.execute(asked)).all()]
        refunds = {one.payout.id: one for one in await refunds_of(tx, hosted)}
        direct = [row.invoice_id for row in rows if not row.hosted]
        records = await self._registry.load_all(tx, direct, now=self._clock())
        facts = await refund_facts_of(tx, records)
        by_invoice = {record.invoice.id: record for record in records}
        return [
            _hosted_summary(row, refunds[row.refund_id])
            if row.hosted
            else _direct_summary(row, by_invoice[row.invoice_id], facts[row.invoice_id])
            for row in rows
        ]


def _check_owed(record: InvoiceRecord, facts: RefundFacts) -> None:
    """Raises NothingOwed, in words that say what to do."""
    if refundable_sat(record.invoice, record.standing, facts):
        return
    status = record.standing.status
    if status in (Status.OPEN, Status.SEEN, Status.CONFIRMING) and record.outputs:
        raise NothingOwed(
            "The payment is under way and may still open the files. What does not can be asked back when "
            "the price is not held any more and the payment is in a block."
        )
    if record.standing.received_sat > record.standing.confirmed_sat:
        raise NothingOwed("The payment is in no block yet. Ask again when it is.")
    raise NothingOwed("Nothing of what was paid is owed back. Up to 999 sat too much are a tip.")


async def _keep_address(tx: Transaction, invoice_id: str, named: _Named, now: int) -> None:
    """Raises RefundAddressInvalid."""
    try:
        await payout_requests.check_target(tx, named.script_pubkey)
    except PayoutRefused as exc:
        raise RefundAddressInvalid(
            "This address belongs to this server, not to a wallet of yours. Give one of your own."
        ) from exc
    await tx.execute(
        insert(refund_addresses).values(
            invoice_id=invoice_id,
            address=named.address,
            script_pubkey=named.script_pubkey,
            claimed_at=now,
        )
    )


async def _sellers(tx: Transaction, seller_id: str, refund_id: str) -> Payout:
    payout = await find_payout(tx, refund_id)
    if payout is None or payout.kind is not Kind.REFUND or payout.seller_id != seller_id:
        raise NotFound("refund", refund_id)
    return payout


def _other(payout: Payout) -> str:
    return OTHERS.get(payout.decided_by or "", "the operator")


def _hosted_rows() -> Select[Any]:
    return _of_invoice(payouts.c.id, payouts.c.requested_at, hosted=True).join(
        payouts, payouts.c.invoice_id == invoices.c.id
    )


def _direct_rows() -> Select[Any]:
    return _of_invoice(refund_addresses.c.invoice_id, refund_addresses.c.claimed_at, hosted=False).join(
        refund_addresses, refund_addresses.c.invoice_id == invoices.c.id
    )


def _of_invoice(refund_id: Column[Any], requested_at: Column[Any], *, hosted: bool) -> Select[Any]:
    """The same columns of both, as a page has both."""
    seen_to = (invoices.c.attended == invoices.c.attention) & invoices.c.attention.is_not(None)
    return select(
        refund_id.label("refund_id"),
        requested_at.label("requested_at"),
        literal(hosted).label("hosted"),
        invoices.c.id.label("invoice_id"),
        invoices.c.reference,
        invoices.c.frozen,
        case((seen_to, True), else_=False).label("attended"),
    ).select_from(invoices)


def _hosted_summary(row: Row[tuple[object, ...]], refund: Refund) -> RefundSummary:
    payout, sent = refund.payout, refund.sent
    return RefundSummary(
        refund_id=payout.id,
        invoice_id=row.invoice_id,
        reference=row.reference,
        offer_id=json.decode(row.frozen, type=FrozenOffer).offer_id,
        paid_by="operator",
        amount_sat=payout.amount_sat,
        address=payout.address,
        state=payout.state.value,
        requested_at=payout.requested_at,
        ready_at=payout.ready_at,
        decided_by=payout.decided_by,
        reason=payout.reason,
        txid=sent.txid if sent else None,
        network_fee_sat=sent.network_fee_sat if sent else None,
        confirmations=sent.confirmations if sent else None,
        uri=None,
    )


def _direct_summary(row: Row[tuple[object, ...]], record: InvoiceRecord, facts: RefundFacts) -> RefundSummary:
    assert facts.address is not None, "it is by its address that it is listed"
    owed_sat = refundable_sat(record.invoice, record.standing, facts)
    return RefundSummary(
        refund_id=row.refund_id,
        invoice_id=row.invoice_id,
        reference=row.reference,
        offer_id=json.decode(row.frozen, type=FrozenOffer).offer_id,
        paid_by="seller",
        amount_sat=owed_sat,
        address=facts.address,
        state="attended" if row.attended else "owed",
        requested_at=row.requested_at,
        ready_at=None,
        decided_by=None,
        reason=None,
        txid=None,
        network_fee_sat=None,
        confirmations=None,
        uri=payment_uri(facts.address, owed_sat, row.reference) if owed_sat else None,
    )
