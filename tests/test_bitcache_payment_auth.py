"""Challenges, credentials and receipts of the `Payment` scheme, against an independent implementation."""

import base64
import hashlib
import json
import string
from typing import Any

import mpp
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from bitcache.canonical_json import INTEGER_MAX, canonical_json
from bitcache.payment_auth import Challenger, Charge, accepts_charge, receipt_header
from bitcache.payment_scheme import (
    CREDENTIAL_CHARACTERS_MAX,
    Challenge,
    CredentialInvalid,
    challenge_header,
    is_payment,
    parse_credential,
)
from payments.money import Sat
from storage import base64url

CHALLENGE_KEY = b"0123456789abcdef0123456789abcdef"
CLAIM_KEY = b"another key, of exactly 32 bytes"
INVOICE_ID = "mfrggzdfmztwq2lknnwg23tpob"
ADDRESS = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
NONCE = bytes(range(16))
VALID_UNTIL = 1_790_000_000


@pytest.fixture
def challenger() -> Challenger:
    return Challenger(challenge_key=CHALLENGE_KEY, claim_key=CLAIM_KEY, realm="files.example")


def a_charge(**changes: Any) -> Charge:
    facts: dict[str, Any] = {
        "amount_sat": Sat(5_000),
        "invoice_id": INVOICE_ID,
        "address": ADDRESS,
        "network": "regtest",
        "confirmations": 1,
        "uri": f"bitcoin:{ADDRESS}?amount=0.00005&label=BC-7K3Q-9X2M",
        "status_url": f"https://files.example/api/v1/invoices/{INVOICE_ID}",
        "nonce": NONCE,
        "valid_until": VALID_UNTIL,
    }
    return Charge(**{**facts, **changes})


def invitation(challenger: Challenger) -> Challenge:
    return challenger.invitation(
        amount_sat=Sat(5_000),
        network="regtest",
        confirmations=1,
        invoice_url="https://files.example/api/v1/offers/x/invoices",
        expires_at=VALID_UNTIL,
    )


def echo(challenge: Challenge) -> dict[str, Any]:
    return {
        "id": challenge.id,
        "realm": challenge.realm,
        "method": "bitcoin",
        "intent": "charge",
        "request": challenge.request,
        "expires": challenge.expires,
    }


def authorization(document: object) -> str:
    return f"Payment {base64url.encode(json.dumps(document).encode())}"


def credential(challenge: Challenge, **payload: Any) -> dict[str, Any]:
    return {"challenge": echo(challenge), "payload": {"invoiceId": INVOICE_ID, **payload}}


# --- the two kinds of challenge -----------------------------------------------------------------------------


def test_a_bound_challenge_comes_back_and_is_recognised(challenger: Challenger) -> None:
    bound = challenger.recognise(authorization(credential(challenger.bound(a_charge()))))
    assert bound.invoice_id == INVOICE_ID
    assert bound.nonce == NONCE
    assert bound.expires_at == VALID_UNTIL


def test_the_claim_hash_follows_from_the_nonce_and_the_key(challenger: Challenger) -> None:
    assert challenger.claim_hash(NONCE) == hashlib.sha256(challenger.claim_secret(NONCE)).digest()
    assert challenger.claim_secret(NONCE) != challenger.claim_secret(bytes(16))
    elsewhere = Challenger(challenge_key=CHALLENGE_KEY, claim_key=CHALLENGE_KEY, realm="files.example")
    assert elsewhere.claim_secret(NONCE) != challenger.claim_secret(NONCE)


def test_an_invitation_has_no_recipient_and_claims_nothing(challenger: Challenger) -> None:
    challenge = invitation(challenger)
    request = json.loads(base64url.decode(challenge.request))
    assert request == {
        "amount": "5000",
        "currency": "sat",
        "methodDetails": {
            "confirmations": 1,
            "invoiceUrl": "https://files.example/api/v1/offers/x/invoices",
            "network": "regtest",
        },
    }
    with pytest.raises(CredentialInvalid, match="invoiceUrl"):
        challenger.recognise(authorization(credential(challenge)))


def test_a_free_charge_has_no_recipient_and_still_claims(challenger: Challenger) -> None:
    challenge = challenger.bound(a_charge(amount_sat=Sat(0), address=None, uri=None))
    assert "recipient" not in json.loads(base64url.decode(challenge.request))
    assert challenger.recognise(authorization(credential(challenge))).invoice_id == INVOICE_ID


def test_a_realm_that_would_need_escaping_is_refused() -> None:
    with pytest.raises(ValueError):
        Challenger(challenge_key=CHALLENGE_KEY, claim_key=CLAIM_KEY, realm='a"b')


# --- forgeries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", ["id", "realm", "method", "intent", "request", "expires"])
def test_every_parameter_is_bound(challenger: Challenger, parameter: str) -> None:
    document = credential(challenger.bound(a_charge()))
    other = challenger.bound(a_charge(amount_sat=Sat(1_000), valid_until=VALID_UNTIL + 1))
    changed = {**echo(other), "realm": "elsewhere.example", "method": "tempo", "intent": "session"}[parameter]
    document["challenge"][parameter] = changed
    with pytest.raises(CredentialInvalid):
        challenger.recognise(authorization(document))


def test_another_servers_challenge_is_refused(challenger: Challenger) -> None:
    other = Challenger(challenge_key=CLAIM_KEY, claim_key=CLAIM_KEY, realm="files.example")
    with pytest.raises(CredentialInvalid):
        challenger.recognise(authorization(credential(other.bound(a_charge()))))


def test_the_payload_must_name_the_challenges_invoice(challenger: Challenger) -> None:
    document = credential(challenger.bound(a_charge()), invoiceId="a" * 26)
    with pytest.raises(CredentialInvalid, match="externalId"):
        challenger.recognise(authorization(document))


# --- the parser ---------------------------------------------------------------------------------------------


def test_a_clients_own_payload_members_and_source_are_passed_over(challenger: Challenger) -> None:
    document = {**credential(challenger.bound(a_charge()), txid="ab" * 32), "source": "did:key:z6Mk"}
    assert challenger.recognise(authorization(document)).invoice_id == INVOICE_ID


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Payment",
        "Payment ",
        "Bearer abc",
        "Payment e30=",  # padding
        "Payment e3 0",
        "Payment e30\u00e9",
        "Payment " + base64url.encode(b"[]"),
        "Payment " + base64url.encode(b"null"),
        "Payment " + base64url.encode(b'{"challenge":'),
        "Payment " + base64url.encode(b"\xff\xfe"),
        "Payment " + base64url.encode(b"[" * 5_000),
        "Payment " + base64url.encode(b'{"payload":{"invoiceId":"x","more":' + b"[" * 5_000),
        "Payment " + "A" * CREDENTIAL_CHARACTERS_MAX,
    ],
)
def test_malformed_credentials_are_one_error(header: str) -> None:
    with pytest.raises(CredentialInvalid):
        parse_credential(header)


def test_members_we_never_wrote_are_refused(challenger: Challenger) -> None:
    document = credential(challenger.bound(a_charge()))
    document["challenge"]["digest"] = "sha-256=:AAAA:"
    with pytest.raises(CredentialInvalid):
        challenger.recognise(authorization(document))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CREDENTIAL_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "challenge": JSON_VALUES
        | st.fixed_dictionaries(
            {
                name: st.text() | JSON_VALUES
                for name in ("id", "realm", "method", "intent", "request", "expires")
            }
        ),
        "payload": JSON_VALUES | st.fixed_dictionaries({"invoiceId": st.text()}),
        "source": JSON_VALUES,
    },
)


@given(st.text() | st.text(string.printable).map("Payment ".__add__) | CREDENTIAL_LIKE.map(authorization))
def test_nothing_else_ever_leaves_the_parser(header: str) -> None:
    challenger = Challenger(challenge_key=CHALLENGE_KEY, claim_key=CLAIM_KEY, realm="files.example")
    with pytest.raises(CredentialInvalid):
        challenger.recognise(header)


@given(st.binary(max_size=200))
def test_nothing_else_ever_leaves_the_parser_for_raw_bytes(octets: bytes) -> None:
    with pytest.raises(CredentialInvalid):
        parse_credential(f"Payment {base64url.encode(octets)}")


# --- Accept-Payment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bitcoin/charge", True),
        ("tempo/charge, Bitcoin/Charge ;q=0.5", True),
        ("bitcoin/charge;q=0", False),
        ("bitcoin/charge; q=0.000", False),
        ("bitcoin/session", False),
        ("*/*", False),
        ("xbitcoin/charge", False),
        ("", False),
    ],
)
def test_accept_payment(header: str, expected: bool) -> None:
    assert accepts_charge(header) is expected


@given(st.text())
def test_accept_payment_and_scheme_take_any_text(header: str) -> None:
    accepts_charge(header)
    is_payment(header)


# --- canonical JSON against RFC 8785 ------------------------------------------------------------------------

CANONICAL_VALUES = st.recursive(
    st.text() | st.integers(-INTEGER_MAX, INTEGER_MAX),
    lambda inner: st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=20,
)


@given(CANONICAL_VALUES)
def test_canonical_json_is_rfc_8785(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


def test_names_are_ordered_by_utf16_code_units() -> None:
    # U+1F600 comes before U+FB33 in UTF-16, after it as a code point.
    assert canonical_json({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize("value", [2**53, -(2**53), "\ud800", {"\udfff": 1}])
def test_values_without_one_spelling_are_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


@pytest.mark.parametrize("value", [1.5, True, None, [1], b"x"])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


# --- an independent implementation reads and writes the same ------------------------------------------------


@pytest.mark.parametrize("kind", ["bound", "invitation"])
def test_an_independent_client_reads_the_challenge(challenger: Challenger, kind: str) -> None:
    challenge = challenger.bound(a_charge()) if kind == "bound" else invitation(challenger)
    theirs = mpp.Challenge.from_www_authenticate(challenge_header(challenge))
    assert (theirs.id, theirs.realm, theirs.method, theirs.intent) == (
        challenge.id,
        "files.example",
        "bitcoin",
        "charge",
    )
    assert theirs.expires == challenge.expires
    # The id is the HMAC of the draft, and the request is canonical: it is the same when encoded again.
    assert theirs.verify(CHALLENGE_KEY.decode(), "files.example")


def test_an_independent_clients_credential_is_recognised(challenger: Challenger) -> None:
    theirs = mpp.Challenge.from_www_authenticate(challenge_header(challenger.bound(a_charge())))
    header = mpp.Credential(challenge=theirs.to_echo(), payload={"invoiceId": INVOICE_ID}).to_authorization()
    assert is_payment(header)
    assert challenger.recognise(header).nonce == NONCE


def test_an_independent_client_reads_the_receipt() -> None:
    reference = f"{'ab' * 32}:1"
    receipt = mpp.Receipt.from_payment_receipt(
        receipt_header(reference=reference, invoice_id=INVOICE_ID, now=VALID_UNTIL)
    )
    assert (receipt.reference, receipt.external_id, receipt.method) == (reference, INVOICE_ID, "bitcoin")
    assert receipt.timestamp.timestamp() == VALID_UNTIL


def test_base64url_here_is_that_of_the_standard_library() -> None:
    assert base64url.encode(b"\xfb\xff") == base64.urlsafe_b64encode(b"\xfb\xff").decode().rstrip("=")
