"""Keys and signatures of payment channels, through libsecp256k1. Pure.

A signature travels compact: r and s, 32 bytes each, big-endian. libsecp256k1 takes low S only (BIP146), so
that nobody makes a second one of it.
Sources: BIP62 (low S), RFC 5869 (HKDF), Bitcoin's wallet import format.
"""

import hashlib

from coincurve import PrivateKey, PublicKey
from coincurve.ecdsa import cdata_to_der, der_to_cdata, deserialize_compact, serialize_compact
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from payments.channel_errors import BackupLineInvalid, PayerKeyInvalid, SignatureInvalid

PUBLIC_KEY_BYTES = 33
SECRET_BYTES = 32
SEED_BYTES = 32
NONCE_BYTES = 16
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
CHANNEL_KEY_INFO = b"bitcache/v1/channel-key"
WIF_MAINNET, WIF_TEST = 0x80, 0xEF
WIF_COMPRESSED = b"\x01"
WIF_CHARACTERS = 52
"""Of a key whose public key is compressed."""
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def payee_key(seed: bytes, nonce: bytes) -> PrivateKey:
    """The payee's key of the channel whose terms have this nonce: HKDF-SHA256 of the operator's channel seed.

    The seed alone brings all of them back. Reduced modulo the curve's order of 48 bytes, so that no value is
    noticeably likelier than another.
    """
    derived = HKDF(hashes.SHA256(), 48, salt=None, info=CHANNEL_KEY_INFO + nonce).derive(seed)
    scalar = int.from_bytes(derived, "big") % (CURVE_ORDER - 1) + 1
    return PrivateKey(scalar.to_bytes(SECRET_BYTES, "big"))


def public_bytes(key: PrivateKey) -> bytes:
    """33 bytes, compressed."""
    return key.public_key.format()


def public_key(compressed: bytes) -> PublicKey:
    """Raises PayerKeyInvalid unless these are 33 bytes of a point on the curve."""
    try:
        if len(compressed) != PUBLIC_KEY_BYTES:
            raise ValueError
        return PublicKey(compressed)
    except ValueError as exc:
        raise PayerKeyInvalid from exc


def sign(key: PrivateKey, digest: bytes) -> bytes:
    """Over these 32 bytes; 64 bytes, the same every time (RFC 6979)."""
    compact: bytes = serialize_compact(der_to_cdata(key.sign(digest, hasher=None)))
    return compact


def verified_der(key: PublicKey, digest: bytes, signature: bytes) -> bytes:
    """The same signature as scripts take it (DER). Raises SignatureInvalid."""
    try:
        der = cdata_to_der(deserialize_compact(signature))
        if not key.verify(der, digest, hasher=None):
            raise SignatureInvalid
    except ValueError as exc:
        raise SignatureInvalid from exc
    return der


def wif_of(key: PrivateKey, network: str) -> str:
    """Wallet import format, for a compressed public key."""
    version = WIF_MAINNET if network == "mainnet" else WIF_TEST
    payload = bytes([version]) + key.secret + WIF_COMPRESSED
    number = int.from_bytes(payload + _checksum(payload), "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = BASE58[digit] + text
    return text  # the version is not zero: no leading ones


def key_of_wif(wif: str, network: str) -> PrivateKey:
    """Raises BackupLineInvalid."""
    refusal = BackupLineInvalid(f"The key in the line is none of {network}: copy the whole line again.")
    if len(wif) != WIF_CHARACTERS or not set(wif) <= set(BASE58):
        raise refusal
    number = 0
    for character in wif:
        number = number * 58 + BASE58.index(character)
    octets = number.to_bytes(39, "big")  # 52 characters may say a bit more than the 38 bytes there are
    payload, checksum = octets[1:-4], octets[-4:]
    version = WIF_MAINNET if network == "mainnet" else WIF_TEST
    whole = octets[:2] == bytes([0, version]) and payload[-1:] == WIF_COMPRESSED
    if not whole or _checksum(payload) != checksum:
        raise refusal
    try:
        return PrivateKey(payload[1:-1])
    except ValueError as exc:
        raise refusal from exc


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
