"""Keys and signatures of payment channels, through libsecp256k1. Pure.

A signature travels compact: r and s, 32 bytes each, big-endian. libsecp256k1 takes low S only (BIP146), so
that nobody makes a second one of it.
Sources: BIP62 (low S), RFC 5869 (HKDF), Bitcoin's wallet import format.
"""

from bitcoin.base58 import Base58Error, CBase58Data
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
    return str(CBase58Data.from_bytes(key.secret + WIF_COMPRESSED, _wif_version(network)))


def key_of_wif(wif: str, network: str) -> PrivateKey:
    """Raises BackupLineInvalid."""
    refusal = BackupLineInvalid(f"The key in the line is none of {network}: copy the whole line again.")
    try:
        data = CBase58Data(wif)
    except Base58Error as exc:
        raise refusal from exc
    secret, compressed = data[:SECRET_BYTES], data[SECRET_BYTES:]
    if data.nVersion != _wif_version(network) or compressed != WIF_COMPRESSED:
        raise refusal
    try:
        return PrivateKey(secret)
    except ValueError as exc:
        raise refusal from exc


def _wif_version(network: str) -> int:
    return WIF_MAINNET if network == "mainnet" else WIF_TEST
