"""The tables of docs/PROTOCOL.md that repeat what the code decides: made from it, so that they cannot lie.

    python -m tests.protocol_tables     writes them into the document, between their markers

A test fails when the document has other ones.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitcache import VERSION
from bitcache.api.openapi import openapi_document
from bitcache.api.problems import PROBLEMS
from bitcache.api.routing import Auth, ResponseKind, Route
from bitcache.api.table import ROUTES
from bitcache.api.wire import API, TIME_MAX

PROTOCOL = Path(__file__).parent.parent / "docs" / "PROTOCOL.md"
AUTH = {Auth.NONE: "", Auth.SELLER: "S", Auth.GRANT: "G", Auth.PAYMENT: "P"}
# What follows from the kind of operation is said once, above the table.
COMMON = {
    "bad-request",
    "database-unavailable",
    "disk-full",
    "idempotency-key-reused",
    "internal-error",
    "invalid-value",
    "not-found",
    "token-invalid",
    "token-missing",
    "too-large",
    "too-slow",
}
PATTERNS = {
    "^[a-z2-7]{26}$": "id",
    "^[A-Za-z0-9_-]*$": "binary",
    "^[A-Za-z0-9_-]+$": "binary, not empty",
    "^[A-Za-z0-9_-]{11}$": "binary of 8 bytes",
    "^[A-Za-z0-9_-]{43}$": "binary of 32 bytes",
    "^[A-Za-z0-9_-]{80}$": "binary of 60 bytes",
    "^[A-Za-z0-9_-]{120}$": "binary of 90 bytes",
    "^([0-9a-f]{2})*$": "hex",
    r"^\d{4}-\d{2}-\d{2}$": "date, YYYY-MM-DD",
    r"^\d{4}-\d{2}(-\d{2})?$": "date or month, YYYY-MM-DD or YYYY-MM",
}


def tables() -> dict[str, str]:
    """Each generated table by the name of its markers."""
    return {
        "operations": "\n".join(_operations()),
        "problems": "\n".join(_problems()),
        "bodies": "\n".join(_bodies()),
    }


def inserted(text: str) -> str:
    """`text` with every generated table in its place."""
    for name, table in tables().items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the document has no markers {start} and {end}")
        filled = f"{start}\n{table}\n{end}"
        text = pattern.sub(lambda _: filled, text)  # noqa: B023
    return text


def _operations() -> Iterator[str]:
    yield "| operation | | body → answer | problems of its own |"
    yield "|---|---|---|---|"
    for route in ROUTES:
        if route.documented:
            path = route.path.removeprefix(API)
            own = ", ".join(name for name in route.problems if name not in COMMON)
            yield f"| `{route.method} {path}` | {AUTH[route.auth]} | {_exchange(route)} | {own} |"


def _exchange(route: Route) -> str:
    asked = f"{route.request.__name__} → " if route.request else ""
    answers = ", ".join(f"{status} {_kind(kind)}".strip() for status, kind in route.responses.items())
    return asked + answers


def _kind(kind: ResponseKind) -> str:
    if kind is None:
        return ""
    return kind if isinstance(kind, str) else kind.__name__


def _problems() -> Iterator[str]:
    yield "| status | name | title |"
    yield "|---|---|---|"
    for problem in PROBLEMS.values():
        yield f"| {problem.status} | `{problem.name}` | {problem.title} |"


def _bodies() -> Iterator[str]:
    schemas = openapi_document(ROUTES, version=VERSION)["components"]["schemas"]
    for name, schema in schemas.items():
        members = [_member(member, inner, schema) for member, inner in schema["properties"].items()]
        yield f"- **{name}**: {'; '.join(members)}"


def _member(name: str, schema: dict[str, Any], owner: dict[str, Any]) -> str:
    optional = "" if name in owner["required"] else "?"
    given = schema.get("default")
    default = f", default {str(given).lower()}" if isinstance(given, int) else ""
    return f"`{name}`{optional} {_type(schema)}{default}"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{str(value).lower() if value is True else value}`" for value in schema["enum"])
    if schema.get("maximum") == TIME_MAX:
        return "time"
    match schema.get("type"):
        case "array":
            counted = _range(schema, "minItems", "maxItems")
            return f"list of {_type(schema['items'])}{counted}"
        case "integer":
            step = f", multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
            return f"integer{_range(schema, 'minimum', 'maximum')}{step}"
        case "string":
            kind = PATTERNS[schema["pattern"]] if "pattern" in schema else "text"
            return f"{kind}{_range(schema, 'minLength', 'maxLength')}"
        case kind:
            return str(kind)


def _range(schema: dict[str, Any], low: str, high: str) -> str:
    bounds = schema.get(low), schema.get(high)
    match bounds:
        case None, None:
            return ""
        case None, most:
            return f" (to {most})"
        case least, None:
            return f" (from {least})"
        case least, most:
            return f" ({least} to {most})"


if __name__ == "__main__":
    PROTOCOL.write_text(inserted(PROTOCOL.read_text()))
