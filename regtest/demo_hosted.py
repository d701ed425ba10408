"""Hosted sales in the demo: the operator's wallet is paid, and pays out; its keys are on another machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from regtest.node import wait_until
from regtest.served import CommandFailed, ServedBitcache
from regtest.wallet import BitWallet, OutsideWallet

PRICE_SAT = 50_000
TOO_MUCH_SAT = 8_000
FEE_PERCENT = 5
DEPTH = 6
FEERATE_SAT_VB = "2"


class Office:
    """What operator, seller and buyer do, one step after the other."""

    def __init__(self, server: ServedBitcache, folder: Path, cold: OutsideWallet, payer: BitWallet) -> None:
        self.server = server
        self.folder = folder
        self.cold = cold
        """The operator's keys: on the outside node, which the server cannot reach."""
        self.payer = payer
        self.seller_home, self.buyer_home = folder / "hosted-seller", folder / "hosted-buyer"
        self.receipt = ""
        self.seller_address = ""
        self.buyer_address = ""
        self.batch_id = ""

    @classmethod
    async def open(cls, server: ServedBitcache, folder: Path) -> Office:
        cold = await OutsideWallet.create(server.world, "cold wallet")
        payer = await BitWallet.create(server.world)
        server.settings |= {
            "HOSTED_DESCRIPTOR": await cold.descriptor("wpkh"),
            "HOSTED_FEE_PERCENT": str(FEE_PERCENT),
            "HOSTED_REFUND_DELAY_S": "0",
            "PRICE_HOLD_S": "900",
        }
        await server.restart()
        return cls(server, folder, cold, payer)

    async def operator(self, *words: str, stdin: str = "") -> Any:
        return await self.server.command_json(*words, "--data", str(self.server.data_folder), stdin=stdin)

    async def seller(self, *words: str) -> Any:
        return await self.server.command_json(*words, home=self.seller_home)

    async def account(self) -> str:
        for home in (self.seller_home, self.buyer_home):
            home.mkdir()
        made = await self.operator("account", "create", "Édition Fontaine")
        await self.server.command("login", self.server.url, home=self.seller_home, stdin=made["token"])
        wallet = await OutsideWallet.create(self.server.world, "hosted seller")
        self.seller_address = await wallet.new_address()
        await self.seller("payout", "address", self.seller_address, "--yes")
        await self.seller("settlement", "hosted", "--yes")
        return f"hosted, {FEE_PERCENT} % for the operator"

    async def sale(self) -> str:
        file = self.folder / "essay.txt"
        file.write_text("An essay, sold through the operator's wallet.\n")
        link = (await self.seller("upload", str(file), "--price", f"{PRICE_SAT}sat"))["link"]
        invoice = await self.server.command_json("get", link, "--no-wait", home=self.buyer_home)
        self.receipt = invoice["receipt"]
        payment = await self.payer.pay([(invoice["address"], PRICE_SAT + TOO_MUCH_SAT)])
        await self.server.world.mempool_wait(payment.txid)
        await self.server.world.mine(DEPTH)
        expected = PRICE_SAT * (100 - FEE_PERCENT) // 100

        async def payable() -> bool:
            return bool((await self.seller("balance"))["payable_sat"] == expected)

        await wait_until(payable, "the money to be deep")
        return f"{expected:,} sat are the seller's, {PRICE_SAT - expected:,} the operator's"

    async def refund(self) -> str:
        self.buyer_address = self.payer.address
        await self.server.command_json(
            "refund", self.receipt, self.buyer_address, "--yes", home=self.buyer_home
        )
        (listed,) = await self.seller("refunds", "list")
        assert (listed["amount_sat"], listed["state"]) == (TOO_MUCH_SAT, "requested"), listed
        await self.seller("refunds", "approve", listed["refund_id"])
        return f"{TOO_MUCH_SAT:,} sat to {self.buyer_address}, approved"

    async def payout(self) -> str:
        made = await self.seller("payout", "request", "--all", "--yes")
        return f"{made['amount_sat']:,} sat set aside, to {self.seller_address}"

    async def batch(self) -> str:
        built = await self.operator("payouts", "build", "--feerate", FEERATE_SAT_VB, "--yes")
        self.batch_id = built["batch_id"]
        batch = (await self.operator("payouts", "show", self.batch_id))["batch"]
        return f"{batch['payouts']} payouts in one transaction, {batch['fee_sat']:,} sat for the network"

    async def altered(self) -> str:
        """Whoever signs pays somebody else: a transaction of the same coins, and other outputs."""
        psbt = await self._export()
        decoded = await self.server.world.outside.rpc("decodepsbt", psbt)
        inputs = [{"txid": i["txid"], "vout": i["vout"]} for i in decoded["tx"]["vin"]]
        thief = await OutsideWallet.create(self.server.world, "thief")
        other = await self.server.world.outside.rpc(
            "walletcreatefundedpsbt",
            inputs,
            [{await thief.new_address(): "0.0001"}],
            0,
            {"add_inputs": False, "fee_rate": 2},
            wallet=self.cold.name,
        )
        signed = await self.cold.rpc("walletprocesspsbt", other["psbt"])
        try:
            await self.operator("payouts", "import", self.batch_id, stdin=signed["psbt"])
        except CommandFailed as exc:
            if "PsbtAltered" in exc.output:
                return "refused, with what differs"
            raise
        raise AssertionError("a transaction that pays a thief was taken")

    async def signed(self) -> str:
        signed = await self.cold.rpc("walletprocesspsbt", await self._export())
        await self.operator("payouts", "import", self.batch_id, stdin=signed["psbt"])

        async def done() -> bool:
            shown = await self.operator("payouts", "show", self.batch_id)
            return bool(shown["batch"]["state"] == "done")

        before = {a: await self._received(a) for a in (self.seller_address, self.buyer_address)}

        async def sent() -> bool:
            return bool(await self.server.world.outside.rpc("getrawmempool"))

        await wait_until(sent, "the batch to be sent")
        await self.server.world.mine(DEPTH)
        await wait_until(done, "the batch to be deep")
        shown = await self.operator("payouts", "show", self.batch_id)
        arrived = {a: await self._received(a) - before[a] for a in before}
        said = {one["address"]: one["arrives_sat"] for one in shown["shares"]}
        assert arrived == said, (arrived, said)
        seller_sat, buyer_sat = arrived[self.seller_address], arrived[self.buyer_address]
        return f"{seller_sat:,} sat arrived at the seller's, {buyer_sat:,} at the buyer's"

    async def books(self) -> str:
        report = await self.operator("reconcile")
        assert report["difference_sat"] == 0, report
        balance = await self.seller("balance")
        assert (balance["balance_sat"], balance["reserved_sat"]) == (0, 0), balance
        statement = await self.seller("statement")
        assert statement["closing_sat"] == 0, statement
        return "coins, ledger and statement agree to the satoshi"

    async def _export(self) -> str:
        exported = await self.operator("payouts", "export", self.batch_id)
        return str(exported["psbt"])

    async def _received(self, address: str) -> int:
        """What the chain holds unspent at this address, by the outside node."""
        found = await self.server.world.outside.rpc("scantxoutset", "start", [f"addr({address})"])
        return round(float(found["total_amount"]) * 100_000_000)


STEPS: tuple[tuple[str, Callable[[Office], Awaitable[str]]], ...] = (
    ("a seller chooses hosted sales, and an address for payouts", Office.account),
    (f"a buyer pays {TOO_MUCH_SAT:,} sat too much, {DEPTH} blocks are mined", Office.sale),
    ("the buyer asks for the surplus back, the seller approves", Office.refund),
    ("the seller asks for the whole balance", Office.payout),
    ("the operator builds a batch at 2 sat/vB", Office.batch),
    ("a signed transaction comes back that pays a thief", Office.altered),
    ("the cold wallet signs what was asked, it is sent and mined", Office.signed),
    ("the books after all that", Office.books),
)
