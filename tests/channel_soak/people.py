"""Payers of a soak: each has a channel, and a process that pays by it and may be killed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coincurve import PrivateKey
from msgspec import structs

from payments.channel_close import refund_transaction
from payments.channel_keys import public_bytes
from payments.channel_script import Channel, Contract, parse_channel_id
from payments.money import Msat, Sat, sat_rounded_up
from payments.segwit_address import script_pubkey_of
from regtest.node import btc, sat, wait_until
from regtest.processes import GuardedProcess
from regtest.world import MINER
from storage import base64url
from tests.channel_soak.evidence import Told, Unit
from tests.channel_soak.house import House
from tests.channel_soak.journal import Journal, Order, Orders
from tests.channel_soak.plan import Ending, Task
from tests.payout_soak.server import ROOT

FUNDING_FEE_SAT = 2_000
REFUND_FEERATE_SAT_KVB = 3_000


@dataclass
class Deposit:
    """A transaction that pays deposits, each to one address."""

    txid: str
    vouts: dict[str, int]
    double_spend: str = ""
    """Hex: it takes the coin back."""


class Payer:
    """`key` and `terms` are all that a channel needs before there is money."""

    def __init__(
        self, house: House, name: str, ending: Ending, folder: Path, terms: Any, address: str
    ) -> None:
        self.house = house
        self.name = name
        self.ending = ending
        self.folder = folder
        self.key = PrivateKey()
        self.terms = terms
        self.change_address = address
        self.contract = Contract(
            public_bytes(self.key),
            bytes.fromhex(terms["payee_key"]),
            terms["expiry_height"],
            script_pubkey_of(address, "regtest"),
            Sat(terms["close_fee_sat"]),
        )
        self.journal = Journal(folder)
        self.deaths = 0
        self._channel: Channel | None = None
        self._tasks: Sequence[Task] = ()
        self._process: GuardedProcess | None = None
        self._agreed: tuple[int, int] | None = None
        self._refunded_sat: int | None = None

    @classmethod
    async def announced(cls, house: House, name: str, ending: Ending) -> tuple[Payer, str]:
        """And where to pay the deposit."""
        folder = house.server.folder / name.replace(" ", "-")
        folder.mkdir()
        terms = (await house.server.http("GET", "/channels/terms")).json()
        change = await house.world.outside.rpc("getnewaddress", address_type="bech32", wallet=MINER)
        payer = cls(house, name, ending, folder, terms, change)
        return payer, (await payer.view())["address"]

    @property
    def channel(self) -> Channel:
        assert self._channel is not None, "nothing was deposited yet"
        return self._channel

    @property
    def finished(self) -> bool:
        return self.journal.finished

    async def view(self) -> Any:
        """The server's, of this contract and its channels."""
        announced = {
            "challenge": self.terms["challenge"],
            "payer_key": self.contract.payer_key.hex(),
            "change_script": self.contract.change_script_pubkey.hex(),
        }
        answer = await self.house.server.http("POST", "/channels/deposits", body=announced)
        assert answer.status == 200, answer.body
        return answer.json()

    def deposited(self, txid: str, vout: int, amount_sat: int, tasks: Sequence[Task]) -> None:
        """From here on the process may pay."""
        house, contract = self.house, self.contract
        self._channel = Channel(contract, parse_channel_id(f"{txid}:{vout}"), Sat(amount_sat))
        self._tasks = tasks
        assert max((task.cumulative_sat for task in tasks), default=0) <= self.channel.paid_sat_max - 330
        Orders(
            port=house.server.port,
            challenge=self.terms["challenge"],
            payer_key=self.key.to_hex(),
            payee_key=contract.payee_key.hex(),
            expiry_height=contract.expiry_height,
            change_script=contract.change_script_pubkey.hex(),
            close_fee_sat=contract.close_fee_sat,
            channel_id=self.channel.id,
            capacity_sat=amount_sat,
            orders=tuple(self._order(n, task) for n, task in enumerate(tasks)),
        ).save(self.folder)

    def start(self) -> None:
        self._process = GuardedProcess(
            [sys.executable, "-m", "tests.channel_soak.payer", self.folder],
            log=self.folder / "log",
            environment=self.house.server.environment(self.folder),
            folder=ROOT,
        )

    def kill(self) -> bool:
        """SIGKILL, if it runs."""
        if self._process is None or not self._process.running:
            return False
        self._process.kill()
        self.deaths += 1
        return True

    def look(self) -> None:
        """Read what it has noted; start it again if it was killed."""
        self.journal.read()
        for words in self.journal.wrong:
            self.house.blame(f"{self.name}: {words}")
        self.journal.wrong.clear()
        if self.finished or self._process is None or self._process.running:
            return
        code = self._process.kill()
        self.journal.read()
        if code == -9:
            self.start()
        elif not self.finished:
            raise AssertionError(f"{self.name} ended with {code}:\n{self._process.log_tail(lines=30)}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()

    @property
    def spent_sat(self) -> int:
        """By the payer's own count, when all is bought."""
        return sat_rounded_up(Msat(sum(self.house.goods[seller].price_msat for seller, _, _ in self._units)))

    async def agree_to_close(self) -> None:
        """To be closed at today's fee, for what was bought and not for what was signed beyond."""
        (view,) = (await self.view())["channels"]
        quote = view["close_quote"]
        if quote["paid_sat_min"] != self.spent_sat:
            self.house.blame(f"{self.name} spent {self.spent_sat:,} sat, the server asks {quote}")
        self._agreed = self.spent_sat, quote["fee_sat"]
        paid_sat, fee_sat = self._agreed
        payload = {
            "action": "close",
            "channelId": self.channel.id,
            "cumulativeAmount": str(paid_sat),
            "closeFee": str(fee_sat),
            "signature": self.channel.sign(self.key, paid_sat, fee_sat).hex(),
        }

        async def agreed() -> bool:
            # It may die on the way: the same is asked again.
            await self.house.supervise()
            try:
                answer = await self.house.server.http("POST", "/channels", headers=self._credential(payload))
            except OSError:
                return False
            if answer.status not in (202, 410, 503):
                self.house.blame(f"{self.name} asks for a close: {answer.status} {answer.body!r}")
            return answer.status in (202, 410)

        await wait_until(agreed, f"the server to agree with {self.name}", timeout_s=60, poll_s=0.1)

    async def refund(self) -> None:
        """Take the deposit back, after its expiry, without the server."""
        outside = self.house.world.outside
        raw = refund_transaction(
            self.channel,
            self.key,
            self.contract.change_script_pubkey,
            feerate_sat_kvb=REFUND_FEERATE_SAT_KVB,
        )
        told = await outside.rpc("decoderawtransaction", raw.hex())
        self._refunded_sat = sat(told["vout"][0]["value"])
        await outside.rpc("sendrawtransaction", raw.hex())

    async def told(self, *, ended: bool) -> Told:
        told = self.paper()
        if not ended:
            return told
        came_back = await self.house.world.outside.rpc(
            "getreceivedbyaddress", self.change_address, 1, wallet=MINER
        )
        agreed = self._agreed or (None, None)
        return structs.replace(
            told,
            agreed_paid_sat=agreed[0],
            agreed_fee_sat=agreed[1],
            change_sat=sat(came_back),
            refunded_sat=self._refunded_sat,
        )

    def paper(self) -> Told:
        """What is on paper until now."""
        self.journal.read()
        got = {unit for n in self.journal.granted for unit in self._tasks[n].units}
        return Told(
            name=self.name,
            ending=self.ending,
            channel_id=self.channel.id,
            capacity_sat=self.channel.capacity_sat,
            close_fee_sat=self.contract.close_fee_sat,
            signed_sat=self.journal.signed_sat,
            accepted_sat=self.journal.accepted_sat,
            spent_msat=self.journal.spent_msat,
            got=frozenset(map(self._named, got)),
            asked=frozenset(map(self._named, self._units)),
        )

    @property
    def _units(self) -> set[tuple[int, int, int]]:
        return {unit for task in self._tasks for unit in task.units}

    def _named(self, unit: tuple[int, int, int]) -> Unit:
        seller, file, chunk = unit
        return self.house.goods[seller].file_ids[file], chunk

    def _order(self, n: int, task: Task) -> Order:
        goods = self.house.goods[task.seller]
        file_id = goods.file_ids[task.file]
        return Order(
            n=n,
            offer_id=goods.sold.offer_id,
            file_id=file_id,
            first=task.first,
            chunks=task.chunks,
            sha256=goods.sha256(task) if task.chunks else "",
            size_bytes=len(goods.sold.blobs[file_id]),
            cumulative_sat=task.cumulative_sat,
        )

    def _credential(self, payload: dict[str, str]) -> dict[str, str]:
        document = json.dumps({"challenge": self.terms["challenge"], "payload": payload})
        return {"Authorization": f"Payment {base64url.encode(document.encode())}"}


async def deposit(house: House, amounts_sat: dict[str, int], *, robbable: bool = False) -> Deposit:
    """One transaction from a coin of the miner's, unconfirmed; `robbable`: and one that double-spends it."""
    outside = house.world.outside
    coins = await outside.rpc("listunspent", 1, wallet=MINER)
    coin = max(coins, key=lambda one: one["amount"])
    inputs = [{"txid": coin["txid"], "vout": coin["vout"]}]
    rest_sat = sat(coin["amount"]) - sum(amounts_sat.values()) - FUNDING_FEE_SAT
    change = await house.world.new_miner_address()

    async def signed(outputs: dict[str, int]) -> str:
        raw = await outside.rpc(
            "createrawtransaction", inputs, [{to: btc(amount)} for to, amount in outputs.items()]
        )
        return str((await outside.rpc("signrawtransactionwithwallet", raw, wallet=MINER))["hex"])

    raw = await signed({**amounts_sat, change: rest_sat})
    double_spend = await signed({change: rest_sat}) if robbable else ""
    txid = str(await outside.rpc("sendrawtransaction", raw))
    await house.world.mempool_wait(txid)
    return Deposit(txid, {to: vout for vout, to in enumerate(amounts_sat)}, double_spend)


async def kill_all(payers: Sequence[Payer]) -> None:
    await asyncio.gather(*(asyncio.to_thread(payer.stop) for payer in payers))
