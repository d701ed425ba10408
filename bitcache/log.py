"""The log, of the server above all: one line per record, as text or as a JSON object, with no secret in it.

Nothing secret is meant to be logged. `redacted` is the last defence, for what an exception's words may hold.
The id of the request that is being handled is in `REQUEST_ID`, and so in every line logged meanwhile.
"""

import json
import logging
import re
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

log = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]
LogLevel = Literal["info", "warning", "error"]

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Empty outside of requests."""
FIELDS = ("method", "route", "status", "left", "duration_ms", "bytes")
"""What a record may carry besides its message (`extra=`), in this order in JSON."""
OURS = ("bitcache", "payments", "storage")

_BASE58 = "1-9A-HJ-NP-Za-km-z"
_SECRETS = (
    # Tokens of sellers, grants and sessions: what is left says which it was.
    (re.compile(r"\b(bc[sgw]_)[\w-]+"), r"\1[redacted]"),
    (re.compile(r"\b(Authorization[\"']?\s*[:=]\s*).*", re.IGNORECASE), r"\1[redacted]"),
    (re.compile(r"\b((?:Bearer|Basic|Payment)\s+)[\w+/=.~-]{20,}", re.IGNORECASE), r"\1[redacted]"),
    (
        re.compile(r"((?:password|secret|token|code)[\"']?\s*[:=]\s*)([\"']).*?\2", re.IGNORECASE),
        r"\1[redacted]",
    ),
    # Links and receipts.
    (re.compile(r"(#1\.)[\w.-]+"), r"\1[redacted]"),
    # A database's or a node's password in its URL.
    (re.compile(r"(://)[^\s/@]+@"), r"\1[redacted]@"),
    # Extended keys tell every address of a wallet, private keys spend from it.
    (re.compile(rf"\b([xyztuvYZUV](?:pub|prv))[{_BASE58}]{{20,}}"), r"\1[redacted]"),
    (re.compile(rf"\b[5KL9c][{_BASE58}]{{50,51}}\b"), "[redacted]"),
    # 32 bytes in base64url: link, claim and session secrets. Names have not both cases and this length.
    (re.compile(r"(?<![\w-])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{43}(?![\w-])"), "[redacted]"),
)
_ID = re.compile(r"\b[a-z2-7]{26}\b")


def set_up(*, log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Send all that this process has to say to `stream`, by default stderr; what ends it too.

    Libraries are heard from warnings on: below that they repeat our lines, or quote what must not be logged.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLine() if log_format == "json" else TextLine())
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, threshold), force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(threshold)
    logging.captureWarnings(True)
    sys.excepthook = uncaught
    threading.excepthook = lambda end: uncaught(end.exc_type, end.exc_value, end.exc_traceback)


class TextLine(logging.Formatter):
    """`TIME LEVEL LOGGER [REQUEST]: MESSAGE`; a traceback follows on the same line, its breaks as `\\n`."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get()
        within = f" [{request_id}]" if request_id else ""
        exception = _exception(record)
        text = _message(record) + (f"\n{exception}" if exception else "")
        return f"{_time(record)} {record.levelname} {record.name}{within}: {escaped(text)}"


class JsonLine(logging.Formatter):
    """One object a line: time, level, logger, message; then request_id, FIELDS and exception, where known."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if exception := _exception(record):
            line["exception"] = exception
        return json.dumps(line)  # in ASCII, everything else escaped


def redacted(text: str) -> str:
    """`text` without what looks like a secret. Pure."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def escaped(text: str) -> str:
    """`text` on one line; what would command a terminal or hide there is written `\\x1b`, `\\u202e`. Pure."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _message(record: logging.LogRecord) -> str:
    try:
        return redacted(record.getMessage())
    except Exception:
        # A wrong placeholder must not cost the line; the arguments may be anything.
        return redacted(str(record.msg))


def _exception(record: logging.LogRecord) -> str:
    """The traceback; without ids too, since an invoice's is all that keeps strangers from it."""
    if not record.exc_info:
        return ""
    text = logging.Formatter().formatException(record.exc_info)
    return _ID.sub("[id]", redacted(text))


def _time(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """In place of Python's own words on stderr, which would quote everything."""
    log.critical("a bug ended this; please report it", exc_info=(kind, error or kind(), trace))
