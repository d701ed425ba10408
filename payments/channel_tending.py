"""What happens to a close that is kept and in no block: sent, sent again, replaced, paid for by a child."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from coincurve import PrivateKey

from payments.addresses import AddressBook, PayoutDescriptor
from payments.bitcoind import Bitcoind, Broadcast, BroadcastOutcome
from payments.bitcoind_coins import mempool_spenders
from payments.bitcoind_wallet import PayoutWallet
from payments.channel_bump import CloseBumper
from payments.channel_child import CloseChild
from payments.channel_close import Claim
from payments.channel_close_plan import ClosePolicy, Pace, claim_of, pace
from payments.channel_close_store import Close, Look
from payments.channel_errors import BumpRefused, ChannelError, CloseNotFound
from payments.channel_record import ChannelRecord
from payments.descriptors import DescriptorStore
from payments.errors import SIGNING_TROUBLE
from payments.outputs import Presence
from payments.ports import Clock, Store

Troubles = dict[str, str | None]
"""Channel id -> why it is not closed yet; None: nothing is wrong."""
Payee = Callable[[bytes], PrivateKey]
"""The payee's key of the terms with this nonce."""


class CloseTender:
    """`wallet`: the operator's; `signer` signs for it, where the node has it."""

    def __init__(
        self,
        *,
        node: Bitcoind,
        store: Store,
        payee: Payee,
        wallet: Callable[[], Awaitable[PayoutDescriptor]],
        descriptors: DescriptorStore,
        addresses: AddressBook,
        signer: PayoutWallet | None,
        policy: ClosePolicy,
        clock: Clock,
    ) -> None:
        self._node = node
        self._payee = payee
        self._wallet = wallet
        self._policy = policy
        self._bumper = CloseBumper(node=node, store=store, policy=policy, clock=clock)
        self._child = CloseChild(
            node=node, store=store, descriptors=descriptors, addresses=addresses, signer=signer
        )
        self._child_refused: dict[str, tuple[int, str]] = {}
        """Close id -> the tip when a child could not be made last, and why: once a block is often enough."""

    async def tend(self, close: Close, look: Look) -> Troubles:
        """Take the next step. Raises what the node raises."""
        records = [look.records[one] for one in close.channel_ids if one in look.records]
        if len(records) < len(close.channel_ids) or any(r.funding is not Presence.BLOCK for r in records):
            # A reorg took a deposit: it comes back, or what takes its place ends this close.
            return {}
        pace_now = pace_of(self._policy, records, look.tip_height)
        newest, trouble = close.newest, None
        if newest.presence is Presence.MEMPOOL:
            if newest.child_raw is not None and newest.child_presence is not Presence.MEMPOOL:
                await self._node.send_raw_transaction(newest.child_raw)
            if look.tip_height - newest.sent_height >= pace_now.bump_after_blocks:
                trouble = await self._bump(close, records, pace_now, look.tip_height)
        else:
            answer = await self._node.send_raw_transaction(newest.raw)
            if not answer.is_there:
                trouble = await self._answer_refusal(close, records, pace_now, look, answer)
        return {record.id: trouble for record in records}

    async def bump(self, close_id: str, look: Look, *, feerate_sat_kvb: int) -> str:
        """A version with this feerate at least, sent; its txid. Raises as `ChannelCloser.bump`."""
        close = next((one for one in look.closes if one.id == close_id), None)
        if close is None or not look.records.keys() >= set(close.channel_ids):
            raise CloseNotFound(close_id)
        records = [look.records[channel_id] for channel_id in close.channel_ids]
        pace_now = pace_of(self._policy, records, look.tip_height)
        planned = await self._bumper.bump(
            close,
            self._claims_of(records, last=pace_now.last),
            pace_now,
            tip_height=look.tip_height,
            least_sat_kvb=feerate_sat_kvb,
        )
        answer = await self._node.send_raw_transaction(planned.close.raw)
        if not answer.is_there:
            raise BumpRefused(f"our node does not take the new version: {answer.message}")
        return planned.close.txid

    async def _answer_refusal(
        self, close: Close, records: Sequence[ChannelRecord], pace_now: Pace, look: Look, answer: Broadcast
    ) -> str | None:
        """Our node does not take the newest version: bid more, if that helps. What is wrong, in words."""
        if answer.outcome is BroadcastOutcome.INPUTS_MISSING:
            return f"our node does not know its deposit as unspent: {answer.message}"
        deposits = [record.channel.outpoint for record in records]
        spenders = set((await mempool_spenders(self._node.rpc, deposits)).values())
        of_others = {
            version.txid for other in look.closes if other is not close for version in other.versions
        }
        if spenders & of_others:
            # After a reorg two closes may have the same deposit: against ourselves we do not bid.
            return None
        ours = {version.txid for version in close.versions}
        if spenders and spenders <= ours and look.tip_height == close.newest.sent_height:
            # A replacement that was refused: once a block, not with every turn.
            return await self._pay_by_child(close, pace_now, look.tip_height, answer.message)
        return await self._bump(close, records, pace_now, look.tip_height)

    async def _bump(
        self, close: Close, records: Sequence[ChannelRecord], pace_now: Pace, tip_height: int
    ) -> str | None:
        try:
            claims = self._claims_of(records, last=pace_now.last)
            planned = await self._bumper.bump(close, claims, pace_now, tip_height=tip_height)
        except ChannelError as exc:
            return str(exc)
        answer = await self._node.send_raw_transaction(planned.close.raw)
        if answer.is_there:
            return None
        return await self._pay_by_child(close, pace_now, tip_height, answer.message)

    async def _pay_by_child(self, close: Close, pace_now: Pace, tip_height: int, refusal: str) -> str | None:
        """The version that our node has is paid for by a child. What is wrong, in words."""
        tried_at, trouble = self._child_refused.get(close.id, (-1, None))
        if tried_at != tip_height:
            trouble = await self._make_child(close, pace_now, refusal)
            self._child_refused.pop(close.id, None)
            if trouble is not None:
                self._child_refused[close.id] = tip_height, trouble
        return trouble

    async def _make_child(self, close: Close, pace_now: Pace, refusal: str) -> str | None:
        for parent in reversed(close.versions):
            entry = await self._node.mempool_entry(parent.txid)
            if entry is not None:
                break
        else:
            return f"our node does not take it: {refusal}"
        if parent.child_presence is Presence.MEMPOOL:
            return None
        estimate = await self._node.estimate_feerate(pace_now.target_blocks)
        try:
            child = await self._child.pay(
                close,
                parent,
                parent_vbytes=entry.vsize_vbytes,
                feerate_sat_kvb=max(close.newest.feerate_sat_kvb, estimate or 0),
                wallet=await self._wallet(),
            )
        except (BumpRefused, *SIGNING_TROUBLE) as exc:
            return f"{exc} (our node: {refusal})"
        answer = await self._node.send_raw_transaction(child)
        return None if answer.is_there else f"our node does not take what pays for it: {answer.message}"

    def _claims_of(self, records: Sequence[ChannelRecord], *, last: bool) -> list[Claim]:
        """Of channels that were closed before, so each has something that was signed."""
        claims = [claim_of(record, self._payee(record.nonce), last=last) for record in records]
        return [claim for claim in claims if claim is not None]


def pace_of(policy: ClosePolicy, records: Iterable[ChannelRecord], tip_height: int) -> Pace:
    """Of these channels closed together: the first to expire sets it."""
    expiry_height = min(record.channel.contract.expiry_height for record in records)
    return pace(policy, expiry_height - tip_height)
