"""Channels in the memory of the process that has them, and what is decided of them there. No waiting.

Each method decides on all that is decided so far, written or not, and changes memory at once; what it returns
is what the next commit must write. So no two requests ever count on the same sat.
"""

import hmac
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from payments.channel import (
    LOST_S,
    ChannelState,
    Charge,
    CloseReason,
    Voucher,
    charged,
    check_life,
    must_close,
    suspended,
)
from payments.channel_errors import (
    ChannelClosed,
    ChannelNotFound,
    ChannelSuspended,
    CloseRefused,
    DepositTooSmall,
    ExpiryTooNear,
    UnconfirmedCapReached,
)
from payments.channel_exposure import Exposure
from payments.channel_pages import UNITS_PER_PAGE, Page, PageKey, Pages, Retries, RetryKey, pages_of
from payments.channel_record import Agreed, ChannelRecord
from payments.channel_script import Channel
from payments.money import NOTHING_MSAT, Msat, Sat, sat_rounded_up
from payments.outputs import Presence, block_depth


class LiveChannel:
    """One channel, as it is decided."""

    __slots__ = (
        "agreed",
        "balance",
        "channel",
        "close_asked_at",
        "close_reason",
        "exposed_sat",
        "funding",
        "funding_height",
        "id",
        "opened_at",
        "out_since",
        "state",
        "unsaved",
    )

    def __init__(self, record: ChannelRecord) -> None:
        self.id = record.id
        self.channel: Channel = record.channel
        self.state = record.state
        self.balance = record.balance
        self.opened_at = record.opened_at
        self.close_reason = record.close_reason
        self.close_asked_at = record.close_asked_at
        self.agreed = record.agreed
        self.funding = record.funding
        self.funding_height = record.funding_height
        self.exposed_sat = 0
        """What it has in `LiveChannels.unconfirmed_sat`."""
        self.out_since: int | None = None
        """When its deposit was first seen to be neither in a block nor in the mempool."""
        self.unsaved = 0
        """Batches under way that hold it: until they are written, the database knows less."""

    def confirmations(self, tip_height: int) -> int:
        return block_depth(self.funding_height, tip_height)


@dataclass(slots=True)
class Decision:
    """What was decided of one channel, to be written."""

    live: LiveChannel
    cost_msat: Msat = NOTHING_MSAT
    charge: Charge | None = None
    units: int = 0
    """Of the charge, those that were not paid for before."""
    pages: tuple[tuple[PageKey, Page], ...] = ()
    retried: tuple[RetryKey, ...] = ()
    state_changed: bool = False


class LiveChannels:
    """All channels that are not closed."""

    def __init__(self, exposure: Exposure) -> None:
        self._exposure = exposure
        self._by_id: dict[str, LiveChannel] = {}
        self.pages = Pages()
        self.retries = Retries()
        self.tip_height = 0
        self.unconfirmed_sat = 0
        """Accepted by channels without a confirmation, together."""
        self._lost_sat = 0
        """Charged to channels whose deposits were double-spent lately."""
        self._gone_sat: dict[str, int] = {}
        """What channels had in `unconfirmed_sat` when they were forgotten: lost perhaps, till we know."""
        self.dropped = 0
        """Rises when a channel goes: what was read before may be older than what went."""

    def __iter__(self) -> Iterator[LiveChannel]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, channel_id: str) -> LiveChannel | None:
        return self._by_id.get(channel_id)

    def put(self, record: ChannelRecord) -> LiveChannel:
        """Take a channel in that is not here."""
        assert record.id not in self._by_id
        self._gone_sat.pop(record.id, None)
        live = self._by_id[record.id] = LiveChannel(record)
        self._count(live)
        return live

    def place(self, live: LiveChannel, funding: Presence, height: int | None) -> None:
        """The chain has its deposit there now."""
        live.funding, live.funding_height = funding, height
        self._count(live)

    def move_tip(self, height: int) -> None:
        if height == self.tip_height:
            return
        self.tip_height = height
        for live in self:
            self._count(live)

    def set_lost(self, lost_sat: int, *, still: Container[str], now: int) -> None:
        """All were compared with the database: so much was lost lately, and these channels are not closed.

        A deposit that has been nowhere for so long counts as what was lost before: it must not take the place
        of others until it expires.
        """
        self._lost_sat = lost_sat
        self._gone_sat = {one: sat for one, sat in self._gone_sat.items() if one in still}
        for live in self:
            if live.funding in (Presence.BLOCK, Presence.MEMPOOL):
                live.out_since = None
            elif live.out_since is None or live.out_since > now:
                live.out_since = now
            elif live.exposed_sat and live.out_since <= now - LOST_S:
                self._expose(live, 0)

    def drop(self, channel_ids: Iterable[str]) -> None:
        """Forget these: the database is read before they are used again."""
        for channel_id in channel_ids:
            live = self._by_id.pop(channel_id, None)
            self.pages.drop(channel_id)
            if live is not None:
                self.unconfirmed_sat -= live.exposed_sat
                if live.exposed_sat:
                    self._gone_sat[channel_id] = live.exposed_sat
                self.dropped += 1

    def clear(self) -> None:
        self._by_id.clear()
        self.pages.clear()
        self.unconfirmed_sat = 0
        self.dropped += 1

    def missing_pages(self, channel_id: str, charge: Charge) -> list[PageKey]:
        """Pages that must be `put` before this can be decided."""
        touched = pages_of(charge.first_unit, charge.units)
        keys = [PageKey(channel_id, charge.item, page) for page in touched]
        return [key for key in keys if self.pages.get(key) is None]

    def pay(self, live: LiveChannel, voucher: Voucher, charge: Charge | None, now: int) -> Decision:
        """Charge what was not paid for before. The pages it is on are here.

        Raises ChannelNotFound while nobody opened it, ChannelClosed, ChannelSuspended, ExpiryTooNear,
        VoucherOverDeposit, VoucherDustChange, SignatureInvalid, RetriesExhausted, ConfirmationsNeeded,
        UnconfirmedCapReached, VoucherShort, VoucherStale.
        """
        match live.state:
            case ChannelState.FUNDED:
                raise ChannelNotFound(live.id)
            case ChannelState.CLOSING | ChannelState.CLOSED:
                raise ChannelClosed(live.id)
        decision = Decision(live)
        self._check_voucher(live, voucher)
        if charge is not None:
            self._weigh(decision, charge)
            self.retries.check(decision.retried, now)
        self._accept(live, voucher, decision.cost_msat)
        if charge is not None:
            self._mark(decision, charge, now)
        return decision

    def open(self, live: LiveChannel, voucher: Voucher, *, deposit_min_sat: int, now: int) -> Decision:
        """Take the first voucher, whose amount may be 0; of a channel that is open, one more.

        Raises as `pay`, and DepositTooSmall.
        """
        if live.state is not ChannelState.FUNDED:
            return self.pay(live, voucher, None, now)
        if live.channel.capacity_sat < deposit_min_sat or live.channel.paid_sat_max < 0:
            least = max(deposit_min_sat, live.channel.contract.close_fee_sat)
            raise DepositTooSmall(live.channel.capacity_sat, min_sat=Sat(least))
        check_life(live.channel.contract.expiry_height, self.tip_height)
        self._check_voucher(live, voucher)
        self._accept(live, voucher, NOTHING_MSAT)
        live.state, live.opened_at = ChannelState.OPEN, now
        return Decision(live, state_changed=True)

    def ask_close(
        self, live: LiveChannel, reason: CloseReason, agreed: Agreed | None, now: int
    ) -> Decision | None:
        """From here on it pays for nothing. None: that was decided before.

        Who asks first gives the reason; terms of the payer's for a cooperative close are taken whenever they
        come, until there are some. Raises CloseRefused, VoucherOverDeposit, VoucherDustChange,
        SignatureInvalid if they are not good, and for a channel that nobody opened, when there are none.
        """
        if agreed is not None:
            self._check_agreed(live, agreed)
        elif live.state is ChannelState.FUNDED:
            raise CloseRefused("Nobody has signed anything in this channel: its payer may take it back.")
        if live.state is ChannelState.CLOSED:
            raise ChannelClosed(live.id)
        if live.state is ChannelState.CLOSING and (agreed is None or live.agreed is not None):
            return None
        if live.state is not ChannelState.CLOSING:
            live.state, live.close_reason, live.close_asked_at = ChannelState.CLOSING, reason, now
        live.agreed = live.agreed or agreed
        return Decision(live, state_changed=True)

    def at_margin(self) -> list[LiveChannel]:
        """Open channels that expire so soon that they must be closed."""
        return [
            live
            for live in self
            if live.state is ChannelState.OPEN
            and must_close(live.channel.contract.expiry_height, self.tip_height)
        ]

    def _check_voucher(self, live: LiveChannel, voucher: Voucher) -> None:
        confirmations = live.confirmations(self.tip_height)
        limit_sat = self._exposure.limit_sat(confirmations)
        if suspended(live.funding, accepted_sat=live.balance.accepted_sat, limit_sat=limit_sat):
            raise ChannelSuspended(live.id)
        if must_close(live.channel.contract.expiry_height, self.tip_height):
            raise ExpiryTooNear(live.channel.contract.expiry_height)
        known = live.balance.signature
        same = known is not None and hmac.compare_digest(known, voucher.signature)
        if not same or voucher.cumulative_sat != live.balance.accepted_sat:
            live.channel.verify(voucher.cumulative_sat, voucher.signature)

    def _weigh(self, decision: Decision, charge: Charge) -> None:
        """Which units are new, and what they cost. Changes nothing here."""
        channel_id = decision.live.id
        retried = []
        pages: dict[PageKey, Page] = {}
        for unit in range(charge.first_unit, charge.first_unit + charge.units):
            key = PageKey(channel_id, charge.item, unit // UNITS_PER_PAGE)
            page = pages.get(key) or self.pages.get(key)
            assert page is not None, "whoever asks has brought the pages"
            if page.paid(unit):
                retried.append(RetryKey(channel_id, charge.item, unit))
            else:
                pages[key] = page
        decision.charge = charge
        decision.units = charge.units - len(retried)
        decision.cost_msat = Msat(decision.units * charge.price_msat)
        decision.pages = tuple(pages.items())
        decision.retried = tuple(retried)

    def _mark(self, decision: Decision, charge: Charge, now: int) -> None:
        pages = dict(decision.pages)
        for unit in range(charge.first_unit, charge.first_unit + charge.units):
            page = pages.get(PageKey(decision.live.id, charge.item, unit // UNITS_PER_PAGE))
            if page is not None:
                page.pay(unit)
        self.retries.count(decision.retried, now)

    def _accept(self, live: LiveChannel, voucher: Voucher, cost_msat: Msat) -> None:
        confirmations = live.confirmations(self.tip_height)
        balance = charged(
            live.balance,
            cumulative_sat=voucher.cumulative_sat,
            signature=voucher.signature,
            cost_msat=cost_msat,
            limit_sat=self._exposure.limit_sat(confirmations),
            confirmations=confirmations,
        )
        more_sat = balance.accepted_sat - live.balance.accepted_sat
        risked_sat = self.unconfirmed_sat + self._lost_sat + sum(self._gone_sat.values())
        total_max_sat = self._exposure.unconfirmed_total_sat
        if confirmations == 0 and more_sat and risked_sat + more_sat > total_max_sat:
            raise UnconfirmedCapReached
        live.balance = balance
        self._count(live)

    def _check_agreed(self, live: LiveChannel, agreed: Agreed) -> None:
        live.channel.verify(agreed.paid_sat, agreed.signature, agreed.fee_sat)
        owed_sat = sat_rounded_up(live.balance.spent_msat)
        if agreed.paid_sat < owed_sat:
            raise CloseRefused(f"{owed_sat:,} sat were spent in this channel: sign at least so much.")

    def _count(self, live: LiveChannel) -> None:
        self._expose(live, live.balance.accepted_sat if live.confirmations(self.tip_height) == 0 else 0)

    def _expose(self, live: LiveChannel, exposed_sat: int) -> None:
        self.unconfirmed_sat += exposed_sat - live.exposed_sat
        live.exposed_sat = exposed_sat
