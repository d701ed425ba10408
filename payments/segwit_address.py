"""Segwit addresses: the text of a witness program, in bech32 and bech32m. Pure.

A buyer's client has no node to ask, and must not believe the server which address is its own channel's.
Sources: BIP173 (bech32), BIP350 (bech32m from witness version 1 on).
"""

from collections.abc import Iterable, Mapping

from payments.channel_errors import AddressInvalid

CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
PREFIXES: Mapping[str, str] = {"mainnet": "bc", "testnet4": "tb", "signet": "tb", "regtest": "bcrt"}
"""Network -> human-readable part."""
ADDRESS_CHARACTERS_MAX = 90
CHECKSUM_CHARACTERS = 6
BECH32, BECH32M = 1, 0x2BC830A3
PROGRAM_BYTES = range(2, 41)
V0_PROGRAM_BYTES = (20, 32)
OP_0, OP_1 = 0x00, 0x51
VERSION_OF_OPCODE: Mapping[int, int] = {OP_0: 0, **{OP_1 + n: n + 1 for n in range(16)}}
"""Opcode -> witness version, 0 to 16."""
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def address_of(script_pubkey: bytes, network: str) -> str:
    """The address of a segwit scriptPubKey. Raises AddressInvalid for any other script."""
    version, program = _witness_program(script_pubkey)
    words = [version, *_regrouped(program, from_bits=8, to_bits=5, pad=True)]
    prefix = PREFIXES[network]
    constant = BECH32 if version == 0 else BECH32M
    polymod = _polymod([*_expanded(prefix), *words, *[0] * CHECKSUM_CHARACTERS]) ^ constant
    checksum = [polymod >> 5 * (CHECKSUM_CHARACTERS - 1 - n) & 31 for n in range(CHECKSUM_CHARACTERS)]
    return prefix + "1" + "".join(CHARACTERS[word] for word in (*words, *checksum))


def script_pubkey_of(address: str, network: str) -> bytes:
    """The scriptPubKey that a segwit address of this network stands for. Raises AddressInvalid."""
    text = address.lower()
    prefix, _, data = text.rpartition("1")
    # First, since old addresses have both cases.
    if prefix != PREFIXES[network]:
        raise AddressInvalid(f"Give a segwit address of {network}: it begins with {PREFIXES[network]}1.")
    if not address.isascii() or address not in (text, address.upper()):
        raise AddressInvalid("An address is all in lower case or all in capitals: copy it again.")
    if (
        len(text) > ADDRESS_CHARACTERS_MAX
        or len(data) <= CHECKSUM_CHARACTERS
        or not set(data) <= set(CHARACTERS)
    ):
        raise AddressInvalid("That is no segwit address: a character is wrong, or it is cut off.")
    words = [CHARACTERS.index(character) for character in data]
    version = words[0]
    if _polymod([*_expanded(prefix), *words]) != (BECH32 if version == 0 else BECH32M):
        raise AddressInvalid("The address has a typing error: its checksum does not fit. Copy it again.")
    program = bytes(_regrouped(words[1:-CHECKSUM_CHARACTERS], from_bits=5, to_bits=8, pad=False))
    script_pubkey = bytes([OP_1 - 1 + version if version else OP_0, len(program)]) + program
    _witness_program(script_pubkey)
    return script_pubkey


def _witness_program(script_pubkey: bytes) -> tuple[int, bytes]:
    """(version, program). Raises AddressInvalid."""
    if len(script_pubkey) < 2 or script_pubkey[1] != len(script_pubkey) - 2:
        raise AddressInvalid("That script is no witness program.")
    opcode, program = script_pubkey[0], script_pubkey[2:]
    if opcode not in VERSION_OF_OPCODE:
        raise AddressInvalid("That script is no witness program.")
    version = VERSION_OF_OPCODE[opcode]
    if len(program) not in (V0_PROGRAM_BYTES if version == 0 else PROGRAM_BYTES):
        raise AddressInvalid(f"No witness program of version {version} has {len(program)} bytes.")
    return version, program


def _regrouped(groups: Iterable[int], *, from_bits: int, to_bits: int, pad: bool) -> list[int]:
    """The same bits in groups of another size. Raises AddressInvalid for a rest that is no padding."""
    held, bits, out = 0, 0, []
    for group in groups:
        held = held << from_bits | group
        bits += from_bits
        while bits >= to_bits:
            bits -= to_bits
            out.append(held >> bits & (1 << to_bits) - 1)
    rest = held & (1 << bits) - 1
    if pad:
        return [*out, rest << to_bits - bits] if bits else out
    if bits >= from_bits or rest:
        raise AddressInvalid("That is no segwit address: it ends in the middle of a byte.")
    return out


def _expanded(prefix: str) -> list[int]:
    return [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix)]


def _polymod(words: Iterable[int]) -> int:
    checksum = 1
    for word in words:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ word
        for n, generator in enumerate(_GENERATOR):
            checksum ^= generator if top >> n & 1 else 0
    return checksum
