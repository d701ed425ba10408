"""docs/PROTOCOL.md says what the server does: its tables are those of the code, its examples are real."""

import json
import re
from typing import Any

import mpp
import pytest

from bitcache.api import events_stream, files, parcels, payment_gate, routing
from bitcache.api.connection import HEAD_BYTES_MAX
from bitcache.api.idempotency import LIFETIME_S
from bitcache.api.problems import PROBLEMS
from bitcache.app import HEADER_BYTES_MAX, HEADERS_MAX
from bitcache.config import Config, LimitsConfig
from bitcache.grants import CONNECTIONS_MAX, PARCELS_SERVED_MAX
from bitcache.payment_auth import Challenger
from bitcache.payment_scheme import CREDENTIAL_CHARACTERS_MAX, is_payment
from storage import base64url
from tests.protocol_tables import PROTOCOL, inserted

TEXT = PROTOCOL.read_text()
LIMITS = LimitsConfig()
CHALLENGER = Challenger(challenge_key=bytes(range(32)), claim_key=bytes(range(32, 64)), realm="files.example")


def headers(name: str) -> list[str]:
    """Every value of a header in the document's HTTP examples."""
    blocks = re.findall(r"^```http\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [value for block in blocks for value in re.findall(rf"^{name}: (.*)$", block, re.MULTILINE)]


def json_examples() -> list[Any]:
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]


def test_the_tables_are_those_of_the_code() -> None:
    assert inserted(TEXT) == TEXT, "run: python -m tests.protocol_tables"


def test_every_problem_named_in_the_text_exists() -> None:
    named = set(re.findall(r"\b[45][0-9]{2} `([a-z-]+)`", TEXT))
    assert len(named) > 30
    assert named <= set(PROBLEMS)
    for status, name in re.findall(r"\b([45][0-9]{2}) `([a-z-]+)`", TEXT):
        assert PROBLEMS[name].status == int(status), name


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        ("JSON body", f"{routing.BODY_BYTES_MAX >> 10} KiB"),
        ("JSON body", f"{parcels.REQUEST_BYTES_MAX >> 20} MiB for `POST /parcels`"),
        ("JSON body", f"{parcels.SEAL_BYTES_MAX >> 20} MiB for `seal`"),
        ("part", f"at most {LIMITS.parts_at_once_per_seller} at the same time"),
        ("pause in a request's body", f"a part, and any other body, must arrive within {files.PART_S_MAX} s"),
        ("request line, one header", f"{HEADER_BYTES_MAX >> 10} KiB"),
        ("head of a request", f"{HEAD_BYTES_MAX >> 10} KiB in all, {HEADERS_MAX} headers"),
        ("payment credential", f"{CREDENTIAL_CHARACTERS_MAX:,} characters"),
        ("page of a list", f"{routing.PAGE_LIMIT_MAX} items"),
        ("idempotency key", f"kept {LIFETIME_S // 3600} h"),
        ("grant token", f"{Config(data_folder=PROTOCOL).grant_token_lifetime_s // 60} minutes"),
        ("held request of a paid challenge", f"{payment_gate.HOLD_S:.0f} s"),
        ("pace of a client", f"{LIMITS.accounts_per_hour} accounts an hour"),
        ("pace of a client", f"{LIMITS.invoices_per_minute} requests"),
        ("pace of a client", f"{LIMITS.channel_contracts_per_minute} new deposits announced"),
        ("pace of a client", f"{LIMITS.claims_per_minute} claims"),
        ("connections of a grant", f"{CONNECTIONS_MAX}"),
        ("bytes of a grant", f"{PARCELS_SERVED_MAX} times"),
        ("invoice's price", f"{Config(data_folder=PROTOCOL).price_hold_s // 60} minutes"),
        ("paid bytes", f"{Config(data_folder=PROTOCOL).paid_retention_days} days"),
    ],
)
def test_the_limits_are_those_of_the_code(row: str, limit: str) -> None:
    assert re.search(rf"^\| {re.escape(row)} \|.*{re.escape(limit)}", TEXT, re.MULTILINE)


def test_the_pings_come_as_often_as_promised() -> None:
    assert f"a comment line every {events_stream.PING_INTERVAL_S} s" in TEXT


def test_the_challenges_are_real() -> None:
    invitation, bound = (mpp.Challenge.from_www_authenticate(value) for value in headers("WWW-Authenticate"))
    assert "invoiceUrl" in invitation.request["methodDetails"]
    assert bound.request["recipient"] in bound.request["methodDetails"]["uri"]
    shown = json_examples()
    assert invitation.request in shown
    assert bound.request in shown
    # Another implementation computes the same id from the key the document tells.
    for challenge in (invitation, bound):
        assert challenge.verify(bytes(range(32)).decode("latin-1"), "files.example")


def test_the_credential_is_recognised() -> None:
    (credential,) = (value for value in headers("Authorization") if is_payment(value))
    recognised = CHALLENGER.recognise(credential)
    bound = mpp.Challenge.from_www_authenticate(headers("WWW-Authenticate")[1])
    assert recognised.challenge.id == bound.id
    assert recognised.invoice_id == bound.request["externalId"]
    assert recognised.nonce == bytes(range(0x40, 0x50))


def test_the_receipt_is_real() -> None:
    (receipt,) = headers("Payment-Receipt")
    assert json.loads(base64url.decode(receipt)) in json_examples()
    assert mpp.Receipt.from_payment_receipt(receipt).method == "bitcoin"
