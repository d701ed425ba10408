"""Contracts, channels and claims for tests, made of keys that follow from small numbers."""

from coincurve import PrivateKey

from payments.channel_close import Claim
from payments.channel_keys import public_bytes
from payments.channel_script import Channel, Contract
from payments.money import Sat
from payments.outputs import OutPoint

P2WPKH = bytes.fromhex("0014" + "11" * 20)
P2WSH = bytes.fromhex("0020" + "22" * 32)
P2TR = bytes.fromhex("5120" + "33" * 32)
P2PKH = bytes.fromhex("76a914" + "44" * 20 + "88ac")
P2SH = bytes.fromhex("a914" + "55" * 20 + "87")
CLOSE_FEE_SAT = Sat(1_000)
CAPACITY_SAT = Sat(20_000)
EXPIRY_HEIGHT = 900_000


def key(number: int) -> PrivateKey:
    return PrivateKey(number.to_bytes(32, "big"))


PAYER, PAYEE = key(1), key(2)


def contract(
    *,
    payer: PrivateKey = PAYER,
    payee: PrivateKey = PAYEE,
    expiry_height: int = EXPIRY_HEIGHT,
    change: bytes = P2WPKH,
    close_fee_sat: int = CLOSE_FEE_SAT,
) -> Contract:
    return Contract(public_bytes(payer), public_bytes(payee), expiry_height, change, Sat(close_fee_sat))


def channel(
    number: int = 1, *, capacity_sat: int = CAPACITY_SAT, under: Contract | None = None, vout: int = 0
) -> Channel:
    """The deposit `number` under one contract."""
    return Channel(under or contract(), OutPoint(f"{number:064x}", vout), Sat(capacity_sat))


def claim(
    on: Channel,
    paid_sat: int,
    *,
    fee_sat: int | None = None,
    payer: PrivateKey = PAYER,
    payee: PrivateKey = PAYEE,
) -> Claim:
    """What the payee holds once the payer has signed to have paid so much."""
    agreed = None if fee_sat is None else Sat(fee_sat)
    return Claim(on, Sat(paid_sat), on.sign(payer, paid_sat, fee_sat), payee, agreed)
