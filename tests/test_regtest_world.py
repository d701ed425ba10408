"""The regtest world itself: nodes start, mine, sync, reorganise, forget, crash and leave nothing behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from regtest.errors import NodeUnreachable, RpcRefused
from regtest.install import BitcoindInstallation
from regtest.node import RegtestNode, btc, sat, wait_until
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import CHAIN_BLOCKS, RegtestWorld


async def test_world_is_synced_and_out_of_initial_download(world: RegtestWorld) -> None:
    for node in (world.server, world.outside):
        chain = await node.rpc("getblockchaininfo")
        assert chain["chain"] == "regtest"
        assert chain["blocks"] > CHAIN_BLOCKS
        assert not chain["initialblockdownload"]


async def test_server_node_has_rest_zmq_and_no_wallet(world: RegtestWorld) -> None:
    ((topic, address),) = [
        (notifier["type"], notifier["address"]) for notifier in await world.server.rpc("getzmqnotifications")
    ]
    assert (topic, address) == ("pubsequence", world.server.zmq_url)
    with urllib.request.urlopen(f"{world.server.rpc_url}/rest/chaininfo.json", timeout=10) as response:
        assert json.load(response)["chain"] == "regtest"
    with pytest.raises(RpcRefused):
        await world.server.rpc("listwallets")


async def test_mined_blocks_reach_the_server(world: RegtestWorld) -> None:
    before = await world.server.rpc("getblockcount")
    hashes = await world.mine(2)
    assert await world.server.rpc("getblockcount") == before + 2
    assert await world.server.rpc("getbestblockhash") == hashes[-1]


async def test_bit_pays_a_segwit_address(world: RegtestWorld) -> None:
    seller = await OutsideWallet.create(world, "seller of bit")
    payer = await BitWallet.create(world)
    address = await seller.new_address()
    payment = await payer.pay([(address, 5_000), (address, 700)])
    await world.mempool_wait(payment.txid)
    assert await seller.received_sat(address, confirmations=1) == 0
    await world.mine()
    assert await seller.received_sat(address, confirmations=1) == 5_700
    assert await seller.balance_sat() == 5_700


async def test_outside_wallet_pays_taproot_and_multisig_and_bumps_the_fee(world: RegtestWorld) -> None:
    one, two, payer = [
        await OutsideWallet.create(world, f"{name} of the three") for name in ("one", "two", "payer")
    ]
    shared = await OutsideWallet.create_multisig(world, "shared", signers=[one, two], threshold=2)
    await world.faucet(await payer.new_address(), 1_000_000)
    taproot, multisig = await one.new_address("bech32m"), await shared.new_address()
    payment = await payer.pay([(taproot, 20_000), (multisig, 30_000)])
    bumped = await payer.bump(payment, feerate_sat_vb=30)
    assert bumped.inputs == payment.inputs
    await world.mine()
    assert await one.received_sat(taproot, confirmations=1) == 20_000
    assert await shared.balance_sat() == 30_000


@pytest.mark.parametrize("kind", ["wpkh", "tr", "sh(wpkh", "pkh"])
async def test_sellers_descriptor_is_public_and_gives_the_wallets_addresses(
    world: RegtestWorld, kind: str
) -> None:
    seller = await OutsideWallet.create(world, f"seller {kind}")
    descriptor = await seller.descriptor(kind)  # type: ignore[arg-type]
    described = await world.server.rpc("getdescriptorinfo", descriptor)
    assert described["isrange"]
    assert not described["hasprivatekeys"]
    (first,) = await world.server.rpc("deriveaddresses", descriptor, [0, 0])
    assert (await seller.rpc("getaddressinfo", first))["ismine"]


async def test_same_inputs_again_replace_the_payment(world: RegtestWorld) -> None:
    seller = await OutsideWallet.create(world, "seller of replaced")
    payer = await BitWallet.create(world)
    address = await seller.new_address()
    first = await payer.pay([(address, 5_000)], fee_sat=500)
    await world.mempool_wait(first.txid)
    second = await payer.pay([(address, 5_000)], fee_sat=2_000, inputs=first.inputs)
    await world.mempool_wait(second.txid)
    assert first.txid not in await world.server.rpc("getrawmempool")
    assert payer.coins == [second.change]
    await world.mine()


async def test_double_spend_in_a_block_beats_the_mempool(world: RegtestWorld) -> None:
    payer = await BitWallet.create(world)
    seller = await OutsideWallet.create(world, "seller of double spent")
    address = await seller.new_address()
    seen = await payer.pay([(address, 5_000)])
    await world.mempool_wait(seen.txid)
    rival = await payer.pay([(payer.address, 5_000)], inputs=seen.inputs, broadcast=False)
    await world.mine_exactly([rival.raw])
    assert seen.txid not in await world.server.rpc("getrawmempool")
    assert await seller.received_sat(address) == 0


async def test_reorg_keeps_drops_or_returns_transactions(own_world: RegtestWorld) -> None:
    world = own_world
    payer = await BitWallet.create(world, coin_count=2)
    kept, dropped = [await payer.pay([(payer.address, 5_000)], inputs=[coin]) for coin in payer.coins]
    await world.mine(2)
    tip = await world.server.rpc("getbestblockhash")
    height = await world.server.rpc("getblockcount")

    await world.reorg(2, drop=[dropped.txid])
    assert await world.server.rpc("getblockcount") == height + 1
    assert (await world.server.rpc("getblockheader", tip))["confirmations"] == -1
    await world.mempool_wait(dropped.txid)
    assert kept.txid not in await world.server.rpc("getrawmempool")

    await world.reorg(3, keep_transactions=False)
    for payment in (kept, dropped):
        await world.mempool_wait(payment.txid)


async def test_evicted_transaction_stays_forgotten_until_sent_again(own_world: RegtestWorld) -> None:
    world = own_world
    payer = await BitWallet.create(world)
    seller = await OutsideWallet.create(world, "seller")
    payment = await payer.pay([(await seller.new_address(), 5_000)])
    await world.mempool_wait(payment.txid)
    await world.evict(payment.txid)
    assert payment.txid not in await world.server.rpc("getrawmempool")
    assert payment.txid in await world.outside.rpc("getrawmempool")
    await world.evict(payment.txid, everywhere=True)
    await world.server.restart()
    await world.reconnect()
    for node in (world.server, world.outside):
        assert payment.txid not in await node.rpc("getrawmempool")
    await payer.send(payment, node=world.server)
    await world.mempool_wait(payment.txid, node=world.outside)


async def test_server_node_crashes_and_catches_up(own_world: RegtestWorld) -> None:
    world = own_world
    await world.server_out(crash=True)
    with pytest.raises(NodeUnreachable):
        await world.server.rpc("getblockcount")
    hashes = await world.mine(3)
    await world.server_in()
    assert await world.server.rpc("getbestblockhash") == hashes[-1]


async def test_parted_nodes_do_not_hear_of_each_other(own_world: RegtestWorld) -> None:
    world = own_world
    await world.partition()
    tip = await world.server.rpc("getbestblockhash")
    await world.mine(2)
    assert await world.server.rpc("getbestblockhash") == tip
    await world.reconnect()
    assert await world.server.rpc("getbestblockhash") == await world.outside.rpc("getbestblockhash")


def test_amounts_are_exact() -> None:
    for amount_sat in (0, 1, 330, 2_100_000_000_000_000):
        assert sat(btc(amount_sat)) == amount_sat
    with pytest.raises(ValueError, match="whole number"):
        sat(btc(1) / 2)


ABANDONS_A_NODE = """
import asyncio, time
from regtest.node import RegtestNode

async def main() -> None:
    node = RegtestNode()
    await node.start()
    print(node.rpc_port, node.folder, flush=True)
    time.sleep(600)

asyncio.run(main())
"""


async def test_node_does_not_outlive_a_killed_parent(bitcoind_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ABANDONS_A_NODE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BITCOIND": str(bitcoind_path)},
        cwd=Path(__file__).parent.parent,
    )
    with parent:
        assert parent.stdout is not None
        port, folder = parent.stdout.readline().split(maxsplit=1)
        assert _listens(int(port))
        parent.kill()

    async def gone() -> bool:
        return not _listens(int(port)) and not Path(folder.strip()).exists()

    await wait_until(gone, "the node and its folder to be gone")


async def test_closed_node_leaves_neither_process_nor_folder(bitcoind: BitcoindInstallation) -> None:
    node = RegtestNode(installation=bitcoind)
    await node.start()
    assert _listens(node.rpc_port)
    pid = node.pid
    await node.close()
    assert not node.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
