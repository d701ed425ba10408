"""`bitcache` commands without the half second that each takes to import the program: forks of one process.

    process = await asyncio.create_subprocess_exec(quick_bitcache(), "offers", ...)

Each command is still a process of its own, with the arguments, environment, folder, and standard streams of
its caller, and ends as the installed program does. For what is killed by a signal, traced, or looked for
among the command lines of the machine, take the installed program: the process one gets here hands all of
it on to the one that does the work, and waits for its exit code.

    python -m tests.command_server SOCKET

serves until its standard input ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from regtest.processes import remove_folder

START_TIMEOUT_S = 60
ROOT = Path(__file__).parents[1]
STREAMS = 3
# Without site and with nothing of ours, it starts in a fiftieth of a second.
CALLER = """\
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
asked = json.dumps([sys.argv[2:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(connection, [len(asked).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(asked)
said = connection.recv(16)
sys.exit(int(said) if said else "the command left no exit code")
"""


@functools.cache
def quick_bitcache() -> Path:
    """The program to call; at the first time its server is started, which ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="bitcache-commands-"))
    place = folder / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.command_server", str(place)], stdin=subprocess.PIPE, cwd=ROOT
    )

    def close() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        remove_folder(folder)

    atexit.register(close)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not place.exists():
        assert server.poll() is None, "the server of commands ended; see above"
        assert time.monotonic() < deadline, "the server of commands did not start"
        time.sleep(0.02)
    (folder / "caller.py").write_text(CALLER)
    program = folder / "bitcache"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{folder}/caller.py" "{place}" "$@"\n')
    program.chmod(0o700)
    return program


def serve(place: Path) -> NoReturn:
    """Fork once for each caller."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    listener = socket.socket(socket.AF_UNIX)
    draft = place.with_suffix(".draft")
    listener.bind(str(draft))
    listener.listen(64)
    draft.rename(place)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def answer(connection: socket.socket) -> NoReturn:
    """Run one command in a child, and tell its caller the exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, 4, STREAMS)
    asked = b""
    while len(asked) < int.from_bytes(head, "big"):
        asked += connection.recv(1 << 16)
    words, environment, folder = json.loads(asked)
    child = os.fork()
    if child == 0:
        become(words, environment, folder, streams)
        # A caller that is killed takes the command with it.
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        os._exit(run())
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    try:
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
    except OSError:
        os._exit(1)
    os._exit(0)


def become(words: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """What differs between one process and the next."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8", line_buffering=os.isatty(1)
    )
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    sys.argv = ["bitcache", *words]
    sys.modules["__main__"].__package__ = None  # or usage would be told of a module
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    time.tzset()
    random.seed()


def run() -> int:
    """The exit code. All is done that Python does at its end, but taking everything apart, which is slow."""
    from bitcache.cli.main import main

    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    return code if isinstance(code, int) else 0 if code is None else 1


def _end_with(connection: socket.socket) -> None:
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


def _import_all() -> None:
    """What commands import when they run, too."""
    import bitcache.app
    import bitcache.cli.main
    import bitcache.db.migrate
    import bitcache.restore  # noqa: F401

    gc.freeze()


if __name__ == "__main__":
    _import_all()
    serve(Path(sys.argv[1]))
