"""Which batch could be made now: its payouts, its coins, its transaction; and making it.

Nothing is reserved for a plan. When it is made a batch, all that it was made of is looked at again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from payments import batch_store, payable, payout_store
from payments.addresses import AddressBook, PayoutDescriptor
from payments.bitcoind_psbt import PsbtNode
from payments.descriptors import DescriptorStore
from payments.errors import PayoutRefused
from payments.ids import new_id
from payments.money import Sat
from payments.own_addresses import fresh_address
from payments.payout import Choice, Payout, PayoutPolicy, Share, State, fee_of, over_share
from payments.payout_candidates import Candidates, candidates, origins_of, take_affordable
from payments.payout_layout import payees_of, shares_at
from payments.payout_transaction import Payee, dust_sat, unsigned_transaction
from payments.ports import Clock, Store, Transaction
from payments.records import IssuedAddress
from payments.unassigned import Purpose, unused_change_address

VSIZE_MAX_VBYTES = 99_000
"""Nodes relay 100,000 (Bitcoin Core's MAX_STANDARD_TX_WEIGHT); signatures may be longer than estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A batch that could be kept now. Nothing is reserved for it."""

    payouts: tuple[Payout, ...]
    choice: Choice
    change: IssuedAddress
    feerate_sat_kvb: int
    unsigned: bytes
    psbt: str
    fee_sat: Sat
    """All that goes to the network."""
    shares: tuple[Share, ...]
    """In the order of the outputs."""


class BatchPlanner:
    """Holds no state. `wallet` is the operator's, to which change goes."""

    def __init__(
        self,
        *,
        psbts: PsbtNode,
        store: Store,
        descriptors: DescriptorStore,
        addresses: AddressBook,
        policy: PayoutPolicy,
        clock: Clock,
    ) -> None:
        self._psbts = psbts
        self._store = store
        self._descriptors = descriptors
        self._addresses = addresses
        self._policy = policy
        self._clock = clock

    async def plan(self, *, feerate_sat_kvb: int, wallet: PayoutDescriptor) -> BatchPlan | None:
        """As `build`, but only what the batch would be: `keep` makes it one."""
        check_feerate(self._policy, feerate_sat_kvb)
        found = await self._store.read(self._candidates)
        plan, troubles = None, dict[str, str]()
        if found.payouts:
            plan, troubles = await self._plan(found, await self._change_address(wallet), feerate_sat_kvb)
        await self._store.write(partial(_keep_troubles, troubles={**found.troubles, **troubles}))
        return plan

    async def keep(self, plan: BatchPlan) -> str | None:
        """Make exactly this batch: its id; None if its payouts, coins or change address are taken since.

        Raises PayoutsStopped.
        """
        return await self._store.write(partial(self._write, plan=plan))

    async def _candidates(self, tx: Transaction) -> Candidates:
        await payable.check_running(tx)
        return await candidates(tx, depth=self._policy.depth, now=self._clock())

    async def _plan(
        self, found: Candidates, address: IssuedAddress, feerate_sat_kvb: int
    ) -> tuple[BatchPlan | None, dict[str, str]]:
        """What to write; and why payouts are left out."""
        change_script = address.script_pubkey
        ready, troubles = list(found.payouts), dict[str, str]()
        while True:
            affordable = take_affordable(ready, found.coins, dust_sat=dust_sat(change_script))
            troubles |= affordable.troubles
            if affordable.choice is None:
                return None, troubles
            # What may take the places of those that turn out too dear: else a thousand that wait for a lower
            # feerate would keep all others waiting.
            ready = [payout for payout in ready if payout.id not in affordable.troubles]
            taken, choice = list(affordable.payouts), affordable.choice
            inputs = [coin.outpoint for coin in choice.coins]
            change = Payee(choice.change_sat, change_script) if choice.change_sat else None
            origins = await self._store.read(
                partial(
                    origins_of,
                    store=self._descriptors,
                    outpoints=inputs,
                    change_script=change_script if change else None,
                )
            )
            # The fee is not known before the size is: shares of nothing give a transaction of the same size.
            sized = unsigned_transaction(
                inputs, payees_of(taken, shares_at(taken, Sat(0), 1, change), change)
            )
            vsize = await self._psbts.vsize_vbytes(await self._psbts.psbt_of(sized, origins))
            if vsize > VSIZE_MAX_VBYTES:
                # With half as many, of half the coins or so.
                too_many = taken[len(taken) // 2 :]
                troubles |= {payout.id: "one transaction cannot pay so many: it waits" for payout in too_many}
                ready = taken[: len(taken) // 2]
                continue
            fee_sat = fee_of(vsize, feerate_sat_kvb)
            shares = shares_at(taken, fee_sat, vsize, change)
            too_dear = share_troubles(self._policy, taken, shares)
            if too_dear:
                troubles |= too_dear
                ready = [payout for payout in ready if payout.id not in too_dear]
                continue
            unsigned = unsigned_transaction(inputs, payees_of(taken, shares, change))
            psbt = await self._psbts.psbt_of(unsigned, origins)
            total_sat = Sat(fee_sat + choice.left_sat)
            plan = BatchPlan(
                payouts=tuple(taken),
                choice=choice,
                change=address,
                feerate_sat_kvb=feerate_sat_kvb,
                unsigned=unsigned,
                psbt=psbt,
                fee_sat=total_sat,
                shares=tuple(shares),
            )
            return plan, troubles

    async def _write(self, tx: Transaction, *, plan: BatchPlan) -> str | None:
        found = await self._candidates(tx)
        still_ready = {payout.id for payout in found.payouts}
        still_free = {coin.outpoint for coin in found.coins}
        if not still_ready.issuperset(payout.id for payout in plan.payouts):
            return None
        if not still_free.issuperset(coin.outpoint for coin in plan.choice.coins):
            return None
        # Two who plan at the same time are given the same unused address.
        if await batch_store.has_change(tx, plan.change.script_pubkey):
            return None
        batch_id, now = new_id(), self._clock()
        await batch_store.insert_batch(
            tx,
            batch_id=batch_id,
            coins=plan.choice.coins,
            change_sat=plan.choice.change_sat,
            change_script_pubkey=plan.change.script_pubkey if plan.choice.change_sat else None,
            now=now,
        )
        await batch_store.insert_version(
            tx,
            batch_id=batch_id,
            n=1,
            feerate_sat_kvb=plan.feerate_sat_kvb,
            fee_sat=plan.fee_sat,
            unsigned=plan.unsigned,
            psbt=plan.psbt,
            shares=plan.shares,
            now=now,
        )
        ids = [payout.id for payout in plan.payouts]
        await payout_store.change_payouts(tx, ids, state=State.BATCHED, batch_id=batch_id, trouble=None)
        return batch_id

    async def _change_address(self, wallet: PayoutDescriptor) -> IssuedAddress:
        """One that no batch has used, kept and watched for ever from now on."""
        return await fresh_address(
            self._store,
            self._descriptors,
            self._addresses,
            wallet,
            Purpose.CHANGE,
            unused=unused_change_address,
        )


def share_troubles(
    policy: PayoutPolicy, members: Sequence[Payout], shares: Sequence[Share]
) -> dict[str, str]:
    """Payout id -> why it is not worth its share of the fee."""
    dust = {payout.id: dust_sat(payout.script_pubkey) for payout in members}
    return over_share(shares, percent_max=policy.fee_share_percent_max, dust_sat=dust)


def check_feerate(policy: PayoutPolicy, feerate_sat_kvb: int) -> None:
    """Raises PayoutRefused."""
    most = policy.feerate_max_sat_kvb
    if not 1_000 <= feerate_sat_kvb <= most:
        raise PayoutRefused(
            f"a feerate is 1 to {most // 1_000} sat/vB: [hosted] `feerate_max_sat_vb` is the highest"
        )


async def _keep_troubles(tx: Transaction, *, troubles: dict[str, str]) -> None:
    """Why payouts wait, as of now; those that do not wait any more have no trouble."""
    for payout in await payout_store.payouts_in(tx, State.APPROVED):
        if payout.trouble != troubles.get(payout.id):
            await payout_store.change_payouts(tx, [payout.id], trouble=troubles.get(payout.id))
