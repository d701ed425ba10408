"""A full block against a million watched scripts: time, and the memory of a process that does nothing else.

`python -m bench.block_scan SCRIPTS REPEATS` prints milliseconds and MiB as JSON. The reference,
python-bitcoinlib reading the same block and looking nothing up, runs after it in the same process.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.processes import resident_mib
from bench.report import PROJECT, Line
from payments.block import scan_block
from payments.watch_list import WatchList

TRANSACTIONS = 3_900
SCRIPTS = 1_000_000
REPEATS = 7
TIME_MS_MAX = 60
MEMORY_MIB_MAX = 250
OURS = b"\x00\x14" + b"our own script hash."
SIGNATURE_AND_KEY = b"\x02\x47" + bytes(71) + b"\x21" + bytes(33)


@dataclass(frozen=True)
class Scan:
    ours_ms: float
    theirs_ms: float
    memory_mib: float


def lines(*, scripts: int = SCRIPTS, repeats: int = REPEATS) -> list[Line]:
    words = [sys.executable, "-m", "bench.block_scan", str(scripts), str(repeats)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True)
    scan = Scan(**json.loads(done.stdout))
    what = f"block of {TRANSACTIONS:,} transactions against {scripts:,} scripts"
    return [
        Line(
            f"{what}, time",
            f"{scan.ours_ms:.0f} ms",
            f"{scan.theirs_ms:.0f} ms (python-bitcoinlib, reading only)",
            f"{scan.ours_ms / scan.theirs_ms:.2f}",
            f"<= {TIME_MS_MAX} ms",
            scan.ours_ms <= TIME_MS_MAX,
        ),
        Line(
            f"{what}, memory of the process",
            f"{scan.memory_mib:.0f} MiB",
            budget=f"<= {MEMORY_MIB_MAX} MiB",
            kept=scan.memory_mib <= MEMORY_MIB_MAX,
        ),
    ]


def block(source: random.Random) -> bytes:
    """Serialised, of a busy day's shape and size: 1.6 MB, one transaction pays OURS."""
    transactions = [_coinbase()]
    for number in range(1, TRANSACTIONS):
        transactions.append(_transaction(source, pays_us=number == TRANSACTIONS // 2))
    return bytes(80) + _count(len(transactions)) + b"".join(transactions)


def _coinbase() -> bytes:
    spent = bytes(32) + b"\xff" * 4 + b"\x04" + bytes(4) + bytes(4)
    return struct.pack("<i", 2) + b"\x01" + spent + b"\x01" + bytes(8) + b"\x01\x51" + bytes(4)


def _transaction(source: random.Random, *, pays_us: bool) -> bytes:
    inputs = source.choice((1, 1, 1, 2, 2, 5))
    outputs = [_script(source) for _ in range(source.choice((1, 2, 2, 2, 3, 6)))]
    if pays_us:
        outputs[0] = OURS
    spent = b"".join(source.randbytes(36) + b"\x00" + b"\xff" * 4 for _ in range(inputs))
    paid = b"".join(struct.pack("<q", 100_000) + _count(len(script)) + script for script in outputs)
    return b"".join(
        (
            struct.pack("<i", 2),
            b"\x00\x01",
            _count(inputs),
            spent,
            _count(len(outputs)),
            paid,
            SIGNATURE_AND_KEY * inputs,
            bytes(4),
        )
    )


def _script(source: random.Random) -> bytes:
    if source.random() < 0.3:
        return b"\x51\x20" + source.randbytes(32)
    return b"\x00\x14" + source.randbytes(20)


def _count(number: int) -> bytes:
    return bytes([number]) if number < 0xFD else b"\xfd" + struct.pack("<H", number)


def measure(scripts: int, repeats: int) -> Scan:
    source = random.Random(1)
    watch_list = WatchList()
    for number in range(scripts):
        watch_list.scripts[b"\x00\x14" + source.randbytes(20)] = f"{number:026}"
    watch_list.scripts[OURS] = "ours"
    raw = block(source)

    def ours() -> int:
        found = scan_block(raw, watched_scripts=watch_list.scripts, watched_outpoints=watch_list.outpoints)
        return len(found.transactions)

    took_s = _median_s(ours, 1, repeats)
    memory_mib = resident_mib(os.getpid())
    from bitcoin.core import CBlock  # not before: its own memory is none of ours

    reference_s = _median_s(lambda: len(CBlock.deserialize(raw).vtx), TRANSACTIONS, repeats)
    return Scan(took_s * 1000, reference_s * 1000, memory_mib)


def _median_s(what: Callable[[], int], expected: int, repeats: int) -> float:
    """Seconds, the median of some."""
    took: list[float] = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        assert what() == expected
        took.append(time.perf_counter() - started_at)
    return sorted(took)[len(took) // 2]


def main() -> None:
    found: dict[str, Any] = asdict(measure(int(sys.argv[1]), int(sys.argv[2])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
