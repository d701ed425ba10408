"""Links and receipts: what is accepted, and words for what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitcache.client.errors import LinkInvalid
from bitcache.client.link import Link, Receipt, check_server, parse
from storage import base64url

OFFER_ID = "abcdefghijklmnopqrstuvwx23"
SECRET = base64url.encode(bytes(range(32)))
OTHER = base64url.encode(bytes(range(32, 64)))
SERVER = "https://files.example.org"


def test_a_link_and_a_receipt() -> None:
    assert parse(f" {SERVER}/d/{OFFER_ID}#1.{SECRET}\n") == Link(SERVER, OFFER_ID, bytes(range(32)))
    receipt = Receipt(SERVER, OFFER_ID, bytes(range(32)), bytes(range(32, 64)))
    assert parse(f"{SERVER}/r/{OFFER_ID}#1.{SECRET}.{OTHER}") == receipt


@pytest.mark.parametrize("query", ["?", "?lang=fr", "?fbclid=a.b&c=%20"])
def test_a_query_means_nothing(query: str) -> None:
    plain = f"{SERVER}/d/{OFFER_ID}"
    assert parse(f"{plain}{query}#1.{SECRET}") == parse(f"{plain}#1.{SECRET}")


@given(
    server=st.sampled_from([SERVER, "http://localhost:8080", "http://[::1]:80/below/a/path"]),
    secrets=st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=2),
)
def test_what_is_written_is_read_again(server: str, secrets: list[bytes]) -> None:
    link, receipt = Link(server, OFFER_ID, secrets[0]), Receipt(server, OFFER_ID, *secrets)
    assert parse(str(link)) == link
    assert parse(str(receipt)) == receipt


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{SERVER}/d/{OFFER_ID}", "part after # is missing"),
        (f"{SERVER}/d/{OFFER_ID}#", "nothing after the #"),
        (f"{SERVER}/d/{OFFER_ID}#2.{SECRET}", "newer Bitcache"),
        (f"{SERVER}/d/{OFFER_ID}#{SECRET}", "newer Bitcache"),
        (f"{SERVER}/d/{OFFER_ID}#1.{SECRET[:-1]}", "damaged"),
        (f"{SERVER}/d/{OFFER_ID}#1.{SECRET}AA", "34 bytes|33 bytes|damaged"),
        (f"{SERVER}/d/{OFFER_ID}#1.{base64url.encode(bytes(31))}", "31 bytes instead of 32"),
        (f"{SERVER}/d/{OFFER_ID}#1.{SECRET}.{OTHER}", "1 secret .* has 2"),
        (f"{SERVER}/r/{OFFER_ID}#1.{SECRET}", "2 secrets .* has 1"),
        (f"{SERVER}/d/{OFFER_ID.upper()}#1.{SECRET}", "26 characters"),
        (f"{SERVER}/d/..%2f#1.{SECRET}", "26 characters"),
        (f"{SERVER}/x/{OFFER_ID}#1.{SECRET}", "neither a link"),
        (f"ftp://files.example.org/d/{OFFER_ID}#1.{SECRET}", "https://"),
        (f"https://me:secret@files.example.org/d/{OFFER_ID}#1.{SECRET}", "user name"),
        (f"https://files.example.org:99999/d/{OFFER_ID}#1.{SECRET}", "web address"),
        (f"https://a\\b.org/d/{OFFER_ID}#1.{SECRET}", "backslashes"),
        (f"{SERVER}/d/{OFFER_ID}?/d/x#1.{SECRET}", "26 characters|no spaces"),
        ("hello", "neither a link"),
        ("", "neither a link"),
        ("x" * 5000, "at most"),
    ],
)
def test_words_for_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(LinkInvalid, match=words):
        parse(text)


@given(st.text(max_size=300))
def test_anything_else_is_refused_and_no_secret_is_told(text: str) -> None:
    with pytest.raises(LinkInvalid) as refusal:
        parse(f"{SERVER}/d/{OFFER_ID}#1.{SECRET}{text}!")
    assert SECRET not in str(refusal.value)


def test_no_secret_in_a_repr() -> None:
    assert SECRET not in repr(parse(f"{SERVER}/d/{OFFER_ID}#1.{SECRET}"))
    assert OTHER not in repr(parse(f"{SERVER}/r/{OFFER_ID}#1.{SECRET}.{OTHER}"))


def test_a_server_loses_its_trailing_slash() -> None:
    assert check_server("https://files.example.org/") == SERVER
