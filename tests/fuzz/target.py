"""The server under fire: a process of its own, so that its memory and its log are its alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from regtest.processes import GuardedProcess, free_ports, remove_folder

BITCACHE = Path(sys.executable).with_name("bitcache")
START_S = 60
SETTINGS = {
    "NETWORK": "regtest",
    "REGISTRATION": "open",
    "DISK_RESERVE_BYTES": "0",
    "OPEN_INVOICES_PER_SELLER_MAX": "100000",
    # Each case comes from an address of its own, or all that is fuzzed would be the limits per client.
    "TRUSTED_PROXIES": "127.0.0.1",
    # Nor those of all together.
    "LIMITS_ACCOUNTS_PER_HOUR_IN_TOTAL": "1000000",
    "LIMITS_REPORTS_PER_HOUR_IN_TOTAL": "1000000",
    "LIMITS_INVOICES_PER_MINUTE_IN_TOTAL": "1000000",
}
"""BITCACHE_* variables without the prefix."""
_TROUBLE = re.compile(r"Traceback|\bfailed$| ERROR |CRITICAL|never (awaited|retrieved)", re.MULTILINE)


class Target:
    """Owns a data folder and a server's process. Use with `with`.

    `settings` come on top of SETTINGS; without a node among them there is none.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, *, ready: str = "/healthz") -> None:
        """`ready`: the path that answers 200 once the server is as it is wanted."""
        self.port, node_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="bitcache-fuzz-"))
        chosen = {
            **SETTINGS,
            "LISTEN": f"127.0.0.1:{self.port}",
            "PUBLIC_URL": self.url,
            "NODE_RPC_URL": f"http://127.0.0.1:{node_port}",
            **(settings or {}),
        }
        self._ready = ready
        kept = {name: text for name, text in os.environ.items() if not name.startswith("BITCACHE_")}
        self._environment = {**kept, **{f"BITCACHE_{name}": text for name, text in chosen.items()}}
        self._process: GuardedProcess | None = None

    def __enter__(self) -> Target:
        data = self.folder / "data"
        subprocess.run([BITCACHE, "init", data], env=self._environment, check=True, stdout=subprocess.DEVNULL)
        self._process = GuardedProcess(
            [BITCACHE, "serve", "--data", data],
            log=self.folder / "server.log",
            doomed_folder=self.folder,
            environment=self._environment,
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                said = self._process.log_tail()
                self.__exit__()
                raise AssertionError(f"the server did not start:\n{said}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
        remove_folder(self.folder)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def resident_bytes(self) -> int:
        """RSS of the server's process."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None, status
        return int(found[1]) * 1024

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def troubles(self) -> list[str]:
        """What the log has of bugs: errors and tracebacks, with the lines around the first."""
        text = self.log()
        first = _TROUBLE.search(text)
        if first is None:
            return []
        return [text[max(0, first.start() - 300) : first.start() + 3_000]]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{self._ready}", timeout=5):
                return True
        except urllib.error.HTTPError as refusal:
            refusal.close()
        except OSError:
            pass
        return False
