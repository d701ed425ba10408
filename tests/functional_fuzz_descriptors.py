"""Payout descriptors and extended keys, hurt, at a real node: each gives addresses or is refused in words.

What was pasted may be a private key, so no refusal repeats it. FUZZ_EXAMPLES sets how many.
"""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from bitcoin.base58 import CBase58Data
from hypothesis import example, given
from hypothesis import strategies as st

from payments.addresses import DESCRIPTOR_CHARACTERS_MAX, normalise_descriptor
from payments.bitcoind import Bitcoind
from payments.errors import DescriptorInvalid
from payments.extended_keys import EXTENDED_KEY_VERSIONS, as_plain, decode_key, keys_in
from regtest.world import RegtestWorld
from tests.fuzz.mutation import fuzzed, hurt_text

TPUB = (
    "tpubD6NzVbkrYhZ4XgiXtGrdW5XDAPFCL9h7we1vwNCpn8tGbBcgfVYjXyhW"
    "o4E1xkh56hjod1RhGjxbaTLV3X4FyWuejifB9jusQ46QzG87VKp"
)
TPRV = (
    "tprv8ZgxMBicQKsPe5YMU9gHen4Ez3ApihUfykaqUorj9t6FDqy3nP6eoXiA"
    "o2ssvpAjoLroQxHqr3R5nE3a5dU3DHTjTgJDd7zrbniJr6nrCzd"
)
WIF = "cTpB4YiyKiBcPxnefsDpbnDxFDffjqJob8wGCEDXxgQ7zQoMXJdH"
KEYS = (TPUB, f"{TPUB}/0/*", f"[00aabbcc/84h/1h/0h]{TPUB}/<0;1>/*", f"{TPUB}/0'/*")
TEXTS = (
    TPUB,
    f"[00aabbcc/84'/1'/0']{TPUB}",
    *(f"wpkh({key})" for key in KEYS),
    *(f"tr({key})" for key in KEYS[1:3]),
    f"sh(wpkh({KEYS[1]}))",
    f"pkh({KEYS[1]})",
    f"wsh(sortedmulti(2,{KEYS[1]},{TPUB}/1/*))",
    f"wsh(and_v(v:pk({KEYS[1]}),older(144)))",
    f"combo({KEYS[1]})",
    f"tr({KEYS[1]},{{pk({TPUB}/1/*),pk({TPUB}/2/*)}})",
    f"wpkh({TPRV}/0/*)",
    f"wpkh({WIF})",
    "addr(bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080)",
    "raw(6a)#xxxxxxxx",
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(world: RegtestWorld) -> AsyncIterator[Bitcoind]:
    async with Bitcoind(world.server.rpc_url, cookie_file=world.server.cookie_path) as node:
        yield node


@pytest.mark.asyncio(loop_scope="session")
@fuzzed
@given(hurt_text(st.sampled_from(TEXTS)) | st.sampled_from(TEXTS))
@example("(" * DESCRIPTOR_CHARACTERS_MAX)
@example("wsh(" * 1_200)
@example("1" * DESCRIPTOR_CHARACTERS_MAX)
@example("tr(" + TPUB + "/0/*," + "{" * 300 + "pk(" + TPUB + ")")
@example("wsh(thresh(1" + ",pk(" + TPUB + "/0/*)" * 30 + "))")
@example(f"wpkh({TPUB}/<0;1;2;3>/*)")
@example(f"wpkh({TPUB}/2147483648/*)")
@example(f"wpkh({TPUB}/0/*)#00000000")
@example(f"wpkh({WIF[:25]}0{WIF[25:]})")
@example(f"wpkh({TPRV[:45]} {TPRV[45:]}/0/*)")
async def test_descriptor_gives_addresses_or_is_refused_without_its_keys(node: Bitcoind, text: str) -> None:
    try:
        descriptor = await normalise_descriptor(node, text, "regtest")
    except DescriptorInvalid as exc:
        pasted = set(re.findall(r"[A-Za-z0-9]{20,}", text))
        if any(key in str(exc) for key in pasted) or not 0 < len(str(exc)) < 400:
            raise AssertionError(f"a refusal that says too much or nothing: {exc}") from exc
        return
    assert TPRV not in descriptor.text
    assert re.fullmatch(r"[!-~]+#[a-z0-9]{8}", descriptor.text)
    assert re.fullmatch(r"[0-9a-f]{32}", descriptor.id)
    first = await node.derive_addresses(descriptor.text, start=0, end=3)
    assert len(set(first)) == 4, "an address comes twice"
    assert all(script is not None for script in await node.validate_addresses(first))
    assert await normalise_descriptor(node, descriptor.text, "regtest") == descriptor.__class__(
        descriptor.text, descriptor.id
    ), "what was kept is not read as it was"


versions = st.sampled_from([number.to_bytes(4, "big") for number in EXTENDED_KEY_VERSIONS]) | st.binary(
    min_size=4, max_size=4
)


@fuzzed
@given(versions, st.binary(min_size=74, max_size=74) | st.binary(max_size=80))
def test_key_is_known_by_its_version_and_kept_apart_from_it(version: bytes, rest: bytes) -> None:
    octets = version + rest
    text = str(CBase58Data.from_bytes(octets[1:], octets[0]))
    key = decode_key(text)
    if key is None or key.version.name == "WIF":
        assert len(octets) != 78 or int.from_bytes(version, "big") not in EXTENDED_KEY_VERSIONS
        return
    assert key.version == EXTENDED_KEY_VERSIONS[int.from_bytes(version, "big")]
    plain = decode_key(as_plain(key))
    assert plain is not None
    assert plain.version.name == ("xpub" if key.version.mainnet else "tpub")
    assert plain.depth == key.depth
    assert keys_in(f"wpkh({text}/0/*)") == [key]


@fuzzed
@given(
    hurt_text(st.sampled_from((TPUB, TPRV, WIF))) | st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZ", max_size=200)
)
@example("1" * 5_000)
@example("z" * 5_000)
@example("")
def test_text_is_a_key_with_its_checksum_or_none(text: str) -> None:
    key = decode_key(text)
    for found in keys_in(text):
        assert found.text in text
    if key is not None:
        assert key.text == text
        assert str(CBase58Data(text)) == text
