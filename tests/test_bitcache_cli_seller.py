"""Sellers' commands at a terminal and in scripts: asked first and stored after, refused before an upload."""

from __future__ import annotations

import asyncio
import os
import pty
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bitcache.config import NodeConfig
from regtest.world import RegtestWorld
from tests.command_server import quick_bitcache
from tests.functional_client_crash import environment
from tests.service import RunningServer, running_server
from tests.test_bitcache_accounts import KEY
from tests.test_bitcache_catalog import ask

TIMEOUT_S = 60


@dataclass
class Seller:
    server: RunningServer
    token: str
    home: Path

    async def run(self, *words: str, answer: str | None = None, **variables: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr); `answer` is typed at a terminal, without one there is none."""
        reading, terminal = os.pipe() if answer is None else pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                quick_bitcache(),
                *words,
                stdin=reading if answer is None else terminal,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment(self.home, variables),
                cwd=self.home,
            )
            if answer is not None:
                os.write(reading, answer.encode())
            os.close(terminal)
            terminal = -1
            out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        finally:
            for descriptor in {reading, terminal} - {-1}:
                os.close(descriptor)
        assert process.returncode is not None
        assert b"Traceback" not in err
        # Lines are folded to the width of a terminal that is not there.
        return process.returncode, out.decode(), " ".join(err.decode().split())

    async def signed_in(self, *words: str, answer: str | None = None) -> tuple[int, str, str]:
        variables = {"BITCACHE_SERVER": self.server.url, "BITCACHE_TOKEN": self.token}
        return await self.run(*words, answer=answer, **variables)

    async def payout(self) -> Any:
        async with self.server.session(self.token) as http:
            return (await ask(http, "GET", "/account"))[1]["payout"]


@pytest_asyncio.fixture
async def seller(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Seller]:
    node = NodeConfig(rpc_url=world.server.rpc_url, rpc_cookie_file=str(world.server.cookie_path))
    home = tmp_path / "home"
    home.mkdir()
    async with running_server(tmp_path, node=node) as server:
        yield Seller(server, (await server.new_seller()).token, home)


async def test_a_wallet_is_stored_only_after_a_yes(seller: Seller) -> None:
    code, out, err = await seller.signed_in("payout", "set", f"wpkh({KEY}/0/*)", answer="n\n")
    assert code == 1, err
    assert "Address 0" in out
    assert "Nothing was changed" in err
    assert await seller.payout() is None

    code, out, err = await seller.signed_in("payout", "set", f"wpkh({KEY}/0/*)", answer="y\n")
    assert code == 0, err
    assert (await seller.payout())["first_addresses"][0] in out


async def test_who_cannot_be_asked_must_have_said_yes(seller: Seller) -> None:
    wallet = f"wpkh({KEY}/0/*)"
    assert (await seller.signed_in("payout", "set", wallet))[0] == 1
    assert (await seller.signed_in("payout", "set", wallet, "--json"))[0] == 2
    assert await seller.payout() is None
    assert (await seller.signed_in("payout", "set", wallet, "--json", "--yes"))[0] == 0
    assert await seller.payout() is not None


async def test_what_nobody_could_pay_is_not_uploaded(seller: Seller) -> None:
    goods = seller.home / "song.flac"
    goods.write_bytes(b"la la la")
    upload = ("upload", str(goods), "--price")
    code, _, err = await seller.signed_in(*upload, "5000sat")
    assert code == 1
    assert "set the wallet first: bitcache payout set" in err
    code, _, err = await seller.signed_in(*upload, "999sat")
    assert code == 1
    assert "least price on this server is 1,000 sat" in err
    async with seller.server.session(seller.token) as http:
        assert (await ask(http, "GET", "/account"))[1]["bytes_stored"] == 0
    # What is free needs neither.
    code, out, err = await seller.signed_in(*upload, "0")
    assert code == 0, err
    code, out, _ = await seller.signed_in("parcels")
    assert "1 file  1 offer  sealed" in out


async def test_a_token_may_be_in_a_file_that_the_environment_names(seller: Seller) -> None:
    (seller.home / "token").write_text(seller.token + "\n")
    variables = {"BITCACHE_SERVER": seller.server.url, "BITCACHE_TOKEN_FILE": str(seller.home / "token")}
    code, out, err = await seller.run("earnings", **variables)
    assert code == 0, err
    assert "Received 0 sat in 0 sales." in out
    code, out, err = await seller.run("login", seller.server.url, **variables)
    assert code == 0, err
    assert "Paste" not in err


@pytest.mark.parametrize("at_terminal", [True, False])
async def test_only_a_person_is_told_how_to_paste(seller: Seller, *, at_terminal: bool) -> None:
    # Ctrl-D at the beginning of a line ends the input.
    answer = f"{seller.token}\n\x04" if at_terminal else None
    code, _, err = await seller.run("login", seller.server.url, answer=answer)
    assert (code == 0) is at_terminal, err
    assert ("Paste" in err) is at_terminal
