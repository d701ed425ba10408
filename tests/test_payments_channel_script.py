"""Contracts and channels: what the payer signs, what is refused, the line that brings a deposit back."""

import hashlib

import pytest
from bitcoin.core import COutPoint, CTransaction, CTxIn, CTxOut, lx
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, SignatureHash
from coincurve import PrivateKey
from coincurve.ecdsa import deserialize_compact, serialize_compact, signature_normalize
from hypothesis import given
from hypothesis import strategies as st

from payments.channel_errors import (
    BackupLineInvalid,
    ChangeScriptRefused,
    ChannelError,
    ExpiryImpossible,
    OutpointMalformed,
    PayerKeyInvalid,
    SignatureInvalid,
    VoucherDustChange,
    VoucherOverDeposit,
)
from payments.channel_keys import CURVE_ORDER, key_of_wif, payee_key, public_bytes, wif_of
from payments.channel_script import (
    CHANGE_SAT_MIN,
    SIGHASH_NONE_ANYONECANPAY,
    SIGHASH_SINGLE_ANYONECANPAY,
    Channel,
    Contract,
    State,
    descriptor_checksum,
    parse_backup_line,
    parse_channel_id,
)
from payments.money import MAX_MONEY_SAT
from tests.channel_parts import (
    CAPACITY_SAT,
    CLOSE_FEE_SAT,
    P2PKH,
    P2SH,
    P2TR,
    P2WPKH,
    P2WSH,
    PAYEE,
    PAYER,
    channel,
    contract,
    key,
)

USABLE_SAT = CAPACITY_SAT - CLOSE_FEE_SAT
payable = st.one_of(st.integers(0, USABLE_SAT - CHANGE_SAT_MIN), st.just(USABLE_SAT))


# The contract


@pytest.mark.parametrize("change", [P2WPKH, P2WSH, P2TR], ids=["P2WPKH", "P2WSH", "P2TR"])
def test_change_goes_to_every_segwit_script(change: bytes) -> None:
    agreed = contract(change=change)
    assert agreed.checked() is agreed


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(P2PKH, id="P2PKH"),
        pytest.param(P2SH, id="P2SH"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x6a", id="OP_RETURN"),
        pytest.param(P2WPKH[:-1], id="cut"),
        pytest.param(P2TR + b"\0", id="too long"),
        pytest.param(b"\x51\x14" + bytes(20), id="version 1 with 20 bytes"),
        pytest.param(b"\x52\x20" + bytes(32), id="version 2"),
        pytest.param(b"\x51\x02\x4e\x73", id="pay to anchor"),
    ],
)
def test_change_goes_nowhere_else(change: bytes) -> None:
    with pytest.raises(ChangeScriptRefused):
        contract(change=change).checked()


@pytest.mark.parametrize(
    "payer_key",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(public_bytes(PAYER)[:-1], id="cut"),
        pytest.param(PAYER.public_key.format(compressed=False), id="uncompressed"),
        pytest.param(b"\x04" + public_bytes(PAYER)[1:], id="neither odd nor even"),
        pytest.param(b"\x02" + b"\xff" * 32, id="beyond the field"),
        pytest.param(b"\x02" + (5).to_bytes(32, "big"), id="not on the curve"),
        pytest.param(public_bytes(PAYER).hex().encode(), id="in hex"),
        pytest.param(public_bytes(PAYEE), id="the payee's"),
    ],
)
def test_a_payers_key_is_a_point_of_its_own(payer_key: bytes) -> None:
    agreed = Contract(payer_key, public_bytes(PAYEE), 900_000, P2WPKH, CLOSE_FEE_SAT)
    with pytest.raises(PayerKeyInvalid):
        agreed.checked()


@pytest.mark.parametrize("expiry_height", [-1, 0, 500_000_000, 2**31])
def test_an_expiry_is_a_height(expiry_height: int) -> None:
    with pytest.raises(ExpiryImpossible):
        contract(expiry_height=expiry_height).checked()


# States


def sighash(on: Channel, state: State) -> bytes:
    """Of the transaction that spends the deposit alone, by python-bitcoinlib."""
    change = [CTxOut(state.change_sat, CScript(on.contract.change_script_pubkey))] if state.change_sat else []
    spending = CTransaction(
        [CTxIn(COutPoint(lx(on.outpoint.txid), on.outpoint.vout), nSequence=0xFFFFFFFD)], change, 0, 3
    )
    script = CScript(on.contract.witness_script)
    return bytes(SignatureHash(script, spending, 0, state.sighash, on.capacity_sat, SIGVERSION_WITNESS_V0))


@given(
    paid_sat=payable,
    change=st.sampled_from([P2WPKH, P2WSH, P2TR]),
    vout=st.integers(0, 0xFFFFFFFF),
    expiry_height=st.integers(1, 499_999_999),
)
def test_a_state_is_signed_as_bip143_says(
    paid_sat: int, change: bytes, vout: int, expiry_height: int
) -> None:
    on = channel(7, vout=vout, under=contract(change=change, expiry_height=expiry_height))
    state = on.state(paid_sat)
    assert state.digest == sighash(on, state)
    assert state.change_sat == USABLE_SAT - paid_sat


def test_the_last_states_of_a_channel() -> None:
    on = channel()
    assert on.paid_sat_max == USABLE_SAT
    last = on.state(USABLE_SAT - CHANGE_SAT_MIN)
    assert (last.sighash, last.change_sat) == (SIGHASH_SINGLE_ANYONECANPAY, 330)
    drained = on.state(USABLE_SAT)
    assert (drained.sighash, drained.change_sat) == (SIGHASH_NONE_ANYONECANPAY, 0)


@given(st.integers(1, CHANGE_SAT_MIN - 1))
def test_change_that_no_node_relays_is_refused(change_sat: int) -> None:
    with pytest.raises(VoucherDustChange) as refused:
        channel().state(USABLE_SAT - change_sat)
    assert channel().state(refused.value.max_sat).change_sat == CHANGE_SAT_MIN
    assert channel().state(refused.value.whole_sat).change_sat == 0


@pytest.mark.parametrize("paid_sat", [USABLE_SAT + 1, CAPACITY_SAT, CAPACITY_SAT + 1, 2**63, -1])
def test_more_than_the_deposit_is_refused(paid_sat: int) -> None:
    with pytest.raises(VoucherOverDeposit) as refused:
        channel().state(paid_sat)
    assert refused.value.max_sat == USABLE_SAT


@pytest.mark.parametrize("fee_sat", [-1, CAPACITY_SAT + 1])
def test_no_close_has_such_a_fee(fee_sat: int) -> None:
    with pytest.raises(VoucherOverDeposit):
        channel().state(0, fee_sat)


def test_a_deposit_below_the_close_fee_pays_for_nothing() -> None:
    with pytest.raises(VoucherOverDeposit):
        channel(capacity_sat=CLOSE_FEE_SAT - 1).state(0)
    assert channel(capacity_sat=CLOSE_FEE_SAT).state(0).change_sat == 0


def test_a_lower_fee_is_a_higher_payment() -> None:
    """Why a payer signs a cooperative close for what it counted itself only, at most for the close fee."""
    on = channel(under=contract(close_fee_sat=5_362))
    assert on.state(100, 5_362).digest == on.state(5_100, 362).digest
    signature = on.sign(PAYER, 100)
    assert on.verify(5_100, signature, 362)


def test_every_state_of_every_channel_has_its_own_digest() -> None:
    channels = [
        channel(1),
        channel(2),
        channel(1, vout=1),
        channel(1, capacity_sat=CAPACITY_SAT + 1),
        channel(under=contract(payer=key(3))),
        channel(under=contract(payee=key(3))),
        channel(under=contract(expiry_height=900_001)),
        channel(under=contract(change=P2TR)),
    ]
    digests = {on.state(paid_sat).digest for on in channels for paid_sat in (0, 1, 17_000)}
    assert len(digests) == 3 * len(channels)


# Signatures


@given(payable)
def test_a_signature_fits_its_amount_alone(paid_sat: int) -> None:
    on = channel()
    signature = on.sign(PAYER, paid_sat)
    assert signature == on.sign(PAYER, paid_sat)
    taken = on.verify(paid_sat, signature)
    assert taken[-1] == on.state(paid_sat).sighash
    assert len(taken) <= 72
    other_sat = paid_sat + 1 if paid_sat < USABLE_SAT - CHANGE_SAT_MIN else 0
    with pytest.raises(SignatureInvalid):
        on.verify(other_sat, signature)


SIGNED = channel().sign(PAYER, 5_000)


def high_s(signature: bytes) -> bytes:
    s = CURVE_ORDER - int.from_bytes(signature[32:], "big")
    return signature[:32] + s.to_bytes(32, "big")


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(64), id="zeros"),
        pytest.param(b"\xff" * 64, id="beyond the order"),
        pytest.param(SIGNED[:63], id="cut"),
        pytest.param(SIGNED + b"\x83", id="with its sighash"),
        pytest.param(SIGNED[32:] + SIGNED[:32], id="s before r"),
        pytest.param(bytes(32) + SIGNED[32:], id="r is zero"),
        pytest.param(SIGNED[:32] + bytes(32), id="s is zero"),
        pytest.param(high_s(SIGNED), id="high S"),
        pytest.param(channel().verify(5_000, SIGNED), id="DER"),
        pytest.param(channel().sign(PAYEE, 5_000), id="the payee's"),
        pytest.param(channel().sign(key(3), 5_000), id="a stranger's"),
        pytest.param(channel(2).sign(PAYER, 5_000), id="another channel's"),
        pytest.param(channel().sign(PAYER, 5_000, CLOSE_FEE_SAT - 1), id="another fee's"),
    ],
)
def test_any_other_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        channel().verify(5_000, signature)


def test_the_twin_with_a_high_s_is_a_signature_for_those_who_do_not_look() -> None:
    was_high, normal = signature_normalize(deserialize_compact(high_s(SIGNED)))
    assert was_high
    assert serialize_compact(normal) == SIGNED


@given(st.binary(max_size=80))
def test_garbage_is_no_signature(garbage: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        channel().verify(5_000, garbage)


def test_a_signature_is_of_a_payer_whose_key_is_a_key() -> None:
    on = channel(under=Contract(bytes(33), public_bytes(PAYEE), 900_000, P2WPKH, CLOSE_FEE_SAT))
    with pytest.raises(PayerKeyInvalid):
        on.verify(5_000, SIGNED)


# Ids


@pytest.mark.parametrize("vout", [0, 1, 10, 0xFFFFFFFF])
def test_a_channel_is_found_by_its_id(vout: int) -> None:
    on = channel(0xAB, vout=vout)
    assert parse_channel_id(on.id) == on.outpoint


TXID = "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        TXID,
        f"{TXID}:",
        f":{TXID}",
        f"{TXID}:00",
        f"{TXID}:01",
        f"{TXID}:-0",
        f"{TXID}:+1",
        f"{TXID}: 1",
        f"{TXID}:1 ",
        f" {TXID}:1",
        f"{TXID}:1\n",
        f"{TXID}:1:1",
        f"{TXID}:0x1",
        f"{TXID}:1.0",
        f"{TXID}:1e0",
        f"{TXID}:1_0",
        f"{TXID}:4294967296",
        f"{TXID}:99999999999",
        f"{TXID}:\u0661",
        f"{TXID.upper()}:1",
        f"{TXID[:-1]}A:1",
        f"{TXID[:-1]}:1",
        f"{TXID}0:1",
        f"0x{TXID[2:]}:1",
        f"{TXID[:-1]}g:1",
        f"{TXID};1",
    ],
)
def test_an_outpoint_is_written_in_one_way(text: str) -> None:
    with pytest.raises(OutpointMalformed):
        parse_channel_id(text)


# Keys


def test_the_payees_keys_follow_from_seed_and_nonce() -> None:
    seed, nonces = bytes(range(32)), [bytes([n]) * 16 for n in range(50)]
    keys = {payee_key(seed, nonce).secret for nonce in nonces}
    assert len(keys) == 50
    assert keys.isdisjoint(payee_key(bytes(32), nonce).secret for nonce in nonces)
    assert payee_key(seed, nonces[0]).secret == payee_key(seed, nonces[0]).secret


def test_a_wallets_key_is_read_and_written() -> None:
    """From BIP380: the same key for a compressed and for an uncompressed public key."""
    compressed = "L4rK1yDtCWekvXuE6oXD9jCYfFNV2cWRpVuPLBcCU2z8TrisoyY1"
    uncompressed = "5KYZdUEo39z3FPrtuX2QbbwGnNP5zTd7yyr2SC1j299sBCnWjss"
    read = key_of_wif(compressed, "mainnet")
    assert public_bytes(read).hex() == "03a34b99f22c790c4e36b2b3c2c35a36db06226e41c692fc82b8b56ac1c540c5bd"
    assert wif_of(read, "mainnet") == compressed
    for refused in (uncompressed, compressed[:-1], compressed[:-1] + "2", "1" + compressed, compressed * 2):
        with pytest.raises(BackupLineInvalid):
            key_of_wif(refused, "mainnet")
    with pytest.raises(BackupLineInvalid):
        key_of_wif(compressed, "regtest")


@given(st.integers(1, CURVE_ORDER - 1), st.sampled_from(["mainnet", "testnet4", "signet", "regtest"]))
def test_every_key_survives_its_wallet_import_format(secret: int, network: str) -> None:
    one = PrivateKey(secret.to_bytes(32, "big"))
    text = wif_of(one, network)
    assert len(text) == 52
    assert key_of_wif(text, network).secret == one.secret


@pytest.mark.parametrize("secret", [bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_a_number_that_is_no_key_is_refused(secret: bytes) -> None:
    octets = b"\xef" + secret + b"\x01"
    octets += hashlib.sha256(hashlib.sha256(octets).digest()).digest()[:4]
    number, text = int.from_bytes(octets, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + text
    with pytest.raises(BackupLineInvalid):
        key_of_wif(text, "regtest")


# The backup line


def test_descriptors_have_the_checksum_of_bip380() -> None:
    assert descriptor_checksum("raw(deadbeef)") == "89f8spxm"
    assert descriptor_checksum("raw(deedbeef)") != "89f8spxm"
    with pytest.raises(ValueError):
        descriptor_checksum("raw(Ü)")


@given(st.integers(1, CURVE_ORDER - 1), st.integers(17, 499_999_999))
def test_a_backup_line_has_all_that_a_refund_needs(secret: int, expiry_height: int) -> None:
    payer = PrivateKey(secret.to_bytes(32, "big"))
    agreed = contract(payer=payer, payee=key(5), expiry_height=expiry_height)
    backup = parse_backup_line(f" {agreed.backup_line(payer, 'signet')}\n", "signet")
    assert backup.payer.secret == payer.secret
    assert (backup.payee_key, backup.expiry_height) == (agreed.payee_key, expiry_height)
    assert backup.contract.script_pubkey == agreed.script_pubkey


LINE = contract().backup_line(PAYER, "regtest")


@given(st.integers(0, len(LINE) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_typing_error_in_a_backup_line_is_found(place: int, character: str) -> None:
    if LINE[place] == character:
        return
    with pytest.raises(BackupLineInvalid) as refused:
        parse_backup_line(LINE[:place] + character + LINE[place + 1 :], "regtest")
    assert wif_of(PAYER, "regtest") not in str(refused.value)


def with_checksum(text: str) -> str:
    return f"{text}#{descriptor_checksum(text)}"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="nothing"),
        pytest.param(LINE[:-9], id="without its checksum"),
        pytest.param(LINE[:-1], id="cut"),
        pytest.param(LINE + "q", id="too long"),
        pytest.param(LINE.replace("(", " ("), id="with spaces"),
        pytest.param(contract().descriptor, id="with a public key"),
        pytest.param(with_checksum(LINE[:-9].replace("900000", "500000000")), id="a time for an expiry"),
        pytest.param(with_checksum(LINE[:-9].replace("900000", "0")), id="no expiry"),
        pytest.param(with_checksum(LINE[:-9].replace("900000", "0900000")), id="a zero before the expiry"),
        pytest.param(with_checksum(f"wpkh({wif_of(PAYER, 'regtest')})"), id="another descriptor"),
        pytest.param(
            with_checksum(LINE[:-9].replace(public_bytes(PAYEE).hex(), public_bytes(PAYEE).hex().upper())),
            id="a key in capitals",
        ),
    ],
)
def test_what_is_no_backup_line_is_refused(line: str) -> None:
    with pytest.raises(BackupLineInvalid):
        parse_backup_line(line, "regtest")


@pytest.mark.parametrize(("made_on", "read_on"), [("regtest", "mainnet"), ("mainnet", "signet")])
def test_a_backup_line_of_another_network_is_refused(made_on: str, read_on: str) -> None:
    with pytest.raises(BackupLineInvalid, match=read_on):
        parse_backup_line(contract().backup_line(PAYER, made_on), read_on)


def test_a_refusal_is_a_channels() -> None:
    assert issubclass(BackupLineInvalid, ChannelError)


def test_a_deposit_of_all_the_coins_is_signed_for() -> None:
    on = channel(capacity_sat=MAX_MONEY_SAT)
    assert on.state(1).digest == sighash(on, on.state(1))
