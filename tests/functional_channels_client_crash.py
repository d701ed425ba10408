"""kill -9 of a download that pays per chunk, at random moments: run again, and nothing was paid twice."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

from regtest.served import BITCACHE
from regtest.world import RegtestWorld
from tests.channel_market import PRICE_SAT, ChannelMarket, open_channel_market
from tests.functional_client_crash import Wire, relay

CHUNKS = 32
KILLS = 3
"""As often as a chunk is sent again for nothing."""
CUTS_MIN_BYTES, CUTS_MAX_BYTES = 1 << 16, 14 << 20


async def killed(market: ChannelMarket, wire: Wire, *words: str) -> bool:
    """Run the command until so many bytes have passed; False: it was over before."""
    process = await asyncio.create_subprocess_exec(
        BITCACHE,
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=market.server.environment(market.buyer),
        cwd=market.buyer,
    )
    ended = asyncio.create_task(process.communicate())
    passed = asyncio.create_task(wire.passed.wait())
    async with asyncio.timeout(60):
        await asyncio.wait({ended, passed}, return_when=asyncio.FIRST_COMPLETED)
    passed.cancel()
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    out, err = await ended
    assert process.returncode in {0, -signal.SIGKILL}, (out, err)
    return process.returncode != 0


async def test_killed_again_and_again_it_pays_each_chunk_once(world: RegtestWorld, tmp_path: Path) -> None:
    rng = random.Random(21)
    wire = Wire()
    settings = {"CHANNELS_UNCONFIRMED_SAT": "5000"}
    async with (
        open_channel_market(world, tmp_path, **settings) as market,
        relay(market.server.port, wire) as url,
    ):
        file = market.goods(CHUNKS)
        link = await market.sell(file)
        opened = await market.open_channel(confirmations=0, server=url)
        channel_id = opened["channels"][0]["channel_id"]
        link = url + link[link.index("/d/") :]
        out = tmp_path / "out" / "file"
        words = ("get", link, "--yes", "--json", "-o", str(out))
        kills = 0
        for _ in range(KILLS):
            wire.restart()
            wire.down_watch = rng.randrange(CUTS_MIN_BYTES, CUTS_MAX_BYTES)
            kills += await killed(market, wire, *words)
            held = await market.channel(channel_id)
            assert held["server_view"]["accepted_sat"] <= held["signed_sat"] <= CHUNKS * PRICE_SAT
            assert held["chunks_outstanding"] <= 16
            if out.exists():
                break
        wire.restart()
        await market.get(link, "-o", str(out), "--force")
        assert out.read_bytes() == file.read_bytes()
        held = await market.channel(channel_id)
        assert held["chunks_outstanding"] == 0
        view = held["server_view"]
        assert view["spent_msat"] == CHUNKS * PRICE_SAT * 1_000
        assert (view["accepted_sat"], held["signed_sat"]) == (CHUNKS * PRICE_SAT, CHUNKS * PRICE_SAT)
        assert kills >= 2
        print(f"killed {kills} times")
