"""A server with sample data on a regtest world, left running to play with. `make serve`; Ctrl-C ends all."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from regtest.errors import RegtestError
from regtest.served import ServedBitcache
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld

BLOCK_EVERY_S = 20
BUYER_SAT = 10_000_000
COMMAND = Path(sys.executable).with_name("bitcache")

TRY = """
A Bitcache server runs at {url}. Its node is on regtest, and a block is mined every {block_every_s} seconds.

  A folder for sale, 5,000 sat: {link}
  The same with --prefetch, 2,000 sat: {prefetch_link}

  Look at one of these pages in a browser, or buy on the command line (another terminal):
    {command} get '{link}' --pay '{wallet}'
  Sell something as the seller:
    export BITCACHE_SERVER={url} BITCACHE_TOKEN_FILE={token_file}
    {command} upload README.md --price 1000sat
    {command} earnings
  The seller's dashboard is {url}/dashboard; its token is in that file.

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
        server = ServedBitcache(world)
        closing.push_async_callback(server.close)
        await server.start()
        print(await _sample(world, server, folder), flush=True)
        while not stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), BLOCK_EVERY_S)
            await world.mine()
        print("stopping ...", flush=True)


async def _sample(world: RegtestWorld, server: ServedBitcache, folder: Path) -> str:
    """Make a seller with two offers and a buyer with coins; what to try with them."""
    seller, buyer = await OutsideWallet.create(world, "seller"), await OutsideWallet.create(world, "buyer")
    await world.faucet(await buyer.new_address(), BUYER_SAT)
    home = folder / "seller"
    home.mkdir()
    made = await server.command_json("account", "create", "Sample seller", "--data", str(server.data_folder))
    token_file = folder / "seller.token"
    token_file.touch(mode=0o600)
    token_file.write_text(made["token"])
    await server.command("login", server.url, home=home, stdin=made["token"])
    await server.command("payout", "set", await seller.descriptor("wpkh"), "--yes", home=home)
    goods = folder / "Sample goods"
    goods.mkdir()
    (goods / "Read me.txt").write_text("You paid for this. Thank you.\n")
    (goods / "noise.bin").write_bytes(bytes(range(256)) * 20_000)
    upload = ("upload", str(goods), "--title", "Sample goods")
    sold = await server.command_json(*upload, "--price", "5000sat", home=home)
    prefetched = await server.command_json(*upload, "--price", "2000sat", "--prefetch", home=home)
    return TRY.format(
        url=server.url,
        block_every_s=BLOCK_EVERY_S,
        link=sold["link"],
        prefetch_link=prefetched["link"],
        command=COMMAND,
        wallet=f"bitcoind:{world.outside.rpc_url}/wallet/{buyer.name}?cookie={world.outside.cookie_path}",
        token_file=token_file,
    )


if __name__ == "__main__":
    try:
        asyncio.run(serve())
    except RegtestError as exc:
        sys.exit(str(exc))
