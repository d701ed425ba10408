"""No word of the pages is dead, and none is missing.

Templates say `words('key')`, scripts `say('key')`, Python names keys as strings. Where the rest of a key is
known only when it is said (`words('p_' ~ state)`), a star stands for it here.
"""

import ast
import re
from collections.abc import Iterator
from importlib import resources

import jinja2
from jinja2 import nodes

from bitcache.web.i18n import CATALOGUE

WEB = resources.files("bitcache.web")
KEYS = set(CATALOGUE["en"])
OF_SCRIPTS = {key for key in KEYS if key.startswith("js_")}
# A banner of trouble has a hint; errors have the names that the API gives them.
BUILT_BY_SCRIPTS = {"js_*_hint", "e_*"}
_SCRIPTS_KEY = re.compile(r"['`]((?:js|e)_[\w-]+)['`]")


def sources(suffix: str, folder: str = "") -> Iterator[str]:
    for place in WEB.joinpath(folder).iterdir():
        if place.name.endswith(suffix):
            yield place.read_text()


def said_by_templates() -> Iterator[str]:
    for call in calls_in_templates():
        if isinstance(call.node, nodes.Name) and call.node.name == "words":
            yield from keys_of(call.args[0])


def named_by_templates() -> Iterator[str]:
    """Said, or handed to a macro that says it."""
    for call in calls_in_templates():
        for argument in call.args:
            yield from keys_of(argument)


def calls_in_templates() -> Iterator[nodes.Call]:
    environment = jinja2.Environment()
    for text in sources(".html", "templates"):
        yield from environment.parse(text).find_all(nodes.Call)


def keys_of(said: nodes.Expr) -> Iterator[str]:
    match said:
        case nodes.Const():
            yield said.value
        case nodes.CondExpr():
            yield from (key for one in (said.expr1, said.expr2) if one for key in keys_of(one))
        case nodes.Concat():
            yield "".join(part.value if isinstance(part, nodes.Const) else "*" for part in said.nodes)


def named_by_python() -> Iterator[str]:
    for text in sources(".py"):
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Constant(value=str(key)):
                    yield key
                case ast.JoinedStr():
                    parts = (part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
                    yield "".join(map(str, parts))


def said_by_scripts() -> Iterator[str]:
    for text in sources(".js", "static"):
        yield from _SCRIPTS_KEY.findall(text)


def dead(keys: set[str], named: set[str]) -> set[str]:
    # What is nothing but stars would be every word.
    stars = (
        re.escape(one).replace(r"\*", r"[\w-]+") for one in named if "*" in one and re.search("[a-z]", one)
    )
    built = re.compile("|".join(stars))
    return {key for key in keys if key not in named and not built.fullmatch(key)}


def test_no_word_is_dead() -> None:
    assert dead(OF_SCRIPTS, {*said_by_scripts(), *BUILT_BY_SCRIPTS}) == set()
    # A single word in Python is hardly ever a key: `price`, `state`.
    by_python = {key for key in named_by_python() if "_" in key}
    by_templates = {*said_by_templates(), *(key for key in named_by_templates() if "_" in key)}
    assert dead(KEYS - OF_SCRIPTS, by_python | by_templates) == set()


def test_no_word_is_missing() -> None:
    said = {*said_by_templates(), *said_by_scripts()}
    assert {key for key in said if "*" not in key} <= KEYS
