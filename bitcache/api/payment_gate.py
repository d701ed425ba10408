"""Who may have content: grants, and whoever pays over HTTP itself with a challenge. Shell.

A client that repeats its request with a challenge it has paid is never asked to pay twice:

    bytes allowed                 admitted, with a Payment-Receipt
    unlocked, then taken back     403 grant-suspended
    taken down                    451 taken-down
    something came, not enough    held for a while, then 503 payment-unconfirmed without a challenge
    nothing came, node blind      held for a while, then 503 node-offline: the payment may be there
    nothing came                  held for a while, then 402 with the very same challenge
    nothing came, price expired   held for a while, then 402 with a new challenge

An offer that is sold per chunk has a challenge of intent `session` beside these, or alone; who pays by one is
no business of this module (`bitcache.metered`).

Clients exist that pay every challenge they get, three times within 10 ms; the hold gives the node time to see
the first payment before they are told that there is none.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never
from urllib.parse import urlsplit

from bitcache.api.wire import API, InvoiceView
from bitcache.channels import Channels
from bitcache.claims import Claims
from bitcache.config import Config
from bitcache.errors import (
    GrantForeign,
    GrantMissing,
    GrantSuspended,
    MeteredOnly,
    NodeOffline,
    OfferUnavailable,
    TakenDown,
    TokenInvalid,
    WorkRequired,
)
from bitcache.events import EventFeed
from bitcache.grants import Entry, GrantBook
from bitcache.metered import nothing_sold
from bitcache.on_sale import SaleOffer, sale_state, sale_term, selling_offer
from bitcache.payment_auth import (
    NONCE_BYTES,
    BoundChallenge,
    Challenger,
    Charge,
    PaymentUnconfirmed,
    accepts_charge,
    receipt_header,
)
from bitcache.payment_scheme import CHALLENGE_KEY_PURPOSE, Challenge, PaymentDemanded, is_payment
from bitcache.purchases import Purchases
from bitcache.sealing import Sealer
from payments.channel_errors import ChannelsOff
from payments.errors import NodeUnavailable
from payments.money import Sat
from payments.ports import Clock, Store, Transaction
from payments.registry import InvoiceRegistry

HOLD_S = 25.0
"""Clients of the scheme wait 35 s for the answer to a paid request."""
HELD_MAX = 1_000
"""Requests held at the same time; those beyond are answered at once: waiting must not cost the server."""
HELD_PER_INVOICE_MAX = 4
"""Challenges cost nothing to get: one of them must not take all the places."""
RETRY_AFTER_S = 30
CLAIM_KEY_PURPOSE = "payment-claim"


class Verdict(Enum):
    """What an invoice's standing means for who echoes its challenge."""

    ADMITTED = "admitted"
    TAKEN_DOWN = "taken down"
    SUSPENDED = "suspended"
    UNCONFIRMED = "unconfirmed"
    UNPAID = "unpaid"


def verdict(invoice: InvoiceView) -> Verdict:
    """Pure. Any output at all, even one that was lost again, means that it is not UNPAID."""
    if invoice.taken_down:
        return Verdict.TAKEN_DOWN
    if invoice.bytes_allowed:
        return Verdict.ADMITTED
    if invoice.suspended:
        return Verdict.SUSPENDED
    return Verdict.UNCONFIRMED if invoice.outputs else Verdict.UNPAID


def reference_of(invoice: InvoiceView) -> str:
    """What a receipt names: the first outpoint in a block, else in the mempool, else the invoice. Pure."""
    for presence in ("block", "mempool"):
        for output in invoice.outputs:
            if output.presence == presence:
                return f"{output.txid}:{output.vout}"
    return invoice.invoice_id


@dataclass(frozen=True, slots=True)
class Ask:
    """What of a content request matters for access."""

    offer_id: str
    authorization: str | None
    client: str
    """Whose cap of unpaid invoices counts."""
    wants_invoice: bool
    """It can pay a bound challenge, and it is one that is meant to fetch the whole file."""

    @classmethod
    def of(cls, *, method: str, headers: Mapping[str, str], offer_id: str, client: str) -> "Ask":
        """Only a whole GET may cost the seller an address: crawlers send HEAD and Range by the dozen."""
        return cls(
            offer_id=offer_id,
            authorization=headers.get("Authorization"),
            client=client,
            wants_invoice=method == "GET"
            and "Range" not in headers
            and accepts_charge(headers.get("Accept-Payment", "")),
        )


@dataclass(frozen=True, slots=True)
class Admission:
    """The grant under which the content is served."""

    grant: Entry
    headers: Mapping[str, str]
    """To send with the content: `Payment-Receipt` for a paid challenge."""


class PaymentGate:
    """In front of every content request and, for paid challenges, of claims."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        registry: InvoiceRegistry,
        purchases: Purchases,
        claims: Claims,
        book: GrantBook,
        feed: EventFeed,
        sealer: Sealer,
        channels: Channels | None,
        clock: Clock,
    ) -> None:
        self.hold_s = HOLD_S
        """How long a paid challenge waits for its money."""
        self._config = config
        self._store = store
        self._registry = registry
        self._purchases = purchases
        self._claims = claims
        self._book = book
        self._feed = feed
        self._channels = channels
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._challenger = Challenger(
            challenge_key=sealer.mac_key(CHALLENGE_KEY_PURPOSE),
            claim_key=sealer.mac_key(CLAIM_KEY_PURPOSE),
            realm=urlsplit(config.public_url).netloc,
        )

    async def admit(self, ask: Ask) -> Admission:
        """Let the request in, or raise the answer.

        Raises PaymentDemanded, PaymentUnconfirmed, CredentialInvalid, TokenInvalid, GrantTokenInvalid,
        GrantForeign, GrantSuspended, NotFound, OfferUnavailable, TakenDown, NodeOffline, and for those who
        ask for an invoice what `Purchases.buy` raises.
        """
        if ask.authorization is None:
            raise await self._demand(ask)
        if is_payment(ask.authorization):
            return await self._redeem(ask, ask.authorization)
        scheme, _, token = ask.authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise TokenInvalid(
                "Content takes `Authorization: Bearer bcg_...` or `Payment`. Claim for a token."
            )
        try:
            return Admission(await self._book.check(token.strip(), ask.offer_id), {})
        except GrantMissing as missing:
            raise await self._not_yet(missing, ask) from missing

    def claim_secret(self, authorization: str) -> bytes:
        """The claim secret, of its own invoice only, that an echoed challenge stands for.

        Raises CredentialInvalid.
        """
        return self._challenger.claim_secret(self._challenger.recognise(authorization).nonce)

    # Challenges

    async def _demand(self, ask: Ask) -> PaymentDemanded:
        """The answer to who has not paid: invitations, or for who can pay it a bound challenge."""
        if not ask.wants_invoice:
            return await self._invite(ask.offer_id)
        nonce = os.urandom(NONCE_BYTES)
        claim_hash = self._challenger.claim_hash(nonce)
        try:
            purchase = await self._purchases.buy(ask.offer_id, claim_hash, ask.client)
        except (WorkRequired, MeteredOnly, OfferUnavailable):
            # This dialect has no place for a proof of work: where to ask with one is all that can be said.
            # What cannot be bought as a whole (any more) may be sold per chunk.
            return await self._invite(ask.offer_id)
        return await self._beside(ask.offer_id, self._challenger.bound(self._charge(purchase.invoice, nonce)))

    async def _invite(self, offer_id: str) -> PaymentDemanded:
        """Every way of paying for the offer now. Raises NotFound, TakenDown, OfferUnavailable, ChannelsOff,
        NodeOffline.
        """
        offer, sold_out = await self._on_sale(offer_id)
        whole = () if sold_out or not offer.sold_whole else (self._invitation(offer),)
        challenges = (*whole, *await self._per_chunk(offer))
        if challenges:
            return PaymentDemanded(*challenges)
        if offer.metered_msat is None:
            raise OfferUnavailable(offer_id, "sold_out")
        raise ChannelsOff if self._channels is None else NodeOffline

    async def _beside(self, offer_id: str, bound: Challenge) -> PaymentDemanded:
        """A challenge of one invoice and, where the offer is sold per chunk too, how to pay so."""
        if self._channels is None:
            return PaymentDemanded(bound)
        try:
            offer, _ = await self._on_sale(offer_id)
        except (OfferUnavailable, TakenDown):
            return PaymentDemanded(bound)
        return PaymentDemanded(bound, *await self._per_chunk(offer))

    async def _on_sale(self, offer_id: str) -> tuple[SaleOffer, bool]:
        """The offer, and whether it is sold out for who pays for the whole."""
        now = self._clock()

        async def looked(tx: Transaction) -> tuple[SaleOffer, bool]:
            offer = await selling_offer(tx, offer_id, nothing_sold, now)
            return offer, await sale_state(tx, offer, self._registry.sold, now) == "sold_out"

        return await self._store.read(looked)

    async def _per_chunk(self, offer: SaleOffer) -> tuple[Challenge, ...]:
        if self._channels is None or offer.metered_msat is None:
            return ()
        try:
            return (await self._channels.desk.invitation(price_msat=offer.metered_msat),)
        except NodeUnavailable:
            return ()

    def _invitation(self, offer: SaleOffer) -> Challenge:
        now = self._clock()
        return self._challenger.invitation(
            amount_sat=sale_term(offer, self._config, now).amount_sat,
            network=self._config.network,
            confirmations=offer.bytes_at,
            invoice_url=self._url(f"offers/{offer.id}/invoices"),
            expires_at=now + self._config.price_hold_s,
        )

    def _charge(self, invoice: InvoiceView, nonce: bytes) -> Charge:
        return Charge(
            amount_sat=Sat(invoice.due_sat),
            invoice_id=invoice.invoice_id,
            address=invoice.address,
            network=self._config.network,
            confirmations=invoice.policy.bytes_at,
            uri=invoice.uri,
            status_url=self._url(f"invoices/{invoice.invoice_id}"),
            nonce=nonce,
            valid_until=invoice.valid_until,
        )

    def _url(self, path: str) -> str:
        return f"{self._config.public_url}{API}/{path}"

    # Paid challenges

    async def _redeem(self, ask: Ask, authorization: str) -> Admission:
        bound = self._challenger.recognise(authorization)
        if (await self._purchases.view(bound.invoice_id)).offer_id != ask.offer_id:
            raise GrantForeign
        invoice = await self._awaited(bound.invoice_id)
        match verdict(invoice):
            case Verdict.ADMITTED:
                return await self._admission(invoice, bound, ask.offer_id)
            case Verdict.TAKEN_DOWN:
                raise TakenDown(ask.offer_id)
            case Verdict.SUSPENDED:
                raise GrantSuspended(invoice.invoice_id)
            case Verdict.UNCONFIRMED:
                raise _unconfirmed(invoice)
            case Verdict.UNPAID:
                raise await self._unpaid(invoice, bound, ask)
            case _ as never:
                assert_never(never)

    async def _admission(self, invoice: InvoiceView, bound: BoundChallenge, offer_id: str) -> Admission:
        secret = self._challenger.claim_secret(bound.nonce)
        claim = await self._claims.claim(invoice.invoice_id, secret)
        receipt = receipt_header(
            reference=reference_of(invoice), invoice_id=invoice.invoice_id, now=self._clock()
        )
        return Admission(await self._book.check(claim.grant_token, offer_id), {"Payment-Receipt": receipt})

    async def _unpaid(self, invoice: InvoiceView, bound: BoundChallenge, ask: Ask) -> Exception:
        if not invoice.node_online:
            return NodeOffline()
        if self._clock() < bound.expires_at:
            # The same recipient: a client that is idempotent per recipient does not pay it again.
            return await self._beside(ask.offer_id, bound.challenge)
        return await self._demand(ask)

    async def _not_yet(self, missing: GrantMissing, ask: Ask) -> Exception:
        """The answer to a grant whose bytes are not allowed yet. Its holder has an invoice: never another."""
        if missing.invoice_id is not None:
            invoice = await self._purchases.view(missing.invoice_id)
            if verdict(invoice) is Verdict.UNCONFIRMED:
                return _unconfirmed(invoice)
        return await self._invite(ask.offer_id)

    async def _awaited(self, invoice_id: str) -> InvoiceView:
        """The invoice once it is neither unconfirmed nor unpaid, or as it stands when the wait is over."""
        with self._feed.subscribe(invoice_id) as changes:
            invoice = await self._purchases.view(invoice_id)
            if self._held[invoice_id] >= HELD_PER_INVOICE_MAX or self._held.total() >= HELD_MAX:
                return invoice
            self._held[invoice_id] += 1
            try:
                async with asyncio.timeout(self.hold_s):
                    while verdict(invoice) in (Verdict.UNCONFIRMED, Verdict.UNPAID):
                        await changes.next()
                        invoice = await self._purchases.view(invoice_id)
            except TimeoutError:
                return await self._purchases.view(invoice_id)
            finally:
                self._held[invoice_id] -= 1
                if not self._held[invoice_id]:
                    del self._held[invoice_id]
            return invoice


def _unconfirmed(invoice: InvoiceView) -> PaymentUnconfirmed:
    return PaymentUnconfirmed(
        invoice_id=invoice.invoice_id,
        due_sat=Sat(invoice.due_sat),
        expired=invoice.status == "expired",
        retry_after_s=RETRY_AFTER_S,
    )
