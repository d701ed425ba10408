"""The `Payment` scheme's intent `session`: vouchers of a payment channel. Pure.

A challenge carries the terms on which a channel may be opened and, for an offer, the price of a chunk.
Nothing is kept of it. A credential echoes any challenge of ours and says what the payer does with a channel:

    open      it is this deposit, by this key, on the terms of the challenge; with a first voucher
    voucher   so much is signed away in all
    close     cooperative: so much is the payee's, at this network fee

`expires` ends opening; vouchers are taken with a challenge of any age, at the price of the day.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from bitcache.canonical_json import CanonicalValue, canonical_json
from bitcache.errors import BitcacheError
from bitcache.json_refusals import refusal_words
from bitcache.payment_scheme import (
    CURRENCY,
    METHOD,
    Challenge,
    ChallengeWriter,
    Credential,
    CredentialInvalid,
    EchoedChallenge,
    challenge_header,
    is_payment,
    parse_credential,
    timestamp,
)
from payments.channel import Balance, ChannelTerms, Voucher
from payments.channel_errors import (
    ChangeScriptRefused,
    ChannelError,
    PayerKeyInvalid,
    SignatureInvalid,
)
from payments.channel_record import Agreed
from payments.channel_script import parse_channel_id
from payments.money import Msat, Sat, sat_rounded_up
from storage import base64url

INTENT: Final = "session"
UNIT: Final = "chunk"
OPENING_S = 86_400
"""So long after a challenge was given a client should ask for a new one before it opens a channel; what
counts is the height in it (`payments.channel.TERMS_STALE_BLOCKS`)."""
PROOF_LABEL = b"bitcache/v1/channel-proof"
RECORD_LABEL = b"bitcache/v1/channel-record"
_AMOUNT = re.compile("0|[1-9][0-9]{0,15}")
_HEX = re.compile("(?:[0-9a-f]{2})+")


class SessionRefused(BitcacheError):
    """A voucher that pays for nothing, with the challenge that another one may answer. `cause` says why."""

    def __init__(self, cause: ChannelError, challenge: Challenge) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.www_authenticate = (challenge_header(challenge),)


@dataclass(frozen=True, slots=True)
class OpenAction:
    voucher: Voucher
    payer_key: bytes
    change_script_pubkey: bytes
    terms: ChannelTerms
    """Those of the challenge."""


@dataclass(frozen=True, slots=True)
class VoucherAction:
    voucher: Voucher


@dataclass(frozen=True, slots=True)
class CloseAction:
    channel_id: str
    agreed: Agreed


Action = OpenAction | VoucherAction | CloseAction


class SessionChallenger:
    """Writes session challenges and reads the credentials that echo them. `key` as for `ChallengeWriter`."""

    def __init__(self, *, key: bytes, realm: str) -> None:
        self._writer = ChallengeWriter(key=key, realm=realm, intent=INTENT)

    @property
    def realm(self) -> str:
        return self._writer.realm

    def challenge(self, terms: ChannelTerms, *, price_msat: Msat | None, now: int) -> Challenge:
        """`price_msat`: of a chunk of the offer that it is for; None: it is for no offer."""
        details: dict[str, CanonicalValue] = {
            "closeFee": terms.close_fee_sat,
            "expiry": terms.expiry_height,
            "issued": terms.issued_height,
            "minDeposit": terms.deposit_min_sat,
            "network": terms.network,
            "nonce": base64url.encode(terms.nonce),
            "payeeKey": terms.payee_key.hex(),
        }
        if price_msat is not None:
            details["priceMsat"] = str(price_msat)
        request: dict[str, CanonicalValue] = {
            "amount": str(sat_rounded_up(price_msat or Msat(0))),
            "currency": CURRENCY,
            "methodDetails": details,
            "unitType": UNIT,
        }
        return self._writer.write(request, now + OPENING_S)

    def terms(self, echo: EchoedChallenge) -> ChannelTerms:
        """Those of a challenge of ours. Raises CredentialInvalid."""
        return terms_of(self._writer.recognise(echo).request)

    def action(self, credential: Credential) -> Action:
        """What the payer does.

        Raises CredentialInvalid, OutpointMalformed, PayerKeyInvalid, ChangeScriptRefused, SignatureInvalid.
        """
        challenge = self._writer.recognise(credential.challenge)
        try:
            payload = msgspec.json.decode(credential.payload, type=_Payload)
        except (ValueError, RecursionError) as exc:
            raise CredentialInvalid(refusal_words(exc)) from exc
        parse_channel_id(payload.channel_id)
        amount_sat = _sat(payload.cumulative_amount, "cumulativeAmount")
        signature = octets(payload.signature, SignatureInvalid())
        if isinstance(payload, _CloseWire):
            fee_sat = _sat(payload.close_fee, "closeFee")
            return CloseAction(payload.channel_id, Agreed(amount_sat, fee_sat, signature))
        voucher = Voucher(payload.channel_id, amount_sat, signature)
        if isinstance(payload, _VoucherWire):
            return VoucherAction(voucher)
        return OpenAction(
            voucher,
            octets(payload.payer_key, PayerKeyInvalid()),
            octets(payload.change_script, ChangeScriptRefused()),
            terms_of(challenge.request),
        )


def session_credential(authorization: str | None) -> Credential | None:
    """The credential of a request that pays with a channel; None: it does not. Raises CredentialInvalid."""
    if authorization is None or not is_payment(authorization):
        return None
    credential = parse_credential(authorization)
    return credential if credential.challenge.intent == INTENT else None


def receipt_header(channel_id: str, balance: Balance, *, now: int) -> str:
    """The value of `Payment-Receipt`: what the channel has signed away, and what of it is charged."""
    receipt: dict[str, CanonicalValue] = {
        "acceptedCumulative": str(balance.accepted_sat),
        "intent": INTENT,
        "method": METHOD,
        "reference": channel_id,
        "spent": str(sat_rounded_up(balance.spent_msat)),
        "spentMsat": str(balance.spent_msat),
        "status": "success",
        "timestamp": timestamp(now),
    }
    return base64url.encode(canonical_json(receipt))


def proof_digest(realm: str, at: int) -> bytes:
    """What a payer signs to be told of their own channels: 32 bytes."""
    return hashlib.sha256(PROOF_LABEL + realm.encode() + b"\0" + at.to_bytes(8, "big")).digest()


def record_json(
    *,
    channel_id: str,
    accepted_sat: Sat,
    signature: bytes | None,
    spent_msat: Msat,
    state: str,
    at: int,
) -> bytes:
    """What the payee says of a channel, in canonical JSON.

    `signature`: the payer's own over `accepted_sat`; the record says "" before the first.
    """
    record: dict[str, CanonicalValue] = {
        "acceptedCumulative": str(accepted_sat),
        "at": at,
        "channelId": channel_id,
        "signature": (signature or b"").hex(),
        "spentMsat": str(spent_msat),
        "state": state,
    }
    return canonical_json(record)


def record_digest(record: bytes) -> bytes:
    """What the payee signs: 32 bytes."""
    return hashlib.sha256(RECORD_LABEL + record).digest()


def octets(text: str, refusal: ChannelError) -> bytes:
    """Of lower-case hex: another spelling of the same bytes is refused as other bytes are."""
    if not _HEX.fullmatch(text):
        raise refusal
    return bytes.fromhex(text)


class _DetailsWire(Struct, frozen=True, rename="camel"):
    network: str
    nonce: str
    payee_key: str
    expiry: int
    close_fee: int
    min_deposit: int
    issued: int


class _RequestWire(Struct, frozen=True):
    details: _DetailsWire = msgspec.field(name="methodDetails")


class _OpenWire(Struct, frozen=True, rename="camel", tag_field="action", tag="open"):
    """Here and below: members that are not ours are the client's own and are passed over."""

    channel_id: str
    payer_key: str
    change_script: str
    cumulative_amount: str
    signature: str


class _VoucherWire(Struct, frozen=True, rename="camel", tag_field="action", tag="voucher"):
    channel_id: str
    cumulative_amount: str
    signature: str


class _CloseWire(Struct, frozen=True, rename="camel", tag_field="action", tag="close"):
    channel_id: str
    cumulative_amount: str
    close_fee: str
    signature: str


_Payload = _OpenWire | _VoucherWire | _CloseWire


def terms_of(request: str) -> ChannelTerms:
    """Those in a challenge's `request`. Raises ValueError, RecursionError if nobody of us wrote it."""
    details = msgspec.json.decode(base64url.decode(request), type=_RequestWire).details
    return ChannelTerms(
        network=details.network,
        nonce=base64url.decode(details.nonce),
        payee_key=bytes.fromhex(details.payee_key),
        expiry_height=details.expiry,
        close_fee_sat=Sat(details.close_fee),
        deposit_min_sat=Sat(details.min_deposit),
        issued_height=details.issued,
    )


def _sat(text: str, name: str) -> Sat:
    if not _AMOUNT.fullmatch(text):
        raise CredentialInvalid(f"payload.{name} must be a decimal number of sats, in a string")
    return Sat(int(text))
