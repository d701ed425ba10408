"""One drill from the first seller to the last check."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from bitcache import config_file
from bitcache.client.api import ServerApi
from bitcache.client.purchase import look
from bitcache.services import now, open_services
from bitcache.sweep import ORPHAN_KEPT_S
from regtest.errors import RegtestError
from regtest.node import wait_until
from regtest.world import RegtestWorld
from tests.drill import checks, faults, sellers
from tests.drill.buyers import Buyer, fetch_free
from tests.drill.payer import Payer, payments_to
from tests.drill.paying import WAYS
from tests.drill.proxy import Proxy
from tests.drill.schedule import Schedule
from tests.drill.sellers import OnSale
from tests.drill.server import DrillServer
from tests.drill.world import Drill

BLOCK_EVERY_S = 2.0
PAYING_TIMEOUT_S = 120
FETCHING_TIMEOUT_S = 180
DAY_S = 86_400
LAG_S = 5
"""The watcher looks for deadlines with each poll."""
REQUEST_FAILED = "the request failed"


async def run(plan: Schedule, folder: Path, *, tmpfs: bool, keep: Path | None = None) -> list[str]:
    """Play `plan`; what was not as it should be. What was checked is copied to `keep`."""
    async with AsyncExitStack() as closing:
        world = await closing.enter_async_context(RegtestWorld())
        front, zmq = Proxy(0), Proxy(world.server.zmq_port)
        for proxy in (front, zmq):
            await proxy.start()
            closing.push_async_callback(proxy.close)
        server = DrillServer(world, front, zmq, folder / "disk", tmpfs=tmpfs)
        closing.push_async_callback(server.close)
        drill = Drill(world, server, front, zmq, folder, seed=plan.seed)
        drill.payer = await Payer.create(world, buyers=len(plan.buyers))
        await server.start()
        await drill.settled()
        accounts = await asyncio.gather(
            *(sellers.open_seller(drill, number, kind) for number, kind in enumerate(plan.wallets))
        )

        on_sale: list[OnSale] = []
        first = [number for number, parcel in enumerate(plan.parcels) if parcel.at_s == 0]
        await asyncio.gather(*(_sell(drill, accounts, plan, number, on_sale) for number in first))
        buyers: list[Buyer] = []
        async with asyncio.TaskGroup() as background:
            supervisor = background.create_task(drill.supervise())
            miner = background.create_task(_mine(drill))
            drill.begin()
            uploading = [
                background.create_task(_sell(drill, accounts, plan, number, on_sale))
                for number in range(len(plan.parcels))
                if number not in first
            ]
            buying = [
                background.create_task(_buy(drill, plan, number, on_sale, buyers))
                for number in range(len(plan.buyers))
            ]
            await asyncio.gather(*(faults.bring(drill, buyers, one) for one in plan.faults))
            await drill.at(plan.seconds)
            drill.say("the faults are over: everything calms down")
            drill.over.set()
            await asyncio.gather(*uploading)
            await _all_have_paid(buyers)
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
            await drill.calm()
            await _all_have_fetched(drill, buyers)
            for task in (miner, *buying):
                task.cancel()
            await asyncio.gather(*buying, miner, return_exceptions=True)
        await drill.settled()
        evidence = await _evidence(drill, on_sale, buyers)
        drill.wrong += checks.everything(server.data_folder, evidence)
        if keep is not None:
            shutil.copytree(server.data_folder, keep / "data")
            (keep / "evidence.json").write_bytes(msgspec.json.encode(evidence))
        _read_log(drill)
        await _sweep(server)
        drill.wrong += checks.orphans(server.data_folder)
        _tell(drill, evidence, buyers, on_sale)
        return drill.wrong


async def _mine(drill: Drill) -> None:
    while True:
        await asyncio.sleep(BLOCK_EVERY_S)
        await drill.chain.mine()


async def _sell(
    drill: Drill, accounts: Sequence[sellers.Seller], plan: Schedule, number: int, on_sale: list[OnSale]
) -> None:
    parcel = plan.parcels[number]
    sold = await sellers.upload(drill, accounts[parcel.seller], number, parcel)
    if sold is not None:
        on_sale.append(sold)


async def _buy(drill: Drill, plan: Schedule, number: int, on_sale: list[OnSale], buyers: list[Buyer]) -> None:
    planned = plan.buyers[number]
    await drill.at(planned.at_s)
    buyer = Buyer(drill, planned, on_sale[planned.parcel % len(on_sale)], WAYS[planned.paying])
    buyers.append(buyer)
    await buyer.run()


async def _all_have_paid(buyers: Sequence[Buyer]) -> None:
    async def done() -> bool:
        return all(buyer.paid for buyer in buyers)

    await wait_until(done, "every buyer to have paid", timeout_s=PAYING_TIMEOUT_S, poll_s=0.2)


async def _all_have_fetched(drill: Drill, buyers: Sequence[Buyer]) -> None:
    """Until everyone whom the chain says has paid has the files, or it takes too long: checks tell whom."""
    by_address = {buyer.address: buyer for buyer in buyers}
    paid_sat: Counter[str] = Counter()
    for _, _, address, amount_sat, _ in await payments_to(drill.world, set(by_address)):
        paid_sat[address] += amount_sat
    entitled = [buyer for address, buyer in by_address.items() if paid_sat[address] >= buyer.price_sat]

    async def all_there() -> bool:
        return all(buyer.fetched is not None for buyer in entitled)

    try:
        await wait_until(all_there, "the files", timeout_s=FETCHING_TIMEOUT_S, poll_s=0.2)
    except RegtestError:
        drill.say("not all who paid got their files in time")


async def _evidence(drill: Drill, on_sale: Sequence[OnSale], buyers: Sequence[Buyer]) -> checks.Evidence:
    """What all parties know; the server is stopped at the end."""
    server = drill.server
    bought = []
    for buyer in buyers:
        assert buyer.receipt is not None, "everybody has paid by now"
        claim = await buyer.claim()
        if buyer.fetched is not None and buyer.fetched != buyer.on_sale.contents:
            drill.blame(f"{buyer.name} has other files than were sold")
        bought.append(
            checks.Bought(
                name=buyer.name,
                invoice_id=buyer.receipt.invoice_id,
                address=buyer.address,
                price_sat=buyer.price_sat,
                has_files=buyer.fetched == buyer.on_sale.contents,
                key_given=claim is not None and claim.release_secret is not None,
                robbed_depth=buyer.robbed_depth,
            )
        )
    roots: dict[str, str] = {}
    for number, one in enumerate(on_sale):
        link = await sellers.free_link(one, server=server.public_url)
        async with ServerApi(link.server) as api:
            _, parcel = await look(api, link)
        roots |= {file.file_id: file.root.hex() for file in parcel.files}
        if await fetch_free(drill, one, link, drill.folder / f"free-{number}") != one.contents:
            drill.blame(f"parcel {one.parcel_id} is not what seller {one.seller.number} uploaded")
    await _doctor(drill)
    await server.stop()
    ours = checks.addresses(server.data_folder) | {one.address for one in bought}
    found = await payments_to(drill.world, ours)
    return checks.Evidence(
        tip_height=await drill.world.outside.rpc("getblockcount"),
        outputs=tuple(checks.ChainOutput(*one) for one in found),
        bought=tuple(bought),
        roots=roots,
    )


async def _doctor(drill: Drill) -> None:
    """What the server wrote down as things went is what follows from the facts now.

    A deadline that passes just then is time going by, not a difference.
    """
    data, began_at = drill.server.data_folder, now()
    before = checks.standings(data)
    words = ("doctor", "--recompute", "--json", "--data", str(data))
    _, out, err = await drill.client("doctor", *words, home=drill.folder)
    report = json.loads(out)
    if report["recomputed"] is None:
        drill.blame(f"doctor could not recompute: {out}{err}")
        return
    count, changed = report["recomputed"]
    due = [one for one in before if one.review_at is not None and began_at - LAG_S <= one.review_at <= now()]
    drill.say(f"doctor --recompute: {count} invoices, {changed} changed, {len(due)} at their deadline")
    if changed > len(due):
        differences = sorted(set(checks.standings(data)) - set(before) - set(due))
        drill.blame(f"doctor --recompute changed {changed} of {count} invoices: {differences}")
    for finding in report["findings"]:
        if finding["verdict"] == "wrong":
            drill.blame(f"doctor: {finding['check']}: {finding['words']}")


def _read_log(drill: Drill) -> None:
    """No request met a bug of the server's. What else it told of as an error is shown."""
    errors = Counter(line.partition(" ERROR ")[2] for line in drill.server.log().splitlines())
    for words, count in errors.items():
        if REQUEST_FAILED in words:
            drill.blame(f"the server: {words}")
        elif words:
            drill.say(f"the server told {count} times of an error: {words[:160]}")


async def _sweep(server: DrillServer) -> None:
    """Two turns of the sweep, as far apart as it lets what nobody names lie."""
    config = config_file.load(server.data_folder, {})
    for later_s in (0, ORPHAN_KEPT_S + DAY_S):
        async with open_services(config, clock=lambda later_s=later_s: now() + later_s) as services:
            await services.sweep.poll_once()


def _tell(
    drill: Drill, evidence: checks.Evidence, buyers: Sequence[Buyer], on_sale: Sequence[OnSale]
) -> None:
    ways = Counter(buyer.plan.paying for buyer in buyers)
    drill.say("how they paid: " + ", ".join(f"{count} {way}" for way, count in sorted(ways.items())))
    received_sat = sum(output.amount_sat for output in evidence.outputs)
    served = sum(one.has_files for one in evidence.bought)
    drill.say(f"{len(on_sale)} parcels on sale, {len(evidence.roots)} files compared")
    drill.say(
        f"{len(evidence.bought)} invoices, {len(evidence.outputs)} outputs of {received_sat:,} sat in "
        f"{evidence.tip_height} blocks, {served} buyers with their files"
    )
