"""A channel as the API shows it: the row, where the chain has its deposit, and what may be done next."""

from dataclasses import dataclass

from bitcache.api.wire_channels import ChannelCloseView, ChannelView, CloseQuoteView, ExposureView
from payments import chain_facts, channel_close_store, channel_store
from payments.channel import ChannelState, must_close, suspended
from payments.channel_close import close_vbytes_max
from payments.channel_exposure import Exposure
from payments.channel_record import ChannelRecord
from payments.money import NOTHING_SAT, Sat, sat_rounded_up
from payments.outputs import block_depth
from payments.payout import fee_of
from payments.ports import Transaction

SET_ASIDE_TIMES_MAX = 2
"""A buyer may have a channel closed while the network takes up to so many times what was set aside for it."""


@dataclass(frozen=True, slots=True)
class Spend:
    """What spends a deposit, or is on its way to."""

    txid: str
    height: int | None


async def channel_views(
    tx: Transaction, records: list[ChannelRecord], *, exposure: Exposure, feerate_sat_kvb: int | None
) -> list[ChannelView]:
    """`feerate_sat_kvb`: what a close would pay now; None: nobody can say."""
    tip_height = await chain_facts.tip_height(tx)
    spends = {
        channel_id: Spend(txid, height)
        for channel_id, (txid, height) in (
            await channel_store.spends_of(tx, [record.id for record in records])
        ).items()
    }
    for record in records:
        if record.state is ChannelState.CLOSING and record.id not in spends:
            closes = await channel_close_store.of_channel(tx, record.id)
            if closes:
                spends[record.id] = Spend(closes[-1].newest.txid, None)
    return [
        channel_view(
            record,
            spend=spends.get(record.id),
            exposure=exposure,
            tip_height=tip_height,
            feerate_sat_kvb=feerate_sat_kvb,
        )
        for record in records
    ]


def channel_view(
    record: ChannelRecord,
    *,
    spend: Spend | None,
    exposure: Exposure,
    tip_height: int,
    feerate_sat_kvb: int | None,
) -> ChannelView:
    """Pure."""
    channel, contract = record.channel, record.channel.contract
    confirmations = record.confirmations(tip_height)
    limit_sat = exposure.limit_sat(confirmations)
    pays = record.state in (ChannelState.FUNDED, ChannelState.OPEN)
    out = pays and suspended(record.funding, accepted_sat=record.balance.accepted_sat, limit_sat=limit_sat)
    payable_sat = NOTHING_SAT
    if pays and not out and not must_close(contract.expiry_height, tip_height):
        payable_sat = Sat(max(0, min(limit_sat, channel.paid_sat_max)))
    return ChannelView(
        channel_id=record.id,
        state=record.state.value,
        suspended=out,
        confirmations=confirmations,
        capacity_sat=channel.capacity_sat,
        accepted_sat=record.balance.accepted_sat,
        spent_msat=record.balance.spent_msat,
        payable_sat_max=payable_sat,
        expiry_height=contract.expiry_height,
        close_fee_sat=contract.close_fee_sat,
        close=_close_view(record, spend, tip_height),
        close_quote=_close_quote(record, feerate_sat_kvb),
        tip_height=tip_height,
    )


def close_fee_sat(record: ChannelRecord, feerate_sat_kvb: int) -> Sat | None:
    """What a cooperative close takes now: what the network takes, at most what was set aside. Pure.

    None: the network takes so much more than that that the payee waits, rather than pay it for a buyer whom
    it costs nothing to ask.
    """
    fee_sat = fee_of(close_vbytes_max(record.channel), feerate_sat_kvb)
    set_aside_sat = record.channel.contract.close_fee_sat
    return None if fee_sat > SET_ASIDE_TIMES_MAX * set_aside_sat else min(fee_sat, set_aside_sat)


def _close_view(record: ChannelRecord, spend: Spend | None, tip_height: int) -> ChannelCloseView | None:
    if record.close_reason is None:
        return None
    return ChannelCloseView(
        txid=None if spend is None else spend.txid,
        reason=record.close_reason.value,
        confirmations=0 if spend is None else block_depth(spend.height, tip_height),
    )


def _close_quote(record: ChannelRecord, feerate_sat_kvb: int | None) -> CloseQuoteView | None:
    closable = record.state in (ChannelState.OPEN, ChannelState.CLOSING) and record.agreed is None
    fee_sat = None if feerate_sat_kvb is None else close_fee_sat(record, feerate_sat_kvb)
    if fee_sat is None or not closable:
        return None
    return CloseQuoteView(fee_sat=fee_sat, paid_sat_min=sat_rounded_up(record.balance.spent_msat))


def exposure_view(exposure: Exposure) -> ExposureView:
    return ExposureView(
        unconfirmed_sat=exposure.unconfirmed_sat,
        unconfirmed_total_sat=exposure.unconfirmed_total_sat,
        one_confirmation_sat=exposure.one_sat,
        three_confirmations_sat=exposure.three_sat,
    )
