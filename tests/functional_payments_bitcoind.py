"""Our node's adapter: what it reads, what refusals become, and what it makes of a node that is not well."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from bitcoin.core import CBlock, b2lx

from payments.bitcoind import Bitcoind, BroadcastOutcome
from payments.block import outpoint_bytes, parse_block, scan_block
from payments.errors import BlockUnavailable, NodeMisconfigured, NodeRefused, NodeUnavailable
from payments.invoice import OutPoint
from payments.node_fitness import fitness
from payments.transaction import parse_transaction
from regtest.node import RegtestNode, sat, wait_until
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import RegtestWorld

UNKNOWN_HASH = "11" * 32
AddressKind = Literal["bech32", "bech32m", "p2sh-segwit", "legacy"]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def adapter(node: RegtestNode) -> Bitcoind:
    return Bitcoind(node.rpc_url, cookie_file=node.cookie_path)


@pytest_asyncio.fixture
async def node(world: RegtestWorld) -> AsyncIterator[Bitcoind]:
    async with adapter(world.server) as node:
        yield node


async def test_chain_and_headers(node: Bitcoind, world: RegtestWorld) -> None:
    (tip,) = await world.mine()
    info = await node.node_info()
    assert info.chain.best_hash == tip
    assert info.chain.blocks == await world.server.rpc("getblockcount")
    assert fitness(info, int(time.time()), "regtest").usable

    assert await node.block_hash(info.chain.blocks) == tip
    assert await node.block_hash(info.chain.blocks + 1) is None
    header = await node.block_header(tip)
    assert header is not None
    assert (header.height, header.confirmations, header.time) == (info.chain.blocks, 1, info.chain.tip_time)
    assert header.previous_hash == await node.block_hash(info.chain.blocks - 1)
    assert await node.block_header(UNKNOWN_HASH) is None

    network = await node.network_info()
    assert network.version >= 250_000
    assert network.connections == 1
    (notification,) = await node.zmq_notifications()
    assert (notification.type, notification.address) == ("pubsequence", world.server.zmq_url)


async def test_real_blocks_read_as_python_bitcoinlib_reads_them(node: Bitcoind, world: RegtestWorld) -> None:
    seller = await OutsideWallet.create(world, "seller of blocks")
    payer = await BitWallet.create(world, coin_count=2)
    kinds: tuple[AddressKind, ...] = ("bech32", "bech32m", "p2sh-segwit", "legacy")
    addresses = {kind: await seller.new_address(kind) for kind in kinds}
    coin = payer.coins[0]
    payment = await payer.pay([(addresses["bech32"], 70_000), (addresses["legacy"], 80_000)], inputs=[coin])
    await world.mine()
    # Spends native segwit; pays every kind.
    onwards = await seller.pay([(address, 9_000) for address in addresses.values()])
    (tip,) = await world.mine()

    for block_hash in (await previous(node, tip), tip):
        raw = await node.raw_block(block_hash)
        block = parse_block(raw)
        theirs = CBlock.deserialize(raw)
        assert block.hash == block_hash == b2lx(theirs.GetHash())
        assert (block.previous_hash, block.time) == (b2lx(theirs.hashPrevBlock), theirs.nTime)
        assert [one.txid for one in block.transactions] == [b2lx(one.GetTxid()) for one in theirs.vtx]
        for ours, other in zip(block.transactions, theirs.vtx, strict=True):
            assert ours.raw == other.serialize()
            alone = parse_transaction(ours.raw)
            assert (alone.inputs, alone.outputs, alone.coinbase) == (ours.inputs, ours.outputs, ours.coinbase)

    # The node's own words on the transaction in question.
    taproot = await node.validate_address(addresses["bech32m"])
    assert taproot is not None
    (paying,) = scan_block(await node.raw_block(tip), watched_scripts={taproot}).transactions
    assert paying.txid == onwards.txid
    assert [one.amount_sat for one in paying.outputs if one.script_pubkey == taproot] == [9_000]
    spent = {outpoint_bytes(OutPoint(coin.txid, coin.vout))}
    before = await node.raw_block(await previous(node, tip))
    (spending,) = scan_block(before, watched_scripts=(), watched_outpoints=spent).transactions
    assert spending.txid == payment.txid


async def test_block_that_the_node_has_not(node: Bitcoind) -> None:
    with pytest.raises(BlockUnavailable) as missing:
        await node.raw_block(UNKNOWN_HASH)
    assert missing.value.block_hash == UNKNOWN_HASH


async def test_mempool(node: Bitcoind, world: RegtestWorld) -> None:
    payer = await BitWallet.create(world)
    address = await world.new_miner_address()
    parent = await payer.pay([(address, 50_000)], fee_sat=1_234)
    assert parent.change is not None
    child = await payer.pay([(address, 60_000)], inputs=[parent.change])
    await world.mempool_wait(child.txid)

    snapshot = await node.raw_mempool()
    assert {parent.txid, child.txid} <= set(snapshot.txids)
    assert (await node.mempool_info()).loaded
    raws = await node.raw_transactions([parent.txid, UNKNOWN_HASH, child.txid])
    assert list(raws) == [parent.txid, UNKNOWN_HASH, child.txid]
    assert raws[parent.txid] == bytes.fromhex(parent.raw)
    assert raws[UNKNOWN_HASH] is None
    read = parse_transaction(bytes.fromhex(child.raw))
    assert read.txid == child.txid
    assert read.inputs == (OutPoint(parent.change.txid, parent.change.vout),)

    entry = await node.mempool_entry(parent.txid)
    assert entry is not None
    assert (entry.fee_sat, entry.ancestor_count, entry.descendant_count) == (1_234, 1, 2)
    assert entry.vsize_vbytes == len(bytes.fromhex(parent.raw))
    assert abs(entry.entered_at - time.time()) < 60
    assert await node.mempool_entry(UNKNOWN_HASH) is None
    assert await node.raw_transactions([]) == {}
    await world.mine()
    assert (await node.raw_transactions([parent.txid]))[parent.txid] is None


async def test_more_transactions_than_one_batch_holds(node: Bitcoind, world: RegtestWorld) -> None:
    txids = [f"{n:064x}" for n in range(1, 120)]
    assert await node.raw_transactions(txids) == dict.fromkeys(txids)


async def test_broadcast_outcomes(node: Bitcoind, world: RegtestWorld) -> None:
    payer = await BitWallet.create(world, coin_count=2)
    address = await world.new_miner_address()
    coin = payer.coins[0]
    kept = await payer.pay([(address, 50_000)], fee_sat=2_000, inputs=[coin], broadcast=False)
    rival = await payer.pay([(address, 40_000)], fee_sat=1_000, inputs=[coin], broadcast=False)

    async def outcome(raw_hex: str) -> BroadcastOutcome:
        return (await node.send_raw_transaction(bytes.fromhex(raw_hex))).outcome

    assert await outcome(kept.raw) is BroadcastOutcome.ACCEPTED
    assert await outcome(kept.raw) is BroadcastOutcome.ACCEPTED
    assert await outcome(rival.raw) is BroadcastOutcome.CONFLICT
    await world.mempool_wait(kept.txid, node=world.outside)
    await world.mine()
    assert await outcome(kept.raw) is BroadcastOutcome.IN_CHAIN
    assert await outcome(rival.raw) is BroadcastOutcome.INPUTS_MISSING

    other_coin = payer.coins[1]
    cheap = await payer.pay([(address, 1_000_000)], fee_sat=1, inputs=[other_coin], broadcast=False)
    refused = await node.send_raw_transaction(bytes.fromhex(cheap.raw))
    assert refused.outcome is BroadcastOutcome.REJECTED
    assert "fee" in refused.message
    # Far above the node's own limit for the feerates it lets pass.
    costly = await payer.pay([(address, 10_000)], fee_sat=9_000_000, inputs=[other_coin], broadcast=False)
    assert await outcome(costly.raw) is BroadcastOutcome.ACCEPTED
    assert await outcome("00") is BroadcastOutcome.REJECTED
    await world.mempool_wait(costly.txid, node=world.outside)
    await world.mine()


async def test_addresses_and_feerates(node: Bitcoind, world: RegtestWorld) -> None:
    assert await node.validate_address("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu") is None
    assert await node.validate_address("nonsense") is None
    address = await world.new_miner_address()
    script_pubkey = await node.validate_address(address)
    assert script_pubkey is not None
    assert script_pubkey.hex() == (await world.server.rpc("validateaddress", address))["scriptPubKey"]
    assert await node.validate_addresses([address, "nonsense", address]) == [
        script_pubkey,
        None,
        script_pubkey,
    ]
    told = (await world.server.rpc("estimatesmartfee", 6)).get("feerate")
    # Mostly None: the node has seen too few payments, unless other tests paid much.
    assert await node.estimate_feerate(6) == (None if told is None else sat(told))


async def test_refused_calls_say_what_and_why(node: Bitcoind) -> None:
    with pytest.raises(NodeRefused) as refused:
        await node.descriptor_info("nonsense")
    assert (refused.value.method, refused.value.code) == ("getdescriptorinfo", -5)
    assert "nonsense" in refused.value.message


async def test_node_stops_and_comes_back_with_another_cookie(own_world: RegtestWorld) -> None:
    async with adapter(own_world.server) as node:
        await node.chain_info()
        cookie = own_world.server.cookie_path.read_text()
        await own_world.server_out()
        for call in (node.chain_info(), node.raw_block(UNKNOWN_HASH), node.raw_mempool()):
            with pytest.raises(NodeUnavailable):
                await call

        starting = asyncio.create_task(own_world.server.start())

        async def answers() -> bool:
            """All the way from no listener through warm-up, nothing but NodeUnavailable."""
            try:
                await node.chain_info()
            except NodeUnavailable:
                return False
            return True

        await wait_until(answers, "the node to be back", poll_s=0.001)
        await starting
        assert own_world.server.cookie_path.read_text() != cookie
        await own_world.server.restart()
        assert (await node.chain_info()).blocks > 0


async def test_rest_switched_off_is_named(own_world: RegtestWorld) -> None:
    await own_world.server.restart("-rest=0")
    async with adapter(own_world.server) as node:
        with pytest.raises(NodeMisconfigured, match="rest=1"):
            await node.raw_block((await node.chain_info()).best_hash)


async def test_wrong_credentials_are_named(world: RegtestWorld, tmp_path: Path) -> None:
    async with Bitcoind(world.server.rpc_url, user="__cookie__", password="wrong") as node:
        with pytest.raises(NodeMisconfigured, match="credentials"):
            await node.chain_info()
    user, _, password = world.server.cookie_path.read_text().partition(":")
    async with Bitcoind(world.server.rpc_url + "/", user=user, password=password) as node:
        assert (await node.chain_info()).chain == "regtest"
    async with Bitcoind(world.server.rpc_url, cookie_file=tmp_path / "none") as node:
        with pytest.raises(NodeUnavailable, match="cookie"):
            await node.chain_info()
    with pytest.raises(NodeMisconfigured):
        Bitcoind(world.server.rpc_url)
    with pytest.raises(NodeMisconfigured):
        Bitcoind(world.server.rpc_url, cookie_file=tmp_path, user="a", password="b")


def http(status: str, body: bytes, *, length: int | None = None) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode()
        + body
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        http("503 Service Unavailable", b"Work queue depth exceeded"),
        http("500 Internal Server Error", b""),
        http("200 OK", b'{"id":0,"result":{"chain":"regtest"},"error":null}'),
        http("200 OK", b'{"id":0,"result":null,"error":{"code":-28,"message":"Loading block index"}}'),
        http("200 OK", b'{"id":0,"resu'),
        http("200 OK", b"\xff{"),
        http("200 OK", b"[" * 100_000),
        http("200 OK", b'{"id":0,"result":' + b"[" * 100_000),
        http("200 OK", b"{}", length=1_000),
        http("200 OK", b"{" + b" " * (65 << 20)),
        b"nonsense\r\n\r\n",
    ],
    ids=[
        "silent",
        "hangs up",
        "busy",
        "no words",
        "fields missing",
        "warming up",
        "cut JSON",
        "not UTF-8",
        "nested deeply",
        "result nested deeply",
        "shorter than announced",
        "too long",
        "not HTTP",
    ],
)
async def test_a_sick_node_is_unavailable(answer: bytes | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until the client gives up
        else:
            writer.write(answer)

    async with listener(serve) as url, Bitcoind(url, user="u", password="p", timeout_s=2) as node:
        started = time.monotonic()
        with pytest.raises(NodeUnavailable):
            await node.chain_info()
        assert time.monotonic() - started < 10


async def test_credentials_follow_no_redirect() -> None:
    visitors = 0

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visitors
        visitors += 1

    async with listener(elsewhere) as other_url:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(http(f"307 Temporary Redirect\r\nLocation: {other_url}/", b""))

        async with listener(serve) as url, Bitcoind(url, user="u", password="p") as node:
            with pytest.raises(NodeUnavailable):
                await node.chain_info()
    assert visitors == 0


async def test_a_batch_answered_in_part_is_unavailable() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http("200 OK", b'[{"id":1,"result":"00","error":null}]'))

    async with listener(serve) as url, Bitcoind(url, user="u", password="p") as node:
        with pytest.raises(NodeUnavailable):
            await node.raw_transactions([UNKNOWN_HASH, "22" * 32])


async def test_a_connection_closed_while_idle_is_made_anew(world: RegtestWorld) -> None:
    async with adapter(world.server) as node:
        await asyncio.gather(*(node.chain_info() for _ in range(20)))

    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(http("200 OK", b'{"id":0,"result":{"loaded":true,"size":0},"error":null}'))
        if connections == 1:
            await reader.readuntil(b"\r\n\r\n")  # takes the second request, and hangs up

    async with listener(serve) as url, Bitcoind(url, user="u", password="p") as node:
        assert (await node.mempool_info()).loaded
        assert (await node.mempool_info()).loaded
    assert connections == 2


@asynccontextmanager
async def listener(serve: Serve) -> AsyncIterator[str]:
    """A server on a free port, which `serve` answers for; its URL. Leaves no connection behind."""
    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*answering)


async def previous(node: Bitcoind, block_hash: str) -> str:
    header = await node.block_header(block_hash)
    assert header is not None
    assert header.previous_hash is not None
    return header.previous_hash
