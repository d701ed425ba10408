"""The main job of Bitcache, played on real bitcoin nodes: sell a file, pay, get it; then every way it can go.

`make demo`, or `make demo FILE=path`. It works only through the public command line and the HTTP API, as a
seller and buyers would. The exit code is not zero if anything is not as it should be.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from regtest.demo_cases import CASES, Stall
from regtest.demo_channels import STEPS as METERED_STEPS
from regtest.demo_channels import Meter
from regtest.demo_hosted import STEPS, Office
from regtest.node import wait_until
from regtest.processes import remove_folder
from regtest.served import ServedBitcache
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import RegtestWorld

SAMPLE_BYTES = 64 * 1024 * 1024
PRICE_SAT = 5_000


class Wrong(Exception):
    """Something was not as it should be; the message says what."""


class Story:
    """Prints what is done, what happened, and whether that was right."""

    def __init__(self) -> None:
        self.failures = 0
        self._started_at = time.monotonic()

    def chapter(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    async def step(self, doing: str, step: Callable[[], Awaitable[str]], *, shows: bool = False) -> None:
        """Run one step that says what happened. What was not right is told, counted, and not the end.

        `shows`: what runs prints lines and progress of its own in between.
        """
        print(f"  {doing} ... ", end="\n" if shows else "", flush=True)
        try:
            happened = await step()
        except (Exception, AssertionError) as exc:
            self.failures += 1
            print(f"NOT OK\n    {type(exc).__name__}: {exc}", flush=True)
        else:
            print(f"{'    -> ' if shows else ''}{happened}  ok", flush=True)

    def say(self, line: str) -> None:
        print(f"  {line}", flush=True)

    def end(self) -> int:
        """The exit code."""
        took = f"in {time.monotonic() - self._started_at:.0f} s"
        if self.failures:
            print(f"\n{self.failures} steps were NOT as they should be ({took}).")
            return 1
        print(f"\nEverything was as it should be ({took}).")
        return 0


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


async def play(file: Path, folder: Path) -> int:
    story = Story()
    async with AsyncExitStack() as closing:
        story.chapter(
            "The world: two bitcoin nodes on regtest, and a Bitcache server with SQLite and a folder"
        )
        world = await closing.enter_async_context(RegtestWorld())
        server = ServedBitcache(world)
        closing.push_async_callback(server.close)
        await server.start()
        story.say(f"the server runs at {server.url}; its node knows no wallet")

        seller_home, seller_wallet = folder / "seller", await OutsideWallet.create(world, "seller")
        seller_home.mkdir()
        await _open_account(story, server, seller_home, seller_wallet)
        await _sell(story, server, file, folder, seller_wallet)
        await _prefetch(story, server, file, folder)

        story.chapter("Every way a payment can go")
        stall = await Stall.open(server, seller_home, folder)
        for doing, case in CASES:
            await story.step(doing, lambda case=case: case(stall))  # type: ignore[misc]
        await story.step("the seller's books after all that", stall.check_books)

        story.chapter("Hosted sales: the operator's wallet in between, its keys on another machine")
        office = await Office.open(server, folder)
        for doing, step in STEPS:
            await story.step(doing, lambda step=step: step(office))  # type: ignore[misc]

        story.chapter("Metered transfers: a payment channel, a signature for each chunk")
        meter = await Meter.open(office)
        for doing, metered_step in METERED_STEPS:
            await story.step(doing, lambda step=metered_step: step(meter))  # type: ignore[misc]
    return story.end()


async def _open_account(
    story: Story, server: ServedBitcache, seller_home: Path, seller_wallet: OutsideWallet
) -> None:
    story.chapter("The seller")

    async def account() -> str:
        made = await server.command_json(
            "account", "create", "Studio Marée", "--data", str(server.data_folder)
        )
        await server.command("login", server.url, home=seller_home, stdin=made["token"])
        return "signed in with a token that is stored hashed"

    async def payout() -> str:
        descriptor = await seller_wallet.descriptor("wpkh")
        shown = await server.command_json("payout", "set", descriptor, "--yes", home=seller_home)
        return f"first address {shown['first_addresses'][0]}"

    await story.step("operator makes an account, seller signs in", account)
    await story.step("seller sets the descriptor of a wallet the server never sees", payout)


async def _sell(
    story: Story, server: ServedBitcache, file: Path, folder: Path, seller_wallet: OutsideWallet
) -> None:
    story.chapter(f"One sale: {file.name}, {_size_bytes(file):,} bytes, for {PRICE_SAT:,} sat")
    world = server.world
    buyer_home = folder / "buyer"
    buyer_home.mkdir()
    wallet = await BitWallet.create(world)
    upload = await server.command_json(
        "upload",
        str(file),
        "--price",
        f"{PRICE_SAT}sat",
        "--title",
        "Sold by the demo",
        home=folder / "seller",
        show=True,
    )
    link: str = upload["link"]
    offer_id = urlsplit(link).path.rsplit("/", 1)[-1]
    story.say(f"link: {link}")
    offer = (await server.http("GET", f"/offers/{offer_id}")).json()
    content = f"/offers/{offer_id}/files/{offer['files'][0]['file_id']}/content"

    async def unpaid() -> str:
        refused = await server.http("GET", content)
        demand(refused.status == 402, f"without a payment the server answered {refused.status}")
        challenge = refused.headers["WWW-Authenticate"]
        demand(challenge.startswith("Payment "), f"the challenge was {challenge}")
        return "402 Payment Required"

    await story.step("buyer asks for the file without paying", unpaid)
    invoice = await server.command_json("get", link, "--no-wait", home=buyer_home)
    story.say(f"invoice: {invoice['amount_sat']:,} sat to {invoice['address']}")
    receipt: str = invoice["receipt"]
    claim = {"claim_secret": receipt.split("#", 1)[1].split(".")[1]}
    invoice_path = f"/invoices/{invoice['invoice_id']}"

    async def pay() -> str:
        payment = await wallet.pay([(invoice["address"], invoice["amount_sat"])])

        async def seen() -> bool:
            return bool((await server.http("GET", invoice_path)).json()["status"] == "seen")

        await wait_until(seen, "the server to see the payment")
        return f"seen in the mempool: {payment.txid[:16]}..."

    async def unconfirmed() -> str:
        claimed = (await server.http("POST", f"{invoice_path}/claim", body=claim)).json()
        demand(claimed["release_secret"] is None, "the key was given before a block")
        plain = await server.http("GET", content)
        demand(plain.status == 402, f"without a grant the server answered {plain.status}")
        granted = await server.http("GET", content, token=claimed["grant_token"])
        problem = granted.json()["type"]
        demand(problem == "/problems/payment-unconfirmed", f"before a block the server answered {problem}")
        return "402 without a grant; with it: payment-unconfirmed, no key"

    async def block() -> str:
        await world.mine()

        async def settled() -> bool:
            return bool((await server.http("GET", invoice_path)).json()["status"] == "settled")

        await wait_until(settled, "the invoice to be settled")
        return "settled, one confirmation"

    async def download() -> str:
        target = folder / "bought"
        await server.command("get", receipt, "-o", str(target), home=buyer_home, show=True)
        return _same(file, target)

    async def again() -> str:
        empty_home, target = folder / "another-device", folder / "bought-again"
        empty_home.mkdir()
        await server.command("get", receipt, "-o", str(target), home=empty_home, show=True)
        return _same(file, target)

    async def earned() -> str:
        earnings = await server.command_json("earnings", home=folder / "seller")
        demand(earnings["received_sat"] == PRICE_SAT, f"the earnings show {earnings['received_sat']} sat")
        received = await seller_wallet.received_sat(invoice["address"], confirmations=1)
        demand(received == PRICE_SAT, f"the seller's wallet received {received} sat")
        return f"{PRICE_SAT:,} sat in the dashboard and in the seller's own wallet"

    await story.step("an independent wallet (bit) pays", pay)
    await story.step("buyer asks again", unconfirmed)
    await story.step("a block is mined", block)
    await story.step("buyer downloads, verifies, decrypts", download, shows=True)
    await story.step("the receipt alone, from an empty home folder", again, shows=True)
    await story.step("the seller's earnings", earned)


async def _prefetch(story: Story, server: ServedBitcache, file: Path, folder: Path) -> None:
    story.chapter("A second sale with --prefetch: the ciphertext flows while the payment is unconfirmed")
    buyer_home = folder / "prefetching-buyer"
    buyer_home.mkdir()
    wallet = await BitWallet.create(server.world)
    upload = await server.command_json(
        "upload", str(file), "--price", f"{PRICE_SAT}sat", "--prefetch", home=folder / "seller", show=True
    )
    link: str = upload["link"]
    invoice = await server.command_json("get", link, "--no-wait", home=buyer_home)
    receipt: str = invoice["receipt"]
    claim = {"claim_secret": receipt.split("#", 1)[1].split(".")[1]}
    place = folder / "prefetched"
    place.mkdir()
    target = place / file.name

    async def flows() -> str:
        await wallet.pay([(invoice["address"], invoice["amount_sat"])], fee_sat=20_000)

        async def allowed() -> bool:
            answer = await server.http("POST", f"/invoices/{invoice['invoice_id']}/claim", body=claim)
            return answer.status == 200 and bool(answer.json()["bytes_allowed"])

        await wait_until(allowed, "the ciphertext to be allowed")
        claimed = (await server.http("POST", f"/invoices/{invoice['invoice_id']}/claim", body=claim)).json()
        demand(claimed["release_secret"] is None, "the key was given before a block")
        getting = asyncio.create_task(server.command("get", receipt, "-o", str(target), home=buyer_home))
        try:
            fetched = await _most_of_it_fetched((buyer_home, place), _size_bytes(file))
            demand(not target.exists(), "there is plaintext before a block")
            await server.world.mine()
            await getting
        finally:
            getting.cancel()
        return f"{fetched:,} bytes came unconfirmed, the key after the block; {_same(file, target)}"

    await story.step("buyer pays, downloads at once, a block is mined", flows)


async def _most_of_it_fetched(places: Sequence[Path], size_bytes: int) -> int:
    """Wait until the buyer's client keeps nearly the whole ciphertext in one of these; how much it is."""
    held = 0

    async def enough() -> bool:
        nonlocal held
        held = max([await asyncio.to_thread(_disk_use_bytes, place) for place in places])
        return held >= size_bytes * 9 // 10

    await wait_until(enough, "the ciphertext to be fetched", timeout_s=60)
    return held


def _disk_use_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _size_bytes(file: Path) -> int:
    return file.stat().st_size


def _same(sold: Path, bought: Path) -> str:
    digests = []
    for path in (sold, bought):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    demand(digests[0] == digests[1], f"{bought} differs from what was sold")
    return f"SHA-256 {digests[0][:16]}... as sold"


def _sample(folder: Path) -> Path:
    path = folder / 'a sample (it\'s "64 MiB").bin'
    with path.open("wb") as file:
        for _ in range(SAMPLE_BYTES // (1024 * 1024)):
            file.write(secrets.token_bytes(1024 * 1024))
    return path


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="bitcache-demo-"))
    try:
        given = os.environ.get("DEMO_FILE", "")
        file = Path(given).absolute() if given else _sample(folder)
        if not file.is_file():
            print(f"There is no file {file}. Give the path of one: make demo FILE=path", file=sys.stderr)
            return 2
        return asyncio.run(play(file, folder))
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 130
    finally:
        remove_folder(folder)


if __name__ == "__main__":
    sys.exit(main())
