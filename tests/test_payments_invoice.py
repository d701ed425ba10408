"""Where an invoice stands, case by case: what counts, what covers, what is still due, what is renewed."""

from dataclasses import dataclass, replace

import pytest

from payments.invoice import (
    CLOCK_SKEW_S,
    DEPTH_FREE,
    ChainView,
    Flag,
    Invoice,
    Outage,
    Presence,
    ReceivedOutput,
    Status,
    Term,
    deadline,
    renewal,
    standing,
)
from payments.money import Sat
from payments.outputs import MISSING_LAPSES_S, lapses_at
from tests.payments_facts import CHAIN, CREATED_AT, PRICE_SAT, TIP, UNTIL, invoice_of, paid

NOW = CREATED_AT + 600
LATER = UNTIL + 1

MEMPOOL, MISSING = Presence.MEMPOOL, Presence.MISSING
CONFLICTED, GONE = Presence.CONFLICTED, Presence.GONE
RENEWED = (Term(PRICE_SAT, UNTIL), Term(Sat(6_000), UNTIL + 9_000, offered_at=UNTIL + 5_000))
CHEAPER = (Term(PRICE_SAT, UNTIL), Term(Sat(4_000), UNTIL + 9_000, offered_at=UNTIL + 5_000))


@dataclass(frozen=True)
class Case:
    name: str
    outputs: tuple[ReceivedOutput, ...]
    status: Status
    depth: int
    due_sat: int
    flags: tuple[Flag, ...] = ()
    invoice: Invoice = invoice_of()  # noqa: RUF009  (frozen)
    now: int = NOW
    chain: ChainView = CHAIN


CASES = [
    Case("nothing came", (), Status.OPEN, -1, 5_000),
    Case("nothing came, at the deadline", (), Status.OPEN, -1, 5_000, now=UNTIL),
    Case("nothing came in time", (), Status.EXPIRED, -1, 5_000, now=LATER),
    Case("nothing came, an outage moved the deadline", (), Status.OPEN, -1, 5_000, now=LATER,
         chain=ChainView(TIP, (Outage(UNTIL - 10, UNTIL + 20),))),
    Case("called off", (), Status.CANCELLED, -1, 5_000, invoice=invoice_of(cancelled=True)),
    Case("called off and run out", (), Status.CANCELLED, -1, 5_000, invoice=invoice_of(cancelled=True),
         now=LATER),
    Case("called off, then part came", (paid("a", 400),), Status.SEEN, -1, 4_600, (Flag.PARTIAL,),
         invoice=invoice_of(cancelled=True)),
    Case("called off, then paid", (paid("a", 5_000, confirmations=1),), Status.SETTLED, 1, 0,
         invoice=invoice_of(cancelled=True)),
    Case("called off after a payment that was taken back", (paid("a", 5_000, presence=GONE),), Status.OPEN,
         -1, 5_000,
         (Flag.CONFLICTED,), invoice=invoice_of(cancelled=True)),
    Case("called off, dust came", (paid("a", 329),), Status.CANCELLED, -1, 5_000,
         invoice=invoice_of(cancelled=True)),
    Case("free", (), Status.SETTLED, DEPTH_FREE, 0, invoice=invoice_of(Term(Sat(0), UNTIL)), now=LATER),
    # The amount.
    Case("in the mempool", (paid("a", 5_000),), Status.SEEN, 0, 0),
    Case("in a block", (paid("a", 5_000, confirmations=1),), Status.SETTLED, 1, 0),
    Case("confirming", (paid("a", 5_000, confirmations=2),), Status.CONFIRMING, 2, 0,
         invoice=invoice_of(key_at=3)),
    Case("deep enough", (paid("a", 5_000, confirmations=3),), Status.SETTLED, 3, 0,
         invoice=invoice_of(key_at=3)),
    Case("key at once, still not settled", (paid("a", 5_000),), Status.SEEN, 0, 0,
         invoice=invoice_of(key_at=0)),
    Case("key at once, settled in a block", (paid("a", 5_000, confirmations=1),), Status.SETTLED, 1, 0,
         invoice=invoice_of(key_at=0)),
    Case("one sat short", (paid("a", 4_999, confirmations=6),), Status.SEEN, -1, 1, (Flag.PARTIAL,)),
    Case("short after the deadline", (paid("a", 4_999, confirmations=6),), Status.EXPIRED, -1, 1,
         (Flag.PARTIAL,),
         now=LATER),
    Case("underpaid and topped up", (paid("a", 3_000, confirmations=6), paid("b", 2_000, confirmations=2)),
         Status.SETTLED, 2, 0),
    Case("underpaid and topped up in the mempool", (paid("a", 3_000, confirmations=6), paid("b", 2_000)),
         Status.SEEN, 0, 0),
    Case("two outputs of one transaction",
         (paid("a", 3_000, confirmations=1), paid("a", 2_000, vout=1, confirmations=1)), Status.SETTLED, 1,
         0),
    Case("a tip", (paid("a", 5_999, confirmations=1),), Status.SETTLED, 1, 0),
    Case("overpaid", (paid("a", 6_000, confirmations=1),), Status.SETTLED, 1, 0, (Flag.OVER,)),
    Case("within the tolerance in sats", (paid("a", 4_900),), Status.SEEN, 0, 0,
         invoice=invoice_of(tolerance_sat=100)),
    Case("below the tolerance in sats", (paid("a", 4_899),), Status.SEEN, -1, 101, (Flag.PARTIAL,),
         invoice=invoice_of(tolerance_sat=100)),
    Case("within the tolerance in parts", (paid("a", 4_500),), Status.SEEN, 0, 0,
         invoice=invoice_of(tolerance_sat=100, tolerance_ppm=100_000)),
    Case("below the tolerance in parts", (paid("a", 4_499),), Status.SEEN, -1, 501, (Flag.PARTIAL,),
         invoice=invoice_of(tolerance_sat=100, tolerance_ppm=100_000)),
    Case("a tolerance above the price", (), Status.OPEN, -1, 5_000, invoice=invoice_of(tolerance_sat=9_000)),
    # What never counts.
    Case("dust", tuple(paid("a", 329, vout=n, confirmations=1) for n in range(20)), Status.OPEN, -1, 5_000),
    Case("just above dust", tuple(paid("a", 330, vout=n, confirmations=1) for n in range(16)),
         Status.SETTLED, 1, 0),
    Case("third-party dust on a settled invoice", (paid("a", 5_000, confirmations=6), paid("b", 329)),
         Status.SETTLED, 6, 0),
    Case("third-party money on a settled invoice", (paid("a", 5_000, confirmations=6), paid("b", 400)),
         Status.SETTLED, 6, 0),
    Case("coinbase too young", (paid("a", 5_000, confirmations=99, coinbase=True),), Status.OPEN, -1, 5_000),
    Case("coinbase of age", (paid("a", 5_000, confirmations=100, coinbase=True),), Status.SETTLED, 100, 0),
    Case("two coinbases spend the same null outpoint",
         (paid("a", 2_500, confirmations=100, coinbase=True, spends="0"),
          paid("b", 2_500, confirmations=101, coinbase=True, spends="0")), Status.SETTLED, 100, 0),
    Case("older than the invoice", (paid("a", 5_000, at=CREATED_AT - CLOCK_SKEW_S - 1, confirmations=9),),
         Status.OPEN, -1, 5_000),
    Case("as old as clocks may differ", (paid("a", 5_000, at=CREATED_AT - CLOCK_SKEW_S, confirmations=9),),
         Status.SETTLED, 9, 0),
    # Lateness and terms.
    Case("at the deadline", (paid("a", 5_000, at=UNTIL, confirmations=1),), Status.SETTLED, 1, 0, now=LATER),
    Case("late", (paid("a", 5_000, at=LATER, confirmations=1),), Status.EXPIRED, -1, 5_000,
         (Flag.LATE, Flag.PARTIAL), now=LATER),
    Case("in time thanks to an outage", (paid("a", 5_000, at=LATER, confirmations=1),), Status.SETTLED, 1, 0,
         now=LATER, chain=ChainView(TIP, (Outage(UNTIL - 10, UNTIL + 20),))),
    Case("an outage before the invoice moves nothing", (paid("a", 5_000, at=LATER, confirmations=1),),
         Status.EXPIRED, -1, 5_000, (Flag.LATE, Flag.PARTIAL), now=LATER,
         chain=ChainView(TIP, (Outage(0, CREATED_AT),))),
    Case("topped up late", (paid("a", 3_000, confirmations=1), paid("b", 2_000, at=LATER, confirmations=1)),
         Status.EXPIRED, -1, 2_000, (Flag.LATE, Flag.PARTIAL), now=LATER),
    Case("renewed, the rest is due at the new price", (paid("a", 3_000, confirmations=1),),
         Status.SEEN, -1, 3_000, (Flag.PARTIAL,), invoice=invoice_of(*RENEWED), now=UNTIL + 6_000),
    Case("renewed and topped up",
         (paid("a", 3_000, confirmations=4), paid("b", 3_000, at=UNTIL + 6_000, confirmations=1)),
         Status.SETTLED, 1, 0, (Flag.LATE,), invoice=invoice_of(*RENEWED), now=UNTIL + 6_000),
    Case("renewed for late money", (paid("a", 6_000, at=LATER, confirmations=1),), Status.SETTLED, 1, 0,
         (Flag.LATE,),
         invoice=invoice_of(*RENEWED), now=UNTIL + 6_000),
    Case("renewed dearer, but the first price was met in time", (paid("a", 5_000, confirmations=1),),
         Status.SETTLED, 1, 0, invoice=invoice_of(*RENEWED), now=UNTIL + 6_000),
    Case("renewed cheaper: the cheaper term is the price", (paid("a", 5_000, confirmations=1),),
         Status.SETTLED, 1, 0,
         (Flag.OVER,), invoice=invoice_of(*CHEAPER), now=UNTIL + 6_000),
    Case("an earlier term that outlives the last", (), Status.OPEN, -1, 5_000, now=UNTIL + 50,
         invoice=invoice_of(Term(PRICE_SAT, UNTIL + 100), Term(Sat(4_000), UNTIL))),
    # Where the transactions are.
    Case("out of sight", (paid("a", 5_000, presence=MISSING),), Status.SEEN, 0, 0, (Flag.MISSING,)),
    Case("part out of sight", (paid("a", 4_000, presence=MISSING),), Status.SEEN, -1, 1_000,
         (Flag.MISSING, Flag.PARTIAL)),
    Case("replaced by one that pays us nothing", (paid("a", 5_000, presence=CONFLICTED),), Status.OPEN, -1,
         5_000,
         (Flag.REPLACED,)),
    Case("double spent in a block", (paid("a", 5_000, presence=GONE),), Status.OPEN, -1, 5_000,
         (Flag.CONFLICTED,)),
    Case("double spent in a block, found out late", (paid("a", 5_000, presence=GONE),), Status.EXPIRED, -1,
         5_000,
         (Flag.CONFLICTED,), now=LATER),
    Case("fee bump", (paid("a", 5_000, presence=CONFLICTED, spends="x"), paid("b", 5_000, spends="xy")),
         Status.SEEN, 0, 0),
    Case("fee bump in a block", (paid("a", 5_000, presence=GONE, spends="x"),
                                 paid("b", 5_000, confirmations=1, spends="xy")), Status.SETTLED, 1, 0),
    Case("replaced by one that pays us less",
         (paid("a", 5_000, presence=CONFLICTED, spends="x"), paid("b", 4_999, spends="x")),
         Status.SEEN, -1, 1, (Flag.PARTIAL, Flag.REPLACED)),
    Case("replaced by two that pay as much together",
         (paid("a", 5_000, presence=CONFLICTED, spends="xy"),
          paid("b", 3_000, spends="x"), paid("c", 2_000, spends="y")),
         Status.SEEN, 0, 0),
    Case("replaced, and paid anew from elsewhere",
         (paid("a", 5_000, presence=CONFLICTED, spends="x"), paid("b", 5_000, spends="y")),
         Status.SEEN, 0, 0, (Flag.REPLACED,)),
    Case("lost dust says nothing", (paid("a", 329, presence=GONE), paid("b", 5_000)), Status.SEEN, 0, 0),
    Case("a missing rival of a payment in the mempool counts once",
         (paid("a", 5_000, presence=MISSING, spends="x"), paid("b", 5_000, spends="x")), Status.SEEN, 0, 0),
    Case("two missing rivals count once",
         (paid("a", 3_000, presence=MISSING, spends="x"), paid("b", 3_000, presence=MISSING, spends="x")),
         Status.SEEN, -1, 2_000, (Flag.MISSING, Flag.PARTIAL)),
    Case("reorged into the mempool", (paid("a", 5_000, reorged=True),), Status.SEEN, 0, 0, (Flag.REORGED,)),
    Case("reorged out of sight", (paid("a", 5_000, presence=MISSING, reorged=True),), Status.SEEN, 0, 0,
         (Flag.MISSING, Flag.REORGED)),
    Case("reorged and mined again", (paid("a", 5_000, confirmations=1),), Status.SETTLED, 1, 0),
    Case("in a block above the tip we know", (replace(paid("a", 5_000, confirmations=1), height=TIP + 3),),
         Status.SEEN, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    found = standing(case.invoice, case.outputs, case.chain, case.now)
    assert (found.status, found.depth, found.due_sat) == (case.status, case.depth, case.due_sat)
    assert found.flags == frozenset(case.flags)


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_amounts_of_an_overpaid_invoice() -> None:
    outputs = [
        paid("a", 4_000, confirmations=2),
        paid("b", 2_000),
        paid("c", 700, presence=MISSING),
        paid("d", 200),
    ]
    found = standing(invoice_of(), outputs, CHAIN, NOW)
    assert (found.received_sat, found.confirmed_sat) == (6_000, 4_000)
    assert (found.price_sat, found.surplus_sat, found.late_sat) == (5_000, 1_000, 0)


def test_money_out_of_sight_covers_but_not_now() -> None:
    outputs = [paid("a", 4_000, confirmations=2), paid("b", 1_000, presence=MISSING)]
    found = standing(invoice_of(), outputs, CHAIN, NOW)
    assert (found.covered, found.covered_now, found.depth) == (True, False, 0)
    seen_again = standing(invoice_of(), [outputs[0], paid("b", 1_000)], CHAIN, NOW)
    assert (seen_again.covered, seen_again.covered_now, seen_again.depth) == (True, True, 0)


def test_a_missing_extra_takes_nothing_from_what_is_seen() -> None:
    outputs = [paid("a", 5_000, confirmations=2), paid("b", 1_000, presence=MISSING)]
    found = standing(invoice_of(), outputs, CHAIN, NOW)
    assert (found.covered_now, found.depth, found.surplus_sat) == (True, 2, 0)


def test_what_stays_missing_for_two_weeks_lapses_unless_a_block_once_held_it() -> None:
    money = paid("a", 5_000, presence=MISSING)
    last_moment = money.first_seen_at + MISSING_LAPSES_S
    assert lapses_at(money) == last_moment
    assert standing(invoice_of(), [money], CHAIN, last_moment).status is Status.SEEN
    assert standing(invoice_of(), [money], CHAIN, last_moment + 1).status is Status.EXPIRED
    back = paid("a", 5_000, confirmations=1)
    assert standing(invoice_of(), [back], CHAIN, last_moment + 1).status is Status.SETTLED
    once_mined = paid("a", 5_000, presence=MISSING, reorged=True)
    assert standing(invoice_of(), [once_mined], CHAIN, last_moment + 1).status is Status.SEEN


def test_the_price_shown_is_the_nearest_open_one() -> None:
    found = standing(invoice_of(*RENEWED), (), CHAIN, UNTIL + 6_000)
    assert (found.price_sat, found.due_sat, found.valid_until) == (6_000, 6_000, UNTIL + 9_000)
    both_open = standing(invoice_of(*RENEWED), (), CHAIN, NOW)
    assert (both_open.price_sat, both_open.due_sat) == (5_000, 5_000)
    last_second = standing(invoice_of(*RENEWED), (), CHAIN, UNTIL)
    assert (last_second.price_sat, last_second.due_sat) == (5_000, 5_000)
    all_run_out = standing(invoice_of(*RENEWED), (), CHAIN, UNTIL + 9_001)
    assert (all_run_out.price_sat, all_run_out.due_sat) == (5_000, 5_000)


def test_an_outage_before_a_renewal_does_not_stretch_it() -> None:
    chain = ChainView(TIP, (Outage(CREATED_AT, UNTIL + 4_000),))
    found = standing(invoice_of(*RENEWED), (), chain, NOW)
    assert found.valid_until == max(UNTIL + (UNTIL + 4_000 - CREATED_AT), UNTIL + 9_000)
    shorter = ChainView(TIP, (Outage(UNTIL - 1, UNTIL + 99),))
    assert standing(invoice_of(*RENEWED), (), shorter, NOW).valid_until == UNTIL + 9_000


@pytest.mark.parametrize(
    ("outages", "moved"),
    [
        ([], 100),
        ([(0, 10)], 110),
        ([(99, 100)], 101),
        ([(100, 200)], 100),
        ([(90, 150)], 160),
        ([(90, 150), (155, 165)], 170),
        ([(155, 165), (90, 150)], 170),
        ([(90, 150), (160, 170)], 160),
        ([(10, 30), (20, 40)], 130),
        ([(10, 40), (20, 30)], 130),
        ([(10, 20), (10, 20)], 110),
        ([(10, 10), (30, 20)], 100),
    ],
)
def test_deadline(outages: list[tuple[int, int]], moved: int) -> None:
    assert deadline(100, [Outage(*outage) for outage in outages]) == moved


@pytest.mark.parametrize(
    ("outage", "moved"), [((0, 50), 100), ((40, 60), 110), ((50, 60), 110), ((0, 500), 550)]
)
def test_deadline_counts_outages_from_the_offer_on(outage: tuple[int, int], moved: int) -> None:
    assert deadline(100, [Outage(*outage)], offered_at=50) == moved


# Renewal.

QUOTE = Term(Sat(6_000), LATER + 5_000)


def renewed(
    outputs: list[ReceivedOutput],
    *,
    asked: bool = False,
    now: int = LATER,
    invoice: Invoice | None = None,
    quote: Term | None = QUOTE,
) -> Term | None:
    invoice = invoice or invoice_of()
    return renewal(invoice, standing(invoice, outputs, CHAIN, now), quote, now, asked=asked)


def test_late_money_gets_one_term_at_the_price_now() -> None:
    late = [paid("a", 5_000, at=LATER)]
    term = renewed(late)
    assert term == replace(QUOTE, offered_at=LATER)
    again = replace(invoice_of(), terms=(*invoice_of().terms, term))
    assert renewed(late, invoice=again) is None
    # That term runs out too: only new late money asks for another.
    fresh = Term(Sat(7_000), QUOTE.valid_until + 9_000)
    assert renewed(late, invoice=again, now=QUOTE.valid_until + 1, quote=fresh) is None
    more = [*late, paid("b", 400, at=QUOTE.valid_until + 1)]
    assert renewed(more, invoice=again, now=QUOTE.valid_until + 1, quote=fresh) is not None


def test_late_money_on_a_closed_offer_is_owed() -> None:
    assert renewed([paid("a", 5_000, at=LATER)], quote=None) is None
    assert renewed([], asked=True, quote=None) is None


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [paid("a", 3_000)],
        [paid("a", 329, at=LATER)],
        [paid("a", 5_000, at=LATER, presence=GONE)],
        [paid("a", 5_000, at=LATER, presence=MISSING)],
        [paid("a", 5_000, at=LATER, coinbase=True, confirmations=1)],
        [paid("a", 5_000), paid("b", 5_000, at=LATER)],
    ],
    ids=["nothing", "money in time", "dust", "double spent", "missing", "young coinbase", "covered already"],
)
def test_no_renewal_by_itself(outputs: list[ReceivedOutput]) -> None:
    assert renewed(outputs) is None


def test_the_buyer_may_renew_whatever_has_run_out() -> None:
    assert renewed([], asked=True) == replace(QUOTE, offered_at=LATER)
    assert renewed([paid("a", 3_000)], asked=True) == replace(QUOTE, offered_at=LATER)


def test_the_buyer_may_not_renew_what_is_open_covered_or_called_off() -> None:
    assert renewed([paid("a", 3_000)], asked=True, now=UNTIL) is None
    assert renewed([paid("a", 5_000)], asked=True) is None
    assert renewed([], asked=True, invoice=invoice_of(cancelled=True)) is None


def test_a_quote_that_has_run_out_is_refused() -> None:
    with pytest.raises(ValueError, match="ran out"):
        renewed([paid("a", 5_000, at=LATER)], quote=Term(Sat(6_000), LATER - 1))
