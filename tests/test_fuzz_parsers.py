"""Parsers of what strangers send: each accepts what it can give back, and refuses the rest in its own words.

Valid inputs are hurt where their grammar has its joints. FUZZ_EXAMPLES sets how many; `make soak-fuzz`.
"""

import datetime
import hmac
import json
import re
import string
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from bitcache import config, sessions
from bitcache.api.byte_range import HEADER_LENGTH_MAX, content_range, requested_range
from bitcache.api.client_address import client_address
from bitcache.api.wire import TIME_MAX
from bitcache.client import link
from bitcache.client.errors import LinkInvalid
from bitcache.earnings import parse_period
from bitcache.errors import (
    FormRefused,
    GrantTokenInvalid,
    PeriodInvalid,
    RangeUnsatisfiable,
    TokenInvalid,
)
from bitcache.grant_tokens import GrantClaims, open_token, seal_token
from bitcache.ids import id_text
from bitcache.payment_auth import Challenger, Charge, accepts_charge
from bitcache.payment_scheme import CredentialInvalid, is_payment, parse_credential
from bitcache.web.forms import Forms
from bitcache.web.i18n import LANGUAGES, chosen_language
from bitcache.web.span import chosen_span
from payments.money import Sat
from storage import base64url
from tests.fuzz.mutation import fuzzed, hurt_text, outcome

KEY = bytes(range(32))
NOW = 1_790_000_000
ids = st.binary(min_size=16, max_size=16).map(id_text)
secrets = st.binary(min_size=32, max_size=32)
numbers = st.one_of(st.integers(0, 3_000), st.integers(0, 10**21)).map(str)


# --- Range, If-Range ------------------------------------------------------------------------------

range_headers = st.builds(
    "{}={}-{}".format,
    st.sampled_from(("bytes", "BYTES", "chunks")),
    numbers | st.just(""),
    numbers | st.just(""),
)
ETAG = '"abc"'


@fuzzed
@given(
    hurt_text(range_headers),
    st.none() | hurt_text(st.just(ETAG)),
    st.integers(1, 2_000) | st.integers(1, 2**44),
)
def test_range_is_within_the_file_and_as_a_second_reader_reads_it(
    header: str, if_range: str | None, size_bytes: int
) -> None:
    wanted = _second_reading(header, size_bytes) if if_range is None or if_range.strip() == ETAG else None
    try:
        chosen = requested_range(header, if_range, etag=ETAG, size_bytes=size_bytes)
    except RangeUnsatisfiable:
        assert wanted == "none"
        return
    assert 0 <= chosen.first < chosen.first + chosen.length <= size_bytes
    if not chosen.partial:
        assert wanted is None
        assert (chosen.first, chosen.length) == (0, size_bytes)
    else:
        assert wanted == (chosen.first, chosen.length)
        told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range(chosen, size_bytes))
        assert told is not None
        first, last, size = map(int, told.groups())
        assert (first, last - first + 1, size) == (chosen.first, chosen.length, size_bytes)


def _second_reading(header: str, size_bytes: int) -> tuple[int, int] | str | None:
    """(first, length); "none" if no byte of it exists; None for what is to be ignored."""
    unit, equals, spec = header.strip().partition("=")
    first, dash, last = spec.strip(" \t").partition("-")
    digits = set(string.digits)
    if len(header) > HEADER_LENGTH_MAX or unit.lower() != "bytes" or not (equals and dash):
        return None
    if not set(first + last) <= digits or not first + last or max(len(first), len(last)) > 19:
        return None
    if not first:
        length = min(int(last), size_bytes)
        return (size_bytes - length, length) if length else "none"
    if last and int(last) < int(first):
        return None
    if int(first) >= size_bytes:
        return "none"
    end = min(int(last) + 1, size_bytes) if last else size_bytes
    return int(first), end - int(first)


# --- tokens and credentials -----------------------------------------------------------------------


@fuzzed
@given(st.data(), st.binary(min_size=48, max_size=48), st.integers(NOW + 1, 2**63))
def test_grant_token_opens_as_it_was_sealed_or_not_at_all(
    data: st.DataObject, octets: bytes, expires_at: int
) -> None:
    claims = GrantClaims(octets[:16], octets[16:32], octets[32:], expires_at)
    token = seal_token(KEY, claims)
    assert open_token(KEY, token, NOW) == claims
    hurt = data.draw(hurt_text(st.just(token)))
    opened = outcome(GrantTokenInvalid, open_token, KEY, hurt, NOW)
    if isinstance(opened, GrantTokenInvalid):
        assert token not in str(opened)
    else:
        assert opened == claims


@fuzzed
@given(st.data(), st.binary(min_size=16, max_size=16))
def test_token_of_the_pages_names_its_session_or_nothing(data: st.DataObject, session_id: bytes) -> None:
    payload = b"\x01" + session_id + (NOW + 1).to_bytes(8, "big")
    token = sessions.WEB_TOKEN_PREFIX + base64url.encode(payload + hmac.digest(KEY, payload, "sha256"))
    assert sessions._session_id(KEY, token, NOW) == id_text(session_id)
    hurt = data.draw(hurt_text(st.just(token)))
    try:
        named = sessions._session_id(KEY, hurt, NOW)
    except TokenInvalid:
        return
    assert hurt == token
    assert named == id_text(session_id)


@fuzzed
@given(st.data(), st.sampled_from(("sign-in", "seller/" + "a" * 26)), st.integers(NOW, NOW + 40_000))
def test_mark_of_a_form_is_good_as_it_was_made_or_refused(
    data: st.DataObject, form: str, sent_at: int
) -> None:
    forms = Forms(KEY, secure=True)
    browser = "b" * 22
    token = forms.token(form, browser, NOW)
    nonce = forms.check(form, browser, token, sent_at)
    hurt = data.draw(hurt_text(st.just(token)))
    hurt_browser = data.draw(hurt_text(st.just(browser)).filter(str.isprintable))
    try:
        assert forms.check(form, hurt_browser, hurt, sent_at) == nonce
    except FormRefused:
        assert (hurt, hurt_browser) != (token, browser)
    else:
        assert (hurt, hurt_browser) == (token, browser)


def _challenger() -> Challenger:
    return Challenger(challenge_key=KEY, claim_key=KEY[::-1], realm="files.example")


def _credential(invoice_id: str, nonce: bytes) -> tuple[str, dict[str, Any]]:
    """(the JSON of a paid challenge, its members)"""
    charge = Charge(
        amount_sat=Sat(5_000), invoice_id=invoice_id, address="bcrt1q", network="regtest", confirmations=1,
        uri="bitcoin:bcrt1q", status_url="https://files.example", nonce=nonce, valid_until=NOW,
    )  # fmt: skip
    made = _challenger().bound(charge)
    members = {
        "id": made.id, "realm": made.realm, "method": "bitcoin", "intent": "charge", "request": made.request,
        "expires": made.expires,
    }  # fmt: skip
    document = {"challenge": members, "payload": {"invoiceId": invoice_id}}
    return json.dumps(document), document


@fuzzed
@given(st.data(), ids, st.binary(min_size=16, max_size=16))
def test_credential_is_the_challenge_that_was_given_or_refused(
    data: st.DataObject, invoice_id: str, nonce: bytes
) -> None:
    text, document = _credential(invoice_id, nonce)
    hurt = data.draw(hurt_text(st.just(text)))
    packed = base64url.encode(hurt.encode("utf-8", "surrogatepass"))
    authorization = data.draw(hurt_text(st.just(f"Payment {packed}")) | st.just(f"Payment {packed}"))
    is_payment(authorization)
    bound = outcome(CredentialInvalid, _challenger().recognise, authorization)
    if isinstance(bound, CredentialInvalid):
        assert not re.search(r"[A-Za-z0-9_-]{44}", str(bound)), "a refusal quotes the credential"
        assert len(str(bound)) < 400
        return
    assert (bound.invoice_id, bound.nonce, bound.expires_at) == (invoice_id, nonce, NOW)
    assert bound.challenge.request == document["challenge"]["request"]


@fuzzed
@given(
    hurt_text(st.sampled_from(("Payment e30", "Payment", "bitcoin/charge;q=0.5, x/y", "bearer x")))
    | st.text()
)
@example("Payment " + base64url.encode(b"[" * 6_000))
@example("Payment " + base64url.encode(b'{"challenge":' * 400))
@example("Payment " + base64url.encode(b'{"challenge":{"' + b"a`" * 2_000 + b'":1}}'))
@example("Payment " + base64url.encode(b'{"challenge":{"' + b"a" * 4_000 + b'":1}}'))
def test_headers_of_the_payment_scheme_never_surprise(text: str) -> None:
    is_payment(text)
    accepts_charge(text)
    read = outcome(CredentialInvalid, parse_credential, text)
    if isinstance(read, CredentialInvalid):
        assert 0 < len(read.reason) < 400


# --- links and receipts ---------------------------------------------------------------------------

servers = st.sampled_from(
    ("https://files.example", "http://127.0.0.1:8421", "https://x.org/sub/folder", "http://[::1]:80")
)
links = st.builds(link.Link, servers, ids, secrets) | st.builds(link.Receipt, servers, ids, secrets, secrets)


@fuzzed
@given(links)
def test_link_is_read_as_it_is_written(made: link.Link | link.Receipt) -> None:
    assert link.parse(str(made)) == made
    assert base64url.encode(made.link_secret) not in repr(made)


@fuzzed
@given(hurt_text(links.map(str)))
@example("https://[::1/d/" + "a" * 26 + "#1." + "A" * 43)
@example("https://x.org:99999/d/" + "a" * 26 + "#1." + "A" * 43)
def test_hurt_link_is_refused_without_its_secrets_or_is_another_link(text: str) -> None:
    read = outcome(LinkInvalid, link.parse, text)
    if isinstance(read, LinkInvalid):
        secrets_in_it = re.findall(r"[A-Za-z0-9_-]{20,}", text.partition("#")[2])
        assert not any(secret in str(read) for secret in secrets_in_it)
        return
    assert link.parse(str(read)) == read
    assert read.server.startswith(("http://", "https://"))
    assert re.fullmatch(r"[!-~]+", str(read)), "what is printed is one plain word"


# --- periods, languages, addresses ----------------------------------------------------------------

zones = st.sampled_from(
    ("UTC", "Europe/Paris", "Asia/Kolkata", "Pacific/Kiritimati", "Etc/GMT+12", "posixrules", "Europe")
)
times = st.integers(0, TIME_MAX + 10).map(str)


@fuzzed
@given(st.none() | hurt_text(times), st.none() | hurt_text(times), st.none() | hurt_text(zones))
def test_period_is_a_period_or_refused(since: str | None, until: str | None, zone: str | None) -> None:
    period = outcome(PeriodInvalid, parse_period, since, until, zone, now=NOW)
    if isinstance(period, PeriodInvalid):
        assert period.field in {"since", "until", "tz"}
        return
    assert 0 <= period.since < period.until <= TIME_MAX + 1
    # What is booked within it has a day.
    assert period.day(period.since)
    assert period.day(period.until - 1)


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(("from", "to", "days", "zone")),
        hurt_text(st.sampled_from(("2026-02-28", "2009-01-03", "2199-12-31", "30", "365", "Europe/Paris"))),
    )
)
def test_span_of_a_page_is_some_days_whatever_is_asked(query: dict[str, str]) -> None:
    span, _ = chosen_span(query, now=NOW)
    assert datetime.date(2008, 1, 1) < span.first <= span.last
    assert span.with_before.since < span.period.since < span.period.until
    assert sum(len(days) for _, days in span.bars()) == span.days
    span.query()


@fuzzed
@given(st.none() | hurt_text(st.just("fr")), st.none() | hurt_text(st.just("fr;q=0.5, en-GB;q=1e1, *;q=0")))
def test_language_is_one_of_ours(asked: str | None, accepted: str | None) -> None:
    assert chosen_language(asked, accepted) in LANGUAGES


@fuzzed
@example("fe80::%1", None)
@given(
    st.none() | hurt_text(st.sampled_from(("127.0.0.1", "::1", "fe80::1%eth0"))),
    st.none()
    | hurt_text(st.sampled_from(("1.2.3.4, 127.0.0.1", "[2001:db8::1]", "unknown, ::ffff:1.2.3.4"))),
)
def test_client_of_a_request_is_a_short_word(peer: str | None, forwarded_for: str | None) -> None:
    proxies = config.Config(data_folder=Path("x"), trusted_proxies=("127.0.0.0/8", "::1")).proxies
    assert re.fullmatch(r"[0-9a-f.:]+|unknown", client_address(peer, forwarded_for, proxies))
