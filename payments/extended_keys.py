"""Keys inside a descriptor's text, told apart by their Base58Check version. Pure.

A descriptor wants xpub (mainnet) or tpub (any test network). Many wallets export SLIP-132 versions instead,
whose first letter names the script: z and v are native segwit, y and u segwit in P2SH, capitals multisig.
The key behind is the same; only the version bytes differ. Sources: BIP32, SLIP-132; WIF as in Bitcoin Core.
"""

import re
from dataclasses import dataclass

from bitcoin.base58 import Base58Error, CBase58Data

EXTENDED_KEY_BYTES = 78
VERSION_BYTES = 4
DEPTH_AT = 4

BASE58_TOKEN = re.compile(r"[1-9A-HJ-NP-Za-km-z]{50,}")
"""Long enough to be a key: a WIF has 51 or 52 characters, an extended key 111."""


@dataclass(frozen=True, slots=True)
class KeyVersion:
    name: str
    """As the text of such a key begins: zpub; WIF for a single private key."""
    mainnet: bool
    private: bool = False
    script: str | None = None
    """The script a SLIP-132 version asks for, with {} for the key; None if it asks for none."""
    multisig: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    text: str
    version: KeyVersion
    depth: int = 0
    """Derivation steps below the wallet's master key; most wallets export account keys at depth 3."""


WPKH = "wpkh({})"
SH_WPKH = "sh(wpkh({}))"

EXTENDED_KEY_VERSIONS = {
    0x0488B21E: KeyVersion("xpub", mainnet=True),
    0x049D7CB2: KeyVersion("ypub", mainnet=True, script=SH_WPKH),
    0x04B24746: KeyVersion("zpub", mainnet=True, script=WPKH),
    0x0295B43F: KeyVersion("Ypub", mainnet=True, multisig=True),
    0x02AA7ED3: KeyVersion("Zpub", mainnet=True, multisig=True),
    0x043587CF: KeyVersion("tpub", mainnet=False),
    0x044A5262: KeyVersion("upub", mainnet=False, script=SH_WPKH),
    0x045F1CF6: KeyVersion("vpub", mainnet=False, script=WPKH),
    0x024289EF: KeyVersion("Upub", mainnet=False, multisig=True),
    0x02575483: KeyVersion("Vpub", mainnet=False, multisig=True),
    0x0488ADE4: KeyVersion("xprv", mainnet=True, private=True),
    0x049D7878: KeyVersion("yprv", mainnet=True, private=True),
    0x04B2430C: KeyVersion("zprv", mainnet=True, private=True),
    0x0295B005: KeyVersion("Yprv", mainnet=True, private=True),
    0x02AA7A99: KeyVersion("Zprv", mainnet=True, private=True),
    0x04358394: KeyVersion("tprv", mainnet=False, private=True),
    0x044A4E28: KeyVersion("uprv", mainnet=False, private=True),
    0x045F18BC: KeyVersion("vprv", mainnet=False, private=True),
    0x024285B5: KeyVersion("Uprv", mainnet=False, private=True),
    0x02575048: KeyVersion("Vprv", mainnet=False, private=True),
}
PLAIN_VERSION_MAINNET = 0x0488B21E
PLAIN_VERSION_TEST = 0x043587CF
WIF_MAINNET = 0x80
WIF_TEST = 0xEF


def keys_in(text: str) -> list[Key]:
    """Every extended key and private key in `text` whose checksum is right, in order."""
    keys = (decode_key(token) for token in BASE58_TOKEN.findall(text))
    return [key for key in keys if key is not None]


def decode_key(text: str) -> Key | None:
    """The key that `text` is; None if it is no known kind of key, or mistyped."""
    payload = _payload(text)
    if payload is None:
        return None
    if len(payload) == EXTENDED_KEY_BYTES:
        version = EXTENDED_KEY_VERSIONS.get(int.from_bytes(payload[:VERSION_BYTES], "big"))
        return None if version is None else Key(text, version, depth=payload[DEPTH_AT])
    if len(payload) in (33, 34) and payload[0] in (WIF_MAINNET, WIF_TEST):
        return Key(text, KeyVersion("WIF", mainnet=payload[0] == WIF_MAINNET, private=True))
    return None


def as_plain(key: Key) -> str:
    """The same public extended key as xpub or tpub, the versions a descriptor takes."""
    payload = _payload(key.text)
    assert payload is not None
    version = PLAIN_VERSION_MAINNET if key.version.mainnet else PLAIN_VERSION_TEST
    plain = version.to_bytes(VERSION_BYTES, "big") + payload[VERSION_BYTES:]
    return str(CBase58Data.from_bytes(plain[1:], plain[0]))


def _payload(text: str) -> bytes | None:
    try:
        decoded = CBase58Data(text)
    except Base58Error:
        return None
    return bytes([decoded.nVersion]) + bytes(decoded)
