"""The `Payment` scheme's intent `charge`: one payment for one invoice. Pure.

Two kinds of challenge:

    invitation   names the price and where to ask for an invoice; nothing was created for it
    bound        names one fresh invoice, its address and a nonce; the claim secret of that invoice is derived
                 from the nonce, so the same echoed challenge claims the same invoice again, for ever
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from bitcache.canonical_json import CanonicalValue, canonical_json
from bitcache.errors import BitcacheError
from bitcache.json_refusals import refusal_words
from bitcache.payment_scheme import (
    CURRENCY,
    EXPIRES,
    METHOD,
    Challenge,
    ChallengeWriter,
    CredentialInvalid,
    parse_credential,
    timestamp,
)
from payments.money import Sat
from storage import base64url

INTENT: Final = "charge"
NONCE_BYTES = 16


@dataclass(frozen=True, slots=True)
class BoundChallenge:
    """A challenge that came back, and that we wrote."""

    challenge: Challenge
    invoice_id: str
    nonce: bytes
    expires_at: int


@dataclass(frozen=True, slots=True)
class Charge:
    """What a bound challenge asks for."""

    amount_sat: Sat
    invoice_id: str
    address: str | None
    """None when there is nothing to pay."""
    network: str
    confirmations: int
    uri: str | None
    """BIP321."""
    status_url: str
    nonce: bytes
    """16 random bytes, made for this invoice alone."""
    valid_until: int


class PaymentUnconfirmed(BitcacheError):
    """Money came for this invoice, not (yet) enough or not deep enough. Never answered with a challenge."""

    def __init__(self, *, invoice_id: str, due_sat: Sat, expired: bool, retry_after_s: int) -> None:
        if expired:
            words = (
                "A payment arrived, but not enough before the price expired. Renew the invoice; it counts."
            )
        elif due_sat:
            words = f"A payment arrived, and {due_sat} sat are still due to the same address."
        else:
            words = (
                "The payment arrived and is not deep enough in the chain yet. Do not pay again; ask again."
            )
        super().__init__(words)
        self.invoice_id = invoice_id
        self.retry_after_s = retry_after_s


class Challenger:
    """Writes challenges and recognises them. `challenge_key` and `claim_key` are 32 secret bytes each."""

    def __init__(self, *, challenge_key: bytes, claim_key: bytes, realm: str) -> None:
        self._writer = ChallengeWriter(key=challenge_key, realm=realm, intent=INTENT)
        self._claim_key = claim_key

    def invitation(
        self, *, amount_sat: Sat, network: str, confirmations: int, invoice_url: str, expires_at: int
    ) -> Challenge:
        """A challenge without recipient: POST to `invoice_url` for one. Costs nothing to give out."""
        details: dict[str, CanonicalValue] = {
            "confirmations": confirmations,
            "invoiceUrl": invoice_url,
            "network": network,
        }
        return self._writer.write({**_charge(amount_sat), "methodDetails": details}, expires_at)

    def bound(self, charge: Charge) -> Challenge:
        """A challenge that can be paid, for one invoice."""
        details: dict[str, CanonicalValue] = {
            "confirmations": charge.confirmations,
            "network": charge.network,
            "nonce": base64url.encode(charge.nonce),
            "statusUrl": charge.status_url,
        }
        request: dict[str, CanonicalValue] = {**_charge(charge.amount_sat), "externalId": charge.invoice_id}
        if charge.uri is not None:
            details["uri"] = charge.uri
        if charge.address is not None:
            request["recipient"] = charge.address
        return self._writer.write({**request, "methodDetails": details}, charge.valid_until)

    def recognise(self, authorization: str) -> BoundChallenge:
        """The bound challenge in an `Authorization: Payment ...` header. Raises CredentialInvalid."""
        credential = parse_credential(authorization)
        ours = self._writer.recognise(credential.challenge)
        # From here on the request is in our own words.
        request = msgspec.json.decode(base64url.decode(ours.request), type=_RequestWire)
        if request.external_id is None or request.details.nonce is None:
            raise CredentialInvalid(
                "its challenge names no invoice: POST to its invoiceUrl and claim that invoice"
            )
        if _payload(credential.payload).invoice_id != request.external_id:
            raise CredentialInvalid("payload.invoiceId is not the challenge's externalId")
        expires_at = datetime.strptime(ours.expires, EXPIRES).replace(tzinfo=UTC)
        nonce = base64url.decode(request.details.nonce)
        return BoundChallenge(ours, request.external_id, nonce, int(expires_at.timestamp()))

    def claim_secret(self, nonce: bytes) -> bytes:
        """The claim secret, 32 bytes, of the invoice that the challenge with this nonce is bound to."""
        return hmac.digest(self._claim_key, nonce, "sha256")

    def claim_hash(self, nonce: bytes) -> bytes:
        """Its SHA-256, with which the invoice is made."""
        return hashlib.sha256(self.claim_secret(nonce)).digest()


def receipt_header(*, reference: str, invoice_id: str, now: int) -> str:
    """The value of `Payment-Receipt`. `reference` is the paying outpoint, or a free invoice's id."""
    receipt: dict[str, CanonicalValue] = {
        "externalId": invoice_id,
        "method": METHOD,
        "reference": reference,
        "status": "success",
        "timestamp": timestamp(now),
    }
    return base64url.encode(canonical_json(receipt))


def accepts_charge(accept_payment: str) -> bool:
    """Whether an `Accept-Payment` header asks for `bitcoin/charge` by name; a `*` or `q=0` does not."""
    return any(_asks_for_charge(item) for item in accept_payment.split(","))


class CredentialPayload(Struct, frozen=True):
    """What our method adds. Other members are the client's own and are passed over."""

    invoice_id: str = msgspec.field(name="invoiceId")


class _DetailsWire(Struct, frozen=True):
    nonce: str | None = None


class _RequestWire(Struct, frozen=True):
    details: _DetailsWire = msgspec.field(name="methodDetails")
    external_id: str | None = msgspec.field(default=None, name="externalId")


def _payload(payload: msgspec.Raw) -> CredentialPayload:
    try:
        return msgspec.json.decode(payload, type=CredentialPayload)
    except (ValueError, RecursionError) as exc:
        raise CredentialInvalid(refusal_words(exc)) from exc


def _charge(amount_sat: Sat) -> dict[str, CanonicalValue]:
    return {"amount": str(amount_sat), "currency": CURRENCY}


def _asks_for_charge(item: str) -> bool:
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    weights = [value for key, _, value in (p.partition("=") for p in parameters) if key.strip() == "q"]
    return name == f"{METHOD}/{INTENT}" and not any(_is_zero(weight) for weight in weights)


def _is_zero(weight: str) -> bool:
    return re.fullmatch(r"\s*0(\.0{0,3})?\s*", weight) is not None
