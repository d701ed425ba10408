"""The HTTP `Payment` authentication scheme, as far as all its intents share it. Pure.

Nothing is stored for a challenge: its `id` is an HMAC over every other parameter, so an echoed challenge
proves by itself that this server wrote it, and that whoever echoes it received it. What an intent asks for
is in `bitcache.payment_auth` (charge) and `bitcache.session_auth` (session).

Source: draft-httpauth-payment (The "Payment" HTTP Authentication Scheme), RFC 9110 section 11.
"""

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from bitcache.canonical_json import CanonicalValue, canonical_json
from bitcache.errors import BitcacheError
from bitcache.json_refusals import refusal_words
from storage import base64url

METHOD: Final = "bitcoin"
CURRENCY: Final = "sat"
CHALLENGE_KEY_PURPOSE = "payment-challenge"
"""Of the HMAC's key, for `Sealer.mac_key`."""

CREDENTIAL_CHARACTERS_MAX = 8_192
"""Of the whole header value. A challenge of ours echoed is some 2,000."""
EXPIRES = "%Y-%m-%dT%H:%M:%SZ"
_SCHEME = re.compile(r"payment +([A-Za-z0-9_-]+)", re.IGNORECASE)


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
    intent: str
    realm: str
    request: str
    """base64url of canonical JSON, as it stands in the header."""
    expires: str
    """Such as 2026-01-31T23:59:59Z. Ends paying, never claiming."""


class PaymentDemanded(BitcacheError):
    """The content is for sale: pay one of the challenges, or ask for an invoice where it says."""

    def __init__(self, *challenges: Challenge) -> None:
        super().__init__(
            "These files are for sale. Pay the challenge in WWW-Authenticate, or ask for an invoice where it "
            "says. If you have paid already, claim with your receipt."
        )
        self.www_authenticate = challenge_headers(challenges)


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
    payload: msgspec.Raw
    """A JSON value, which the intent reads."""
    source: str | None = None
    """Who says to have paid. Not believed, not used."""


class ChallengeWriter:
    """Writes challenges of one intent and recognises them. `key` is 32 secret bytes, for all intents."""

    def __init__(self, *, key: bytes, realm: str, intent: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:_\[\]-]+", realm):
            raise ValueError(f"the realm {realm!r} must be a host name, with or without a port")
        self._key = key
        self._intent = intent
        self.realm = realm

    def write(self, request: Mapping[str, CanonicalValue], expires_at: int) -> Challenge:
        text = base64url.encode(canonical_json(request))
        expires = timestamp(expires_at)
        challenge_id = self._id(realm=self.realm, request=text, expires=expires)
        return Challenge(challenge_id, self._intent, self.realm, text, expires)

    def recognise(self, echo: EchoedChallenge) -> Challenge:
        """The challenge that came back: we wrote it. Raises CredentialInvalid."""
        expected_id = self._id(realm=echo.realm, request=echo.request, expires=echo.expires)
        named = echo.method == METHOD and echo.intent == self._intent and echo.realm == self.realm
        # The HMAC is computed and compared whatever the names say: its time tells nothing.
        if not hmac.compare_digest(expected_id.encode(), echo.id.encode()) or not named:
            raise CredentialInvalid("this server did not write its challenge")
        return Challenge(echo.id, self._intent, echo.realm, echo.request, echo.expires)

    def _id(self, *, realm: str, request: str, expires: str) -> str:
        # The draft's order of slots, the last two (digest, opaque) empty. Neither our realm nor base64url nor
        # a time contains the separator, so no two challenges share an input.
        bound = "|".join((realm, METHOD, self._intent, request, expires, "", ""))
        return base64url.encode(hmac.digest(self._key, bound.encode(), "sha256"))


def challenge_header(challenge: Challenge) -> str:
    """The value of `WWW-Authenticate`. No parameter of ours needs escaping."""
    return (
        f'Payment id="{challenge.id}", realm="{challenge.realm}", method="{METHOD}", '
        f'intent="{challenge.intent}", expires="{challenge.expires}", request="{challenge.request}"'
    )


def challenge_headers(challenges: Sequence[Challenge]) -> tuple[str, ...]:
    """One value for each: they go into header lines of their own, which every client tells apart."""
    return tuple(map(challenge_header, challenges))


def is_payment(authorization: str) -> bool:
    """Whether an `Authorization` header is of the `Payment` scheme, well formed or not."""
    return authorization.split(" ", 1)[0].lower() == "payment"


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


def timestamp(at: int) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime(EXPIRES)
