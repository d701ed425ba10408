"""Secrets at rest, sealed under the server's master key: a dump of the database alone opens none.

    sealed = version || nonce[12] || AES-256-GCM(subkey, plaintext, aad = table, row id, version)

A sealed value opens only in the row it was sealed for, so rows cannot be swapped behind the server's back.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bitcache.errors import SealBroken

MASTER_KEY_SIZE_BYTES = 32
NONCE_SIZE_BYTES = 12


class Sealer:
    """Seals and opens; immutable, so tasks and threads may share it."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != MASTER_KEY_SIZE_BYTES:
            raise ValueError(f"the master key is {len(master_key)} bytes, not {MASTER_KEY_SIZE_BYTES}")
        self._master_key = master_key
        self._gcm = AESGCM(self._subkey("seal"))

    def seal(self, plaintext: bytes, *, table: str, row_id: str, version: int = 1) -> bytes:
        """`plaintext` for one row; 29 bytes longer. `version` (0 to 255): how the plaintext is laid out."""
        nonce = os.urandom(NONCE_SIZE_BYTES)
        sealed = self._gcm.encrypt(nonce, plaintext, _associated_data(table, row_id, version))
        return bytes([version]) + nonce + sealed

    def open(self, sealed: bytes, *, table: str, row_id: str) -> bytes:
        """The plaintext. Raises SealBroken: altered, of another row, or sealed under another master key."""
        version, nonce = sealed[:1], sealed[1 : 1 + NONCE_SIZE_BYTES]
        try:
            associated_data = _associated_data(table, row_id, version[0])
            return self._gcm.decrypt(nonce, sealed[1 + NONCE_SIZE_BYTES :], associated_data)
        except (InvalidTag, IndexError, ValueError) as exc:
            raise SealBroken(table, row_id) from exc

    def mac_key(self, purpose: str) -> bytes:
        """A 32-byte key for MACs of one purpose, such as "grant-token"; the same at every start."""
        return self._subkey(f"mac/{purpose}")

    def _subkey(self, purpose: str) -> bytes:
        return HKDF(SHA256(), 32, salt=None, info=f"bitcache/v1/server/{purpose}".encode()).derive(
            self._master_key
        )


def _associated_data(table: str, row_id: str, version: int) -> bytes:
    # NUL is in no table name and no id, so two different rows never give the same bytes.
    return b"\0".join((table.encode(), row_id.encode(), bytes([version])))
