"""Play a story: ten sellers, a hundred buyers, the operator's admins, and what goes wrong; then the books.

    outcome = await play(story, loud=True)

At its end everything is quiet: faults are over, what was spent is explained, every payout that can be paid is
paid and deep. Then the checks look at the database's rows and at the blocks, by no code of ours.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from payments import ledger
from payments.payout import BatchState, Payout, State
from tests.payout_soak import checks, people
from tests.payout_soak.evidence import Evidence, gather
from tests.payout_soak.game import Game
from tests.payout_soak.house import House, open_house
from tests.payout_soak.office import Office
from tests.payout_soak.steps import Signer, Story

REST_SAT = 2_000_000
"""The operator puts so much in at the end, so that no payout waits for a coin."""
ROUNDS_MAX = 12
DAY_S = 86_400
CERTAIN_DEPTH = 8


@dataclass
class Outcome:
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    evidence: Evidence | None = None


async def play(told: Story, *, loud: bool, keep: Path | None = None) -> Outcome:
    async with AsyncExitStack() as opened:
        house = await opened.enter_async_context(open_house(buyers=told.buyers, depth=told.depth, loud=loud))
        session = await opened.enter_async_context(house.admins[0].session())
        sellers = [await people.open_seller(house, number, session) for number in range(told.sellers)]
        game = Game(house, sellers, session)
        for number, step in enumerate(told.steps):
            await game.turn(number, step)
        await come_to_rest(game)
        evidence = await gather(house, game.front.asked.values(), game.buyers, game.sellers, game.foreign)
        for line in checks.everything(house.server.database_file, evidence):
            house.blame(line)
        for line in filter(_is_bug, house.server.log().splitlines()):
            house.blame(f"the server: {line}")
        game.counts.update(checks.counted(house.server.database_file))
        game.counts["server deaths"] = house.kills
        game.counts["admin deaths"] = game.office.deaths
        game.counts["refusals"] = game.office.refused + game.front.refused
        if keep is not None:
            _copy(house.server.database_file, keep)
        return Outcome(house.wrong, game.counts, evidence)


def _copy(database: Path, to: Path) -> None:
    """Whole, though what was written last is in another file yet."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)


def _is_bug(line: str) -> bool:
    """Of the server's log. That it misses what was spent behind its back it tells as an error, too."""
    return " ERROR " in line and "ledger and wallet differ" not in line


async def come_to_rest(game: Game) -> None:
    """No fault any more: what can be paid is paid, and everything is deep."""
    house, office = game.house, game.office
    house.say("the faults are over: everything comes to rest")
    await house.calm()
    for seller in game.sellers:
        # A plan would make one more payout while the last ones are looked at.
        await game.front.plan(seller, None)
    await game.serve_waiting()
    await game.deposit(REST_SAT)
    await _mine(house)
    for _ in range(ROUNDS_MAX):
        for txid, _ in await office.unexplained():
            await office.explain(txid, ledger.operator())
        for payout in await office.payouts(State.REQUESTED):
            await office.decide(payout, approves=True, by="operator", contradicted=False)
        house.server.advance(2 * DAY_S)
        await house.tell_time()
        await office.build(1, twice=False)
        for batch in await office.batches(BatchState.BUILT):
            if batch.mined is None:
                said = await office.sign(batch, Signer.WALLET, twice=False)
                house.say(f"      batch {batch.id}: {said}")
        await _mine(house)
        if not await office.payouts(State.BATCHED) and not await _ready(office):
            break
    for payout in await office.payouts(State.APPROVED):
        # The chain took back what it was to be paid from.
        if await office.balance_sat(payout.account) >= 0:
            house.blame(f"{payout.kind} {payout.id} of {payout.amount_sat:,} sat waits: {payout.trouble}")
        await office.decide(payout, approves=False, by="operator", contradicted=False)
    house.say(f"reconcile: {await office.reconcile()}")
    if unexplained := await office.unexplained():
        house.blame(f"not explained at the end: {unexplained}")
    for batch in await office.batches(BatchState.BUILT):
        house.blame(f"batch {batch.id} is neither sent nor dead: {batch}")


async def _ready(office: Office) -> list[Payout]:
    return [
        payout
        for payout in await office.payouts(State.APPROVED)
        if await office.balance_sat(payout.account) >= 0
    ]


async def _mine(house: House) -> None:
    await house.world.mine(CERTAIN_DEPTH)
    await house.settled()
