"""What the command line reads and shows: prices, dates, foreign text, payment requests. No network."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitcache.api import wire
from bitcache.cli.common import parse_expiry, parse_price, read_text, show_size
from bitcache.cli.output import UsageWrong, printable
from bitcache.cli.payment_words import payment_uri, qr_lines, standing_words
from bitcache.client.errors import ServerAnswerWrong

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "price_sat"),
    [
        ("5000sat", 5000),
        ("5000 sats", 5000),
        ("5_000", 5000),
        ("5000.0", 5000),
        ("0.0001btc", 10_000),
        (".5 BTC", 50_000_000),
        ("0", 0),
        ("21000000btc", 2_100_000_000_000_000),
    ],
)
def test_prices(text: str, price_sat: int) -> None:
    assert parse_price(text) == price_sat


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-1", "0 or more"),
        ("-0.1btc", "0 or more"),
        ("0.5sat", "fraction"),
        ("0.000000001btc", "not a whole number"),
        ("2100000000000001", "ever exist"),
        ("21000001btc", "21 million"),
        ("1e9", "no price"),
        ("five", "no price"),
        ("5000eur", "no price"),
        ("", "no price"),
        ("inf", "no price"),
        ("9" * 41, "no price"),
    ],
)
def test_prices_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UsageWrong, match=words):
        parse_price(text)


def test_expiry() -> None:
    noon = int(NOW.timestamp())
    assert parse_expiry("12h", now=NOW) == noon + 12 * 3600
    assert parse_expiry("30d", now=NOW) == noon + 30 * 86_400
    assert parse_expiry("2030-01-31", now=NOW) == noon + 12 * 3600
    for wrong in ("2030-01-30", "2030-02-30", "tomorrow", "0d", "-1d", "30"):
        with pytest.raises(UsageWrong):
            parse_expiry(wrong, now=NOW)


@given(st.text())
def test_nothing_printable_commands_a_terminal(text: str) -> None:
    assert all(
        character.isprintable() or character in " \ufffd" or character > "\x9f"
        for character in printable(text)
    )
    assert not set(printable(text)) & set("\x1b\x07\x08\r\n\x9b\u202e\u2066\u200f")


def test_long_foreign_text_is_cut() -> None:
    assert len(printable("x" * 1_000_000)) == 2000


def test_sizes() -> None:
    assert [show_size(size) for size in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


def test_a_secret_comes_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  abc\n")
    assert read_text(None, file, what="token") == "abc"
    assert read_text("abc", None, what="token") == "abc"
    for argument, path in (("abc", file), (None, None)):
        with pytest.raises(UsageWrong):
            read_text(argument, path, what="token")


def invoice(**changes: object) -> wire.InvoiceView:
    fields: dict[str, object] = {
        "invoice_id": "a" * 26,
        "reference": "BC-7K3Q-9X2M",
        "offer_id": "b" * 26,
        "parcel_id": "c" * 26,
        "status": "open",
        "flags": [],
        "created_at": 0,
        "price_sat": 5000,
        "received_sat": 0,
        "confirmed_sat": 0,
        "due_sat": 5000,
        "owed_sat": 0,
        "address": "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080",
        "uri": "bitcoin:somebody-else",
        "valid_until": 900,
        "confirmations": -1,
        "policy": wire.PolicyView(),
        "bytes_allowed": False,
        "key_allowed": False,
        "suspended": False,
        "outputs": [],
        "node_online": True,
        "now": 0,
        "taken_down": False,
    }
    return wire.InvoiceView(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_uri_is_made_of_what_is_shown() -> None:
    uri = "bitcoin:bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080?amount=0.00005000&label=BC-7K3Q-9X2M"
    assert payment_uri(invoice()) == uri
    assert payment_uri(invoice(reference="x&amount=9")) == uri.split("&label")[0]
    assert payment_uri(invoice(due_sat=0)) is None
    assert payment_uri(invoice(address=None)) is None
    assert list(qr_lines(uri))


@pytest.mark.parametrize("address", ["bc1q\x1b[2J" + "a" * 20, "bc1q?amount=1&x=" + "a" * 20, "short"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ServerAnswerWrong):
        payment_uri(invoice(address=address))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Waiting"),
        ({"status": "seen"}, "Seen"),
        ({"status": "confirming", "confirmations": 2, "policy": wire.PolicyView(6, 6)}, "2 of 6"),
        ({"flags": ["partial"], "received_sat": 4000, "due_sat": 1000}, "1,000 sat more"),
        ({"status": "settled", "flags": ["late"]}, "late"),
        ({"status": "settled", "owed_sat": 1500}, "1,500 sat too much"),
        ({"suspended": True}, "took the payment back"),
        ({"status": "expired"}, "over"),
        ({"status": "seen", "flags": ["conflicted"]}, "same coins"),
        ({"status": "seen", "flags": ["missing"]}, "mempool"),
    ],
)
def test_words_for_every_standing(changes: dict[str, object], words: str) -> None:
    assert words in standing_words(invoice(**changes))
