"""What the benchmarks of the chain and of growth are made of: a block, and a plot."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ElementTree

from bitcoin.core import CBlock

from bench import block_scan
from bench.plot import Series, svg
from payments.block import parse_block


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
