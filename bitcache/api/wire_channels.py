"""What the API says of payment channels.

As `bitcache.api.wire`, on whose types these stand. Keys, scripts, signatures over channels and transactions
are lower-case hex, as bitcoin writes them; what a `Payment` challenge holds is in `bitcache.session_auth`.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from bitcache.api.wire import Request, Response, Time

Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$", description="lower-case hex")]
ChannelId = Annotated[str, Meta(max_length=80, description="<txid>:<vout> of the deposit")]
TRANSACTION_BYTES_MAX = 4_000
"""Of a refund: one input, and an output or a few."""


class ChallengeView(Struct, frozen=True, forbid_unknown_fields=True):
    """A `Payment` challenge of intent `session`, to be echoed as it is."""

    id: Annotated[str, Meta(max_length=100)]
    realm: Annotated[str, Meta(max_length=300)]
    method: Annotated[str, Meta(max_length=20)]
    intent: Annotated[str, Meta(max_length=20)]
    request: Annotated[str, Meta(max_length=2_000)]
    expires: Annotated[str, Meta(max_length=40)]


class ExposureView(Response, frozen=True):
    """What a channel may have paid in all, by the confirmations of its deposit; from 6 on, all of it."""

    unconfirmed_sat: int
    unconfirmed_total_sat: int
    """Over all channels without a confirmation."""
    one_confirmation_sat: int
    three_confirmations_sat: int


class ChannelTermsView(Response, frozen=True):
    """On what a channel is opened now. Nothing was stored."""

    challenge: ChallengeView
    network: str
    payee_key: Hex
    expiry_height: int
    close_fee_sat: int
    """Of the deposit, set aside for the network fee of the close."""
    deposit_min_sat: int
    tip_height: int
    feerate_sat_kvb: int
    exposure: ExposureView


class DepositRequest(Request, frozen=True):
    """Terms as they were given, and the payer's part of the contract."""

    challenge: ChallengeView
    payer_key: Annotated[str, Meta(max_length=200)]
    """A compressed public key, 33 bytes in hex."""
    change_script: Annotated[str, Meta(max_length=200)]
    """scriptPubKey, segwit, to which what is left goes when the channel is closed."""


class ChannelCloseView(Response, frozen=True):
    """The transaction that spent the deposit, or is on its way to."""

    txid: str | None
    """None: not made yet."""
    reason: str
    """`payer`, `margin`, `operator`, `refunded`, `lost`."""
    confirmations: int


class CloseQuoteView(Response, frozen=True):
    """What a cooperative close takes now: sign exactly this fee and at least this amount."""

    fee_sat: int
    paid_sat_min: int


class ChannelView(Response, frozen=True):
    channel_id: ChannelId
    state: Literal["funded", "open", "closing", "closed"]
    suspended: bool
    """The deposit is not in the chain as it was: nothing is paid until it is again."""
    confirmations: int
    capacity_sat: int
    accepted_sat: int
    """The highest amount signed."""
    spent_msat: int
    """What of it was charged."""
    payable_sat_max: int
    """What may be signed in all at this depth."""
    expiry_height: int
    close_fee_sat: int
    close: ChannelCloseView | None
    close_quote: CloseQuoteView | None
    """None where nothing can be closed any more."""
    tip_height: int


class DepositView(Response, frozen=True):
    """Where to pay, with any wallet. What has arrived there already is in `channels`."""

    address: str
    script_pubkey: Hex
    channels: list[ChannelView]


class OwnChannelsRequest(Request, frozen=True):
    payer_key: Annotated[str, Meta(max_length=200)]
    at: Time
    """The time now, give or take 300 s."""
    signature: Annotated[str, Meta(max_length=200)]
    """By the payer's key: compact, 64 bytes in hex."""


class ChannelRecordView(Response, frozen=True):
    """What the payee says of the channel, signed by the payee's key of it."""

    json: str
    """Canonical JSON: acceptedCumulative, at, channelId, signature (the payer's own), spentMsat, state."""
    signature: Hex
    """Compact, over SHA-256("bitcache/v1/channel-record" || json)."""


class OwnChannelView(ChannelView, frozen=True):
    change_script: Hex
    """Of the contract: who has nothing but the backup line checks the signature in `record` with it."""
    record: ChannelRecordView


class OwnChannelsView(Response, frozen=True):
    channels: list[OwnChannelView]


class ChannelRefundRequest(Request, frozen=True):
    channel_id: ChannelId
    transaction: Annotated[str, Meta(min_length=2, max_length=2 * TRANSACTION_BYTES_MAX)]
    """Signed, in hex."""


class ChannelRefundView(Response, frozen=True):
    """The node took it."""

    txid: str
