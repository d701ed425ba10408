"""The channels a download may pay from: found, locked, and agreed on with their server."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bitcache.api import wire_channels as wire
from bitcache.client.channel_book import ChannelBook, KeptContract, OwnChannel
from bitcache.client.channel_count import ChannelCount
from bitcache.client.channels import OPEN_STATES, ChannelServer, reconcile
from bitcache.client.errors import AlreadyRunning, ServerProblem
from payments.money import Msat, sat_rounded_up

CONTRACTS_MAX = 20
"""The newest: who asked for many addresses and paid to none need not wait for a question about each."""
NOT_OPENED = frozenset({"deposit-too-small", "funding-not-found"})
"""Deposits that are no channel (yet)."""


@dataclass(eq=False)
class Purse:
    """A channel that this process may sign for."""

    own: OwnChannel
    count: ChannelCount
    payable_sat: int
    """What the server takes at the depth of the deposit, in all."""
    ended: bool = False

    @property
    def left_sat(self) -> int:
        return max(0, self.own.channel.paid_sat_max - self.count.signed_sat)

    @property
    def voucher_sat(self) -> int:
        """What the next voucher is for: all that was promised, or the most below it that can be signed."""
        return self.own.signable_sat(self.count.signed_sat)

    def affords(self, units: int, price_msat: int) -> int:
        """How many of so many new chunks its deposit still pays."""
        while units and not self._is_signable(self.signed_with(units, price_msat)):
            units -= 1
        return units

    def is_payable(self, units: int, price_msat: int) -> bool:
        return self.signed_with(units, price_msat) <= self.payable_sat

    def signed_with(self, units: int, price_msat: int) -> int:
        return sat_rounded_up(Msat(self.count.promised_msat + units * price_msat))

    def _is_signable(self, cumulative_sat: int) -> bool:
        return self.own.signable_sat(cumulative_sat) == cumulative_sat


async def open_purses(
    stack: ExitStack,
    server: ChannelServer,
    book: ChannelBook,
    base_url: str,
    file_ids: Sequence[str],
) -> list[Purse]:
    """The channels of this server that may pay, locked, and agreed on with the server.

    Channels another command pays from are left to it, but those that were charged for chunks of these files
    and have not delivered them. Raises AlreadyRunning, ServerAnswerWrong.
    """
    purses, busy = [], None
    seen = [one for contract in _live(book, base_url) for one in await server.mine(contract)]
    for found in sorted(seen, key=lambda one: one.own.kept.opened_at):
        own = found.own
        if found.view.state not in OPEN_STATES:
            book.end(own)
            continue
        try:
            count = stack.enter_context(book.counting(own))
        except AlreadyRunning as exc:
            if _owed(book, own, file_ids):
                raise
            busy = exc
            continue
        view: wire.ChannelView = found.view
        reconcile(own, count, view, found.record)
        if view.state == "funded":
            try:
                view = await server.open(own)
            except ServerProblem as problem:
                if problem.name not in NOT_OPENED:
                    raise
                continue
        payable_sat = 0 if view.suspended else view.payable_sat_max
        purses.append(Purse(own, count, payable_sat))
    if not purses and busy is not None:
        raise busy
    return purses


def _live(book: ChannelBook, base_url: str) -> list[KeptContract]:
    """Contracts with a channel that may pay, or of whose deposits nothing is known yet."""
    owns = book.channels(base_url)
    ended = {own.contract.payer_key for own in owns} - {
        own.contract.payer_key for own in owns if not own.kept.ended
    }
    return [contract for contract in book.contracts(base_url) if contract.payer_key not in ended][
        :CONTRACTS_MAX
    ]


def _owed(book: ChannelBook, own: OwnChannel, file_ids: Sequence[str]) -> bool:
    count = book.glance(own)
    return any(count.has_outstanding(file_id) for file_id in file_ids)
