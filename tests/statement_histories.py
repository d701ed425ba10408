"""Histories of a seller's money as hypothesis makes them, written as the server writes them.

Sales in either mode, paid by several outputs, taken back and settled again; channels that are closed, and
whose close is taken out of its block again; payouts and refunds that are called off, mined, and taken out of
their block again; what the operator takes by hand. Often within a second.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import insert

from bitcache.ids import new_id
from payments import books, ledger, payout_store
from payments.channel import ChannelState
from payments.channel_books import Ended, Sold, desired_channel, desired_spending
from payments.invoice import Mode
from payments.ledger import Booking, Code, Leg
from payments.money import Msat, Sat, msat_from_sat
from payments.payout import Kind, Payout, Share, State, desired_payout
from payments.ports import Transaction
from payments.tables import channel_contracts, channel_sales, channels, invoices

START = 1_790_000_000
"""2026-09-21 14:13:20 UTC."""
CHUNKS = 70
"""Of each channel that `put_channel` writes."""
GAPS_S = (0, 0, 1, 3_600, 86_400, 20 * 86_400)


@dataclass(frozen=True)
class Step:
    """`what` happens, to the `which`th of what there is, `gap_s` after the step before."""

    what: str
    gap_s: int
    which: int
    amounts_sat: tuple[int, ...]
    fee_percent: int


steps = st.builds(
    Step,
    what=st.sampled_from(
        (
            *("sale", "direct sale", "metered") * 2,
            *("close", "close", "unclose"),
            *("payout", "mine", "unmine", "cancel", "reorg", "settle", "refund", "correction"),
        )
    ),
    gap_s=st.sampled_from(GAPS_S),
    which=st.integers(0, 3),
    amounts_sat=st.lists(st.integers(1_000, 90_000), min_size=1, max_size=3).map(tuple),
    fee_percent=st.sampled_from((0, 1, 10, 100)),
)


@dataclass
class _Sale:
    id: str
    bookings: list[Booking]
    settled: list[Booking]


@dataclass
class Channel:
    """One that bought of one offer."""

    id: str
    sold: Sold
    spent: Booking


@dataclass
class _Out:
    payout: Payout
    share: Share | None = None


@dataclass
class History:
    """What was written for a seller of its own."""

    seller_id: str = field(default_factory=new_id)
    now: int = START
    sales: list[_Sale] = field(default_factory=list)
    outs: list[_Out] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    offer_ids: tuple[str, ...] = ()
    """What is sold per chunk, in turn; empty: offers that nobody knows."""

    async def play(self, tx: Transaction, played: Sequence[Step]) -> None:
        for step in played:
            self.now += step.gap_s
            match step.what:
                case "sale":
                    await self._sell(tx, step, Mode.HOSTED)
                case "direct sale":
                    await self._sell(tx, step, Mode.DIRECT)
                case "metered":
                    await self._meter(tx, step)
                case "payout":
                    amount_sat = Sat(step.amounts_sat[0])
                    await self._ask(tx, Kind.SELLER, ledger.seller(self.seller_id), amount_sat, None)
                case "correction":
                    await self._correct(tx, Sat(step.amounts_sat[0]))
                case _:
                    await self._again(tx, step)

    async def _again(self, tx: Transaction, step: Step) -> None:
        """Something happens to what is there, if there is any."""
        if step.what in ("reorg", "settle", "refund") and self.sales:
            sale = self.sales[step.which % len(self.sales)]
            wanted = {"reorg": [], "settle": sale.bookings + sale.settled, "refund": sale.bookings}
            await self._book(tx, sale.id, wanted[step.what])
            if step.what == "refund":
                amount_sat = Sat(sum(one.amount_msat for one in sale.bookings) // 1_000)
                await self._ask(tx, Kind.REFUND, ledger.owed(sale.id), amount_sat, sale.id)
        elif step.what in ("close", "unclose") and self.channels:
            await self._close(tx, self.channels[step.which % len(self.channels)], deep=step.what == "close")
        elif step.what in ("mine", "unmine", "cancel") and self.outs:
            out = self.outs[step.which % len(self.outs)]
            if step.what == "cancel" and out.share is None:
                out.payout = replace(out.payout, state=State.CANCELLED)
            elif step.what == "mine" and out.payout.state is State.APPROVED:
                fee_sat = Sat(step.amounts_sat[0] % out.payout.amount_sat)
                out.share = Share(out.payout.id, 0, Sat(out.payout.amount_sat - fee_sat), fee_sat)
            elif step.what == "unmine":
                out.share = None
            await self._book(tx, out.payout.id, desired_payout(out.payout, out.share))

    async def _sell(self, tx: Transaction, step: Step, mode: Mode) -> None:
        sale = _Sale(new_id(), [], [])
        await tx.execute(insert(invoices).values(**_invoice_row(sale.id, self.seller_id, mode, self.now)))
        mine = ledger.owed(sale.id)
        for amount_sat in step.amounts_sat:
            subject, amount = f"{secrets.token_hex(32)}:0", msat_from_sat(Sat(amount_sat))
            sale.bookings.append(Booking(subject, Leg.IN, ledger.chain(), mine, amount, Code.RECEIVED))
            if mode is Mode.DIRECT:
                theirs = ledger.direct(self.seller_id)
                sale.settled.append(Booking(subject, Leg.PRICE, mine, theirs, amount, Code.SETTLED))
                continue
            theirs = ledger.seller(self.seller_id)
            sale.settled.append(Booking(subject, Leg.SELLER, mine, theirs, amount, Code.SETTLED))
            fee = msat_from_sat(Sat(amount_sat * step.fee_percent // 100))
            if fee:
                sale.settled.append(Booking(subject, Leg.OPERATOR, theirs, ledger.operator(), fee, Code.FEE))
        self.sales.append(sale)
        await self._book(tx, sale.id, sale.bookings + sale.settled)

    async def _meter(self, tx: Transaction, step: Step) -> None:
        """Chunks of fractions of a sat."""
        channel_id = f"{secrets.token_hex(32)}:{step.which}"
        spent_msat = Msat(sum(step.amounts_sat) * 7 + 1)
        offer_id = self.offer_ids[len(self.channels) % len(self.offer_ids)] if self.offer_ids else new_id()
        sold = Sold(offer_id, self.seller_id, step.fee_percent * 10_000, spent_msat)
        spent = desired_spending(channel_id, sold, spent_msat, k=0)
        self.channels.append(Channel(channel_id, sold, spent))
        await self._book(tx, channel_id, [spent])

    async def _close(self, tx: Transaction, channel: Channel, *, deep: bool) -> None:
        settled_sat = Sat(-(-channel.sold.spent_msat // 1_000) + 3)
        ended = Ended("c" * 64, Sat(settled_sat + 100), settled_sat, deep)
        for reference, desired in desired_channel(channel.id, [channel.sold], ended).items():
            standing = [channel.spent] if reference == channel.id else []
            await self._book(tx, reference, [*standing, *desired])

    async def _ask(
        self, tx: Transaction, kind: Kind, account: str, amount_sat: Sat, invoice_id: str | None
    ) -> None:
        payout = Payout(
            id=new_id(),
            kind=kind,
            seller_id=self.seller_id,
            invoice_id=invoice_id,
            account=account,
            amount_sat=amount_sat,
            address="a",
            script_pubkey=b"\x51",
            state=State.APPROVED,
            requested_at=self.now,
            ready_at=self.now,
        )
        await payout_store.insert_payout(tx, payout)
        self.outs.append(_Out(payout))
        await self._book(tx, payout.id, desired_payout(payout, None))

    async def _correct(self, tx: Transaction, amount_sat: Sat) -> None:
        txid, account = secrets.token_hex(32), ledger.seller(self.seller_id)
        subject, amount = f"{txid}:{account}", msat_from_sat(amount_sat)
        borne = Booking(subject, Leg.EXPLAINED, account, ledger.unexplained(), Msat(amount), Code.EXPLAINED)
        await self._book(tx, txid, [borne])

    async def _book(self, tx: Transaction, reference: str, desired: Sequence[Booking]) -> None:
        standing = (await books.booked(tx, [reference]))[reference]
        await books.append_missing(tx, desired, standing, reference=reference, now=self.now)


def _invoice_row(invoice_id: str, seller_id: str, mode: Mode, now: int) -> dict[str, Any]:
    return {
        "id": invoice_id,
        "reference": f"BC-{invoice_id[:8]}",
        "subject": new_id(),
        "seller_id": seller_id,
        "created_at": now,
        "mode": mode,
        "bytes_at": 1,
        "key_at": 1,
        "tolerance_sat": 0,
        "tolerance_ppm": 0,
        "frozen": "",
        "claim_hash": secrets.token_bytes(32),
        "cancelled": False,
        "status": "settled",
        "standing": "",
    }


async def put_channel(
    tx: Transaction, channel: Channel, *, unbooked_msat: int = 0, state: ChannelState = ChannelState.OPEN
) -> None:
    """The rows of a channel of the history, with some that the ledger has not got yet."""
    txid, _, vout = channel.id.partition(":")
    script = bytes.fromhex(txid)
    await tx.execute(
        insert(channel_contracts).values(
            script_pubkey=script,
            seq=int(script[0]) << 8 | script[1],
            nonce=script[:16],
            payer_key=script,
            payee_key=script,
            expiry_height=9,
            change_script_pubkey=b"",
            close_fee_sat=1,
            announced_at=START,
        )
    )
    await tx.execute(
        insert(channels).values(
            id=channel.id,
            txid=txid,
            vout=int(vout),
            script_pubkey=script,
            capacity_sat=20_000,
            seen_at=START,
            state=state,
            accepted_sat=0,
            spent_msat=channel.sold.spent_msat + unbooked_msat,
        )
    )
    await tx.execute(
        insert(channel_sales).values(
            channel_id=channel.id,
            subject=channel.sold.subject,
            seller_id=channel.sold.seller_id,
            fee_ppm=channel.sold.fee_ppm,
            first_at=START,
            last_at=START,
            units=CHUNKS,
            spent_msat=channel.sold.spent_msat + unbooked_msat,
            booked_msat=channel.sold.spent_msat,
            bookings=1,
        )
    )
