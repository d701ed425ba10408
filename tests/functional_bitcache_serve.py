"""The operator's commands as processes: init, account, serve, with a node, without one, with a wrong one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from regtest.processes import free_ports
from regtest.world import RegtestWorld
from tests.command_server import quick_bitcache

BITCACHE = [sys.executable, "-m", "bitcache.cli.main"]
START_S = 60


def environment(**changes: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("BITCACHE_")}
    return kept | changes


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [quick_bitcache(), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**variables),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    assert command("init", str(folder), "--network", "regtest").returncode == 0
    return folder


@pytest.fixture
def listen() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(
    processes: list[subprocess.Popen[str]], folder: Path, listen: str, *more: str, **variables: str
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*BITCACHE, "serve", "--data", str(folder), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(BITCACHE_LISTEN=listen, **variables),
    )
    processes.append(process)
    return process


def test_init_twice_and_wrong_use_have_their_exit_codes(folder: Path) -> None:
    again = command("init", str(folder), "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["error"]["name"] == "AlreadyInitialised"
    assert command("init", "--network", "mars").returncode == 2
    missing = command("serve", "--data", str(folder / "nothing"))
    assert missing.returncode == 1
    assert "bitcache init" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_accounts_are_made_and_listed(folder: Path) -> None:
    made = command("account", "create", "Ada's music", "--data", str(folder), "--json")
    assert json.loads(made.stdout)["token"].startswith("bcs_")
    taken = command("account", "create", "ada's MUSIC", "--data", str(folder))
    assert (taken.returncode, taken.stdout) == (1, "")
    listed = json.loads(command("account", "list", "--data", str(folder), "--json").stdout)
    assert [account["name"] for account in listed] == ["Ada's music"]


async def test_it_serves_without_a_node_and_stops_when_told(
    folder: Path, listen: str, processes: list[subprocess.Popen[str]]
) -> None:
    process = start(processes, folder, listen, BITCACHE_NODE_RPC_URL=f"http://127.0.0.1:{free_ports(1)[0]}")
    assert process.stdout is not None
    assert listen in process.stdout.readline()
    async with ClientSession(f"http://{listen}") as http, http.get("/healthz") as answer:
        assert (await answer.json())["node_online"] is False
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors


async def test_it_sees_its_node(
    folder: Path, listen: str, processes: list[subprocess.Popen[str]], world: RegtestWorld
) -> None:
    process = start(
        processes,
        folder,
        listen,
        BITCACHE_NODE_RPC_URL=world.server.rpc_url,
        BITCACHE_NODE_RPC_COOKIE_FILE=str(world.server.cookie_path),
    )
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + START_S
    async with ClientSession(f"http://{listen}") as http:
        while True:
            async with http.get("/readyz") as answer:
                health = await answer.json()
            if health["node_online"]:
                break
            assert time.monotonic() < deadline, health
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


async def test_a_node_of_another_network_is_refused(
    folder: Path, listen: str, processes: list[subprocess.Popen[str]], world: RegtestWorld
) -> None:
    process = start(
        processes,
        folder,
        listen,
        BITCACHE_NETWORK="signet",
        BITCACHE_NODE_RPC_URL=world.server.rpc_url,
        BITCACHE_NODE_RPC_COOKIE_FILE=str(world.server.cookie_path),
    )
    _, errors = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert "regtest" in errors
    assert "signet" in errors
    assert "Traceback" not in errors


def test_a_master_key_that_others_can_read_stops_the_start(folder: Path, listen: str) -> None:
    (folder / "master.key").chmod(0o644)
    refused = command("serve", "--data", str(folder), BITCACHE_LISTEN=listen)
    assert refused.returncode == 1
    assert "chmod 600" in refused.stderr


def test_two_servers_on_one_port_fail_in_words(
    folder: Path, listen: str, processes: list[subprocess.Popen[str]]
) -> None:
    first = start(processes, folder, listen)
    assert first.stdout is not None
    first.stdout.readline()
    second = command("serve", "--data", str(folder), BITCACHE_LISTEN=listen)
    assert second.returncode == 1
    assert "Traceback" not in second.stderr
    assert listen.rpartition(":")[2] in second.stderr
