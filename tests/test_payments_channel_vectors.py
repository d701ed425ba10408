"""The vectors of channels, vectors/channel.json: our code agrees, and so does one written from the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests import second_channel as second
from tests import second_curve as curve
from tests.vectors.make_channel import KINDS, VECTORS, as_text, made, vectors

Case = dict[str, Any]
CASES: list[Case] = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]
PROTOCOL = Path(__file__).parent.parent / "docs" / "PROTOCOL.md"


def test_the_vectors_are_made_again_byte_for_byte() -> None:
    assert VECTORS.read_bytes() == as_text(vectors()).encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_our_code_gives_what_the_vector_expects(case: Case) -> None:
    assert made(case["name"], case["kind"], case, KINDS[case["kind"]]) == case


def test_every_refusal_is_in_the_page() -> None:
    section = PROTOCOL.read_text().partition("\n## 17 Payment channels\n")[2]
    named = {case["expect"] for case in CASES} - {"ok"}
    assert len(named) == 13
    assert named <= set(re.findall(r"`([a-z-]+)`", section))


def test_a_fee_and_a_payment_cannot_be_told_apart() -> None:
    """The danger of a cooperative close, as the page tells it."""
    by_name = {case["name"]: case for case in CASES}
    one = by_name["state: 100 sat paid, fee 5362"]
    other = by_name["state: 5100 sat paid, fee 362: the same digest"]
    assert (one["digest"], one["signature"]) == (other["digest"], other["signature"])
    assert "digest(paid=100, fee=5362) = digest(paid=5100, fee=362)" in PROTOCOL.read_text()


# The second implementation


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_page_gives_what_the_vector_expects(case: Case) -> None:
    if case["expect"] == "ok":
        perform(case)
        return
    with pytest.raises(second.Refused) as refused:
        perform(case)
    assert refused.value.name == case["expect"]


def contract_of(case: Case) -> second.Contract:
    payer, payee, change = (bytes.fromhex(case[name]) for name in ("payer_key", "payee_key", "change_script"))
    return second.Contract(payer, payee, case["expiry_height"], change, case["close_fee"])


def channel_of(case: Case) -> second.Channel:
    return second.Channel(contract_of(case), case["channel_id"], case["capacity"])


def perform(case: Case) -> None:
    """Do what the case's kind says; compare with its results."""
    match case["kind"]:
        case "payee_key":
            secret = second.payee_secret(bytes.fromhex(case["seed"]), bytes.fromhex(case["nonce"]))
            assert f"{secret:064x}" == case["payee_secret"]
            assert curve.compressed(secret).hex() == case["payee_key"]
        case "contract":
            contract = contract_of(case)
            contract.check()
            assert contract.witness_script.hex() == case["witness_script"]
            assert contract.script_pubkey.hex() == case["script_pubkey"]
            assert contract.descriptor == case["descriptor"]
            for network, address in case["addresses"].items():
                assert second.address(contract.script_pubkey, network) == address
        case "channel_id":
            assert second.outpoint(case["channel_id"]) == (case["txid"], case["vout"])
        case "state":
            digest, sighash, change = channel_of(case).state(case["paid"], case["fee"])
            assert (digest.hex(), sighash, change) == (case["digest"], case["sighash"], case["change"])
            assert curve.sign(int(case["payer_secret"], 16), digest).hex() == case["signature"]
        case "signature":
            signature = bytes.fromhex(case["signature"])
            taken = channel_of(case).signed(case["paid"], signature, case["fee"])
            assert taken.hex() == case["witness_signature"]
        case "charge":
            balance = second.charge(*(case[name] for name in ("accepted", "spent", "paid", "cost", "limit")))
            assert balance == (case["accepted_after"], case["spent_after"])
        case "close":
            claims = [
                second.Claim(
                    channel_of(one),
                    one["paid"],
                    one["fee"],
                    bytes.fromhex(one["signature"]),
                    int(one["payee_secret"], 16),
                )
                for one in case["claims"]
            ]
            txid, raw, received = second.close(claims, bytes.fromhex(case["payee_script"]), case["feerate"])
            assert (txid, raw.hex(), received) == (case["txid"], case["transaction"], case["received"])
        case "refund":
            payer, script = int(case["payer_secret"], 16), bytes.fromhex(case["script_pubkey"])
            raw = second.refund(channel_of(case), payer, script, case["feerate"])
            assert raw.hex() == case["transaction"]
        case "backup":
            secret, payee, expiry = second.read_backup_line(case["line"], case["network"])
            assert (f"{secret:064x}", payee.hex()) == (case["payer_secret"], case["payee_key"])
            contract = second.Contract(curve.compressed(secret), payee, expiry, b"", 0)
            assert contract.script_pubkey.hex() == case["script_pubkey"]
            assert second.backup_line(contract, secret, case["network"]) == case["line"]
        case other:
            raise AssertionError(f"the page knows no vectors of kind {other}")
