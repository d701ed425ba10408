"""From an offer to an invoice: everything that is decided when a buyer asks to pay.

All of it is decided inside the one transaction that writes the invoice. The address is taken there too, and
its script is watched before anybody is told of it. The same claim hash on the same offer is the same
invoice, so a buyer whose connection broke asks again and pays once.
"""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import json
from sqlalchemy import func, select

from bitcache.access import Access, grant_of
from bitcache.api.wire import InvoiceSummary, InvoiceView
from bitcache.config import Config
from bitcache.errors import HostedSalesOff, NodeOffline, SellerNotPayable, TooManyOpenInvoices
from bitcache.hosted_wallet import HostedWallet
from bitcache.ids import new_id
from bitcache.invoice_view import FrozenOffer, invoice_summary, invoice_view
from bitcache.node_state import node_state
from bitcache.on_sale import SaleOffer, sale_term, selling_offer
from bitcache.rate_limits import Limits
from bitcache.refund_state import NOTHING_CAME, owed_by_invoice, refund_facts
from bitcache.work import Solution, Work, bits_needed, streak_counted_max
from payments.addresses import AddressBook
from payments.descriptors import GAP_LIMIT_DEFAULT, DescriptorStore
from payments.errors import (
    AddressesInDoubt,
    AddressesNotDerived,
    DescriptorInvalid,
    InvoiceNotFound,
    NodeUnavailable,
)
from payments.invoice import NO_FEE, Fee, Invoice, Mode, Policy, Status, Term
from payments.money import Sat, msat_from_sat
from payments.ports import Clock, Store, Transaction
from payments.records import InvoiceRecord
from payments.registry import InvoiceRegistry
from payments.tables import invoices
from payments.watcher import Watcher

log = logging.getLogger(__name__)

REFERENCE_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Without the characters that people confuse when they read them to each other."""
ADDRESS_ATTEMPTS_MAX = 5
CLIENTS_REMEMBERED_MAX = 100_000
INVOICES_REMEMBERED_MAX = 200
"""Per client, the newest; far more than may be unpaid at once."""


class Purchase(NamedTuple):
    invoice: InvoiceView
    created: bool
    """False: the same claim hash asked before."""


class Purchases:
    """Makes invoices for offers, shows them, renews them."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        registry: InvoiceRegistry,
        access: Access,
        descriptors: DescriptorStore,
        hosted: HostedWallet,
        addresses: AddressBook,
        watcher: Watcher,
        limits: Limits,
        work: Work,
        clock: Clock,
    ) -> None:
        self._config = config
        self._store = store
        self._registry = registry
        self._access = access
        self._descriptors = descriptors
        self._hosted = hosted
        self._addresses = addresses
        self._watcher = watcher
        self._clock = clock
        self._clients = _ClientInvoices()
        self._limits = limits
        self._work = work

    async def buy(
        self, offer_id: str, claim_hash: bytes, client: str, *, solution: Solution | None = None
    ) -> Purchase:
        """The invoice for `claim_hash` (32 bytes) on this offer, made now unless it exists.

        `client` is whose cap of unpaid invoices counts: an address, or any other name of who asks.
        Raises NotFound, OfferUnavailable, TakenDown, MeteredOnly, NodeOffline, SellerNotPayable,
        TooManyOpenInvoices, TooManyRequests, WorkRequired.
        """
        # Free invoices are under no cap of unpaid ones, and every invoice stays for ever.
        self._limits.invoices.check(client)
        with self._clients.asking(client) as asker:
            record, purchase = await self._bought(_Order(offer_id, claim_hash, asker, solution))
            if purchase.created:
                self._limits.invoices_in_total.note()
            if purchase.created and record.address:
                asker.invoice_ids = [*asker.invoice_ids, record.invoice.id][-INVOICES_REMEMBERED_MAX:]
        if record.script_pubkey:
            self._watcher.watch(record.script_pubkey, record.invoice.id)
        return purchase

    async def view(self, invoice_id: str) -> InvoiceView:
        """The invoice as it stands now. Raises InvoiceNotFound."""
        return await self._store.read(lambda tx: self.view_in(tx, invoice_id))

    async def view_in(self, tx: Transaction, invoice_id: str) -> InvoiceView:
        """As `view`, in the caller's transaction."""
        now = self._clock()
        record = await self._registry.load(tx, invoice_id, now=now)
        permitted = await self._access.permission(tx, record, await grant_of(tx, invoice_id))
        refund = await refund_facts(tx, record)
        return invoice_view(record, permitted, await node_state(tx, now), refund, self._config.hosted, now)

    async def renew(self, invoice_id: str) -> InvoiceView:
        """One more term at today's price. Raises InvoiceNotFound, InvoiceNotRenewable, NodeOffline."""

        async def renewed(tx: Transaction) -> InvoiceView:
            now = self._clock()
            if not (await node_state(tx, now)).online:
                raise NodeOffline
            await self._registry.renew(tx, invoice_id, now=now)
            return await self.view_in(tx, invoice_id)

        return await self._store.write(renewed)

    async def page(self, seller_id: str, *, after: str | None, limit: int) -> list[InvoiceSummary]:
        """The seller's invoices, newest first, those after the invoice `after`. Raises InvoiceNotFound."""

        async def listed(tx: Transaction) -> list[InvoiceSummary]:
            if after is not None:
                owner = await tx.scalar(select(invoices.c.seller_id).where(invoices.c.id == after))
                if owner != seller_id:
                    raise InvoiceNotFound(f"there is no invoice {after}; list again without `after`")
            now = self._clock()
            records = await self._registry.page(tx, seller_id=seller_id, after=after, limit=limit, now=now)
            owed_sat = await owed_by_invoice(tx, [record.invoice.id for record in records])
            return [invoice_summary(record, owed_sat.get(record.invoice.id)) for record in records]

        return await self._store.read(listed)

    async def _bought(self, order: "_Order") -> tuple[InvoiceRecord, Purchase]:
        for _ in range(ADDRESS_ATTEMPTS_MAX):
            try:
                return await self._store.write(lambda tx: self._buy(tx, order))
            except _HostedWalletUnknown:
                await self._open_hosted_wallet()
            except AddressesNotDerived as missing:
                await self._derive(missing)
            except AddressesInDoubt as exc:
                raise NodeOffline from exc
        raise NodeOffline  # others took every address that was derived meanwhile

    async def _open_hosted_wallet(self) -> None:
        try:
            await self._hosted.open()
        except HostedSalesOff as exc:
            raise SellerNotPayable from exc
        except DescriptorInvalid as exc:
            log.error("nobody can pay: [hosted] `descriptor` in the configuration: %s", exc)
            raise SellerNotPayable from exc
        except NodeUnavailable as exc:
            raise NodeOffline from exc

    async def _derive(self, missing: AddressesNotDerived) -> None:
        descriptor = await self._store.read(lambda tx: self._descriptors.load(tx, missing.descriptor_id))
        try:
            await self._addresses.ensure(descriptor, missing.index)
        except NodeUnavailable as exc:
            raise NodeOffline from exc

    async def _buy(self, tx: Transaction, order: "_Order") -> tuple[InvoiceRecord, Purchase]:
        now = self._clock()
        known = await self._registry.find(tx, subject=order.offer_id, claim_hash=order.claim_hash, now=now)
        if known is not None:
            return known, Purchase(await self.view_in(tx, known.invoice.id), created=False)
        offer = await selling_offer(tx, order.offer_id, self._registry.sold, now)
        term = sale_term(offer, self._config, now)
        descriptor_id = await self._payable(tx, offer, order.asker, now) if term.amount_sat else None
        bits = await self._bits_needed(tx, offer.seller_id, descriptor_id)
        self._work.check(order.solution, order.offer_id, order.claim_hash, bits=bits, now=now)
        issued = None
        if descriptor_id is not None:
            issued = await self._descriptors.issue(tx, descriptor_id, self._addresses)
        invoice = Invoice(
            id=new_id(),
            reference=new_reference(),
            created_at=now,
            seller_id=offer.seller_id,
            mode=offer.mode,
            policy=Policy(bytes_at=offer.bytes_at, key_at=offer.key_at),
            terms=(term,),
            fee=self._fee(offer.mode),
        )
        record = await self._registry.create(
            tx,
            invoice,
            subject=order.offer_id,
            frozen=self._frozen(offer, term),
            claim_hash=order.claim_hash,
            issued=issued,
            now=now,
        )
        permitted = await self._access.permission(tx, record, await self._access.open(tx, record))
        view = invoice_view(
            record, permitted, await node_state(tx, now), NOTHING_CAME, self._config.hosted, now
        )
        return record, Purchase(view, created=True)

    async def _payable(self, tx: Transaction, offer: SaleOffer, asker: "_Asker", now: int) -> str:
        """The descriptor to be paid, if a payment can be asked for now at all."""
        if not (await node_state(tx, now)).online:
            raise NodeOffline
        client_max = self._config.open_invoices_per_client_max
        if await _count_open(tx, asker.invoice_ids) + asker.under_way > client_max:
            raise TooManyOpenInvoices(client_max, retry_after_s=self._config.price_hold_s)
        if offer.mode is Mode.HOSTED:
            if self._hosted.known is None:
                raise _HostedWalletUnknown
            return self._hosted.known.id
        if offer.descriptor_id is None:
            raise SellerNotPayable
        return offer.descriptor_id

    def _fee(self, mode: Mode) -> Fee:
        hosted = self._config.hosted
        return Fee(hosted.fee_ppm, Sat(hosted.fee_sat)) if mode is Mode.HOSTED else NO_FEE

    async def _bits_needed(self, tx: Transaction, seller_id: str, descriptor_id: str | None) -> int:
        """The proof of work that one more invoice costs; without a descriptor it takes no address."""
        limits, excess = self._config.limits, self._limits.invoices_in_total.excess()
        unused_streak, gap_limit, seller_full = 0, GAP_LIMIT_DEFAULT, False
        if descriptor_id is not None:
            gap_limit = await self._descriptors.gap_limit(tx, descriptor_id)
            counted_max = streak_counted_max(limits, gap_limit)
            unused_streak = await self._descriptors.unused_streak(tx, descriptor_id, at_most=counted_max)
            open_count = await self._registry.open_unpaid(tx, seller_id)
            seller_full = open_count >= self._config.open_invoices_per_seller_max
        return bits_needed(
            limits,
            unused_streak=unused_streak,
            gap_limit=gap_limit,
            seller_full=seller_full,
            excess=excess,
        )

    def _frozen(self, offer: SaleOffer, term: Term) -> str:
        frozen = FrozenOffer(
            offer_id=offer.id,
            parcel_id=offer.parcel_id,
            price_msat=msat_from_sat(term.amount_sat),
            bytes_at=offer.bytes_at,
            key_at=offer.key_at,
            mode=offer.mode.value,
            paid_retention_days=self._config.paid_retention_days,
            meterable=offer.meterable,
        )
        return json.encode(frozen).decode()


def new_reference() -> str:
    """Short and for humans, such as BC-7K3Q-9X2M: 39 random bits. Unique by the database's constraint."""
    letters = "".join(secrets.choice(REFERENCE_ALPHABET) for _ in range(8))
    return f"BC-{letters[:4]}-{letters[4:]}"


class _HostedWalletUnknown(Exception):
    """The node was not asked yet: not inside a transaction."""


@dataclass(slots=True)
class _Asker:
    """One client's unpaid invoices, as far as this process remembers."""

    invoice_ids: list[str] = field(default_factory=list)
    under_way: int = 0
    """Requests being decided now, the asking one included: a burst must not pass the cap together."""


@dataclass(frozen=True, slots=True)
class _Order:
    """What is asked for: one invoice."""

    offer_id: str
    claim_hash: bytes
    asker: _Asker
    solution: Solution | None


class _ClientInvoices:
    """Who asked for which invoices. In memory only: the database keeps no buyer's address."""

    def __init__(self) -> None:
        self._askers: dict[str, _Asker] = {}

    @contextmanager
    def asking(self, client: str) -> Iterator[_Asker]:
        asker = self._askers.pop(client, None) or _Asker()
        self._askers[client] = asker  # now the newest
        while len(self._askers) > CLIENTS_REMEMBERED_MAX:
            del self._askers[next(iter(self._askers))]
        asker.under_way += 1
        try:
            yield asker
        finally:
            asker.under_way -= 1


async def _count_open(tx: Transaction, invoice_ids: list[str]) -> int:
    still_open = select(func.count()).where(invoices.c.id.in_(invoice_ids), invoices.c.status == Status.OPEN)
    return int(await tx.scalar(still_open) or 0) if invoice_ids else 0
