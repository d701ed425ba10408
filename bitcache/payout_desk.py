"""What the operator does about payouts, beside the running server or without it.

Each step is one transaction that looks again at what it decides by: of two administrators who do the same at
the same moment one has an effect, and the other is told.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bitcache import events
from bitcache.errors import NotFound
from bitcache.payout_feerate import feerate_now
from bitcache.payout_wallet import TOPIC, PayoutTold
from bitcache.services import Services
from payments import batch_store, chain_facts, ledger, payable, payout_requests, payout_store, restores
from payments.batch_store import Version
from payments.bitcoind_wallet import PayoutWallet
from payments.errors import (
    NodeMisconfigured,
    NodeRefused,
    NodeUnavailable,
    PayoutConflict,
    PayoutRefused,
    PayoutsStopped,
)
from payments.money import Sat
from payments.own_addresses import fresh_address
from payments.payout import Kind, Payout, State
from payments.payout_planning import BatchPlan
from payments.ports import Transaction
from payments.records import IssuedAddress
from payments.unassigned import Purpose

OPERATOR = "operator"
CHAIN_SEEN_S = 5.0
"""A running server has scanned a block so soon after the node has it."""
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Decided:
    """`changed`: by this decision; else it was so already."""

    payout: Payout
    changed: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """A signed version; `refusal`: why our node does not take it now, None if it does."""

    version: Version
    refusal: str | None


async def approve(services: Services, payout_ids: Sequence[str]) -> list[Decided]:
    """All of them or none. Raises NotFound, PayoutConflict, PayoutRefused, and what refunds raise."""

    async def approved(tx: Transaction) -> list[Decided]:
        return [await _decide(services, tx, payout_id, reason=None) for payout_id in payout_ids]

    return await services.database.write(approved)


async def decline(services: Services, payout_id: str, *, reason: str) -> Decided:
    """Give the amount back to whom it is taken from; they read `reason`. Raises as `approve`."""
    return await services.database.write(lambda tx: _decide(services, tx, payout_id, reason=reason))


async def withdraw(services: Services, payout_id: str, address: str, amount_sat: Sat | None) -> Payout:
    """Pay the operator's own money out with the next batch; None: all that is payable.

    The same id again is the same payout. Raises PayoutRefused, PayoutConflict, NodeUnavailable.
    """
    script_pubkey = await services.node.validate_address(address)
    if script_pubkey is None:
        raise PayoutRefused(
            f"this is no address of {services.config.network}: copy it again from the wallet that shall get "
            "the money"
        )
    depth, now = services.config.hosted.depth, services.clock()

    async def requested(tx: Transaction) -> Payout:
        known = await payout_store.find_payout(tx, payout_id)
        if known is not None and amount_sat is None:
            return known
        all_sat = await payable.payable_sat(tx, ledger.operator(), depth=depth)
        if amount_sat is None and all_sat <= 0:
            raise PayoutRefused(f"nothing of yours is {depth} confirmations deep and not set aside already")
        payout = Payout(
            id=payout_id,
            kind=Kind.OPERATOR,
            seller_id=None,
            invoice_id=None,
            account=ledger.operator(),
            amount_sat=all_sat if amount_sat is None else amount_sat,
            address=address,
            script_pubkey=script_pubkey,
            state=State.APPROVED,
            requested_at=now,
            ready_at=now,
            decided_at=now,
            decided_by=OPERATOR,
        )
        return await payout_requests.request(tx, payout, depth=depth, now=now)

    return await services.database.write(requested)


async def deposit_address(services: Services) -> IssuedAddress:
    """A new address of the hosted wallet for money of the operator's; the watcher sees what comes there.

    Raises HostedSalesOff, AddressesInDoubt, NodeUnavailable.
    """
    wallet = await services.hosted.open()
    return await fresh_address(
        services.database, services.descriptors, services.addresses, wallet, Purpose.DEPOSIT
    )


async def plan(services: Services, feerate_sat_kvb: int | None) -> BatchPlan | None:
    """The batch that `keep` would make now, to be asked about; None: no payout can be in one.

    Raises PayoutsStopped, PayoutRefused, FeerateUnknown, HostedSalesOff, NodeUnavailable.
    """
    await _check_chain_seen(services)
    wallet = await services.hosted.open()
    feerate = feerate_sat_kvb or await feerate_now(services.config.hosted, services.node)
    return await services.batches.plan(feerate_sat_kvb=feerate, wallet=wallet)


async def keep(services: Services, planned: BatchPlan) -> str:
    """Its id. Raises PayoutConflict if somebody else was faster, PayoutsStopped."""
    batch_id = await services.batches.keep(planned)
    if batch_id is None:
        raise PayoutConflict(
            "payouts or coins of this batch went into another one, or were called off, since it was shown: "
            "see `bitcache payouts list`, then build again"
        )
    return batch_id


async def sign(services: Services, batch_id: str) -> Sent:
    """With the node's wallet, and send it. Signed before is only sent.

    Raises PayoutNotFound, PayoutConflict, PayoutsStopped, NodeUnavailable, and what `PayoutWallet.sign` does.
    """
    await services.batches.sign(batch_id, signer_of(services))
    return await _send(services, batch_id)


async def import_signed(services: Services, batch_id: str, text: str) -> Sent:
    """Take what was signed elsewhere, and send it.

    Raises as `PayoutBatches.import_signed`, and PayoutsStopped.
    """
    await services.database.read(payable.check_running)
    version = await services.batches.import_signed(batch_id, text)
    return await _send(services, batch_id, version.n)


async def bump(services: Services, batch_id: str, feerate_sat_kvb: int) -> Sent | None:
    """A version that pays more; signed and sent where the node's wallet signs, else None.

    Raises as `PayoutBatches.bump` and `sign`, and PayoutsStopped.
    """
    await services.database.read(payable.check_running)
    await _check_chain_seen(services)
    await services.batches.bump(batch_id, feerate_sat_kvb=feerate_sat_kvb)
    return None if services.signer is None else await sign(services, batch_id)


async def resume(services: Services) -> bool:
    """Pay out again after a restore; whether payouts were stopped by one."""
    return await services.database.write(partial(restores.resume_payouts, now=services.clock()))


def signer_of(services: Services) -> PayoutWallet:
    """Raises PayoutRefused where batches are signed elsewhere."""
    if services.signer is None:
        raise PayoutRefused(
            "no wallet of the node signs here: name it in [hosted] `wallet`; or sign elsewhere, with "
            "`bitcache payouts export` and `bitcache payouts import`"
        )
    return services.signer


async def _decide(services: Services, tx: Transaction, payout_id: str, *, reason: str | None) -> Decided:
    """Approve it, or decline it for a reason."""
    before = await payout_store.find_payout(tx, payout_id)
    if before is None:
        raise NotFound("payout", payout_id)
    now = services.clock()
    if before.kind is Kind.REFUND:
        await services.refunds.decide(tx, payout_id, approve=reason is None, by=OPERATOR, reason=reason or "")
    elif reason is None:
        await payout_requests.approve(tx, payout_id, by=OPERATOR, now=now)
    else:
        await payout_requests.decline(tx, payout_id, by=OPERATOR, reason=reason, now=now)
    after = await payout_store.load_payout(tx, payout_id)
    if after.state is not before.state and after.kind is Kind.SELLER and after.seller_id is not None:
        told = PayoutTold(payout_id=payout_id, state=after.state.value)
        await events.append(tx, topic=TOPIC, subject=after.seller_id, payload=told, now=now)
    return Decided(after, after.state is not before.state)


async def _send(services: Services, batch_id: str, n: int | None = None) -> Sent:
    """Version `n`, by default the newest, which is signed."""
    try:
        refusal = await services.batches.offer(batch_id)
    except (NodeUnavailable, NodeMisconfigured, NodeRefused) as exc:
        refusal = str(exc)  # it is kept: the server sends it later
    batch = await services.database.read(partial(batch_store.load_batch, batch_id=batch_id))
    return Sent(batch.versions[-1 if n is None else n - 1], refusal)


async def _check_chain_seen(services: Services) -> None:
    """Raises PayoutsStopped while the database does not know the node's newest block.

    What an older view takes for deep may be gone, and what it takes for unspent may be spent.
    """
    best = (await services.node.chain_info()).best_hash
    until = asyncio.get_running_loop().time() + CHAIN_SEEN_S
    while True:
        tip = await services.database.read(chain_facts.tip)
        if tip is not None and tip.hash == best:
            return
        if asyncio.get_running_loop().time() > until:
            break
        await asyncio.sleep(POLL_S)
        best = (await services.node.chain_info()).best_hash
    seen = "no block" if tip is None else f"block {tip.height}"
    raise PayoutsStopped(
        f"nothing is paid out now: the server has seen {seen}, and the node has newer ones. Start the server "
        "(`bitcache serve`), or wait until it has caught up"
    )
