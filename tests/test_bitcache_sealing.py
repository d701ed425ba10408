"""Sealed values open in their own row, under their own master key, and nowhere else."""

import pytest

from bitcache.errors import SealBroken
from bitcache.sealing import Sealer

SEALER = Sealer(bytes(range(32)))


def test_what_is_sealed_opens_again() -> None:
    for plaintext in (b"", b"x", bytes(5000)):
        sealed = SEALER.seal(plaintext, table="parcels", row_id="a")
        assert SEALER.open(sealed, table="parcels", row_id="a") == plaintext
        assert len(sealed) == len(plaintext) + 29


def test_sealing_twice_gives_different_bytes() -> None:
    sealed = {SEALER.seal(b"secret", table="t", row_id="a") for _ in range(50)}
    assert len(sealed) == 50


def test_another_row_table_version_or_key_opens_nothing() -> None:
    sealed = SEALER.seal(b"secret", table="parcels", row_id="a", version=1)
    with pytest.raises(SealBroken):
        SEALER.open(sealed, table="parcels", row_id="b")
    with pytest.raises(SealBroken):
        SEALER.open(sealed, table="descriptors", row_id="a")
    with pytest.raises(SealBroken):
        SEALER.open(b"\x02" + sealed[1:], table="parcels", row_id="a")
    with pytest.raises(SealBroken):
        Sealer(bytes(32)).open(sealed, table="parcels", row_id="a")


def test_every_altered_or_truncated_byte_is_noticed() -> None:
    sealed = SEALER.seal(b"secret", table="t", row_id="a")
    for at in range(len(sealed)):
        flipped = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        for damaged in (flipped, sealed[:at]):
            with pytest.raises(SealBroken):
                SEALER.open(damaged, table="t", row_id="a")


def test_mac_keys_differ_by_purpose_and_by_master_key() -> None:
    keys = {
        SEALER.mac_key("grant-token"),
        SEALER.mac_key("challenge"),
        Sealer(bytes(32)).mac_key("grant-token"),
    }
    assert len(keys) == 3
    assert SEALER.mac_key("grant-token") == Sealer(bytes(range(32))).mac_key("grant-token")


def test_a_master_key_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32"):
        Sealer(bytes(31))
