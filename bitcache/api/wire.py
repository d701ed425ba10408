"""What goes over the wire: the bodies of /api/v1, one struct each, used by server, client and OpenAPI alike.

Binary values are base64url without padding. Times are Unix seconds. Amounts say their unit. Answers may
gain fields within v1 and clients ignore those they do not know; requests with unknown fields are refused.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from bitcache.ids import ID_PATTERN

API = "/api/v1"
"""What every path begins with."""

Id = Annotated[str, Meta(pattern=f"^{ID_PATTERN}$", description="128 random bits, lower-case base32")]
Binary = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]*$", description="base64url without padding")]
Digest = Annotated[
    str, Meta(pattern="^[A-Za-z0-9_-]{43}$", description="32 bytes, base64url without padding")
]
PriceMsat = Annotated[int, Meta(ge=0, le=2_100_000_000_000_000_000, multiple_of=1000)]
MeteredMsat = Annotated[int, Meta(ge=1, le=1_000_000_000)]
AmountSat = Annotated[int, Meta(ge=1, le=2_100_000_000_000_000)]
Confirmations = Annotated[int, Meta(ge=0, le=100)]
TIME_MAX = 253_402_300_799
"""The end of the year 9999, which every date library can show."""
Time = Annotated[int, Meta(ge=0, le=TIME_MAX)]


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every request body."""


class Response(Struct, frozen=True):
    """Base of every response body."""


# --- problems -----------------------------------------------------------------------------------------------


class WorkView(Response, frozen=True):
    """A nonce is asked for such that SHA-256(SHA-256(challenge) || nonce) begins with `bits` zero bits."""

    challenge: Binary
    bits: int
    expires_at: Time


class ProblemView(Response, frozen=True, omit_defaults=True):
    """RFC 9457 problem details. `type` is `/problems/<name>`; the extra members are there where they help."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    invoice_id: str | None = None
    retry_after_s: int | None = None
    work: WorkView | None = None
    required_sat: int | None = None
    """Of a voucher that does not cover what was asked for: what to sign in all."""
    accepted_sat: int | None = None
    spent_msat: int | None = None
    max_sat: int | None = None
    """Of a voucher for too much: what may be signed in all."""


# --- accounts -----------------------------------------------------------------------------------------------


class AccountRequest(Request, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    invite: str | None = None


class TokenRequest(Request, frozen=True):
    label: Annotated[str, Meta(max_length=80)] = ""


class TokenView(Response, frozen=True):
    """The token itself is shown this once."""

    token_id: Id
    token: str
    account_id: Id


class WalletView(Response, frozen=True):
    descriptor: str
    first_addresses: list[str]
    next_index: int
    highest_index_used: int | None
    """Highest index handed out; None before the first."""
    unused_streak: int
    """Handed-out addresses in a row, up to the highest, that were never paid."""
    gap_limit: int
    """How many of those the wallet bridges, as its seller says."""
    advice: str | None
    """What to do about the gap limit, when something is to be done."""
    pending_descriptor: str | None
    pending_until: Time | None
    """A change of wallet takes effect only then."""


class PayoutPreviewRequest(Request, frozen=True):
    payout_descriptor: Annotated[str, Meta(min_length=1, max_length=4000)]


class PayoutPreview(Response, frozen=True):
    """What setting this wallet would do. Nothing was stored."""

    descriptor: str
    """As it would be kept: one receive branch, with its checksum."""
    first_addresses: list[str]
    note: str
    """What was assumed in reading the seller's words; may be empty."""
    effective_at: Time
    """Set now, from when on buyers would pay into it."""


Settlement = Literal["direct", "hosted"]
"""`direct`: buyers pay the seller's own wallet. `hosted`: the operator's, who owes it to the seller."""
PayoutEvery = Literal["never", "day", "week", "month"]


class PayoutTargetView(Response, frozen=True):
    kind: Literal["address", "wallet"]
    """`wallet`: each payout gets the next address of the seller's wallet."""
    address: str | None
    """Of `address`."""


class PayoutPlanView(Response, frozen=True):
    """Where hosted earnings are paid out to, and when without being asked."""

    target: PayoutTargetView | None
    """None: there is none yet."""
    pending_target: PayoutTargetView | None
    pending_until: Time | None
    """A change of target takes effect only then."""
    threshold_sat: int | None
    every: PayoutEvery
    next_at: Time | None


class PendingWallet(Response, frozen=True):
    descriptor: str
    effective_at: Time


class AccountView(Response, frozen=True):
    account_id: Id
    name: str
    created_at: Time
    bytes_stored: int
    bytes_max: int
    price_floor_sat: int
    """The least price of an offer that is not free."""
    payout: WalletView | None
    """The seller's wallet."""
    pending_wallet: PendingWallet | None
    """A change of it that waits; of a first one too."""
    settlement: Settlement
    """Who new invoices are paid to."""
    settlement_note: str
    """What that means, in words."""
    hosted_available: bool
    """Whether `hosted` may be chosen here."""
    metered_available: bool
    """Whether files can be sold per chunk here, which is always hosted."""
    fee_percent: str
    """What the operator keeps of each new hosted sale: this part of the price, and `fee_sat`."""
    fee_sat: int
    payout_plan: PayoutPlanView


class AccountPatch(Request, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=80)] | UnsetType = UNSET
    payout_descriptor: Annotated[str, Meta(min_length=1, max_length=4000)] | UnsetType = UNSET
    start_index: Annotated[int, Meta(ge=0, le=2_000_000_000)] | UnsetType = UNSET
    gap_limit: Annotated[int, Meta(ge=20, le=10_000)] | UnsetType = UNSET
    """Of the wallet that is paid into now, or is set with it."""
    settlement: Settlement | UnsetType = UNSET
    """Of new invoices."""
    payout_address: Annotated[str, Meta(min_length=1, max_length=120)] | UnsetType | None = UNSET
    """null: the next address of the wallet."""
    payout_threshold_sat: AmountSat | UnsetType | None = UNSET
    payout_every: PayoutEvery | UnsetType = UNSET


# --- files and parcels --------------------------------------------------------------------------------------


class FileRequest(Request, frozen=True):
    size_bytes: Annotated[int, Meta(ge=56, le=2**44)]
    """Of the ciphertext: header and tag are the least."""


class FileView(Response, frozen=True):
    file_id: Id
    state: Literal["uploading", "complete"]
    size_bytes: int
    part_size_bytes: int
    parts_present: list[int]
    root: Digest | None
    created_at: Time
    expires_at: Time | None
    """When an unfinished upload, or a file in no parcel, is swept away."""


class FileCompletion(Request, frozen=True):
    root: Digest


class ParcelFileRequest(Request, frozen=True):
    file_id: Id
    wrapped_key: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{80}$")]
    """nonce[12] || ciphertext[32] || tag[16]."""


class ParcelRequest(Request, frozen=True):
    files: Annotated[list[ParcelFileRequest], Meta(min_length=1, max_length=10_000)]
    meterable: bool = False


class ParcelSeal(Request, frozen=True):
    metadata: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]+$", max_length=5_600_000)]
    release_secret: Digest


class ParcelFileView(Response, frozen=True):
    file_id: Id
    size_bytes: int
    root: Digest
    wrapped_key: Binary


class ParcelView(Response, frozen=True):
    parcel_id: Id
    state: Literal["open", "sealed"]
    created_at: Time
    sealed_at: Time | None
    meterable: bool
    size_bytes: int
    files_count: int
    offers: list[Id]


# --- offers -------------------------------------------------------------------------------------------------


class FixedPrice(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="fixed"):
    """Of the whole parcel, on chain."""

    amount_msat: PriceMsat


class MeteredPrice(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="per_chunk"):
    """Of each chunk of ciphertext that was started, through a payment channel."""

    amount_msat: MeteredMsat


class MeteredView(Response, frozen=True, tag_field="kind", tag="per_chunk"):
    """As MeteredPrice, and what it comes to.

    Neither `paid_retention_days` nor `downloads_left` of the offer is for who pays so.
    """

    amount_msat: MeteredMsat
    chunk_bytes: int
    chunks: int
    """Of all files; each file's last may be shorter, and costs as much."""
    whole_msat: int
    """What a download of every chunk costs."""


class PolicyView(Struct, frozen=True, forbid_unknown_fields=True):
    """Confirmations at which ciphertext is served, and the key given."""

    bytes_at: Confirmations = 1
    key_at: Confirmations = 1


class OfferRequest(Request, frozen=True):
    """At least one of the two prices; `metered` for a parcel that is meterable."""

    parcel_id: Id
    price: FixedPrice | None = None
    metered: MeteredPrice | None = None
    policy: PolicyView = PolicyView()
    expires_at: Time | None = None
    max_downloads: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None


class OfferPatch(Request, frozen=True):
    """null takes a price away; one of the two must stay."""

    price: FixedPrice | UnsetType | None = UNSET
    metered: MeteredPrice | UnsetType | None = UNSET
    expires_at: Time | UnsetType | None = UNSET
    max_downloads: Annotated[int, Meta(ge=1, le=1_000_000_000)] | UnsetType | None = UNSET
    closed: Literal[True] | UnsetType = UNSET


class OfferView(Response, frozen=True):
    """What anyone with the offer's id may see. Names are in `metadata`, sealed under the link secret."""

    offer_id: Id
    parcel_id: Id
    state: Literal["open", "closed", "expired", "sold_out", "damaged", "taken_down"]
    seller_name: str
    settlement: Settlement
    """Who is paid `price`: the seller's own wallet, or the operator's for the seller, as with `metered`."""
    network: str
    price: FixedPrice | None
    """None: it is sold per chunk alone."""
    metered: MeteredView | None
    """None: it is not sold per chunk."""
    policy: PolicyView
    created_at: Time
    expires_at: Time | None
    downloads_left: int | None
    paid_retention_days: int
    price_hold_s: int
    size_bytes: int
    files: list[ParcelFileView]
    metadata: Binary


class OfferSummary(Response, frozen=True):
    """One line of a seller's list."""

    offer_id: Id
    parcel_id: Id
    state: Literal["open", "closed", "expired", "sold_out", "damaged", "taken_down"]
    price: FixedPrice | None
    metered: MeteredView | None
    policy: PolicyView
    created_at: Time
    expires_at: Time | None
    max_downloads: int | None
    sales: int
    size_bytes: int
    files_count: int


# --- invoices and grants ------------------------------------------------------------------------------------


class WorkProof(Struct, frozen=True, forbid_unknown_fields=True):
    """A challenge of `proof-of-work-required` for the same offer and claim hash, and what solves it."""

    challenge: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{120}$")]
    nonce: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{11}$")]


class InvoiceRequest(Request, frozen=True):
    claim_hash: Digest
    """SHA-256 of the claim secret. The same hash on the same offer is the same invoice."""
    work: WorkProof | UnsetType = UNSET


class ReceivedOutputView(Response, frozen=True):
    txid: str
    vout: int
    amount_sat: int
    confirmations: int
    presence: Literal["block", "mempool", "missing", "conflicted", "gone"]
    first_seen_at: Time
    height: int | None
    """Of its block."""


RefundState = Literal["requested", "approved", "batched", "done", "cancelled", "declined"]


class RefundView(Response, frozen=True):
    """Money on its way back to a buyer."""

    refund_id: Id
    amount_sat: int
    """The network's fee comes out of it."""
    state: RefundState
    requested_at: Time
    ready_at: Time
    """Not paid before."""
    reason: str | None
    """Why it was declined or cancelled."""
    txid: str | None
    """Of the transaction that pays it, once that was sent."""
    network_fee_sat: int | None
    """What that transaction takes of it."""
    confirmations: int | None
    """Of that transaction; 0 in the mempool."""


class InvoiceRefundView(Response, frozen=True):
    """What of an invoice's money is the buyer's to ask back, on which terms, and what was asked back."""

    paid_by: Literal["operator", "seller"]
    """Who has the money. The server pays for the operator; a seller must pay by hand."""
    refundable_sat: int
    """What asking now would give back; 0: nothing, or not yet."""
    whole: bool
    """All of it was asked back: nothing opens for it any more, whatever comes."""
    address: str | None
    """The first one that was named, and the only one that is ever paid."""
    approval: bool
    """Whether the seller or the operator must approve of what is asked back now."""
    delay_s: int
    """Not paid sooner after it was asked."""
    fee_percent_max: int
    """The network's fee comes out of it; as long as that would be more than this part, it waits."""
    refunds: list[RefundView]
    """Newest first."""


class InvoiceView(Response, frozen=True):
    invoice_id: Id
    reference: str
    offer_id: Id
    parcel_id: Id
    status: Literal["open", "seen", "confirming", "settled", "expired", "cancelled"]
    flags: list[str]
    created_at: Time
    price_sat: int
    received_sat: int
    confirmed_sat: int
    due_sat: int
    owed_sat: int
    """Money that settles nothing and is above a tip: the seller owes it to the buyer."""
    address: str | None
    """Hidden when the invoice expired and nothing came."""
    uri: str | None
    """BIP321, for what is still due."""
    valid_until: Time
    """Until when the price is held; moved by our own outages."""
    confirmations: int
    """Of the payment: the depth at which it covers the price; 0 in the mempool, -1 while it does not."""
    policy: PolicyView
    bytes_allowed: bool
    key_allowed: bool
    suspended: bool
    """It was unlocked, and the chain took the payment back."""
    outputs: list[ReceivedOutputView]
    node_online: bool
    """False: do not pay now."""
    now: Time
    taken_down: bool
    """By the operator: nothing opens any more, and what was paid is owed."""
    refund: InvoiceRefundView | None = None
    """None as long as nothing came."""


class InvoiceSummary(Response, frozen=True):
    """One line of a seller's list."""

    invoice_id: Id
    reference: str
    offer_id: Id
    parcel_id: Id
    status: str
    flags: list[str]
    created_at: Time
    price_sat: int
    received_sat: int
    due_sat: int
    owed_sat: int
    txids: list[str]
    settlement: Settlement
    """Frozen when the invoice was made."""
    fee_sat: int
    """The operator's part of the price, of a hosted sale."""
    net_sat: int
    """The price without it."""


class ClaimRequest(Request, frozen=True):
    claim_secret: Digest | UnsetType = UNSET
    """Left out by who sends a paid challenge in `Authorization: Payment` instead."""


class ClaimView(Response, frozen=True):
    """What the policy allows now. Claim again before the token expires, and for a key not there yet."""

    grant_id: Id
    grant_token: str
    grant_expires_at: Time
    bytes_allowed: bool
    key_allowed: bool
    release_secret: Digest | None
    files: list[ParcelFileView]
    metadata: Binary
    retained_until: Time
    """Until when the bytes are kept, whatever the seller does."""


# --- lists, health ------------------------------------------------------------------------------------------


class OfferList(Response, frozen=True):
    items: list[OfferSummary]
    next: str | None
    """Pass as `after` for the next page; None at the end."""


class ParcelList(Response, frozen=True):
    items: list[ParcelView]
    next: str | None


class InvoiceList(Response, frozen=True):
    items: list[InvoiceSummary]
    next: str | None


class HealthView(Response, frozen=True):
    status: Literal["ok", "degraded"]
    node_online: bool
    trouble: str | None
    """What is wrong with the node, for the operator."""
    version: str
