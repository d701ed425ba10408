"""A payer's own counting and checks, without a server: what is signed, kept, refused."""

from __future__ import annotations

import asyncio
import stat
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coincurve import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from bitcache.api import wire_channels as wire
from bitcache.canonical_json import canonical_json
from bitcache.client.channel_book import ChannelBook, KeptChannel, KeptContract, OwnChannel
from bitcache.client.channel_count import RECORD, ChannelCount
from bitcache.client.channel_refund import cheap_refund, network_of_address
from bitcache.client.channel_terms import check_network, figures, read_terms
from bitcache.client.channels import Quote, close_quote, voucher_header
from bitcache.client.errors import (
    AlreadyRunning,
    ChannelMissing,
    ChannelUnknown,
    ChunksWithheld,
    CloseQuoteRefused,
    ServerAnswerWrong,
    SpendingLimitReached,
)
from bitcache.client.meter import WINDOW_CHUNKS, Meter, Ticket
from bitcache.client.purses import Purse
from bitcache.ids import new_id
from bitcache.payment_scheme import parse_credential
from payments.channel_errors import AddressInvalid, ChannelTermsRefused
from payments.channel_keys import public_bytes
from payments.channel_script import Channel, parse_channel_id
from payments.money import Sat
from payments.transaction import parse_transaction
from storage import base64url

PRICE_MSAT = 10_000
FILE = new_id()
TIP = 1_000
TXID = "ab" * 32


def challenge(**details: Any) -> wire.ChallengeView:
    request: dict[str, Any] = {
        "amount": "0",
        "currency": "sat",
        "methodDetails": {
            "closeFee": 388,
            "expiry": TIP + 2_016,
            "issued": TIP,
            "minDeposit": 2_000,
            "network": "regtest",
            "nonce": base64url.encode(bytes(16)),
            "payeeKey": public_bytes(PrivateKey((7).to_bytes(32, "big"))).hex(),
            **details,
        },
        "unitType": "chunk",
    }
    text = base64url.encode(canonical_json(request))
    return wire.ChallengeView("id", "localhost", "bitcoin", "session", text, "2030-01-01T00:00:00Z")


def terms(shown: dict[str, Any] | None = None, **details: Any) -> wire.ChannelTermsView:
    """`details` change what the server is held to, and what it shows; `shown` only that."""
    held = challenge(**details)
    said = msgspec.json.decode(base64url.decode(held.request))["methodDetails"]
    facts: dict[str, Any] = {
        "challenge": held,
        "network": said["network"],
        "payee_key": said["payeeKey"],
        "expiry_height": said["expiry"],
        "close_fee_sat": said["closeFee"],
        "deposit_min_sat": said["minDeposit"],
        "tip_height": TIP,
        "feerate_sat_kvb": 2_000,
        "exposure": wire.ExposureView(500, 10_000, 100_000, 1_000_000),
    }
    return wire.ChannelTermsView(**{**facts, **(shown or {})})


def contract(server: str = "https://files.example.org") -> KeptContract:
    return KeptContract(
        server=server,
        network="regtest",
        challenge=challenge(),
        payer_secret=PrivateKey().secret.hex(),
        payee_key=public_bytes(PrivateKey()).hex(),
        expiry_height=TIP + 2_016,
        change_script=(b"\x00\x14" + bytes(20)).hex(),
        close_fee_sat=388,
        created_at=1,
    )


def purse(folder: Path, *, capacity_sat: int = 20_000, payable_sat: int = 100_000, vout: int = 0) -> Purse:
    book = ChannelBook(folder)
    kept = contract()
    book.keep_contract(kept)
    own = book.add(kept, f"{TXID}:{vout}", capacity_sat)
    return Purse(own, ChannelCount(folder / f"{vout}.count"), payable_sat)


class NoServer:
    """Nothing here asks it."""

    async def mine(self, kept: KeptContract) -> list[Any]:
        raise AssertionError("nobody is asked")


def meter(*purses: Purse, **settings: Any) -> Meter:
    return Meter(NoServer(), purses, price_msat=PRICE_MSAT, **settings)  # type: ignore[arg-type]


# --- the book -----------------------------------------------------------------------------------------------


def test_a_contract_is_kept_for_the_user_alone_and_comes_back_whole(tmp_path: Path) -> None:
    book, kept = ChannelBook(tmp_path / "channels"), contract()
    book.keep_contract(kept)
    own = book.add(kept, f"{TXID}:1", 20_000)
    for path in (tmp_path / "channels").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (found,) = book.channels("https://files.example.org")
    assert (found.id, found.contract, found.channel.capacity_sat) == (own.id, kept, 20_000)
    assert found.contract.backup_line == kept.backup_line
    assert found.contract.address.startswith("bcrt1q")
    assert book.channels("https://elsewhere.example.org") == []
    book.end(found)
    assert book.channel(found.id).kept.ended
    with pytest.raises(ChannelUnknown):
        book.channel(f"{TXID}:2")


def test_a_capacity_is_put_right_while_nothing_is_signed(tmp_path: Path) -> None:
    book, kept = ChannelBook(tmp_path), contract()
    book.keep_contract(kept)
    book.add(kept, f"{TXID}:0", 1)
    own = book.add(kept, f"{TXID}:0", 20_000)
    assert own.channel.capacity_sat == book.channel(own.id).channel.capacity_sat == 20_000
    with book.counting(own) as count:
        count.ask(FILE, 0, 1, PRICE_MSAT)
    assert book.add(kept, f"{TXID}:0", 30_000).channel.capacity_sat == 20_000


def test_two_do_not_sign_for_one_channel(tmp_path: Path) -> None:
    book, kept = ChannelBook(tmp_path), contract()
    book.keep_contract(kept)
    own = book.add(kept, f"{TXID}:0", 20_000)
    with book.counting(own) as count:
        count.ask(FILE, 0, 1, PRICE_MSAT)
        with pytest.raises(AlreadyRunning), book.counting(own):
            pass
        assert book.glance(own).signed_sat == 10


# --- the count ----------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.sampled_from(["ask", "arrive", "unlisted", "again"]), st.integers(0, 40), st.integers(1, 5)),
    max_size=40,
)


@given(steps)
def test_the_list_says_the_same_read_again_and_cut_short(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "count"
        count = ChannelCount(path)
        asked: dict[int, int] = {}
        arrived: set[int] = set()
        unlisted_msat = 0
        for what, at, number in steps:
            match what:
                case "ask":
                    units = 0
                    while units < number and at + units not in asked:
                        asked[at + units] = number * 1_500
                        units += 1
                    if units:
                        count.ask(FILE, at, units, number * 1_500)
                case "arrive":
                    count.arrive(FILE, at)
                    if at in asked:
                        arrived.add(at)
                case "unlisted":
                    count.set_unlisted(unlisted_msat := number * 700)
                case _:
                    count.close()
                    count = ChannelCount(path)
        for one in (count, ChannelCount(path, writable=False)):
            assert one.promised_msat == sum(asked.values()) + unlisted_msat
            assert one.signed_sat == -(-one.promised_msat // 1_000)
            assert one.arrived_msat == sum(asked[index] for index in arrived)
            assert one.outstanding == len(asked) - len(arrived)
            assert all(one.is_asked(FILE, index) == (index in asked) for index in range(50))
        count.close()
        # A crash cut the last record off: what was sent before it stands.
        path.write_bytes(path.read_bytes() + bytes(RECORD.size - 1))
        assert ChannelCount(path).promised_msat == sum(asked.values()) + unlisted_msat


# --- the meter ----------------------------------------------------------------------------------------------


async def reserve_all(meter: Meter, chunks: int) -> list[Ticket]:
    """Tickets for the chunks from 0 on, none of which arrives."""
    tickets: list[Ticket] = []
    first = 0
    while first < chunks:
        ticket = await asyncio.wait_for(meter.reserve(FILE, first, chunks), 1)
        if ticket is None:
            break
        tickets.append(ticket)
        first = ticket.end
    return tickets


async def test_never_more_than_the_window_is_signed_ahead(tmp_path: Path) -> None:
    one = purse(tmp_path)
    paying = meter(one)
    tickets = await reserve_all(paying, WINDOW_CHUNKS)
    assert one.count.signed_sat == WINDOW_CHUNKS * 10
    waiting = asyncio.create_task(paying.reserve(FILE, WINDOW_CHUNKS, WINDOW_CHUNKS + 4))
    await asyncio.sleep(0)
    assert not waiting.done()
    paying.arrived(tickets[0], FILE, 0)
    ticket = await asyncio.wait_for(waiting, 1)
    assert ticket is not None
    assert (ticket.first, ticket.end) == (WINDOW_CHUNKS, WINDOW_CHUNKS + 1)
    # The next run: what did not come is asked for again for nothing, and nothing new before it has come.
    again = meter(Purse(one.own, ChannelCount(tmp_path / "0.count"), 100_000))
    retry = await again.reserve(FILE, 1, 2)
    assert retry is not None
    with again.paying():
        pass
    assert again.spent_msat == 0
    with pytest.raises(ChunksWithheld):
        await again.reserve(FILE, 30, 31)


async def test_it_stops_before_the_limit_and_at_the_end_of_the_deposit(tmp_path: Path) -> None:
    limited = meter(purse(tmp_path / "a"), spend_max_msat=59_999)
    assert [ticket.end for ticket in await reserve_all(limited, 16)] == [4, 5]
    assert isinstance(limited.stopped, SpendingLimitReached)

    # 388 are set aside, and 1 to 329 sat of change cannot be: 60 are left to spend.
    small = purse(tmp_path / "b", capacity_sat=388 + 330 + 60)
    drained = meter(small)
    assert sum(ticket.end - ticket.first for ticket in await reserve_all(drained, 16)) == 6
    assert isinstance(drained.stopped, ChannelMissing)
    exact = purse(tmp_path / "c", capacity_sat=388 + 40)
    assert [ticket.end for ticket in await reserve_all(meter(exact), 4)] == [4]
    assert exact.left_sat == 0


async def test_a_second_channel_pays_where_the_first_is_used_up(tmp_path: Path) -> None:
    first = purse(tmp_path / "a", capacity_sat=388 + 330 + 60)
    second = purse(tmp_path / "b", vout=1)
    told: list[str] = []
    paying = meter(first, second, tell=told.append)
    tickets = await reserve_all(paying, 12)
    assert {ticket.purse.own.id for ticket in tickets} == {first.own.id, second.own.id}
    assert (first.count.signed_sat, second.count.signed_sat) == (60, 60)
    assert any(second.own.id in words for words in told)
    # A chunk that the first was charged for is asked for on the first.
    again = await paying.reserve(FILE, 0, 1)
    assert again is not None
    assert again.purse is first


async def test_a_voucher_is_for_all_that_was_asked_for(tmp_path: Path) -> None:
    one = purse(tmp_path)
    (ticket,) = await reserve_all(meter(one), 4)
    payload = msgspec.json.decode(parse_credential(ticket.authorization).payload)
    assert payload["cumulativeAmount"] == "40"
    one.own.channel.verify(40, bytes.fromhex(payload["signature"]))
    assert voucher_header(one.own, 40) == ticket.authorization


async def test_a_server_that_charged_more_is_not_paid_again(tmp_path: Path) -> None:
    one = purse(tmp_path)
    paying = meter(one)
    await reserve_all(paying, 4)
    paying.check_receipt(one, accepted_sat=40, spent_msat=40_000)
    for accepted_sat, spent_msat in ((41, 40_000), (40, 40_001)):
        with pytest.raises(ServerAnswerWrong):
            paying.check_receipt(one, accepted_sat=accepted_sat, spent_msat=spent_msat)


# --- terms --------------------------------------------------------------------------------------------------


def test_honest_terms_are_read_and_their_costs_are_told() -> None:
    offered = read_terms(terms())
    costs = figures(offered, Sat(20_000))
    assert (costs.funding_fee_sat, costs.close_fee_sat, costs.fee_percent) == (306, 388, 4)
    assert costs.low_fee_deposit_sat == (306 + 388) * 10 + 1
    assert (costs.refund_height, costs.refund_days) == (TIP + 2_016, 14)
    for deposit_sat in (1_999, 2_000):
        small = read_terms(terms(closeFee=1_001))
        with pytest.raises(ChannelTermsRefused):
            figures(small, Sat(deposit_sat))


@pytest.mark.parametrize(
    "details",
    [
        {"network": "mainnet2"},
        {"payeeKey": "02" + "ff" * 32},
        {"expiry": TIP + 60_000},
        {"expiry": TIP + 100},
        {"closeFee": 500_000},
    ],
)
def test_terms_one_should_not_fund_are_refused(details: dict[str, Any]) -> None:
    with pytest.raises(ChannelTermsRefused):
        read_terms(terms(**details))


@pytest.mark.parametrize("shown", [{"close_fee_sat": 1}, {"expiry_height": TIP + 300}, {"network": "signet"}])
def test_what_is_shown_must_be_what_the_server_is_held_to(shown: dict[str, Any]) -> None:
    with pytest.raises(ChannelTermsRefused, match="held to"):
        read_terms(terms(shown))


def test_an_address_of_another_chain_is_refused() -> None:
    with pytest.raises(ChannelTermsRefused, match="Nothing was paid"):
        check_network(read_terms(terms()), "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")
    assert network_of_address("tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx") in {"testnet4", "signet"}
    with pytest.raises(AddressInvalid):
        network_of_address("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2")


def test_the_server_does_not_say_what_a_refund_costs() -> None:
    """A feerate of its own choosing would take the deposit, if not for itself."""
    kept = contract()
    script_pubkey = kept.contract.change_script_pubkey
    for capacity_sat, told_sat_kvb, least_sat, most_sat in (
        (20_000, 160_000, 1_900, 2_000),
        (20_000, 3_000, 300, 500),
        (20_000, None, 500, 800),
        (20_000, 1, 100, 200),
        (1_000, 160_000, 100, 200),
        (10**9, 10**9, 100_000, 200_000),
    ):
        channel = Channel(kept.contract, parse_channel_id(f"{TXID}:0"), Sat(capacity_sat))
        made = cheap_refund(channel, kept.payer, script_pubkey, told_sat_kvb=told_sat_kvb)
        assert least_sat <= made.fee_sat <= most_sat, (capacity_sat, told_sat_kvb, made.fee_sat)
        assert made.amount_sat + made.fee_sat == capacity_sat
        (output,) = parse_transaction(made.raw).outputs
        assert (output.amount_sat, output.script_pubkey) == (made.amount_sat, script_pubkey)


def test_no_voucher_leaves_change_that_no_node_takes() -> None:
    kept = contract()
    own = OwnChannel(
        KeptChannel(channel_id=f"{TXID}:0", payer_key="", capacity_sat=20_000, opened_at=0), kept
    )
    whole_sat = 20_000 - 388
    assert [own.signable_sat(sat) for sat in (0, whole_sat - 330, whole_sat)] == [
        0,
        whole_sat - 330,
        whole_sat,
    ]
    assert [own.signable_sat(whole_sat - rest_sat) for rest_sat in (1, 329)] == [whole_sat - 330] * 2
    assert own.signable_sat(whole_sat + 1) == whole_sat


def view_with(own: OwnChannel, *, fee_sat: int, paid_sat_min: int) -> wire.ChannelView:
    return wire.ChannelView(
        channel_id=own.id,
        state="open",
        suspended=False,
        confirmations=1,
        capacity_sat=own.channel.capacity_sat,
        accepted_sat=40,
        spent_msat=40_000,
        payable_sat_max=100_000,
        expiry_height=own.contract.expiry_height,
        close_fee_sat=own.contract.close_fee_sat,
        close=None,
        close_quote=wire.CloseQuoteView(fee_sat=fee_sat, paid_sat_min=paid_sat_min),
        tip_height=TIP,
    )


async def test_a_close_never_signs_more_than_the_vouchers_did(tmp_path: Path) -> None:
    """Whatever is agreed to is, as a voucher, for no more than what was signed already."""
    one = purse(tmp_path, capacity_sat=388 + 330 + 60)
    await reserve_all(meter(one), 4)
    for fee_sat, paid_sat_min in ((389, 40), (388, 41), (-1, 40), (388, -1)):
        with pytest.raises(CloseQuoteRefused):
            close_quote(one.own, one.count, view_with(one.own, fee_sat=fee_sat, paid_sat_min=paid_sat_min))
    for fee_sat, paid_sat_min in ((388, 40), (200, 40), (0, 0)):
        quote = close_quote(
            one.own, one.count, view_with(one.own, fee_sat=fee_sat, paid_sat_min=paid_sat_min)
        )
        assert quote is not None
        assert quote.paid_sat + quote.fee_sat - one.own.contract.close_fee_sat <= one.count.signed_sat
        assert quote.paid_sat + quote.fee_sat + quote.change_sat == one.own.channel.capacity_sat

    # Change of 1 to 329 sat is none: the network gets it, out of what was set aside, or nothing is agreed.
    tight = purse(tmp_path / "b", capacity_sat=388 + 50)
    tight.count.ask(FILE, 0, 4, PRICE_MSAT)
    quote = close_quote(tight.own, tight.count, view_with(tight.own, fee_sat=300, paid_sat_min=40))
    assert quote is None
    drained = purse(tmp_path / "c", capacity_sat=388 + 40)
    drained.count.ask(FILE, 0, 4, PRICE_MSAT)
    quote = close_quote(drained.own, drained.count, view_with(drained.own, fee_sat=300, paid_sat_min=40))
    assert quote == Quote(Sat(40), Sat(388), Sat(0))


async def test_what_an_earlier_run_had_on_disk_and_not_on_record_frees_the_window(tmp_path: Path) -> None:
    one = purse(tmp_path)
    paying = meter(one)
    ticket = await paying.reserve(FILE, 0, 3)
    assert ticket is not None
    assert one.count.outstanding == 3
    paying.came_before(FILE, {0, 2, 7})
    assert one.count.outstanding == 1
    assert paying.outstanding(FILE, 1)
    assert one.count.arrived_msat == 2 * PRICE_MSAT
