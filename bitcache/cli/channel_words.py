"""A channel in words for the terminal, and in facts for scripts."""

from collections.abc import Iterator

from bitcache.api import wire_channels as wire
from bitcache.cli.common import show_count, show_sat
from bitcache.cli.output import printable
from bitcache.cli.price_words import show_msat
from bitcache.client.channel_book import OwnChannel
from bitcache.client.channel_count import ChannelCount
from bitcache.client.channel_terms import days


def view_facts(view: wire.ChannelView) -> dict[str, object]:
    """What the server says."""
    return {
        "channel_id": view.channel_id,
        "state": view.state,
        "suspended": view.suspended,
        "confirmations": view.confirmations,
        "capacity_sat": view.capacity_sat,
        "accepted_sat": view.accepted_sat,
        "spent_msat": view.spent_msat,
        "payable_sat_max": view.payable_sat_max,
        "expiry_height": view.expiry_height,
        "close": view.close,
    }


def own_facts(own: OwnChannel, count: ChannelCount) -> dict[str, object]:
    """What this computer knows."""
    return {
        "channel_id": own.id,
        "server": own.contract.server,
        "network": own.contract.network,
        "capacity_sat": own.channel.capacity_sat,
        "close_fee_sat": own.contract.close_fee_sat,
        "signed_sat": count.signed_sat,
        "arrived_msat": count.arrived_msat + count.unlisted_msat,
        "chunks_outstanding": count.outstanding,
        "left_sat": max(0, own.channel.paid_sat_max - count.signed_sat),
        "expiry_height": own.contract.expiry_height,
        "ended": own.kept.ended,
    }


def channel_lines(own: OwnChannel, count: ChannelCount, view: wire.ChannelView | None) -> Iterator[str]:
    yield own.id
    left_sat = max(0, own.channel.paid_sat_max - count.signed_sat)
    over = own.kept.ended or (view is not None and view.state not in {"funded", "open"})
    yield (
        f"  {printable(own.contract.server)}  {show_sat(own.channel.capacity_sat)} in, "
        f"{show_sat(count.signed_sat)} paid" + ("" if over else f", {show_sat(left_sat)} left")
    )
    if count.outstanding:
        missing = show_count(count.outstanding, "chunk")
        yield f"  {missing} paid for and not here yet: the same `bitcache get` brings them, for nothing"
    if view is None:
        ended = "  closed" if own.kept.ended else "  the server did not say how it stands"
        yield f"{ended}; refundable from block {own.contract.expiry_height:,} on"
        return
    yield f"  {standing_words(own, view)}"
    if view.state in {"funded", "open"}:
        in_days = show_count(days(view.expiry_height - view.tip_height), "day")
        yield f"  refundable from block {view.expiry_height:,} on, in about {in_days}"


def standing_words(own: OwnChannel, view: wire.ChannelView) -> str:
    """How the server sees it."""
    depth = show_count(view.confirmations, "confirmation")
    match view.state:
        case "funded" | "open" if view.suspended:
            return f"suspended: its deposit is not in the chain as it was ({depth})"
        case "funded":
            return f"funded, not open yet ({depth})"
        case "open":
            payable = show_sat(min(view.payable_sat_max, own.channel.paid_sat_max))
            return f"open ({depth}), {show_msat(view.spent_msat)} charged; pays up to {payable} now"
        case _:
            return f"{view.state}{_close_words(view.close)}, {show_msat(view.spent_msat)} charged"


def _close_words(close: wire.ChannelCloseView | None) -> str:
    if close is None:
        return ""
    where = (
        "" if close.txid is None else f" in {close.txid}, {show_count(close.confirmations, 'confirmation')}"
    )
    return f" ({printable(close.reason)}){where}"
