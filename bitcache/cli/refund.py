"""Money back: `refund` for buyers, `refunds list|approve|decline` for sellers."""

from collections.abc import Iterator
from typing import Annotated

import typer

from bitcache.api import wire, wire_money
from bitcache.cli.common import (
    confirm,
    read_text,
    refuse_to_ask,
    seller_api,
    show_count,
    show_sat,
    show_time,
    unknown_id,
)
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    UsageWrong,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.client import listing, refunds
from bitcache.client.api import ServerApi
from bitcache.client.invoices import get_invoice
from bitcache.client.link import Receipt, parse

app = typer.Typer()
seller_app = typer.Typer(
    help="What buyers ask back: list it, approve or decline it.",
    epilog="Example: bitcache refunds list",
    no_args_is_help=True,
)
app.add_typer(seller_app, name="refunds")

HOUR_S = 3_600
REFUND_UNKNOWN = "There is no refund of this id: `bitcache refunds list` shows them."
RefundId = Annotated[str, typer.Argument(metavar="ID", help="As `bitcache refunds list` shows it.")]


@app.command(
    "refund",
    epilog="Example: bitcache refund 'https://files.example.org/r/abc...#1.xyz...' bc1q... Quote the "
    "receipt, for the # in it; - reads it from stdin.",
)
@expected_errors
def refund(
    receipt: Annotated[str, typer.Argument(metavar="RECEIPT", help="The whole receipt; - for stdin.")],
    address: Annotated[
        str | None,
        typer.Argument(metavar="[ADDRESS]", help="Of your wallet. The first one you name is final."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask for the money without asking you.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Ask back what you paid too much, too late or for nothing; without an address, show how it stands.

    Asking back all of a payment calls off the purchase. The network's fee comes out of the money.
    """
    bought = parse(read_text(receipt, None, what="receipt"))
    if not isinstance(bought, Receipt):
        raise UsageWrong("This is a link, not a receipt. `bitcache receipts` lists yours.")
    if address is not None:
        refuse_to_ask(yes=yes, json_output=json_output)
    invoice = run(_refund(bought, address, yes=yes))
    if json_output:
        print_json({"invoice_id": invoice.invoice_id, "refund": invoice.refund, "owed_sat": invoice.owed_sat})
        return
    for line in standing_lines(invoice):
        print_text(line)


@seller_app.command("list", epilog="Example: bitcache refunds list --json")
@expected_errors
def list_refunds(json_output: JsonFlag = False) -> None:
    """List what buyers ask back, newest first; what you must pay by hand has a URI for your wallet."""

    async def ask() -> list[wire_money.RefundSummary]:
        async with seller_api() as api:
            return await listing.refunds(api)

    items = run(ask())
    if json_output:
        print_json(items)
        return
    if not items:
        say("Nobody has asked for money back.")
    for item in items:
        for line in summary_lines(item):
            print_text(line)


@seller_app.command("approve", epilog="Example: bitcache refunds approve ID")
@expected_errors
def approve(refund_id: RefundId, json_output: JsonFlag = False) -> None:
    """Let a refund be paid. Its network fee comes out of the refund, not out of your balance."""

    async def ask() -> wire_money.RefundSummary:
        async with seller_api() as api:
            return await refunds.approve(api, refund_id)

    with unknown_id(REFUND_UNKNOWN):
        item = run(ask())
    _print_decided(item, json_output)


@seller_app.command("decline", epilog="Example: bitcache refunds decline ID --reason 'Refunded in the shop.'")
@expected_errors
def decline(
    refund_id: RefundId,
    reason: Annotated[str, typer.Option(help="Why. The buyer reads it.")],
    json_output: JsonFlag = False,
) -> None:
    """Refuse a refund. The money stays the buyer's: you or the operator can still approve it."""

    async def ask() -> wire_money.RefundSummary:
        async with seller_api() as api:
            return await refunds.decline(api, refund_id, reason)

    with unknown_id(REFUND_UNKNOWN):
        item = run(ask())
    _print_decided(item, json_output)


def standing_lines(invoice: wire.InvoiceView) -> Iterator[str]:
    """What can be asked back and what was, in words."""
    standing = invoice.refund
    if standing is None:
        yield "Nothing was paid: nothing can be asked back."
        return
    if standing.address is not None:
        yield f"Address  {printable(standing.address)} (final)"
    if standing.paid_by == "seller" and (standing.address is not None or invoice.owed_sat):
        yield f"Owed     {show_sat(invoice.owed_sat)}, by the seller"
        yield f"Number   {printable(invoice.reference)}, to ask the seller by"
    elif standing.refundable_sat:
        yield f"Yours    {show_sat(standing.refundable_sat)}: add an address of your wallet to ask for it"
    elif not standing.refunds:
        yield "Nothing can be asked back now."
    for one in standing.refunds:
        yield f"Refund   {show_sat(one.amount_sat)}: {_state_words(one.state, one.ready_at, one.reason)}"
        if one.txid is not None:
            yield f"         {_sent_words(one.txid, one.network_fee_sat, one.confirmations)}"


def policy_lines(invoice: wire.InvoiceView, standing: wire.InvoiceRefundView) -> Iterator[str]:
    """What one should know before one asks."""
    if not standing.whole and (invoice.status != "settled" or invoice.taken_down):
        yield "Asking for it calls off the purchase: the payment opens nothing any more."
    if standing.paid_by == "seller":
        yield "The money is in the seller's own wallet: the server keeps your address for the seller."
    else:
        who = (
            "The seller or the operator must approve it first"
            if standing.approval
            else "Nobody need approve it"
        )
        yield f"{who}; it is paid {_delay_words(standing.delay_s)}, once your payment is deep enough."
        yield (
            "The network's fee comes out of it. As long as that would be more than "
            f"{standing.fee_percent_max} %, it waits for a lower one."
        )
    yield "The first address is final: nobody, not even you, can change it."


def summary_lines(item: wire_money.RefundSummary) -> Iterator[str]:
    """One refund, for its seller."""
    yield (
        f"{item.refund_id}  {show_time(item.requested_at)}  {printable(item.reference)}  "
        f"{show_sat(item.amount_sat)}  {_state_words(item.state, item.ready_at, item.reason)}"
    )
    if item.uri is not None:
        yield f"  pay by hand: {printable(item.uri)}"
    else:
        yield f"  to {printable(item.address)}"
    if item.txid is not None:
        yield f"  {_sent_words(item.txid, item.network_fee_sat, item.confirmations)}"


async def _refund(receipt: Receipt, address: str | None, *, yes: bool) -> wire.InvoiceView:
    async with ServerApi(receipt.server) as api:
        invoice = await get_invoice(api, receipt.invoice_id)
        if address is None:
            return invoice
        standing = invoice.refund
        if standing is not None and not yes:
            for line in policy_lines(invoice, standing):
                say(line)
            question = f"Ask for {show_sat(standing.refundable_sat)} back, to {printable(address)}?"
            if standing.refundable_sat and not confirm(question):
                raise CommandFailed("Nothing was asked back. Add --yes to ask without a terminal.")
        return await refunds.ask_back(api, receipt, address.strip())


def _print_decided(item: wire_money.RefundSummary, as_json: bool) -> None:
    if as_json:
        print_json(item)
        return
    for line in summary_lines(item):
        print_text(line)


def _state_words(state: str, ready_at: int | None, reason: str | None) -> str:
    because = f": {printable(reason)}" if reason else ""
    match state:
        case "requested":
            return "waits for the seller's or the operator's approval"
        case "approved":
            return f"approved, paid from {show_time(ready_at)} on" if ready_at else "approved"
        case "batched":
            return "is being paid"
        case "done":
            return "paid"
        case "declined":
            return f"declined{because}"
        case "cancelled":
            return f"called off{because}"
        case "owed":
            return "owed by you"
        case "attended":
            return "seen to"
        case _:
            return printable(state)


def _sent_words(txid: str, network_fee_sat: int | None, confirmations: int | None) -> str:
    fee = "" if network_fee_sat is None else f", {show_sat(network_fee_sat)} to the network"
    depth = "" if confirmations is None else f", {show_count(confirmations, 'confirmation')}"
    return f"in {printable(txid)}{fee}{depth}"


def _delay_words(delay_s: int) -> str:
    if delay_s < HOUR_S:
        return (
            f"{show_count(-(-delay_s // 60), 'minute')} later at the earliest"
            if delay_s >= 60
            else "with the next payouts"
        )
    return f"{show_count(-(-delay_s // HOUR_S), 'hour')} later at the earliest"
