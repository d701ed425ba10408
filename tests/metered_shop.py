"""The real server selling per chunk, and payers who speak HTTP to it.

async with open_metered_shop(world, folder) as shop:
    sold = await shop.offer(chunks=3)
    payer = await shop.payer(deposit_sat=20_000)
    await payer.open(0)
    answer = await payer.get(sold, chunk=0, price_sat=10)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coincurve import PrivateKey

from bitcache.channel_seed import write_channel_seed
from bitcache.config import ChannelsConfig
from payments.channel_keys import public_bytes, sign
from payments.channel_script import Channel, Contract, parse_channel_id
from payments.money import Sat
from payments.segwit_address import script_pubkey_of
from regtest.node import wait_until
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES
from tests.hosted_shop import HostedShop, open_hosted_till
from tests.till import Sold

API = "/api/v1"
CHANNELS = ChannelsConfig(enabled=True, close_feerate_sat_vb=2)


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    challenges: tuple[str, ...]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """Its name; fails if it is none."""
        assert self.status >= 400, (self.status, self.body[:300])
        return str(self.json["type"]).removeprefix("/problems/")

    @property
    def receipt(self) -> Any:
        return json.loads(base64url.decode(self.headers["Payment-Receipt"]))


@dataclass
class MeteredShop:
    hosted: HostedShop

    @property
    def services(self) -> Any:
        return self.hosted.services

    @property
    def world(self) -> RegtestWorld:
        return self.hosted.world

    async def offer(
        self, *, chunks: int = 3, price_msat: int = 10_000, whole_sat: int | None = None, **columns: Any
    ) -> Sold:
        """One file of so many chunks; the last one is short."""
        return await self.hosted.till.offer(
            price_sat=whole_sat if whole_sat is not None else 1_000,
            sizes=((chunks - 1) * CHUNK_SIZE_BYTES + 100,),
            meterable=True,
            metered_msat=price_msat,
            sold_whole=whole_sat is not None,
            **columns,
        )

    async def ask(self, method: str, path: str, **options: Any) -> Answered:
        async with self.hosted.till.http.request(method, path, **options) as answer:
            challenges = tuple(answer.headers.getall("WWW-Authenticate", []))
            return Answered(answer.status, answer.headers, challenges, await answer.read())

    async def terms(self) -> Any:
        answer = await self.ask("GET", f"{API}/channels/terms")
        assert answer.status == 200, answer.body
        return answer.json

    async def payer(self, *, deposit_sat: int = 20_000, confirmations: int = 1) -> Payer:
        """Terms, an announced contract, and a deposit to its address which the server sees."""
        payer = await self.announced()
        await payer.deposit(deposit_sat)
        if confirmations:
            await self.hosted.mine(confirmations)
            await payer.until(lambda view: bool(view["confirmations"] >= confirmations))
            # What is paid by is in memory, and follows the chain within two seconds.
            await self.services.channels.registry.poll_once()
        return payer

    async def announced(self) -> Payer:
        terms = await self.terms()
        outside = self.world.outside
        address = await outside.rpc("getnewaddress", address_type="bech32", wallet=MINER)
        payer = Payer(self, PrivateKey(), terms, script_pubkey_of(address, "regtest"))
        view = await payer.announce()
        assert view["channels"] == []
        payer.address = view["address"]
        return payer


@dataclass
class Payer:
    """Who has one channel, and counts what they signed."""

    shop: MeteredShop
    key: PrivateKey
    terms: Any
    change_script: bytes
    address: str = ""
    paid_sat: int = 0
    _channel: Channel | None = field(default=None)

    @property
    def contract(self) -> Contract:
        terms = self.terms
        return Contract(
            public_bytes(self.key),
            bytes.fromhex(terms["payee_key"]),
            terms["expiry_height"],
            self.change_script,
            Sat(terms["close_fee_sat"]),
        )

    @property
    def channel(self) -> Channel:
        assert self._channel is not None, "nothing was deposited yet"
        return self._channel

    @property
    def id(self) -> str:
        return self.channel.id

    async def announce(self) -> Any:
        asked = {
            "challenge": self.terms["challenge"],
            "payer_key": public_bytes(self.key).hex(),
            "change_script": self.change_script.hex(),
        }
        answer = await self.shop.ask("POST", f"{API}/channels/deposits", json=asked)
        assert answer.status == 200, answer.body
        return answer.json

    async def deposit(self, deposit_sat: int, *, seen: bool = True) -> str:
        """From the miner's wallet; the channel's id."""
        world = self.shop.world
        payment = await OutsideWallet(world.outside, MINER).pay([(self.address, deposit_sat)])
        raw = await world.outside.rpc("getrawtransaction", payment.txid, True)
        (vout,) = [
            output["n"] for output in raw["vout"] if output["scriptPubKey"].get("address") == self.address
        ]
        await world.mempool_wait(payment.txid)
        self.hold(f"{payment.txid}:{vout}", deposit_sat)
        if seen:
            await self.until(lambda view: view is not None)
        return self.id

    def hold(self, channel_id: str, capacity_sat: int) -> None:
        self._channel = Channel(self.contract, parse_channel_id(channel_id), Sat(capacity_sat))
        self.paid_sat = 0

    async def until(self, holds: Any) -> Any:
        """Wait for the server to see the deposit so."""
        latest: Any = None

        async def look() -> bool:
            nonlocal latest
            found = [one for one in (await self.announce())["channels"] if one["channel_id"] == self.id]
            latest = found[0] if found else None
            return latest is not None and bool(holds(latest))

        await wait_until(look, "the server to see the deposit")
        return latest

    # What goes into a credential.

    def voucher(self, paid_sat: int, **changes: Any) -> dict[str, Any]:
        payload = {
            "action": "voucher",
            "channelId": self.id,
            "cumulativeAmount": str(paid_sat),
            "signature": "00" * 64 if "signature" in changes else self.channel.sign(self.key, paid_sat).hex(),
        }
        return {**payload, **changes}

    def opening(self, paid_sat: int, **changes: Any) -> dict[str, Any]:
        return {
            **self.voucher(paid_sat),
            "action": "open",
            "payerKey": public_bytes(self.key).hex(),
            "changeScript": self.change_script.hex(),
            **changes,
        }

    def authorization(
        self, payload: Mapping[str, Any], challenge: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        document = {"challenge": challenge or self.terms["challenge"], "payload": payload}
        return {"Authorization": f"Payment {base64url.encode(json.dumps(document).encode())}"}

    # Requests.

    async def use(self, payload: Mapping[str, Any], challenge: Mapping[str, Any] | None = None) -> Answered:
        headers = self.authorization(payload, challenge)
        return await self.shop.ask("POST", f"{API}/channels", headers=headers)

    async def open(self, paid_sat: int = 0) -> Answered:
        answer = await self.use(self.opening(paid_sat))
        if answer.status == 200:
            self.paid_sat = paid_sat
        return answer

    async def sign_away(self, more_sat: int) -> Answered:
        """A voucher alone."""
        answer = await self.use(self.voucher(self.paid_sat + more_sat))
        if answer.status == 200:
            self.paid_sat += more_sat
        return answer

    async def get(
        self,
        sold: Sold,
        chunk: int = 0,
        *,
        price_sat: int = 0,
        chunks: int = 1,
        file_id: str | None = None,
        payload: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
    ) -> Answered:
        """Some chunks, for `price_sat` more than was signed before. `headers` in place of the Range."""
        if payload is None:
            self.paid_sat += price_sat
            payload = self.voucher(self.paid_sat)
        if headers is None:
            first, end = chunk * CHUNK_SIZE_BYTES, (chunk + chunks) * CHUNK_SIZE_BYTES
            headers = {"Range": f"bytes={first}-{end - 1}"}
        path = f"{API}/offers/{sold.offer_id}/files/{file_id or sold.file_id}/content"
        return await self.shop.ask(method, path, headers={**headers, **self.authorization(payload)})

    async def mine(self, *, at: int | None = None, key: PrivateKey | None = None) -> Answered:
        """What the server says of all channels of this key."""
        at = self.shop.services.clock() if at is None else at
        realm = self.shop.services.config.listen
        digest = hashlib.sha256(
            b"bitcache/v1/channel-proof" + realm.encode() + b"\0" + at.to_bytes(8, "big")
        ).digest()
        asked = {
            "payer_key": public_bytes(self.key).hex(),
            "at": at,
            "signature": sign(key or self.key, digest).hex(),
        }
        return await self.shop.ask("POST", f"{API}/channels/mine", json=asked)


def piece(sold: Sold, chunk: int, chunks: int = 1, *, file_id: str | None = None) -> bytes:
    """What these chunks are."""
    blob = sold.blobs[file_id or sold.file_id]
    return blob[chunk * CHUNK_SIZE_BYTES : (chunk + chunks) * CHUNK_SIZE_BYTES]


@asynccontextmanager
async def open_metered_shop(
    world: RegtestWorld, folder: Path, *, channels: ChannelsConfig = CHANNELS, **changes: Any
) -> AsyncIterator[MeteredShop]:
    write_channel_seed(folder / channels.seed_file)
    async with open_hosted_till(world, folder, channels=channels, **changes) as hosted:
        shop = MeteredShop(hosted)

        async def available() -> bool:
            return bool(shop.services.channels.registry.available)

        await wait_until(available, "the process to have the channels")
        yield shop
