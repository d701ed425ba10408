"""Ids and tokens have their shape and never repeat."""

import hashlib

import pytest

from bitcache.ids import is_id, new_id, new_token, token_hash


def test_ids_have_their_shape_and_do_not_repeat() -> None:
    ids = {new_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(is_id(made) for made in ids)
    # 128 bits in 26 characters of 5: the last one carries 3.
    assert {made[-1] for made in ids} <= set("aeimquy4")


@pytest.mark.parametrize(
    "text", ["", "a" * 25, "a" * 27, "A" * 26, "a" * 25 + "1", "a" * 25 + "\n", "../" + "a" * 23]
)
def test_other_shapes_are_no_ids(text: str) -> None:
    assert not is_id(text)


def test_tokens_say_what_they_open_and_are_kept_as_hashes() -> None:
    token = new_token("bcs_")
    assert token.startswith("bcs_")
    assert len(token) == 4 + 52
    assert token != new_token("bcs_")
    assert token_hash(token) == hashlib.sha256(token.encode()).digest()
