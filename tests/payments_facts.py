"""Invoices, outputs and chains for the tests of the pure money code: made by hand, and made at random.

By hand: an invoice of 5,000 sat, created at 10,000, its price good until 13,600, with the tip at block 1,000.
"""

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from payments.invoice import (
    CLOCK_SKEW_S,
    NO_FEE,
    ChainView,
    Fee,
    Invoice,
    Mode,
    Outage,
    OutPoint,
    Policy,
    Presence,
    ReceivedOutput,
    Standing,
    Term,
    standing,
)
from payments.money import Sat

LAWS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
"""A law holds or not; how fast this machine checks it is no part of it."""

CREATED_AT = 10_000
UNTIL = 13_600
TIP = 1_000
PRICE_SAT = Sat(5_000)
CHAIN = ChainView(TIP)


def invoice_of(
    *terms: Term,
    key_at: int = 1,
    bytes_at: int = 1,
    tolerance_sat: int = 0,
    tolerance_ppm: int = 0,
    cancelled: bool = False,
    mode: Mode = Mode.DIRECT,
    fee: Fee = NO_FEE,
) -> Invoice:
    return Invoice(
        id="inv",
        reference="R-1",
        created_at=CREATED_AT,
        seller_id="sel",
        mode=mode,
        policy=Policy(bytes_at, key_at, Sat(tolerance_sat), tolerance_ppm),
        terms=terms or (Term(PRICE_SAT, UNTIL),),
        cancelled=cancelled,
        fee=fee,
    )


def paid(
    txid: str,
    amount_sat: int,
    *,
    at: int = CREATED_AT + 60,
    vout: int = 0,
    confirmations: int = 0,
    presence: Presence | None = None,
    coinbase: bool = False,
    reorged: bool = False,
    spends: str = "",
) -> ReceivedOutput:
    """An output in a block if it has confirmations, else in the mempool, else where `presence` says.

    `spends` names the outpoints its transaction spends, one letter each.
    """
    return ReceivedOutput(
        outpoint=OutPoint(txid, vout),
        amount_sat=Sat(amount_sat),
        first_seen_at=at,
        presence=presence or (Presence.BLOCK if confirmations else Presence.MEMPOOL),
        height=TIP - confirmations + 1 if confirmations else None,
        coinbase=coinbase,
        reorged=reorged,
        inputs=frozenset(OutPoint(letter, 0) for letter in spends or txid),
    )


amounts_sat = st.sampled_from([1, 329, 330, 331, 500, 999, 1_000, 2_500, 4_999, 5_000, 5_001, 6_000, 10_000])
times = st.sampled_from(
    [
        CREATED_AT - CLOCK_SKEW_S - 1,
        CREATED_AT - CLOCK_SKEW_S,
        CREATED_AT,
        UNTIL - 1,
        UNTIL,
        UNTIL + 1,
        UNTIL + 500,
        UNTIL + 2_000,
    ]
)
tips = st.integers(TIP - 9, TIP) | st.integers(TIP + 90, TIP + 110)
policies = st.builds(
    Policy,
    bytes_at=st.integers(0, 3),
    key_at=st.integers(0, 6),
    tolerance_sat=st.sampled_from([Sat(0), Sat(1), Sat(700)]),
    tolerance_ppm=st.sampled_from([0, 100, 100_000]),
)
terms = st.builds(
    Term,
    amount_sat=st.sampled_from([PRICE_SAT, Sat(1_000), Sat(4_000), Sat(9_000), Sat(15_000), Sat(0)]),
    valid_until=st.sampled_from([UNTIL, UNTIL + 1_000, UNTIL + 2_000]),
    offered_at=st.sampled_from([0, CREATED_AT + 100, UNTIL]),
)
outages = st.builds(
    lambda started_at, length_s: Outage(started_at, started_at + length_s),
    started_at=st.integers(CREATED_AT - 500, UNTIL + 1_000),
    length_s=st.sampled_from([0, 1, 300, 1_500]),
)
chains = st.builds(ChainView, tip_height=tips, outages=st.lists(outages, max_size=3).map(tuple))


@st.composite
def invoices(draw: st.DrawFn, mode: Mode = Mode.DIRECT, *, free: bool = True) -> Invoice:
    offered = draw(st.lists(terms.filter(lambda term: free or term.amount_sat > 0), min_size=1, max_size=3))
    fee = (
        Fee(draw(st.integers(0, 1_100_000)), Sat(draw(st.integers(0, 7_000))))
        if mode is Mode.HOSTED
        else NO_FEE
    )
    bare = invoice_of(*offered, cancelled=draw(st.booleans()), mode=mode, fee=fee)
    return replace(bare, policy=draw(policies))


@st.composite
def transactions(draw: st.DrawFn, txid: str, inputs: str = "stuv") -> tuple[ReceivedOutput, ...]:
    """The outputs of one transaction: they share all that is not their own."""
    presence = draw(st.sampled_from(Presence))
    in_block = presence is Presence.BLOCK
    first = ReceivedOutput(
        outpoint=OutPoint(txid, 0),
        amount_sat=Sat(draw(amounts_sat)),
        first_seen_at=draw(times),
        presence=presence,
        height=draw(st.integers(TIP - 8, TIP)) if in_block else None,
        coinbase=draw(st.sampled_from([False, False, False, True])),
        reorged=not in_block and draw(st.booleans()),
        inputs=frozenset(
            OutPoint(letter, 0) for letter in draw(st.sets(st.sampled_from(inputs), min_size=1, max_size=3))
        ),
    )
    if draw(st.booleans()):
        return (first,)
    return (first, replace(first, outpoint=OutPoint(txid, 1), amount_sat=Sat(draw(amounts_sat))))


@st.composite
def received(draw: st.DrawFn, inputs: str = "stuv") -> tuple[ReceivedOutput, ...]:
    """Outputs of up to six transactions that compete for a few inputs, possible on a real chain or not."""
    txids = "abcdef"[: draw(st.integers(0, 6))]
    return tuple(output for txid in txids for output in draw(transactions(txid, inputs)))


@dataclass(frozen=True)
class World:
    """All that a standing follows from."""

    invoice: Invoice
    outputs: tuple[ReceivedOutput, ...]
    chain: ChainView
    now: int

    def standing(self) -> Standing:
        return standing(self.invoice, self.outputs, self.chain, self.now)


worlds = st.builds(
    World,
    invoice=invoices(),
    outputs=received(),
    chain=chains,
    now=st.integers(CREATED_AT, UNTIL + 6_000),
)
