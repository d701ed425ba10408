"""Any history of channels, against a model a page long: deposits, vouchers, charges, copies, closes, blocks,
reorgs, refunds, crashes and failing disks, in any order.

After each step the disk says what was answered and nothing else: what the payer signed and no more was
accepted, what was accepted and no more was charged, each chunk once, and nothing ever falls.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import update

from bitcache.db.engine import Database
from payments import channel_host
from payments.channel import (
    CLOSE_MARGIN_BLOCKS,
    OPEN_MARGIN_BLOCKS,
    RETRIES_FREE,
    ChannelState,
    CloseReason,
    Voucher,
)
from payments.channel_errors import (
    ChannelClosed,
    ChannelError,
    ChannelNotFound,
    ChannelSuspended,
    CloseRefused,
    ConfirmationsNeeded,
    ExpiryTooNear,
    RetriesExhausted,
    UnconfirmedCapReached,
    VoucherDustChange,
    VoucherOverDeposit,
    VoucherShort,
    VoucherStale,
)
from payments.channel_registry import ChannelRegistry
from payments.outputs import Presence
from payments.ports import Transaction
from payments.tables import channels
from tests.channel_house import EXPOSURE, PRICE_MSAT, TIP, House, Payer, WriteFailed, charge
from tests.channel_parts import CLOSE_FEE_SAT
from tests.service import blank_database

T = TypeVar("T")

CHANNELS_MAX = 3
CAPACITY_SAT = 3_000
ALL_SAT = CAPACITY_SAT - CLOSE_FEE_SAT
UNITS = 40
FEE_SAT = 300

amounts = st.one_of(
    st.integers(0, 120), st.integers(450, 520), st.integers(ALL_SAT - 400, ALL_SAT + 2), st.just(ALL_SAT)
)
steps_above = st.integers(-4, 30)
failures = st.sampled_from([None, None, None, "before", "after"])
pick = st.integers(0, CHANNELS_MAX - 1)


@dataclass
class Model:
    """What was answered for one channel, and where its deposit is."""

    payer: Payer
    height: int | None
    missing: bool = False
    state: ChannelState = ChannelState.FUNDED
    accepted_sat: int = 0
    signed_sat: int = 0
    paid: set[int] = field(default_factory=set)
    copies: Counter[int] = field(default_factory=Counter)

    @property
    def spent_msat(self) -> int:
        return len(self.paid) * PRICE_MSAT

    @property
    def live(self) -> bool:
        return self.state is not ChannelState.CLOSED

    def confirmations(self, tip: int) -> int:
        return 0 if self.height is None else tip - self.height + 1


def sat_up(msat: int) -> int:
    return (msat + 999) // 1_000


def signed(payer: Payer, amount: int) -> Voucher:
    """No signature at all over what cannot be signed."""
    try:
        return payer.voucher(amount)
    except (VoucherOverDeposit, VoucherDustChange):
        return Voucher(payer.id, amount, bytes(64))


class ChannelMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="bitcache-machine-")
        self.models: list[Model] = []
        self.do(self._start())

    async def _start(self) -> None:
        file = Path(self.folder.name) / "machine.db"
        file.write_bytes(await blank_database())
        self.house = await House.build(Database(f"sqlite+aiosqlite:///{file}"))
        await self._take_over()

    async def _take_over(self) -> None:
        self.registry: ChannelRegistry = self.house.registry()
        await self.registry.poll_once()
        assert self.registry.available
        # Its turns are taken by hand.
        self.committing = asyncio.create_task(self.registry._commits.run())

    async def _end(self) -> None:
        self.committing.cancel()
        await asyncio.wait([self.committing])

    def teardown(self) -> None:
        if hasattr(self, "house"):
            self.do(self._end())
            self.do(self.house.database.close())
            self.runner.close()
            self.folder.cleanup()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(what)

    def model(self, number: int) -> Model:
        return self.models[number % len(self.models)]

    @property
    def limit(self) -> int:
        return sum(m.accepted_sat for m in self.models if m.live and m.confirmations(self.house.tip) == 0)

    # The chain

    @precondition(lambda self: len(self.models) < CHANNELS_MAX)
    @rule(mined=st.booleans(), life=st.sampled_from([CLOSE_MARGIN_BLOCKS + 3, 200, 10_000]))
    def deposit(self, mined: bool, life: int) -> None:
        height = self.house.tip if mined else None
        payer = self.do(
            self.house.deposit(capacity_sat=CAPACITY_SAT, height=height, expiry_height=self.house.tip + life)
        )
        self.models.append(Model(payer, height))

    @rule(blocks=st.sampled_from([1, 1, 2, 6]), confirmed=st.booleans())
    def mine(self, blocks: int, confirmed: bool) -> None:
        self.do(self.house.mine(blocks))
        if confirmed:
            for model in self.models:
                if model.height is None:
                    self.do(self.house.confirm(model.payer, self.house.tip))
                    model.height, model.missing = self.house.tip, False
        self.look()

    @precondition(lambda self: self.house.tip > TIP - 3)
    @rule(depth=st.integers(1, 3), again=st.booleans())
    def reorg(self, depth: int, again: bool) -> None:
        """The last blocks go; the deposits in them are back in the mempool, or nowhere to be seen."""
        height = self.house.tip - depth
        self.do(self.house.disconnect_above(height))
        for model in self.models:
            if model.height is not None and model.height > height:
                model.height, model.missing = None, not again
                if again:
                    self.do(self.house.set_presence(model.payer, Presence.MEMPOOL))
        self.do(self.house.connect(height + 1))
        self.look()

    @precondition(lambda self: self.models)
    @rule(number=pick)
    def refund(self, number: int) -> None:
        """A block ends the channel, whatever we think of it; the watcher writes so, and nobody has heard."""
        model = self.model(number)

        async def write(tx: Transaction) -> None:
            ended = {"state": ChannelState.CLOSED, "close_reason": CloseReason.REFUNDED}
            await tx.execute(update(channels).where(channels.c.id == model.payer.id).values(**ended))

        self.do(self.house.database.write(write))
        model.state = ChannelState.CLOSED

    @rule()
    def look(self) -> None:
        for model in self.models:
            margin = model.payer.channel.contract.expiry_height - CLOSE_MARGIN_BLOCKS
            if model.state is ChannelState.OPEN and self.house.tip >= margin:
                model.state = ChannelState.CLOSING
        self.do(self.registry.poll_once())

    # Payers

    @precondition(lambda self: self.models)
    @rule(number=pick, amount=amounts, fails=failures)
    def open(self, number: int, amount: int, fails: str | None) -> None:
        model = self.model(number)
        expected = self.refusal(model, amount, set(), opening=True)
        self.attempt(model, amount, set(), expected, fails, opening=True)

    @precondition(lambda self: self.models)
    @rule(number=pick, amount=amounts, fails=failures)
    def voucher(self, number: int, amount: int, fails: str | None) -> None:
        model = self.model(number)
        self.attempt(model, amount, set(), self.refusal(model, amount, set()), fails)

    @precondition(lambda self: self.models)
    @rule(
        number=pick,
        above=steps_above,
        first=st.integers(0, UNITS - 8),
        count=st.integers(1, 8),
        fails=failures,
    )
    def charge(self, number: int, above: int, first: int, count: int, fails: str | None) -> None:
        """Signed around what it costs: a little too little, or more than enough."""
        model, units = self.model(number), set(range(first, first + count))
        due_sat = sat_up(model.spent_msat + len(units - model.paid) * PRICE_MSAT)
        amount = max(0, due_sat + above)
        self.attempt(model, amount, units, self.refusal(model, amount, units), fails)

    @precondition(lambda self: any(m.state is ChannelState.OPEN for m in self.models))
    @rule(
        asked=st.lists(st.tuples(pick, st.integers(0, UNITS - 2), st.integers(1, 2)), min_size=2, max_size=8),
        gone=st.integers(0, 7),
        fails=failures,
    )
    def side_by_side(self, asked: list[tuple[int, int, int]], gone: int, fails: str | None) -> None:
        """One of them given up by its client: all or nothing of each, whatever the disk does."""
        self.do(self._side_by_side(asked, gone, fails))

    async def _side_by_side(self, asked: list[tuple[int, int, int]], gone: int, fails: str | None) -> None:
        self.house.store.fails = fails
        tasks = []
        for number, first, count in asked:
            model = self.model(number)
            amount = sat_up(model.spent_msat) + 4
            model.signed_sat = max(model.signed_sat, amount)
            paying = self.registry.pay(signed(model.payer, amount), charge(first, count))
            tasks.append(asyncio.create_task(paying))
        await asyncio.sleep(0)
        if gone < len(tasks):
            tasks[gone].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        self.house.store.fails = None
        await self.registry._settle()  # nothing is under way any more
        for (number, first, count), answer in zip(asked, answers, strict=True):
            assert not isinstance(answer, Exception) or isinstance(answer, ChannelError | WriteFailed), answer
            units = set(range(first, first + count))
            if not isinstance(answer, BaseException):
                assert units <= await self.house.paid_units(self.model(number).payer)
        for model in self.models:
            record = await self.house.record(model.payer)
            paid = await self.house.paid_units(model.payer)
            assert paid >= model.paid
            assert record.balance.accepted_sat >= model.accepted_sat
            model.paid, model.accepted_sat = paid, record.balance.accepted_sat
            # How many copies were sent depends on the order, and is not looked at closer here.
            model.copies = Counter()
        self.registry._live.retries._counts.clear()

    def attempt(
        self,
        model: Model,
        amount: int,
        units: set[int],
        expected: type[ChannelError] | None,
        fails: str | None,
        *,
        opening: bool = False,
    ) -> None:
        model.signed_sat = max(model.signed_sat, amount)
        self.house.store.fails = fails if expected is None else None
        voucher = signed(model.payer, amount)
        try:
            if opening:
                paid = self.do(self.registry.open(model.payer.id, voucher))
            else:
                wanted = charge(min(units), len(units)) if units else None
                paid = self.do(self.registry.pay(voucher, wanted))
        except WriteFailed:
            assert fails is not None
            record = self.do(self.house.record(model.payer))
            written = fails == "after" and self.do(self._is_written(model, amount, units, opening))
            if not written:
                assert record.balance.accepted_sat == model.accepted_sat
                return
            self.accept(model, amount, units, opening)
            return
        except ChannelError as refusal:
            self.refused_as(expected, refusal)
            return
        finally:
            self.house.store.fails = None
        assert expected is None, expected
        new = units - model.paid
        for unit in units & model.paid:
            model.copies[unit] += 1
        self.accept(model, amount, units, opening)
        assert paid.cost_msat == len(new) * PRICE_MSAT
        assert (paid.balance.accepted_sat, paid.balance.spent_msat) == (model.accepted_sat, model.spent_msat)
        assert paid.confirmations == model.confirmations(self.house.tip)

    def refused_as(self, expected: type[ChannelError] | None, refusal: ChannelError) -> None:
        # What a block has closed, and nobody has heard of, may be refused for what it was before.
        assert expected is ChannelClosed or type(refusal) is expected, (refusal, expected)

    async def _is_written(self, model: Model, amount: int, units: set[int], opening: bool) -> bool:
        """The disk may have taken it before it failed: then all of it, never a part."""
        record, paid = await self.house.record(model.payer), await self.house.paid_units(model.payer)
        written = (
            record.balance.accepted_sat == max(model.accepted_sat, amount) and paid == model.paid | units
        )
        return written and not (opening and record.state is ChannelState.FUNDED)

    def accept(self, model: Model, amount: int, units: set[int], opening: bool) -> None:
        if opening:
            model.state = ChannelState.OPEN
        model.accepted_sat = max(model.accepted_sat, amount)
        model.paid |= units

    def refusal(
        self, model: Model, amount: int, units: set[int], *, opening: bool = False
    ) -> type[ChannelError] | None:
        """Why it must be refused, first reason first."""
        tip, contract = self.house.tip, model.payer.channel.contract
        confirmations = model.confirmations(tip)
        limit = EXPOSURE.limit_sat(confirmations)
        change = ALL_SAT - amount
        new = units - model.paid
        due = sat_up(model.spent_msat + len(new) * PRICE_MSAT)
        more = max(0, amount - model.accepted_sat)
        if model.state in (ChannelState.CLOSING, ChannelState.CLOSED):
            return ChannelClosed
        if model.state is ChannelState.FUNDED:
            if not opening:
                return ChannelNotFound
            if tip > contract.expiry_height - OPEN_MARGIN_BLOCKS:
                return ExpiryTooNear
        if model.missing or model.accepted_sat > limit:
            return ChannelSuspended
        if change < 0:
            return VoucherOverDeposit
        if 0 < change < 330:
            return VoucherDustChange
        if any(model.copies[unit] >= RETRIES_FREE for unit in units & model.paid):
            return RetriesExhausted
        if amount > limit:
            return ConfirmationsNeeded
        if new and due > max(amount, model.accepted_sat):
            return VoucherStale if amount < model.accepted_sat else VoucherShort
        if confirmations == 0 and more and self.limit + more > EXPOSURE.unconfirmed_total_sat:
            return UnconfirmedCapReached
        return None

    @precondition(lambda self: self.models)
    @rule(number=pick, paid_above=st.one_of(st.none(), st.integers(-2, 3)), fails=failures)
    def ask_close(self, number: int, paid_above: int | None, fails: str | None) -> None:
        model = self.model(number)
        agreed = None
        short = False
        if paid_above is not None:
            due = sat_up(model.spent_msat)
            short = paid_above < 0 < due
            agreed = model.payer.agreed(max(0, due + paid_above), FEE_SAT)
        self.house.store.fails = fails
        try:
            self.do(self.registry.ask_close(model.payer.id, CloseReason.PAYER, agreed))
        except WriteFailed:
            record = self.do(self.house.record(model.payer))
            assert record.state in (model.state, ChannelState.CLOSING)
            model.state = record.state
            return
        except (ChannelClosed, CloseRefused) as refusal:
            nothing_signed = agreed is None and model.state is ChannelState.FUNDED
            open_still = model.state is not ChannelState.CLOSED
            ill_asked = open_still and (short or nothing_signed)
            self.refused_as(CloseRefused if ill_asked else ChannelClosed, refusal)
            assert short or nothing_signed or model.state is ChannelState.CLOSED
            return
        finally:
            self.house.store.fails = None
        model.state = ChannelState.CLOSING

    # The process

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        self.do(self._restart(crash))
        for model in self.models:
            model.copies = Counter()  # nobody counts them over a restart
        self.look()

    async def _restart(self, crash: bool) -> None:
        await self._end()
        if crash:
            self.house.now += channel_host.LEASE_S
        else:
            await self.registry._release()
        await self._take_over()

    @invariant()
    def the_disk_says_what_was_answered(self) -> None:
        if hasattr(self, "house"):
            self.do(self._check())

    async def _check(self) -> None:
        for model in self.models:
            record = await self.house.record(model.payer)
            balance, channel = record.balance, record.channel
            assert record.state is model.state
            assert (balance.accepted_sat, balance.spent_msat) == (model.accepted_sat, model.spent_msat)
            assert await self.house.paid_units(model.payer) == model.paid
            sold = (await self.house.sales(model.payer)).get("offer", (0, 0))
            assert sold == (len(model.paid), model.spent_msat)
            # The payee never has more than was signed, nor charges more than it has; and can prove it.
            assert sat_up(balance.spent_msat) <= balance.accepted_sat <= model.signed_sat
            assert (balance.signature is None) == (record.opened_at is None)
            if balance.signature is not None:
                channel.verify(balance.accepted_sat, balance.signature)


ChannelMachine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes: ask for it by hand
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestChannels = ChannelMachine.TestCase
