"""The table of configuration keys in docs/OPERATING.md, made from `bitcache.config`.

    python -m tests.config_table     writes it into the document, between its markers

A test fails when the document has another one.
"""

import ast
import json
from pathlib import Path

import msgspec

import bitcache.config
from bitcache.config import SECTIONS, Config, known_keys, section_of

OPERATING = Path(__file__).parent.parent / "docs" / "OPERATING.md"
START, END = "<!-- configuration -->", "<!-- end of configuration -->"


def table() -> str:
    """One row a key: its name, its default as TOML, what it means."""
    meanings = _meanings()
    defaults = Config(data_folder=Path())
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key in known_keys():
        section, name = section_of(key)
        holder = getattr(defaults, section) if section else defaults
        place = f"in `[{section}]`, `{name}`: " if section else ""
        meaning = meanings[SECTIONS[section].__name__ if section else Config.__name__, name]
        rows.append(f"| `{key}` | {_as_toml(getattr(holder, name))} | {place}{meaning} |")
    return "\n".join(rows)


def inserted(text: str) -> str:
    """`text` with the table in its place."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the document has no markers {START} and {END}")
    return f"{before}{START}\n{table()}\n{END}{after}"


def _as_toml(default: object) -> str:
    # Strings, numbers, lists and booleans look alike in JSON and TOML.
    return "unset" if default is None else f"`{json.dumps(msgspec.to_builtins(default))}`"


def _meanings() -> dict[tuple[str, str], str]:
    """What stands below each field, by class and field."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.walk(ast.parse(Path(bitcache.config.__file__).read_text())):
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    assert isinstance(field.target, ast.Name)
                    assert isinstance(below.value, ast.Constant)
                    found[node.name, field.target.id] = " ".join(str(below.value.value).split())
    return found


if __name__ == "__main__":
    OPERATING.write_text(inserted(OPERATING.read_text()))
