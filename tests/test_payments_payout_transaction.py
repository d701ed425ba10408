"""The payout transaction: its bytes, and every way in which a signer may have altered it is said."""

import base64
import struct
from collections.abc import Callable, Sequence

import pytest
from bitcoin.core import (
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    CTransaction,
    CTxInWitness,
    CTxWitness,
    lx,
)
from bitcoin.core.script import CScript, CScriptWitness
from hypothesis import given
from hypothesis import strategies as st

from payments.errors import AmountInvalid, PsbtInvalid, TransactionMalformed
from payments.money import MAX_MONEY_SAT, Sat
from payments.outputs import OutPoint
from payments.payout_transaction import (
    DIFFERENCES_MAX,
    Payee,
    differences,
    dust_sat,
    output_vbytes,
    txid_of,
    unsigned_transaction,
)
from payments.psbt import PSBT_CHARACTERS_MAX, transaction_in, unsigned_psbt
from payments.signature_scope import open_inputs
from payments.transaction import TRANSACTION_BYTES_MAX, parse_transaction

INPUTS = [OutPoint(f"{n:02x}" * 32, n) for n in (1, 2, 3)]
P2WPKH, P2TR = bytes.fromhex("0014" + "11" * 20), bytes.fromhex("5120" + "22" * 32)
PAYEES = [Payee(Sat(5_000), P2WPKH), Payee(Sat(7_000), P2TR), Payee(Sat(5_000), b"\x51")]
ASKED = unsigned_transaction(INPUTS, PAYEES)

Change = Callable[[CMutableTransaction], None]


def altered(change: Change, asked: bytes = ASKED) -> bytes:
    """As a signer gives it back: with signatures, and with this change."""
    transaction = CMutableTransaction.from_tx(CTransaction.deserialize(asked))
    for spent in transaction.vin:
        spent.scriptSig = CScript(b"\x01\x00")
    change(transaction)
    return bytes(transaction.serialize())


def nothing(_: CMutableTransaction) -> None:
    return


def test_bytes_say_what_was_given() -> None:
    read = parse_transaction(ASKED)
    assert read.inputs == tuple(INPUTS)
    assert [(o.amount_sat, o.script_pubkey) for o in read.outputs] == [
        (p.amount_sat, p.script_pubkey) for p in PAYEES
    ]
    assert ASKED[:4] == struct.pack("<I", 2)
    assert ASKED[-4:] == bytes(4)
    assert ASKED.count(struct.pack("<I", 0xFFFFFFFD)) == len(INPUTS)
    assert unsigned_transaction(list(INPUTS), list(PAYEES)) == ASKED
    assert txid_of(ASKED) == read.txid


@pytest.mark.parametrize(
    ("inputs", "payees", "error"),
    [
        ([], PAYEES, TransactionMalformed),
        (INPUTS, [], TransactionMalformed),
        ([*INPUTS, INPUTS[0]], PAYEES, TransactionMalformed),
        (INPUTS, [Payee(Sat(-1), P2TR)], AmountInvalid),
        (INPUTS, [Payee(Sat(MAX_MONEY_SAT + 1), P2TR)], AmountInvalid),
    ],
    ids=["no input", "no payee", "input twice", "negative", "more than exists"],
)
def test_a_transaction_that_cannot_be_is_not_made(
    inputs: Sequence[OutPoint], payees: Sequence[Payee], error: type[Exception]
) -> None:
    with pytest.raises(error):
        unsigned_transaction(inputs, payees)


def test_signatures_are_no_difference() -> None:
    assert differences(ASKED, ASKED) == ()
    assert differences(ASKED, altered(nothing)) == ()


def more_to(vout: int, amount_sat: int) -> Change:
    def change(transaction: CMutableTransaction) -> None:
        transaction.vout[vout].nValue = amount_sat

    return change


def other_script(transaction: CMutableTransaction) -> None:
    transaction.vout[1].scriptPubKey = CScript(b"\x52")


def output_dropped(transaction: CMutableTransaction) -> None:
    del transaction.vout[0]


def output_added(transaction: CMutableTransaction) -> None:
    transaction.vout.insert(0, CMutableTxOut(1_234_567, CScript(b"\x52")))


def outputs_swapped(transaction: CMutableTransaction) -> None:
    transaction.vout.reverse()


def output_doubled(transaction: CMutableTransaction) -> None:
    transaction.vout.append(transaction.vout[1])


def input_dropped(transaction: CMutableTransaction) -> None:
    del transaction.vin[1]


def input_added(transaction: CMutableTransaction) -> None:
    transaction.vin.append(CMutableTxIn(COutPoint(lx("99" * 32), 7), nSequence=0xFFFFFFFD))


def input_doubled(transaction: CMutableTransaction) -> None:
    transaction.vin.append(transaction.vin[0])


def inputs_swapped(transaction: CMutableTransaction) -> None:
    transaction.vin.reverse()


def made_final(transaction: CMutableTransaction) -> None:
    transaction.vin[2].nSequence = 0xFFFFFFFF


def other_version(transaction: CMutableTransaction) -> None:
    transaction.nVersion = 3


def held_back(transaction: CMutableTransaction) -> None:
    transaction.nLockTime = 900_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (more_to(0, 6_000), ["output 0 pays 6,000 sat, 5,000 were asked"]),
        (more_to(2, 4_999), ["output 2 pays 4,999 sat, 5,000 were asked"]),
        (more_to(2, -1), ["output 2 pays -1 sat, 5,000 were asked"]),
        (other_script, [f"output 1 pays 7,000 sat to 52, 7,000 sat to {P2TR.hex()} was asked"]),
        (output_dropped, [f"output 0 of 5,000 sat to {P2WPKH.hex()} is missing"]),
        (output_added, ["output 0 pays 1,234,567 sat to 52, which was not asked"]),
        (output_doubled, [f"output 3 pays 7,000 sat to {P2TR.hex()}, which was not asked"]),
        (outputs_swapped, ["the outputs stand in another order"]),
        (input_dropped, [f"input {INPUTS[1]} is missing"]),
        (input_added, [f"input {'99' * 32}:7 is spent too, which was not asked"]),
        (input_doubled, [f"input {INPUTS[0]} is spent too, which was not asked"]),
        (inputs_swapped, ["the inputs stand in another order"]),
        (made_final, [f"input {INPUTS[2]} has the sequence 0xffffffff, 0xfffffffd was asked"]),
        (other_version, ["the version is 3, 2 was asked"]),
        (held_back, ["the locktime is 900000, 0 was asked"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_alteration_is_said(change: Change, words: list[str]) -> None:
    assert list(differences(ASKED, altered(change))) == words


def test_several_alterations_are_all_said() -> None:
    def change(transaction: CMutableTransaction) -> None:
        held_back(transaction)
        input_added(transaction)
        more_to(1, 8_000)(transaction)
        output_added(transaction)
        transaction.vout.append(transaction.vout.pop(1))

    found = differences(ASKED, altered(change))
    assert len(found) == 5
    assert "the outputs stand in another order" in found
    assert "output 1 pays 8,000 sat, 7,000 were asked" in found


@pytest.mark.parametrize(("extra", "listed", "last"), [(20, 20, "not asked"), (1_000, 21, "and 980 more")])
def test_a_flood_of_differences_is_counted(extra: int, listed: int, last: str) -> None:
    def change(transaction: CMutableTransaction) -> None:
        transaction.vout += [CMutableTxOut(n, CScript(b"\x52")) for n in range(extra)]

    found = differences(ASKED, altered(change))
    assert len(found) == listed <= DIFFERENCES_MAX + 1
    assert found[-1].endswith(last)


payees_lists = st.lists(
    st.builds(Payee, st.integers(0, 3).map(Sat), st.sampled_from([b"", b"\x51", P2WPKH])),
    min_size=1,
    max_size=5,
)
inputs_lists = st.lists(st.sampled_from(INPUTS), min_size=1, max_size=3, unique=True)


@given(inputs_lists, payees_lists, inputs_lists, payees_lists)
def test_nothing_is_said_exactly_when_nothing_differs(
    inputs: list[OutPoint], payees: list[Payee], other_inputs: list[OutPoint], other_payees: list[Payee]
) -> None:
    same = (inputs, payees) == (other_inputs, other_payees)
    asked = unsigned_transaction(inputs, payees)
    given = altered(nothing, unsigned_transaction(other_inputs, other_payees))
    assert (differences(asked, given) == ()) is same


@given(st.integers(0, len(ASKED) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(place: int, flip: int) -> None:
    changed = bytearray(ASKED)
    changed[place] ^= flip
    try:
        found = differences(ASKED, bytes(changed))
    except TransactionMalformed:
        return
    # A changed length of scriptSig may make a signature of what follows; never the same transaction.
    assert found


@pytest.mark.parametrize("given", [b"", ASKED[:-1], ASKED + b"\x00", bytes(TRANSACTION_BYTES_MAX + 1)])
def test_what_is_no_transaction_is_refused(given: bytes) -> None:
    with pytest.raises(TransactionMalformed):
        differences(ASKED, given)
    with pytest.raises(TransactionMalformed):
        txid_of(given)


@pytest.mark.parametrize(
    ("script", "dust", "vbytes"),
    [
        ("76a914" + "11" * 20 + "88ac", 546, 34),
        ("a914" + "11" * 20 + "87", 540, 32),
        ("0014" + "11" * 20, 294, 31),
        ("0020" + "11" * 32, 330, 43),
        ("5120" + "11" * 32, 330, 43),
        ("51024e73", 240, 13),
        ("6028" + "11" * 40, 354, 51),
        ("6029" + "11" * 41, 600, 52),
        ("21" + "02" * 33 + "ac", 576, 44),
        ("", 471, 9),
        ("6a", 0, 10),
        ("51" * 252, 1_227, 261),
        ("51" * 253, 1_236, 264),
        ("51" * 10_001, 0, 10_012),
        ("51" * 0x10000, 0, 65_549),
    ],
    ids=lambda value: value[:8] if isinstance(value, str) else None,
)
def test_dust_and_size(script: str, dust: int, vbytes: int) -> None:
    script_pubkey = bytes.fromhex(script)
    assert dust_sat(script_pubkey) == dust
    assert output_vbytes(script_pubkey) == vbytes
    one, two = (
        unsigned_transaction(INPUTS, [PAYEES[0]] + [Payee(Sat(0), script_pubkey)] * n) for n in (0, 1)
    )
    assert len(two) - len(one) == vbytes


def test_a_psbt_gives_back_its_transaction() -> None:
    psbt = unsigned_psbt(ASKED, [None, ASKED, None], outputs=len(PAYEES))
    assert transaction_in(psbt) == ASKED
    assert transaction_in("\n".join(psbt[n : n + 64] for n in range(0, len(psbt), 64)) + "\r\n") == ASKED


@pytest.mark.parametrize(
    ("psbt", "words"),
    [
        ("", "begins with"),
        ("hello", "begins with"),
        (ASKED.hex(), "begins with"),
        ("\N{SNOWMAN}", "begins with"),
        (base64.b64encode(b"psbt\xff").decode(), "damaged"),
        (base64.b64encode(b"psbt\xff\x00").decode(), "holds no transaction"),
        (base64.b64encode(b"psbt\xff\x01\xfb\x04\x02\x00\x00\x00\x00").decode(), "version 2"),
        (base64.b64encode(b"psbt\xff\x01\x00\xff" + b"\xff" * 8).decode(), "damaged"),
        ("A" * (PSBT_CHARACTERS_MAX + 1), "more than a PSBT may have"),
    ],
    ids=["empty", "words", "raw", "no ascii", "cut off", "none in it", "version 2", "huge length", "huge"],
)
def test_what_is_no_psbt_is_refused_with_words(psbt: str, words: str) -> None:
    with pytest.raises(PsbtInvalid, match=words):
        transaction_in(psbt)


DER, SCHNORR, KEY = b"\x30\x44" + b"\x02" * 68, b"\x07" * 64, b"\x02" + b"\x05" * 32
SCRIPT, PATH_OF_ONE = b"\x20" + KEY[1:] + b"\xac", b"\xc0" + b"\x09" * 64


@pytest.mark.parametrize(
    ("script_sig", "stack", "is_open"),
    [
        ([], [DER + b"\x01", KEY], False),
        ([], [DER + b"\x81", KEY], True),
        ([DER + b"\x01", KEY], [], False),
        ([DER + b"\x02", KEY], [], True),
        # Of two signers one.
        ([], [b"", DER + b"\x01", DER + b"\x03", b"\x52" + SCRIPT], True),
        ([], [SCHNORR], False),
        ([], [SCHNORR + b"\x01"], False),
        ([], [SCHNORR + b"\x02"], True),
        ([], [SCHNORR + b"\x83", b"\x50 an annex"], True),
        # The way to a script has as many bytes as a signature with its type.
        ([], [SCHNORR, SCRIPT, PATH_OF_ONE], False),
        ([], [SCHNORR + b"\x81", SCRIPT, PATH_OF_ONE], True),
        ([], [], False),
    ],
)
def test_signatures_that_leave_something_open_are_found(
    script_sig: list[bytes], stack: list[bytes], is_open: bool
) -> None:
    closed = CMutableTxIn(COutPoint(b"\x01" * 32, 0))
    other = CMutableTxIn(COutPoint(b"\x02" * 32, 1), CScript(script_sig))
    witness = CTxWitness([CTxInWitness(CScriptWitness(some)) for some in ([DER + b"\x01", KEY], stack)])
    signed = CMutableTransaction([closed, other], [CMutableTxOut(1, CScript())], witness=witness)
    assert open_inputs(signed.serialize()) == [1] * is_open
