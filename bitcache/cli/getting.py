"""One run of `get`: show what is sold, the receipt and the address; wait; download."""

import shlex
from pathlib import Path

from bitcache.api import wire
from bitcache.cli.common import RichProgress, confirm, show_count, show_sat, show_size, tell_event
from bitcache.cli.metering import MeteredGet
from bitcache.cli.output import UsageWrong, print_json, print_text, printable, say
from bitcache.cli.payment_words import payment_request, payment_uri, standing_words
from bitcache.cli.price_words import show_prices
from bitcache.client import places
from bitcache.client.api import ServerApi
from bitcache.client.download import Download
from bitcache.client.errors import InvoiceExpired, PaymentPending, TakenDown, WalletRefused
from bitcache.client.invoices import follow
from bitcache.client.link import Link, parse
from bitcache.client.parcel import OpenedParcel, check_price
from bitcache.client.purchase import Purchase, buy, look, recall, renewed
from bitcache.client.receipts import ReceiptBook
from bitcache.client.target import Target, choose_target
from bitcache.client.wallets import BitcoindWallet, WalletAddress
from payments.money import Sat

LINES_SHOWN_MAX = 20


class Get:
    """`await run(link_or_receipt)` once. Without `wait` it ends with the invoice while nothing is paid."""

    def __init__(
        self,
        *,
        output: Path | None,
        wallet: WalletAddress | None,
        wait: bool,
        yes: bool,
        force: bool,
        as_json: bool,
        metered: bool = False,
        spend_max_sat: Sat | None = None,
    ) -> None:
        self._output = output
        self._wallet = wallet
        self._wait = wait
        self._yes = yes
        self._force = force
        self._as_json = as_json
        self._metered = metered
        self._spend_max_sat = spend_max_sat
        self._book = ReceiptBook(places.receipts_folder())
        self._shown = ""

    async def run(self, text: str) -> None:
        where = parse(text)
        async with ServerApi(where.server) as api:
            if isinstance(where, Link):
                offer, parcel = await look(api, where)
                per_chunk = self._pays_per_chunk(offer, where)
                self._show_offer(offer, parcel, per_chunk=per_chunk)
                if per_chunk:
                    await self._get_metered(api, where, offer, parcel)
                    return
                with choose_target(self._output, [file.path for file in parcel.files]) as target:
                    # Before anybody pays, not after.
                    self._check_target(target, parcel, where)
                    purchase = await buy(api, where, offer, parcel, self._book, on_work=self._show_work)
                    _refuse_damaged(offer, purchase.invoice)
                    await self._finish(api, purchase, target)
            else:
                if self._metered or self._spend_max_sat is not None:
                    raise UsageWrong("A receipt has its price; --metered and --max-spend go with a link.")
                purchase = await recall(api, where)
                self._say_parcel(purchase.parcel)
                with choose_target(self._output, [file.path for file in purchase.parcel.files]) as target:
                    await self._finish(api, purchase, target)

    def _pays_per_chunk(self, offer: wire.OfferView, link: Link) -> bool:
        if offer.metered is None:
            if self._metered or self._spend_max_sat is not None:
                raise UsageWrong("This offer is not sold per chunk: leave --metered and --max-spend out.")
            return False
        per_chunk = self._metered or (offer.price is None and self._book.newest(link) is None)
        if not per_chunk and self._spend_max_sat is not None:
            raise UsageWrong("--max-spend bounds what is paid per chunk: add --metered to pay so.")
        return per_chunk

    async def _get_metered(
        self, api: ServerApi, link: Link, offer: wire.OfferView, parcel: OpenedParcel
    ) -> None:
        with choose_target(self._output, [file.path for file in parcel.files]) as target:
            target.check_room(0)
            await MeteredGet(
                api,
                link,
                offer,
                parcel,
                target,
                spend_max_sat=self._spend_max_sat,
                wait=self._wait,
                yes=self._yes,
                force=self._force,
                as_json=self._as_json,
            ).run()

    async def _finish(self, api: ServerApi, purchase: Purchase, target: Target) -> None:
        invoice = await renewed(api, purchase.invoice)
        check_price(invoice, purchase.price_sat_max)
        if invoice.taken_down:
            raise TakenDown(invoice.received_sat)
        if not (invoice.bytes_allowed or invoice.key_allowed):
            self._show_receipt(purchase)
            self._show_invoice(invoice, with_address=True)
            if self._wallet is not None and invoice.due_sat:
                await self._pay(api, purchase, invoice)
            if not self._wait:
                self._end_with_invoice(purchase, invoice)
                return
            await self._wait_for_payment(api, invoice.invoice_id)
        elif not self._wait and not invoice.key_allowed:
            self._end_with_invoice(purchase, invoice)
            return
        with RichProgress(as_json=self._as_json) as progress:
            download = Download(
                api,
                purchase.receipt,
                invoice.offer_id,
                purchase.parcel,
                target,
                force=self._force,
                progress=progress,
                on_invoice=self._show_invoice,
            )
            paths = await download.run()
        self._end_with_files(purchase, paths)

    async def _wait_for_payment(self, api: ServerApi, invoice_id: str) -> None:
        async for invoice in follow(api, invoice_id):
            self._show_invoice(invoice)
            if invoice.taken_down:
                raise TakenDown(invoice.received_sat)
            if invoice.refund is not None and invoice.refund.whole:
                raise InvoiceExpired(
                    "What was paid was asked back, so it opens nothing any more. Run `bitcache get` with the "
                    "link to buy it again."
                )
            if invoice.bytes_allowed or invoice.key_allowed:
                return
            if invoice.status in {"expired", "cancelled"}:
                if not invoice.received_sat:
                    raise InvoiceExpired(
                        "The time to pay is over and nothing came. Run the same command again for a new "
                        "invoice. If you did pay, keep the receipt: it works once the payment is seen."
                    )
                self._show_invoice(await renewed(api, invoice), with_address=True)

    async def _pay(self, api: ServerApi, purchase: Purchase, invoice: wire.InvoiceView) -> None:
        assert self._wallet is not None
        if not invoice.node_online:
            raise PaymentPending("The server's bitcoin node is away: do not pay now. Try again later.")
        network = purchase.network
        if network is None:
            offer = await api.get(f"/offers/{invoice.offer_id}", wire.OfferView)
            _refuse_damaged(offer, invoice)
            network = offer.network
        question = f"Pay {show_sat(invoice.due_sat)} and the fee to {printable(invoice.address or '')}?"
        if not self._yes and not confirm(question):
            raise WalletRefused("Nothing was paid. Answer y, or add --yes.")
        wallet = BitcoindWallet(self._wallet, network)
        payment = await wallet.prepare(invoice, self._book.payment_path(invoice.invoice_id))
        if payment.address != invoice.address:
            raise WalletRefused("The kept payment is for another address. Pay by hand to the address shown.")
        if any(output.txid == payment.txid for output in invoice.outputs):
            raise WalletRefused(
                f"The wallet has paid already, and {show_sat(invoice.due_sat)} more is due. Pay that by hand."
            )
        await wallet.broadcast(payment)
        self._tell(
            f"Paid {show_sat(payment.amount_sat)} and {show_sat(payment.fee_sat)} fee: {payment.txid}",
            "paid",
            txid=payment.txid,
            amount_sat=payment.amount_sat,
            fee_sat=payment.fee_sat,
        )

    def _check_target(self, target: Target, parcel: OpenedParcel, link: Link) -> None:
        """Raises TargetExists, SpaceMissing, TargetUnsafe, unless an earlier run may have put files there."""
        if self._book.newest(link) is not None:
            return
        target.check_room(parcel.plain_bytes)
        if self._force:
            return
        for file in parcel.files:
            target.check_free(file.path)

    def _show_offer(self, offer: wire.OfferView, parcel: OpenedParcel, *, per_chunk: bool) -> None:
        self._say_parcel(parcel)
        price_sat = offer.price.amount_msat // 1000 if offer.price else 0
        self._say(f"Price   {show_prices(offer)}, from {printable(offer.seller_name)}")
        if not per_chunk:
            if price_sat and offer.settlement == "hosted":
                self._say("Goes to the operator of the server, who owes it to the seller")
            if offer.price is not None:
                self._say(f"Kept    {offer.paid_retention_days} days after payment")
            if offer.metered is not None:
                self._say("You pay for the whole; --metered pays per chunk instead, while it downloads.")
        if offer.policy.bytes_at < offer.policy.key_at:
            self._say("Encrypted files are sent before the payment is confirmed, the key after.")
        if offer.state != "open":
            self._say(f"This offer is {offer.state.replace('_', ' ')}: it takes no new payments.")

    def _say_parcel(self, parcel: OpenedParcel) -> None:
        metadata = parcel.metadata
        self._say(f"Title   {printable(metadata.title)}")
        for line in metadata.note.splitlines()[:LINES_SHOWN_MAX]:
            self._say(f"        {printable(line)}")
        for file in parcel.files[:LINES_SHOWN_MAX]:
            self._say(f"File    {printable(file.path)}  {show_size(file.plain_bytes)}")
        if len(parcel.files) > LINES_SHOWN_MAX:
            self._say(f"        and {len(parcel.files) - LINES_SHOWN_MAX} more")
        self._say(f"Size    {show_size(parcel.plain_bytes)} in {show_count(len(parcel.files), 'file')}")

    def _show_work(self, share: float) -> None:
        """Once a second or so."""
        if self._as_json:
            tell_event("work", share=round(share, 2))
        elif share < 1:
            say(f"Many invoices are unpaid: earning an address with a computation, {share:.0%} done.")
        else:
            say("Earning an address takes a little longer than usual.")

    def _show_receipt(self, purchase: Purchase) -> None:
        """Before the address: who pays must already hold what the payment is worth."""
        self._say(f"\nReceipt {purchase.receipt}")
        self._say(
            "        Keep it: it downloads this again, from any device. It is saved on this computer.\n"
        )

    def _show_invoice(self, invoice: wire.InvoiceView, *, with_address: bool = False) -> None:
        if self._as_json:
            tell_event(
                "invoice",
                status=invoice.status,
                flags=invoice.flags,
                confirmations=invoice.confirmations,
                due_sat=invoice.due_sat,
                suspended=invoice.suspended,
                taken_down=invoice.taken_down,
            )
            return
        words = standing_words(invoice)
        # A top-up goes to the same address, for another amount.
        if with_address or ("partial" in invoice.flags and words != self._shown):
            for line in payment_request(invoice):
                say(line)
        if words != self._shown:
            self._shown = words
            say(words)

    def _end_with_invoice(self, purchase: Purchase, invoice: wire.InvoiceView) -> None:
        if self._as_json:
            print_json({**_receipt_facts(purchase), **_invoice_facts(invoice)})
            return
        print_text(str(purchase.receipt))
        say(f"Once it is paid: bitcache get {shlex.quote(str(purchase.receipt))}")

    def _end_with_files(self, purchase: Purchase, paths: list[Path]) -> None:
        if self._as_json:
            files = [
                {"path": str(path), "size_bytes": file.plain_bytes}
                for path, file in zip(paths, purchase.parcel.files, strict=True)
            ]
            print_json({**_receipt_facts(purchase), "status": "done", "files": files})
            return
        for path in paths:
            print_text(printable(str(path)))
        say("Downloaded, verified and decrypted.")

    def _tell(self, words: str, event: str, **facts: object) -> None:
        if self._as_json:
            tell_event(event, **facts)
        else:
            say(words)

    def _say(self, words: str) -> None:
        if not self._as_json:
            say(words)


def _receipt_facts(purchase: Purchase) -> dict[str, object]:
    return {
        "invoice_id": purchase.receipt.invoice_id,
        "receipt": str(purchase.receipt),
        "title": purchase.parcel.metadata.title,
    }


def _invoice_facts(invoice: wire.InvoiceView) -> dict[str, object]:
    return {
        "status": invoice.status,
        "flags": invoice.flags,
        "address": invoice.address,
        "amount_sat": invoice.due_sat,
        "price_sat": invoice.price_sat,
        "received_sat": invoice.received_sat,
        "uri": payment_uri(invoice),
        "valid_until": invoice.valid_until,
        "reference": invoice.reference,
        "confirmations": invoice.confirmations,
        "node_online": invoice.node_online,
    }


def _refuse_damaged(offer: wire.OfferView, invoice: wire.InvoiceView) -> None:
    """An invoice from before the loss can still be paid, but nobody knows whether the files come back."""
    paid = invoice.received_sat or invoice.bytes_allowed or invoice.key_allowed
    if offer.state == "damaged" and not paid:
        raise PaymentPending(
            "The server has lost bytes of these files: do not pay until they are mended. If you did pay, "
            "keep the receipt: it works once the payment is seen and the files are whole again."
        )
