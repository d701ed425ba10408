"""The log: a line per record, as text or JSON, with its request's id; no secrets, no control characters."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from bitcache import log
from bitcache.log import JsonLine, LogFormat, LogLevel, TextLine, redacted, set_up
from tests.service import running_server

TEXT_LINE = re.compile(
    r"(?P<time>\S+Z) (?P<level>[A-Z]+) (?P<logger>[\w.]+)"
    r"( \[(?P<request_id>[0-9a-f]{16})\])?: (?P<message>.+)"
)
EVIL = "a\nINFO bitcache: forged\r\x1b[2J\x00\u202e\u2028\x85\ud800 end"
logger = logging.getLogger("bitcache.test")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`set_up` is for a whole process: put back what it changes."""
    root, names = logging.getLogger(), ("", *log.OURS)
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    hooks = sys.excepthook, threading.excepthook
    yield
    root.handlers[:] = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)


def logged(log_format: LogFormat, level: LogLevel = "info") -> io.StringIO:
    stream = io.StringIO()
    set_up(log_format=log_format, level=level, stream=stream)
    return stream


def record(message: str, *arguments: object, error: Exception | None = None) -> logging.LogRecord:
    trace = None if error is None else (type(error), error, None)
    return logging.LogRecord("bitcache.test", logging.ERROR, __file__, 1, message, arguments, trace)


async def get_style(folder: Path) -> tuple[str, int]:
    """(id of the request, bytes of its answer), from a server that logs as `set_up` said."""
    async with (
        running_server(folder) as server,
        server.session() as http,
        http.get("/static/app.css", headers={"Accept-Encoding": "identity"}) as answer,
    ):
        return answer.headers["Bitcache-Request-Id"], len(await answer.read())


async def test_a_request_is_one_readable_line(tmp_path: Path) -> None:
    stream = logged("text")
    request_id, length = await get_style(tmp_path)
    lines = [TEXT_LINE.fullmatch(line) for line in stream.getvalue().splitlines()]
    (found,) = [line for line in lines if line and line["request_id"] == request_id]
    assert (found["level"], found["logger"]) == ("INFO", "bitcache.access")
    assert re.fullmatch(rf"GET /static/{{static_name}} 200 \d+ ms {length} bytes", found["message"])
    assert datetime.fromisoformat(found["time"]).utcoffset() is not None


async def test_a_request_is_one_json_object(tmp_path: Path) -> None:
    stream = logged("json")
    request_id, length = await get_style(tmp_path)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (found,) = [line for line in lines if line.get("request_id") == request_id]
    duration_ms, at, message = found.pop("duration_ms"), found.pop("time"), found.pop("message")
    assert found == {
        "level": "info",
        "logger": "bitcache.access",
        "request_id": request_id,
        "method": "GET",
        "route": "/static/{static_name}",
        "status": 200,
        "bytes": length,
    }
    assert type(duration_ms) is int
    assert at.endswith("Z")
    assert datetime.fromisoformat(at).utcoffset() is not None
    assert message.startswith("GET /static/{static_name} 200")


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_every_line_of_a_request_has_its_id(tmp_path: Path, log_format: LogFormat) -> None:
    """A bug's traceback too; and the connection's next request has another id."""
    stream = logged(log_format)
    async with running_server(tmp_path) as server:
        await server.services.database.write(
            lambda tx: tx.exec_driver_sql("ALTER TABLE tokens RENAME TO hidden")
        )
        async with server.session("bcs_" + "a" * 52) as http:
            ids = []
            for _ in range(2):
                async with http.get("/api/v1/account") as answer:
                    assert answer.status >= 500
                    ids.append(answer.headers["Bitcache-Request-Id"])
        log.log.info("after it")
    lines = stream.getvalue().splitlines()
    assert len(set(ids)) == 2
    for request_id in ids:
        told, access = (line for line in lines if request_id in line)
        assert "hidden" in told or "tokens" in told  # what went wrong
        assert "bitcache.access" in access
    assert not any(request_id in line for line in lines if "after it" in line for request_id in ids)


def test_a_line_logged_in_a_thread_has_the_id_too() -> None:
    stream = logged("json")

    async def handle(request_id: str) -> None:
        log.REQUEST_ID.set(request_id)
        await asyncio.to_thread(logger.info, "of %s", request_id)

    async def both() -> None:
        await asyncio.gather(handle("one"), handle("two"))

    asyncio.run(both())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {(line["message"], line["request_id"]) for line in lines} == {("of one", "one"), ("of two", "two")}


@pytest.mark.parametrize("error", [None, ValueError(EVIL)])
@pytest.mark.parametrize("formatter", [TextLine(), JsonLine()])
def test_foreign_text_neither_forges_lines_nor_commands_a_terminal(
    formatter: logging.Formatter, error: Exception | None
) -> None:
    line = formatter.format(record("told: %s", EVIL, error=error))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    if isinstance(formatter, JsonLine):
        assert json.loads(line)["message"] == f"told: {EVIL}"
        assert (error is not None) == ("exception" in json.loads(line))


def test_wrong_placeholders_cost_no_line() -> None:
    assert "told: %d" in TextLine().format(record("told: %d", "bcs_secret"))
    assert "bcs_secret" not in TextLine().format(record("told: %d", "bcs_secret"))


HALF = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_AbCdE"
XPUB = "xpub" + "661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8NqtwybGhePY2gZ29ESFjqJoCu1Rupje8"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token bcs_abcdefgh234567", "abcdefgh234567"),
        ("a grant bcg_AbC-d_f.", "AbC-d_f"),
        ("bcw_AbC-d_f", "AbC-d_f"),
        ("GET with Authorization: Bearer hunter2", "hunter2"),
        ("{'Authorization': 'Basic aHVudGVyMg==', 'Host': 'x'}", "aHVudGVyMg"),
        ("sent Bearer abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"),
        ("Payment eyJjaGFsbGVuZ2UiOnt9LCJwYXlsb2FkIjp7fX0", "eyJjaGFsbGVuZ2Ui"),
        (f"http://x/d/{'a' * 26}#1.{HALF}", HALF),
        (f"http://x/r/{'a' * 26}#1.{HALF}.{HALF}", HALF),
        (f"claim with {HALF}", HALF),
        ("ClaimRequest(claim_secret='hunter2')", "hunter2"),
        ('{"password": "hunter 2"}', "hunter 2"),
        ("postgresql+asyncpg://bitcache:hunter2@db/x", "hunter2"),
        (f"wpkh([00000000/84h/0h/0h]{XPUB}/0/*)", XPUB),
        (f"tpub{XPUB[4:]}", XPUB[4:]),
        ("KwDiBf89QgGbjEhKnhXJuH7LrciVrZi3qYjgd9M7rFU73sVHnoWn", "KwDiBf89QgGb"),
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redacted(text)
    assert "[redacted]" in redacted(text)
    for formatter in (TextLine(), JsonLine()):
        assert secret not in formatter.format(record("%s", text))
        assert secret not in formatter.format(record("failed", error=ValueError(text)))


@pytest.mark.parametrize(
    "text",
    [
        f"deleting a blob that no file names: {'a' * 26}",
        f"transaction {'0f' * 32} of the mempool cannot be read",
        "http://127.0.0.1:18443/wallet/x does not answer",
        "payment unconfirmed: the payment was seen and is not confirmed yet",
        'File "bitcache/api/middleware.py", line 40, in guard',
        "the_name_of_a_function_of_forty_three_chars",
        "GET /api/v1/offers/{offer_id} 200 3 ms 120 bytes",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert redacted(text) == text


def test_an_id_in_a_traceback_is_not_logged() -> None:
    line = TextLine().format(record("failed", error=KeyError("a" * 26)))
    assert "a" * 26 not in line
    assert "KeyError: '[id]'" in line


@pytest.mark.parametrize(("level", "told"), [("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_the_least_that_is_told(level: LogLevel, told: int) -> None:
    stream = logged("text", level)
    for say in (logger.info, logger.warning, logger.error):
        say("one")
    assert len(stream.getvalue().splitlines()) == told


def test_libraries_are_heard_from_warnings_on() -> None:
    stream = logged("text")
    for name in ("aiohttp.server", "sqlalchemy.engine.Engine", "asyncio"):
        logging.getLogger(name).info("chatty")
        logging.getLogger(name).warning("trouble")
    assert stream.getvalue().count("trouble") == 3
    assert "chatty" not in stream.getvalue()


def test_what_ends_a_command_is_a_line_too() -> None:
    """In a process of its own, as the program is started: a command that has a bug."""
    bug = "ValueError('bcs_verysecret \\x1b[2J')"
    script = (
        "import sys; from bitcache.cli.main import app, main\n"
        "@app.command('buggy')\n"
        f"def buggy() -> None: raise {bug}\n"
        "sys.argv = ['bitcache', 'buggy']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "ValueError: bcs_[redacted] \\x1b[2J" in line


def test_what_ends_the_server_is_a_line_too() -> None:
    stream = logged("json")
    error = ValueError("bcs_secret")
    sys.excepthook(ValueError, error, None)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["level"] == "critical"
    assert "ValueError: bcs_[redacted]" in json.loads(line)["exception"]
