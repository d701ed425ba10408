"""A payout's state in words, for the command line. Pure."""

from typing import assert_never

from bitcache.api.wire import PayoutTargetView
from bitcache.api.wire_money import PayoutView


def target_words(target: PayoutTargetView | None) -> str:
    if target is None:
        return "nowhere yet (bitcache payout address, or bitcache payout set)"
    return target.address or "the next address of your wallet"


def payout_words(view: PayoutView) -> str:
    """What it does now, and why it waits. Sentences of the server's are passed on as they are."""
    match view.state:
        case "waiting":
            return f"waits: {view.trouble}" if view.trouble else "waits for approval"
        case "approved":
            return "in the next batch"
        case "in_batch":
            return f"in a batch, not sent yet{_fee_words(view)}"
        case "sent":
            return f"sent, {view.confirmations} of {view.depth} confirmations{_fee_words(view)}, {view.txid}"
        case "done":
            return f"done{_fee_words(view)}, {view.txid}"
        case "cancelled":
            return "called off, back in the balance"
        case "declined":
            return f"declined, back in the balance: {view.reason or 'no reason given'}"
        case _:
            assert_never(view.state)


def _fee_words(view: PayoutView) -> str:
    if view.arrives_sat is None or view.network_fee_sat is None:
        return ""
    return f": {view.arrives_sat:,} sat arrive, {view.network_fee_sat:,} sat for the network"
