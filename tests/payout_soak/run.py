"""One story of a seed, played by Hypothesis: what fails is told with the blob that has it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.payout_soak.play import Outcome, play
from tests.payout_soak.steps import Story
from tests.payout_soak.story import DEPTHS, stories


class Wrong(AssertionError):
    """Something was not as it should be."""


@dataclass(frozen=True)
class Size:
    sellers: int
    buyers: int
    """And `steps`: beside those that every story has."""
    steps: int
    depths: tuple[int, ...] = DEPTHS


def story_of(number: int, size: Size) -> Story:
    """What `played` plays."""
    found: list[Story] = []
    _with_story(number, size, found.append)
    return found[0]


def played(number: int, size: Size, *, loud: bool, keep: Path | None = None) -> Outcome:
    """The story of this seed, gone well; its database in `keep`. Raises Wrong, or what stopped it."""
    outcomes: list[Outcome] = []

    def playing(told: Story) -> None:
        outcome = asyncio.run(play(told, loud=loud, keep=keep))
        if outcome.wrong:
            raise Wrong("\n".join(outcome.wrong))
        outcomes.append(outcome)

    _with_story(number, size, playing)
    return outcomes[0]


def _with_story(number: int, size: Size, do: Callable[[Story], None]) -> None:
    @seed(number)
    @settings(
        # The first one is empty; a story is long enough to find what there is, and too long to be shrunk.
        max_examples=2,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(stories(**asdict(size)))
    def of_seed(told: Story) -> None:
        if told.steps:
            do(told)

    of_seed()
