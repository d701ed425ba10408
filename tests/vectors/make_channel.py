"""Writes channel.json: `python tests/vectors/make_channel.py`. The same bytes every time.

Made by the payments package. tests/second_channel.py, written from docs/PROTOCOL.md alone, comes to the same.
"""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from coincurve import PrivateKey

from payments.channel import Balance, charged
from payments.channel_close import Claim, close_transaction, refund_transaction
from payments.channel_errors import ChannelError, SignatureInvalid, VoucherShort
from payments.channel_keys import CURVE_ORDER, payee_key, public_bytes, public_key, verified_der
from payments.channel_script import (
    Channel,
    Contract,
    descriptor_checksum,
    parse_backup_line,
    parse_channel_id,
)
from payments.errors import PaymentsError
from payments.money import Msat, Sat
from payments.segwit_address import PREFIXES, address_of

VECTORS = Path(__file__).with_name("channel.json")

Case = dict[str, Any]
P2WPKH, P2WSH, P2TR = "0014" + "11" * 20, "0020" + "22" * 32, "5120" + "33" * 32
P2PKH, P2SH = "76a914" + "44" * 20 + "88ac", "a914" + "55" * 20 + "87"
PAYER, PAYEE, OTHER = 0xC0FFEE, 0xB17CAC4E, 0x5EED
DEPOSIT = "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b:1"
SECOND = "0e3e2357e806b6cdb1f70b54c3a3a17b6714ee1f0e68bebb44a74b1efd512098:0"
THIRD = "9b0fc92260312ce44e74ef369f5c66bb85b66a5b2b0b1b9b1b1b1b1b1b1b1b1b:4294967295"
CAPACITY, CLOSE_FEE, EXPIRY = 20_000, 5_362, 900_000


def vectors() -> Case:
    """The whole file: one fact per case; `expect` is "ok" or the name of the refusal."""
    groups = [
        payee_keys,
        contracts,
        contracts_refused,
        channel_ids,
        states,
        signatures_refused,
        charges,
        closes,
        refunds,
        backup_lines,
        backup_lines_refused,
    ]
    cases = [case for group in groups for case in group()]
    assert len({case["name"] for case in cases}) == len(cases)
    return {
        "specification": "docs/PROTOCOL.md, section 17",
        "values": "bytes are hex; secrets are private keys; amounts are in sat, spent and cost in msat",
        "cases": cases,
    }


def as_text(document: Case) -> str:
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def name_of(refusal: PaymentsError) -> str:
    """`VoucherStale` is "voucher-stale"; one is called otherwise over HTTP, and so here."""
    if isinstance(refusal, SignatureInvalid):
        return "voucher-signature-invalid"
    name = type(refusal).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).removeprefix("-")


def made(name: str, kind: str, given: Case, compute: Callable[[Case], Case]) -> Case:
    """A case: what was given, and what came of it."""
    try:
        result = compute(given)
    except ChannelError as refusal:
        more = {"required_sat": refusal.required_sat} if isinstance(refusal, VoucherShort) else {}
        return {"name": name, "kind": kind, "expect": name_of(refusal), **given, **more}
    return {"name": name, "kind": kind, "expect": "ok", **given, **result}


# What is computed, from what is given


def secret(number: int) -> str:
    return f"{number:064x}"


def private(text: str) -> PrivateKey:
    return PrivateKey(bytes.fromhex(text))


def contract_of(given: Case) -> Contract:
    return Contract(
        bytes.fromhex(given["payer_key"]),
        bytes.fromhex(given["payee_key"]),
        given["expiry_height"],
        bytes.fromhex(given["change_script"]),
        Sat(given["close_fee"]),
    ).checked()


def channel_of(given: Case) -> Channel:
    return Channel(contract_of(given), parse_channel_id(given["channel_id"]), Sat(given["capacity"]))


def claim_of(given: Case) -> Claim:
    return Claim(
        channel_of(given),
        Sat(given["paid"]),
        bytes.fromhex(given["signature"]),
        private(given["payee_secret"]),
        given["fee"],
    )


def payee_key_result(given: Case) -> Case:
    key = payee_key(bytes.fromhex(given["seed"]), bytes.fromhex(given["nonce"]))
    return {"payee_secret": key.secret.hex(), "payee_key": public_bytes(key).hex()}


def contract_result(given: Case) -> Case:
    contract = contract_of(given)
    return {
        "witness_script": contract.witness_script.hex(),
        "script_pubkey": contract.script_pubkey.hex(),
        "addresses": {network: address_of(contract.script_pubkey, network) for network in PREFIXES},
        "descriptor": contract.descriptor,
    }


def channel_id_result(given: Case) -> Case:
    txid, vout = parse_channel_id(given["channel_id"])
    return {"txid": txid, "vout": vout}


def state_result(given: Case) -> Case:
    channel, payer = channel_of(given), private(given["payer_secret"])
    state = channel.state(given["paid"], given["fee"])
    return {
        "change": state.change_sat,
        "sighash": state.sighash,
        "digest": state.digest.hex(),
        "signature": channel.sign(payer, given["paid"], given["fee"]).hex(),
    }


def signature_result(given: Case) -> Case:
    der = channel_of(given).verify(given["paid"], bytes.fromhex(given["signature"]), given["fee"])
    return {"witness_signature": der.hex()}


def charge_result(given: Case) -> Case:
    balance = charged(
        Balance(Sat(given["accepted"]), b"", Msat(given["spent"])),
        cumulative_sat=given["paid"],
        signature=b"",
        cost_msat=given["cost"],
        limit_sat=given["limit"],
        confirmations=1,
    )
    return {"accepted_after": balance.accepted_sat, "spent_after": balance.spent_msat}


def close_result(given: Case) -> Case:
    close = close_transaction(
        [claim_of(one) for one in given["claims"]],
        bytes.fromhex(given["payee_script"]),
        feerate_sat_kvb=given["feerate"],
    )
    return {"txid": close.txid, "transaction": close.raw.hex(), "received": list(close.received_sat)}


def refund_result(given: Case) -> Case:
    raw = refund_transaction(
        channel_of(given),
        private(given["payer_secret"]),
        bytes.fromhex(given["script_pubkey"]),
        feerate_sat_kvb=given["feerate"],
    )
    return {"transaction": raw.hex()}


def backup_result(given: Case) -> Case:
    backup = parse_backup_line(given["line"], given["network"])
    return {
        "payer_secret": backup.payer.secret.hex(),
        "payee_key": backup.payee_key.hex(),
        "expiry_height": backup.expiry_height,
        "script_pubkey": backup.contract.script_pubkey.hex(),
    }


# What is given


def contract(**changed: Any) -> Case:
    given = {
        "payer_key": public(PAYER),
        "payee_key": public(PAYEE),
        "expiry_height": EXPIRY,
        "change_script": P2WPKH,
        "close_fee": CLOSE_FEE,
    }
    return {**given, **changed}


def public(number: int) -> str:
    return public_bytes(private(secret(number))).hex()


def channel(**changed: Any) -> Case:
    return {**contract(), "channel_id": DEPOSIT, "capacity": CAPACITY, **changed}


def signed(paid: int, *, fee: int | None = None, payer: int = PAYER, **changed: Any) -> Case:
    given = channel(**changed)
    signature = channel_of(given).sign(private(secret(payer)), paid, fee)
    return {**given, "paid": paid, "fee": fee, "signature": signature.hex()}


def payee_keys() -> Iterator[Case]:
    for n, (seed, nonce) in enumerate([(bytes(32), bytes(16)), (bytes(range(32)), bytes(range(16)))]):
        given = {"seed": seed.hex(), "nonce": nonce.hex()}
        yield made(f"payee's key {n}", "payee_key", given, payee_key_result)


def contracts() -> Iterator[Case]:
    named = {"P2WPKH": P2WPKH, "P2WSH": P2WSH, "P2TR": P2TR}
    for script, change in named.items():
        yield made(f"change to {script}", "contract", contract(change_script=change), contract_result)
    for height in (1, 16, 17, 127, 128, 255, 256, 32_767, 32_768, 8_388_607, 8_388_608, 499_999_999):
        yield made(f"expiry {height}", "contract", contract(expiry_height=height), contract_result)


def contracts_refused() -> Iterator[Case]:
    changed: dict[str, Case] = {
        "change to P2PKH": {"change_script": P2PKH},
        "change to P2SH": {"change_script": P2SH},
        "change to nothing": {"change_script": ""},
        "change to an anchor": {"change_script": "51024e73"},
        "change to version 1 with 20 bytes": {"change_script": "5114" + "11" * 20},
        "payer's key not on the curve": {"payer_key": "02" + "00" * 31 + "05"},
        "payer's key uncompressed": {
            "payer_key": private(secret(PAYER)).public_key.format(compressed=False).hex()
        },
        "payer's key cut": {"payer_key": public(PAYER)[:-2]},
        "payer's key is the payee's": {"payer_key": public(PAYEE)},
        "no expiry": {"expiry_height": 0},
        "expiry is a time": {"expiry_height": 500_000_000},
    }
    for name, change in changed.items():
        yield made(f"refused: {name}", "contract", contract(**change), contract_result)


def channel_ids() -> Iterator[Case]:
    txid = DEPOSIT[:64]
    for text in (DEPOSIT, f"{txid}:0", THIRD):
        yield made(f"channel id ends in {text[64:]}", "channel_id", {"channel_id": text}, channel_id_result)
    numbers = count(1)
    for text in (
        "",
        txid,
        f"{txid}:",
        f"{txid}:00",
        f"{txid}:01",
        f"{txid}:+1",
        f"{txid}:-1",
        f"{txid}: 1",
        f"{txid}:1 ",
        f"{txid}:1\n",
        f"{txid}:0x1",
        f"{txid}:1_0",
        f"{txid}:\u0661",
        f"{txid}:4294967296",
        f"{txid}:1:1",
        f"{txid[1:]}:1",
        f"0{txid}:1",
        f"{txid.upper()}:1",
        f"g{txid[1:]}:1",
    ):
        name = f"no channel id, {next(numbers)}"
        yield made(name, "channel_id", {"channel_id": text}, channel_id_result)


def states() -> Iterator[Case]:
    usable = CAPACITY - CLOSE_FEE
    changed: list[tuple[str, int, int | None, Case]] = [
        ("nothing paid", 0, None, {}),
        ("100 sat paid", 100, None, {}),
        ("100 sat paid, fee 5362", 100, 5_362, {}),
        ("5100 sat paid, fee 362: the same digest", 5_100, 362, {}),
        ("least change", usable - 330, None, {}),
        ("drained", usable, None, {}),
        ("drained by a cooperative close", CAPACITY - 200, 200, {}),
        ("no fee", 100, 0, {}),
        ("change to P2WSH", 100, None, {"change_script": P2WSH}),
        ("change to P2TR", 100, None, {"change_script": P2TR}),
        ("another deposit", 100, None, {"channel_id": SECOND}),
        ("the last output", 100, None, {"channel_id": THIRD}),
        ("another capacity", 100, None, {"capacity": CAPACITY + 1}),
        ("all coins there are", 100, None, {"capacity": 2_100_000_000_000_000}),
        ("expiry of four bytes", 100, None, {"expiry_height": 8_388_608}),
        ("change of 329 sat", usable - 329, None, {}),
        ("change of 1 sat", usable - 1, None, {}),
        ("1 sat more than the deposit", usable + 1, None, {}),
        ("1 sat more than the deposit, fee agreed", CAPACITY - 199, 200, {}),
        ("less than nothing", -1, None, {}),
        ("a fee below nothing", 0, -1, {}),
        ("deposit below the close fee", 0, None, {"capacity": CLOSE_FEE - 1}),
    ]
    for name, paid, fee, change in changed:
        given = {**channel(**change), "payer_secret": secret(PAYER), "paid": paid, "fee": fee}
        yield made(f"state: {name}", "state", given, state_result)


def signatures_refused() -> Iterator[Case]:
    right = signed(100)
    signature = bytes.fromhex(right["signature"])
    high_s = CURVE_ORDER - int.from_bytes(signature[32:], "big")
    key, digest = public_key(bytes.fromhex(right["payer_key"])), channel_of(right).state(100).digest
    named: dict[str, Case] = {
        "right": {},
        "drained": signed(CAPACITY - CLOSE_FEE),
        "cooperative": signed(5_100, fee=362),
        "of another amount": {"paid": 101},
        "of another fee": {"fee": 5_361},
        "of another deposit": {"channel_id": SECOND},
        "of another key": {"signature": signed(100, payer=OTHER)["signature"]},
        "the payee's": {"signature": signed(100, payer=PAYEE)["signature"]},
        "high s": {"signature": (signature[:32] + high_s.to_bytes(32, "big")).hex()},
        "zeros": {"signature": "00" * 64},
        "beyond the order": {"signature": "ff" * 64},
        "cut": {"signature": signature[:-1].hex()},
        "with a sighash": {"signature": signature.hex() + "83"},
        "DER": {"signature": verified_der(key, digest, signature).hex()},
        "nothing": {"signature": ""},
    }
    for name, change in named.items():
        yield made(f"signature: {name}", "signature", {**right, **change}, signature_result)


def charges() -> Iterator[Case]:
    named = {
        "first": (0, 0, 10, 10_000, 500),
        "part of a sat": (0, 0, 1, 1, 500),
        "rest of a sat": (1, 999, 1, 1, 500),
        "voucher alone": (10, 10_000, 20, 0, 500),
        "retry with an old voucher": (30, 30_000, 10, 0, 500),
        "older voucher, covered by the highest": (30, 10_000, 10, 20_000, 500),
        "as much as is risked": (0, 0, 500, 500_000, 500),
        "more than is risked": (0, 0, 501, 1_000, 500),
        "short": (10, 10_000, 11, 1_001, 500),
        "short by part of a sat": (1, 1_000, 1, 1, 500),
        "stale": (30, 30_000, 29, 1, 500),
    }
    for name, (accepted, spent, paid, cost, limit) in named.items():
        given = {"accepted": accepted, "spent": spent, "paid": paid, "cost": cost, "limit": limit}
        yield made(f"charge: {name}", "charge", given, charge_result)


def closes() -> Iterator[Case]:
    def claim(paid: int, **changed: Any) -> Case:
        return {**signed(paid, **changed), "payee_secret": secret(PAYEE)}

    usable = CAPACITY - CLOSE_FEE
    second = {"channel_id": SECOND, "change_script": P2TR}
    named: dict[str, tuple[list[Case], str, int]] = {
        "unilateral": ([claim(5_000)], P2TR, 2_000),
        "cooperative": ([claim(5_000, fee=364)], P2TR, 2_000),
        "drained": ([claim(usable)], P2WPKH, 1_000),
        "too little for an output": ([claim(10, close_fee=300)], P2TR, 1_000),
        "three, the drained one first": (
            [claim(usable), claim(100, **second), claim(7_000, channel_id=THIRD)],
            P2TR,
            1_001,
        ),
        "two deposits of one contract": ([claim(5), claim(6, channel_id=SECOND)], P2WSH, 3_333),
        "brings less than the fee": ([claim(10, close_fee=300)], P2TR, 3_000),
        "drained, brings too little": ([claim(400, capacity=400, close_fee=0)], P2TR, 1_000),
        "a signature that is wrong": ([{**claim(5_000), "paid": 5_001}], P2TR, 1_000),
    }
    for name, (claims, script, feerate) in named.items():
        given = {"claims": claims, "payee_script": script, "feerate": feerate}
        yield made(f"close: {name}", "close", given, close_result)


def refunds() -> Iterator[Case]:
    for name, script, feerate in (
        ("to P2WPKH", P2WPKH, 1_000),
        ("to P2TR", P2TR, 12_345),
        ("to P2PKH", P2PKH, 2_000),
        ("that would be dust", P2WPKH, 1_000_000),
    ):
        given = {
            **channel(),
            "payer_secret": secret(PAYER),
            "script_pubkey": script,
            "feerate": feerate,
        }
        yield made(f"refund {name}", "refund", given, refund_result)


def backup_lines() -> Iterator[Case]:
    for network in PREFIXES:
        line = contract_of(contract()).backup_line(private(secret(PAYER)), network)
        yield made(f"backup line, {network}", "backup", {"line": line, "network": network}, backup_result)


def backup_lines_refused() -> Iterator[Case]:
    agreed, payer = contract_of(contract()), private(secret(PAYER))
    line, mainnet = agreed.backup_line(payer, "regtest"), agreed.backup_line(payer, "mainnet")
    text = line[:-9]

    def with_checksum(changed: str) -> str:
        return f"{changed}#{descriptor_checksum(changed)}"

    named = {
        "of another network": mainnet,
        "without its checksum": text,
        "wrong checksum": line[:-1] + ("q" if line[-1] != "q" else "p"),
        "typing error": line.replace("900000", "900001"),
        "expiry is a time": with_checksum(text.replace("900000", "500000000")),
        "zero before the expiry": with_checksum(text.replace("900000", "0900000")),
        "public key": agreed.descriptor,
        "payee's key in capitals": with_checksum(text.replace(public(PAYEE), public(PAYEE).upper())),
        "key with a wrong checksum": with_checksum(text.replace("v:pk(c", "v:pk(d")),
        "another descriptor": with_checksum(f"wpkh({text[18:70]})"),
        "nothing": "",
    }
    for name, changed in named.items():
        given = {"line": changed, "network": "regtest"}
        yield made(f"backup line refused: {name}", "backup", given, backup_result)


KINDS: dict[str, Callable[[Case], Case]] = {
    "payee_key": payee_key_result,
    "contract": contract_result,
    "channel_id": channel_id_result,
    "state": state_result,
    "signature": signature_result,
    "charge": charge_result,
    "close": close_result,
    "refund": refund_result,
    "backup": backup_result,
}


if __name__ == "__main__":
    VECTORS.write_text(as_text(vectors()), encoding="utf-8")
