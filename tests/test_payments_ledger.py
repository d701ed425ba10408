"""The books: what stands in them follows from the chain now, and what was written is never rewritten."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments import ledger
from payments.errors import LedgerImbalance
from payments.invoice import ChainView, Fee, Invoice, Mode, OutPoint, Presence, ReceivedOutput, Term, standing
from payments.ledger import (
    Booking,
    Code,
    Leg,
    Transfer,
    balances,
    desired_bookings,
    desired_uninvoiced,
    reconcile,
)
from payments.money import Msat, Sat
from tests.payments_facts import (
    CHAIN,
    CREATED_AT,
    LAWS,
    TIP,
    UNTIL,
    invoice_of,
    invoices,
    paid,
    received,
    tips,
)

NOW = CREATED_AT + 600
OWED, DIRECT, SELLER = ledger.owed("inv"), ledger.direct("sel"), ledger.seller("sel")


def desired(
    outputs: tuple[ReceivedOutput, ...],
    invoice: Invoice | None = None,
    view: ChainView = CHAIN,
) -> tuple[Booking, ...]:
    invoice = invoice or invoice_of()
    found = standing(invoice, outputs, view, NOW)
    return desired_bookings(invoice, outputs, found, view)


def books_sat(outputs: tuple[ReceivedOutput, ...], invoice: Invoice | None = None) -> dict[str, int]:
    transfers = reconcile(desired(outputs, invoice), (), reference="inv", now=NOW)
    return {account: amount_msat // 1_000 for account, amount_msat in balances(transfers).items()}


A = paid("a", 3_000, confirmations=2)
B = paid("b", 2_000, confirmations=1)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ((), {}),
        ((paid("a", 5_000),), {}),
        ((paid("a", 5_000, presence=Presence.MISSING),), {}),
        ((paid("a", 5_000, presence=Presence.GONE),), {}),
        ((A,), {"chain": -3_000, OWED: 3_000}),
        ((A, paid("b", 2_000)), {"chain": -3_000, OWED: 3_000}),
        ((A, B), {"chain": -5_000, OWED: 0, DIRECT: 5_000}),
        ((A, B, paid("c", 700)), {"chain": -5_000, OWED: 0, DIRECT: 5_000}),
        ((A, B, paid("c", 999, confirmations=1)), {"chain": -5_999, OWED: 0, DIRECT: 5_999}),
        ((A, B, paid("c", 1_000, confirmations=1)), {"chain": -6_000, OWED: 1_000, DIRECT: 5_000}),
        ((paid("a", 1, confirmations=1),), {"chain": -1, OWED: 1}),
        ((paid("a", 5_000, confirmations=1, at=UNTIL + 1),), {"chain": -5_000, OWED: 5_000}),
        ((paid("a", 5_000, confirmations=99, coinbase=True),), {}),
        ((paid("a", 5_000, confirmations=100, coinbase=True),), {"chain": -5_000, OWED: 0, DIRECT: 5_000}),
        ((paid("a", 5_000, confirmations=1, at=CREATED_AT - 21_601),), {}),
        ((replace(A, height=TIP + 1),), {}),
    ],
    ids=[
        "nothing",
        "mempool",
        "missing",
        "double spent",
        "part",
        "part, the rest unconfirmed",
        "settled",
        "settled, an unconfirmed extra",
        "a tip",
        "a surplus",
        "dust is money",
        "late",
        "young coinbase",
        "coinbase of age",
        "older than the invoice",
        "above the tip we know",
    ],
)
def test_books(outputs: tuple[ReceivedOutput, ...], expected: dict[str, int]) -> None:
    assert books_sat(outputs) == expected


def test_the_price_is_taken_from_the_outputs_in_the_order_of_the_chain() -> None:
    extra = paid("0", 9_000, confirmations=1, at=NOW)
    prices = [(b.subject[0], b.amount_msat) for b in desired((extra, B, A)) if b.leg is Leg.PRICE]
    assert prices == [("a", 3_000_000), ("b", 2_000_000)]


def test_a_tolerated_shortfall_moves_what_came() -> None:
    short = (paid("a", 4_900, confirmations=1),)
    assert books_sat(short, invoice_of(tolerance_sat=100)) == {"chain": -4_900, OWED: 0, DIRECT: 4_900}


def test_confirming_money_is_not_earned_yet() -> None:
    assert books_sat((A, B), invoice_of(key_at=2)) == {"chain": -5_000, OWED: 5_000}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("refunded", [False, True])
def test_nothing_of_a_withdrawn_invoice_is_earned(mode: Mode, refunded: bool) -> None:
    revoked = replace(invoice_of(mode=mode), revoked=not refunded, refunded=refunded)
    assert books_sat((A, B), revoked) == {"chain": -5_000, OWED: 5_000}
    # What would have been a tip is owed like the rest.
    assert books_sat((A, B, paid("c", 999, confirmations=1)), revoked) == {"chain": -5_999, OWED: 5_999}


def test_revoking_reverses_what_was_earned_and_undoing_it_books_anew() -> None:
    books: list[Transfer] = []

    def step(*, revoked: bool, outputs: tuple[ReceivedOutput, ...] = (A, B)) -> list[str]:
        wanted = desired(outputs, replace(invoice_of(), revoked=revoked))
        new = reconcile(wanted, books, reference="inv", now=NOW)
        books.extend(new)
        return [transfer.id for transfer in new]

    assert step(revoked=False) == ["a:0/in/0", "b:0/in/0", "a:0/price/0", "b:0/price/0"]
    assert step(revoked=True) == ["b:0/price/1", "a:0/price/1"]
    assert step(revoked=True) == []
    assert balances(books) == {"chain": -5_000_000, OWED: 5_000_000, DIRECT: 0}
    # The chain goes on: what it takes back is not owed either.
    assert step(revoked=True, outputs=(A,)) == ["b:0/in/1"]
    assert step(revoked=True) == ["b:0/in/2"]
    assert step(revoked=False) == ["a:0/price/2", "b:0/price/2"]
    assert balances(books) == {"chain": -5_000_000, OWED: 0, DIRECT: 5_000_000}


def test_a_free_invoice_books_nothing() -> None:
    assert books_sat((), invoice_of(Term(Sat(0), UNTIL))) == {}


@pytest.mark.parametrize(
    ("fee", "kept_sat"),
    [
        (Fee(), 0),
        (Fee(sat=Sat(1)), 1),
        (Fee(ppm=50_000), 250),
        (Fee(ppm=50_000, sat=Sat(3_250)), 3_500),
        (Fee(ppm=199), 0),
        (Fee(ppm=200), 1),
        (Fee(sat=Sat(9_000)), 5_000),
        (Fee(ppm=1_000_000, sat=Sat(1)), 5_000),
    ],
    ids=[
        "none",
        "1 sat",
        "5 %",
        "5 % and more than one output",
        "rounded down",
        "exact",
        "above the price",
        "all",
    ],
)
def test_hosted_sales_pay_seller_and_operator(fee: Fee, kept_sat: int) -> None:
    found = books_sat((A, B), invoice_of(mode=Mode.HOSTED, fee=fee))
    assert (found["chain"], found[OWED]) == (-5_000, 0)
    assert found.get(SELLER, 0) == 5_000 - kept_sat
    assert found.get(ledger.operator(), 0) == kept_sat


def test_a_direct_sale_has_no_fee() -> None:
    with pytest.raises(ValueError, match="no fee"):
        invoice_of(fee=Fee(sat=Sat(1)))


def test_a_sellers_account_alone_tells_gross_and_fee() -> None:
    hosted = invoice_of(mode=Mode.HOSTED, fee=Fee(ppm=100_000))
    moves = [
        (b.leg, b.debit, b.credit, b.amount_msat) for b in desired((A, B), hosted) if b.leg is not Leg.IN
    ]
    assert moves == [
        (Leg.SELLER, OWED, SELLER, 3_000_000),
        (Leg.OPERATOR, SELLER, "operator", 500_000),
        (Leg.SELLER, OWED, SELLER, 2_000_000),
    ]


def test_a_reorg_and_back_writes_new_transfers() -> None:
    books: list[Transfer] = []

    def step(outputs: tuple[ReceivedOutput, ...]) -> list[str]:
        new = reconcile(desired(outputs), books, reference="inv", now=NOW)
        books.extend(new)
        return [transfer.id for transfer in new]

    mined, unmined = (paid("a", 5_000, confirmations=1),), (paid("a", 5_000, reorged=True),)
    assert step(mined) == ["a:0/in/0", "a:0/price/0"]
    assert step(mined) == []
    assert step(unmined) == ["a:0/price/1", "a:0/in/1"]
    assert [t.code for t in books[2:]] == [Code.SETTLED_REVERSED, Code.RECEIVED_REVERSED]
    assert balances(books) == {"chain": 0, OWED: 0, DIRECT: 0}
    assert step(mined) == ["a:0/in/2", "a:0/price/2"]
    assert balances(books) == {"chain": -5_000_000, OWED: 0, DIRECT: 5_000_000}


def test_a_changed_share_is_reversed_and_booked_anew() -> None:
    tipped = (paid("a", 5_500, confirmations=1),)
    books = reconcile(desired(tipped), (), reference="inv", now=NOW)
    new = reconcile(desired((*tipped, paid("b", 600, confirmations=1))), books, reference="inv", now=NOW + 1)
    assert [(t.id, t.amount_msat) for t in new] == [
        ("a:0/price/1", 5_500_000),
        ("b:0/in/0", 600_000),
        ("a:0/price/2", 5_000_000),
    ]
    assert balances((*books, *new)) == {"chain": -6_100_000, OWED: 1_100_000, DIRECT: 5_000_000}
    assert all((t.reference, t.created_at) == ("inv", NOW + 1) for t in new)


def test_other_transfers_are_left_alone() -> None:
    payout = Transfer("payout/7", SELLER, "chain", Msat(1_000), Code.SETTLED, "p", NOW)
    assert reconcile((), [payout], reference="inv", now=NOW) == ()


BOOKED = reconcile(desired((A, B)), (), reference="inv", now=NOW)
REVERSED = reconcile((), BOOKED, reference="inv", now=NOW)


@pytest.mark.parametrize(
    "books",
    [
        REVERSED,
        [replace(BOOKED[0], id="a:0/in/1")],
        [*BOOKED, replace(BOOKED[0], amount_msat=Msat(1))],
        [*BOOKED, *(replace(t, amount_msat=Msat(t.amount_msat + 1)) for t in REVERSED)],
        [*BOOKED, *(replace(t, debit=t.credit, credit=t.debit) for t in REVERSED)],
    ],
    ids=["reversals alone", "starts at one", "two of one id", "another amount reversed", "booked twice"],
)
def test_books_that_contradict_themselves_stop_everything(books: list[Transfer]) -> None:
    with pytest.raises(LedgerImbalance):
        reconcile(desired((A, B)), books, reference="inv", now=NOW)


def test_one_place_is_booked_once() -> None:
    wanted = desired((A, B))
    with pytest.raises(LedgerImbalance):
        reconcile((*wanted, wanted[0]), (), reference="inv", now=NOW)


# Laws.

invoices_of_any_mode = st.sampled_from(Mode).flatmap(lambda mode: invoices(mode))


@st.composite
def histories(draw: st.DrawFn) -> tuple[Invoice, list[tuple[tuple[ReceivedOutput, ...], ChainView]]]:
    """One invoice and what the chain said of it, time and again: blocks come, go and come back."""
    amounts: dict[OutPoint, Sat] = {}
    seen = []
    for _ in range(draw(st.integers(1, 3))):
        # An outpoint's amount is part of its txid: it is the same whenever it is seen.
        outputs = tuple(
            replace(output, amount_sat=amounts.setdefault(output.outpoint, output.amount_sat))
            for output in draw(received())
        )
        seen.append((outputs, ChainView(draw(tips))))
    return draw(invoices_of_any_mode), draw(st.lists(st.sampled_from(seen), min_size=1, max_size=6))


def in_active_chain(output: ReceivedOutput, view: ChainView, invoice: Invoice) -> bool:
    if output.height is None or output.first_seen_at + 21_600 < invoice.created_at:
        return False
    return view.tip_height - output.height + 1 >= (100 if output.coinbase else 1)


@LAWS
@given(histories(), st.data())
def test_the_books_follow_the_chain(
    history: tuple[Invoice, list[tuple[tuple[ReceivedOutput, ...], ChainView]]],
    data: st.DataObject,
) -> None:
    invoice, chain_says = history
    books: list[Transfer] = []
    for step, (outputs, view) in enumerate(chain_says):
        invoice = replace(invoice, revoked=data.draw(st.booleans()), refunded=data.draw(st.booleans()))
        wanted = desired(outputs, invoice, view)
        mixed = data.draw(st.permutations(books))
        new = reconcile(data.draw(st.permutations(wanted)), mixed, reference="inv", now=NOW + step)
        # A retry, later and with the rows in another order, makes the same transfers.
        again = reconcile(wanted, books, reference="inv", now=NOW + step + 99)
        assert [t.id for t in again] == [t.id for t in new]
        owed_msat = balances(books).get(OWED, 0)
        for transfer in new:
            assert transfer.amount_msat > 0
            owed_msat += transfer.amount_msat * ((transfer.credit == OWED) - (transfer.debit == OWED))
            assert owed_msat >= 0
        books.extend(new)
        assert reconcile(wanted, books, reference="inv", now=NOW) == ()
        assert len({t.id for t in books}) == len(books)

        found = balances(books)
        assert sum(found.values()) == 0
        fresh = balances(reconcile(wanted, (), reference="inv", now=NOW))
        assert {k: v for k, v in found.items() if v} == {k: v for k, v in fresh.items() if v}
        here = {str(o.outpoint): o.amount_sat * 1_000 for o in outputs if in_active_chain(o, view, invoice)}
        stands: dict[str, list[int]] = {}
        for transfer in books:
            outpoint, leg, _ = transfer.id.split("/")
            if leg == "in":
                signed = 1 if transfer.code is Code.RECEIVED else -1
                stands.setdefault(outpoint, []).append(signed)
        assert {outpoint for outpoint, signs in stands.items() if sum(signs)} == set(here)
        assert all(sum(signs) in (0, 1) for signs in stands.values())
        assert -found.get("chain", 0) == sum(here.values())
        if invoice.withdrawn:
            assert found.get(OWED, 0) == sum(here.values())


@LAWS
@given(st.lists(st.tuples(received(), tips), min_size=1, max_size=6))
def test_unassigned_money_follows_the_chain(chain_says: list[tuple[tuple[ReceivedOutput, ...], int]]) -> None:
    """Whatever its age and size: nobody knows the invoice it was for."""
    account = ledger.unassigned("wallet")
    books: list[Transfer] = []
    for step, (outputs, tip_height) in enumerate(chain_says):
        view = ChainView(tip_height)
        wanted = desired_uninvoiced(account, outputs, view)
        books.extend(reconcile(wanted, books, reference=account, now=NOW + step))
        assert reconcile(wanted, books, reference=account, now=NOW + step) == ()
        ageless = replace(invoice_of(), created_at=0)
        here_sat = sum(o.amount_sat for o in outputs if in_active_chain(o, view, ageless))
        found = balances(books)
        assert (found.get(account, 0), found.get("chain", 0)) == (here_sat * 1_000, -here_sat * 1_000)
        signs: dict[str, int] = {}
        for transfer in books:
            outpoint = transfer.id.split("/")[0]
            signs[outpoint] = signs.get(outpoint, 0) + (1 if transfer.code is Code.RECEIVED else -1)
        assert set(signs.values()) <= {0, 1}


@LAWS
@given(received(), tips, invoices())
def test_what_is_earned_is_the_price_and_at_most_a_tip(
    outputs: tuple[ReceivedOutput, ...], tip_height: int, invoice: Invoice
) -> None:
    view = ChainView(tip_height)
    found = standing(invoice, outputs, view, NOW)
    bookings = desired(outputs, invoice, view)
    into_sat = sum(b.amount_msat for b in bookings if b.leg is Leg.IN) // 1_000
    earned_sat = sum(b.amount_msat for b in bookings if b.leg is Leg.PRICE) // 1_000
    if found.status != "settled":
        assert earned_sat == 0
    elif into_sat - found.price_sat > 999:
        assert earned_sat == found.price_sat
    else:
        assert earned_sat == into_sat
    by_outpoint: dict[str, int] = {}
    for booking in bookings:
        sign = 1 if booking.leg is Leg.IN else -1
        by_outpoint[booking.subject] = by_outpoint.get(booking.subject, 0) + sign * booking.amount_msat
    assert all(left_msat >= 0 for left_msat in by_outpoint.values())
