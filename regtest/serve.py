"""A server with sample data on a regtest world, left running to play with. `make serve`; Ctrl-C ends all."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from regtest.errors import RegtestError
from regtest.play_wallet import PlayWallet
from regtest.samples import Samples
from regtest.served import ServedBitcache
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld

BLOCK_EVERY_S = 20
BUYER_SAT = 10_000_000
COINS = 40
COMMAND = Path(sys.executable).with_name("bitcache")

TRY = """
A Bitcache server runs at {url}. Its node is on regtest, and a block is mined every {block_every_s} seconds.

  In a browser
    Buy a folder, 5,000 sat:         {link}
    The same, downloaded early:      {prefetch_link}
    Three confirmations, 21,000 sat: {slow_link}
    For nothing:                     {free_link}
    Per chunk of 1 MiB, 10 sat:      {metered_link}
    Every payment page has a button "Pay with the play wallet": its coins are worthless.
    Sell, and see what you earn:     {url}/sign-in
      name: {seller_name}   password: {password}

  On the command line (another terminal)
    {command} get '{link}' --pay '{wallet}'
    {command} channel open {url} --deposit 20000sat --change {change} --pay '{wallet}'
    {command} get '{metered_link}'
    export BITCACHE_SERVER={url} BITCACHE_TOKEN_FILE={token_file}
    {command} upload README.md --price 1000sat
    {command} earnings

Ctrl-C ends all and removes everything.
"""


async def serve() -> None:
    """Set up, say what to try, and mine until SIGINT or SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="bitcache-serve-")))
        world = await closing.enter_async_context(RegtestWorld())
        buyer = await OutsideWallet.create(world, "buyer")
        for _ in range(COINS):
            await world.faucet(await buyer.new_address(), BUYER_SAT, confirmations=0)
        await world.mine()
        play_wallet = PlayWallet(world, buyer)
        await play_wallet.start()
        closing.push_async_callback(play_wallet.close)
        operator = await OutsideWallet.create(world, "operator")
        settings = {
            "REGTEST_WALLET_URL": play_wallet.url,
            "HOSTED_DESCRIPTOR": await operator.descriptor("wpkh"),
            "CHANNELS_ENABLED": "true",
            "CHANNELS_CLOSE_FEERATE_SAT_VB": "2",
        }
        server = ServedBitcache(world, settings=settings)
        closing.push_async_callback(server.close)
        await server.command("init", str(server.data_folder), "--channels")
        await server.start()
        samples = await Samples.make(world, server, folder, buyer)
        print(
            TRY.format(
                url=server.url,
                block_every_s=BLOCK_EVERY_S,
                command=COMMAND,
                change=await buyer.new_address(),
                wallet=f"bitcoind:{world.outside.rpc_url}/wallet/{buyer.name}?cookie={world.outside.cookie_path}",
                **samples.words(),
            ),
            flush=True,
        )
        while not stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), BLOCK_EVERY_S)
            await world.mine()
        print("stopping ...", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(serve())
    except RegtestError as exc:
        sys.exit(str(exc))
