"""Partially signed transactions, version 0, as far as we read and write them. Pure. Source: BIP174."""

import base64
import binascii
import struct
from collections.abc import Sequence
from io import BytesIO

from bitcoin.core.serialize import SerializationError, VarIntSerializer, ser_read

from payments.errors import PsbtInvalid

PSBT_CHARACTERS_MAX = 24 * 1024 * 1024
"""In base64. The node takes 32 MiB in one call; a thousand outputs are some 100 kB."""
MAGIC = b"psbt\xff"
KEY_UNSIGNED_TRANSACTION = b"\x00"
KEY_VERSION = b"\xfb"
KEY_PREVIOUS_TRANSACTION = b"\x00"

WHAT_TO_GIVE = 'give the signed PSBT in base64: it begins with "cHNidP8"'


def unsigned_psbt(unsigned: bytes, previous: Sequence[bytes | None], *, outputs: int) -> str:
    """A PSBT of these transaction bytes, in base64.

    `previous`: for each input, in order, the whole transaction that made its coin, where it is known.
    `outputs`: how many outputs the transaction has.
    """
    maps = [_map({KEY_UNSIGNED_TRANSACTION: unsigned})]
    maps += [_map({} if one is None else {KEY_PREVIOUS_TRANSACTION: one}) for one in previous]
    maps += [_map({})] * outputs
    return base64.b64encode(MAGIC + b"".join(maps)).decode()


def transaction_in(psbt: str) -> bytes:
    """The unsigned transaction that a PSBT is about, whatever of it is signed. Raises PsbtInvalid."""
    stream = BytesIO(decoded(psbt)[len(MAGIC) :])
    entries: dict[bytes, bytes] = {}
    try:
        while key := _read(stream):
            entries[key] = _read(stream)
    except (SerializationError, struct.error) as exc:
        raise PsbtInvalid(f"the PSBT is cut off or damaged: {WHAT_TO_GIVE}, whole") from exc
    if KEY_UNSIGNED_TRANSACTION not in entries:
        version = int.from_bytes(entries.get(KEY_VERSION, b""), "little")
        raise PsbtInvalid(
            f"the PSBT is of version {version}, and the node reads version 0: have the wallet export that one"
            if version
            else f"the PSBT holds no transaction: {WHAT_TO_GIVE}"
        )
    return entries[KEY_UNSIGNED_TRANSACTION]


def decoded(psbt: str) -> bytes:
    """The PSBT's bytes; white space in its base64 is passed over. Raises PsbtInvalid."""
    if len(psbt) > PSBT_CHARACTERS_MAX:
        raise PsbtInvalid(f"{len(psbt):,} characters are more than a PSBT may have: {WHAT_TO_GIVE}")
    try:
        octets = base64.b64decode("".join(psbt.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise PsbtInvalid(f"this is no PSBT: {WHAT_TO_GIVE}") from exc
    if not octets.startswith(MAGIC):
        raise PsbtInvalid(f"this is no PSBT: {WHAT_TO_GIVE}")
    return octets


def _map(entries: dict[bytes, bytes]) -> bytes:
    return b"".join(_sized(key) + _sized(value) for key, value in entries.items()) + b"\x00"


def _sized(octets: bytes) -> bytes:
    return bytes(VarIntSerializer.serialize(len(octets))) + octets


def _read(stream: BytesIO) -> bytes:
    return bytes(ser_read(stream, VarIntSerializer.stream_deserialize(stream)))
