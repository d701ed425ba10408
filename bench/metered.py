"""Metered bytes beside free ones: one file from one server, a voucher with each range or a grant."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coincurve import PrivateKey

from bench.processes import cpu_s
from bench.raw_http import RawConnection, in_lanes
from bench.report import Line
from bench.stage import Stage, offer_of, open_server
from payments.channel_keys import public_bytes
from payments.channel_script import Channel, Contract
from payments.money import Sat
from payments.outputs import OutPoint
from regtest.served import ServedBitcache
from regtest.wallet import OutsideWallet

MIB = 1 << 20
GIB = 1 << 30
BUYERS = 4
"""At a time: who pays shares the commit of a voucher with the others."""
LANES = 4
"""Of each, as many as a grant may have."""
PRICE_SAT = 10
OVERHEAD_MAX = 1.25
CHUNKS_PER_REQUEST = (1, 4)
"""As few as can be, and as `bitcache get` asks for them."""
Headers = Callable[[], Mapping[str, str]]


async def metered_download(size_bytes: int, rounds: int) -> list[Line]:
    settings = {
        "DISK_RESERVE_BYTES": "0",
        "CHANNELS_ENABLED": "true",
        "CHANNELS_CLOSE_FEERATE_SAT_VB": "1",
        "LIMITS_CHANNEL_CONTRACTS_PER_MINUTE": "1000",
    }
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        async with open_server(settings) as server:
            operator = await OutsideWallet.create(server.world, "operator")
            server.settings["HOSTED_DESCRIPTOR"] = await operator.descriptor("wpkh")
            await server.command("init", str(server.data_folder), "--channels")
            await server.start()
            stage = Stage(server, Path(folder))
            await stage.prepare()
            await server.command("payout", "address", await operator.new_address(), "--yes", home=stage.home)
            return await _measured(stage, size_bytes, rounds)


async def _measured(stage: Stage, size_bytes: int, rounds: int) -> list[Line]:
    file = stage.file("goods.bin", size_bytes)
    free_link, _ = await stage.upload(file)
    metered_link = await _sell_metered(stage, file)
    free = [await stage.claim_free(free_link) for _ in range(BUYERS)]
    size_bytes = free[0].size_bytes
    offer_id = offer_of(metered_link)
    offer = (await stage.server.http("GET", f"/offers/{offer_id}")).json()
    content = f"/api/v1/offers/{offer_id}/files/{offer['files'][0]['file_id']}/content"
    # A channel pays for a chunk once: each time is another one.
    deposit_sat = max(10_000, (size_bytes // MIB // BUYERS + 100) * PRICE_SAT)
    granted: list[Headers] = [_always(one.headers) for one in free]
    cost: dict[str, list[float]] = defaultdict(list)

    async def spend(name: str, jobs: list[Callable[[RawConnection], None]]) -> None:
        before = cpu_s(stage.server.pid)
        await asyncio.to_thread(in_lanes, stage.server.port, BUYERS * LANES, jobs)
        cost[name].append((cpu_s(stage.server.pid) - before) * GIB / size_bytes)

    groups = [
        [await _open(stage.server, deposit_sat) for _ in range(BUYERS)]
        for _ in range(rounds * len(CHUNKS_PER_REQUEST))
    ]
    for number in range(rounds):
        for chunks in CHUNKS_PER_REQUEST:
            buyers = groups.pop()
            signed = [partial(buyer.headers, chunks) for buyer in buyers]
            await spend(f"metered {chunks}", _jobs(content, signed, size_bytes, chunks * MIB))
            await spend(f"free {chunks}", _jobs(free[0].content, granted, size_bytes, chunks * MIB))
        if number == 0 and rounds > 1:
            cost.clear()
    paid = {name: statistics.median(values) for name, values in cost.items()}
    return [_line(paid[f"metered {chunks}"], paid[f"free {chunks}"], chunks) for chunks in CHUNKS_PER_REQUEST]


def _line(metered: float, free: float, chunks: int) -> Line:
    ratio = metered / free
    return Line(
        f"metered download, a voucher for each {chunks} MiB, server, CPU",
        f"{metered:.2f} s/GiB",
        f"{free:.2f} s/GiB (the same, free)",
        f"{ratio:.2f}",
        f"<= {OVERHEAD_MAX:g}x",
        ratio <= OVERHEAD_MAX,
    )


def _always(headers: Mapping[str, str]) -> Headers:
    return lambda: headers


async def _sell_metered(stage: Stage, file: Path) -> str:
    words = ("upload", str(file), "--metered", f"{PRICE_SAT}sat/chunk", "--yes")
    return str((await stage.server.command_json(*words, home=stage.home))["link"])


def _jobs(
    path: str, headers: Sequence[Headers], size_bytes: int, range_bytes: int
) -> list[Callable[[RawConnection], None]]:
    """The whole file in ranges of that size, the buyers in turn."""

    def fetch(first: int, headers: Headers) -> Callable[[RawConnection], None]:
        last = min(first + range_bytes, size_bytes) - 1

        def job(connection: RawConnection) -> None:
            received = connection.get(path, {**headers(), "Range": f"bytes={first}-{last}"})
            assert received == last - first + 1

        return job

    starts = range(0, size_bytes, range_bytes)
    return [fetch(first, headers[n % len(headers)]) for n, first in enumerate(starts)]


@dataclass
class _Payer:
    """Signs as it goes, whatever lane asks."""

    key: PrivateKey
    channel: Channel
    challenge: Mapping[str, Any]
    signed_sat: int = 0
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def headers(self, chunks: int) -> Mapping[str, str]:
        """For so many chunks more."""
        with self._one_at_a_time:
            self.signed_sat += chunks * PRICE_SAT
            payload = self.payload("voucher", self.signed_sat)
        return {"Authorization": self.credential(payload)}

    def payload(self, action: str, paid_sat: int) -> dict[str, str]:
        return {
            "action": action,
            "channelId": self.channel.id,
            "cumulativeAmount": str(paid_sat),
            "signature": self.channel.sign(self.key, paid_sat).hex(),
        }

    def credential(self, payload: Mapping[str, str]) -> str:
        document = json.dumps({"challenge": dict(self.challenge), "payload": dict(payload)}).encode()
        return "Payment " + base64.urlsafe_b64encode(document).decode().rstrip("=")


async def _open(server: ServedBitcache, deposit_sat: int) -> _Payer:
    """A payer with a channel that a block has."""
    terms = (await server.http("GET", "/channels/terms")).json()
    key, change = PrivateKey(), b"\x00\x14" + secrets.token_bytes(20)
    contract = Contract(
        payer_key=public_bytes(key),
        payee_key=bytes.fromhex(terms["payee_key"]),
        expiry_height=terms["expiry_height"],
        change_script_pubkey=change,
        close_fee_sat=Sat(terms["close_fee_sat"]),
    )
    announced = {
        "challenge": terms["challenge"],
        "payer_key": contract.payer_key.hex(),
        "change_script": change.hex(),
    }
    address = (await server.http("POST", "/channels/deposits", body=announced)).json()["address"]
    capacity_sat = deposit_sat + contract.close_fee_sat
    await server.world.faucet(address, capacity_sat)
    async with asyncio.timeout(60):
        while not (
            found := (await server.http("POST", "/channels/deposits", body=announced)).json()["channels"]
        ):
            await asyncio.sleep(0.05)
    txid, _, vout = found[0]["channel_id"].partition(":")
    channel = Channel(contract, OutPoint(txid, int(vout)), Sat(capacity_sat))
    payer = _Payer(key, channel, terms["challenge"])
    opening = payer.payload("open", 0) | {"payerKey": announced["payer_key"], "changeScript": change.hex()}
    async with asyncio.timeout(60):
        while True:
            answer = await server.http(
                "POST", "/channels", headers={"Authorization": payer.credential(opening)}
            )
            if answer.status == 200 and answer.json()["confirmations"]:
                return payer
            await asyncio.sleep(0.05)
