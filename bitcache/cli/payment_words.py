"""An invoice in words for the terminal: what to pay, and how the payment stands."""

import io
import re
from collections.abc import Iterator

import segno

from bitcache.api.wire import InvoiceView
from bitcache.cli.common import show_sat, show_time
from bitcache.cli.output import console, printable
from bitcache.client.errors import ServerAnswerWrong
from payments.money import Sat, btc_from_sat

_ADDRESS = re.compile(r"[a-zA-Z0-9]{14,100}")
_REFERENCE = re.compile(r"[A-Za-z0-9-]{0,40}")


def payment_uri(invoice: InvoiceView) -> str | None:
    """BIP321 URI for what is due, made here of the address and amount that are shown; None if nothing is.

    Raises ServerAnswerWrong for an address that cannot be one.
    """
    if invoice.address is None or invoice.due_sat <= 0:
        return None
    if not _ADDRESS.fullmatch(invoice.address):
        raise ServerAnswerWrong("The server's invoice has an address that cannot be one. Do not pay.")
    label = f"&label={invoice.reference}" if _REFERENCE.fullmatch(invoice.reference) else ""
    return f"bitcoin:{invoice.address}?amount={btc_from_sat(Sat(invoice.due_sat))}{label}"


def payment_request(invoice: InvoiceView) -> Iterator[str]:
    """Lines that tell how to pay: address, amount, URI and, on a terminal, a QR code."""
    uri = payment_uri(invoice)
    if uri is None:
        return
    if not invoice.node_online:
        yield "The server's bitcoin node is away just now: do not pay yet."
    yield from amount_lines(Sat(invoice.due_sat), invoice.address or "", uri)
    yield f"Until   {show_time(invoice.valid_until)}"
    if console.is_terminal:
        yield from qr_lines(uri)


def deposit_uri(address: str, amount_sat: Sat) -> str:
    """BIP321 URI of a channel's deposit."""
    return f"bitcoin:{address}?amount={btc_from_sat(amount_sat)}&label=channel"


def amount_lines(amount_sat: Sat, address: str, uri: str) -> Iterator[str]:
    yield f"Pay     {show_sat(amount_sat)} ({btc_from_sat(amount_sat)} BTC)"
    yield f"To      {address}"
    yield f"URI     {uri}"


def qr_lines(uri: str) -> Iterator[str]:
    """The URI as half-block characters."""
    drawn = io.StringIO()
    segno.make(uri, error="m").terminal(out=drawn, compact=True, border=2)
    yield from drawn.getvalue().splitlines()


def standing_words(invoice: InvoiceView) -> str:
    """One line: how the payment stands."""
    if invoice.taken_down:
        return "The operator has taken these files down: do not pay."
    if invoice.refund is not None and invoice.refund.whole:
        return "Its money was asked back: do not pay it. `bitcache refund RECEIPT` shows how that stands."
    if invoice.suspended:
        return "The chain took the payment back; the download goes on when it is confirmed again."
    flags = set(invoice.flags)
    if "conflicted" in flags:
        return "Another transaction spends the same coins: waiting to see which of them is mined."
    if "partial" in flags and invoice.due_sat:
        return f"Received {show_sat(invoice.received_sat)}; {show_sat(invoice.due_sat)} more is due."
    if "missing" in flags:
        return "The payment left the mempool; it is sent again until it is mined or replaced."
    needed = max(invoice.policy.key_at, 1)
    match invoice.status:
        case "open":
            return "Waiting for the payment."
        case "seen":
            return f"Seen; waiting for {'a confirmation' if needed == 1 else f'{needed} confirmations'}."
        case "confirming":
            return f"Confirming: {max(invoice.confirmations, 0)} of {needed}."
        case "settled":
            late = " It came late." if "late" in flags else ""
            over = (
                f" {show_sat(invoice.owed_sat)} too much: ask for it with `bitcache refund RECEIPT ADDRESS`."
                if invoice.owed_sat
                else ""
            )
            return f"Paid and confirmed.{late}{over}"
        case "expired":
            owed = (
                f" Ask for {show_sat(invoice.owed_sat)} with `bitcache refund RECEIPT ADDRESS`, or pay the "
                "rest at a new price."
                if invoice.owed_sat
                else ""
            )
            return f"The time to pay is over (invoice {printable(invoice.reference)}).{owed}"
        case "cancelled":
            return "The invoice was cancelled."
