"""Descriptors on real nodes: addresses agree with bdkpython, unfit descriptors are refused with words.

Deriving needs no chain, so mainnet's keys are tried on a mainnet node that is cut off from everything.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import bdkpython as bdk
import pytest
import pytest_asyncio
from bitcoin.base58 import CBase58Data
from msgspec.structs import replace

from payments.addresses import (
    ADDRESSES_AHEAD_MIN,
    ADDRESSES_PER_WINDOW,
    DESCRIPTOR_CHARACTERS_MAX,
    AddressBook,
    normalise_descriptor,
)
from payments.bitcoind import Bitcoind, DescriptorInfo
from payments.errors import AddressesNotDerived, DescriptorInvalid, NodeUnavailable
from payments.extended_keys import EXTENDED_KEY_VERSIONS
from regtest.install import BitcoindInstallation
from regtest.node import wait_until
from regtest.processes import GuardedProcess, free_ports
from regtest.world import RegtestWorld

# The BIP39 test phrases: everybody knows these keys.
PHRASES = (
    "abandon " * 11 + "about",
    "legal winner thank year wave sausage worth useful legal winner thank yellow",
)
ZPUB_OF_BIP84 = (
    "zpub6rFR7y4Q2AijBEqTUquhVz398htDFrtymD9xYYfG1m4wAcvPhXNfE3"
    "EfH1r1ADqtfSdVCToUG868RvUUkgDKf31mGDtKsAYz2oz2AGutZYs"
)
FIRST_ADDRESS_OF_BIP84 = "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu"
WIF_TEST = "cTpB4YiyKiBcPxnefsDpbnDxFDffjqJob8wGCEDXxgQ7zQoMXJdH"


@pytest_asyncio.fixture
async def node(world: RegtestWorld) -> AsyncIterator[Bitcoind]:
    async with Bitcoind(world.server.rpc_url, cookie_file=world.server.cookie_path) as node:
        yield node


@pytest.fixture(scope="module")
def mainnet_process(bitcoind: BitcoindInstallation) -> Iterator[tuple[str, Path]]:
    """RPC address and cookie file of a mainnet node without peers."""
    with tempfile.TemporaryDirectory(prefix="bitcache-mainnet-") as folder:
        (port,) = free_ports(1)
        options = [
            "-connect=0",
            "-listen=0",
            "-dnsseed=0",
            "-disablewallet=1",
            "-dbcache=4",
            "-printtoconsole=0",
        ]
        command: list[str | Path] = [bitcoind.path, f"-datadir={folder}", f"-rpcport={port}", *options]
        process = GuardedProcess(command, log=Path(folder) / "output.log", doomed_folder=Path(folder))
        yield f"http://127.0.0.1:{port}", Path(folder) / ".cookie"
        process.kill()


@pytest_asyncio.fixture
async def mainnet_node(mainnet_process: tuple[str, Path]) -> AsyncIterator[Bitcoind]:
    url, cookie_file = mainnet_process
    async with Bitcoind(url, cookie_file=cookie_file) as node:

        async def answers() -> bool:
            try:
                return (await node.chain_info()).chain == "main"
            except NodeUnavailable:
                return False

        await wait_until(answers, "the mainnet node to answer")
        yield node


def account_key(phrase: str, purpose: str, *, kind: bdk.NetworkKind = bdk.NetworkKind.TEST) -> str:
    """`[origin]tpub`, or xpub, of a wallet's account."""
    root = bdk.DescriptorSecretKey(kind, bdk.Mnemonic.from_string(phrase), None)
    coin = "0h" if kind == bdk.NetworkKind.MAIN else "1h"
    return str(root.derive(bdk.DerivationPath(f"m/{purpose}h/{coin}/0h")).as_public()).removesuffix("/*")


def with_version(key: str, name: str) -> str:
    """The extended key `key`, without origin, written in another version, such as vpub."""
    version = next(number for number, known in EXTENDED_KEY_VERSIONS.items() if known.name == name)
    payload = version.to_bytes(4, "big") + bytes(CBase58Data(bare(key)))[3:]
    return str(CBase58Data.from_bytes(payload[1:], payload[0]))


def bare(key: str) -> str:
    return key.rpartition("]")[2]


KEY = account_key(PHRASES[0], "84")
OTHER_KEY = account_key(PHRASES[1], "84")
MAINNET_KEY = account_key(PHRASES[0], "84", kind=bdk.NetworkKind.MAIN)
MINISCRIPT = f"wsh(or_d(pk({KEY}/0/*),and_v(v:pkh({OTHER_KEY}/0/*),older(1000))))"


def by_bdk(descriptor: str, indexes: Sequence[int]) -> list[tuple[str, bytes]]:
    """Address and scriptPubKey at each index, by the other implementation."""
    derived = [
        bdk.Descriptor(descriptor, bdk.NetworkKind.TEST).derive_address(index, bdk.Network.REGTEST)
        for index in indexes
    ]
    return [(str(address), bytes(address.script_pubkey().to_bytes())) for address in derived]


@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        (f"wpkh({KEY}/0/*)", f"wpkh({KEY}/0/*)"),
        (f"tr({KEY}/0/*)", f"tr({KEY}/0/*)"),
        (f"sh(wpkh({KEY}/0/*))", f"sh(wpkh({KEY}/0/*))"),
        (f"pkh({KEY}/0/*)", f"pkh({KEY}/0/*)"),
        (f"wsh(sortedmulti(2,{KEY}/0/*,{OTHER_KEY}/0/*))", f"wsh(sortedmulti(2,{KEY}/0/*,{OTHER_KEY}/0/*))"),
        (MINISCRIPT, MINISCRIPT),
        (f"wpkh({KEY}/<0;1>/*)", f"wpkh({KEY}/0/*)"),
        (
            f"wsh(sortedmulti(1,{KEY}/<0;1>/*,{OTHER_KEY}/<0;1>/*))",
            f"wsh(sortedmulti(1,{KEY}/0/*,{OTHER_KEY}/0/*))",
        ),
        (f"tr({KEY}/<4;5>/*)", f"tr({KEY}/4/*)"),
        (bare(KEY), f"wpkh({KEY}/0/*)"),
        (KEY, f"wpkh({KEY}/0/*)"),
        (with_version(KEY, "vpub"), f"wpkh({KEY}/0/*)"),
        (with_version(KEY, "upub"), f"sh(wpkh({KEY}/0/*))"),
        (f"  wpkh({KEY}/0/*)\n", f"wpkh({KEY}/0/*)"),
    ],
    ids=[
        "wpkh",
        "tr",
        "sh(wpkh)",
        "pkh",
        "wsh(sortedmulti)",
        "miniscript",
        "multipath",
        "multipath multisig",
        "multipath of other branches",
        "tpub",
        "tpub with origin",
        "vpub",
        "upub",
        "spaces around",
    ],
)
async def test_addresses_agree_with_bdk(node: Bitcoind, given: str, same_as: str) -> None:
    book = AddressBook(node)
    descriptor = await normalise_descriptor(node, given, "regtest")
    low = await book.derive(descriptor, start=0, count=3)
    high = await book.derive(descriptor, start=70_000, count=2)
    assert [(one.address, one.script_pubkey) for one in low + high] == by_bdk(
        same_as, [0, 1, 2, 70_000, 70_001]
    )
    assert [one.index for one in low + high] == [0, 1, 2, 70_000, 70_001]
    assert all(one.address == one.address.lower() for one in low if one.address.lower().startswith("bcrt1"))


async def test_zpub_gives_the_addresses_of_bip84(mainnet_node: Bitcoind) -> None:
    descriptor = await normalise_descriptor(mainnet_node, ZPUB_OF_BIP84, "mainnet")
    first = await AddressBook(mainnet_node).first_addresses(descriptor)
    assert [one.index for one in first] == [0, 1, 2]
    assert first[0].address == FIRST_ADDRESS_OF_BIP84
    theirs = bdk.Descriptor(f"wpkh({MAINNET_KEY}/0/*)", bdk.NetworkKind.MAIN)
    assert [one.address for one in first] == [
        str(theirs.derive_address(n, bdk.Network.BITCOIN)) for n in range(3)
    ]
    assert descriptor.text.startswith("wpkh(xpub")


async def test_ypub_and_xpub_on_mainnet(mainnet_node: Bitcoind) -> None:
    nested = await normalise_descriptor(mainnet_node, with_version(MAINNET_KEY, "ypub"), "mainnet")
    assert nested.text.startswith(f"sh(wpkh({bare(MAINNET_KEY)}/0/*))#")
    plain = await normalise_descriptor(mainnet_node, bare(MAINNET_KEY), "mainnet")
    assert plain.text.startswith(f"wpkh({bare(MAINNET_KEY)}/0/*)#")
    assert "assumed" in plain.note


async def test_choice_made_for_a_bare_key_is_said(node: Bitcoind) -> None:
    assert "assumed" in (await normalise_descriptor(node, bare(KEY), "regtest")).note
    assert "vpub" in (await normalise_descriptor(node, with_version(KEY, "vpub"), "regtest")).note
    assert (await normalise_descriptor(node, f"wpkh({KEY}/0/*)", "regtest")).note == ""
    master = bdk.DescriptorSecretKey(bdk.NetworkKind.TEST, bdk.Mnemonic.from_string(PHRASES[0]), None)
    at_depth_0 = bare(str(master.as_public())).removesuffix("/*")
    assert "depth is 0" in (await normalise_descriptor(node, at_depth_0, "regtest")).note


async def test_spellings_of_one_branch_have_one_id(node: Bitcoind) -> None:
    spellings = [
        bare(KEY),
        f"wpkh({KEY}/0/*)",
        f"wpkh({KEY.replace(chr(39), 'h')}/0/*)",
        f"wpkh({bare(KEY)}/<0;1>/*)",
    ]
    ids = {(await normalise_descriptor(node, spelling, "regtest")).id for spelling in spellings}
    others = {
        (await normalise_descriptor(node, other, "regtest")).id
        for other in (f"wpkh({KEY}/1/*)", f"tr({KEY}/0/*)", f"wpkh({OTHER_KEY}/0/*)")
    }
    assert len(ids) == 1
    assert len(others) == 3
    assert not ids & others


async def test_normalised_text_has_the_nodes_checksum_and_is_normal_already(node: Bitcoind) -> None:
    once = await normalise_descriptor(node, f"wpkh({KEY}/<0;1>/*)", "regtest")
    assert once.text.partition("#")[2] == (await node.descriptor_info(f"wpkh({KEY}/0/*)")).checksum
    assert await normalise_descriptor(node, once.text, "regtest") == once


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "give a payout descriptor"),
        ("wpkh(" + "x" * DESCRIPTOR_CHARACTERS_MAX + ")", "at most"),
        (f"wpkh({KEY}/0/*)\N{FULLWIDTH NUMBER SIGN}abcdefgh", "ASCII"),
        (f"wpkh({KEY}\n/0/*)", "one line"),
        (f"wpkh({WIF_TEST})", "private key"),
        (WIF_TEST, "private key"),
        (f"wpkh({with_version(KEY, 'tprv')}/0/*)", "private key"),
        (with_version(KEY, "vprv"), "private key"),
        (f"wpkh({with_version(KEY, 'xprv')}/0/*)", "private key"),
        (f"wsh(sortedmulti(1,{KEY}/0/*,{WIF_TEST}))", "private key"),
        (f"wpkh({MAINNET_KEY}/0/*)", "this xpub is of mainnet, and this server is on regtest"),
        (with_version(MAINNET_KEY, "zpub"), "this zpub is of mainnet"),
        (with_version(KEY, "Vpub"), "multisig"),
        (f"wpkh({with_version(KEY, 'vpub')}/0/*)", "written tpub, not vpub"),
        (with_version(KEY, "vpub")[:-1] + "1", "mistyped"),
        (bare(KEY)[:-1], "mistyped"),
        (f"wpkh({KEY}/0/*)#abcdefgh", "checksum"),
        (f"wpkh({KEY}/0/0)", "one address only"),
        (f"wpkh({KEY})", "one address only"),
        ("addr(bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080)", "addr() and raw()"),
        ("raw(6a)", "addr() and raw()"),
        ("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "does not take"),
        (f"wpkh({KEY}/0h/*)", "hardened"),
        (f"wpkh({KEY}/0/*')", "hardened"),
        (f"combo({KEY}/0/*)", "combo()"),
        (f"pk({KEY}/0/*)", "no address"),
        (f"multi(1,{KEY}/0/*)", "no address"),
        (f"wsh(sortedmulti(3,{KEY}/0/*,{OTHER_KEY}/0/*))", "does not take"),
        (f"wpkh({KEY}/<0;1>/<2;3>/*)", "does not take"),
        ("nonsense", "does not take"),
    ],
)
async def test_refused_with_words(node: Bitcoind, given: str, words: str) -> None:
    with pytest.raises(DescriptorInvalid) as refusal:
        await normalise_descriptor(node, given, "regtest")
    assert words in str(refusal.value)


async def test_test_keys_are_refused_on_mainnet(mainnet_node: Bitcoind) -> None:
    for key in (f"wpkh({KEY}/0/*)", bare(KEY), with_version(KEY, "vpub")):
        with pytest.raises(DescriptorInvalid, match="of a test network, and this server is on mainnet"):
            await normalise_descriptor(mainnet_node, key, "mainnet")


@pytest.mark.parametrize("secret", [WIF_TEST[:-1] + "1", with_version(KEY, "tprv")[:-1] + "1", WIF_TEST])
@pytest.mark.parametrize("around", ["{}", "wpkh({})", "wpkh({}/0/*)", "wsh(multi(1,{}))"])
async def test_refusals_never_repeat_a_key(node: Bitcoind, secret: str, around: str) -> None:
    """Also a mistyped private key is one that somebody can guess."""
    with pytest.raises(DescriptorInvalid) as refusal:
        await normalise_descriptor(node, around.format(secret), "regtest")
    assert secret[:12] not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


async def test_window_is_filled_ahead_and_renewed(node: Bitcoind) -> None:
    book = AddressBook(node)
    descriptor = await normalise_descriptor(node, f"wpkh({KEY}/0/*)", "regtest")
    with pytest.raises(AddressesNotDerived) as missing:
        book.at(descriptor.id, 7)
    assert (missing.value.descriptor_id, missing.value.index) == (descriptor.id, 7)

    await book.ensure(descriptor, 7)
    last_of_window = 7 + ADDRESSES_PER_WINDOW - 1
    theirs = by_bdk(f"wpkh({KEY}/0/*)", [7, last_of_window])
    assert [book.at(descriptor.id, n).address for n in (7, last_of_window)] == [
        address for address, _ in theirs
    ]
    with pytest.raises(AddressesNotDerived):
        book.at(descriptor.id, last_of_window + 1)

    near_the_end = last_of_window - ADDRESSES_AHEAD_MIN + 2
    await asyncio.gather(*(book.ensure(descriptor, near_the_end) for _ in range(5)))
    assert book.at(descriptor.id, last_of_window + 1).index == last_of_window + 1


async def test_ensure_of_a_filled_window_asks_nothing_of_the_node(node: Bitcoind) -> None:
    counting = CountingNode(node)
    book = AddressBook(counting)
    descriptor = await normalise_descriptor(node, f"tr({KEY}/0/*)", "regtest")
    await book.ensure(descriptor, 0)
    await book.ensure(descriptor, ADDRESSES_PER_WINDOW - ADDRESSES_AHEAD_MIN)
    assert counting.derivations == 1
    await book.ensure(descriptor, ADDRESSES_PER_WINDOW - ADDRESSES_AHEAD_MIN + 1)
    assert counting.derivations == 2


async def test_a_private_key_that_only_the_node_recognises_is_refused(node: Bitcoind) -> None:
    with pytest.raises(DescriptorInvalid, match="private key"):
        await normalise_descriptor(WaryNode(node), f"wpkh({KEY}/0/*)", "regtest")


class CountingNode:
    """A node that counts how often it is asked to derive."""

    def __init__(self, node: Bitcoind) -> None:
        self.derivations = 0
        self._node = node

    async def descriptor_info(self, descriptor: str) -> DescriptorInfo:
        return await self._node.descriptor_info(descriptor)

    async def derive_addresses(self, descriptor: str, *, start: int, end: int) -> list[str]:
        self.derivations += 1
        return await self._node.derive_addresses(descriptor, start=start, end=end)

    async def validate_addresses(self, addresses: Sequence[str]) -> list[bytes | None]:
        return await self._node.validate_addresses(addresses)


class WaryNode(CountingNode):
    """A node that finds private keys where we see none."""

    async def descriptor_info(self, descriptor: str) -> DescriptorInfo:
        return replace(await super().descriptor_info(descriptor), has_private_keys=True)
