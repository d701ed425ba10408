"""What a download pays, chunk by chunk: which channel signs, how much, and when to stop.

The bound that limits what a hostile server can take: chunks signed for that have not arrived and been
proven are never more than WINDOW_CHUNKS, over all open channels of the server and all runs of the client. Of
a channel that the server ended they are lost, so that it may take as many of each. A chunk that was asked for
before is asked for again with what is signed already.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bitcache.client.channels import OPEN_STATES, ChannelServer, voucher_header
from bitcache.client.errors import (
    ChannelMissing,
    ChunksWithheld,
    ClientError,
    DepositUnconfirmed,
    ServerAnswerWrong,
    SpendingLimitReached,
)
from bitcache.client.purses import Purse
from payments.money import Msat

WINDOW_CHUNKS = 16
CHUNKS_PER_REQUEST = 4
"""With four lanes the whole window. The server takes up to 8."""
POLL_S = 1.0


@dataclass(frozen=True)
class Ticket:
    """Chunks [first, end) of a file, and what pays for them."""

    purse: Purse
    first: int
    end: int
    authorization: str


class Meter:
    """Of one download. `tell` hears, in words, of waits and of changes of the channel."""

    def __init__(
        self,
        server: ChannelServer,
        purses: Sequence[Purse],
        *,
        price_msat: int,
        spend_max_msat: int | None = None,
        wait: bool = True,
        tell: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._server = server
        self.purses = list(purses)
        self.price_msat = price_msat
        self._spend_max_msat = spend_max_msat
        self._wait = wait
        self._tell = tell
        self._in_flight = 0
        self._current: Purse | None = None
        self._changed = asyncio.Event()
        self._asking_depth = asyncio.Lock()
        self._told = ""
        self.chunks = 0
        """That arrived in this run."""
        self.spent_msat = Msat(0)
        """Newly signed for in this run."""
        self.stopped: ClientError | None = None
        """Why nothing more is paid, if so."""

    @property
    def left_sat(self) -> int:
        return sum(purse.left_sat for purse in self.purses if not purse.ended)

    def outstanding(self, file_id: str, index: int) -> bool:
        return any(purse.count.is_outstanding(file_id, index) for purse in self.purses)

    def is_owed(self, file_id: str) -> bool:
        """Whether chunks of this file were asked for and have not come."""
        return any(purse.count.has_outstanding(file_id) for purse in self.purses)

    @contextmanager
    def paying(self) -> Iterator[None]:
        """While the chunks of a ticket are on their way."""
        try:
            yield
        finally:
            self._in_flight -= 1
            self._changed.set()

    async def reserve(self, file_id: str, first: int, end: int) -> Ticket | None:
        """What pays for the chunks from `first` on, not beyond `end`; None: nothing more is paid (`stopped`).

        What it promises is on record when it returns. Raises ChunksWithheld.
        """
        while self.stopped is None:
            asked = self._asked_before(file_id, first)
            if asked is not None:
                return self._ticket(*asked)
            room = WINDOW_CHUNKS - sum(p.count.outstanding for p in self.purses if not p.ended)
            if room <= 0:
                await self._room()
                continue
            units = min(room, CHUNKS_PER_REQUEST, self._new_units(file_id, first, end))
            units = min(units, self._allowed_units())
            if not units:
                self.stopped = self._limit_reached()
                break
            purse = self._purse(units)
            if purse is None:
                self.stopped = ChannelMissing(
                    "The deposit is used up. What came is kept. Open another channel with `bitcache channel "
                    "open` and run the same command again."
                )
                break
            units = purse.affords(units, self.price_msat)
            if not purse.is_payable(units, self.price_msat):
                units = 1
            if not purse.is_payable(units, self.price_msat):
                await self._deepen(purse, purse.signed_with(1, self.price_msat))
                continue
            # On record before it is sent: after a crash we must know what we signed.
            purse.count.ask(file_id, first, units, self.price_msat)
            self.spent_msat = Msat(self.spent_msat + units * self.price_msat)
            return self._ticket(purse, first, first + units)
        return None

    def arrived(self, ticket: Ticket, file_id: str, index: int) -> None:
        """A chunk is on disk and proven."""
        ticket.purse.count.arrive(file_id, index)
        self.chunks += 1
        self._changed.set()

    def came_before(self, file_id: str, indexes: Iterable[int]) -> None:
        """These are on disk and proven, by an earlier run that may have died before it wrote so."""
        for index in indexes:
            for purse in self.purses:
                purse.count.arrive(file_id, index)

    def end(self, purse: Purse) -> None:
        """It pays for nothing more."""
        if purse.ended:
            return
        purse.ended = True
        self._tell(f"Channel {purse.own.id} is closed, or closing.")

    async def hold(self, purse: Purse, why: str) -> None:
        """The server takes nothing on this channel just now: wait a moment, or decide to stop."""
        if not self._wait:
            self.stopped = DepositUnconfirmed(f"{why} Run the same command again after it.")
            return
        if why != self._told:
            self._told = why
            self._tell(f"{why} Waiting for it.")
        await asyncio.sleep(POLL_S)
        for one in await self._server.mine(purse.own.contract):
            if one.own.id == purse.own.id:
                purse.payable_sat = 0 if one.view.suspended else one.view.payable_sat_max
                if one.view.state not in OPEN_STATES:
                    self.end(purse)

    async def _deepen(self, purse: Purse, needed_sat: int) -> None:
        """Until the server takes so much on this channel."""
        async with self._asking_depth:
            while purse.payable_sat < needed_sat and self.stopped is None and not purse.ended:
                await self.hold(
                    purse,
                    f"As deep as it is now, channel {purse.own.id} pays up to {purse.payable_sat:,} sat: "
                    "for more a block is needed.",
                )

    def check_receipt(self, purse: Purse, *, accepted_sat: int, spent_msat: int) -> None:
        """Raises ServerAnswerWrong if the server charged what was never promised."""
        count = purse.count
        if accepted_sat > count.signed_sat or spent_msat > count.promised_msat:
            raise ServerAnswerWrong(
                f"The server says it charged {_sat_words(spent_msat)} on channel {purse.own.id}: you agreed "
                f"to {_sat_words(count.promised_msat)}. Nothing more is paid."
            )

    def _ticket(self, purse: Purse, first: int, end: int) -> Ticket:
        authorization = voucher_header(purse.own, purse.voucher_sat)
        self._in_flight += 1
        return Ticket(purse, first, end, authorization)

    def _asked_before(self, file_id: str, first: int) -> tuple[Purse, int, int] | None:
        for purse in self.purses:
            if not purse.ended and purse.count.is_asked(file_id, first):
                # One at a time: the server sends a chunk again some three times a day, and what is cut off in
                # the middle should use that up for one of them alone.
                return purse, first, first + 1
        return None

    def _new_units(self, file_id: str, first: int, end: int) -> int:
        """How many chunks from `first` on were never asked for."""
        at = first + 1
        while at < end and self._asked_before(file_id, at) is None:
            at += 1
        return at - first

    def _limit_reached(self) -> SpendingLimitReached:
        if self._spend_max_msat is not None and self._spend_max_msat < self.price_msat:
            return SpendingLimitReached(
                f"A chunk costs {_sat_words(self.price_msat)}, more than you allow: nothing was paid."
            )
        return SpendingLimitReached(
            f"Stopped before spending more than you allow: {_sat_words(self.spent_msat)} in this "
            "run. What came is kept. Run the same command again to go on."
        )

    def _allowed_units(self) -> int:
        if self._spend_max_msat is None:
            return CHUNKS_PER_REQUEST
        return max(0, self._spend_max_msat - self.spent_msat) // self.price_msat

    def _purse(self, units: int) -> Purse | None:
        """The first channel that has something left, those first that may pay at once."""
        able = [p for p in self.purses if not p.ended and p.affords(units, self.price_msat)]
        able.sort(key=lambda purse: not purse.is_payable(1, self.price_msat))
        chosen = able[0] if able else None
        if chosen is not None and chosen is not self._current:
            if self._current is not None:
                self._tell(f"Going on with channel {chosen.own.id}.")
            self._current = chosen
        return chosen

    async def _room(self) -> None:
        if not self._in_flight:
            raise ChunksWithheld(
                f"{WINDOW_CHUNKS} chunks were paid for and have not come, and nothing more is paid before "
                "they have. Asked for again they cost nothing: finish the download they belong to, or close "
                "the channel with `bitcache channel close`."
            )
        self._changed.clear()
        await self._changed.wait()


def _sat_words(amount_msat: int) -> str:
    """1500 -> 1.5 sat."""
    whole, rest = divmod(amount_msat, 1_000)
    return f"{whole:,}{f'.{rest:03}'.rstrip('0') if rest else ''} sat"
