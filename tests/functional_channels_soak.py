"""A short soak of channels (`make soak-channel` is the long one): deaths, a reorg, every ending, right books.

And its checks are worth something: whatever is altered in what a soak leaves, they name it.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

from msgspec import structs

from payments.channel import RETRIES_FREE
from regtest.install import BitcoindInstallation
from tests.channel_soak import checks
from tests.channel_soak.__main__ import size_of
from tests.channel_soak.evidence import Evidence
from tests.channel_soak.plan import EACH, LOST_SAT_MAX, Ending, Kill, PayerKill, Reorg, Size, plan_of
from tests.channel_soak.play import play

SEED = 3
SHORT = Size(
    payments=150,
    channels=len(EACH),
    small_files=20,
    chunks=3,
    server_kills=2,
    payer_kills=2,
    reorgs=1,
    close_kills=0,
    life_blocks=300,
    lease_lapses=False,
)

ONE_PAGE = "(SELECT rowid FROM channel_pages WHERE paid <> x'00' ORDER BY length(paid) LIMIT 1)"
ONE_CHANNEL = "(SELECT id FROM channels WHERE close_reason = 'operator' ORDER BY id LIMIT 1)"
TAMPERING = (
    (f"DELETE FROM channel_pages WHERE rowid = {ONE_PAGE}", "were served and not charged"),
    (f"DELETE FROM channel_pages WHERE rowid = {ONE_PAGE}", "were never bought"),
    (f"UPDATE channel_pages SET paid = x'ff' WHERE rowid = {ONE_PAGE}", "that nobody asked for"),
    ("UPDATE channels SET spent_msat = spent_msat + 3300", "msat are spent"),
    ("UPDATE channels SET spent_msat = 0", "msat spent, "),
    ("UPDATE channels SET accepted_sat = accepted_sat - 1", "were acknowledged"),
    ("UPDATE channels SET accepted_sat = accepted_sat + 1", "were signed"),
    ("UPDATE channels SET accepted_sat = 1", "sat accepted"),
    (f"UPDATE channels SET accepted_sat = accepted_sat + 1 WHERE id = {ONE_CHANNEL}", "sat came back"),
    ("UPDATE channel_sales SET units = units + 1", "its sales are"),
    ("UPDATE channels SET state = 'closing'", "ends as closing"),
    ("UPDATE channels SET close_reason = 'margin'", "ends as closed, margin"),
    (f"DELETE FROM channels WHERE id = {ONE_CHANNEL}", "is not in the database"),
    ("DELETE FROM transfers WHERE code = 'earned'", "msat, must be 0"),
    ("DELETE FROM transfers WHERE code = 'shortfall'", "operator has"),
    ("UPDATE balances SET amount_msat = amount_msat + 1 WHERE account = 'operator'", "operator is kept as"),
)


def test_a_seed_is_a_plan() -> None:
    size = size_of(5_000)
    plan = plan_of(1, size)
    assert plan == plan_of(1, size) != plan_of(2, size)
    assert set(plan.endings) == set(Ending)
    assert {type(fault) for fault in plan.faults} == {Kill, PayerKill, Reorg}
    assert sum(map(len, plan.tasks)) > 4_800
    for ending, tasks in zip(plan.endings, plan.tasks, strict=True):
        amounts = [task.cumulative_sat for task in tasks]
        assert amounts == sorted(amounts)
        assert ending is not Ending.LOST or amounts[-1] <= LOST_SAT_MAX
        asked = Counter(unit for task in tasks for unit in task.units)
        assert max(asked.values()) <= RETRIES_FREE


def test_a_short_soak(bitcoind: BitcoindInstallation, tmp_path: Path) -> None:
    """One test, since another worker would have to play it again."""
    kept = tmp_path / "kept.db"
    outcome = asyncio.run(play(SEED, SHORT, loud=True, keep=kept))
    assert outcome.wrong == []
    # One more while the refund becomes possible.
    assert outcome.counts["server deaths"] == SHORT.server_kills + 1
    assert outcome.counts["payer deaths"] == SHORT.payer_kills
    assert outcome.counts["reorgs"] == SHORT.reorgs
    assert outcome.counts["payments"] == SHORT.payments
    evidence = outcome.evidence
    assert evidence is not None
    assert checks.ended(kept, evidence) == []

    for number, (statement, named) in enumerate(TAMPERING):
        file = tmp_path / f"tampered-{number}.db"
        shutil.copy(kept, file)
        with closing(sqlite3.connect(file)) as rows, rows:
            changed = rows.execute(statement).rowcount
        assert changed > 0, f"the soak left nothing for: {statement}"
        found = checks.ended(file, evidence)
        assert any(named in line for line in found), (statement, found)
    for poorer, named in poorer_evidence(evidence):
        found = checks.ended(kept, poorer)
        assert any(named in line for line in found), (named, found)


def poorer_evidence(evidence: Evidence) -> list[tuple[Evidence, str]]:
    """What the outside node might have said, if a satoshi had gone astray."""
    assert evidence.wallet_sat is not None
    less = structs.replace(evidence, wallet_sat=evidence.wallet_sat - 1)
    told = evidence.told[-1]
    assert told.change_sat is not None
    robbed = structs.replace(told, change_sat=told.change_sat - 1)
    return [
        (less, "chain has"),
        (structs.replace(evidence, told=(*evidence.told[:-1], robbed)), "sat came back"),
    ]
