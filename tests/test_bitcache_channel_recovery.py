"""A channel out of its backup line, from a server that lies: only our own signature is believed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coincurve import PrivateKey

from bitcache.api import wire_channels as wire
from bitcache.client.channel_book import ChannelBook, KeptContract
from bitcache.client.channel_recovery import recovered
from bitcache.client.channels import ChannelServer
from bitcache.client.errors import DepositUnproven, ServerAnswerWrong
from bitcache.client.purses import Purse, open_purses
from bitcache.payment_scheme import parse_credential
from bitcache.session_auth import record_digest, record_json
from payments.channel_errors import ChangeScriptRefused
from payments.channel_keys import public_bytes, sign
from payments.channel_script import Channel, Contract, parse_channel_id
from payments.money import Msat, Sat
from tests.test_bitcache_channel_client import TIP, challenge, contract, terms

SERVER = "https://files.example.org"
PAYEE = PrivateKey()
PAYER = PrivateKey()
TRUE = Contract(public_bytes(PAYER), public_bytes(PAYEE), TIP + 2_016, b"\x00\x14" + bytes(20), Sat(388))
THEIRS = b"\x00\x14" + b"\x66" * 20
PAID = Channel(TRUE, parse_channel_id(f"{'aa' * 32}:0"), Sat(20_000))
FRESH = Channel(TRUE, parse_channel_id(f"{'bb' * 32}:0"), Sat(100_000))
"""A second deposit to the same address, for which nothing was signed."""
SIGNED_SAT = 15_000


def view(
    channel: Channel,
    *,
    signed_sat: int | None,
    close_fee_sat: int = TRUE.close_fee_sat,
    change_script: bytes = TRUE.change_script_pubkey,
) -> wire.OwnChannelView:
    """`signed_sat`: as the payer meant it; the server calls what is above its own close fee paid."""
    signature = None if signed_sat is None else channel.sign(PAYER, signed_sat)
    accepted_sat = Sat(0 if signed_sat is None else signed_sat + TRUE.close_fee_sat - close_fee_sat)
    record = record_json(
        channel_id=channel.id,
        accepted_sat=accepted_sat,
        signature=signature,
        spent_msat=Msat(0),
        state="open",
        at=1,
    )
    return wire.OwnChannelView(
        channel_id=channel.id,
        state="open" if signature else "funded",
        suspended=False,
        confirmations=9,
        capacity_sat=channel.capacity_sat,
        accepted_sat=accepted_sat,
        spent_msat=0,
        payable_sat_max=90_000,
        expiry_height=TRUE.expiry_height,
        close_fee_sat=close_fee_sat,
        close=None,
        close_quote=None,
        tip_height=TIP,
        change_script=change_script.hex(),
        record=wire.ChannelRecordView(
            json=record.decode(), signature=sign(PAYEE, record_digest(record)).hex()
        ),
    )


class Told:
    """A server that says this of the payer's channels, and keeps what it is sent to sign for them."""

    base_url = SERVER

    def __init__(self, *views: wire.OwnChannelView) -> None:
        self._views = {one.channel_id: one for one in views}
        self.signed_for: list[str] = []

    async def get(self, path: str, kind: Any, **_: Any) -> Any:
        return terms()

    async def post(self, path: str, request: Any, kind: Any, **options: Any) -> Any:
        if path == "/channels/mine":
            return wire.OwnChannelsView(channels=list(self._views.values()))
        payload = msgspec.json.decode(parse_credential(options["authorization"]).payload)
        self.signed_for.append(payload["channelId"])
        one = self._views[payload["channelId"]]
        return wire.ChannelView(**{name: getattr(one, name) for name in wire.ChannelView.__struct_fields__})


async def recover(book: ChannelBook, told: Told) -> list[str]:
    talk = ChannelServer(told, book)  # type: ignore[arg-type]
    line = TRUE.backup_line(PAYER, "regtest")
    return [one.own.id for one in await recovered(talk, book, SERVER, line)]


async def purses(book: ChannelBook, told: Told, stack: ExitStack) -> list[Purse]:
    talk = ChannelServer(told, book)  # type: ignore[arg-type]
    return await open_purses(stack, talk, book, SERVER, [])


async def test_no_change_is_signed_below_what_is_proven_and_nothing_for_the_unproven(tmp_path: Path) -> None:
    """The close fee is the server's word: as much more as it says was set aside was signed away less."""
    book = ChannelBook(tmp_path)
    fee_sat = TRUE.close_fee_sat + SIGNED_SAT
    told = Told(
        view(PAID, signed_sat=SIGNED_SAT, close_fee_sat=fee_sat),
        view(FRESH, signed_sat=None, close_fee_sat=fee_sat),
    )
    assert await recover(book, told) == [PAID.id]
    proven_sat = PAID.state(SIGNED_SAT).change_sat
    with ExitStack() as stack:
        (purse,) = await purses(book, told, stack)
        assert not told.signed_for
        assert purse.left_sat == proven_sat
        purse.own.channel.verify(10, PAID.sign(PAYER, SIGNED_SAT + 10))
        assert purse.own.channel.state(10).change_sat == proven_sat - 10


async def test_a_drained_deposit_proves_no_change_script(tmp_path: Path) -> None:
    book = ChannelBook(tmp_path)
    told = Told(
        view(PAID, signed_sat=PAID.paid_sat_max, change_script=THEIRS),
        view(FRESH, signed_sat=None, change_script=THEIRS),
    )
    with pytest.raises(DepositUnproven):
        await recover(book, told)
    assert not book.contracts()
    assert not book.channels()
    # Nor is their script proven by a signature over ours, or one that is none.
    for script in (THEIRS, b"", THEIRS[:1]):
        with pytest.raises((ServerAnswerWrong, ChangeScriptRefused)):
            await recover(book, Told(view(PAID, signed_sat=40, change_script=script)))


async def test_what_the_book_has_is_used_and_not_overwritten(tmp_path: Path) -> None:
    book = ChannelBook(tmp_path)
    kept = KeptContract(
        server=SERVER,
        network="regtest",
        challenge=challenge(),
        payer_secret=PAYER.secret.hex(),
        payee_key=TRUE.payee_key.hex(),
        expiry_height=TRUE.expiry_height,
        change_script=TRUE.change_script_pubkey.hex(),
        close_fee_sat=TRUE.close_fee_sat,
        created_at=1,
    )
    book.keep_contract(kept)
    fee_sat = TRUE.close_fee_sat + SIGNED_SAT
    with pytest.raises(ServerAnswerWrong):
        await recover(book, Told(view(PAID, signed_sat=SIGNED_SAT, close_fee_sat=fee_sat)))
    assert book.contracts() == [kept]
    told = Told(view(PAID, signed_sat=SIGNED_SAT), view(FRESH, signed_sat=None))
    assert await recover(book, told) == [PAID.id, FRESH.id]
    assert book.contracts() == [kept]


async def test_a_recovered_contract_is_no_authority_for_further_deposits(tmp_path: Path) -> None:
    book = ChannelBook(tmp_path)
    assert await recover(book, Told(view(PAID, signed_sat=40))) == [PAID.id]
    (kept,) = book.contracts()
    assert kept.recovered
    # Our own signature makes one a channel of it; nothing else does.
    talk = ChannelServer(Told(view(FRESH, signed_sat=None)), book)  # type: ignore[arg-type]
    assert await talk.mine(kept) == []
    talk = ChannelServer(Told(view(FRESH, signed_sat=7)), book)  # type: ignore[arg-type]
    assert [one.own.id for one in await talk.mine(kept)] == [FRESH.id]
    # Drained since it was proven, it still is one.
    talk = ChannelServer(Told(view(FRESH, signed_sat=FRESH.paid_sat_max)), book)  # type: ignore[arg-type]
    assert [one.own.id for one in await talk.mine(kept)] == [FRESH.id]


async def test_a_deposit_does_not_change_its_contract(tmp_path: Path) -> None:
    """A server that names a channel of one contract under another would have its change sent elsewhere."""
    book = ChannelBook(tmp_path)
    await recover(book, Told(view(PAID, signed_sat=40)))
    other = contract()
    book.keep_contract(other)
    with pytest.raises(ServerAnswerWrong, match="another contract"):
        book.add(other, PAID.id, PAID.capacity_sat)
    assert book.channel(PAID.id).contract.payer_key == TRUE.payer_key.hex()
