"""Payout descriptors and the addresses they give. Our node derives; no key code here.

A seller gives a descriptor, or the extended public key a wallet exports. `normalise_descriptor` makes of it
one receive branch that gives one address per index, or says what to give instead. It never repeats a key in
a message: what was pasted may be a private one.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from payments.bitcoind import DescriptorInfo
from payments.errors import AddressesNotDerived, DescriptorInvalid, NodeRefused
from payments.extended_keys import WPKH, Key, as_plain, decode_key, keys_in

DESCRIPTOR_CHARACTERS_MAX = 5_000
"""Twice what fifteen keys with their origins take, the most that sh(sortedmulti) holds."""
ADDRESSES_PER_WINDOW = 100
ADDRESSES_HELD_MAX = 5_000
ADDRESSES_AHEAD_MIN = 20
"""A window with fewer addresses left is renewed, so that indexes skipped on a collision are at hand."""
WINDOWS_MAX = 500
"""Some 40 kB each. The window filled longest ago goes first."""
ACCOUNT_KEY_DEPTH = 3
"""BIP44: m / purpose' / coin' / account'."""

BARE_KEY = re.compile(r"(?P<origin>\[[0-9a-fA-F]{8}(?:/\d+['hH]?)*\])?(?P<key>[A-Za-z]{1}(?:pub|prv)\w+)")
KEY_ORIGIN = re.compile(r"\[[^\]]*\]")
LONG_WORD = re.compile(r"[A-Za-z0-9]{20,}")
"""No word of the node's own has so many letters; a key has, or a piece of one that was mistyped."""
NODES_WORDS_CHARACTERS_MAX = 200
"""It quotes the descriptor, which may have thousands."""


class DescriptorNode(Protocol):
    """The part of our node that knows descriptors and addresses."""

    async def descriptor_info(self, descriptor: str) -> DescriptorInfo: ...

    async def derive_addresses(self, descriptor: str, *, start: int, end: int) -> list[str]: ...

    async def validate_addresses(self, addresses: Sequence[str]) -> list[bytes | None]: ...


@dataclass(frozen=True, slots=True)
class PayoutDescriptor:
    text: str
    """One ranged receive branch, public keys only, with its checksum."""
    id: str
    """32 hex characters; equal for spellings that differ only in key origins or hardened marks."""
    note: str = ""
    """What was assumed in making `text` of the seller's words, to be shown to the seller; may be empty."""


@dataclass(frozen=True, slots=True)
class DerivedAddress:
    index: int
    address: str
    script_pubkey: bytes


async def normalise_descriptor(node: DescriptorNode, text: str, network: str) -> PayoutDescriptor:
    """The receive branch of a descriptor or extended public key, fit for `network` (as in our configuration).

    Takes any descriptor our node knows and can derive one address per index from; of a multipath one, the
    first branch (BIP389). Raises DescriptorInvalid with words for the seller.
    """
    text = text.strip()
    _check_text(text)
    _check_keys(keys_in(text), network)
    bare = _descriptor_of_bare_key(text)
    if bare is None:
        _check_plain_versions(keys_in(text))
    descriptor, note = bare or (text, "")
    try:
        info = await node.descriptor_info(descriptor)
        _check_info(info)
        branch = info.multipath_expansion[0] if info.multipath_expansion else info.descriptor
        addresses = await node.derive_addresses(branch, start=0, end=1)
    except NodeRefused as exc:
        raise DescriptorInvalid(_words(exc)) from None
    if len(addresses) != 2 or addresses[0] == addresses[1]:
        raise DescriptorInvalid(
            "this descriptor does not give one new address per index (combo() gives several): "
            "choose one script, such as wpkh() or tr()"
        )
    return PayoutDescriptor(branch, _descriptor_id(branch), note)


class AddressBook:
    """Derives addresses, and keeps some at hand: a write transaction must not wait for the node."""

    def __init__(self, node: DescriptorNode) -> None:
        self._node = node
        self._windows: dict[str, dict[int, DerivedAddress]] = {}
        self._filling = asyncio.Lock()

    async def derive(self, descriptor: PayoutDescriptor, *, start: int, count: int) -> list[DerivedAddress]:
        """The addresses at indexes `start` to `start + count - 1`."""
        addresses = await self._node.derive_addresses(descriptor.text, start=start, end=start + count - 1)
        scripts = await self._node.validate_addresses(addresses)
        derived: list[DerivedAddress] = []
        for index, (address, script_pubkey) in enumerate(zip(addresses, scripts, strict=True), start):
            assert script_pubkey is not None, "the node knows the addresses it derives"
            derived.append(DerivedAddress(index, address, script_pubkey))
        assert len(derived) == count, "a normalised descriptor gives one address per index"
        return derived

    async def first_addresses(self, descriptor: PayoutDescriptor, n: int = 3) -> list[DerivedAddress]:
        """What a seller compares with the first receive addresses of their wallet."""
        return await self.derive(descriptor, start=0, count=n)

    async def ensure(self, descriptor: PayoutDescriptor, index: int) -> None:
        """Have `index` and at least ADDRESSES_AHEAD_MIN - 1 addresses after it at hand."""
        if self._holds(descriptor.id, index):
            return
        async with self._filling:
            if self._holds(descriptor.id, index):
                return
            derived = await self.derive(descriptor, start=index, count=ADDRESSES_PER_WINDOW)
            # Those before are kept: where another descriptor of the same wallet took a long run of addresses,
            # the search for a free one begins at its start each time.
            before = self._windows.pop(descriptor.id, {})
            window = before | {address.index: address for address in derived}
            self._windows[descriptor.id] = dict(sorted(window.items())[-ADDRESSES_HELD_MAX:])
            if len(self._windows) > WINDOWS_MAX:
                self._windows.pop(next(iter(self._windows)))

    def at(self, descriptor_id: str, index: int) -> DerivedAddress:
        """The address at `index`. Raises AddressesNotDerived: `ensure` it outside the transaction."""
        address = self._windows.get(descriptor_id, {}).get(index)
        if address is None:
            raise AddressesNotDerived(descriptor_id, index)
        return address

    def _holds(self, descriptor_id: str, index: int) -> bool:
        window = self._windows.get(descriptor_id, {})
        return index in window and index + ADDRESSES_AHEAD_MIN - 1 in window


def _check_text(text: str) -> None:
    if not text:
        raise DescriptorInvalid("give a payout descriptor or an extended public key (xpub, zpub, ...)")
    if len(text) > DESCRIPTOR_CHARACTERS_MAX:
        raise DescriptorInvalid(f"a descriptor has at most {DESCRIPTOR_CHARACTERS_MAX} characters")
    if not text.isascii() or not text.isprintable():
        raise DescriptorInvalid(
            "a descriptor is one line of plain ASCII characters: copy it again from the wallet"
        )


def _check_keys(keys: Sequence[Key], network: str) -> None:
    on_mainnet = network == "mainnet"
    for key in keys:
        if key.version.private:
            raise DescriptorInvalid(_PRIVATE_KEY)
    for key in keys:
        if key.version.mainnet != on_mainnet:
            theirs = "mainnet" if key.version.mainnet else "a test network"
            ours = "xpub, ypub or zpub" if on_mainnet else "tpub, upub or vpub"
            raise DescriptorInvalid(
                f"this {key.version.name} is of {theirs}, and this server is on {network}: give a {ours}"
            )
        if key.version.multisig:
            raise DescriptorInvalid(
                f"a {key.version.name} is one of several keys of a multisig wallet: "
                "give the wallet's whole descriptor, wsh(sortedmulti(...))"
            )


def _check_plain_versions(keys: Sequence[Key]) -> None:
    for key in keys:
        if key.version.script is not None:
            plain = "xpub" if key.version.mainnet else "tpub"
            raise DescriptorInvalid(
                f"inside a descriptor a key is written {plain}, not {key.version.name}: "
                f"give the {key.version.name} alone, or the descriptor as the wallet exports it"
            )


def _descriptor_of_bare_key(text: str) -> tuple[str, str] | None:
    """The descriptor that a key on its own, with or without its origin, stands for; and what that assumes."""
    bare = BARE_KEY.fullmatch(text)
    if bare is None:
        return None
    key = decode_key(bare["key"])
    if key is None:
        raise DescriptorInvalid(
            "this extended key is mistyped, or of an unknown kind: copy it again from the wallet"
        )
    branch = f"{bare['origin'] or ''}{as_plain(key)}/0/*"
    script = key.version.script or WPKH
    if key.version.script is None:
        note = (
            f"A {key.version.name} does not say which addresses its wallet uses; "
            f"native segwit, {script.format('.../0/*')}, is assumed."
        )
    else:
        note = f"A {key.version.name} stands for {script.format('.../0/*')}."
    if key.depth != ACCOUNT_KEY_DEPTH:
        note += f" The key's depth is {key.depth}; that of an account key is mostly {ACCOUNT_KEY_DEPTH}."
    return script.format(branch), note + " Compare the first addresses with your wallet's."


def _check_info(info: DescriptorInfo) -> None:
    if info.has_private_keys:
        raise DescriptorInvalid(_PRIVATE_KEY)
    if not info.is_solvable:
        raise DescriptorInvalid(
            "addr() and raw() name one fixed output, and every invoice needs an address of its own: "
            "give the wallet's descriptor or extended public key"
        )
    if not info.is_range:
        raise DescriptorInvalid(
            "this descriptor gives one address only, and every invoice needs an address of its own: "
            "give a ranged one, whose extended public key is followed by /0/*"
        )


_PRIVATE_KEY = (
    "this contains a private key, which no server should ever see: consider it exposed, move its coins, "
    "and give the descriptor or extended key that your wallet exports for watching"
)


def _words(refusal: NodeRefused) -> str:
    """What the seller is told when the node refuses a descriptor."""
    if "does not match computed checksum" in refusal.message:
        return (
            "the checksum after # does not belong to this descriptor, so a character is wrong or missing: "
            "copy it again from the wallet, which computes the checksum"
        )
    if "without private keys" in refusal.message:
        return (
            "hardened steps (' or h) after an extended public key need the private key: "
            "give the key of the account, followed by /0/*"
        )
    if "corresponding address" in refusal.message:
        return "this script has no address, so no wallet can pay it: choose wpkh(), tr(), sh() or wsh()"
    said = LONG_WORD.sub("...", refusal.message)[:NODES_WORDS_CHARACTERS_MAX]
    return f"our node does not take this descriptor: {said}"


def _descriptor_id(branch: str) -> str:
    spelling = KEY_ORIGIN.sub("", branch.partition("#")[0]).replace("'", "h")
    return hashlib.sha256(spelling.encode()).hexdigest()[:32]
