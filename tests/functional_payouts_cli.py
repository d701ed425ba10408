"""What the operator types about payouts, beside the running server, without it, and two of them at once.

On a real node. Commands run in threads of this process, or as processes where that is the point.
"""

from __future__ import annotations

import asyncio
import base64
import json
import stat
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import insert, literal, select
from typer.testing import CliRunner, Result

from bitcache import payout_desk
from bitcache.cli.main import app
from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.services import open_services
from payments import ledger, payout_requests
from payments.errors import PayoutConflict, PayoutRefused
from payments.payout import Payout, State
from payments.ports import Transaction
from payments.tables import address_searches, descriptors, restores
from regtest.install import BitcoindInstallation
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.functional_client_crash import bitcache
from tests.hosted_shop import HostedShop, approved_payout, open_hosted_till

NOBODY = "a" * 26


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wallets(bitcoind: BitcoindInstallation) -> AsyncIterator[RegtestWorld]:
    """Two nodes, of which the server's can open wallets."""
    async with RegtestWorld(installation=bitcoind, server_wallets=True) as world:
        yield world


class Desk:
    """The operator's commands on a server's data folder."""

    def __init__(self, config: Config) -> None:
        self.folder = config.data_folder
        node, hosted = config.node, config.hosted
        (self.folder / CONFIG_FILE_NAME).write_text(
            f"""
network = "regtest"
database_url = "{config.database_url}"
[node]
rpc_url = "{node.rpc_url}"
rpc_cookie_file = "{node.rpc_cookie_file}"
[hosted]
descriptor = "{hosted.descriptor}"
wallet = "{hosted.wallet}"
depth = {hosted.depth}
feerate_sat_vb = {hosted.feerate_sat_vb}
"""
        )

    async def run(
        self, *words: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None
    ) -> Result:
        command = ["payouts", *words, "--data", str(self.folder)]
        return await asyncio.to_thread(CliRunner().invoke, app, command, input=stdin, env=variables)

    async def ok(self, *words: str, stdin: bytes = b"") -> Any:
        """The document of a command that must succeed."""
        done = await self.run(*words, "--json", stdin=stdin)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    async def refused(
        self,
        *words: str,
        stdin: bytes = b"",
        exit_code: int = 1,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """What a command says that must fail."""
        done = await self.run(*words, "--json", stdin=stdin, variables=variables)
        assert done.exit_code == exit_code, done.output
        return str(json.loads(done.stdout)["error"]["detail"])

    async def said(self, *words: str) -> str:
        done = await self.run(*words)
        assert done.exit_code == 0, done.output
        return done.output


@asynccontextmanager
async def open_desk(
    world: RegtestWorld, folder: Path, **options: Any
) -> AsyncIterator[tuple[HostedShop, Desk]]:
    hosted = {"depth": 1, "feerate_sat_vb": 2, **options.pop("hosted", {})}
    async with open_hosted_till(world, folder, hosted=hosted, **options) as shop:
        yield shop, Desk(shop.services.config)


async def metrics(shop: HostedShop) -> dict[str, float]:
    """Those of payouts."""
    async with shop.till.http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = [line.split() for line in lines if line.startswith("bitcache_payout")]
    return {name: float(value) for name, value in found}


async def asked(shop: HostedShop, amount_sat: int) -> Payout:
    """A seller's payout that waits for approval."""
    address, now = await shop.new_address(), shop.till.server.clock()
    script = await shop.services.node.validate_address(address)
    assert script is not None
    approved = approved_payout(shop.seller_id, amount_sat, address=address, script_pubkey=script, now=now)
    payout = replace(approved, state=State.REQUESTED)

    async def write(tx: Transaction) -> Payout:
        return await payout_requests.request(tx, payout, depth=1, now=now)

    made: Payout = await shop.services.database.write(write)
    return made


async def restored_now(tx: Transaction) -> None:
    await tx.execute(insert(restores).values(id=1, restored_at=1, taken_at=1, from_height=None))


async def searching(tx: Transaction) -> None:
    """As after a restore, before the used addresses are found."""
    of_all = select(descriptors.c.id, literal(0))
    await tx.execute(insert(address_searches).from_select(["descriptor_id", "from_index"], of_all))


async def test_a_batch_is_built_exported_signed_elsewhere_bumped_and_mined(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    async with open_desk(wallets, tmp_path) as (shop, desk):
        await shop.sell(price_sat=50_000, count=2)
        assert "No payout waits." in await desk.said("list")
        assert (await desk.ok("build", "--yes"))["batch_id"] is None
        payout, other = await shop.request(60_000), await shop.request(20_000)
        waiting = await desk.ok("list")
        assert [one["waits"] for one in waiting["payouts"]] == ["for the next batch"] * 2
        assert (waiting["free_coins"], waiting["free_sat"], waiting["stopped"]) == (2, 100_000, None)
        shown = await metrics(shop)
        assert (shown["bitcache_payouts_waiting"], shown["bitcache_payouts_waiting_sat"]) == (2, 80_000)
        assert "Nothing was changed" in (await desk.run("build")).output
        assert "add --yes" in await desk.refused("build", exit_code=2)
        assert "sats per vbyte" in await desk.refused("build", "--yes", "--feerate", "cheap", exit_code=2)
        assert "a feerate is 1 to 100" in await desk.refused("build", "--yes", "--feerate", "101")
        assert (await desk.ok("list"))["batches"] == []

        given_up = (await desk.ok("build", "--yes"))["batch_id"]
        assert (await desk.ok("abandon", given_up))["batch_id"] == given_up
        batch_id = (await desk.ok("build", "--yes", "--feerate", "1.5"))["batch_id"]
        shown = await desk.ok("show", batch_id)
        assert sum(one["fee_sat"] for one in shown["shares"]) == shown["batch"]["fee_sat"]
        paid_sat = sum(one["arrives_sat"] for one in shown["shares"]) + shown["batch"]["change_sat"]
        assert paid_sat + shown["batch"]["fee_sat"] == sum(one["amount_sat"] for one in shown["inputs"])
        assert (shown["batch"]["feerate_sat_vb"], shown["batch"]["stands"]) == (1.5, "for its signatures")
        assert payout.address in await desk.said("show", batch_id)
        assert "arrive" in await desk.said("show", other.id)

        shown = await metrics(shop)
        assert (shown["bitcache_payouts_waiting"], shown["bitcache_payout_batches_unsigned"]) == (0, 1)

        file = tmp_path / "batch.psbt"
        await desk.ok("export", batch_id, "--out", str(file))
        psbt = (await desk.said("export", batch_id)).strip()
        assert file.read_bytes() == base64.b64decode(psbt)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "not overwritten" in await desk.refused("export", batch_id, "--out", str(file))
        assert "exported or signed" in await desk.refused("abandon", batch_id)
        assert "no wallet of the node signs here" in await desk.refused("sign", batch_id)

        nobodys = {"BITCACHE_HOSTED_WALLET": "nobody's"}
        assert "the node has no wallet" in await desk.refused("sign", batch_id, variables=nobodys)

        assert "signatures are missing" in await desk.refused("import", batch_id, str(file))
        assert "no signed PSBT" in await desk.refused("import", batch_id, stdin=b"\xff\x00")
        assert "no signed PSBT" in await desk.refused("import", batch_id, stdin=b" \n")
        assert "cannot be read" in await desk.refused("import", batch_id, str(tmp_path / "no such file"))
        file.write_bytes(base64.b64decode(await shop.sign_outside(psbt)))
        sent = await desk.ok("import", batch_id, str(file))
        assert (sent["version"], sent["refusal"]) == (1, None)
        await wallets.mempool_wait(sent["txid"], node=wallets.outside)
        assert (await desk.ok("import", batch_id, str(file)))["txid"] == sent["txid"]

        shop.till.server.clock.advance(7)
        shown = await metrics(shop)
        assert (shown["bitcache_payout_batches_unsigned"], shown["bitcache_payouts_stopped"]) == (0, 0)
        assert shown["bitcache_payout_batches_unconfirmed"] == 1
        assert shown["bitcache_payout_batch_unconfirmed_seconds"] >= 7

        assert "give a feerate of" in await desk.refused("bump", batch_id, "--feerate", "2")
        bumped = await desk.ok("bump", batch_id, "--feerate", "6")
        assert [one["signed"] for one in bumped["versions"]] == [True, False]
        assert bumped["batch"]["fee_sat"] == sum(one["fee_sat"] for one in bumped["shares"])
        assert bumped["batch"]["feerate_sat_vb"] == 6
        signed = await shop.sign_outside((await desk.ok("export", batch_id))["psbt"])
        final = await wallets.outside.rpc("finalizepsbt", signed)
        sent = await desk.ok("import", batch_id, "-", stdin=str(final["hex"]).encode())
        assert (sent["version"], sent["refusal"]) == (2, None)
        await wallets.mempool_wait(sent["txid"], node=wallets.outside)
        await shop.mine()
        assert (await metrics(shop))["bitcache_payout_batches_unconfirmed"] == 0
        assert (await desk.ok("show", payout.id))["payout"]["state"] == "done"
        assert (await desk.ok("list"))["payouts"] == []
        states = {one["batch_id"]: one["state"] for one in (await desk.ok("list", "--all"))["batches"]}
        assert states == {batch_id: "done", given_up: "dead"}
        assert "is in a block already" in await desk.refused("bump", batch_id, "--feerate", "9")


async def test_the_nodes_wallet_signs_and_bumps_on_command(wallets: RegtestWorld, tmp_path: Path) -> None:
    async with open_desk(wallets, tmp_path, cold=False) as (shop, desk):
        await shop.sell(price_sat=50_000)
        await shop.request(40_000)
        batch_id = (await desk.ok("build", "--yes"))["batch_id"]
        sent = await desk.ok("sign", batch_id)
        assert sent["refusal"] is None
        await wallets.mempool_wait(sent["txid"])
        assert "exported or signed" in await desk.refused("abandon", batch_id)
        sent = await desk.ok("bump", batch_id, "--feerate", "9")
        assert (sent["version"], sent["refusal"]) == (2, None)
        await wallets.mempool_wait(sent["txid"], node=wallets.outside)
        assert await wallets.server.rpc("listwallets") == []
        await shop.mine()
        assert (await desk.ok("show", batch_id))["batch"]["state"] == "done"


async def test_payouts_are_approved_and_declined(wallets: RegtestWorld, tmp_path: Path) -> None:
    async with open_desk(wallets, tmp_path) as (shop, desk):
        await shop.sell(price_sat=50_000)
        payout = await asked(shop, 40_000)
        assert "for your approval" in (await desk.ok("list"))["payouts"][0]["waits"]
        assert "There is no payout" in await desk.refused("approve", payout.id, NOBODY)
        assert "There is no payout" in await desk.refused("show", NOBODY)
        assert (await shop.payout(payout.id)).state is State.REQUESTED, "all of them or none"
        assert "Give a --reason" in await desk.refused("decline", payout.id, "--reason", " ", exit_code=2)

        (declined,) = await desk.ok("decline", payout.id, "--reason", "by \x1b[31m hand")
        assert declined == {"payout_id": payout.id, "state": "declined", "changed": True}
        assert (await shop.balances_sat())[ledger.seller(shop.seller_id)] == 50_000
        assert "by operator: by \ufffd[31m hand" in await desk.said("list", "--all")
        (approved,) = await desk.ok("approve", payout.id)
        assert approved["changed"]
        assert "already approved" in await desk.said("approve", payout.id)
        assert (await shop.payout(payout.id)).decided_by == "operator"

        # A refund of what was paid too much.
        bought = await shop.till.buy(await shop.till.offer(price_sat=50_000))
        await shop.till.pay(bought, amount_sat=80_000)
        await shop.mine()
        await shop.services.refunds.claim(bought.id, bought.claim_secret, await shop.new_address())
        (refund,) = [one for one in (await desk.ok("list"))["payouts"] if one["kind"] == "refund"]
        assert (refund["amount_sat"], refund["state"]) == (30_000, "requested")
        (approved,) = await desk.ok("approve", refund["payout_id"])
        assert approved["changed"]
        (declined,) = await desk.ok("decline", refund["payout_id"], "--reason", "it was a gift")
        assert declined["changed"]
        view = await shop.till.invoice(bought)
        assert view["refund"]["refunds"][0]["reason"] == "it was a gift", view

        batch_id = (await desk.ok("build", "--yes"))["batch_id"]
        assert f"in batch {batch_id}" in await desk.refused("decline", payout.id, "--reason", "no")


async def test_a_deposit_is_the_operators_and_is_withdrawn(wallets: RegtestWorld, tmp_path: Path) -> None:
    async with open_desk(wallets, tmp_path) as (shop, desk):
        # Taken by another process, paid and mined at once: the running server sees it all the same.
        address = (await desk.ok("deposit-address"))["address"]
        assert (await desk.ok("deposit-address"))["address"] != address
        await OutsideWallet(wallets.outside, MINER).pay([(address, 70_000)])
        await wallets.mine()
        await shop.seen()
        assert await shop.balances_sat() == {"chain": -70_000, "operator": 70_000}
        assert (await desk.ok("list"))["operator_payable_sat"] == 70_000

        home = await shop.new_address()
        assert "Nothing was changed" in (await desk.run("withdraw", "5000", home)).output
        assert "add --yes" in await desk.refused("withdraw", "5000", home, exit_code=2)
        assert "more than the 70,000 sat" in await desk.refused("withdraw", "70001", home, "--yes")
        assert "no address of regtest" in await desk.refused("withdraw", "5000", "bc1nonsense", "--yes")
        assert "belongs to this server" in await desk.refused("withdraw", "5000", address, "--yes")
        assert "Give AMOUNT and ADDRESS" in await desk.refused("withdraw", home, exit_code=2)
        assert "Give AMOUNT" in await desk.refused("withdraw", "5000", home, "--all", exit_code=2)
        await desk.ok("withdraw", "0.0002btc", home, "--yes")
        rest = await desk.ok("withdraw", "--all", home, "--yes")
        assert rest["amount_sat"] == 50_000
        assert "nothing of yours" in await desk.refused("withdraw", "--all", home, "--yes")
        batch_id = (await desk.ok("build", "--yes"))["batch_id"]
        await shop.send(batch_id)
        await shop.mine()
        fee_sat = (await desk.ok("show", batch_id))["batch"]["fee_sat"]
        assert await shop.received_sat(home) == 70_000 - fee_sat
        assert await shop.balances_sat() == {}


async def test_after_a_restore_nothing_goes_out_until_the_operator_says_so(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    async with open_desk(wallets, tmp_path) as (shop, desk):
        await shop.sell(price_sat=50_000)
        await shop.request(40_000)
        batch_id = await shop.build()
        await shop.services.database.write(restored_now)
        assert (await metrics(shop))["bitcache_payouts_stopped"] == 1
        assert "Nothing is paid out now: this database was put back" in await desk.said("list")
        for words in (
            ("build", "--yes"),
            ("export", batch_id),
            ("bump", batch_id, "--feerate", "9"),
            ("import", batch_id, "-"),
        ):
            assert "bitcache payouts resume" in await desk.refused(*words, stdin=b"00")
        assert "Nothing was changed" in (await desk.run("resume")).output
        assert "add --yes" in await desk.refused("resume", exit_code=2)
        assert "bitcache payouts resume" in await desk.refused("build", "--yes")
        assert (await desk.ok("resume", "--yes"))["resumed"]
        assert not (await desk.ok("resume", "--yes"))["resumed"]
        await desk.ok("export", batch_id)


async def test_without_the_server_nothing_is_built_of_what_it_has_not_seen(
    wallets: RegtestWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payout_desk, "CHAIN_SEEN_S", 0.0)
    async with open_desk(wallets, tmp_path) as (shop, desk):
        await shop.sell(price_sat=50_000)
        await shop.request(20_000)
        payout = await asked(shop, 20_000)
    # A node that does not answer, too, is told in words.
    away = {"BITCACHE_NODE_RPC_URL": "http://127.0.0.1:1"}
    assert "`bitcache doctor` looks at it" in await desk.refused("build", "--yes", variables=away)
    assert "`bitcache doctor` looks at it" in await desk.refused("deposit-address", variables=away)
    assert len((await desk.ok("list"))["payouts"]) == 2
    await wallets.mine()
    assert "Start the server" in await desk.refused("build", "--yes")
    (approved,) = await desk.ok("approve", payout.id)
    assert approved["changed"]

    async with open_services(shop.services.config) as services:
        await services.database.write(searching)
    assert "`bitcache unassigned`" in await desk.refused("deposit-address")


async def test_without_hosted_sales_it_is_said_what_to_configure(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    async with open_desk(wallets, tmp_path) as (_, desk):
        pass
    off = {"BITCACHE_HOSTED_DESCRIPTOR": ""}
    assert "set [hosted] `descriptor`" in await desk.refused("build", "--yes", variables=off)
    assert "set [hosted] `descriptor`" in await desk.refused("deposit-address", variables=off)


async def both(*ways: Coroutine[Any, Any, Any]) -> tuple[list[Any], list[Exception]]:
    """Everything at once: what came of it, and what was refused."""
    ended = await asyncio.gather(*ways, return_exceptions=True)
    failed = [one for one in ended if isinstance(one, Exception)]
    return [one for one in ended if not isinstance(one, Exception)], failed


async def test_of_two_administrators_at_once_one_has_an_effect_and_the_other_is_told(
    wallets: RegtestWorld, tmp_path: Path, each_with_tables: str
) -> None:
    async with (
        open_desk(wallets, tmp_path, database_url=each_with_tables) as (shop, desk),
        open_services(shop.services.config) as first,
        open_services(shop.services.config) as second,
    ):
        await shop.sell(price_sat=50_000, count=2)
        payout = await asked(shop, 40_000)
        here = (first, second)

        decided, failed = await both(*(payout_desk.approve(one, [payout.id]) for one in here))
        assert not failed
        assert sorted(one.changed for (one,) in decided) == [False, True]

        # What is called off while somebody looks at the batch is not paid.
        plan = await payout_desk.plan(first, None)
        assert plan is not None
        await payout_desk.decline(second, payout.id, reason="not now")
        with pytest.raises(PayoutConflict, match="were called off"):
            await payout_desk.keep(first, plan)
        await payout_desk.approve(second, [payout.id])

        plans = [await payout_desk.plan(one, None) for one in here]
        kept, (refusal,) = await both(
            *(payout_desk.keep(one, plan) for one, plan in zip(here, plans, strict=True) if plan)
        )
        assert len(kept) == 1
        assert isinstance(refusal, PayoutConflict)
        assert "went into another one" in str(refusal)

        psbt = await first.batches.export(kept[0])
        signed = await shop.sign_outside(psbt)
        sent, failed = await both(*(payout_desk.import_signed(one, kept[0], signed) for one in here))
        assert not failed
        assert len({one.version.txid for one in sent}) == 1
        versions, failed = await both(
            *(
                one.batches.bump(kept[0], feerate_sat_kvb=rate)
                for one, rate in zip(here, (5_000, 9_000), strict=True)
            )
        )
        assert versions[0] == 2
        assert len(versions) + len(failed) == 2
        assert all(isinstance(one, PayoutConflict | PayoutRefused) for one in failed)
        await shop.send(kept[0])
        await shop.mine()

        assert (await desk.ok("list"))["batches"] == []
        assert (await desk.ok("show", kept[0]))["batch"]["state"] == "done"
        assert (await metrics(shop))["bitcache_payouts_waiting"] == 0

        # As processes, on what is left. One database will do: starting them takes seconds.
        if not first.database.is_sqlite:
            return
        await shop.request(30_000)
        command = ("payouts", "build", "--yes", "--json", "--data", str(desk.folder))
        processes = [await bitcache(tmp_path, *command) for _ in here]
        said = [json.loads((await one.communicate())[0]) for one in processes]
        built = [one["batch_id"] for one in said if one.get("batch_id")]
        assert len(built) == 1, said
        assert all("went into another one" in one["error"]["detail"] for one in said if "error" in one)
        assert len((await desk.ok("list"))["batches"]) == 1
