"""Open channels as rows of a database, and payers whose vouchers fit them: no node, no chain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from coincurve import PrivateKey

from bench.fill import RAW_BYTES, Row
from payments.channel import ChannelState, Voucher
from payments.channel_keys import payee_key, public_bytes
from payments.channel_script import Channel, Contract
from payments.money import Sat
from payments.outputs import OutPoint, Presence
from payments.tables import blocks, channel_contracts, channels, paying_transactions

TIP_HEIGHT = 1_000
EXPIRY_HEIGHT = 3_000
CAPACITY_SAT = Sat(100_000)
CLOSE_FEE_SAT = Sat(368)
OPENED_AT = 1_700_000_000
SEED = b"the channel seed of a benchmark."


@dataclass(frozen=True)
class Payer:
    key: PrivateKey
    nonce: bytes
    channel: Channel

    def vouchers(self, count: int, step_sat: int) -> list[Voucher]:
        """Each for so many sats more."""
        return [
            Voucher(self.channel.id, amount, self.channel.sign(self.key, amount))
            for amount in range(step_sat, (count + 1) * step_sat, step_sat)
        ]


def payer(n: int) -> Payer:
    key = PrivateKey(_octets("payer", n))
    nonce = _octets("nonce", n)[:16]
    contract = Contract(
        payer_key=public_bytes(key),
        payee_key=public_bytes(payee_key(SEED, nonce)),
        expiry_height=EXPIRY_HEIGHT,
        change_script_pubkey=b"\x00\x14" + _octets("change", n)[:20],
        close_fee_sat=CLOSE_FEE_SAT,
    )
    return Payer(key, nonce, Channel(contract, OutPoint(_octets("txid", n).hex(), 0), CAPACITY_SAT))


def channel_rows(count: int) -> Iterator[Row]:
    """The payers 0 to `count`, each with an open channel that a block has had for long."""
    tip = {"height": TIP_HEIGHT, "hash": _octets("block", 0).hex(), "active": True, "connected_at": OPENED_AT}
    yield blocks, tip
    for n in range(count):
        one = payer(n)
        contract, txid = one.channel.contract, one.channel.outpoint.txid
        yield (
            paying_transactions,
            {
                "txid": txid,
                "raw": bytes(RAW_BYTES),
                "coinbase": False,
                "presence": Presence.BLOCK,
                "height": TIP_HEIGHT - 100,
                "conflict_height": None,
                "reorged": False,
                "prefetch_fit": True,
            },
        )
        yield (
            channel_contracts,
            {
                "script_pubkey": contract.script_pubkey,
                "seq": n + 1,
                "nonce": one.nonce,
                "payer_key": contract.payer_key,
                "payee_key": contract.payee_key,
                "expiry_height": contract.expiry_height,
                "change_script_pubkey": contract.change_script_pubkey,
                "close_fee_sat": contract.close_fee_sat,
                "announced_at": OPENED_AT,
            },
        )
        yield (
            channels,
            {
                "id": one.channel.id,
                "txid": txid,
                "vout": 0,
                "script_pubkey": contract.script_pubkey,
                "capacity_sat": CAPACITY_SAT,
                "seen_at": OPENED_AT,
                "state": ChannelState.OPEN,
                "opened_at": OPENED_AT,
                "accepted_sat": 0,
                "signature": one.channel.sign(one.key, 0),
                "spent_msat": 0,
            },
        )


def _octets(what: str, n: int) -> bytes:
    return hashlib.sha256(f"{what} {n}".encode()).digest()
