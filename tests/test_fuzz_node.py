"""A node that says strange things: each answer is understood, or the node's fault in our words, never a bug.

One of our errors is a state that the service waits out; any other would end it.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from payments.bitcoind import Bitcoind
from payments.bitcoind_events import EventsLost, parse_message
from payments.errors import AmountInvalid, BlockUnavailable, NodeMisconfigured, NodeRefused, NodeUnavailable
from payments.money import MAX_MONEY_SAT, SAT_PER_BTC, Sat, btc_from_sat, sat_from_btc
from payments.outputs import OutPoint
from regtest.play_wallet import parse_uri
from tests.fuzz.mutation import fuzzed, hurt_octets, hurt_text, outcome

HASH = "ab" * 32
ENTRY = {"fees": {"base": 0.00001}, "vsize": 141, "time": 1, "ancestorcount": 1, "descendantcount": 1}
NODES_FAULT = (NodeUnavailable, NodeMisconfigured, NodeRefused, BlockUnavailable)

Ask = Callable[[Bitcoind], Awaitable[object]]
ASKED: dict[str, tuple[Ask, Any]] = {
    "chain": (
        lambda node: node.chain_info(),
        {
            "chain": "regtest", "blocks": 5, "headers": 5, "bestblockhash": HASH,
            "initialblockdownload": False, "time": 1_790_000_000, "pruned": True, "pruneheight": 3,
        },
    ),
    "network": (
        lambda node: node.network_info(),
        {"version": 290500, "subversion": "/x/", "connections": 1, "networkactive": True, "timeoffset": 0},
    ),
    "hash": (lambda node: node.block_hash(5), HASH),
    "header": (
        lambda node: node.block_header(HASH),
        {"hash": HASH, "height": 5, "confirmations": 1, "time": 1, "previousblockhash": HASH},
    ),
    "mempool": (lambda node: node.mempool_info(), {"loaded": True, "size": 3}),
    "txids": (lambda node: node.raw_mempool(), {"txids": [HASH], "mempool_sequence": 9}),
    "entry": (
        lambda node: node.mempool_entry(HASH),
        ENTRY,
    ),
    "transactions": (lambda node: node.raw_transactions([HASH]), "00ff"),
    "sent": (lambda node: node.send_raw_transaction(b"\0"), HASH),
    "spent": (lambda node: node.spending_transactions([OutPoint(HASH, 0)]), [{"spendingtxid": HASH}]),
    "feerate": (lambda node: node.estimate_feerate(2), {"feerate": 0.00012, "blocks": 2}),
    "descriptor": (
        lambda node: node.descriptor_info("wpkh()"),
        {
            "descriptor": "x", "checksum": "y", "isrange": True, "issolvable": True, "hasprivatekeys": False,
            "multipath_expansion": ["x"],
        },
    ),
    "addresses": (lambda node: node.derive_addresses("wpkh()", start=0, end=1), ["a", "b"]),
    "scripts": (lambda node: node.validate_addresses(["a"]), {"isvalid": True, "scriptPubKey": "0014"}),
    "wallets": (lambda node: node.loaded_wallets(), ["w"]),
    "events": (
        lambda node: node.zmq_notifications(),
        [{"type": "pubsequence", "address": "tcp://x", "hwm": 1}],
    ),
    "block": (lambda node: node.raw_block(HASH), "any octets"),
}  # fmt: skip
STATUSES = (200, 200, 200, 500, 401, 403, 404, 503, 302)
BATCHED = frozenset({"transactions", "scripts"})


@dataclass
class StrangeNode:
    """Answers everything with what the test wants."""

    url: str = ""
    status: int = 200
    body: bytes = b""

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status, body=self.body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strange_node() -> AsyncIterator[StrangeNode]:
    strange = StrangeNode()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", strange.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    strange.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield strange
    await runner.cleanup()


def _bodies(name: str) -> st.SearchStrategy[bytes]:
    reply = {"result": ASKED[name][1], "error": None, "id": 0}
    valid = json.dumps([reply] if name in BATCHED else reply)
    strange = st.sampled_from(
        (
            '{"result":null,"error":{"code":-8,"message":"x"},"id":0}',
            '{"result":null,"error":{"code":-28,"message":"\\u001b[2J"},"id":0}',
            '{"result":null,"error":{"code":"x"},"id":0}',
            '[{"result":"zz","error":null,"id":0}]',
            '[{"result":{"isvalid":true,"scriptPubKey":"0"},"error":null,"id":0}]',
            "[" * 100_000,
            '{"result":' + "9" * 100_000 + ',"error":null,"id":0}',
            "[]",
            "{}",
            "",
        )
    )
    texts = st.one_of(st.just(valid), hurt_text(st.just(valid)), hurt_text(strange))
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


@pytest.mark.asyncio(loop_scope="module")
@fuzzed
@given(st.data(), st.sampled_from(sorted(ASKED)), st.sampled_from(STATUSES))
async def test_strange_answer_is_understood_or_the_nodes_fault(
    strange_node: StrangeNode, data: st.DataObject, name: str, status: int
) -> None:
    strange_node.status, strange_node.body = status, data.draw(_bodies(name))
    ask, _ = ASKED[name]
    async with Bitcoind(strange_node.url, user="u", password="p") as node:
        try:
            await ask(node)
        except NODES_FAULT as exc:
            if not str(exc):
                raise AssertionError(f"{name}: a refusal without a word") from exc


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("entry", {**ENTRY, "fees": {"base": -1}}),
        (
            "entry",
            {**ENTRY, "fees": {"base": 1e-9}},
        ),
        ("entry", {**ENTRY, "vsize": 0}),
        ("feerate", {"feerate": 21_000_001}),
        ("transactions", "0"),
        ("transactions", "zz"),
        ("scripts", {"isvalid": True, "scriptPubKey": "é"}),
    ],
)
async def test_impossible_value_is_the_nodes_fault(
    strange_node: StrangeNode, name: str, result: object
) -> None:
    reply = {"result": result, "error": None, "id": 0}
    strange_node.status = 200
    strange_node.body = json.dumps([reply] if name in BATCHED else reply).encode()
    async with Bitcoind(strange_node.url, user="u", password="p") as node:
        with pytest.raises(NodeUnavailable):
            await ASKED[name][0](node)


# --- events --------------------------------------------------------------------------------------------

hashes = st.binary(min_size=32, max_size=32)
bodies = st.one_of(
    st.builds(lambda octets, letter: octets + letter, hashes, st.sampled_from((b"C", b"D", b"X"))),
    st.builds(
        lambda octets, letter, number: octets + letter + number.to_bytes(8, "little"),
        hashes,
        st.sampled_from((b"A", b"R", b"C")),
        st.integers(0, 2**64 - 1),
    ),
)
counters = st.binary(min_size=4, max_size=4)


@fuzzed
@given(
    st.lists(st.one_of(st.just(b"sequence"), bodies, hurt_octets(bodies), counters), max_size=4)
    | st.builds(lambda body, counter: [b"sequence", body, counter], bodies | hurt_octets(bodies), counters)
)
def test_message_of_the_node_is_an_event_or_a_loss(frames: list[bytes]) -> None:
    event, counter = parse_message(frames)
    if isinstance(event, EventsLost):
        return
    assert counter is not None
    kind = {"BlockConnected": b"C", "BlockDisconnected": b"D", "Added": b"A", "Removed": b"R"}
    hash_hex = str(getattr(event, "hash", "") or getattr(event, "txid", ""))
    number = getattr(event, "mempool_sequence", None)
    again = bytes.fromhex(hash_hex) + kind[type(event).__name__]
    again += b"" if number is None else number.to_bytes(8, "little")
    assert frames == [b"sequence", again, counter.to_bytes(4, "little")]


# --- money ----------------------------------------------------------------------------------------------

decimals = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True),
    st.integers(-1, MAX_MONEY_SAT + 1).map(lambda sat: Decimal(sat).scaleb(-8)),
    st.builds(
        lambda digits, exponent: Decimal(digits).scaleb(exponent), st.integers(-9, 9), st.integers(-400, 400)
    ),
)


@fuzzed
@given(decimals)
@example(Decimal("sNaN"))
@example(Decimal("0E+999999"))
@example(Decimal("1E-999999"))
@example(Decimal("0.000000005"))
def test_amount_of_the_node_is_exact_or_refused(amount_btc: Decimal) -> None:
    amount_sat = outcome(AmountInvalid, sat_from_btc, amount_btc)
    if isinstance(amount_sat, AmountInvalid):
        return
    assert 0 <= amount_sat <= MAX_MONEY_SAT
    assert Decimal(amount_sat) / SAT_PER_BTC == amount_btc
    assert Decimal(btc_from_sat(amount_sat)) == amount_btc


@fuzzed
@given(st.integers(1, MAX_MONEY_SAT).map(Sat), st.text("0123456789abc", min_size=1))
def test_amount_in_an_address_for_wallets_is_read_back(amount_sat: Sat, address: str) -> None:
    assert parse_uri(f"bitcoin:{address}?amount={btc_from_sat(amount_sat)}&label=x") == (address, amount_sat)


@fuzzed
@given(hurt_text(st.just("bitcoin:bcrt1qaddress?amount=0.00005000&label=BC-1")))
@example("bitcoin:x?amount=1e999999999")
@example("bitcoin:x?amount=NaN")
@example("bitcoin:x?amount=Infinity")
def test_hurt_address_for_wallets_is_read_or_refused(uri: str) -> None:
    read = outcome(ValueError, parse_uri, uri)
    if not isinstance(read, ValueError):
        assert read[0]
        assert read[1] > 0
