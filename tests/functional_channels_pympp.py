"""An unmodified client of the `Payment` scheme pays chunks through a channel.

The client is pympp's. What is ours is a payment method that opens a channel at its first challenge, from any
wallet, and signs a voucher for every chunk; the bytes of the scripts and digests are computed here, from
docs/PROTOCOL.md, and not by the server's code.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import mpp
import pytest
import pytest_asyncio
from bitcoin.core import CMutableTransaction, COutPoint, CTxIn, CTxOut, lx
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, SignatureHash
from coincurve import PrivateKey
from coincurve.ecdsa import der_to_cdata, serialize_compact
from mpp.client import Mpp
from mpp.methods import Method
from mpp.runtime import ClientMethod, CredentialParams
from pydantic import BaseModel

from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES as CHUNK
from tests.metered_shop import MeteredShop, open_metered_shop, piece
from tests.till import Sold

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPOSIT_SAT = 20_000
SINGLE_ANYONECANPAY = 0x83


class SessionRequest(BaseModel):
    amount: str
    currency: str
    unitType: str  # noqa: N815
    methodDetails: dict[str, Any]  # noqa: N815


class SessionPayload(BaseModel):
    model_config = {"extra": "allow"}

    action: str


@dataclass
class ChannelMethod:
    """One channel for all that is asked of it: what it costs is added to what was signed before."""

    world: RegtestWorld
    key: PrivateKey = field(default_factory=PrivateKey)
    outpoint: tuple[str, int] | None = None
    change_script: bytes = b""
    script: bytes = b""
    close_fee_sat: int = 0
    paid_sat: int = 0
    asked: int = 0
    challenge: mpp.Challenge | None = None

    def method(self) -> ClientMethod:
        session = Method(
            name="bitcoin", intent="session", request_model=SessionRequest, payload_model=SessionPayload
        )
        return ClientMethod(method=session, create_credential=self._create_credential)

    async def _create_credential(self, params: CredentialParams) -> str:
        self.asked += 1
        self.challenge = params.challenge
        if self.outpoint is None:
            await self._fund(params.challenge.request["methodDetails"])
            return self.credential("open")
        return self.credential("voucher")

    def credential(self, action: str = "voucher") -> str:
        """For one more chunk; needs no new challenge."""
        assert self.challenge is not None
        assert self.outpoint is not None
        self.paid_sat += int(self.challenge.request["amount"])
        payload = {
            "action": action,
            "channelId": f"{self.outpoint[0]}:{self.outpoint[1]}",
            "cumulativeAmount": str(self.paid_sat),
            "signature": self._signature(self.paid_sat).hex(),
        }
        if action == "open":
            payload |= {
                "payerKey": self.key.public_key.format().hex(),
                "changeScript": self.change_script.hex(),
            }
        made = mpp.Credential(challenge=self.challenge.to_echo(), payload=payload)
        return str(made.to_authorization())

    async def _fund(self, details: dict[str, Any]) -> None:
        payee, expiry = bytes.fromhex(details["payeeKey"]), details["expiry"]
        number = expiry.to_bytes(expiry.bit_length() // 8 + 1, "little")
        self.close_fee_sat = details["closeFee"]
        # <C> CHECKSIGVERIFY <S> CHECKSIG IFDUP NOTIF <EXPIRY> CHECKLOCKTIMEVERIFY ENDIF
        self.script = b"".join(
            (
                b"\x21" + self.key.public_key.format() + b"\xad",
                b"\x21" + payee + b"\xac\x73\x64",
                bytes([len(number)]) + number + b"\xb1\x68",
            )
        )
        outside = self.world.outside
        change = await outside.rpc("getnewaddress", address_type="bech32m", wallet=MINER)
        self.change_script = bytes.fromhex((await outside.rpc("validateaddress", change))["scriptPubKey"])
        address = (await outside.rpc("decodescript", self.script.hex()))["segwit"]["address"]
        payment = await OutsideWallet(outside, MINER).pay([(address, DEPOSIT_SAT)])
        raw = await outside.rpc("getrawtransaction", payment.txid, True)
        (vout,) = [one["n"] for one in raw["vout"] if one["scriptPubKey"].get("address") == address]
        self.outpoint = (payment.txid, vout)
        await self.world.mempool_wait(payment.txid)

    def _signature(self, paid_sat: int) -> bytes:
        """By the library's BIP143: version 3, this input, SINGLE|ANYONECANPAY over the change."""
        assert self.outpoint is not None
        change_sat = DEPOSIT_SAT - self.close_fee_sat - paid_sat
        transaction = CMutableTransaction(
            [CTxIn(COutPoint(lx(self.outpoint[0]), self.outpoint[1]), nSequence=0xFFFFFFFD)],
            [CTxOut(change_sat, CScript(self.change_script))],
            nVersion=3,
        )
        digest = SignatureHash(
            CScript(self.script), transaction, 0, SINGLE_ANYONECANPAY, DEPOSIT_SAT, SIGVERSION_WITNESS_V0
        )
        return bytes(serialize_compact(der_to_cdata(self.key.sign(digest, hasher=None))))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeteredShop]:
    async with open_metered_shop(world, tmp_path_factory.mktemp("metered")) as shop:
        yield shop


def url(shop: MeteredShop, sold: Sold) -> str:
    return shop.hosted.till.server.url + sold.content


def chunk_range(chunk: int) -> dict[str, str]:
    return {"Range": f"bytes={chunk * CHUNK}-{(chunk + 1) * CHUNK - 1}"}


async def test_an_unmodified_client_pays_chunks(shop: MeteredShop) -> None:
    sold = await shop.offer(chunks=8)
    payer = ChannelMethod(shop.world)
    async with Mpp(methods=[payer.method()]) as client:
        for chunk in range(4):
            response = await client.fetch(url(shop, sold), headers=chunk_range(chunk))
            assert (response.status_code, response.content) == (206, piece(sold, chunk)), response.text[:500]
            receipt = json.loads(base64url.decode(response.headers["payment-receipt"]))
            assert receipt["spent"] == str(10 * (chunk + 1))
            assert mpp.Receipt.from_payment_receipt(response.headers["payment-receipt"]).status == "success"
    assert payer.asked == 4, "each chunk cost it one 402"

    # Who keeps the echo of a challenge saves the round trip.
    async with httpx.AsyncClient() as http:
        for chunk in range(4, 8):
            headers = {"Authorization": payer.credential(), **chunk_range(chunk)}
            response = await http.get(url(shop, sold), headers=headers)
            assert (response.status_code, response.content) == (206, piece(sold, chunk))
    assert payer.paid_sat == 80


async def test_it_pays_where_an_invoice_would_do_as_well(shop: MeteredShop) -> None:
    """Two challenges, in header lines of their own: the client finds the one that it can pay."""
    sold = await shop.offer(chunks=2, whole_sat=5_000)
    payer = ChannelMethod(shop.world)
    async with Mpp(methods=[payer.method()]) as client:
        response = await client.fetch(url(shop, sold), headers=chunk_range(1))
    assert (response.status_code, response.content) == (206, piece(sold, 1)), response.text[:500]
