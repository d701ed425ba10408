"""What a seller runs about hosted sales: `settlement`, `balance`, and what `payout` does with the balance."""

from __future__ import annotations

import secrets
from typing import Annotated, cast, get_args

import typer
from msgspec import UNSET

from bitcache.api import wire, wire_money
from bitcache.cli.common import (
    confirm,
    parse_price,
    refuse_to_ask,
    seller_api,
    show_sat,
    show_time,
    unknown_id,
)
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    UsageWrong,
    YesFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.cli.payout_words import payout_words, target_words
from bitcache.client.api import ServerApi

app = typer.Typer()
payout_app = typer.Typer()
"""Below `bitcache payout`, beside the commands about the wallet."""

LISTED_DEFAULT = 20


@app.command("settlement", epilog="Example: bitcache settlement hosted")
@expected_errors
def settlement(
    mode: Annotated[
        str | None, typer.Argument(metavar="[direct|hosted]", help="Who new invoices are paid to.")
    ] = None,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Show or choose who is paid by buyers: your own wallet (direct), or the operator's for you (hosted).

    Hosted: the operator holds the money, keeps a fee, and pays you out. Invoices that exist stay as they are.
    """
    if mode not in (None, "direct", "hosted"):
        raise UsageWrong(f"{mode!r} is neither direct nor hosted.")
    if mode == "hosted":
        refuse_to_ask(yes=yes, json_output=json_output)

    async def ask() -> wire.AccountView:
        async with seller_api() as api:
            account = await api.get("/account", wire.AccountView)
            if mode is None or mode == account.settlement:
                return account
            if mode == "hosted" and account.hosted_available and not yes:
                _confirm_hosted(account)
            patch = wire.AccountPatch(settlement="hosted" if mode == "hosted" else "direct")
            return await api.patch("/account", patch, wire.AccountView)

    account = run(ask())
    if json_output:
        fee = {"fee_percent": account.fee_percent, "fee_sat": account.fee_sat}
        shown = {"settlement": account.settlement, "hosted_available": account.hosted_available, **fee}
        print_json({**shown, "note": account.settlement_note})
        return
    print_text(f"New sales: {account.settlement}. {printable(account.settlement_note)}")
    if account.hosted_available:
        print_text(f"The operator's fee of a hosted sale: {_fee(account.fee_percent, account.fee_sat)}.")


@app.command("balance", epilog="Example: bitcache balance --json")
@expected_errors
def balance(json_output: JsonFlag = False) -> None:
    """Show what the operator holds of your hosted sales, and what of it can be paid out now."""

    async def ask() -> wire_money.BalanceView:
        async with seller_api() as api:
            return await api.get("/balance", wire_money.BalanceView)

    view = run(ask())
    if json_output:
        print_json(view)
        return
    print_text(f"Balance       {show_sat(view.balance_sat):>20}")
    print_text(f"Payable now   {show_sat(view.payable_sat):>20}")
    print_text(f"Confirming    {show_sat(view.maturing_sat):>20}  until {view.depth} blocks deep")
    print_text(f"Set aside     {show_sat(view.reserved_sat):>20}  for payouts under way")
    if view.in_channels_sat:
        depth = f"until closed, and {view.depth} blocks deep"
        print_text(f"In channels   {show_sat(view.in_channels_sat):>20}  {depth}; no part of the balance")
    print_text(f"Operator's fee of a sale: {_fee(view.fee_percent, view.fee_sat)}.")
    print_text(f"Least payout: {show_sat(view.payout_min_sat)}.")
    _print_plan(view.plan)
    if view.blocked:
        print_text(printable(view.blocked))


@payout_app.command("request", epilog="Example: bitcache payout request 50000sat")
@expected_errors
def request(
    amount: Annotated[
        str | None, typer.Argument(metavar="[AMOUNT]", help="Such as 50000sat or 0.0005btc.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is payable.")] = False,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Have hosted earnings paid out. The network's fee comes out of the amount."""
    if (amount is None) == (not everything):
        raise UsageWrong("Give an amount, or --all.")
    refuse_to_ask(yes=yes, json_output=json_output)
    amount_sat = None if amount is None else parse_price(amount, what="amount")
    if amount_sat == 0:
        raise UsageWrong("Nothing is paid out of 0 sat. Give an amount, or --all.")

    async def ask() -> wire_money.PayoutView:
        async with seller_api() as api:
            if not yes:
                await _confirm_request(api, amount_sat)
            asked = wire_money.PayoutRequest(all=True)
            if amount_sat is not None:
                asked = wire_money.PayoutRequest(amount_sat=amount_sat)
            return await api.post("/payouts", asked, wire_money.PayoutView, key=secrets.token_hex(16))

    made = run(ask())
    if json_output:
        print_json(made)
        return
    _print_payout(made)
    say(f"It will be in the operator's next batch. Until then: bitcache payout cancel {made.payout_id}")


@payout_app.command("list", epilog="Example: bitcache payout list --limit 100 --json")
@expected_errors
def list_payouts(
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = LISTED_DEFAULT,
    after: Annotated[str | None, typer.Option(help="Those before this payout: `next` of --json.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """List your payouts, the newest first."""
    query = {"limit": str(limit)} if after is None else {"limit": str(limit), "after": after}

    async def ask() -> wire_money.PayoutList:
        async with seller_api() as api:
            return await api.get("/payouts", wire_money.PayoutList, query=query)

    found = run(ask())
    if json_output:
        print_json(found)
        return
    for one in found.items:
        _print_payout(one)
    if not found.items:
        say("No payouts yet. `bitcache balance` shows what could be paid out.")
    if found.next is not None:
        say(f"Older ones: bitcache payout list --after {found.next}")


@payout_app.command("cancel", epilog="Example: bitcache payout cancel mzxw6ytboi3dmnzyha4tsojzge")
@expected_errors
def cancel(
    payout_id: Annotated[str, typer.Argument(metavar="ID", help="As `bitcache payout list` shows it.")],
    json_output: JsonFlag = False,
) -> None:
    """Call a payout off, as long as it is in no batch. The amount goes back to your balance.

    One that your plan made is made again: change the plan first (`bitcache payout plan --off`).
    """

    async def ask() -> wire_money.PayoutView:
        async with seller_api() as api:
            await api.delete(f"/payouts/{payout_id}")
            return await api.get(f"/payouts/{payout_id}", wire_money.PayoutView)

    with unknown_id("There is no payout of this id: `bitcache payout list` shows them."):
        view = run(ask())
    if json_output:
        print_json(view)
    else:
        _print_payout(view)


@payout_app.command("address", epilog="Example: bitcache payout address bc1q...")
@expected_errors
def address(
    to: Annotated[
        str | None, typer.Argument(metavar="[ADDRESS]", help="Every payout goes there from now on.")
    ] = None,
    wallet: Annotated[
        bool, typer.Option("--wallet", help="To the next address of the wallet of `bitcache payout set`.")
    ] = False,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Show or choose where hosted earnings are paid out to.

    A change waits, a day on most servers, and whoever signs in sees it; the present one again calls it off.
    """
    if to is not None and wallet:
        raise UsageWrong("Give an address or --wallet, not both.")
    if to is None and not wallet:
        _show_plan(_patched(wire.AccountPatch()), json_output)
        return
    refuse_to_ask(yes=yes, json_output=json_output, why=" once you have compared the address")
    where = "the next address of your wallet" if to is None else printable(to.strip())
    if not yes and not confirm(f"Pay your earnings out to {where}? Compare it with your wallet."):
        raise CommandFailed("Nothing was changed. Answer y, or add --yes.")
    _show_plan(_patched(wire.AccountPatch(payout_address=None if to is None else to.strip())), json_output)


@payout_app.command("plan", epilog="Example: bitcache payout plan --every week --threshold 500000sat")
@expected_errors
def plan(
    every: Annotated[
        str | None,
        typer.Option(metavar="never|day|week|month", help="Pay everything out then, at 00:00 UTC."),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="Pay everything out once so much is payable.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Pay out only what you ask for.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Show or set when you are paid out without asking."""
    if off and (every is not None or threshold is not None):
        raise UsageWrong("--off takes neither --every nor --threshold.")
    times = get_args(wire.PayoutEvery)
    if every is not None and every not in times:
        raise UsageWrong(f"{every!r} is none of {', '.join(times)}.")
    patch = wire.AccountPatch(payout_threshold_sat=None, payout_every="never")
    if not off:
        patch = wire.AccountPatch(
            payout_every=UNSET if every is None else cast(wire.PayoutEvery, every),
            payout_threshold_sat=UNSET if threshold is None else parse_price(threshold, what="amount"),
        )
    _show_plan(_patched(patch), json_output)


def _patched(patch: wire.AccountPatch) -> wire.PayoutPlanView:
    async def change() -> wire.PayoutPlanView:
        async with seller_api() as api:
            return (await api.patch("/account", patch, wire.AccountView)).payout_plan

    return run(change())


def _confirm_hosted(account: wire.AccountView) -> None:
    say("Buyers will pay the operator's wallet. The operator holds the money and owes it to you; if the")
    say("operator loses it or keeps it, it is gone. Buyers are told. For later sales you can go back.")
    say(f"The operator's fee of each sale: {_fee(account.fee_percent, account.fee_sat)}.")
    if not confirm("Have the operator paid for your new sales?"):
        raise CommandFailed("Nothing was changed. Answer y, or add --yes.")


async def _confirm_request(api: ServerApi, amount_sat: int | None) -> None:
    """Raises CommandFailed; nothing was asked for then."""
    view = await api.get("/balance", wire_money.BalanceView)
    if view.blocked:
        raise CommandFailed(printable(view.blocked))
    what = f"all {show_sat(view.payable_sat)}" if amount_sat is None else show_sat(amount_sat)
    if not confirm(f"Pay {what} out to {printable(target_words(view.plan.target))}?"):
        raise CommandFailed("Nothing was asked for. Answer y, or add --yes.")


def _show_plan(plan: wire.PayoutPlanView, json_output: bool) -> None:
    if json_output:
        print_json(plan)
    else:
        _print_plan(plan)


def _print_plan(plan: wire.PayoutPlanView) -> None:
    print_text(f"Paid out to: {printable(target_words(plan.target))}.")
    if plan.pending_until is not None:
        print_text(
            f"From {show_time(plan.pending_until)} on: {printable(target_words(plan.pending_target))}."
        )
    if plan.threshold_sat is not None:
        print_text(f"By itself as soon as {show_sat(plan.threshold_sat)} are payable.")
    if plan.next_at is not None:
        print_text(f"By itself every {plan.every}, next on {show_time(plan.next_at)}.")
    if plan.threshold_sat is None and plan.next_at is None:
        print_text("Only when you ask: bitcache payout request.")


def _print_payout(view: wire_money.PayoutView) -> None:
    print_text(f"{view.payout_id}  {show_time(view.requested_at)}  {show_sat(view.amount_sat):>20}")
    print_text(f"  to {printable(view.address)}")
    print_text(f"  {printable(payout_words(view))}")


def _fee(percent: str, fee_sat: int) -> str:
    words = [f"{printable(percent)} %"] if percent.strip("0.") else []
    words += [show_sat(fee_sat)] if fee_sat else []
    return " and ".join(words) or "none"
