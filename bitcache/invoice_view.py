"""An invoice as its buyer and its seller see it. Pure.

The address is shown as long as paying it can help: it is hidden when every price has expired and nothing
came, and after a takedown.
"""

from msgspec import Struct, json

from bitcache.api.wire import InvoiceSummary, InvoiceView, PolicyView, ReceivedOutputView
from bitcache.config import HostedConfig
from bitcache.node_state import NodeState
from bitcache.refund_state import RefundFacts, owed_by_books, refund_view
from payments.invoice import TIP_SAT_MAX, Standing, Status
from payments.money import Sat, btc_from_sat
from payments.outputs import ReceivedOutput, confirmations
from payments.policy import Permission
from payments.records import InvoiceRecord


class FrozenOffer(Struct, frozen=True):
    """What was offered when the invoice was made. Whatever happens to the offer, this holds."""

    offer_id: str
    parcel_id: str
    price_msat: int
    bytes_at: int
    key_at: int
    mode: str
    paid_retention_days: int
    meterable: bool


def frozen_offer(record: InvoiceRecord) -> FrozenOffer:
    return json.decode(record.frozen, type=FrozenOffer)


def invoice_view(
    record: InvoiceRecord,
    permission: Permission,
    node: NodeState,
    refund: RefundFacts,
    hosted: HostedConfig,
    now: int,
) -> InvoiceView:
    """The buyer's view of `record`; whoever holds the invoice's id may see it."""
    invoice, standing, offer = record.invoice, record.standing, frozen_offer(record)
    address = None if _address_hidden(record) else record.address
    due_sat = 0 if invoice.withdrawn else standing.due_sat
    return InvoiceView(
        invoice_id=invoice.id,
        reference=invoice.reference,
        offer_id=offer.offer_id,
        parcel_id=offer.parcel_id,
        status=standing.status.value,
        flags=sorted(flag.value for flag in standing.flags),
        created_at=invoice.created_at,
        price_sat=standing.price_sat,
        received_sat=standing.received_sat,
        confirmed_sat=standing.confirmed_sat,
        due_sat=due_sat,
        owed_sat=owed_by_books(refund) if refund.refunds else owed_sat(standing, withdrawn=invoice.withdrawn),
        address=address,
        uri=payment_uri(address, Sat(due_sat), invoice.reference) if address and due_sat else None,
        valid_until=standing.valid_until,
        # Nothing confirms a free invoice, and nothing needs to.
        confirmations=standing.depth if record.address else invoice.policy.key_at,
        policy=PolicyView(bytes_at=invoice.policy.bytes_at, key_at=invoice.policy.key_at),
        bytes_allowed=permission.bytes_allowed,
        key_allowed=permission.key_allowed,
        suspended=permission.withdrawn,
        outputs=[_output_view(output, node.tip_height) for output in record.outputs],
        node_online=node.online,
        now=now,
        taken_down=invoice.revoked,
        refund=refund_view(record, refund, hosted),
    )


def invoice_summary(record: InvoiceRecord, owed_by_refunds_sat: Sat | None) -> InvoiceSummary:
    """One line of the seller's list; what is owed by the books, where something was asked back."""
    invoice, standing, offer = record.invoice, record.standing, frozen_offer(record)
    return InvoiceSummary(
        invoice_id=invoice.id,
        reference=invoice.reference,
        offer_id=offer.offer_id,
        parcel_id=offer.parcel_id,
        status=standing.status.value,
        flags=sorted(flag.value for flag in standing.flags),
        created_at=invoice.created_at,
        price_sat=standing.price_sat,
        received_sat=standing.received_sat,
        due_sat=0 if invoice.withdrawn else standing.due_sat,
        owed_sat=owed_sat(standing, withdrawn=invoice.withdrawn)
        if owed_by_refunds_sat is None
        else owed_by_refunds_sat,
        txids=sorted({output.outpoint.txid for output in record.outputs}),
        settlement=invoice.mode.value,
        fee_sat=(fee_sat := invoice.fee.of(standing.price_sat)),
        net_sat=standing.price_sat - fee_sat,
    )


def owed_sat(standing: Standing, *, withdrawn: bool) -> Sat:
    """What the seller owes the buyer back: a surplus above a tip, or all that came and settled nothing.

    After a takedown, or once all is asked back, none of it is a tip.
    """
    if withdrawn:
        return standing.received_sat
    if standing.covered:
        unsettling_sat = standing.surplus_sat
    elif standing.status is Status.EXPIRED:
        unsettling_sat = standing.received_sat
    else:
        unsettling_sat = Sat(0)
    return unsettling_sat if unsettling_sat > TIP_SAT_MAX else Sat(0)


def payment_uri(address: str, due_sat: Sat, reference: str) -> str:
    """BIP321 URI for what is still due.

    The label is the reference: a title would end up in wallets and their backups. The address stays as the
    node writes it: bech32 in lower case, base58 as it must be.
    """
    return f"bitcoin:{address}?amount={btc_from_sat(due_sat)}&label={reference}"


def _address_hidden(record: InvoiceRecord) -> bool:
    if record.invoice.withdrawn:
        return True
    nothing_came = not record.outputs
    return nothing_came and record.standing.status in (Status.EXPIRED, Status.CANCELLED)


def _output_view(output: ReceivedOutput, tip_height: int) -> ReceivedOutputView:
    return ReceivedOutputView(
        txid=output.outpoint.txid,
        vout=output.outpoint.vout,
        amount_sat=output.amount_sat,
        confirmations=confirmations(output, tip_height),
        presence=output.presence.value,
        first_seen_at=output.first_seen_at,
        height=output.height,
    )
