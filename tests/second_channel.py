"""Payment channels, written a second time from section 17 of docs/PROTOCOL.md and the BIPs it names alone."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tests import second_curve as curve

SEQUENCE = bytes.fromhex("fdffffff")
PREFIX = {"mainnet": "bc", "testnet4": "tb", "signet": "tb", "regtest": "bcrt"}
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
DESCRIPTOR = (
    "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ "
)


class Refused(Exception):
    """`name`: a word of section 17."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def twice(octets: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(octets).digest()).digest()


def uint(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little")


def sized(octets: bytes) -> bytes:
    """With its compact size before it."""
    assert len(octets) < 0xFD
    return bytes([len(octets)]) + octets


# 17.1


def payee_secret(seed: bytes, nonce: bytes) -> int:
    extracted = hmac.digest(bytes(32), seed, "sha256")
    info, okm, block = b"bitcache/v1/channel-key" + nonce, b"", b""
    for n in (b"\x01", b"\x02"):
        block = hmac.digest(extracted, block + info + n, "sha256")
        okm += block
    return int.from_bytes(okm[:48], "big") % (curve.N - 1) + 1


@dataclass(frozen=True)
class Contract:
    payer: bytes
    payee: bytes
    expiry: int
    change_script: bytes
    close_fee: int

    def check(self) -> None:
        if curve.point_of(self.payer) is None or self.payer == self.payee:
            raise Refused("payer-key-invalid")
        if not 1 <= self.expiry <= 499_999_999:
            raise Refused("expiry-impossible")
        if not re.fullmatch(r"0014.{40}|0020.{64}|5120.{64}", self.change_script.hex()):
            raise Refused("change-script-refused")

    @cached_property
    def witness_script(self) -> bytes:
        number = uint(self.expiry, 8).rstrip(b"\0")
        number += b"\0" if number[-1] >= 0x80 else b""
        push = bytes([0x50 + self.expiry]) if self.expiry <= 16 else sized(number)
        return b"\x21" + self.payer + b"\xad\x21" + self.payee + b"\xac\x73\x64" + push + b"\xb1\x68"

    @property
    def script_pubkey(self) -> bytes:
        return b"\x00\x20" + hashlib.sha256(self.witness_script).digest()

    @property
    def descriptor(self) -> str:
        return descriptor(self.payer.hex(), self.payee, self.expiry)


def descriptor(payer: str, payee: bytes, expiry: int) -> str:
    text = f"wsh(and_v(v:pk({payer}),or_d(pk({payee.hex()}),after({expiry}))))"
    return f"{text}#{descriptor_checksum(text)}"


def descriptor_checksum(text: str) -> str:
    """BIP380."""
    symbols: list[int] = []
    places = [DESCRIPTOR.index(character) for character in text]
    for at in range(0, len(places), 3):
        group = places[at : at + 3]
        high = 0
        for place in group:
            high = high * 3 + place // 32
        symbols += [*(place % 32 for place in group), high]
    generator = (0xF5DEE51989, 0xA9FDCA3312, 0x1BAB10E32D, 0x3706B1677A, 0x644D626FFD)
    checksum = polymod([*symbols, *[0] * 8], generator, bits=40) ^ 1
    return "".join(BECH32[checksum >> shift & 31] for shift in range(35, -1, -5))


def address(script_pubkey: bytes, network: str) -> str:
    """BIP173 and BIP350, of a witness program."""
    version = max(0, script_pubkey[0] - 0x50)
    bits = "".join(f"{octet:08b}" for octet in script_pubkey[2:])
    bits += "0" * (-len(bits) % 5)
    words = [version, *(int(bits[at : at + 5], 2) for at in range(0, len(bits), 5))]
    prefix = PREFIX[network]
    spread = [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix)]
    generator = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
    checksum = polymod([*spread, *words, *[0] * 6], generator, bits=30) ^ (0x2BC830A3 if version else 1)
    words += [checksum >> shift & 31 for shift in range(25, -1, -5)]
    return f"{prefix}1{''.join(BECH32[word] for word in words)}"


def polymod(symbols: Sequence[int], generator: Sequence[int], *, bits: int) -> int:
    checksum = 1
    for symbol in symbols:
        top = checksum >> bits - 5
        checksum = (checksum << 5) % 2**bits ^ symbol
        for n, term in enumerate(generator):
            checksum ^= term * (top >> n & 1)
    return checksum


# 17.2, 17.3


def outpoint(channel_id: str) -> tuple[str, int]:
    found = re.fullmatch(r"([0-9a-f]{64}):(0|[1-9][0-9]*)", channel_id)
    if not found or int(found[2]) > 4_294_967_295:
        raise Refused("outpoint-malformed")
    return found[1], int(found[2])


@dataclass(frozen=True)
class Channel:
    contract: Contract
    id: str
    capacity: int

    @property
    def wire_outpoint(self) -> bytes:
        txid, vout = outpoint(self.id)
        return bytes.fromhex(txid)[::-1] + uint(vout, 4)

    def change(self, paid: int, fee: int | None) -> int:
        fee = self.contract.close_fee if fee is None else fee
        change = self.capacity - fee - paid
        if min(change, paid, fee) < 0:
            raise Refused("voucher-over-deposit")
        if 1 <= change <= 329:
            raise Refused("voucher-dust-change")
        return change

    def state(self, paid: int, fee: int | None) -> tuple[bytes, int, int]:
        """Digest, sighash, change."""
        change = self.change(paid, fee)
        sighash = 0x83 if change else 0x82
        outputs = twice(uint(change, 8) + sized(self.contract.change_script)) if change else bytes(32)
        return self.digest(3, bytes(32), bytes(32), outputs, 0, sighash), sighash, change

    def digest(
        self, version: int, prevouts: bytes, sequences: bytes, outputs: bytes, locktime: int, sighash: int
    ) -> bytes:
        """BIP143."""
        return twice(
            uint(version, 4)
            + prevouts
            + sequences
            + self.wire_outpoint
            + sized(self.contract.witness_script)
            + uint(self.capacity, 8)
            + SEQUENCE
            + outputs
            + uint(locktime, 4)
            + uint(sighash, 4)
        )

    def signed(self, paid: int, signature: bytes, fee: int | None) -> bytes:
        """The payer's signature for the witness."""
        digest, sighash, _ = self.state(paid, fee)
        if not curve.verifies(curve.point_of(self.contract.payer), digest, signature):
            raise Refused("voucher-signature-invalid")
        return curve.der(signature) + bytes([sighash])


def charge(accepted: int, spent: int, paid: int, cost: int, limit: int) -> tuple[int, int]:
    if paid > limit:
        raise Refused("confirmations-needed")
    if -(-(spent + cost) // 1_000) > max(paid, accepted):
        raise Refused("voucher-stale" if paid < accepted else "voucher-short")
    return max(paid, accepted), spent + cost


# 17.4, 17.6


@dataclass(frozen=True)
class Claim:
    channel: Channel
    paid: int
    fee: int | None
    signature: bytes
    payee: int

    @property
    def change(self) -> int:
        return self.channel.change(self.paid, self.fee)

    @property
    def brings(self) -> int:
        return self.channel.capacity - self.change


@dataclass(frozen=True)
class Transaction:
    version: int
    channels: Sequence[Channel]
    outputs: Sequence[tuple[int, bytes]]
    locktime: int

    @property
    def output_bytes(self) -> bytes:
        return b"".join(uint(amount, 8) + sized(script) for amount, script in self.outputs)

    def sign(self, n: int, secret: int) -> bytes:
        """By SIGHASH_ALL."""
        prevouts = twice(b"".join(one.wire_outpoint for one in self.channels))
        sequences = twice(SEQUENCE * len(self.channels))
        outputs = twice(self.output_bytes)
        digest = self.channels[n].digest(self.version, prevouts, sequences, outputs, self.locktime, 1)
        return curve.der(curve.sign(secret, digest)) + b"\x01"

    def stripped(self) -> tuple[bytes, bytes, bytes]:
        inputs = b"".join(one.wire_outpoint + b"\0" + SEQUENCE for one in self.channels)
        body = bytes([len(self.channels)]) + inputs + bytes([len(self.outputs)]) + self.output_bytes
        return uint(self.version, 4), body, uint(self.locktime, 4)

    def raw(self, signatures: Sequence[tuple[bytes, bytes]]) -> bytes:
        version, body, locktime = self.stripped()
        witness = b"".join(
            b"\x03" + sized(first) + sized(second) + sized(one.contract.witness_script)
            for one, (first, second) in zip(self.channels, signatures, strict=True)
        )
        return version + b"\0\x01" + body + witness + locktime

    def txid(self) -> str:
        return twice(b"".join(self.stripped()))[::-1].hex()

    def vbytes(self, *, first: int) -> int:
        """With signatures of 72 bytes; `first`: the length of the first one."""
        whole = len(self.raw([(bytes(first), bytes(72))] * len(self.channels)))
        return -(-(3 * len(b"".join(self.stripped())) + whole) // 4)


def dust(script_pubkey: bytes) -> int:
    """Bitcoin Core's, of the segwit scripts and P2PKH."""
    return {22: 294, 34: 330, 25: 546}[len(script_pubkey)]


def fee_of(vbytes: int, feerate: int) -> int:
    return -(-vbytes * feerate // 1_000)


def close(claims: Sequence[Claim], payee_script: bytes, feerate: int) -> tuple[str, bytes, list[int]]:
    """Txid, transaction, and what each channel receives."""
    ordered = [one for one in claims if one.change] + [one for one in claims if not one.change]
    payers = [one.channel.signed(one.paid, one.signature, one.fee) for one in ordered]
    change = [(one.change, one.channel.contract.change_script) for one in ordered if one.change]
    channels, brings = [one.channel for one in ordered], sum(one.brings for one in ordered)
    vbytes = Transaction(3, channels, [*change, (0, payee_script)], 0).vbytes(first=72)
    payee = brings - fee_of(vbytes, feerate)
    outputs = [*change, (payee, payee_script)]
    if payee < dust(payee_script):
        payee, outputs = 0, change
        least = fee_of(Transaction(3, channels, change, 0).vbytes(first=72), feerate)
        if not change or brings < least:
            raise Refused("close-uneconomic")
    transaction = Transaction(3, channels, outputs, 0)
    signatures = [transaction.sign(n, one.payee) for n, one in enumerate(ordered)]
    received, before = [], 0
    for one in claims:
        after = before + one.brings
        received.append(payee * after // brings - payee * before // brings)
        before = after
    return transaction.txid(), transaction.raw(list(zip(signatures, payers, strict=True))), received


def refund(channel: Channel, payer: int, script_pubkey: bytes, feerate: int) -> bytes:
    expiry = channel.contract.expiry
    vbytes = Transaction(2, [channel], [(0, script_pubkey)], expiry).vbytes(first=0)
    amount = channel.capacity - fee_of(vbytes, feerate)
    if amount < dust(script_pubkey):
        raise Refused("refund-too-small")
    transaction = Transaction(2, [channel], [(amount, script_pubkey)], expiry)
    return transaction.raw([(b"", transaction.sign(0, payer))])


# 17.7


def wif(secret: int, network: str) -> str:
    octets = (b"\x80" if network == "mainnet" else b"\xef") + secret.to_bytes(32, "big") + b"\x01"
    number, text = int.from_bytes(octets + twice(octets)[:4], "big"), ""
    while number:
        number, place = divmod(number, 58)
        text = BASE58[place] + text
    return text


def backup_line(contract: Contract, payer: int, network: str) -> str:
    return descriptor(wif(payer, network), contract.payee, contract.expiry)


def read_backup_line(line: str, network: str) -> tuple[int, bytes, int]:
    """The payer's secret, the payee's key, EXPIRY."""
    text = line.strip()
    found = re.fullmatch(
        r"(wsh\(and_v\(v:pk\((\w{52})\),or_d\(pk\(([0-9a-f]{66})\),after\(([1-9][0-9]*)\)\)\)\))#(\w{8})",
        text,
        re.ASCII,
    )
    if not found or int(found[4]) > 499_999_999 or descriptor_checksum(found[1]) != found[5]:
        raise Refused("backup-line-invalid")
    number = 0
    for character in found[2]:
        if character not in BASE58:
            raise Refused("backup-line-invalid")
        number = number * 58 + BASE58.index(character)
    secret = number >> 40 & 2**256 - 1
    if not 0 < secret < curve.N or wif(secret, network) != found[2]:
        raise Refused("backup-line-invalid")
    return secret, bytes.fromhex(found[3]), int(found[4])
