"""A real Bitcache server, a process beside the regtest world, and the `bitcache` command as users run it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regtest.errors import RegtestError
from regtest.processes import GuardedProcess, free_ports, remove_folder
from regtest.world import RegtestWorld

BITCACHE = Path(sys.executable).with_name("bitcache")
CONFIG_FILE = "bitcache.toml"
"""What `bitcache init` leaves in a data folder."""
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 300.0


class ServerFailed(RegtestError):
    """The server did not start, with its last words."""


class CommandFailed(RegtestError):
    """A `bitcache` command ended with an error."""

    def __init__(self, command: str, code: int, output: str) -> None:
        super().__init__(f"`bitcache {command}` ended with code {code}:\n{output}")
        self.code = code
        self.output = output


@dataclass(frozen=True)
class Answer:
    """What the HTTP API answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class ServedBitcache:
    """Owns a data folder, a port and a process. `await start()` first, `await close()` last.

    `settings` are BITCACHE_* variables without the prefix, such as {"PRICE_HOLD_S": "60"}. `data_folder`:
    where the server keeps its things, if not in a folder of its own.
    """

    command_program: ClassVar[Callable[[], Path]] = staticmethod(lambda: BITCACHE)
    """What `command` runs."""

    def __init__(
        self,
        world: RegtestWorld,
        *,
        settings: Mapping[str, str] | None = None,
        data_folder: Path | None = None,
    ) -> None:
        self.world = world
        self.folder = Path(tempfile.mkdtemp(prefix="bitcache-server-"))
        self.port = free_ports(1)[0]
        self.url = f"http://localhost:{self.port}"
        self.settings = dict(settings or {})
        self.data_folder = data_folder or self.folder / "data"
        self.program: Sequence[str | Path] = (BITCACHE,)
        """What `start` runs, with `serve` and its options behind it."""
        self._process: GuardedProcess | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "start it first"
        return self._process.pid

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """For the server, and for commands of operator, sellers and buyers, each with their own home."""
        node = self.world.server
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BITCACHE_")}
        return {
            **inherited,
            "HOME": str(home or self.folder),
            "XDG_DATA_HOME": str((home or self.folder) / "data-home"),
            "XDG_STATE_HOME": str((home or self.folder) / "state-home"),
            "XDG_CONFIG_HOME": str((home or self.folder) / "config-home"),
            "XDG_CACHE_HOME": str((home or self.folder) / "cache-home"),
            "BITCACHE_NETWORK": "regtest",
            "BITCACHE_LISTEN": f"127.0.0.1:{self.port}",
            "BITCACHE_PUBLIC_URL": self.url,
            "BITCACHE_NODE_RPC_URL": node.rpc_url,
            "BITCACHE_NODE_RPC_COOKIE_FILE": str(node.cookie_path),
            "BITCACHE_NODE_ZMQ_SEQUENCE_URL": node.zmq_url,
            **{f"BITCACHE_{name}": value for name, value in self.settings.items()},
        }

    async def start(self) -> None:
        """Make the data folder if there is none, start, and wait until the server and its node are ready."""
        if not (self.data_folder / CONFIG_FILE).exists():
            await self.command("init", str(self.data_folder))
        self._process = GuardedProcess(
            [*self.program, "serve", "--data", str(self.data_folder)],
            log=self.folder / "server.log",
            environment=self.environment(),
            folder=self.folder,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._ready():
            if not self._process.running or time.monotonic() > deadline:
                await self.kill()
                raise ServerFailed(f"the server did not get ready:\n{self._process.log_tail()}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.terminate)

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self._process is not None:
            await asyncio.to_thread(self._process.kill)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def close(self) -> None:
        await self.kill()
        await asyncio.to_thread(remove_folder, self.folder)

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    async def command(
        self, *words: str, home: Path | None = None, stdin: str = "", show: bool = False
    ) -> str:
        """Run `bitcache` with these words; what it printed. `show`: its progress goes to our stderr.

        Raises CommandFailed.
        """
        process = await asyncio.create_subprocess_exec(
            type(self).command_program(),
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if show else asyncio.subprocess.PIPE,
            env=self.environment(home),
            cwd=self.folder,
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = out.decode(errors="replace") + (err or b"").decode(errors="replace")
            raise CommandFailed(" ".join(words[:2]), process.returncode, said)
        return out.decode()

    async def command_json(
        self, *words: str, home: Path | None = None, stdin: str = "", show: bool = False
    ) -> Any:
        """As `command` with `--json`; the document it printed."""
        return json.loads(await self.command(*words, "--json", home=home, stdin=stdin, show=show))

    async def http(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call of the HTTP API, below /api/v1; any status is an answer."""
        return await asyncio.to_thread(self._http, method, path, body, token, headers or {})

    def _http(
        self, method: str, path: str, body: object, token: str | None, headers: Mapping[str, str]
    ) -> Answer:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                **({"Content-Type": "application/json"} if body is not None else {}),
                **({"Authorization": f"Bearer {token}"} if token else {}),
                **headers,
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Answer(refusal.code, dict(refusal.headers), refusal.read())

    async def _ready(self) -> bool:
        def ask() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                    return True
            except OSError:
                return False

        return await asyncio.to_thread(ask)
