"""Hypothesis strategies that hurt valid inputs a little, where their grammar has its joints.

The tests of parsers run few examples by default, and FUZZ_EXAMPLES each in `make soak-fuzz`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
HANG_MS = 5_000
"""A parser that takes longer over one input is a way to stop the server."""

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=HANG_MS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)

JOINTS = (
    "", " ", "\t", "\r\n", "\0", "\x7f", "\x1b[2J", "/", "//", "\\", ".", "..", ":", "#", "?", "@", "%",
    "%2f", "%00", "=", "-", "_", "+", ",", ";", "*", "'", '"', "<", ">", "(", ")", "[", "]", "{", "}", "|",
    "0", "-1", "9" * 30, "1e9", "\u0661", "\u00e9", "e\u0301", "\u0130", "\u202e", "\u2028", "\ufeff",
    "\U0001f600", "\ud800", "a" * 300, "NaN", "null", "true", "../", "CON", "nul.txt", "h",
    "xprv", "Bearer ", "Payment ",
)  # fmt: skip
LYING_NUMBERS = (
    b"\xfd\xff\xff", b"\xfe\xff\xff\xff\xff", b"\xff" * 9, b"\xfd\x01\x00", b"\x00\x01", b"\x00", b"\xff" * 8,
)  # fmt: skip

T = TypeVar("T")
Refusal = TypeVar("Refusal", bound=Exception)
Given = ParamSpec("Given")


def outcome(
    refusal: type[Refusal], parse: Callable[Given, T], *args: Given.args, **kwargs: Given.kwargs
) -> T | Refusal:
    """What `parse` gives, or the one kind of error that it may raise."""
    try:
        return parse(*args, **kwargs)
    except refusal as exc:
        return exc


@st.composite
def hurt_text(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """A text of `texts` after up to three edits."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from((0, 0, 1, 1, 2, 8, 64))))
        put = draw(st.one_of(st.sampled_from(JOINTS), st.just(text[start:end] * 2), st.text(max_size=3)))
        text = text[:start] + put + text[end:]
        if draw(st.integers(0, 9)) == 0:
            text = text.swapcase()
    return text


@st.composite
def hurt_octets(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """Octets of `texts` after one to four edits: flipped, cut, put in twice, or with a lying number."""
    octets = bytearray(draw(texts))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(octets)))
        end = min(len(octets), at + draw(st.sampled_from((0, 1, 1, 1, 2, 4, 9, 40))))
        put = draw(
            st.one_of(
                st.binary(max_size=4), st.just(bytes(octets[at:end]) * 2), st.sampled_from(LYING_NUMBERS)
            )
        )
        octets[at:end] = put
        if draw(st.integers(0, 9)) == 0:
            del octets[draw(st.integers(0, len(octets))) :]
    return bytes(octets)
