"""An invoice as time goes by: the server's event stream, and polling wherever that does not work."""

import asyncio
from collections.abc import AsyncIterator

import msgspec

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.errors import ServerAnswerWrong, ServerProblem
from bitcache.client.retry import CONNECTION_TROUBLE

POLL_S = 3.0
EVENT_BYTES_MAX = 256 << 10


async def get_invoice(api: ServerApi, invoice_id: str) -> wire.InvoiceView:
    """The invoice as it is now. Raises ServerAnswerWrong for one that cannot be it."""
    return checked(await api.get(f"/invoices/{invoice_id}", wire.InvoiceView), invoice_id)


def checked(invoice: wire.InvoiceView, invoice_id: str) -> wire.InvoiceView:
    """`invoice`, if nothing in it is what no honest server says. Raises ServerAnswerWrong."""
    if invoice.invoice_id != invoice_id:
        raise ServerAnswerWrong("The server answers with another invoice than was asked for.")
    if not 0 <= invoice.due_sat <= invoice.price_sat:
        # A wallet that pays unattended would pay it.
        raise ServerAnswerWrong(
            f"The server demands {invoice.due_sat} sat for a price of {invoice.price_sat} sat. Do not pay."
        )
    return invoice


async def follow(
    api: ServerApi, invoice_id: str, *, poll_s: float = POLL_S
) -> AsyncIterator[wire.InvoiceView]:
    """The invoice now, then again after each change, without end.

    A stream that breaks is opened anew; between two streams the invoice is asked for once, so that nothing is
    missed where a proxy swallows streams. Raises ServerUnreachable, ServerProblem.
    """
    last: wire.InvoiceView | None = None
    while True:
        invoice = await get_invoice(api, invoice_id)
        if last is None or _changed(last, invoice):
            last = invoice
            yield invoice
        try:
            async for invoice in _stream(api, invoice_id):
                if _changed(last, invoice):
                    last = invoice
                    yield invoice
        except (*CONNECTION_TROUBLE, ServerProblem, ServerAnswerWrong):
            pass  # the question above tells what is the matter
        await asyncio.sleep(poll_s)


async def _stream(api: ServerApi, invoice_id: str) -> AsyncIterator[wire.InvoiceView]:
    headers = {"Accept": "text/event-stream"}
    async with api.stream(f"/invoices/{invoice_id}/events", headers=headers) as response:
        if response.content_type != "text/event-stream":
            raise ServerAnswerWrong("The server has no event stream here.")
        data = bytearray()
        async for piece in _lines(response.content.iter_any()):
            line = piece.rstrip(b"\r")
            if line.startswith(b"data:"):
                data += line.removeprefix(b"data:").removeprefix(b" ") + b"\n"
                if len(data) > EVENT_BYTES_MAX:
                    raise ServerAnswerWrong("An event of the server is too long.")
            elif not line and data:
                try:
                    told = msgspec.json.decode(data, type=wire.InvoiceView)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                    raise ServerAnswerWrong(f"An event of the server is not an invoice ({exc}).") from exc
                yield checked(told, invoice_id)
                data.clear()


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > EVENT_BYTES_MAX:
            raise ServerAnswerWrong("A line of the server's event stream is too long.")


def _changed(before: wire.InvoiceView, after: wire.InvoiceView) -> bool:
    return msgspec.structs.replace(before, now=after.now) != after
