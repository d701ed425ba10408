"""`make soak-fuzz [CASES=12000] [SEED=n]`: everything that makes up requests and inputs, at length.

    1  12,000 requests from the OpenAPI document to a server without a node: files, free offers, content
    2  a fifth of that to one with a node: wallets, invoices, payments
    3  conversations on a plain socket; forms of the pages
    4  parsers, descriptors, blocks and transactions, by hypothesis

Prints what each saw. Ends with an error if anything broke a rule (`tests.fuzz.api`), or if the server's
memory grew by more than 20 MB between 5,000 and 10,000 cases.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.fuzz import pages, raw
from tests.fuzz.api import ApiFuzz, Findings, rows
from tests.fuzz.target import Target
from tests.fuzz.world import fuzz_with_node

CASES = 12_000
GROWTH_FROM, GROWTH_TO = 5_000, 10_000
GROWTH_BYTES_MAX = 20_000_000
EXAMPLES_PER_CASE = 6
"""One example of each parser for so many cases."""
TESTS = sorted(str(path) for path in Path(__file__).parents[1].glob("*fuzz_*.py") if "http" not in path.name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz everything, at length.")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}: make soak-fuzz CASES={chosen.cases} SEED={chosen.seed}", flush=True)
    troubles = _without_node(chosen.seed, chosen.cases)
    findings, more = fuzz_with_node(chosen.seed, chosen.cases // 5)
    troubles += _told("with a node", findings, more)
    if _parsers(chosen.seed, chosen.cases // EXAMPLES_PER_CASE):
        troubles.append("a parser failed")
    for trouble in troubles:
        print(f"\n=== {trouble}")
    print(f"\n{len(troubles)} kinds of trouble, seed {chosen.seed}" if troubles else "\nno trouble")
    return 1 if troubles else 0


def _without_node(seed: int, cases: int) -> list[str]:
    with Target() as target:
        fuzz = ApiFuzz(target, number=seed)
        troubles = _told("without a node", fuzz.run(cases), target.troubles())
        troubles += _growth(fuzz.findings)
    with Target() as target:
        print(f"\nconversations: {raw.run(target.port, seed, cases)}", flush=True)
        print(f"forms: {pages.run(target, seed, cases // 4)}", flush=True)
        troubles += target.troubles()
    return troubles


def _told(where: str, findings: Findings, log_troubles: list[str]) -> list[str]:
    print(f"\n{where}:", *rows(findings), sep="\n  ", flush=True)
    return [f"{kind}\n{said}" for kind, said in findings.failures.items()] + log_troubles


def _growth(findings: Findings) -> list[str]:
    """Memory between GROWTH_FROM and GROWTH_TO cases, beside that at GROWTH_FROM."""
    curve = {at: octets for at, octets in findings.rss_bytes.items() if GROWTH_FROM <= at <= GROWTH_TO}
    if GROWTH_FROM not in curve:
        return []
    grown = max(curve.values()) - curve[GROWTH_FROM]
    print(f"  RSS grew by {grown / 1e6:.1f} MB from case {GROWTH_FROM} to {max(curve)}")
    return [f"RSS grew by {grown} bytes"] if grown > GROWTH_BYTES_MAX else []


def _parsers(seed: int, examples: int) -> bool:
    """Whether one failed."""
    print(f"\nparsers, {examples} examples each:", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--hypothesis-seed={seed}", *TESTS]
    environment = {**os.environ, "FUZZ_EXAMPLES": str(examples)}
    return subprocess.run(command, env=environment, check=False).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
