"""A parcel of several files is saved as one archive that other programs read.

The buyer's browser makes it as it downloads (static/zip.js). Here Python's zipfile takes it apart again, and
Info-ZIP's unzip where it is installed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.browser import NewVisitor
from tests.client_shop import open_shop
from tests.functional_pages_download import ANY_PAGE, SIZES, Sale, save

pytestmark = pytest.mark.asyncio(loop_scope="session")

ZIP64_END = b"PK\x06\x06"
GIB = 1 << 30
FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""Of DOS. Files may be older."""
# Archives small enough to hand over as text. `limits` make ZIP64 fields of sizes that need none.
MAKE = """async ([contents, limits]) => {
  const { planZip, zipPieces } = await import('/static/zip.js');
  const octets = Object.values(contents).map((text) => new TextEncoder().encode(text));
  const sized = (path, at) => ({path, sizeBytes: octets[at].length, modifiedAt: 0});
  const files = Object.keys(contents).map(sized);
  const plan = planZip(files, limits);
  const pieces = [];
  const open = async function* (place) {
    yield octets[place].subarray(0, 5);
    yield octets[place].subarray(5);
  };
  for await (const piece of zipPieces(plan, open)) pieces.push(piece);
  const whole = new Uint8Array(await new Blob(pieces).arrayBuffer());
  return [btoa(String.fromCharCode(...whole)), plan.lengthBytes];
}"""
PLAN = "async (files) => (await import('/static/zip.js')).planZip(files)"
CHECKSUM = """async (cuts) => {
  const { crc32 } = await import('/static/zip.js');
  const octets = Uint8Array.from({length: 1000}, (_, at) => at % 251);
  return cuts.map((cut) => crc32(octets.subarray(cut), crc32(octets.subarray(0, cut))));
}"""


async def test_a_folder_is_saved_as_an_archive(new_visitor: NewVisitor, tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        source = shop.files(sizes={**SIZES, **{f"many/{n}.txt": n for n in range(12)}})
        bought = await Sale(shop, await shop.sell(source), source).purchase()
        page = await bought.page(new_visitor)
        await page.evaluate("job.zipName = 'Fünf / ü.zip'")
        name, content = await save(page, None)
        heard = await page.evaluate("heard")
    assert name == "Fünf _ ü.zip"
    assert heard["bytes"] == heard["totalBytes"] == len(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            path = tmp_path / entry.filename
            assert archive.read(entry) == path.read_bytes()
            modified = time.localtime(path.stat().st_mtime)
            # Two seconds are the finest step.
            assert entry.date_time == (*modified[:5], modified.tm_sec // 2 * 2)
            assert entry.external_attr >> 16 == 0o100644
        files = {path.relative_to(tmp_path).as_posix() for path in source.rglob("*") if path.is_file()}
        assert set(archive.namelist()) == files
    await check_with_unzip(content, tmp_path)


async def test_zip64_fields_are_there_where_they_must_be(new_visitor: NewVisitor, tmp_path: Path) -> None:
    contents = {"a.txt": "a" * 100, "ü/empty": "", "b.txt": "b" * 39}
    async with open_shop(tmp_path) as shop:
        page = await (await new_visitor()).goto(f"{shop.server.url}{ANY_PAGE}")
        assert (
            await page.evaluate(CHECKSUM, [0, 1, 7, 8, 500, 999, 1000])
            == [zlib.crc32(bytes(n % 251 for n in range(1000)))] * 7
        )
        for limits, has_zip64 in (
            ({}, False),
            ({"zip64From": 1000}, False),
            # The first file's size, and the place of those behind it.
            ({"zip64From": 100}, True),
            ({"zip64From": 0}, True),
            ({"manyFrom": 3}, True),
        ):
            text, length_bytes = await page.evaluate(MAKE, [contents, limits])
            content = base64.b64decode(text)
            assert len(content) == length_bytes
            assert (ZIP64_END in content) == has_zip64
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                assert {entry.date_time for entry in archive.infolist()} == {FIRST_DAY}
                assert {name: archive.read(name).decode() for name in archive.namelist()} == contents
            await check_with_unzip(content, tmp_path)

        sizes = {"big": 5 * GIB, "after it": 10}
        files = [{"path": path, "sizeBytes": size, "modifiedAt": 0} for path, size in sizes.items()]
        plan = await page.evaluate(PLAN, files)
        # Headers of 30 bytes and 20 more for sizes of 8 bytes, descriptors of 24 and 16.
        second_at = 30 + 3 + 20 + 5 * GIB + 24
        central_at = second_at + 30 + 8 + 10 + 16
        assert [entry["at"] for entry in plan["entries"]] == [0, second_at]
        assert [entry["big"] for entry in plan["entries"]] == [
            {"size": True, "place": False},
            {"size": False, "place": True},
        ]
        assert (plan["big"], plan["centralAt"]) == (True, central_at)
        central_bytes = 46 + 3 + (4 + 16) + 46 + 8 + (4 + 8)
        assert plan["lengthBytes"] == central_at + central_bytes + 56 + 20 + 22


async def check_with_unzip(content: bytes, folder: Path) -> None:
    """Info-ZIP, where it is there: it looks at what stands before and after each file, too."""
    unzip = shutil.which("unzip")
    if unzip is None:
        return
    path = folder / "archive.zip"
    path.write_bytes(content)
    process = await asyncio.create_subprocess_exec(
        unzip, "-tq", path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
