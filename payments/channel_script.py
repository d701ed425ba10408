"""What payer and payee of a channel sign: its script, and the state of each voucher. Pure.

    funding    wsh(and_v(v:pk(C),or_d(pk(S),after(EXPIRY))))     C the payer's key, S the payee's
    state n    version 3, this input alone, SINGLE|ANYONECANPAY over the payer's change of the same index:
               change = capacity - close_fee - paid, to the payer's own scriptPubKey
    drained    change = 0: NONE|ANYONECANPAY, there is no change output

The payer signs the change and nothing else, so the payee alone chooses where the rest goes, the feerate,
further inputs and outputs. Version 3 (BIP431) keeps whoever owns the change from pinning the close: its one
unconfirmed child has at most 1,000 vB. A cooperative close is a state with a lower close fee.
Sources: BIP143 (sighash), BIP379 (miniscript), BIP380 (descriptors), BIP431 (version 3, TRUC).
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from coincurve import PrivateKey, PublicKey

from payments.channel_errors import (
    BackupLineInvalid,
    ChangeScriptRefused,
    ExpiryImpossible,
    OutpointMalformed,
    PayerKeyInvalid,
    VoucherDustChange,
    VoucherOverDeposit,
)
from payments.channel_keys import key_of_wif, public_bytes, public_key, sign, verified_der, wif_of
from payments.money import Sat
from payments.outputs import OutPoint
from payments.segwit_address import CHARACTERS

VERSION = 3
SEQUENCE = 0xFFFFFFFD
"""Replaceable (BIP125), and no relative lock."""
SIGHASH_ALL = 0x01
SIGHASH_SINGLE_ANYONECANPAY = 0x83
SIGHASH_NONE_ANYONECANPAY = 0x82
CHANGE_SAT_MIN = Sat(330)
"""Bitcoin Core's dust limit of P2WSH and P2TR, the highest of all segwit outputs."""
EXPIRY_HEIGHTS = range(1, 500_000_000)
"""From 500,000,000 on a locktime is a time, no height (BIP65)."""
OP_1, OP_CHECKSIG, OP_CHECKSIGVERIFY = 0x51, 0xAC, 0xAD
OP_IFDUP, OP_NOTIF, OP_CHECKLOCKTIMEVERIFY, OP_ENDIF = 0x73, 0x64, 0xB1, 0x68
_CHANGE_SCRIPTS = ((b"\x00\x14", 22), (b"\x00\x20", 34), (b"\x51\x20", 34))
_OUTPOINT = re.compile(r"(?P<txid>[0-9a-f]{64}):(?P<vout>0|[1-9][0-9]{0,9})")
_BACKUP = re.compile(
    r"wsh\(and_v\(v:pk\((?P<payer>[1-9A-HJ-NP-Za-km-z]{52})\),or_d\(pk\((?P<payee>[0-9a-f]{66})\),"
    r"after\((?P<expiry>[1-9][0-9]{0,8})\)\)\)\)#(?P<checksum>[a-z0-9]{8})"
)
# BIP380.
_DESCRIPTOR_CHARACTERS = (
    "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ "
)
_CHECKSUM_GENERATOR = (0xF5DEE51989, 0xA9FDCA3312, 0x1BAB10E32D, 0x3706B1677A, 0x644D626FFD)


class State(NamedTuple):
    """What the payer signs for one amount."""

    digest: bytes
    """32 bytes."""
    sighash: int
    change_sat: Sat


@dataclass(frozen=True, slots=True)
class Contract:
    """On what payer and payee agree before there is money. Keys and expiry fix the address."""

    payer_key: bytes
    """33 bytes, compressed; alike `payee_key`."""
    payee_key: bytes
    expiry_height: int
    """From this height on the payer alone may take the deposit back."""
    change_script_pubkey: bytes
    close_fee_sat: Sat
    """Of the deposit, set aside for the close's network fee."""

    def checked(self) -> "Contract":
        """Itself. Raises PayerKeyInvalid, ChangeScriptRefused, ExpiryImpossible."""
        public_key(self.payer_key)
        # No wallet takes a descriptor in which a key stands twice (BIP379).
        if self.payer_key == self.payee_key:
            raise PayerKeyInvalid
        if self.expiry_height not in EXPIRY_HEIGHTS:
            raise ExpiryImpossible(self.expiry_height)
        script = self.change_script_pubkey
        if not any(script[:2] == head and len(script) == length for head, length in _CHANGE_SCRIPTS):
            raise ChangeScriptRefused
        return self

    @property
    def witness_script(self) -> bytes:
        return b"".join(
            (
                _push(self.payer_key),
                bytes([OP_CHECKSIGVERIFY]),
                _push(self.payee_key),
                bytes([OP_CHECKSIG, OP_IFDUP, OP_NOTIF]),
                _push_number(self.expiry_height),
                bytes([OP_CHECKLOCKTIMEVERIFY, OP_ENDIF]),
            )
        )

    @property
    def script_pubkey(self) -> bytes:
        """P2WSH of the witness script: 34 bytes."""
        return b"\x00\x20" + hashlib.sha256(self.witness_script).digest()

    @property
    def descriptor(self) -> str:
        """Public keys only, with its checksum."""
        return _descriptor(self.payer_key.hex(), self.payee_key, self.expiry_height)

    def backup_line(self, payer: PrivateKey, network: str) -> str:
        """All that a wallet needs for a refund after EXPIRY: the descriptor with the payer's key."""
        return _descriptor(wif_of(payer, network), self.payee_key, self.expiry_height)


class Backup(NamedTuple):
    """What a backup line says."""

    payer: PrivateKey
    payee_key: bytes
    expiry_height: int

    @property
    def contract(self) -> Contract:
        """As much of it as a refund needs: change and close fee are not in the line."""
        return Contract(public_bytes(self.payer), self.payee_key, self.expiry_height, b"", Sat(0))


class Channel:
    """One deposit under a contract. Keeps what is the same in all that is signed for it."""

    __slots__ = ("_change_tail", "_payer", "_preimage_head", "capacity_sat", "contract", "outpoint")

    def __init__(self, contract: Contract, outpoint: OutPoint, capacity_sat: Sat) -> None:
        self.contract = contract
        self.outpoint = outpoint
        self.capacity_sat = capacity_sat
        # Made when the first voucher comes: most of the channels that a process loads are asleep.
        self._payer: PublicKey | None = None
        self._preimage_head: bytes | None = None
        script = contract.change_script_pubkey
        self._change_tail = bytes([len(script)]) + script

    @property
    def id(self) -> str:
        return str(self.outpoint)

    @property
    def paid_sat_max(self) -> Sat:
        """With this the channel is drained."""
        return Sat(self.capacity_sat - self.contract.close_fee_sat)

    def state(self, paid_sat: int, fee_sat: int | None = None) -> State:
        """What the payer signs to have paid so much; `fee_sat`: agreed for a cooperative close.

        Raises VoucherOverDeposit, VoucherDustChange.
        """
        fee_sat = self.contract.close_fee_sat if fee_sat is None else fee_sat
        usable_sat = self.capacity_sat - fee_sat
        change_sat = usable_sat - paid_sat
        if min(change_sat, paid_sat, fee_sat) < 0:
            raise VoucherOverDeposit(max_sat=Sat(usable_sat))
        if 0 < change_sat < CHANGE_SAT_MIN:
            raise VoucherDustChange(max_sat=Sat(usable_sat - CHANGE_SAT_MIN), whole_sat=Sat(usable_sat))
        if change_sat:
            sighash = SIGHASH_SINGLE_ANYONECANPAY
            hash_outputs = _sha256_twice(struct.pack("<q", change_sat) + self._change_tail)
        else:
            sighash, hash_outputs = SIGHASH_NONE_ANYONECANPAY, bytes(32)
        preimage = self._head() + hash_outputs + struct.pack("<II", 0, sighash)
        return State(_sha256_twice(preimage), sighash, Sat(change_sat))

    def sign(self, payer: PrivateKey, paid_sat: int, fee_sat: int | None = None) -> bytes:
        """The payer's signature, 64 bytes. Raises as `state`.

        With a lower fee it is also a voucher for more: digest(100, fee 5362) is digest(5100, fee 362).
        """
        return sign(payer, self.state(paid_sat, fee_sat).digest)

    def verify(self, paid_sat: int, signature: bytes, fee_sat: int | None = None) -> bytes:
        """The payer's signature as the script takes it: DER, sighash. Raises as `state`, SignatureInvalid."""
        if self._payer is None:
            self._payer = public_key(self.contract.payer_key)
        state = self.state(paid_sat, fee_sat)
        return verified_der(self._payer, state.digest, signature) + bytes([state.sighash])

    def _head(self) -> bytes:
        """The BIP143 preimage up to hashOutputs."""
        if self._preimage_head is None:
            script = self.contract.witness_script
            self._preimage_head = (
                struct.pack("<i", VERSION)
                + bytes(64)  # hashPrevouts and hashSequence: anyone can pay
                + bytes.fromhex(self.outpoint.txid)[::-1]
                + struct.pack("<I", self.outpoint.vout)
                + bytes([len(script)])
                + script
                + struct.pack("<qI", self.capacity_sat, SEQUENCE)
            )
        return self._preimage_head


def parse_channel_id(text: str) -> OutPoint:
    """The outpoint that is a channel's id. Raises OutpointMalformed for every other way of writing it."""
    match = _OUTPOINT.fullmatch(text)
    if match is None or int(match["vout"]) > 0xFFFFFFFF:
        raise OutpointMalformed
    return OutPoint(match["txid"], int(match["vout"]))


def parse_backup_line(line: str, network: str) -> Backup:
    """Raises BackupLineInvalid."""
    text = line.strip()
    match = _BACKUP.fullmatch(text)
    if match is None or int(match["expiry"]) not in EXPIRY_HEIGHTS:
        raise BackupLineInvalid(
            "That is not the backup line of a channel: it begins with wsh( and ends in #..."
        )
    if descriptor_checksum(text.partition("#")[0]) != match["checksum"]:
        raise BackupLineInvalid("The line has a typing error: its checksum does not fit. Copy it again.")
    payer = key_of_wif(match["payer"], network)
    return Backup(payer, bytes.fromhex(match["payee"]), int(match["expiry"]))


def descriptor_checksum(descriptor: str) -> str:
    """Eight characters of bech32 (BIP380). `descriptor` has only characters that descriptors may have."""
    symbols, groups = [], []
    for character in descriptor:
        place = _DESCRIPTOR_CHARACTERS.index(character)
        symbols.append(place & 31)
        groups.append(place >> 5)
        if len(groups) == 3:
            symbols.append(groups[0] * 9 + groups[1] * 3 + groups[2])
            groups = []
    if groups:
        symbols.append(groups[0] if len(groups) == 1 else groups[0] * 3 + groups[1])
    checksum = 1
    for symbol in (*symbols, *[0] * 8):
        top = checksum >> 35
        checksum = (checksum & 0x7FFFFFFFF) << 5 ^ symbol
        for n, generator in enumerate(_CHECKSUM_GENERATOR):
            checksum ^= generator if top >> n & 1 else 0
    checksum ^= 1
    return "".join(CHARACTERS[checksum >> 5 * (7 - n) & 31] for n in range(8))


def _descriptor(payer_key: str, payee: bytes, expiry_height: int) -> str:
    text = f"wsh(and_v(v:pk({payer_key}),or_d(pk({payee.hex()}),after({expiry_height}))))"
    return f"{text}#{descriptor_checksum(text)}"


def _push(octets: bytes) -> bytes:
    """At most 75 bytes."""
    return bytes([len(octets)]) + octets


def _push_number(number: int) -> bytes:
    """Of at least 1, minimally: OP_1 to OP_16, or little-endian with the top bit free for the sign."""
    if number <= 16:
        return bytes([OP_1 - 1 + number])
    return _push(number.to_bytes(number.bit_length() // 8 + 1, "little"))


def _sha256_twice(octets: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(octets).digest()).digest()
