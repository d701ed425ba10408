"""Keys of a parcel. Two halves make the parcel key; the parcel key wraps one key per file.

    parcel_key = HKDF-SHA256(link_secret || release_secret, info="bitcache/v1/parcel-key")
    wrapped    = nonce[12] || AES-256-GCM(parcel_key, nonce, file_key, aad="bitcache/v1/file-key" || header)

The link secret never reaches the server; the server gives the release secret out once the parcel is paid.
Neither half alone opens a file; the link secret alone opens the metadata. All secrets and keys are 32 bytes,
HKDF has no salt.
"""

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from storage.errors import KeyUnwrapFailed, ReleaseSecretWrong, SecretSizeWrong
from storage.stream import check_header

SECRET_SIZE_BYTES = 32
NONCE_SIZE_BYTES = 12
WRAPPED_FILE_KEY_SIZE_BYTES = NONCE_SIZE_BYTES + SECRET_SIZE_BYTES + 16

PARCEL_KEY_INFO = b"bitcache/v1/parcel-key"
KEY_CHECK_INFO = b"bitcache/v1/key-check"
METADATA_INFO = b"bitcache/v1/metadata"
RELEASE_PREFIX = b"bitcache/v1/release"
FILE_KEY_PREFIX = b"bitcache/v1/file-key"


def new_secret() -> bytes:
    """32 fresh random bytes: a file key, a link secret, a release secret or a claim secret."""
    return os.urandom(SECRET_SIZE_BYTES)


def parcel_key(link_secret: bytes, release_secret: bytes) -> bytes:
    """The key that wraps the file keys of a parcel. Raises SecretSizeWrong."""
    _check_secret("link secret", link_secret)
    _check_secret("release secret", release_secret)
    return _hkdf(link_secret + release_secret, PARCEL_KEY_INFO)


def proven_parcel_key(
    link_secret: bytes, release_secret: bytes, *, expected_commitment: bytes, expected_key_check: bytes
) -> bytes:
    """The parcel key, once the commitment and key check of the metadata prove the release secret right.

    Raises SecretSizeWrong, ReleaseSecretWrong (the metadata proves that the server gave out a wrong secret).
    """
    if not hmac.compare_digest(release_commitment(release_secret), expected_commitment):
        raise ReleaseSecretWrong(
            "The server gave a secret that the seller did not commit to. Keep the receipt."
        )
    key = parcel_key(link_secret, release_secret)
    if not hmac.compare_digest(key_check(key), expected_key_check):
        raise ReleaseSecretWrong("The secret does not go with this link. Ask the seller for the right link.")
    return key


def wrap_file_key(parcel_key: bytes, file_key: bytes, header: bytes) -> bytes:
    """`file_key` sealed under the parcel key and bound to its file's header, 60 bytes.

    Raises SecretSizeWrong, HeaderInvalid.
    """
    _check_secret("parcel key", parcel_key)
    _check_secret("file key", file_key)
    nonce = os.urandom(NONCE_SIZE_BYTES)
    return nonce + AESGCM(parcel_key).encrypt(nonce, file_key, FILE_KEY_PREFIX + check_header(header))


def unwrap_file_key(parcel_key: bytes, wrapped: bytes, header: bytes) -> bytes:
    """The file key inside `wrapped`. Raises SecretSizeWrong, HeaderInvalid, KeyUnwrapFailed."""
    _check_secret("parcel key", parcel_key)
    aad = FILE_KEY_PREFIX + check_header(header)
    if len(wrapped) != WRAPPED_FILE_KEY_SIZE_BYTES:
        raise KeyUnwrapFailed(f"A wrapped key has 60 bytes, not {len(wrapped)}. Ask the server again.")
    nonce, sealed = wrapped[:NONCE_SIZE_BYTES], wrapped[NONCE_SIZE_BYTES:]
    try:
        return AESGCM(parcel_key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise KeyUnwrapFailed(
            "The wrapped key is altered or of another parcel or file. Keep the receipt and tell the seller."
        ) from None


def release_commitment(release_secret: bytes) -> bytes:
    """SHA-256 by which the metadata pins the release secret without telling it. Raises SecretSizeWrong."""
    _check_secret("release secret", release_secret)
    return hashlib.sha256(RELEASE_PREFIX + release_secret).digest()


def key_check(parcel_key: bytes) -> bytes:
    """32 bytes by which whoever has both halves sees that they belong together. Raises SecretSizeWrong."""
    _check_secret("parcel key", parcel_key)
    return _hkdf(parcel_key, KEY_CHECK_INFO)


def metadata_key(link_secret: bytes) -> bytes:
    """The key that seals the metadata of the parcel. Raises SecretSizeWrong."""
    _check_secret("link secret", link_secret)
    return _hkdf(link_secret, METADATA_INFO)


def _hkdf(key_material: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), SECRET_SIZE_BYTES, None, info).derive(key_material)


def _check_secret(name: str, secret: bytes) -> None:
    if len(secret) != SECRET_SIZE_BYTES:
        raise SecretSizeWrong(name, length_bytes=len(secret))
