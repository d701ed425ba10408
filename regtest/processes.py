"""Child processes that never outlive us.

A child gets a session of its own, so Ctrl-C reaches us and not it, and a guard: a shell that blocks on a pipe
only we hold open. When we end without a word, even by SIGKILL, the pipe closes and the guard kills the
child's process group and removes its folder. (Linux's PDEATHSIG would fire when the *thread* that started the
child ends, and other systems have none.)
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Below those that the system gives to outgoing connections: one of these could take the port of a node
# that is down for a moment.
LISTENING_PORTS = range(15_000, 32_000)
# Not the global generator: Hypothesis seeds that one alike in every test worker.
_random = random.SystemRandom()

# dash takes no `--` after `kill -KILL`.
GUARD = """
read -r farewell && exit 0
kill -KILL "-$1" 2>/dev/null
[ -z "$2" ] || rm -rf -- "$2"
"""


class GuardedProcess:
    """A running program, its output in `log`. Stop it with `terminate` or `kill`.

    `doomed_folder` is removed if we die before the child. `user` is whom to run as; only root may name one.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        doomed_folder: Path | None = None,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        user: str | None = None,
    ) -> None:
        account = pwd.getpwnam(user) if user else None
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                cwd=folder,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self._process.pid), str(doomed_folder or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def terminate(self, *, timeout_s: float = 60, signal_number: int = signal.SIGTERM) -> int:
        """Ask the program to end, kill it after `timeout_s`; its exit code (negative: minus the signal)."""
        if self.running:
            self._process.send_signal(signal_number)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return self.kill()
        self._dismiss_guard()
        return self._process.wait()

    def kill(self) -> int:
        """SIGKILL to the whole process group, as a crash would do it; the exit code."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._dismiss_guard()
        return self._process.wait()

    def log_tail(self, *, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _dismiss_guard(self) -> None:
        if self._guard.poll() is None:
            self._guard.communicate(b"farewell\n")


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of the loopback address that nobody listens on at this moment."""
    ports: set[int] = set()
    while len(ports) < count:
        port = _random.choice(LISTENING_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.add(port)
    return list(ports)


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
