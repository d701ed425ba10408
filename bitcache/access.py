"""What a payment opens: keeps each grant's row equal to what its invoice's standing permits.

The grant is born with its invoice, allowing nothing, so that its id never changes and the sweep knows from
the first moment which bytes a buyer may have a right to. Money and access change in one transaction:
`on_change` runs inside the one that changes the standing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from msgspec import Raw, Struct, json
from sqlalchemy import func, insert, select, update

from bitcache import events
from bitcache.config import Config
from bitcache.db.tables import grants
from bitcache.ids import new_id
from bitcache.invoice_view import frozen_offer, invoice_view
from bitcache.node_state import NodeState, node_state
from bitcache.refund_state import NOTHING_CAME, RefundFacts, refund_facts_of
from payments.invoice import Standing, Status
from payments.policy import Permission, permission
from payments.ports import Clock, Transaction
from payments.records import InvoiceRecord
from payments.registry import mark_released
from payments.tables import invoice_terms, invoices

TOPIC = "invoice"
DAY_S = 86_400
NOTHING = Permission(bytes_allowed=False, key_allowed=False, withdrawn=False)
"""After a takedown, whatever was paid."""
UNPAID_RETENTION_S = 7 * DAY_S
"""An invoice nobody paid holds a deleted parcel's bytes only as long as its payment may still turn up."""


class InvoiceEvent(Struct, frozen=True):
    """A row of `events`, topic "invoice": what the grant allows, and the buyer's view, ready to be sent."""

    grant_id: str
    bytes_allowed: bool
    view: Raw
    seller_id: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """One row of `grants`."""

    id: str
    invoice_id: str
    offer_id: str
    parcel_id: str
    bytes_allowed: bool
    key_allowed: bool
    retained_until: int
    bytes_served: int


class Access:
    """The service's side of every change of an invoice's standing. Holds no state."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock

    async def on_change(self, tx: Transaction, before: Standing, after: InvoiceRecord) -> None:
        """`payments.ports.OnChange`: adjust the grant and tell who listens."""
        await self.settle(tx, after)

    async def open(self, tx: Transaction, record: InvoiceRecord) -> Grant:
        """Write the grant of a new invoice."""
        offer = frozen_offer(record)
        now = self._clock()
        grant = Grant(
            id=new_id(),
            invoice_id=record.invoice.id,
            offer_id=offer.offer_id,
            parcel_id=offer.parcel_id,
            bytes_allowed=False,
            key_allowed=False,
            retained_until=record.standing.valid_until + UNPAID_RETENTION_S,
            bytes_served=0,
        )
        await tx.execute(insert(grants).values(created_at=now, **asdict(grant)))
        return await self._settle(tx, record, grant, await node_state(tx, now), NOTHING_CAME)

    async def settle(self, tx: Transaction, record: InvoiceRecord) -> Grant:
        """Make the grant's row say what `record` permits now, and append the event."""
        (grant,) = await self.settle_all(tx, [record])
        return grant

    async def settle_all(self, tx: Transaction, records: Sequence[InvoiceRecord]) -> list[Grant]:
        """As `settle`, of each; what is the same for all is read once."""
        known = await _grants_of(tx, [record.invoice.id for record in records])
        node, facts = await node_state(tx, self._clock()), await refund_facts_of(tx, records)
        return [
            await self._settle(tx, record, known[record.invoice.id], node, facts[record.invoice.id])
            for record in records
        ]

    async def _settle(
        self, tx: Transaction, record: InvoiceRecord, grant: Grant, node: NodeState, facts: RefundFacts
    ) -> Grant:
        now = self._clock()
        permitted = await self.permission(tx, record, grant)
        retained_until = grant.retained_until
        if record.standing.covered:
            retained_until = max(retained_until, _paid_at(record, now) + self._retention_s(record))
        released_at = record.released_at
        if permitted.key_allowed and released_at is None:
            released_at = now
            await mark_released(tx, record.invoice.id, now=now)
        settled = replace(
            grant,
            bytes_allowed=permitted.bytes_allowed,
            key_allowed=permitted.key_allowed,
            retained_until=retained_until,
        )
        if settled != grant:
            await tx.execute(
                update(grants)
                .where(grants.c.id == grant.id)
                .values(
                    bytes_allowed=settled.bytes_allowed,
                    key_allowed=settled.key_allowed,
                    retained_until=settled.retained_until,
                )
            )
        view = invoice_view(record, permitted, node, facts, self._config.hosted, now)
        event = InvoiceEvent(
            grant.id, permitted.bytes_allowed, Raw(json.encode(view)), record.invoice.seller_id
        )
        await events.append(tx, topic=TOPIC, subject=record.invoice.id, payload=event, now=now)
        return settled

    async def permission(self, tx: Transaction, record: InvoiceRecord, grant: Grant) -> Permission:
        """What the buyer may have now.

        `grant` is the row as last written, which knows what was once given.
        """
        if record.invoice.withdrawn:
            return NOTHING
        offer = frozen_offer(record)
        return permission(
            record.invoice.policy,
            record.standing,
            released=record.released_at is not None or grant.bytes_allowed or grant.bytes_served > 0,
            zero_conf_key_allowed=await self._fits_unconfirmed_cap(tx, record),
            # The bytes of a meterable parcel are worth money without the key's policy: never before the key.
            prefetch_fit=record.prefetch_fit
            and (offer.key_at == 0 or (self._config.prefetch_allowed and not offer.meterable)),
        )

    async def _fits_unconfirmed_cap(self, tx: Transaction, record: InvoiceRecord) -> bool:
        """Whether the key may be given on this payment before a block, all others so given counted."""
        if record.standing.depth != 0 or record.invoice.policy.key_at > 0:
            return True  # not asked
        return (
            await _unconfirmed_exposure_sat(tx, record.invoice.id, self._clock()) + record.standing.price_sat
            <= self._config.zero_conf_key_cap_sat
        )

    def _retention_s(self, record: InvoiceRecord) -> int:
        return frozen_offer(record).paid_retention_days * DAY_S


async def grant_of(tx: Transaction, invoice_id: str) -> Grant:
    """The invoice's grant; every invoice has one."""
    return (await _grants_of(tx, [invoice_id]))[invoice_id]


async def _grants_of(tx: Transaction, invoice_ids: Sequence[str]) -> dict[str, Grant]:
    columns = (grants.c[name] for name in Grant.__dataclass_fields__)
    rows = await tx.execute(select(*columns).where(grants.c.invoice_id.in_(invoice_ids)))
    return {row.invoice_id: Grant(**row._mapping) for row in rows.all()}


def _paid_at(record: InvoiceRecord, now: int) -> int:
    """When the buyer got the key, or now while waiting for it: the promised days are days of having it."""
    return now if record.released_at is None else record.released_at


async def _unconfirmed_exposure_sat(tx: Transaction, except_invoice_id: str, now: int) -> int:
    """What would be lost if every unconfirmed payment whose key was given failed, in sats.

    What was lost in the last day counts too: who double-spends does not make room for the next.
    """
    lost = invoices.c.status.in_((Status.OPEN, Status.EXPIRED)) & (invoices.c.released_at > now - DAY_S)
    exposed = (
        select(func.max(invoice_terms.c.amount_sat).label("amount_sat"))
        .join(invoices, invoices.c.id == invoice_terms.c.invoice_id)
        .where(
            (invoices.c.status == Status.SEEN) | lost,
            invoices.c.key_at == 0,
            invoices.c.released_at.is_not(None),
            invoices.c.id != except_invoice_id,
        )
        .group_by(invoices.c.id)
        .subquery()
    )
    return int(await tx.scalar(select(func.sum(exposed.c.amount_sat))) or 0)
