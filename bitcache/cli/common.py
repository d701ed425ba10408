"""What sellers' and buyers' commands share: amounts, dates, secrets, sizes, progress."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import TracebackType
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bitcache.cli.output import CommandFailed, UsageWrong, console, printable
from bitcache.client import credentials, places
from bitcache.client.api import ServerApi
from bitcache.client.errors import ServerProblem
from bitcache.client.link import check_server
from payments.errors import AmountInvalid
from payments.money import MAX_MONEY_SAT, Sat, sat_from_btc

SERVER_VARIABLE = "BITCACHE_SERVER"
TOKEN_VARIABLE = "BITCACHE_TOKEN"  # noqa: S105  # a variable's name
TOKEN_FILE_VARIABLE = "BITCACHE_TOKEN_FILE"  # noqa: S105  # a variable's name
SECRET_BYTES_MAX = 64 << 10
FEERATE_DIGITS_MAX = 12

_SPAN = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_SPAN_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def parse_price(text: str, *, what: str = "price") -> Sat:
    """Sats in `5000`, `5000sat` or `0.0001btc`; `what` names it in a refusal. Raises UsageWrong."""
    words = text.strip().lower().replace("_", "").replace(" ", "")
    unit = "btc" if words.endswith("btc") else "sat"
    number = words.removesuffix("btc").removesuffix("sats").removesuffix("sat")
    if not re.fullmatch(r"-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})", number):
        raise UsageWrong(f"{text!r} is no {what}. Write 5000sat, 5000 or 0.00005btc.")
    if number.startswith("-"):
        raise UsageWrong(f"{text!r} is below 0: give 0 or more.")
    try:
        amount = Decimal(number)
        amount_sat = sat_from_btc(amount) if unit == "btc" else amount
    except (InvalidOperation, AmountInvalid) as exc:
        raise UsageWrong(f"{text!r} is no {what}: {exc}.") from exc
    if amount_sat != int(amount_sat):
        raise UsageWrong(f"{text!r} has a fraction of a satoshi; on-chain amounts are whole sats.")
    if amount_sat > MAX_MONEY_SAT:
        raise UsageWrong(f"{text!r} is more bitcoin than will ever exist.")
    return Sat(int(amount_sat))


def parse_feerate(text: str) -> int:
    """Sats per 1,000 vbytes of `3.5`, sat/vB. Raises UsageWrong."""
    try:
        feerate = Decimal(text) if len(text) <= FEERATE_DIGITS_MAX else Decimal("nan")
    except InvalidOperation:
        feerate = Decimal("nan")
    if not feerate.is_finite() or feerate <= 0:
        raise UsageWrong(f"{printable(text)!r} is no feerate: write sats per vbyte, such as 3 or 3.5.")
    return int(feerate * 1_000)


def parse_expiry(text: str, *, now: datetime) -> int:
    """Unix seconds of a span from `now` (`12h`, `30d`, `2w`), or of the end of a day (`2030-12-31`).

    `now` is aware; the day ends in its time zone. Raises UsageWrong.
    """
    span = _SPAN.fullmatch(text.strip().lower())
    if span:
        return int((now + int(span[1]) * _SPAN_UNITS[span[2]]).timestamp())
    expires_at = day_start(text, zone=now.tzinfo) + 86_400
    if expires_at <= now.timestamp():
        raise UsageWrong(f"{text} is in the past.")
    return expires_at


@contextmanager
def unknown_id(words: str) -> Iterator[None]:
    """What the server calls an unknown path is an id that was typed. Raises CommandFailed with `words`."""
    try:
        yield
    except ServerProblem as exc:
        if exc.name != "not-found":
            raise
        raise CommandFailed(words) from exc


def day_start(text: str, *, zone: tzinfo | None) -> int:
    """Unix seconds of the first moment of the day `2030-12-31` in `zone`. Raises UsageWrong."""
    try:
        day = date.fromisoformat(text.strip())
        return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
    except (ValueError, OverflowError) as exc:
        raise UsageWrong(f"{text!r} is no date. Write it as 2030-12-31.") from exc


def parse_zone(name: str) -> tzinfo:
    """Raises UsageWrong."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise UsageWrong(f"{name!r} is no time zone. Write one like Europe/Paris or UTC.") from exc


def local_now() -> datetime:
    return datetime.now().astimezone()


def show_time(at: int) -> str:
    """A moment for people, in local time."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")


def show_size(size_bytes: int) -> str:
    """1536 -> 1.5 KiB."""
    size, unit = Decimal(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{size_bytes} B"


def show_count(count: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def show_sat(amount_sat: int) -> str:
    """5000 -> 5,000 sat."""
    return f"{amount_sat:,} sat"


def read_text(argument: str | None, file: Path | None, *, what: str) -> str:
    """A value from the argument, from `file`, or, for the argument `-`, from standard input.

    Raises UsageWrong, CommandFailed.
    """
    if file is not None and argument is not None:
        raise UsageWrong(f"Give the {what} once: as an argument or in a file.")
    try:
        if file is not None:
            with file.open("rb") as opened:
                octets = opened.read(SECRET_BYTES_MAX)
        elif argument == "-":
            octets = sys.stdin.buffer.read(SECRET_BYTES_MAX)
        elif argument is not None:
            return argument.strip()
        else:
            raise UsageWrong(f"The {what} is missing: give it as an argument, in a file, or - for stdin.")
        return octets.decode().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandFailed(f"The {what} cannot be read: {exc}") from exc


def token_of_environment() -> str | None:
    """The token in BITCACHE_TOKEN, else in the file BITCACHE_TOKEN_FILE names. Raises CommandFailed."""
    token, file = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    return read_text(None, Path(file), what="access token") if file and not token else token


def seller_api() -> ServerApi:
    """The server the seller is signed in to; the environment goes before the saved sign-in.

    Raises NotSignedIn, LinkInvalid, CommandFailed.
    """
    server, token = os.environ.get(SERVER_VARIABLE), token_of_environment()
    if server and token:
        return ServerApi(check_server(server), credentials.check_token(token))
    known = credentials.load(places.config_folder())
    return ServerApi(known.server, known.token)


def refuse_to_ask(*, yes: bool, json_output: bool, why: str = "") -> None:
    """Where a question comes that a program cannot answer; `why` follows "add --yes". Raises UsageWrong."""
    if json_output and not yes:
        raise UsageWrong(f"With --json nobody can be asked: add --yes{why}.")


def confirm(question: str) -> bool:
    """Ask a person; without one the answer is no."""
    if not sys.stdin.isatty():
        return False
    console.print(f"{question} \\[y/N] ", end="")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class RichProgress:
    """A bar with rate and time left on stderr; one line every ten seconds where stderr is no terminal.

    With `as_json` one JSON object per line instead.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=as_json or not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._done_bytes = self._total_bytes = 0
        self._told_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, what: str, total_bytes: int) -> None:
        self._what, self._done_bytes, self._total_bytes = what, 0, total_bytes
        self._told_at = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total_bytes)
        self._bar.start()

    def advance(self, length_bytes: int) -> None:
        self._done_bytes += length_bytes
        if self._task is not None:
            self._bar.update(self._task, advance=length_bytes)
        if self._bar.disable and time.monotonic() - self._told_at >= self._interval_s():
            self._told_at = time.monotonic()
            self._tell()

    def _interval_s(self) -> int:
        return 1 if self._as_json else 10

    def _tell(self) -> None:
        if self._as_json:
            tell_event("progress", what=self._what, bytes=self._done_bytes, of_bytes=self._total_bytes)
        else:
            console.print(
                f"{self._what}: {show_size(self._done_bytes)} of {show_size(self._total_bytes)}", markup=False
            )


def tell_event(event: str, **facts: object) -> None:
    """One line of JSON on stderr, for scripts that watch."""
    sys.stderr.write(msgspec.json.encode({"event": event, **facts}).decode() + "\n")
    sys.stderr.flush()
