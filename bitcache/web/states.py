"""Which of the catalogue's states an invoice is in, for a person. Pure."""

from bitcache.api.wire import InvoiceView
from bitcache.on_sale import SaleState

PAYABLE = frozenset({"waiting", "underpaid", "replaced"})
UNLOCKED = frozenset({"paid", "overpaid"})
UNDER_WAY = UNLOCKED | {"seen", "confirming", "missing", "suspended"}
"""The whole amount came: it is on its way to unlocking, or there."""
RENEWABLE = frozenset({"expired", "lapsed", "late"})
FINAL = UNLOCKED | {"taken_down", "refunded", "cancelled", "gone", "owed"}
"""From here on the page is a receipt: nothing is waited for."""
_LOST = {"replaced", "conflicted"}


def page_state(invoice: InvoiceView, *, offer: SaleState = "open") -> str:
    """What matters most to the buyer now. Where money is due that must not be paid now, that comes first.

    `offer`: only where it is open can an expired price be renewed.
    """
    flags = set(invoice.flags)
    if invoice.taken_down:
        return "taken_down"
    if invoice.refund is not None and invoice.refund.whole:
        return "refunded"
    if invoice.suspended:
        return "suspended"
    if invoice.key_allowed:
        return "overpaid" if invoice.owed_sat else "paid"
    if "missing" in flags:
        return "missing"
    if not invoice.node_online and invoice.due_sat:
        return "offline"
    if offer == "damaged" and invoice.due_sat:
        return "damaged"
    match invoice.status:
        case "settled" | "confirming":
            return "confirming"
        case "seen":
            return "underpaid" if invoice.due_sat else "seen"
        case "expired" if invoice.received_sat:
            if offer != "open":
                return "owed"
            return "late" if "late" in flags else "lapsed"
        case "expired":
            return "expired" if offer == "open" else "gone"
        case "cancelled":
            return "cancelled"
        case "open":
            return "replaced" if flags & _LOST else "waiting"


def tone_of(state: str) -> str:
    """The colour of a state's banner, as a class of the style sheet."""
    if state in UNLOCKED:
        return "ok"
    if state in {"expired", "cancelled", "gone", "taken_down"}:
        return "bad"
    return "info" if state in {"waiting", "refunded", "seen", "confirming"} else "warn"
