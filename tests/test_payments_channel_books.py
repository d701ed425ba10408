"""What stands in the books for a channel, through closes, refunds, double spends and reorgs in any order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments import ledger
from payments.channel_books import Ended, Sold, desired_channel, desired_spending
from payments.ledger import Code, Leg, Transfer
from payments.money import Msat, Sat

CHANNEL = f"{'c' * 64}:1"
A, B = "a" * 64, "b" * 64
MINE, OWED = ledger.channel(CHANNEL), ledger.owed_of_channel(CHANNEL)
FEE_PPM = 100_000


@dataclass
class Books:
    """The whole ledger of one channel, kept as the follower keeps it."""

    spent: Counter[str] = field(default_factory=Counter)
    """Offer -> msat charged; the offer's seller has its name in capitals."""
    unbooked: Counter[str] = field(default_factory=Counter)
    bookings: Counter[str] = field(default_factory=Counter)
    charged: list[Transfer] = field(default_factory=list)
    settled: dict[str, list[Transfer]] = field(default_factory=dict)

    def charge(self, offer: str, msat: int) -> None:
        self.spent[offer] += msat
        self.unbooked[offer] += msat

    def book_spending(self) -> None:
        for offer, msat in self.unbooked.items():
            booking = desired_spending(CHANNEL, self._sold(offer), Msat(msat), k=self.bookings[offer])
            self.charged += ledger.reconcile([booking], [], reference=CHANNEL, now=0)
            self.bookings[offer] += 1
        self.unbooked.clear()

    def follow(self, ended: Ended | None) -> int:
        """How many transfers that was."""
        self.book_spending()
        booked = 0
        for reference, wanted in desired_channel(CHANNEL, map(self._sold, self.spent), ended).items():
            standing = self.settled.setdefault(reference, [])
            new = ledger.reconcile(wanted, standing, reference=reference, now=0)
            standing += new
            booked += len(new)
        return booked

    @property
    def transfers(self) -> list[Transfer]:
        return self.charged + [one for of_reference in self.settled.values() for one in of_reference]

    @property
    def balances(self) -> dict[str, int]:
        return {a: int(msat) for a, msat in ledger.balances(self.transfers).items() if msat}

    def _sold(self, offer: str) -> Sold:
        return Sold(offer, offer.upper(), FEE_PPM, Msat(self.spent[offer]))


def closed(txid: str = A, *, received_sat: int = 0, settled_sat: int = 0, deep: bool = True) -> Ended:
    return Ended(txid, Sat(received_sat), Sat(settled_sat), deep)


def lost(*, deep: bool = True) -> Ended:
    return Ended(None, Sat(0), Sat(0), deep)


def test_what_is_charged_waits_until_the_close_is_deep() -> None:
    books = Books()
    books.charge("x", 7_000_000)
    books.charge("y", 2_000_000)
    books.follow(None)
    pending = {ledger.pending("X"): 7_000_000, ledger.pending("Y"): 2_000_000}
    assert books.balances == {MINE: -9_000_000, **pending}
    books.follow(closed(received_sat=9_600, settled_sat=9_500, deep=False))
    assert books.balances == {"chain": -9_600_000, MINE: 600_000, **pending}
    books.follow(closed(received_sat=9_600, settled_sat=9_500))
    assert books.balances == {
        "chain": -9_600_000,
        OWED: 500_000,
        ledger.seller("X"): 6_300_000,
        ledger.seller("Y"): 1_800_000,
        "operator": 900_000 + 100_000,
    }
    assert books.follow(closed(received_sat=9_600, settled_sat=9_500)) == 0


@pytest.mark.parametrize(
    ("received_sat", "settled_sat", "operator_msat", "owed_msat"),
    [
        (2_000, 2_000, 0, 0),
        (2_300, 2_000, 300_000, 0),
        (1_400, 2_000, -600_000, 0),
        (2_600, 2_500, 100_000, 500_000),
        (2_100, 2_500, -400_000, 500_000),
        (0, 2_000, -2_000_000, 0),
    ],
)
def test_surplus_and_shortfall_are_the_operators(
    received_sat: int, settled_sat: int, operator_msat: int, owed_msat: int
) -> None:
    books = Books()
    books.charge("x", 2_000_000)
    books.follow(closed(received_sat=received_sat, settled_sat=settled_sat))
    assert books.balances.get(MINE, 0) == 0
    assert books.balances.get("operator", 0) == operator_msat + 200_000  # its fee of the sale
    assert books.balances.get(OWED, 0) == owed_msat
    assert books.balances[ledger.seller("X")] == 1_800_000


@pytest.mark.parametrize(
    ("spent_msat", "owed_msat"), [(1_999_001, 0), (1_999_000, 1_000), (1_998_500, 1_500)]
)
def test_the_fraction_of_the_last_voucher_is_nobodys_loss(spent_msat: int, owed_msat: int) -> None:
    books = Books()
    books.charge("x", spent_msat)
    books.follow(closed(received_sat=2_000, settled_sat=2_000))
    assert books.balances.get(OWED, 0) == owed_msat
    assert books.balances.get(MINE, 0) == 0


def test_of_a_double_spent_deposit_the_operator_bears_exactly_what_was_charged() -> None:
    books = Books()
    books.charge("x", 300_000)
    books.follow(lost(deep=False))
    assert books.balances == {MINE: -300_000, ledger.pending("X"): 300_000}
    books.follow(lost())
    assert books.balances == {ledger.seller("X"): 270_000, "operator": -300_000 + 30_000}


def test_a_reorg_takes_all_back_but_what_was_charged() -> None:
    books = Books()
    books.charge("x", 5_000_000)
    books.follow(None)
    open_balances = books.balances
    books.follow(closed(received_sat=6_000, settled_sat=5_500))
    books.follow(None)
    assert books.balances == open_balances
    books.follow(closed(B, received_sat=5_100, settled_sat=5_000))
    assert books.balances["chain"] == -5_100_000
    received = [one for one in books.transfers if one.code is Code.RECEIVED]
    assert [one.id.partition(":")[0] for one in received] == [A, B]


def test_a_channel_that_sold_nothing_leaves_no_trace() -> None:
    books = Books()
    for ended in (None, closed(), lost()):
        books.follow(ended)
    assert books.transfers == []
    books.follow(closed(received_sat=700, settled_sat=700))
    assert books.balances == {"chain": -700_000, OWED: 700_000}


def test_no_booking_where_the_fee_rounds_to_nothing() -> None:
    books = Books()
    books.charge("x", 9)
    books.follow(lost())
    assert books.balances == {ledger.seller("X"): 9, "operator": -9}


msat = st.integers(1, 10**9)
endings = st.one_of(
    st.none(),
    st.builds(lost, deep=st.booleans()),
    st.builds(
        closed,
        st.sampled_from((A, B)),
        received_sat=st.integers(0, 2_000_000),
        settled_sat=st.integers(0, 2_000_000),
        deep=st.booleans(),
    ),
)
steps = st.lists(st.one_of(endings, st.tuples(st.sampled_from("xyz"), msat)), max_size=12)


@given(steps)
def test_whatever_happens_everything_sums_to_zero(history: list[Ended | tuple[str, int] | None]) -> None:
    books = Books()
    ended: Ended | None = None
    for step in history:
        if isinstance(step, tuple):
            books.charge(*step)
        else:
            ended = step
        books.follow(ended)
        balances = books.balances
        assert sum(balances.values()) == 0
        stands = Counter[tuple[str, str]]()
        for one in books.transfers:
            subject, leg, n = one.id.split("/")
            stands[subject, leg] += 1 if int(n) % 2 == 0 else -1
        assert set(stands.values()) <= {0, 1}
        ins = [(subject, leg) for (subject, leg), n in stands.items() if n and leg == Leg.IN]
        assert len(ins) <= 1
        spent_msat = sum(books.spent.values())
        sellers = {offer: ledger.seller(offer.upper()) for offer in books.spent}
        if ended is not None and ended.deep:
            assert MINE not in balances
            assert not any(account.startswith(ledger.pending("")) for account in balances)
            for offer, account in sellers.items():
                whole = books.spent[offer]
                assert balances.get(account, 0) == whole - whole * FEE_PPM // 1_000_000
        else:
            received_msat = 0 if ended is None else ended.received_sat * 1_000
            assert balances.get(MINE, 0) == received_msat - spent_msat
            assert not any(account in balances for account in sellers.values())
        # The payer is owed what was signed and not charged, never more, and never a debtor.
        signed_msat = 0 if ended is None or not ended.deep else ended.settled_sat * 1_000
        assert 0 <= balances.get(OWED, 0) <= max(0, signed_msat - spent_msat)
