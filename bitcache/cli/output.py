"""What every command shares: results go to stdout, words and progress to stderr, and errors end in one line.

With `--json` stdout gets exactly one JSON document, at the end; an error is `{"error": {"name", "detail"}}`.
Exit codes: 0 done, 1 refused or failed, 2 used wrongly, 3 stopped where it was told to.
"""

import asyncio
import functools
import sys
import unicodedata
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console

from bitcache.client.errors import ClientError, SpendingLimitReached
from bitcache.errors import BitcacheError
from payments.errors import PaymentsError
from storage.errors import StorageError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LIMIT = 3
"""A download stopped at `--max-spend`: the same command goes on."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Words for people: progress, questions, warnings. Markup is on: pass foreign text through `printable` and
`rich.markup.escape`, or use `say`."""

P = ParamSpec("P")
T = TypeVar("T")


class CommandFailed(Exception):
    """A command cannot do what it was asked; the message says what to do next."""


class UsageWrong(CommandFailed):
    """The command was called in a way that makes no sense."""


def expected_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Decorate a command so that what can go wrong ends in one line and an exit code, not in a traceback.

    Below `@app.command()`. A command that takes `json_output: JsonFlag` gets its errors as JSON too.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # `| head` has seen enough: click leaves without a word
        except (CommandFailed, ClientError, BitcacheError, StorageError, PaymentsError, OSError) as error:
            fail(error, as_json=bool(kwargs.get("json_output", False)))
        except (KeyboardInterrupt, typer.Abort, asyncio.CancelledError):
            say("Stopped.")
            raise typer.Exit(130) from None

    return guarded


def fail(error: Exception, *, as_json: bool) -> NoReturn:
    """Print the error and leave with its exit code."""
    detail = printable(str(error)) or type(error).__name__
    if as_json:
        print_json({"error": {"name": type(error).__name__, "detail": detail}})
    else:
        console.print("[red]error:[/red] ", end="")
        say(detail)
    raise typer.Exit(_exit_code(error)) from error


def _exit_code(error: Exception) -> int:
    if isinstance(error, SpendingLimitReached):
        return EXIT_LIMIT
    return EXIT_USAGE if isinstance(error, UsageWrong) else EXIT_FAILED


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(coroutine)


def print_json(document: object) -> None:
    """The one JSON document of a command, on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def print_text(text: str = "") -> None:
    """One line of a command's result, on stdout."""
    sys.stdout.write(text + "\n")


def say(text: str = "") -> None:
    """One line of words for people, on stderr, without markup."""
    console.print(text, markup=False)


def printable(text: str, *, length_max: int = 2000) -> str:
    """`text` of foreign origin, safe to show: nothing in it moves the cursor, colours, hides or reverses.

    Line breaks become spaces; control, format, surrogate and private characters the replacement character.
    """
    shown = text if len(text) <= length_max else text[: length_max - 1] + "…"
    return "".join(_printable_character(character) for character in shown)


def _printable_character(character: str) -> str:
    if character in "\n\r\t":
        return " "
    # Cc moves and colours, Cf turns the direction of reading, Zl and Zp break lines.
    return "\ufffd" if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else character
