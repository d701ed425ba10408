"""Session challenges and credentials against an independent implementation; ranges that cost money."""

import hashlib
import hmac
import json
from typing import Any

import mpp
import pytest
import rfc8785
from coincurve import PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from bitcache import payment_auth, session_auth
from bitcache.api.byte_range import chunk_range
from bitcache.errors import RangeNotChunks
from bitcache.payment_auth import Challenger
from bitcache.payment_scheme import Challenge, CredentialInvalid, challenge_header, parse_credential
from bitcache.session_auth import (
    CloseAction,
    OpenAction,
    SessionChallenger,
    VoucherAction,
    session_credential,
)
from payments.channel import Balance, ChannelTerms, Voucher
from payments.channel_errors import (
    ChangeScriptRefused,
    OutpointMalformed,
    PayerKeyInvalid,
    SignatureInvalid,
)
from payments.channel_keys import public_bytes
from payments.channel_record import Agreed
from payments.money import Msat, Sat
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES as CHUNK

KEY = b"0123456789abcdef0123456789abcdef"
REALM = "files.example"
NOW = 1_790_000_000
TERMS = ChannelTerms(
    network="regtest",
    nonce=bytes(range(16)),
    payee_key=public_bytes(PrivateKey(bytes([1]) * 32)),
    expiry_height=2_216,
    close_fee_sat=Sat(368),
    deposit_min_sat=Sat(2_000),
    issued_height=200,
)
CHANNEL_ID = f"{'ab' * 32}:1"
VOUCHER = {
    "action": "voucher",
    "channelId": CHANNEL_ID,
    "cumulativeAmount": "10",
    "signature": "cd" * 64,
}
OPEN = {**VOUCHER, "action": "open", "payerKey": "02" + "11" * 32, "changeScript": "0014" + "22" * 20}
CLOSE = {**VOUCHER, "action": "close", "closeFee": "184"}


@pytest.fixture
def challenger() -> SessionChallenger:
    return SessionChallenger(key=KEY, realm=REALM)


def priced(challenger: SessionChallenger, price_msat: int | None = 10_000) -> Challenge:
    return challenger.challenge(TERMS, price_msat=None if price_msat is None else Msat(price_msat), now=NOW)


def authorization(challenge: Challenge, payload: object) -> str:
    document = {
        "challenge": {
            "id": challenge.id,
            "realm": challenge.realm,
            "method": "bitcoin",
            "intent": challenge.intent,
            "request": challenge.request,
            "expires": challenge.expires,
        },
        "payload": payload,
    }
    return f"Payment {base64url.encode(json.dumps(document).encode())}"


def read(challenger: SessionChallenger, header: str) -> session_auth.Action:
    return challenger.action(parse_credential(header))


# --- challenges ---------------------------------------------------------------------------------------------


def test_the_request_says_price_and_terms(challenger: SessionChallenger) -> None:
    challenge = priced(challenger)
    assert json.loads(base64url.decode(challenge.request)) == {
        "amount": "10",
        "currency": "sat",
        "methodDetails": {
            "closeFee": 368,
            "expiry": 2_216,
            "issued": 200,
            "minDeposit": 2_000,
            "network": "regtest",
            "nonce": base64url.encode(bytes(range(16))),
            "payeeKey": TERMS.payee_key.hex(),
            "priceMsat": "10000",
        },
        "unitType": "chunk",
    }


@pytest.mark.parametrize(("price_msat", "amount"), [(1, "1"), (1_000, "1"), (1_001, "2"), (None, "0")])
def test_the_amount_is_whole_sats_rounded_up(
    challenger: SessionChallenger, price_msat: int | None, amount: str
) -> None:
    request = json.loads(base64url.decode(priced(challenger, price_msat).request))
    assert request["amount"] == amount
    assert ("priceMsat" in request["methodDetails"]) == (price_msat is not None)


def test_an_independent_client_reads_and_verifies_the_challenge(challenger: SessionChallenger) -> None:
    theirs = mpp.Challenge.from_www_authenticate(challenge_header(priced(challenger)))
    assert (theirs.method, theirs.intent) == ("bitcoin", "session")
    # The id is the HMAC of the draft, and the request is canonical: it is the same when encoded again.
    assert theirs.verify(KEY.decode(), REALM)
    header = mpp.Credential(challenge=theirs.to_echo(), payload=VOUCHER).to_authorization()
    assert isinstance(read(challenger, header), VoucherAction)


# --- credentials --------------------------------------------------------------------------------------------


def test_each_action_is_read(challenger: SessionChallenger) -> None:
    challenge = priced(challenger)
    voucher = read(challenger, authorization(challenge, VOUCHER))
    assert voucher == VoucherAction(Voucher(CHANNEL_ID, 10, bytes.fromhex("cd" * 64)))
    opened = read(challenger, authorization(challenge, {**OPEN, "mine": "own member"}))
    assert isinstance(opened, OpenAction)
    assert opened.terms == TERMS
    assert (opened.payer_key.hex(), opened.change_script_pubkey.hex()) == (
        OPEN["payerKey"],
        OPEN["changeScript"],
    )
    closed = read(challenger, authorization(challenge, CLOSE))
    assert closed == CloseAction(CHANNEL_ID, Agreed(Sat(10), Sat(184), bytes.fromhex("cd" * 64)))


@pytest.mark.parametrize("payload", [VOUCHER, OPEN, CLOSE])
@pytest.mark.parametrize("parameter", ["id", "realm", "method", "intent", "request", "expires"])
def test_forged_terms_are_refused_whatever_is_changed(
    challenger: SessionChallenger, parameter: str, payload: dict[str, str]
) -> None:
    other = challenger.challenge(TERMS, price_msat=Msat(1), now=NOW + 1)
    changes = {
        "id": other.id,
        "realm": "elsewhere.example",
        "method": "tempo",
        "intent": "charge",
        "request": other.request,
        "expires": other.expires,
    }
    packed = authorization(priced(challenger), payload).removeprefix("Payment ")
    document = json.loads(base64url.decode(packed))
    document["challenge"][parameter] = changes[parameter]
    with pytest.raises(CredentialInvalid):
        read(challenger, f"Payment {base64url.encode(json.dumps(document).encode())}")


def test_the_same_key_makes_no_challenge_of_one_intent_good_for_another(
    challenger: SessionChallenger,
) -> None:
    charges = Challenger(challenge_key=KEY, claim_key=KEY, realm=REALM)
    invitation = charges.invitation(
        amount_sat=Sat(5_000), network="regtest", confirmations=1, invoice_url="https://x", expires_at=NOW
    )
    disguised = Challenge(invitation.id, session_auth.INTENT, REALM, invitation.request, invitation.expires)
    with pytest.raises(CredentialInvalid):
        read(challenger, authorization(disguised, VOUCHER))
    session = priced(challenger)
    disguised = Challenge(session.id, payment_auth.INTENT, REALM, session.request, session.expires)
    with pytest.raises(CredentialInvalid):
        charges.recognise(authorization(disguised, {"invoiceId": "x"}))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"channelId": CHANNEL_ID.upper()}, OutpointMalformed),
        ({"channelId": f"{'ab' * 32}:01"}, OutpointMalformed),
        ({"channelId": f" {CHANNEL_ID}"}, OutpointMalformed),
        ({"channelId": f"{CHANNEL_ID}\n"}, OutpointMalformed),
        ({"channelId": f"{'ab' * 32}:4294967296"}, OutpointMalformed),
        ({"signature": "CD" * 64}, SignatureInvalid),
        ({"signature": ""}, SignatureInvalid),
        ({"signature": "cd cd"}, SignatureInvalid),
        ({"signature": "c"}, SignatureInvalid),
        ({"payerKey": "02" + "AA" * 32}, PayerKeyInvalid),
        ({"payerKey": ""}, PayerKeyInvalid),
        ({"changeScript": "xx"}, ChangeScriptRefused),
        ({"cumulativeAmount": "010"}, CredentialInvalid),
        ({"cumulativeAmount": "-1"}, CredentialInvalid),
        ({"cumulativeAmount": "1e3"}, CredentialInvalid),
        ({"cumulativeAmount": "1.0"}, CredentialInvalid),
        ({"cumulativeAmount": "\u0661"}, CredentialInvalid),
        ({"cumulativeAmount": "9" * 17}, CredentialInvalid),
        ({"cumulativeAmount": 10}, CredentialInvalid),
        ({"action": "topUp"}, CredentialInvalid),
        ({"action": None}, CredentialInvalid),
    ],
)
def test_one_spelling_of_everything(
    challenger: SessionChallenger, changes: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        read(challenger, authorization(priced(challenger), {**OPEN, **changes}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
    | st.fixed_dictionaries(
        {},
        optional={
            name: st.text() | st.integers() | st.sampled_from(["open", "voucher", "close"])
            for name in {**OPEN, **CLOSE}
        },
    )
)
@example([[]] * 3)
def test_nothing_else_ever_leaves_the_reader(payload: object) -> None:
    challenger = SessionChallenger(key=KEY, realm=REALM)
    with pytest.raises((CredentialInvalid, OutpointMalformed)):
        read(challenger, authorization(priced(challenger), payload))


def test_only_the_session_intent_is_taken_for_one(challenger: SessionChallenger) -> None:
    assert session_credential(None) is None
    assert session_credential("Bearer bcg_x") is None
    charge = Challenge("x", "charge", REALM, "e30", "2026-01-01T00:00:00Z")
    assert session_credential(authorization(charge, {"invoiceId": "x"})) is None
    assert session_credential(authorization(priced(challenger), VOUCHER)) is not None
    with pytest.raises(CredentialInvalid):
        session_credential("Payment e30")


# --- receipts, records, proofs ------------------------------------------------------------------------------


def test_an_independent_client_reads_the_receipt() -> None:
    header = session_auth.receipt_header(CHANNEL_ID, Balance(Sat(20), bytes(64), Msat(10_001)), now=NOW)
    assert mpp.Receipt.from_payment_receipt(header).reference == CHANNEL_ID
    assert json.loads(base64url.decode(header)) == {
        "acceptedCumulative": "20",
        "intent": "session",
        "method": "bitcoin",
        "reference": CHANNEL_ID,
        "spent": "11",
        "spentMsat": "10001",
        "status": "success",
        "timestamp": "2026-09-21T14:13:20Z",
    }


def test_what_is_signed_is_what_the_document_says() -> None:
    assert (
        session_auth.proof_digest(REALM, NOW)
        == hashlib.sha256(
            b"bitcache/v1/channel-proof" + REALM.encode() + b"\0" + NOW.to_bytes(8, "big")
        ).digest()
    )
    record = session_auth.record_json(
        channel_id=CHANNEL_ID,
        accepted_sat=Sat(20),
        signature=None,
        spent_msat=Msat(10_001),
        state="open",
        at=NOW,
    )
    said: dict[str, Any] = {
        "acceptedCumulative": "20",
        "at": NOW,
        "channelId": CHANNEL_ID,
        "signature": "",
        "spentMsat": "10001",
        "state": "open",
    }
    assert record == rfc8785.dumps(said)
    assert (
        session_auth.record_digest(record) == hashlib.sha256(b"bitcache/v1/channel-record" + record).digest()
    )


def test_the_id_is_the_hmac_over_the_slots_of_the_draft(challenger: SessionChallenger) -> None:
    challenge = priced(challenger)
    bound = "|".join((REALM, "bitcoin", "session", challenge.request, challenge.expires, "", ""))
    assert challenge.id == base64url.encode(hmac.digest(KEY, bound.encode(), "sha256"))


# --- ranges -------------------------------------------------------------------------------------------------

SIZE = 10 * CHUNK + 5
ETAG = '"root"'


def cut(header: str | None, if_range: str | None = None, size: int = SIZE) -> tuple[int, int] | None:
    """(first chunk, chunks); None: refused."""
    try:
        chosen = chunk_range(header, if_range, etag=ETAG, size_bytes=size)
    except RangeNotChunks:
        return None
    assert chosen.partial == (header is not None)
    assert chosen.first % CHUNK == 0
    assert chosen.first + chosen.length <= size
    return chosen.first // CHUNK, -(-chosen.length // CHUNK)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"bytes=0-{CHUNK - 1}", (0, 1)),
        (f"bytes={CHUNK}-{2 * CHUNK - 1}", (1, 1)),
        (f"bytes=0-{8 * CHUNK - 1}", (0, 8)),
        (f"bytes=0-{9 * CHUNK - 1}", None),
        (f"bytes={2 * CHUNK}-{10 * CHUNK - 1}", (2, 8)),
        (f"bytes={10 * CHUNK}-{SIZE - 1}", (10, 1)),
        (f"bytes={10 * CHUNK}-", (10, 1)),
        (f"bytes={3 * CHUNK}-", (3, 8)),
        (f"bytes={2 * CHUNK}-", None),
        (f"bytes={10 * CHUNK}-99999999999", (10, 1)),
        (f"bytes={10 * CHUNK}-{SIZE - 2}", None),
        (f"bytes={11 * CHUNK}-", None),
        (f"bytes={11 * CHUNK}-{12 * CHUNK - 1}", None),
        (f"bytes=0-{CHUNK - 2}", None),
        (f"bytes=0-{CHUNK}", None),
        (f"bytes=1-{CHUNK - 1}", None),
        ("bytes=0-0", None),
        ("bytes=5-4", None),
        (f"bytes={CHUNK}-{CHUNK - 1}", None),
        (f"bytes=-{CHUNK}", None),
        ("bytes=-5", None),
        ("bytes=-0", None),
        ("bytes=-", None),
        (f"bytes=0-{CHUNK - 1},{CHUNK}-{2 * CHUNK - 1}", None),
        (f"chunks=0-{CHUNK - 1}", None),
        (f"bytes 0-{CHUNK - 1}", None),
        ("", None),
        ("x" * 200, None),
        (None, None),
    ],
)
def test_ranges_of_whole_chunks(header: str | None, expected: tuple[int, int] | None) -> None:
    assert cut(header) == expected


@pytest.mark.parametrize(("size", "expected"), [(1, (0, 1)), (8 * CHUNK, (0, 8)), (8 * CHUNK + 1, None)])
def test_without_a_range_a_file_that_fits_is_sent_whole(size: int, expected: tuple[int, int] | None) -> None:
    assert cut(None, size=size) == expected


@pytest.mark.parametrize(("if_range", "expected"), [(ETAG, (0, 1)), ('"other"', None), (f"W/{ETAG}", None)])
def test_a_changed_file_is_not_charged_for_as_a_whole(
    if_range: str, expected: tuple[int, int] | None
) -> None:
    assert cut(f"bytes=0-{CHUNK - 1}", if_range) == expected


@given(
    st.text() | st.from_regex(r"bytes=[0-9]{0,9}-[0-9]{0,9}", fullmatch=True),
    st.integers(1, 20 * CHUNK),
)
def test_whatever_is_asked_it_is_whole_chunks_or_nothing(header: str, size: int) -> None:
    found = cut(header, size=size)
    assert found is None or 1 <= found[1] <= 8
