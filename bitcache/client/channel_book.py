"""Payment channels as this computer keeps them: small files, for the user alone.

    <payer's key>.json        the contract: its terms, the payer's secret key, the refund's backup line
    <txid>-<vout>.json        one deposit under a contract
    <txid>-<vout>.count       what was signed for and what arrived (`channel_count`)
    <txid>-<vout>.lock        one process at a time signs for a channel

A contract is durable before anybody hears of its address: whoever funds it must already hold what takes the
deposit back.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec
from coincurve import PrivateKey

from bitcache.api.wire_channels import ChallengeView
from bitcache.client.channel_count import ChannelCount
from bitcache.client.errors import ChannelUnknown, DepositUnproven, ServerAnswerWrong
from bitcache.client.places import make_private_folder, only_one, write_private
from payments.channel_errors import VoucherDustChange, VoucherOverDeposit
from payments.channel_keys import public_bytes
from payments.channel_script import Channel, Contract, parse_channel_id
from payments.money import Sat
from payments.segwit_address import address_of

T = TypeVar("T")


class KeptContract(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a payer must not lose. Keys and scripts are lower-case hex."""

    server: str
    network: str
    challenge: ChallengeView
    """As it came: sent back with every voucher."""
    payer_secret: str
    payee_key: str
    expiry_height: int
    change_script: str
    close_fee_sat: int
    created_at: int
    recovered: bool = False
    """Out of a backup line: change script and close fee are the server's word, so that only deposits of which
    it proved a signature of ours are channels of it."""

    @cached_property
    def payer(self) -> PrivateKey:
        return PrivateKey(bytes.fromhex(self.payer_secret))

    @cached_property
    def contract(self) -> Contract:
        return Contract(
            public_bytes(self.payer),
            bytes.fromhex(self.payee_key),
            self.expiry_height,
            bytes.fromhex(self.change_script),
            Sat(self.close_fee_sat),
        ).checked()

    @property
    def payer_key(self) -> str:
        return self.contract.payer_key.hex()

    @property
    def script_pubkey(self) -> bytes:
        return self.contract.script_pubkey

    @property
    def address(self) -> str:
        """Computed here: the server is not believed which address is the channel's."""
        return address_of(self.script_pubkey, self.network)

    @property
    def backup_line(self) -> str:
        return self.contract.backup_line(self.payer, self.network)


class KeptChannel(msgspec.Struct, frozen=True, kw_only=True):
    """One deposit. `ended` once the server said that it pays for nothing more."""

    channel_id: str
    payer_key: str
    capacity_sat: int
    opened_at: int
    ended: bool = False


class OwnChannel:
    """A deposit with its contract: what this side signs for it."""

    def __init__(self, kept: KeptChannel, contract: KeptContract) -> None:
        self.kept = kept
        self.contract = contract
        self.channel = Channel(contract.contract, parse_channel_id(kept.channel_id), Sat(kept.capacity_sat))

    @classmethod
    def of(cls, contract: KeptContract, channel_id: str, capacity_sat: int) -> "OwnChannel":
        """A deposit that no book has. Raises OutpointMalformed."""
        kept = KeptChannel(
            channel_id=channel_id,
            payer_key=contract.payer_key,
            capacity_sat=capacity_sat,
            opened_at=int(time.time()),
        )
        return cls(kept, contract)

    @property
    def id(self) -> str:
        return self.kept.channel_id

    def signed(self, cumulative_sat: int) -> bytes:
        """The voucher's signature. Raises VoucherOverDeposit, VoucherDustChange."""
        return self.channel.sign(self.contract.payer, cumulative_sat)

    def signable_sat(self, cumulative_sat: int) -> int:
        """The most up to `cumulative_sat` that a voucher can be for: none leaves change that is dust."""
        try:
            self.channel.state(cumulative_sat)
        except (VoucherOverDeposit, VoucherDustChange) as refusal:
            return max(0, refusal.max_sat)
        return cumulative_sat


class ChannelBook:
    """All channels in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep_contract(self, kept: KeptContract) -> None:
        """Durable when it returns. One that is here already stays as it is."""
        if self.contract(kept.payer_key) is None:
            write_private(self._contract_path(kept.payer_key), msgspec.json.encode(kept))

    def contract(self, payer_key: str) -> KeptContract | None:
        path = self._contract_path(payer_key)
        return _read(path, KeptContract) if path.exists() else None

    def keep_channel(self, kept: KeptChannel) -> None:
        write_private(self._path(kept.channel_id, "json"), msgspec.json.encode(kept))

    def contracts(self, server: str | None = None) -> list[KeptContract]:
        """Newest first. Damaged files are left alone."""
        kept = [
            contract
            for path in self._files("0?" + "?" * 64 + ".json")
            if (contract := _read(path, KeptContract)) is not None and server in {None, contract.server}
        ]
        return sorted(kept, key=lambda contract: contract.created_at, reverse=True)

    def channels(self, server: str | None = None) -> list[OwnChannel]:
        """Oldest first."""
        contracts = {contract.payer_key: contract for contract in self.contracts(server)}
        kept = [
            channel
            for path in self._files("?" * 64 + "-*.json")
            if (channel := _read(path, KeptChannel)) is not None and channel.payer_key in contracts
        ]
        kept.sort(key=lambda channel: (channel.opened_at, channel.channel_id))
        return [OwnChannel(channel, contracts[channel.payer_key]) for channel in kept]

    def channel(self, channel_id: str) -> OwnChannel:
        """Raises ChannelUnknown."""
        for own in self.channels():
            if own.id == channel_id:
                return own
        raise ChannelUnknown(channel_id)

    def known(self, contract: KeptContract, channel_id: str) -> OwnChannel | None:
        """The channel of this deposit, if it is here. Raises ServerAnswerWrong: of another contract."""
        known = next((own for own in self.channels() if own.id == channel_id), None)
        if known is not None and known.contract.payer_key != contract.payer_key:
            raise ServerAnswerWrong(f"The server says that channel {channel_id} is of another contract.")
        return known

    def add(
        self, contract: KeptContract, channel_id: str, capacity_sat: int, *, proven: bool = False
    ) -> OwnChannel:
        """The channel of this deposit, kept from now on. `proven`: by a signature of ours over its change.

        Another capacity than was said at first is taken while nothing was signed away: a signature over a
        wrong one is worth nothing.
        Raises DepositUnproven, OutpointMalformed, ServerAnswerWrong.
        """
        known = self.known(contract, channel_id)
        if (
            known is not None
            and capacity_sat != known.kept.capacity_sat
            and not self.glance(known).signed_sat
        ):
            known = OwnChannel(msgspec.structs.replace(known.kept, capacity_sat=capacity_sat), contract)
            self.keep_channel(known.kept)
        if known is not None:
            return known
        if contract.recovered and not proven:
            raise DepositUnproven(channel_id)
        own = OwnChannel.of(contract, channel_id, capacity_sat)
        self.keep_channel(own.kept)
        return own

    def end(self, own: OwnChannel) -> None:
        if not own.kept.ended:
            self.keep_channel(msgspec.structs.replace(own.kept, ended=True))

    def payment_path(self, payer_key: str) -> Path:
        """Where a deposit by our own wallet is recorded before it is broadcast."""
        return self._folder / "deposits" / f"{payer_key}.json"

    @contextmanager
    def counting(self, own: OwnChannel) -> Iterator[ChannelCount]:
        """The channel's count, for this process alone. Raises AlreadyRunning.

        Two processes that sign for one channel would each promise what the other one has promised already.
        """
        with only_one(self._path(own.id, "lock"), f"Another command that pays from the channel {own.id}"):
            count = ChannelCount(self._path(own.id, "count"))
            try:
                yield count
            finally:
                count.close()

    def glance(self, own: OwnChannel) -> ChannelCount:
        """The count as it is now, to look at."""
        return ChannelCount(self._path(own.id, "count"), writable=False)

    def _contract_path(self, payer_key: str) -> Path:
        return self._folder / f"{payer_key}.json"

    def _path(self, channel_id: str, ending: str) -> Path:
        outpoint = parse_channel_id(channel_id)
        return self._folder / f"{outpoint.txid}-{outpoint.vout}.{ending}"

    def _files(self, pattern: str) -> list[Path]:
        make_private_folder(self._folder)
        return sorted(self._folder.glob(pattern))


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
