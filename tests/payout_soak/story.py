"""Stories for a soak, drawn by Hypothesis: a pure function of its choices."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.payout_soak.steps import (
    REORG_DEPTH_MAX,
    Abandons,
    AdminDies,
    Altered,
    AsksPayout,
    Bad,
    Builds,
    Bumps,
    Buys,
    Cancels,
    ClaimsRefund,
    ClockMoves,
    Decides,
    Deposits,
    Explains,
    Mines,
    NodeDown,
    Paying,
    PlansPayouts,
    Reconciles,
    Reorgs,
    ServerDies,
    Signer,
    Signs,
    SpendsForeign,
    Step,
    Story,
    Task,
    Withdraws,
)

DEPTHS = (3, REORG_DEPTH_MAX + 1)
"""Reorgs go deeper than the one, so that balances fall below zero; the other is safe from them."""
HOUR_S = 3_600
PRICE_RUNS_OUT_S = 50
"""More than a price is held, less than what passes for an outage of the server, which moves deadlines."""
NUMBERS = st.integers(0, 997)
"""Of a buyer, a payout, a batch: whom of those that are there."""

BUYS = st.builds(
    Buys,
    seller=NUMBERS,
    # The more ways lead to money in the wallet, the more there is to go wrong.
    paying=st.sampled_from([*Paying, *[Paying.EXACT] * 4, *[Paying.OVER] * 2, Paying.TOO_LITTLE]),
    waits=st.booleans(),
)
MINES = st.builds(Mines, blocks=st.integers(1, 4), full=st.sampled_from([True, True, True, False]))
REORGS = st.builds(
    Reorgs,
    depth=st.integers(1, REORG_DEPTH_MAX),
    keeps=st.booleans(),
    robs=st.integers(0, 3),
    leaves_payouts=st.booleans(),
)
ASKS = st.builds(
    AsksPayout,
    seller=NUMBERS,
    percent=st.sampled_from([25, 50, 100]),
    twice=st.booleans(),
    bad=st.sampled_from([*[None] * 12, *Bad]),
)
BUILDS = st.builds(Builds, feerate_sat_vb=st.integers(1, 12), twice=st.booleans())
SIGNS = st.builds(
    Signs,
    batch=NUMBERS,
    signer=st.sampled_from(Signer),
    altered=st.sampled_from([*[None] * 12, *Altered]),
    twice=st.booleans(),
)
CLAIMS = st.builds(ClaimsRefund, buyer=NUMBERS, elsewhere=st.booleans())
DECIDES = st.builds(
    Decides,
    payout=NUMBERS,
    approves=st.sampled_from([True, True, False]),
    by_operator=st.booleans(),
    contradicted=st.booleans(),
)
MONEY: list[st.SearchStrategy[Step]] = [
    *[ASKS] * 6,
    st.builds(PlansPayouts, seller=NUMBERS, threshold_sat=st.sampled_from([10_000, 40_000, 90_000])),
    *[CLAIMS] * 5,
    *[DECIDES] * 3,
    st.builds(Cancels, payout=NUMBERS),
    st.builds(Withdraws, percent=st.sampled_from([30, 100])),
    st.builds(Deposits, amount_sat=st.integers(10_000, 200_000)),
]
BATCHES: list[st.SearchStrategy[Step]] = [
    *[BUILDS] * 5,
    *[SIGNS] * 7,
    st.builds(Bumps, batch=NUMBERS, more_sat_vb=st.integers(0, 9), twice=st.booleans()),
    st.builds(Abandons, batch=NUMBERS),
]
CHAIN: list[st.SearchStrategy[Step]] = [
    *[MINES] * 14,
    *[REORGS] * 3,
    st.builds(SpendsForeign, coin=NUMBERS, mined=st.booleans()),
    *[st.builds(Explains, whose=NUMBERS)] * 4,
    *[st.builds(Reconciles)] * 3,
]
FAULTS: list[st.SearchStrategy[Step]] = [
    st.builds(ClockMoves, seconds=st.sampled_from([PRICE_RUNS_OUT_S] * 3 + [700, HOUR_S, 25 * HOUR_S])),
    st.builds(ServerDies, moment=st.integers(0, 12)),
    st.builds(AdminDies, task=st.sampled_from(Task), moment=st.integers(1, 24)),
    st.builds(NodeDown, steps=st.integers(0, 4), crash=st.booleans()),
]
# `one_of` would count a strategy that stands there twice only once.
EVERY: list[st.SearchStrategy[Step]] = [*MONEY, *BATCHES, *CHAIN, *FAULTS]
ANY_STEP = st.sampled_from(EVERY).flatmap(lambda strategy: strategy)

# In every story, however short, and in this order among the drawn ones: money that is deep, a payout that is
# sent and taken out of the chain again, a refund, and each kind of death.
MUST: tuple[Step, ...] = (
    *(Buys(number, Paying.EXACT, waits=False) for number in range(3)),
    Buys(0, Paying.TOO_LITTLE, waits=False),
    Buys(1, Paying.OVER, waits=True),
    Mines(4, full=True),
    ClockMoves(PRICE_RUNS_OUT_S),
    ClaimsRefund(0, elsewhere=True),
    ClaimsRefund(1, elsewhere=False),
    AsksPayout(0, 50, twice=True, bad=None),
    AsksPayout(1, 100, twice=False, bad=None),
    AsksPayout(1, 100, twice=False, bad=Bad.ABOVE),
    ClockMoves(25 * HOUR_S),
    Decides(0, approves=True, by_operator=True, contradicted=False),
    Builds(3, twice=True),
    Signs(0, Signer.PSBT, Altered.AMOUNT, twice=False),
    Signs(0, Signer.WALLET, None, twice=True),
    ServerDies(2),
    Mines(1, full=True),
    Bumps(0, 3, twice=True),
    Reorgs(3, keeps=False, robs=1, leaves_payouts=True),
    Reconciles(),
    Bumps(0, 3, twice=False),
    Signs(0, Signer.PSBT, None, twice=False),
    AdminDies(Task.BUILD, 6),
    Mines(3, full=True),
    SpendsForeign(0, mined=True),
    Explains(0),
    NodeDown(1, crash=True),
)


@st.composite
def stories(
    draw: st.DrawFn, *, sellers: int, buyers: int, steps: int, depths: tuple[int, ...] = DEPTHS
) -> Story:
    """`steps` counts those beside the buyers' and those that must be."""
    if draw(st.integers(0, 255)) == 0:
        # What Hypothesis tries first is the simplest of all: it would be this step again and again.
        return Story(sellers, depths[0], ())
    drawn = draw(st.lists(ANY_STEP, min_size=steps, max_size=steps))
    bought = draw(st.lists(BUYS, min_size=buyers, max_size=buyers))
    # Spread evenly: the choices that Hypothesis makes are too many already to shuffle them as well.
    return Story(
        sellers, draw(st.sampled_from(depths)), tuple(_spread(MUST, _spread(tuple(bought), tuple(drawn))))
    )


def _spread(some: tuple[Step, ...], others: tuple[Step, ...]) -> tuple[Step, ...]:
    """Both evenly mixed, each in its order."""
    placed = [(place / len(steps), step) for steps in (some, others) for place, step in enumerate(steps)]
    return tuple(step for _, step in sorted(placed, key=lambda one: one[0]))
