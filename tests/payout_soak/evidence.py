"""What all others than the server know of a soak: the blocks as the outside node tells them, the actors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from regtest.node import sat
from regtest.world import RegtestWorld
from tests.payout_soak.faults import Foreign
from tests.payout_soak.house import House
from tests.payout_soak.people import Buyer, Seller

ADDRESSES = 2_000
"""Of the operator's descriptor, for the node's own count of its coins."""


class Output(NamedTuple):
    address: str
    amount_sat: int


class ChainTransaction(NamedTuple):
    txid: str
    height: int
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[Output, ...]


class AskedPayout(NamedTuple):
    payout_id: str
    kind: str
    account: str
    amount_sat: int
    address: str


class Buying(NamedTuple):
    name: str
    invoice_id: str
    seller_id: str
    address: str
    price_sat: int


class Evidence(Struct, frozen=True):
    tip_height: int
    transactions: tuple[ChainTransaction, ...]
    """Of the active chain, but for coinbases."""
    wallet_sat: int
    """What the operator's descriptor has, by the node's `scantxoutset`."""
    asked: tuple[AskedPayout, ...]
    bought: tuple[Buying, ...]
    sellers: tuple[str, ...]
    foreign: tuple[str, ...]
    fee_ppm: int
    fee_sat: int


async def gather(
    house: House,
    asked: Iterable[AskedPayout],
    buyers: Sequence[Buyer],
    sellers: Sequence[Seller],
    foreign: Sequence[Foreign],
) -> Evidence:
    descriptor = await house.keys.descriptor()
    scanned = await house.world.outside.rpc(
        "scantxoutset", "start", [{"desc": descriptor, "range": [0, ADDRESSES]}]
    )
    config = house.admins[0].services.config.hosted
    return Evidence(
        tip_height=await house.world.outside.rpc("getblockcount"),
        transactions=tuple(await _transactions(house.world, house.first_height)),
        wallet_sat=sat(scanned["total_amount"]),
        asked=tuple(asked),
        bought=tuple(
            Buying(f"buyer {one.number}", one.invoice_id, one.seller.id, one.address, one.price_sat)
            for one in buyers
        ),
        sellers=tuple(one.id for one in sellers),
        foreign=tuple(one.txid for one in foreign),
        fee_ppm=config.fee_ppm,
        fee_sat=config.fee_sat,
    )


async def _transactions(world: RegtestWorld, from_height: int) -> list[ChainTransaction]:
    found = []
    for height in range(from_height, await world.outside.rpc("getblockcount") + 1):
        block = await world.outside.rpc("getblock", await world.outside.rpc("getblockhash", height), 2)
        for transaction in block["tx"][1:]:
            found.append(
                ChainTransaction(
                    transaction["txid"],
                    height,
                    tuple((one["txid"], one["vout"]) for one in transaction["vin"]),
                    tuple(
                        Output(one["scriptPubKey"].get("address", ""), sat(one["value"]))
                        for one in transaction["vout"]
                    ),
                )
            )
    return found
