"""Batches of payouts: built, signed by a wallet or elsewhere, checked, given to the watcher to send.

A batch exists before anybody may sign it, and a signed transaction is kept before it is sent: whatever
crashes in between, the next step finds what the last one did, and no payout gets into a second transaction
that does not spend the same coins.
"""

from functools import partial

from payments import batch_store, chain_store, payable, payout_store
from payments.addresses import AddressBook, PayoutDescriptor
from payments.batch_store import Batch, Version
from payments.bitcoind import Bitcoind
from payments.bitcoind_coins import DescriptorRange
from payments.bitcoind_psbt import PsbtNode
from payments.bitcoind_wallet import PayoutWallet
from payments.chain_facts import PayingTransaction
from payments.descriptors import DescriptorStore
from payments.errors import PayoutConflict, PayoutRefused, PsbtAltered, PsbtInvalid, TransactionMalformed
from payments.money import Sat
from payments.payout import BatchState, Payout, PayoutPolicy, State, fee_of
from payments.payout_candidates import origins_of
from payments.payout_layout import change_of, matching_version, payees_of, shares_at
from payments.payout_planning import (
    BatchPlan,
    BatchPlanner,
    check_feerate,
    share_troubles,
)
from payments.payout_transaction import differences, txid_of, unsigned_transaction
from payments.ports import Clock, Store, Transaction
from payments.psbt import transaction_in
from payments.signature_scope import open_inputs
from payments.transaction import parse_transaction

ATTEMPTS_MAX = 5
INCREMENTAL_SAT_VB = 1
"""A replacement pays for its own relay (BIP125, rule 4; Bitcoin Core's -incrementalrelayfee)."""
LONG_SIGNATURES_PERCENT = 1
"""By so much a transaction may be larger than was estimated, when others than Bitcoin Core sign it."""


class PayoutBatches:
    """Holds no state. `wallet` is the operator's, to which change goes."""

    def __init__(
        self,
        *,
        node: Bitcoind,
        store: Store,
        descriptors: DescriptorStore,
        addresses: AddressBook,
        policy: PayoutPolicy,
        clock: Clock,
    ) -> None:
        self._node = node
        self._psbts = PsbtNode(node)
        self._store = store
        self._descriptors = descriptors
        self._policy = policy
        self._clock = clock
        self._planner = BatchPlanner(
            psbts=self._psbts,
            store=store,
            descriptors=descriptors,
            addresses=addresses,
            policy=policy,
            clock=clock,
        )

    async def build(self, *, feerate_sat_kvb: int, wallet: PayoutDescriptor) -> str | None:
        """A batch of all payouts that are ready and can be paid at this feerate: its id, or None.

        Those left out keep the reason. Raises PayoutsStopped, PayoutRefused (feerate), NodeUnavailable.
        """
        for _ in range(ATTEMPTS_MAX):
            plan = await self.plan(feerate_sat_kvb=feerate_sat_kvb, wallet=wallet)
            if plan is None:
                return None
            batch_id = await self.keep(plan)
            if batch_id is not None:
                return batch_id
        raise PayoutConflict("payouts or coins changed again and again while the batch was built: try again")

    async def plan(self, *, feerate_sat_kvb: int, wallet: PayoutDescriptor) -> BatchPlan | None:
        """As `build`, but only what the batch would be: `keep` makes it one."""
        return await self._planner.plan(feerate_sat_kvb=feerate_sat_kvb, wallet=wallet)

    async def keep(self, plan: BatchPlan) -> str | None:
        """Make exactly this batch: its id; None if its payouts, coins or change address are taken since.

        Raises PayoutsStopped.
        """
        return await self._planner.keep(plan)

    async def bump(self, batch_id: str, *, feerate_sat_kvb: int) -> int:
        """One more version of an unmined batch, at a higher feerate; its number.

        Raises PayoutNotFound, PayoutConflict, PayoutRefused, NodeUnavailable.
        """
        check_feerate(self._policy, feerate_sat_kvb)

        async def read(tx: Transaction) -> tuple[Batch, list[Payout], list[DescriptorRange]]:
            batch = await batch_store.load_batch(tx, batch_id)
            _check_unmined(batch)
            members = await payout_store.payouts_of_batch(tx, batch_id)
            script = batch.change_script_pubkey
            return batch, members, await origins_of(tx, self._descriptors, batch.inputs, script)

        batch, members, origins = await self._store.read(read)
        vsize = await self._psbts.vsize_vbytes(batch.newest.psbt)
        fee_sat = Sat(fee_of(vsize, feerate_sat_kvb) + batch.left_sat)
        longer_percent = LONG_SIGNATURES_PERCENT if batch.exported_at is not None else 0
        vsize_max = -(-vsize * (100 + longer_percent) // 100)
        least = max(one.fee_sat for one in batch.versions) + vsize_max * INCREMENTAL_SAT_VB
        if fee_sat < least:
            raise PayoutRefused(
                f"a replacement of this batch pays {least:,} sat or more in fees: give a feerate of "
                f"{-(-(least - batch.left_sat) // vsize)} sat/vB or more"
            )
        shares = shares_at(members, Sat(fee_sat - batch.left_sat), vsize, change_of(batch))
        troubles = share_troubles(self._policy, members, shares)
        if troubles:
            (payout_id, trouble), *_ = sorted(troubles.items())
            raise PayoutRefused(f"payout {payout_id}: {trouble}. Choose a lower feerate")
        unsigned = unsigned_transaction(batch.inputs, payees_of(members, shares, change_of(batch)))
        psbt = await self._psbts.psbt_of(unsigned, origins)

        async def write(tx: Transaction) -> int:
            now_there = await batch_store.load_batch(tx, batch_id)
            _check_unmined(now_there)
            if now_there.newest.n != batch.newest.n:
                raise PayoutConflict(f"batch {batch_id} was bumped by somebody else just now: look again")
            n = batch.newest.n + 1
            await batch_store.insert_version(
                tx,
                batch_id=batch_id,
                n=n,
                feerate_sat_kvb=feerate_sat_kvb,
                fee_sat=fee_sat,
                unsigned=unsigned,
                psbt=psbt,
                shares=shares,
                now=self._clock(),
            )
            await batch_store.change_batch(tx, batch_id, trouble=None)
            return n

        return await self._store.write(write)

    async def export(self, batch_id: str) -> str:
        """The newest version's PSBT, base64. From now on the batch cannot be abandoned: it may be signed.

        Raises PayoutNotFound, PayoutConflict, PayoutsStopped.
        """

        async def write(tx: Transaction) -> str:
            batch = await batch_store.load_batch(tx, batch_id)
            _check_whole(batch)
            if batch.exported_at is None:
                await payable.check_running(tx)
                await batch_store.change_batch(tx, batch_id, exported_at=self._clock())
            return batch.newest.psbt

        return await self._store.write(write)

    async def sign(self, batch_id: str, signer: PayoutWallet) -> None:
        """Have the newest version signed by the node's wallet, and keep it. Signed already is fine.

        Raises PayoutNotFound, PayoutConflict, PayoutsStopped (a database put back from a backup does not know
        whether its payouts went with another batch), PsbtAltered, PsbtInvalid, NodeUnavailable, and what
        `signer` raises.
        """

        async def read(tx: Transaction) -> Batch:
            await payable.check_running(tx)
            return await batch_store.load_batch(tx, batch_id)

        batch = await self._store.read(read)
        if batch.newest.raw is not None or batch.state is BatchState.DONE:
            return
        _check_unmined(batch)
        raw = await self._psbts.finalize(await signer.sign(batch.newest.psbt))
        if found := differences(batch.newest.unsigned, raw):
            raise PsbtAltered(found)
        _check_closed(raw)
        await self._store.write(partial(self._keep_signed, batch_id=batch_id, n=batch.newest.n, raw=raw))

    async def import_signed(self, batch_id: str, text: str) -> Version:
        """Take a signed PSBT (base64) or transaction (hex) of this batch, if it pays exactly what was asked.

        Raises PayoutNotFound, PayoutConflict, PsbtInvalid, PsbtIncomplete, PsbtAltered, NodeUnavailable.
        """
        batch = await self._store.read(partial(batch_store.load_batch, batch_id=batch_id))
        _check_unmined(batch)
        raw = _raw_transaction(text)
        # Before the node is asked whether all signatures are there: an altered one shall be called altered.
        version = _version_in(batch, transaction_in(text) if raw is None else raw)
        if raw is None:
            raw = await self._psbts.finalize(text)
            version = _version_in(batch, raw)
        _check_closed(raw)
        # It is kept once, so it has to be right. What the mempool thinks of it is for `offer` to tell.
        if (wrong := await self._psbts.signatures_wrong(raw)) is not None:
            raise PsbtInvalid(
                f"the signatures do not hold ({wrong}): sign the PSBT again. If another transaction spent "
                "one of its coins, the batch dies once that is deep"
            )
        await self._store.write(partial(self._keep_signed, batch_id=batch_id, n=version.n, raw=raw))
        return version

    async def offer(self, batch_id: str) -> str | None:
        """Give the newest signed version to our node, if it is nowhere yet; why the node refuses it, or None.

        The watcher offers what has vanished; but a replacement has to push out its predecessor first.
        Raises PayoutNotFound, NodeUnavailable.
        """
        batch = await self._store.read(partial(batch_store.load_batch, batch_id=batch_id))
        signed = [one for one in batch.versions if one.raw is not None]
        if batch.state is not BatchState.BUILT or batch.mined is not None or not signed or not batch.whole:
            return None
        raw = signed[-1].raw
        assert raw is not None
        answer = await self._node.send_raw_transaction(raw)
        if answer.is_there:
            return None
        return answer.message

    async def abandon(self, batch_id: str) -> None:
        """Give a batch up that nobody can have signed; its payouts are ready for another one.

        Raises PayoutNotFound, PayoutConflict.
        """

        async def write(tx: Transaction) -> None:
            batch = await batch_store.load_batch(tx, batch_id)
            if batch.state is BatchState.DEAD:
                return
            if batch.may_be_sent:
                raise PayoutConflict(
                    f"batch {batch_id} was exported or signed: somebody may send it at any time. Bump it; or "
                    f"spend one of its coins otherwise, and it dies {self._policy.depth} blocks later"
                )
            await kill(tx, batch_id)

        await self._store.write(write)

    async def _keep_signed(self, tx: Transaction, *, batch_id: str, n: int, raw: bytes) -> None:
        batch = await batch_store.load_batch(tx, batch_id)
        _check_unmined(batch)
        version = next(one for one in batch.versions if one.n == n)
        if version.raw is not None:
            return
        await batch_store.keep_signed(tx, batch_id, n, raw=raw, txid=txid_of(raw), now=self._clock())
        await batch_store.change_batch(tx, batch_id, trouble=None)
        parsed = parse_transaction(raw)
        await chain_store.follow_own(
            tx, PayingTransaction(parsed.txid, raw, parsed.inputs, outputs=(), coinbase=False)
        )


def _raw_transaction(text: str) -> bytes | None:
    """The bytes of a transaction in hex; None for what is none, such as a PSBT."""
    try:
        return bytes.fromhex("".join(text.split()))
    except ValueError:
        return None


def _version_in(batch: Batch, raw: bytes) -> Version:
    """Raises PsbtAltered, PsbtInvalid."""
    try:
        version = matching_version(batch, raw)
        if version is None:
            raise PsbtAltered(differences(batch.newest.unsigned, raw))
    except TransactionMalformed as exc:
        raise PsbtInvalid(f"{exc}: give the signed PSBT in base64, or the signed transaction in hex") from exc
    return version


def _check_closed(raw: bytes) -> None:
    """Raises PsbtInvalid where a signature would hold for other inputs or outputs as well."""
    if found := open_inputs(raw):
        raise PsbtInvalid(
            f"the signature of input {found[0]} (counted from 0) leaves open what the transaction spends or "
            "pays: anybody who sees it could change that. Sign the PSBT with the signature type ALL"
        )


async def kill(tx: Transaction, batch_id: str) -> None:
    """No transaction of this batch can be mined any more: its payouts are ready for another one.

    None of its transactions is offered again. Should one be mined all the same, `payout_follow` takes back
    those of its payouts that were not paid or called off otherwise, and books the others as unexplained.
    """
    members = await payout_store.payouts_of_batch(tx, batch_id)
    await batch_store.change_batch(tx, batch_id, state=BatchState.DEAD, trouble=None)
    ids = [payout.id for payout in members]
    await payout_store.change_payouts(tx, ids, state=State.APPROVED, batch_id=None, trouble=None)


def _check_whole(batch: Batch) -> None:
    if not batch.whole:
        raise PayoutConflict(f"batch {batch.id} is dead: its payouts go with another one")


def _check_unmined(batch: Batch) -> None:
    _check_whole(batch)
    if batch.state is BatchState.DONE or batch.mined is not None:
        raise PayoutConflict(f"batch {batch.id} is in a block already")
