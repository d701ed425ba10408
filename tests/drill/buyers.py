"""Buyers: an invoice, a payment made in one of many ways, and the files, through the real client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.download import Download
from bitcache.client.errors import ClientError, ServerProblem
from bitcache.client.grant import Grant
from bitcache.client.invoices import get_invoice
from bitcache.client.link import Link, Receipt, parse
from bitcache.client.purchase import buy, look, recall
from bitcache.client.receipts import ReceiptBook
from bitcache.client.target import choose_target
from regtest.errors import RegtestError
from regtest.node import wait_until
from tests.drill.payer import Payment
from tests.drill.schedule import BuyerPlan, Way
from tests.drill.sellers import OnSale, contents_of, last_words
from tests.drill.world import Drill

RETRY_FOR_S = 10.0
PAUSE_S = 0.7
SEEN_TIMEOUT_S = 3.0


class Silent:
    """No progress is shown."""

    def start(self, what: str, total_bytes: int) -> None: ...

    def advance(self, length_bytes: int) -> None: ...


@dataclass
class Buyer:
    drill: Drill
    plan: BuyerPlan
    on_sale: OnSale
    pays: Callable[[Buyer], Awaitable[None]]
    receipt: Receipt | None = None
    address: str = ""
    price_sat: int = 0
    payments: list[Payment] = field(default_factory=list)
    robbed_depth: int | None = None
    """How deep the payment was when a reorg took it away."""
    paid: bool = False
    """It has done all it does about paying."""
    fetched: dict[str, str] | None = None
    """What it has at the end: SHA-256 by name."""

    @property
    def name(self) -> str:
        return f"buyer {self.plan.number}"

    @property
    def folder(self) -> Path:
        return self.drill.folder / f"buyer-{self.plan.number}"

    async def run(self) -> None:
        """Ask for an invoice, pay, and fetch for as long as it takes; cancelled by who knows that is all."""
        (self.folder / "got").mkdir(parents=True)
        await self._ask_until_told()
        self.drill.say(
            f"{self.name} ({self.plan.way}) owes {self.price_sat:,} sat for "
            f"{self.on_sale.plan.confirmations} confirmations, and {self.plan.paying}"
        )
        try:
            await self.pays(self)
        except RegtestError as exc:
            self.drill.say(f"{self.name} could not go on paying: {exc}")
        self.paid = True
        while not await self._fetch_once():
            await asyncio.sleep(PAUSE_S)
        self.fetched = contents_of(self.folder / "got")
        self.drill.say(f"{self.name} has the files")

    async def claim(self) -> wire.ClaimView | None:
        """What the server gives now; None if it refuses."""
        assert self.receipt is not None
        async with ServerApi(self.receipt.server) as api:
            try:
                return await Grant(api, self.receipt).renew()
            except ClientError:
                return None

    async def _ask_until_told(self) -> None:
        while self.receipt is None:
            try:
                await self._ask()
            except (ClientError, OSError) as exc:
                self._look_at(exc)
                self.drill.say(f"{self.name}: no invoice yet: {exc}")
                await asyncio.sleep(PAUSE_S)

    def _look_at(self, exc: Exception) -> None:
        if isinstance(exc, ServerProblem) and exc.status == 500:
            self.drill.blame(f"{self.name} was answered 500: {exc}")

    async def _ask(self) -> None:
        """An invoice, its receipt kept."""
        if self.plan.way is Way.COMMAND:
            code, out, err = await self.drill.client(
                self.name, "get", str(self.on_sale.link), "--no-wait", "--json", home=self.folder
            )
            if code:
                raise OSError(f"code {code}, {last_words(out, err)}")
            said = json.loads(out)
            receipt = parse(said["receipt"])
            self.address, self.price_sat = said["address"], said["price_sat"]
        else:
            async with self.api() as api:
                offer, parcel = await look(api, self.on_sale.link)
                purchase = await buy(api, self.on_sale.link, offer, parcel, self._book)
            receipt = purchase.receipt
            self.address, self.price_sat = purchase.invoice.address or "", purchase.invoice.price_sat
        assert isinstance(receipt, Receipt)
        self.receipt = receipt

    async def _fetch_once(self) -> bool:
        """Wait for the permission and download. What was there at a crash is gone on with."""
        assert self.receipt is not None
        try:
            if not await self._allowed():
                return False
            if self.plan.way is Way.COMMAND:
                words = ("get", str(self.receipt), "-o", "got", "--json")
                code, out, err = await self.drill.client(self.name, *words, home=self.folder)
                if code:
                    self.drill.say(f"{self.name}: `get` ended with code {code}: {last_words(out, err)}")
                return code == 0
            async with self.api() as api:
                purchase = await recall(api, self.receipt)
                with choose_target(
                    self.folder / "got", [file.path for file in purchase.parcel.files]
                ) as target:
                    await Download(
                        api,
                        purchase.receipt,
                        purchase.invoice.offer_id,
                        purchase.parcel,
                        target,
                        progress=Silent(),
                        on_invoice=lambda invoice: None,
                    ).run()
        except (ClientError, OSError) as exc:
            self._look_at(exc)
            return False
        return True

    async def _allowed(self) -> bool:
        assert self.receipt is not None
        async with self.api() as api:
            invoice = await get_invoice(api, self.receipt.invoice_id)
        return invoice.bytes_allowed or invoice.key_allowed

    def api(self) -> ServerApi:
        return ServerApi(self.on_sale.link.server, retry_for_s=RETRY_FOR_S)

    @property
    def _book(self) -> ReceiptBook:
        return ReceiptBook(self.folder / "receipts")

    async def pay(self, amount_sat: int, *, coin: int = 0, fee_sat: int = 3_000) -> Payment:
        payer = self.drill.payer
        payment = await payer.build(
            [payer.coins(self.plan.number)[coin]], [(self.address, amount_sat)], fee_sat=fee_sat
        )
        self.payments.append(payment)
        await payer.send(payment)
        return payment

    async def seen(self) -> None:
        """Wait a moment until the server says that something came: it may be down."""
        if not await self.comes_to(lambda invoice: invoice.received_sat > 0, timeout_s=SEEN_TIMEOUT_S):
            self.drill.say(f"{self.name}: the server has not seen the payment yet")

    async def comes_to(self, holds: Callable[[wire.InvoiceView], bool], *, timeout_s: float) -> bool:
        """Whether the invoice comes to what `holds` in this time, or the drill to its end."""
        assert self.receipt is not None
        invoice_id = self.receipt.invoice_id

        async def reached() -> bool:
            if self.drill.over.is_set():
                return True
            try:
                async with self.api() as api:
                    return holds(await get_invoice(api, invoice_id))
            except ClientError:
                return False

        try:
            await wait_until(reached, "the invoice", timeout_s=timeout_s, poll_s=0.2)
        except RegtestError:
            return False
        return True


async def fetch_free(drill: Drill, on_sale: OnSale, link: Link, folder: Path) -> dict[str, str]:
    """Everything of a parcel, through an offer for nothing."""
    (folder / "got").mkdir(parents=True)
    async with ServerApi(link.server) as api:
        offer, parcel = await look(api, link)
        purchase = await buy(api, link, offer, parcel, ReceiptBook(folder / "receipts"))
        with choose_target(folder / "got", [file.path for file in parcel.files]) as target:
            await Download(
                api,
                purchase.receipt,
                link.offer_id,
                parcel,
                target,
                progress=Silent(),
                on_invoice=lambda invoice: None,
            ).run()
    return contents_of(folder / "got")
