"""QR codes that pages draw themselves: module for module those of segno, mask and all, and so drawn."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
import segno
from segno import encoder

from tests.browser import NewVisitor
from tests.functional_pages_vectors import our_page
from tests.test_bitcache_client_link import OFFER_ID, OTHER, SECRET, SERVER

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Capacity in bytes of versions 1 to 20 at error correction M, from the table of the standard.
CAPACITIES = [14, 26, 42, 62, 84, 106, 122, 152, 180, 213, 251, 287, 331, 362, 412, 450, 504, 560, 624, 666]

MATRICES = """async (texts) => {
  const {qrMatrix} = await import('/static/qr.js');
  return texts.map((text) => qrMatrix(text).map((row) => row.join('')).join(' '));
}"""


@pytest.fixture(autouse=True)
def whole_codewords(monkeypatch: pytest.MonkeyPatch) -> None:
    """segno 1.6.6 pads by a whole codeword of zeros where the standard (7.4.10) pads by nothing.

    It harms no reader, but its codes are others than ours, which follow the standard.
    """

    def pad(buff: encoder.Buffer, version: int, length: int) -> None:
        buff.extend([0] * (-length % 8))

    monkeypatch.setattr(encoder, "write_padding_bits", pad)


def matrix_of(text: str) -> str:
    # As bytes: segno would choose Latin-1 where it can.
    code = segno.make(text.encode(), error="m", boost_error=False, mode="byte", micro=False)
    return " ".join("".join(map(str, row)) for row in code.matrix)


async def test_the_codes_are_those_of_segno(new_visitor: NewVisitor, tmp_path: Path) -> None:
    dice = random.Random(3)
    sizes = [0, 1, *(size + more for size in CAPACITIES[:-1] for more in (0, 1)), CAPACITIES[-1]]
    texts = ["".join(dice.choices(string.printable, k=size)) for size in sizes]
    texts += ["".join(dice.choices("aAzZ019-_.#/:", k=dice.randrange(90, 200))) for _ in range(40)]
    texts += [f"{SERVER}/d/{OFFER_ID}#1.{SECRET}", f"{SERVER}/r/{OFFER_ID}#1.{SECRET}.{OTHER}"]
    texts += ["é€\U0001f600" * 5, "0" * 300, "U" * 300, "\x00" * 100]
    # Codes whose best mask hangs on the weight of the balance between dark and light.
    texts += ["198", "237", "408", "624", "1899"]
    async with our_page(new_visitor, tmp_path) as page:
        found = await page.evaluate(MATRICES, texts)

    for text, got in zip(texts, found, strict=True):
        assert got == matrix_of(text), f"{len(text)} {text[:40]!r}"


DRAW = """async (text) => {
  const {qrCode} = await import('/static/qr.js');
  try {
    document.body.replaceChildren(qrCode(text));
  } catch (failure) {
    return failure.kind;
  }
  const svg = document.querySelector('svg');
  const path = svg.querySelector('path');
  const side = svg.viewBox.baseVal.width;
  const dark = (y, x) => Number(path.isPointInFill(new DOMPoint(x + 0.5, y + 0.5)));
  const along = Array.from({length: side}, (_, at) => at);
  const rows = along.map((y) => along.map((x) => dark(y, x)).join(''));
  return {rows, shape: [...svg.children].map((child) => `${child.localName} ${child.getAttribute('fill')}`)};
}"""


async def test_the_picture_shows_the_code_in_a_light_margin(new_visitor: NewVisitor, tmp_path: Path) -> None:
    text = f"{SERVER}/d/{OFFER_ID}#1.{SECRET}"
    async with our_page(new_visitor, tmp_path) as page:
        drawn = await page.evaluate(DRAW, text)
        too_long = await page.evaluate(DRAW, "x" * (CAPACITIES[-1] + 1))

    code = matrix_of(text).split(" ")
    blank = "0" * (len(code) + 8)
    assert drawn["rows"] == [*[blank] * 4, *(f"0000{row}0000" for row in code), *[blank] * 4]
    assert drawn["shape"] == ["rect #fff", "path #000"]
    assert too_long == "text-too-long"
