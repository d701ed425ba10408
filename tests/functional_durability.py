"""What is acknowledged is on disk: the order of the calls that real processes make to the kernel.

Killing a process loses nothing that it wrote, a power cut loses all that was not synced. So the record of the
system calls is read: file, folder and commit are synced before the answer goes out, secrets before their use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from regtest.served import BITCACHE
from regtest.world import RegtestWorld
from tests.stand import open_stand
from tests.syscalls import (
    Call,
    Step,
    check_order,
    exchange,
    find,
    made_folder,
    read_trace,
    removed,
    renamed_to,
    sent,
    synced,
    traced,
    wrote,
)

COMMIT = (wrote(r"bitcache\.db-wal$"), synced(r"bitcache\.db-wal$"))
STATE_COMMIT = (
    wrote(r"/uploads/\w+\.db$"),
    synced(r"/uploads/\w+\.db$"),
    removed(r"/uploads/\w+\.db-journal$"),
    # Without it a power cut brings the journal back, which undoes what was committed.
    synced(r"/uploads$"),
)
RECEIPT = (
    wrote(r"/receipts/\.\w+\.json\.\d+$"),
    synced(r"/receipts/\.\w+\.json\.\d+$"),
    renamed_to(r"/receipts/\w+\.json$"),
    synced(r"/receipts$"),
)


@pytest.fixture
def goods(tmp_path: Path) -> Path:
    source = tmp_path / "goods"
    source.mkdir()
    (source / "file.bin").write_bytes(bytes(range(256)) * 5_000)
    return source


async def traced_command(record: Path, *words: str, environment: dict[str, str], folder: Path) -> str:
    """`bitcache` under strace; what it said on both ways."""
    process = await asyncio.create_subprocess_exec(
        *traced(record, [BITCACHE, *words]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        cwd=folder,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def before(calls: Sequence[Call], last: Call) -> list[Call]:
    return [call for call in calls if call.ended < last.began]


async def test_the_server_answers_when_it_is_on_disk(
    world: RegtestWorld, tmp_path: Path, goods: Path
) -> None:
    record = tmp_path / "trace"
    quiet = {"NODE_POLL_INTERVAL_S": "15"}
    async with open_stand(world, tmp_path, settings=quiet, program=traced(record, [BITCACHE])) as stand:
        link = await stand.sell(goods, price_sat=5_000)
        bought = await stand.buy(link)
        await stand.pay(bought)
        await world.mine()
        await stand.until(bought, "settled")
        status, claimed = await stand.claim(bought)
        assert status == 200
        await stand.server.stop()
    calls = read_trace(record)
    (file_id,) = (file["file_id"] for file in claimed["files"])
    shard, blob = rf"/blobs/{file_id[:2]}", rf"/blobs/{file_id[:2]}/{file_id}"

    part, answered = exchange(calls, f"PUT /api/v1/files/{file_id}/parts/0 ", 204)
    stored = (wrote(rf"{blob}\.uploading$"), synced(rf"{blob}\.uploading$"), synced(rf"{shard}$"))
    check_order(part, [*stored, *COMMIT])
    # The first blob of its folder, and the first of all.
    folders = (made_folder(r"/blobs$"), synced(r"/data$"), made_folder(rf"{shard}$"), synced(r"/blobs$"))
    check_order(before(calls, answered), [*folders, *stored])

    completed, _ = exchange(calls, f"POST /api/v1/files/{file_id}/complete ", 200)
    check_order(completed, [renamed_to(rf"{blob}$"), synced(rf"{shard}$"), *COMMIT])
    for request, status in (
        ("PATCH /api/v1/account ", 200),
        ("POST /api/v1/files ", 201),
        ("POST /api/v1/parcels ", 201),
        ("POST /api/v1/parcels/", 200),
        ("POST /api/v1/offers ", 201),
        (f"POST /api/v1/offers/{link.offer_id}/invoices ", 201),
    ):
        check_order(exchange(calls, request, status)[0], COMMIT)
    # Settling wrote what the claim gives, so that the claim itself had nothing to write.
    _, answered = exchange(calls, f"POST /api/v1/invoices/{bought.id}/claim ", 200)
    nothing_left_in_memory(before(calls, answered), COMMIT)


def nothing_left_in_memory(calls: Sequence[Call], commit: Sequence[Step]) -> None:
    """The last commit before was finished."""
    writes = [call for call in calls if commit[0][1](call)]
    check_order([call for call in calls if call.began >= writes[-1].began], commit)


async def test_the_client_keeps_its_secrets_before_it_uses_them(
    world: RegtestWorld, tmp_path: Path, goods: Path
) -> None:
    home, record = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    async with open_stand(world, tmp_path) as stand:
        environment = {
            **stand.server.environment(home),
            "BITCACHE_SERVER": stand.server.url,
            "BITCACHE_TOKEN": stand.token,
        }
        upload = ("upload", str(goods), "--price", "5000")
        said = await traced_command(record, *upload, environment=environment, folder=home)
        calls = read_trace(record)
        # The keys, in a folder that is there to stay, before the server hears of the file ...
        announced = sent(calls, "POST /api/v1/files HTTP")
        folders = (made_folder(r"/uploads$"), synced(r"/bitcache$"))
        check_order(before(calls, announced), [*folders, *STATE_COMMIT])
        # ... and its id and the digests of its chunks before the first byte of it leaves.
        uploaded = sent(calls, "PUT /api/v1/files/")
        part = [call for call in before(calls, uploaded) if call.began > announced.ended]
        check_order(part, [*STATE_COMMIT, *STATE_COMMIT])
        nothing_left_in_memory(part, STATE_COMMIT)
        # The link's secret before there is an offer.
        offered = sent(calls, "POST /api/v1/offers HTTP")
        check_order(before(calls, offered), [renamed_to(r"/parcels/\w+\.json$"), synced(r"/parcels$")])

        link = next(word for word in said.split() if "/d/" in word and "#" in word)
        get = ("get", link, "--no-wait", "-o", str(tmp_path / "out"))
        await traced_command(record, *get, environment=environment, folder=home)
        calls = read_trace(record)
        asked = sent(calls, "/invoices HTTP")
        check_order(before(calls, asked), [made_folder(r"/receipts$"), synced(r"/bitcache$"), *RECEIPT])
        shown = find(
            calls, lambda call: call.name == "write" and call.is_stream and "bcrt1" in call.text, "address"
        )
        check_order([call for call in before(calls, shown) if call.began > asked.ended], RECEIPT)
