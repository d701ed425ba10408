"""Keys, digests and base64url: what opens, what is refused, and by which name."""

import base64
import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import base64url, digests, keys
from storage.errors import (
    DigestMismatch,
    DigestsInvalid,
    HeaderInvalid,
    KeyUnwrapFailed,
    ReleaseSecretWrong,
    RootMismatch,
    SecretSizeWrong,
)
from storage.stream import CHUNK_SIZE_BYTES, new_header

LINK_SECRET, RELEASE_SECRET, FILE_KEY = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
PARCEL_KEY = keys.parcel_key(LINK_SECRET, RELEASE_SECRET)


def flipped(octets: bytes, at: int) -> bytes:
    changed = bytearray(octets)
    changed[at] ^= 1
    return bytes(changed)


# Keys


def test_secrets_are_fresh() -> None:
    secrets = {keys.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {keys.SECRET_SIZE_BYTES}


def test_every_key_is_for_one_use() -> None:
    derived = [
        PARCEL_KEY,
        keys.parcel_key(RELEASE_SECRET, LINK_SECRET),
        keys.key_check(PARCEL_KEY),
        keys.key_check(LINK_SECRET),
        keys.metadata_key(LINK_SECRET),
        keys.metadata_key(PARCEL_KEY),
        keys.release_commitment(RELEASE_SECRET),
    ]
    assert len(set(derived)) == len(derived)
    assert {len(key) for key in derived} == {32}


def test_a_wrapped_key_opens_with_its_parcel_key_and_header() -> None:
    header = new_header()
    wrapped = keys.wrap_file_key(PARCEL_KEY, FILE_KEY, header)

    assert len(wrapped) == keys.WRAPPED_FILE_KEY_SIZE_BYTES == 60
    assert keys.unwrap_file_key(PARCEL_KEY, wrapped, header) == FILE_KEY
    assert keys.wrap_file_key(PARCEL_KEY, FILE_KEY, header) != wrapped


@pytest.mark.parametrize("at", [0, 11, 12, 43, 44, 59])
def test_an_altered_wrapped_key(at: int) -> None:
    header = new_header()
    wrapped = keys.wrap_file_key(PARCEL_KEY, FILE_KEY, header)
    with pytest.raises(KeyUnwrapFailed):
        keys.unwrap_file_key(PARCEL_KEY, flipped(wrapped, at), header)


def test_a_wrapped_key_of_another_file_or_parcel() -> None:
    header, other_header = new_header(), new_header()
    wrapped = keys.wrap_file_key(PARCEL_KEY, FILE_KEY, header)
    with pytest.raises(KeyUnwrapFailed):
        keys.unwrap_file_key(PARCEL_KEY, wrapped, other_header)
    with pytest.raises(KeyUnwrapFailed):
        keys.unwrap_file_key(keys.parcel_key(LINK_SECRET, LINK_SECRET), wrapped, header)


@pytest.mark.parametrize("length", [0, 12, 28, 59, 61])
def test_a_wrapped_key_of_the_wrong_length(length: int) -> None:
    with pytest.raises(KeyUnwrapFailed):
        keys.unwrap_file_key(PARCEL_KEY, bytes(length), new_header())


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_secrets_of_the_wrong_length(length: int) -> None:
    wrong = bytes(length)
    with pytest.raises(SecretSizeWrong):
        keys.parcel_key(wrong, RELEASE_SECRET)
    with pytest.raises(SecretSizeWrong):
        keys.parcel_key(LINK_SECRET, wrong)
    with pytest.raises(SecretSizeWrong):
        keys.wrap_file_key(PARCEL_KEY, wrong, new_header())
    with pytest.raises(SecretSizeWrong):
        keys.wrap_file_key(wrong, FILE_KEY, new_header())
    with pytest.raises(SecretSizeWrong):
        keys.unwrap_file_key(wrong, bytes(60), new_header())
    with pytest.raises(SecretSizeWrong):
        keys.release_commitment(wrong)
    with pytest.raises(SecretSizeWrong):
        keys.key_check(wrong)
    with pytest.raises(SecretSizeWrong):
        keys.metadata_key(wrong)


def test_wrapping_needs_a_real_header() -> None:
    with pytest.raises(HeaderInvalid):
        keys.wrap_file_key(PARCEL_KEY, FILE_KEY, bytes(40))


def test_the_metadata_proves_the_release_secret() -> None:
    commitment, check = keys.release_commitment(RELEASE_SECRET), keys.key_check(PARCEL_KEY)

    def proven(link_secret: bytes, release_secret: bytes, commitment: bytes, check: bytes) -> bytes:
        return keys.proven_parcel_key(
            link_secret, release_secret, expected_commitment=commitment, expected_key_check=check
        )

    assert proven(LINK_SECRET, RELEASE_SECRET, commitment, check) == PARCEL_KEY
    with pytest.raises(ReleaseSecretWrong):
        proven(LINK_SECRET, flipped(RELEASE_SECRET, 0), commitment, check)
    with pytest.raises(ReleaseSecretWrong):
        proven(flipped(LINK_SECRET, 0), RELEASE_SECRET, commitment, check)
    with pytest.raises(ReleaseSecretWrong):
        proven(LINK_SECRET, RELEASE_SECRET, commitment, flipped(check, 31))
    with pytest.raises(ReleaseSecretWrong):
        proven(LINK_SECRET, RELEASE_SECRET, flipped(commitment, 0), check)


# Digests


def test_the_root_is_over_the_digests_in_order() -> None:
    one, two = digests.chunk_digest(b"one"), digests.chunk_digest(b"two")

    assert one == hashlib.sha256(b"one").digest()
    assert digests.root(one + two) == hashlib.sha256(one + two).digest()
    assert digests.root(one + two) != digests.root(two + one)
    assert digests.split(one + two) == [one, two]


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES + 1])
def test_a_list_of_digests_has_one_for_each_chunk_begun(size: int) -> None:
    ciphertext = os.urandom(size)
    chunks = [ciphertext[at : at + 1_048_576] for at in range(0, size, 1_048_576)]
    expected = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    assert digests.chunk_digests(ciphertext) == expected
    assert digests.chunk_digests(memoryview(ciphertext)) == expected


def test_each_chunk_is_held_against_its_own_digest() -> None:
    both = digests.chunk_digest(b"one") + digests.chunk_digest(b"two")

    digests.verify_chunk(1, b"two", both)
    with pytest.raises(DigestMismatch) as refused:
        digests.verify_chunk(0, b"two", both)
    assert refused.value.chunk_index == 0
    assert refused.value.expected == both[:32]
    assert refused.value.actual == both[32:]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            digests.verify_chunk(index, b"two", both)


def test_a_list_of_digests_is_held_against_root_and_count() -> None:
    both = digests.chunk_digest(b"one") + digests.chunk_digest(b"two")

    digests.verify_root(both, digests.root(both), chunk_count=2)
    with pytest.raises(RootMismatch):
        digests.verify_root(flipped(both, 63), digests.root(both), chunk_count=2)
    with pytest.raises(DigestsInvalid):
        digests.verify_root(both, digests.root(both), chunk_count=3)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 65])
def test_a_cut_list_of_digests(length: int) -> None:
    with pytest.raises(DigestsInvalid):
        digests.root(bytes(length))
    with pytest.raises(DigestsInvalid):
        digests.split(bytes(length))


# base64url


@given(st.binary(max_size=100))
def test_base64url_round_trip(octets: bytes) -> None:
    text = base64url.encode(octets)
    assert base64url.decode(text) == octets
    assert text == base64.urlsafe_b64encode(octets).decode().rstrip("=")


@pytest.mark.parametrize("text", ["A", "AA==", "AB", "AAB", "A+", "A/", "AA\n", "A A", "é", "AAAAA"])
def test_base64url_has_one_form(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        base64url.decode(text)
