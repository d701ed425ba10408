"""`bitcache refund` and `bitcache refunds`, as programs, on a real server and node."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bitcache.client.link import Receipt
from regtest.world import RegtestWorld
from tests.hosted_shop import open_hosted_till
from tests.refund_desk import AT_ONCE, underpaid
from tests.test_bitcache_cli_seller import Seller


async def test_a_buyer_asks_and_a_seller_answers(world: RegtestWorld, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    async with open_hosted_till(world, tmp_path, hosted=AT_ONCE) as shop:
        program = Seller(shop.till.server, shop.till.account.token, tmp_path / "home")
        bought = await underpaid(shop, 20_000)
        receipt = str(Receipt(shop.till.server.url, bought.id, bought.claim_secret, os.urandom(32)))
        address = await shop.new_address()

        code, _, err = await program.run("refund", receipt, address, answer="n\n")
        assert code == 1
        for words in ("calls off", "must approve", "10 %", "final", "20,000 sat", "Nothing was asked back"):
            assert words in err
        code, out, _ = await program.run("refund", receipt, address, answer="y\n")
        assert code == 0
        assert address in out

        _, out, _ = await program.signed_in("refunds", "list", "--json")
        (listed,) = json.loads(out)
        answer = ("--reason", "You have the files.")
        code, out, _ = await program.signed_in("refunds", "decline", listed["refund_id"], *answer)
        assert (code, "declined: You have the files." in out) == (0, True)
        _, out, _ = await program.run("refund", receipt)
        assert "You have the files." in out
