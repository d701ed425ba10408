"""The real server selling a real parcel: rows and blobs are put in place, the money is on a real node.

    async with open_till(world, tmp_path) as till:
        offer = await till.offer(price_sat=5_000)
        bought = await till.buy(offer)
        await till.pay(bought.invoice)

The ciphertext is random bytes: the server cannot tell the difference, and must not.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import insert, update

from bitcache.accounts import IssuedToken
from bitcache.config import NodeConfig
from bitcache.db.tables import accounts, files, offers, parcel_files, parcels
from bitcache.ids import new_id
from bitcache.node_state import node_state
from payments import chain_store
from payments.addresses import normalise_descriptor
from payments.chain_facts import BlockRef
from payments.ports import Transaction
from regtest.node import wait_until
from regtest.wallet import OutsideWallet, Payment
from regtest.world import MINER, RegtestWorld
from storage import base64url, digests
from storage.ports import PART_SIZE_BYTES
from storage.stream import CHUNK_SIZE_BYTES
from tests.service import RunningServer, running_server

RELEASE_SECRET = bytes(range(32))
RICH_SAT_VB = 1_000
"""Far above what the nodes that tests share have learnt to estimate: fit for bytes before a block."""
METADATA = b"sealed, and none of the server's business"


@dataclass(frozen=True)
class Sold:
    """One parcel on offer. `blobs` is each file's ciphertext by its id."""

    offer_id: str
    parcel_id: str
    blobs: dict[str, bytes]

    @property
    def file_id(self) -> str:
        return next(iter(self.blobs))

    @property
    def content(self) -> str:
        """Path of the first file's ciphertext."""
        return f"/api/v1/offers/{self.offer_id}/files/{self.file_id}/content"


@dataclass(frozen=True)
class Bought:
    """An invoice as its buyer holds it."""

    invoice: dict[str, Any]
    claim_secret: bytes

    @property
    def id(self) -> str:
        return str(self.invoice["invoice_id"])


@dataclass
class Till:
    server: RunningServer
    account: IssuedToken
    world: RegtestWorld | None = None
    http: aiohttp.ClientSession = field(init=False)

    async def offer(
        self,
        *,
        price_sat: int = 5_000,
        bytes_at: int = 1,
        key_at: int = 1,
        sizes: tuple[int, ...] = (CHUNK_SIZE_BYTES + 1234,),
        meterable: bool = False,
        **columns: Any,
    ) -> Sold:
        """A sealed parcel of files of these sizes, on offer. `columns` are further columns of `offers`."""
        services, now = self.server.services, self.server.clock()
        blobs = {new_id(): os.urandom(size) for size in sizes}
        offer_id, parcel_id = new_id(), new_id()
        for file_id, blob in blobs.items():
            for start in range(0, len(blob), PART_SIZE_BYTES):
                part = blob[start : start + PART_SIZE_BYTES]
                await services.blobs.write_part(file_id, start // PART_SIZE_BYTES, part)
            await services.blobs.finish(file_id, len(blob))

        async def put(tx: Transaction) -> None:
            for file_id, blob in blobs.items():
                listed = digests.chunk_digests(blob)
                await tx.execute(
                    insert(files).values(
                        id=file_id,
                        account_id=self.account.account_id,
                        size_bytes=len(blob),
                        created_at=now,
                        touched_at=now,
                        completed_at=now,
                        root=digests.root(listed),
                        digests=listed,
                    )
                )
            await tx.execute(
                insert(parcels).values(
                    id=parcel_id,
                    account_id=self.account.account_id,
                    created_at=now,
                    meterable=meterable,
                    size_bytes=sum(sizes),
                    files_count=len(sizes),
                    sealed_at=now,
                    metadata=METADATA,
                    sealed_release_secret=services.sealer.seal(
                        RELEASE_SECRET, table="parcels", row_id=parcel_id
                    ),
                )
            )
            for position, file_id in enumerate(blobs):
                await tx.execute(
                    insert(parcel_files).values(
                        parcel_id=parcel_id, position=position, file_id=file_id, wrapped_key=bytes(60)
                    )
                )
            await tx.execute(
                insert(offers).values(
                    id=offer_id,
                    account_id=self.account.account_id,
                    parcel_id=parcel_id,
                    created_at=now,
                    price_msat=price_sat * 1000,
                    bytes_at=bytes_at,
                    key_at=key_at,
                    **columns,
                )
            )

        await services.database.write(put)
        return Sold(offer_id, parcel_id, blobs)

    async def buy(self, sold: Sold, *, secret: bytes | None = None) -> Bought:
        """Ask for an invoice; fails unless there is one."""
        secret = secret or os.urandom(32)
        async with self.ask(sold, secret) as answer:
            assert answer.status in (200, 201), await answer.text()
            return Bought(await answer.json(), secret)

    def ask(self, sold: Sold, secret: bytes, *, forwarded_for: str | None = None) -> Any:
        return self.http.post(
            f"/api/v1/offers/{sold.offer_id}/invoices",
            json={"claim_hash": base64url.encode(hashlib.sha256(secret).digest())},
            headers={"X-Forwarded-For": forwarded_for} if forwarded_for else None,
        )

    async def claim(self, bought: Bought, *, secret: bytes | None = None) -> tuple[int, dict[str, Any]]:
        body = {"claim_secret": base64url.encode(secret or bought.claim_secret)}
        async with self.http.post(f"/api/v1/invoices/{bought.id}/claim", json=body) as answer:
            return answer.status, await answer.json()

    async def token(self, bought: Bought) -> dict[str, str]:
        """Headers with a fresh grant token."""
        status, claimed = await self.claim(bought)
        assert status == 200, claimed
        return {"Authorization": f"Bearer {claimed['grant_token']}"}

    async def status_of(self, url: str, headers: dict[str, str]) -> tuple[int, str]:
        """(status, problem name or "")."""
        async with self.http.get(url, headers=headers) as answer:
            if answer.content_type != "application/problem+json":
                return answer.status, ""
            return answer.status, str((await answer.json())["type"]).removeprefix("/problems/")

    async def invoice(self, bought: Bought) -> dict[str, Any]:
        async with self.http.get(f"/api/v1/invoices/{bought.id}") as answer:
            assert answer.status == 200, await answer.text()
            view: dict[str, Any] = await answer.json()
            return view

    async def until(
        self, bought: Bought, holds: Callable[[dict[str, Any]], bool], what: str
    ) -> dict[str, Any]:
        """Wait for the running server to see it."""
        latest: dict[str, Any] = {}

        async def look() -> bool:
            nonlocal latest
            latest = await self.invoice(bought)
            return holds(latest)

        await wait_until(look, what)
        return latest

    async def pay(
        self, bought: Bought, *, amount_sat: int | None = None, feerate_sat_vb: int = 20
    ) -> Payment:
        """From the miner's wallet, unconfirmed."""
        assert self.world is not None
        payer = OutsideWallet(self.world.outside, MINER)
        due_sat = bought.invoice["due_sat"] if amount_sat is None else amount_sat
        payment = await payer.pay([(bought.invoice["address"], due_sat)], feerate_sat_vb=feerate_sat_vb)
        await self.world.mempool_wait(payment.txid)
        return payment

    async def paid(self, sold: Sold) -> Bought:
        """Bought, paid, confirmed."""
        assert self.world is not None
        bought = await self.buy(sold)
        await self.pay(bought)
        await self.world.mine()
        await self.until(bought, lambda view: bool(view["key_allowed"]), "the key")
        return bought


def node_config(world: RegtestWorld) -> NodeConfig:
    """The service's own node in `world`."""
    return NodeConfig(
        rpc_url=world.server.rpc_url,
        rpc_cookie_file=str(world.server.cookie_path),
        zmq_sequence_url=world.server.zmq_url,
        poll_interval_s=1,
    )


@asynccontextmanager
async def open_till(world: RegtestWorld, folder: Path, **changes: Any) -> AsyncIterator[Till]:
    """A server on the world's node, with a seller whose wallet is on the outside node.

    With `role=Role.WEB` a watcher must run already, on the same database.
    """
    async with running_server(folder, node=node_config(world), **changes) as server:
        till = Till(server, await server.new_seller(), world)
        wallet = await OutsideWallet.create(world, f"seller-{time.monotonic_ns()}")
        services = server.services
        descriptor = await normalise_descriptor(services.node, await wallet.descriptor(), "regtest")

        async def set_payout(tx: Transaction) -> None:
            await services.descriptors.register(tx, descriptor, start_index=0, now=server.clock())
            await tx.execute(
                update(accounts)
                .where(accounts.c.id == till.account.account_id)
                .values(descriptor_id=descriptor.id)
            )

        await services.database.write(set_payout)

        async def online() -> bool:
            state = await services.database.read(lambda tx: node_state(tx, server.clock()))
            return state.online

        await wait_until(online, "the watcher to see the node")
        async with server.session() as till.http:
            yield till


@asynccontextmanager
async def open_nodeless_till(folder: Path, **changes: Any) -> AsyncIterator[Till]:
    """A server without a node: enough for free offers and for all that needs no money."""
    async with running_server(folder, **changes) as server:
        till = Till(server, await server.new_seller())
        async with server.session() as till.http:
            yield till


async def pretend_node_online(till: Till) -> None:
    """Write the heartbeat a watcher would, for what is refused for another reason than the node."""
    now = till.server.clock()

    async def write(tx: Transaction) -> None:
        await chain_store.connect(tx, BlockRef(height=200, hash="00" * 32), now=now)
        await chain_store.beat(tx, now=now, online=True, trouble=None)

    await till.server.services.database.write(write)
