"""JSON with one spelling per value, so that it can be signed (RFC 8785, JCS). Pure.

The subset that challenges need: objects, strings and integers. Floats, where canonical forms differ between
languages, are not in it.
"""

import json
from collections.abc import Mapping
from typing import TypeAlias

CanonicalValue: TypeAlias = "str | int | Mapping[str, CanonicalValue]"

INTEGER_MAX = 2**53 - 1
"""Larger integers lose digits in readers that hold numbers as IEEE doubles (RFC 7493)."""


def canonical_json(value: CanonicalValue) -> bytes:
    """The UTF-8 bytes of `value`, the same for every equal value.

    Raises ValueError for integers beyond +-(2^53 - 1) and for strings with lone surrogates,
    TypeError for other types.
    """
    ordered = _ordered(value)
    # The standard library escapes exactly what RFC 8785 escapes, in the same spelling.
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()


def _ordered(value: CanonicalValue) -> object:
    match value:
        case bool():
            raise TypeError("true and false are not in this subset of JSON")
        case str():
            return value
        case int():
            if abs(value) > INTEGER_MAX:
                raise ValueError(f"{value} is beyond 2^53 - 1: write it as a string")
            return value
        case Mapping():
            return {key: _ordered(value[key]) for key in sorted(value, key=_utf16)}
        case _:
            raise TypeError(f"{type(value).__name__} is not in this subset of JSON")


def _utf16(key: str) -> bytes:
    """Names are ordered by UTF-16 code units, which differs from code points above U+FFFF."""
    return key.encode("utf-16-be")
