"""How secrets are compared and kept, as far as the source and the database can show it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SECRET = re.compile(
    r"(^|_)(secret|token|password|mac|cookie|credential|nonce|seal|(claim|token|secret)_hash)s?$"
)
ALLOWED = {
    "bitcache/cli/operator.py: getpass('Once more: ') != password": "typed twice by one person",
    "bitcache/config_file.py: secret in SECRETS": "names of keys",
    "bitcache/work.py: (offer, claim) != (raw_id(offer_id), claim_hash)": "the asker's own, under our MAC",
}


def comparisons(source: str) -> Iterator[ast.Compare]:
    """`==`, `!=` and `in` of values that are called like secrets; those on a column are the database's."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Compare):
            continue
        if not any(isinstance(how, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for how in node.ops):
            continue
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Constant) or _is_column(side) for side in sides):
            continue
        if any(SECRET.search(_name(side)) for side in _flat(sides)):
            yield node


def _flat(sides: list[ast.expr]) -> Iterator[ast.expr]:
    for side in sides:
        yield from _flat(side.elts) if isinstance(side, ast.Tuple) else [side]


def _is_column(side: ast.expr) -> bool:
    """`table.c.name`."""
    return (
        isinstance(side, ast.Attribute) and isinstance(side.value, ast.Attribute) and side.value.attr == "c"
    )


def _name(side: ast.expr) -> str:
    match side:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(func=function):
            return _name(function)
        case _:
            return ""


@pytest.mark.parametrize("package", ["bitcache", "payments", "storage"])
def test_no_secret_is_compared_byte_by_byte(package: str) -> None:
    """The time that `==` takes tells how much of a guess was right: `hmac.compare_digest` does not."""
    found = []
    for path in sorted((PROJECT / package).rglob("*.py")):
        for node in comparisons(path.read_text()):
            found.append(f"{path.relative_to(PROJECT)}: {ast.unparse(node)}")
    assert sorted(found) == sorted(text for text in ALLOWED if text.startswith(f"{package}/"))


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("kept_secret != release_secret", 1),
        ("row.token_hash == wanted", 1),
        ("hmac.digest(key, payload) == mac", 1),
        ("match['mac'] == other", 1),
        ("token in known_tokens", 1),
        ("(offer, claim) != (raw_id(offer_id), claim_hash)", 1),
        ("tokens.c.token_hash == wanted", 0),
        ("token == ''", 0),
        ("hmac.compare_digest(secret, other)", 0),
        ("tokens_count == 3 and length < secret_size", 0),
    ],
)
def test_the_search_finds_what_it_should(source: str, count: int) -> None:
    assert len(list(comparisons(source))) == count
