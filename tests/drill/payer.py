"""Where the buyers' money comes from: coins of one wallet of the outside node, each given to one buyer.

Transactions are made by hand, from coins and fees of our choice, so that one can replace or rob another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regtest.node import btc, sat
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld

COIN_SAT = 100_000
COINS_PER_BUYER = 2
DUST_SAT = 1_000
CONFIRMATIONS = 10
"""Deeper than any reorg: no fault takes the coins themselves."""


@dataclass(frozen=True)
class Coin:
    txid: str
    vout: int
    script_pubkey: str


@dataclass(frozen=True)
class Payment:
    """A signed transaction. Build another from its `coins`, at a higher fee, to replace it."""

    txid: str
    raw: str
    coins: tuple[Coin, ...]
    fee_sat: int


class Payer:
    def __init__(self, world: RegtestWorld, wallet: OutsideWallet, coins: list[Coin], address: str) -> None:
        self._outside = world.outside
        self._wallet = wallet
        self._coins = coins
        self.address = address
        """Our own: change, and what a robber takes back."""

    @classmethod
    async def create(cls, world: RegtestWorld, *, buyers: int) -> Payer:
        wallet = await OutsideWallet.create(world, "buyers")
        last = buyers * COINS_PER_BUYER - 1
        addresses = await world.outside.rpc("deriveaddresses", await wallet.descriptor("wpkh"), [0, last])
        sent = await world.outside.rpc(
            "sendmany", "", {address: btc(COIN_SAT) for address in addresses}, wallet=MINER
        )
        known = await world.outside.rpc("gettransaction", sent, verbose=True, wallet=MINER)
        await world.mine(CONFIRMATIONS)
        coins = [
            Coin(sent, output["n"], output["scriptPubKey"]["hex"])
            for output in known["decoded"]["vout"]
            if output["scriptPubKey"].get("address") in set(addresses)
        ]
        assert len(coins) == len(addresses)
        return cls(world, wallet, coins, addresses[0])

    def coins(self, buyer: int) -> list[Coin]:
        """The coins of this buyer alone."""
        return self._coins[buyer * COINS_PER_BUYER : (buyer + 1) * COINS_PER_BUYER]

    async def build(
        self, coins: Sequence[Coin], outputs: Sequence[tuple[str, int]], *, fee_sat: int = 3_000
    ) -> Payment:
        """Pay (address, sat) pairs from all of `coins`, the change to our own address. Not broadcast."""
        change_sat = COIN_SAT * len(coins) - sum(value_sat for _, value_sat in outputs) - fee_sat
        paid: list[dict[str, Any]] = [{address: btc(value_sat)} for address, value_sat in outputs]
        if change_sat >= DUST_SAT:
            paid.append({self.address: btc(change_sat)})
        inputs = [{"txid": coin.txid, "vout": coin.vout, "sequence": 0xFFFFFFFD} for coin in coins]
        bare = await self._outside.rpc("createrawtransaction", inputs, paid)
        # A coin that a rival spends is not to be found by the wallet itself.
        spent = [
            {
                "txid": coin.txid,
                "vout": coin.vout,
                "scriptPubKey": coin.script_pubkey,
                "amount": btc(COIN_SAT),
            }
            for coin in coins
        ]
        signed = await self._wallet.rpc("signrawtransactionwithwallet", bare, spent)
        assert signed["complete"], signed
        decoded = await self._outside.rpc("decoderawtransaction", signed["hex"])
        return Payment(decoded["txid"], signed["hex"], tuple(coins), fee_sat)

    async def send(self, payment: Payment) -> None:
        """Broadcast on the outside node. Raises RpcRefused where it conflicts with something."""
        await self._outside.rpc("sendrawtransaction", payment.raw, 0)

    async def robbery(self, payment: Payment) -> Payment:
        """The same coins back to us, at a fee that replaces `payment`."""
        return await self.build(payment.coins, [], fee_sat=payment.fee_sat * 4)

    async def depth(self, payment: Payment) -> int:
        """Confirmations on the outside node; below 0 where another was confirmed in its place."""
        known = await self._wallet.rpc("gettransaction", payment.txid)
        return int(known["confirmations"])


async def payments_to(world: RegtestWorld, addresses: set[str]) -> list[tuple[str, int, str, int, int]]:
    """(txid, vout, address, sat, height) of every output of the active chain to one of these, as the
    outside node tells it: nothing of ours reads a block here."""
    found = []
    for height in range(await world.outside.rpc("getblockcount") + 1):
        block = await world.outside.rpc("getblock", await world.outside.rpc("getblockhash", height), 2)
        for transaction in block["tx"]:
            for output in transaction["vout"]:
                address = output["scriptPubKey"].get("address")
                if address in addresses:
                    found.append((transaction["txid"], output["n"], address, sat(output["value"]), height))
    return found
