"""The documents say what the code does: their keys, defaults, commands, metrics, tests and links are real."""

import ast
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient
from typer.core import TyperGroup
from typer.main import get_command

from bitcache import VERSION, backup_checks, doctor, doctor_books, doctor_channels
from bitcache.app import make_app
from bitcache.cli.main import app as commands
from bitcache.config import Config, known_keys, section_of
from bitcache.config_file import SECRETS
from bitcache.db.migrate import upgrade
from bitcache.master_key import write_master_key
from bitcache.services import open_services
from tests import config_table
from tests.service import test_config

PROJECT = Path(__file__).parent.parent
README = PROJECT / "README.md"
OPERATING = PROJECT / "docs" / "OPERATING.md"
SECURITY = PROJECT / "docs" / "SECURITY.md"
PAGES = PROJECT / "docs" / "PAGES.md"
CHANGELOG = PROJECT / "CHANGELOG.md"
DOCUMENTS = (README, CHANGELOG, *sorted((PROJECT / "docs").glob("*.md")))

IMPORTED_AS = {
    "aiohttp": "aiohttp",
    "python-bitcoinlib": "bitcoin",
    "bit": "bit",
    "cryptography": "cryptography",
    "pytest": "pytest",
    "pytest-aiohttp": "pytest_aiohttp",
}


def section(document: Path, title: str) -> str:
    """The text below the heading `title`, up to the next of the same level."""
    _, _, rest = document.read_text().partition(f"\n## {title}\n")
    assert rest, f"{document.name} has no section {title}"
    return rest.partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in `text`, headings among them."""
    lines = (line for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_words(text: str) -> list[str]:
    """What stands in backquotes at the beginning of each table row."""
    return [name[1] for row in rows(text) if (name := re.fullmatch(r"`([^`]+)`", row[0]))]


def test_the_configuration_table_is_the_codes() -> None:
    assert config_table.inserted(OPERATING.read_text()) == OPERATING.read_text(), (
        "write it anew: python -m tests.config_table"
    )


def test_every_configuration_key_is_explained_with_its_default() -> None:
    explained = {
        row[0].strip("`"): row[1]
        for row in rows(section(OPERATING, "Configuration"))
        if row[0].startswith("`")
    }
    assert set(explained) == set(known_keys())
    defaults = Config(data_folder=PROJECT)
    for key, shown in explained.items():
        within, name = section_of(key)
        default = getattr(getattr(defaults, within) if within else defaults, name)
        assert _written(shown) == (list(default) if isinstance(default, tuple) else default), key


def _written(shown: str) -> object:
    return None if shown == "unset" else tomllib.loads(f"key = {shown.strip('`')}")["key"]


def test_the_secrets_are_named() -> None:
    text = section(OPERATING, "Configuration")
    for secret in SECRETS:
        assert f"`{secret.removeprefix('node_')}`" in text.partition("| key")[0], secret


async def test_every_metric_is_explained(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    config = test_config(tmp_path)
    write_master_key(config.master_key)
    async with open_services(config) as services:
        await upgrade(services.database)
        client: TestClient = await aiohttp_client(make_app(services))  # type: ignore[type-arg]
        async with client.get("/healthz"):
            pass
        async with client.get("/metrics") as answer:
            page = await answer.text()
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    served = {name for name in families if not name.endswith("_created")}
    assert set(first_words(section(OPERATING, "Metrics and health"))) == served


def test_every_alert_is_explained() -> None:
    alerts = re.findall(r"- alert: (\w+)", (PROJECT / "deploy" / "alerts.yml").read_text())
    assert alerts
    assert first_words(section(OPERATING, "Alerts")) == alerts


def test_every_check_of_the_doctor_is_explained() -> None:
    made = {
        call.args[0].value
        for module in (doctor, backup_checks, doctor_books, doctor_channels)
        for call in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding"
        if isinstance(call.args[0], ast.Constant)
    }
    assert set(first_words(section(OPERATING, "Doctor"))) == made


def _lines_of_commands() -> list[str]:
    found: list[str] = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found += re.findall(r"^\$ (?:\S*/)?bitcache (.+)$", block, re.MULTILINE)
        inline = re.findall(r"`bitcache ([a-z][^`]*)`", text.replace("\n", " "))
        found += [line for line in inline if "..." not in line]
    return sorted(set(found))


@pytest.mark.parametrize("line", _lines_of_commands())
def test_every_command_exists_with_its_options(line: str) -> None:
    command = get_command(commands)
    words = shlex.split(line)
    while isinstance(command, TyperGroup) and words:
        name = words.pop(0)
        assert name in command.commands, f"there is no `{name}`"
        command = command.commands[name]
    options = {spelling for parameter in command.params for spelling in parameter.opts}
    assert {word for word in words if word.startswith("-") and word != "-"} <= options


def test_there_are_commands_to_check() -> None:
    assert len(_lines_of_commands()) > 15


def test_every_promise_has_tests_and_they_exist() -> None:
    promises = [row for row in rows(section(SECURITY, "Promises and their tests")) if "tests/" in row[1]]
    assert len(promises) > 20
    for promise, tests in promises:
        named = re.findall(r"`(tests/\w+\.py)::(test_\w+)`", tests)
        assert named, promise
        for file, test in named:
            assert test in _functions(PROJECT / file), f"{file}::{test}"


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_the_seven_libraries_are_used_where_the_readme_says() -> None:
    table = {row[0]: row[2] for row in rows(section(README, "Built on")) if len(row) == 3 and "/" in row[2]}
    assert set(table) == {*IMPORTED_AS, "aiosqlite"}
    for library, where in table.items():
        for module in re.findall(r"`([\w/]+\.py)`", where):
            path = PROJECT / module
            if library == "aiosqlite":
                assert "sqlite+aiosqlite" in path.read_text(), module
            else:
                assert IMPORTED_AS[library] in _imports(path), f"{module} does not use {library}"


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


@cache
def _anchors(document: Path) -> frozenset[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def test_every_module_and_script_of_the_pages_has_its_place() -> None:
    web = PROJECT / "bitcache" / "web"
    modules = [path.name for path in web.glob("*.py") if path.name != "__init__.py"]
    assert sorted(re.findall(r"`(\w+\.py)`", section(PAGES, "On the server, `bitcache/web/`"))) == sorted(
        modules
    )
    rows_of_scripts = [
        re.findall(r"`([\w-]+\.js)`", row[0])
        for row in rows(section(PAGES, "In the browser, `bitcache/web/static/`"))
    ]
    place = {name: row for row, names in enumerate(rows_of_scripts) for name in names}
    scripts = {path.name: path.read_text() for path in (web / "static").glob("*.js")}
    assert sorted(place) == sorted(scripts)
    # Each uses what stands above it, or beside it.
    for name, text in scripts.items():
        for used in re.findall(r"from '(?:\./|/static/)([\w-]+\.js)'", text):
            assert place[used] <= place[name], f"{name} uses {used}"


def test_the_changelog_tells_of_this_version() -> None:
    assert f"\n## {VERSION}\n" in CHANGELOG.read_text()
