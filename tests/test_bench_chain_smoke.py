"""The benchmarks of how money is seen and of how costs grow run, in a form of a few seconds."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ElementTree

from bitcoin.core import CBlock

from bench import block_scan, chain, growth
from bench.plot import Series, svg
from payments.block import parse_block
from regtest.install import BitcoindInstallation


async def test_latencies_a_block_a_mempool_and_invoices(bitcoind: BitcoindInstallation) -> None:
    measured = await chain.lines(tiny=True)
    told = " ".join(line.what for line in measured)
    for what in ("broadcast to", "the key", "3,900 transactions", "2,000 mempool", "SQLite"):
        assert what in told
    assert all(line.measured for line in measured)


async def test_growth(bitcoind: BitcoindInstallation) -> None:
    measured = await growth.lines(tiny=True)
    assert len(measured) == 9
    assert measured[0].what == "start to ready, with 300 invoices"


def test_the_block_that_is_scanned_is_one_for_others_too() -> None:
    raw = block_scan.block(random.Random(1))
    theirs = CBlock.deserialize(raw)
    assert len(theirs.vtx) == parse_block(raw).transaction_count == block_scan.TRANSACTIONS
    paid = [out for tx in theirs.vtx for out in tx.vout if bytes(out.scriptPubKey) == block_scan.OURS]
    assert len(paid) == 1


def test_a_plot_is_well_formed_and_always_the_same() -> None:
    lines = [Series("one", (1.0, 2.0, 4.0)), Series("two", (0.5, 0.5, 0.5)), Series("three", (1.0, 3.0, 4.1))]
    drawn = svg("A title", "ms", (10, 100, 1_000), lines)
    root = ElementTree.fromstring(drawn)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"one", "two", "three", "1,000", "0.1 ms", "10 ms"} <= set(words)
    heights = sorted(
        float(element.attrib["y"])
        for element in root.iter("{http://www.w3.org/2000/svg}text")
        if element.text in ("one", "two", "three")
    )
    assert min(below - above for above, below in itertools.pairwise(heights)) >= 14
    assert drawn == svg("A title", "ms", (10, 100, 1_000), lines)
