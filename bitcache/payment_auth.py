"""The HTTP `Payment` authentication scheme, method `bitcoin`, intent `charge`. Pure.

Nothing is stored for a challenge: its `id` is an HMAC over every other parameter, so an echoed challenge
proves by itself that this server wrote it, and that whoever echoes it received it. Two kinds of challenge:

    invitation   names the price and where to ask for an invoice; nothing was created for it
    bound        names one fresh invoice, its address and a nonce; the claim secret of that invoice is derived
                 from the nonce, so the same echoed challenge claims the same invoice again, for ever

Source: draft-httpauth-payment (The "Payment" HTTP Authentication Scheme), RFC 9110 section 11.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from bitcache.canonical_json import CanonicalValue, canonical_json
from bitcache.errors import BitcacheError
from bitcache.json_refusals import refusal_words
from payments.money import Sat
from storage import base64url

METHOD: Final = "bitcoin"
INTENT: Final = "charge"
CURRENCY: Final = "sat"

CREDENTIAL_CHARACTERS_MAX = 8_192
"""Of the whole header value. A challenge of ours echoed is some 2,000."""
NONCE_BYTES = 16
_SCHEME = re.compile(r"payment +([A-Za-z0-9_-]+)", re.IGNORECASE)
_EXPIRES = "%Y-%m-%dT%H:%M:%SZ"


class CredentialInvalid(BitcacheError):
    """An `Authorization: Payment` that this server cannot accept; `reason` says what to change.

    Whether it is malformed, forged, or of a key since changed, the caller does the same: ask for a new one.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the payment credential is not accepted: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Challenge:
    """One `WWW-Authenticate: Payment` challenge of ours."""

    id: str
    """base64url of 32 bytes: an HMAC over all the rest."""
    realm: str
    request: str
    """base64url of canonical JSON, as it stands in the header."""
    expires: str
    """Such as 2026-01-31T23:59:59Z. Ends paying, never claiming."""


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


class PaymentDemanded(BitcacheError):
    """The content is for sale: pay the challenge, or ask for an invoice where it says."""

    def __init__(self, challenge: Challenge) -> None:
        super().__init__(
            "These files are for sale. Pay the challenge in WWW-Authenticate, or ask for an invoice where it "
            "says. If you have paid already, claim with your receipt."
        )
        self.www_authenticate = challenge_header(challenge)


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
        if not re.fullmatch(r"[A-Za-z0-9.:_\[\]-]+", realm):
            raise ValueError(f"the realm {realm!r} must be a host name, with or without a port")
        self._challenge_key = challenge_key
        self._claim_key = claim_key
        self.realm = realm

    def invitation(
        self, *, amount_sat: Sat, network: str, confirmations: int, invoice_url: str, expires_at: int
    ) -> Challenge:
        """A challenge without recipient: POST to `invoice_url` for one. Costs nothing to give out."""
        details: dict[str, CanonicalValue] = {
            "confirmations": confirmations,
            "invoiceUrl": invoice_url,
            "network": network,
        }
        return self._challenge({**_charge(amount_sat), "methodDetails": details}, expires_at)

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
        return self._challenge({**request, "methodDetails": details}, charge.valid_until)

    def recognise(self, authorization: str) -> BoundChallenge:
        """The bound challenge in an `Authorization: Payment ...` header. Raises CredentialInvalid."""
        credential = parse_credential(authorization)
        echo = credential.challenge
        ours = Challenge(id=echo.id, realm=echo.realm, request=echo.request, expires=echo.expires)
        expected_id = self._id(realm=ours.realm, request=ours.request, expires=ours.expires)
        named = echo.method == METHOD and echo.intent == INTENT and echo.realm == self.realm
        # The HMAC is computed and compared whatever the names say: its time tells nothing.
        if not hmac.compare_digest(expected_id.encode(), ours.id.encode()) or not named:
            raise CredentialInvalid("this server did not write its challenge")
        # From here on the request is in our own words.
        request = msgspec.json.decode(base64url.decode(ours.request), type=_RequestWire)
        if request.external_id is None or request.details.nonce is None:
            raise CredentialInvalid(
                "its challenge names no invoice: POST to its invoiceUrl and claim that invoice"
            )
        if credential.payload.invoice_id != request.external_id:
            raise CredentialInvalid("payload.invoiceId is not the challenge's externalId")
        expires_at = datetime.strptime(ours.expires, _EXPIRES).replace(tzinfo=UTC)
        nonce = base64url.decode(request.details.nonce)
        return BoundChallenge(ours, request.external_id, nonce, int(expires_at.timestamp()))

    def claim_secret(self, nonce: bytes) -> bytes:
        """The claim secret, 32 bytes, of the invoice that the challenge with this nonce is bound to."""
        return hmac.digest(self._claim_key, nonce, "sha256")

    def claim_hash(self, nonce: bytes) -> bytes:
        """Its SHA-256, with which the invoice is made."""
        return hashlib.sha256(self.claim_secret(nonce)).digest()

    def _challenge(self, request: Mapping[str, CanonicalValue], expires_at: int) -> Challenge:
        text = base64url.encode(canonical_json(request))
        expires = _timestamp(expires_at)
        challenge_id = self._id(realm=self.realm, request=text, expires=expires)
        return Challenge(id=challenge_id, realm=self.realm, request=text, expires=expires)

    def _id(self, *, realm: str, request: str, expires: str) -> str:
        # The draft's order of slots, the last two (digest, opaque) empty. Neither our realm nor base64url nor
        # a time contains the separator, so no two challenges share an input.
        bound = "|".join((realm, METHOD, INTENT, request, expires, "", ""))
        return base64url.encode(hmac.digest(self._challenge_key, bound.encode(), "sha256"))


def challenge_header(challenge: Challenge) -> str:
    """The value of `WWW-Authenticate`. No parameter of ours needs escaping."""
    return (
        f'Payment id="{challenge.id}", realm="{challenge.realm}", method="{METHOD}", intent="{INTENT}", '
        f'expires="{challenge.expires}", request="{challenge.request}"'
    )


def receipt_header(*, reference: str, invoice_id: str, now: int) -> str:
    """The value of `Payment-Receipt`. `reference` is the paying outpoint, or a free invoice's id."""
    receipt: dict[str, CanonicalValue] = {
        "externalId": invoice_id,
        "method": METHOD,
        "reference": reference,
        "status": "success",
        "timestamp": _timestamp(now),
    }
    return base64url.encode(canonical_json(receipt))


def accepts_charge(accept_payment: str) -> bool:
    """Whether an `Accept-Payment` header asks for `bitcoin/charge` by name; a `*` or `q=0` does not."""
    return any(_asks_for_charge(item) for item in accept_payment.split(","))


def is_payment(authorization: str) -> bool:
    """Whether an `Authorization` header is of the `Payment` scheme, well formed or not."""
    return authorization.split(" ", 1)[0].lower() == "payment"


class CredentialPayload(Struct, frozen=True):
    """What our method adds. Other members are the client's own and are passed over."""

    invoice_id: str = msgspec.field(name="invoiceId")


class EchoedChallenge(Struct, frozen=True, forbid_unknown_fields=True):
    """A challenge as the client sends it back: every parameter that we wrote, and no other."""

    id: str
    realm: str
    method: str
    intent: str
    request: str
    expires: str


class Credential(Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON inside `Authorization: Payment`."""

    challenge: EchoedChallenge
    payload: CredentialPayload
    source: str | None = None
    """Who says to have paid. Not believed, not used."""


def parse_credential(authorization: str) -> Credential:
    """The credential in an `Authorization: Payment` header, not verified. Raises CredentialInvalid."""
    if len(authorization) > CREDENTIAL_CHARACTERS_MAX:
        raise CredentialInvalid(f"it is longer than {CREDENTIAL_CHARACTERS_MAX} characters")
    scheme = _SCHEME.fullmatch(authorization.strip(" \t"))
    if scheme is None:
        raise CredentialInvalid("it must be the word Payment, a space and base64url without padding")
    try:
        return msgspec.json.decode(base64url.decode(scheme[1]), type=Credential)
    except (ValueError, RecursionError) as exc:
        # msgspec's errors are ValueErrors.
        raise CredentialInvalid(refusal_words(exc)) from exc


class _DetailsWire(Struct, frozen=True):
    nonce: str | None = None


class _RequestWire(Struct, frozen=True):
    details: _DetailsWire = msgspec.field(name="methodDetails")
    external_id: str | None = msgspec.field(default=None, name="externalId")


def _charge(amount_sat: Sat) -> dict[str, CanonicalValue]:
    return {"amount": str(amount_sat), "currency": CURRENCY}


def _timestamp(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(_EXPIRES)


def _asks_for_charge(item: str) -> bool:
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    weights = [value for key, _, value in (p.partition("=") for p in parameters) if key.strip() == "q"]
    return name == f"{METHOD}/{INTENT}" and not any(_is_zero(weight) for weight in weights)


def _is_zero(weight: str) -> bool:
    return re.fullmatch(r"\s*0(\.0{0,3})?\s*", weight) is not None
