"""Ledger, coins and node compared to the satoshi, on real nodes: restores, sweeps by hand, reorgs, gifts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner, Result

from bitcache import unassigned_money
from bitcache.backup import back_up
from bitcache.cli.main import app
from bitcache.config import CONFIG_FILE_NAME
from bitcache.db.tables import accounts
from bitcache.reconciling import EVERY_S, KEPT_MAX, RETRY_S, Reconciling, doubt_since_restore, latest
from bitcache.restore import restore
from payments import foreign_spends, ledger, payable, restores
from payments.addresses import normalise_descriptor
from payments.bitcoind import Bitcoind
from payments.bitcoind_coins import UnspentScan
from payments.errors import ExplanationRefused, NodeUnavailable, PayoutRefused, SpendNotFound
from payments.foreign_spends import Explained
from payments.money import Sat
from payments.ports import Transaction
from payments.reconcile_report import Line, LineKind, Report
from payments.reconciler import Reconciler
from payments.tables import address_searches, reconciliations
from regtest.node import sat, wait_until
from regtest.processes import free_ports
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till
from tests.service import running_server
from tests.till import Till, node_config

FEERATE_SAT_VB = 2


async def look(shop: HostedShop) -> Report:
    """The report; its sums are compared, its lines are for the test."""
    services = shop.services
    reconciler = Reconciler(node=services.node, store=services.database, descriptors=services.descriptors)
    report = await reconciler.look()
    assert report is not None
    by_group = dict.fromkeys(("books", "node", "note"), 0)
    for line in report.lines:
        by_group[line.group] += line.amount_sat
    assert report.coins_sat == sum(report.liabilities_sat.values()) + by_group["books"]
    assert report.node_sat == report.coins_then_sat + by_group["node"]
    return report


def found(report: Report) -> dict[LineKind, list[tuple[str, int]]]:
    lines: dict[LineKind, list[tuple[str, int]]] = {}
    for line in report.lines:
        lines.setdefault(line.kind, []).append((line.subject, line.amount_sat))
    return lines


def the_line(report: Report, kind: LineKind) -> Line:
    (line,) = [one for one in report.lines if one.kind is kind]
    return line


async def explain(shop: HostedShop, txid: str, **shares: int | None) -> Explained:
    """`seller`, `operator`, or the id of an invoice, which begins with `i`: what each bears."""
    accounts = {"seller": ledger.seller(shop.seller_id), "operator": ledger.operator()}
    named = {
        accounts[name] if name in accounts else ledger.owed(name[1:]): None if sat is None else Sat(sat)
        for name, sat in shares.items()
    }
    said: Explained = await shop.services.database.write(
        partial(foreign_spends.explain, txid=txid, shares=named, now=shop.till.server.clock())
    )
    return said


async def sweep(shop: HostedShop, *, leave_mempool: bool = False) -> tuple[str, int]:
    """The operator sends everything elsewhere with another program; (txid, sats that leave the wallet)."""
    there = await shop.keys.rpc("listunspent", 0)
    inputs = [{"txid": coin["txid"], "vout": coin["vout"]} for coin in there]
    options = {"fee_rate": FEERATE_SAT_VB, "inputs": inputs}
    sent = await shop.keys.rpc("sendall", [await shop.new_address()], options=options)
    txid = str(sent["txid"])
    await shop.world.mempool_wait(txid)
    if not leave_mempool:
        await shop.mine()
    return txid, sum(sat(coin["amount"]) for coin in there)


async def paid_by(shop: HostedShop, batch_id: str) -> set[str]:
    """The addresses that this batch's transaction pays, its change among them."""
    unsigned = (await shop.batch(batch_id)).newest.unsigned
    decoded = await shop.world.outside.rpc("decoderawtransaction", unsigned.hex())
    return {str(output["scriptPubKey"]["address"]) for output in decoded["vout"]}


async def stopped(shop: HostedShop) -> str | None:
    reason: str | None = await shop.services.database.read(payable.stopped)
    return reason


async def doubt(shop: HostedShop) -> str | None:
    words: str | None = await shop.services.database.read(doubt_since_restore)
    return words


async def back_up_to(shop: HostedShop, folder: Path) -> None:
    config = shop.services.config
    (config.data_folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
    await back_up(config, folder, with_master_key=True, now=shop.till.server.clock())


@asynccontextmanager
async def risen(lost: HostedShop, backup: Path, folder: Path) -> AsyncIterator[HostedShop]:
    """The shop on what `backup` holds; the lost one must be down."""
    server = lost.till.server
    await restore(backup, folder, master_key_file=None, environment={}, now=server.clock())
    config = server.services.config
    async with running_server(folder, node=node_config(lost.world), hosted=config.hosted) as restored:
        till = Till(restored, lost.till.account, lost.world)
        async with restored.session() as till.http:
            shop = replace(lost, till=till)
            for _ in range(20):
                await shop.seen()
                if not await restored.services.database.read(restores.searches):
                    break
            yield shop


async def test_payouts_that_a_backup_does_not_know_are_found_explained_and_paid_once(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """One of them with change, to two people, in a block; one in the mempool; and a sale between them."""
    hosted = {"fee_percent": "10", "depth": 1}
    (folder := tmp_path / "lost").mkdir()
    async with open_hosted_till(world, folder, hosted=hosted) as lost:
        known = await lost.sell(price_sat=50_000, count=2)
        await back_up_to(lost, tmp_path / "backup")
        await lost.request(30_000)
        await lost.request(10_000)
        first = await lost.build()
        mined = await lost.send(first)
        await lost.mine()
        (forgotten_sale,) = await lost.sell(price_sat=70_000)
        await lost.request(40_000)
        second = await lost.build()
        waiting = await lost.send(second)
        used = {str(sale.invoice["address"]) for sale in (*known, forgotten_sale)}
        used |= await paid_by(lost, first) | await paid_by(lost, second)
        seller = ledger.seller(lost.seller_id)

    async with risen(lost, tmp_path / "backup", tmp_path / "risen") as shop:
        assert "put back from a backup" in str(await stopped(shop))
        unassigned = {name for name in await shop.balances_sat() if name.startswith("unassigned:")}
        report = await look(shop)
        lines = found(report)
        assert lines[LineKind.SPEND_UNEXPLAINED] == [(mined, -40_000)], "less its change"
        assert [subject for subject, _ in lines[LineKind.SPEND_WAITING]] == [waiting]
        assert not report.explained
        assert "30,000" not in the_line(report, LineKind.SPEND_UNEXPLAINED).words, "it paid less the fee"
        assert await shop.balances_sat() == {
            "chain": -(100_000 + 70_000 - 40_000),
            seller: 90_000,
            "operator": 10_000,
            "unexplained": -40_000,
            unassigned.pop(): 70_000,
        }

        await shop.mine()
        assert found(await look(shop)) == {
            LineKind.SPEND_UNEXPLAINED: [(name, -40_000) for name in sorted((mined, waiting))]
        }, "of the second, too, the change is no loss"
        with pytest.raises(ExplanationRefused):
            await explain(shop, mined, seller=40_001)
        assert (await explain(shop, mined, seller=30_000, operator=None)).left_sat == 0
        assert "not run since the restore" in str(await doubt(shop))
        await shop.services.reconciling.look()
        assert "found 40,000 sat" in str(await doubt(shop)), "of the second one"
        await explain(shop, mined, seller=None)
        assert "put back from a backup" in str(await stopped(shop))
        await shop.services.database.write(partial(restores.resume_payouts, now=shop.till.server.clock()))
        assert "40,000 sat left the wallet" in str(await stopped(shop))
        await explain(shop, waiting, seller=None)
        assert await stopped(shop) is None
        await shop.services.reconciling.look()
        assert await doubt(shop) is None
        report = await look(shop)
        assert report.explained
        assert sorted(found(report)[LineKind.SPEND_EXPLAINED]) == sorted(
            [(mined, -40_000), (waiting, -40_000)]
        )
        assert (await shop.balances_sat())[seller] == 10_000

        fresh = await shop.till.buy(await shop.till.offer(price_sat=5_000))
        assert fresh.invoice["address"] not in used
        with pytest.raises(PayoutRefused):
            await shop.request(10_001)
        address = await shop.new_address()
        payout = await shop.request(10_000, address=address)
        last = await shop.build()
        await shop.send(last)
        assert not await paid_by(shop, last) & used, "the change has an address of its own, too"
        await shop.mine()
        assert (await shop.balances_sat()).get(ledger.payout(payout.id), 0) == 0
        assert seller not in await shop.balances_sat()
        assert (await look(shop)).explained


async def test_lost_sales_far_ahead_may_be_spent_already(world: RegtestWorld, tmp_path: Path) -> None:
    """Their addresses are watched only after the blocks with sale and spend: those are read again."""
    (folder := tmp_path / "lost").mkdir()
    async with open_hosted_till(world, folder) as lost:
        await lost.sell(price_sat=50_000)
        await back_up_to(lost, tmp_path / "backup")
        wallet, book = await lost.services.hosted.open(), lost.services.addresses
        near, far = [(await book.derive(wallet, start=n, count=1))[0].address for n in (1_500, 3_000)]
        sweeper = await far_sighted(lost, "far", range_end=3_000)
    payer = OutsideWallet(world.outside, MINER)
    await payer.pay([(far, 40_000)], feerate_sat_vb=5)
    await world.mine()
    (coin,) = [one for one in await sweeper.rpc("listunspent") if one["address"] == far]
    inputs = [{"txid": coin["txid"], "vout": coin["vout"]}]
    options = {"fee_rate": FEERATE_SAT_VB, "inputs": inputs}
    sent = await sweeper.rpc("sendall", [await lost.new_address()], options=options)
    await world.mine()
    await payer.pay([(near, 10_000)], feerate_sat_vb=5)
    await world.mine()

    async with risen(lost, tmp_path / "backup", tmp_path / "risen") as shop:
        report = await look(shop)
        assert found(report) == {LineKind.SPEND_UNEXPLAINED: [(sent["txid"], -40_000)]}
        assert report.liabilities_sat == {"seller": 50_000, "unassigned": 50_000}
        assert report.node_sat == report.coins_sat == 60_000
        listed = await shop.services.database.read(unassigned_money.listed)
        assert [(one.amount_sat, one.hosted, one.sellers) for one in listed.payments] == [
            (10_000, True, ()),
            (40_000, True, ()),
        ]


async def far_sighted(shop: HostedShop, name: str, *, range_end: int) -> OutsideWallet:
    """The operator's keys in a wallet that looks further, at one kind of address."""
    listed = await shop.keys.rpc("listdescriptors", True)
    (secret,) = [
        one["desc"]
        for one in listed["descriptors"]
        if one["desc"].startswith("wpkh(") and not one["internal"]
    ]
    await shop.world.outside.rpc("createwallet", wallet_name=name, blank=True, load_on_startup=False)
    wallet = OutsideWallet(shop.world.outside, name)
    wanted = {"desc": secret, "range": [0, range_end], "timestamp": "now"}
    (done,) = await wallet.rpc("importdescriptors", [wanted])
    assert done["success"], done
    return wallet


async def test_where_no_block_tells_the_operator_decides_where_hosted_addresses_go_on(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(world, tmp_path) as shop:
        database, clock = shop.services.database, shop.till.server.clock
        await shop.sell(price_sat=50_000)
        await database.write(partial(restores.note_restore, taken_at=clock(), now=clock()))
        await database.write(lambda tx: tx.execute(address_searches.update().values(from_height=None)))
        await shop.seen()
        assert (await database.read(unassigned_money.listed)).hosted_searching
        decide = unassigned_money.decide_hosted_start_index
        assert await database.write(partial(decide, start_index=40)) == 1
        await shop.seen()
        assert not (await database.read(unassigned_money.listed)).hosted_searching
        bought = await shop.till.buy(await shop.till.offer(price_sat=5_000))
        wallet = await shop.services.hosted.open()
        (there,) = await shop.services.addresses.derive(wallet, start=40, count=1)
        assert bought.invoice["address"] == there.address
        assert await database.write(partial(decide, start_index=50)) == 0


async def test_a_sweep_by_hand_is_named_explained_otherwise_and_survives_a_reorg(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(own_world, tmp_path, hosted={"fee_percent": "10"}) as shop:
        await shop.sell(price_sat=50_000)
        assert found(await look(shop)) == {}
        # The operator's program spends a sale that is not even in a block: both are mined in the same.
        bought = await shop.till.buy(await shop.till.offer(price_sat=20_000))
        paid = await shop.till.pay(bought)
        await own_world.mempool_wait(paid.txid, node=own_world.outside)
        txid, net_out_sat = await sweep(shop, leave_mempool=True)
        assert net_out_sat == 70_000
        assert found(await look(shop)) == {LineKind.SPEND_WAITING: [(txid, -50_000)]}
        await shop.mine()
        report = await look(shop)
        assert found(report) == {LineKind.SPEND_UNEXPLAINED: [(txid, -70_000)]}
        assert report.difference_sat == 70_000
        assert report.node_sat == report.coins_sat == 0
        assert "to bcrt1" in report.lines[0].words or " sat to " in report.lines[0].words

        with pytest.raises(SpendNotFound):
            await explain(shop, paid.txid, operator=None)
        with pytest.raises(ExplanationRefused):
            await explain(shop, txid, seller=None, operator=None)
        with pytest.raises(ExplanationRefused):
            await explain(shop, txid, **{f"i{bought.id}": 1})
        with pytest.raises(ExplanationRefused):
            await explain(shop, txid, inobody=None)
        await explain(shop, txid, operator=None)
        seller = ledger.seller(shop.seller_id)
        assert await shop.balances_sat() == {seller: 63_000, "operator": -63_000}
        assert found(await look(shop)) == {
            LineKind.OPERATOR_OWES: [("operator", -63_000)],
            LineKind.SPEND_EXPLAINED: [(txid, -70_000)],
        }
        said = await explain(shop, txid, seller=60_000)
        assert (said.shares, said.left_sat) == ({seller: 60_000}, 10_000)
        assert await shop.balances_sat() == {seller: 3_000, "operator": 7_000, "unexplained": -10_000}
        await explain(shop, txid, seller=60_000, operator=None)

        # Out of its block and back: what was said last holds, also for a server that was restarted.
        await own_world.reorg(1, drop={txid})
        await shop.seen()
        assert await shop.balances_sat() == {"chain": -70_000, seller: 63_000, "operator": 7_000}
        assert found(await look(shop)) == {LineKind.SPEND_WAITING: [(txid, -70_000)]}
        await shop.mine()
        assert await shop.balances_sat() == {seller: 3_000, "operator": -3_000}
        assert (await look(shop)).explained
        await explain(shop, txid)
        assert found(await look(shop))[LineKind.SPEND_UNEXPLAINED] == [(txid, -70_000)]


async def test_a_reorg_during_the_scan_is_looked_at_again(own_world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(own_world, tmp_path, hosted={"fee_percent": "10"}) as shop:
        await shop.sell(price_sat=50_000)
        scans: list[str] = []

        class Turning(Reconciler):
            async def _caught_up(self, scan: UnspentScan) -> bool:
                scans.append(scan.block_hash)
                if len(scans) == 1:
                    await own_world.reorg(1)
                    await shop.seen()
                return await super()._caught_up(scan)

        services = shop.services
        turning = Turning(node=services.node, store=services.database, descriptors=services.descriptors)
        report = await turning.look()
        assert report is not None
        assert report.explained
        assert len(set(scans)) == 2
        assert (report.node_sat, report.coins_sat) == (50_000, 50_000)


async def test_what_others_put_into_the_wallet_is_told_from_what_is_missing(
    world: RegtestWorld, tmp_path: Path, each_with_tables: str
) -> None:
    hosted = {"fee_percent": "10", "depth": 1}
    async with open_hosted_till(world, tmp_path, hosted=hosted, database_url=each_with_tables) as shop:
        services = shop.services
        payer = OutsideWallet(world.outside, MINER)
        (sold,) = await shop.sell(price_sat=50_000)
        await shop.request(20_000)
        batch = await shop.batch(await shop.build())
        await shop.send(batch.id)
        await shop.mine()
        wallet = await services.hosted.open()
        first = await services.addresses.derive(wallet, start=0, count=60)
        (change,) = [one.address for one in first if one.script_pubkey == batch.change_script_pubkey]
        next_index = await services.database.read(lambda tx: services.descriptors.next_index(tx, wallet.id))

        # A seller who is paid into the operator's own wallet.
        await shop.settle("direct")
        own_wallet = await normalise_descriptor(services.node, await shop.keys.descriptor(), "regtest")

        async def pay_there(tx: Transaction) -> None:
            await tx.execute(
                update(accounts).where(accounts.c.id == shop.seller_id).values(descriptor_id=own_wallet.id)
            )

        await services.database.write(pay_there)
        # The address that the next invoice gets is paid before anybody watches it.
        early = await payer.pay([(first[next_index].address, 7_000)], feerate_sat_vb=5)
        await world.mempool_wait(early.txid)
        await shop.mine()
        await shop.settle("hosted")
        invoice = (await shop.till.buy(await shop.till.offer(price_sat=5_000))).invoice
        assert invoice["address"] == first[next_index].address
        await shop.settle("direct")
        direct = await shop.till.buy(await shop.till.offer(price_sat=9_000))
        await payer.pay([(direct.invoice["address"], 9_000)], feerate_sat_vb=5)
        await payer.pay([(sold.invoice["address"], 1_111)], feerate_sat_vb=5)
        await payer.pay([(change, 600)], feerate_sat_vb=5)
        await payer.pay([(first[next_index + 30].address, 3_000)], feerate_sat_vb=5)
        for txid in await world.outside.rpc("getrawmempool"):
            await world.mempool_wait(txid)
        await world.mine(1, to=sold.invoice["address"])
        await shop.seen()

        report = await look(shop)
        amounts = {kind: [sat for _, sat in lines] for kind, lines in found(report).items()}
        reward_sat = amounts.pop(LineKind.COINBASE_YOUNG)
        assert reward_sat[0] > 1_000_000
        assert amounts == {
            LineKind.COIN_UNKNOWN: [3_000],
            LineKind.DIRECT_SALE: [9_000],
            LineKind.OLDER_THAN_ADDRESS: [7_000],
        }
        assert report.difference_sat == 3_000
        assert f"at address {next_index + 30}," in the_line(report, LineKind.COIN_UNKNOWN).words
        # The gift to a buyer's address is owed, that to a change address the operator's.
        balances = await shop.balances_sat()
        assert balances[ledger.owed(sold.id)] == 1_111
        assert balances["operator"] == 5_000 + 600
        assert report.coins_sat == 30_000 + 1_111 + 600


async def test_once_a_day_whatever_happens(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path) as shop:
        services, clock = shop.services, shop.till.server.clock
        reconciling: Reconciling = services.reconciling
        assert await reconciling.poll_once() is None, "nobody has ever been sold anything"
        await shop.sell(price_sat=50_000)
        report = await reconciling.poll_once()
        assert report is not None
        assert report.explained
        assert report.coins_sat == 50_000
        assert await reconciling.poll_once() is None
        clock.advance(EVERY_S - 60)
        assert await reconciling.poll_once() is None
        clock.advance(60)

        # A look that is cut off, or cannot be taken, is repeated after an hour and not at once.
        nowhere = Bitcoind(f"http://127.0.0.1:{free_ports(1)[0]}", user="none", password="none")
        blind = Reconciling(
            reconciler=Reconciler(node=nowhere, store=services.database, descriptors=services.descriptors),
            store=services.database,
            clock=clock,
        )
        with pytest.raises(NodeUnavailable):
            await blind.poll_once()
        await nowhere.close()
        assert await reconciling.poll_once() is None
        seen = await services.database.read(latest)
        assert seen is not None
        assert seen.at == report.at, "one that was cut off says nothing"
        clock.advance(RETRY_S)
        assert await reconciling.poll_once() is not None

        # Nor does a clock that was set back stop it, or history grow.
        clock.advance(-10 * EVERY_S)
        assert await reconciling.poll_once() is not None
        older = [
            {"at": n, "height": 1, "difference_sat": 0, "explained": True, "report": "{}"}
            for n in range(KEPT_MAX + 2)
        ]
        await services.database.write(lambda tx: tx.execute(reconciliations.insert(), older))
        await reconciling.look()
        rows = await services.database.read(lambda tx: tx.execute(reconciliations.select()))
        assert len(rows.all()) == KEPT_MAX


async def test_what_the_operator_types(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"fee_percent": "10"}) as shop:
        await shop.sell(price_sat=50_000)
        config = shop.services.config
        (config.data_folder / CONFIG_FILE_NAME).write_text(f"""
network = "regtest"
[node]
rpc_url = "{config.node.rpc_url}"
rpc_cookie_file = "{config.node.rpc_cookie_file}"
[hosted]
descriptor = "{config.hosted.descriptor}"
wallet = "nobody's"
""")

        async def typed(*words: str) -> Result:
            command = [*words, "--data", str(config.data_folder)]
            return await asyncio.to_thread(CliRunner().invoke, app, command)

        done = await typed("reconcile")
        assert done.exit_code == 0, done.output
        assert "45,000 sat  owed: to sellers" in done.stdout
        assert "Every satoshi is explained." in done.stdout

        txid, _ = await sweep(shop)
        done = await typed("reconcile")
        assert done.exit_code == 1
        assert f"WRONG           -50,000 sat  {txid}" in done.stdout
        assert "50,000 sat are not explained." in done.stdout
        done = await typed("doctor", "--json")
        verdicts = {one["check"]: one["verdict"] for one in json.loads(done.stdout)["findings"]}
        assert {
            "books": "ok",
            "reconciliation": "wrong",
            "payouts": "warning",
            "hosted wallet": "ok",
            "payout wallet": "wrong",
        }.items() <= verdicts.items()
        async with shop.till.http.get("/metrics") as answer:
            page = await answer.text()
        assert "bitcache_reconciliation_explained 0.0" in page
        assert "bitcache_reconciliation_difference_sat 50000.0" in page

        explaining = ("reconcile", "--explain", txid, "--json")
        for words, code, said in (
            ((*explaining, "operator"), 1, "Nothing was booked"),
            ((*explaining, "seller:Nobody", "--yes"), 1, "no account"),
            ((*explaining, "chain", "--yes"), 2, "is no account"),
            ((*explaining, "operator=60000", "--yes"), 1, "not to 60,000"),
            (("reconcile", "--explain", "ff" * 32, "operator", "--yes", "--json"), 1, "no transaction"),
            (("reconcile", "--explain", "deposit", "operator", "--yes", "--json"), 2, "no transaction"),
            (("reconcile", "operator", "--json"), 2, "--explain"),
        ):
            done = await typed(*words)
            assert (done.exit_code, said in done.stdout) == (code, True), done.output
        assert (await shop.balances_sat())["unexplained"] == -50_000, "nothing was booked so far"
        done = await typed(*explaining, "seller:seller 1=20000", "operator", "--yes")
        assert done.exit_code == 0, done.output
        shares = {ledger.seller(shop.seller_id): 20_000, "operator": 30_000}
        assert json.loads(done.stdout) == {"txid": txid, "net_out_sat": 50_000, "shares_sat": shares}
        done = await typed("reconcile", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["liabilities_sat"] == {"operator": -25_000, "seller": 25_000}
        assert await stopped(shop) is None


async def test_the_node_scans_for_one_at_a_time(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(world, tmp_path) as shop:
        await shop.sell(price_sat=50_000)
        wallet = await shop.services.hosted.open()
        scanned = [{"desc": wallet.text, "range": 4_000}]
        other = asyncio.create_task(world.server.rpc("scantxoutset", "start", scanned))
        await wait_until(partial(is_scanning, world), "the other scan to begin")
        with pytest.raises(NodeUnavailable, match="for somebody else"):
            await shop.services.reconciling.look()
        assert (await other)["success"], "ours ended no scan but its own"
        assert (await look(shop)).explained


async def is_scanning(world: RegtestWorld) -> bool:
    return await world.server.rpc("scantxoutset", "status") is not None
