"""How a channel comes about: terms, the contract that is watched, the deposit.

Terms are given to whoever asks and nothing is kept of them. A payer who announces their key before they pay
has a contract, and the watcher records whatever pays it. One who paid first names the outpoint: the contract
is kept before the node is asked, so that whatever the watcher reads from then on it reads for that, too.
"""

import asyncio
import secrets
from functools import partial

from coincurve import PrivateKey

from payments import chain_facts, chain_store, channel_store
from payments.bitcoind import Bitcoind
from payments.chain_facts import PaidOutput, PayingTransaction
from payments.channel import ChannelTerms, check_terms
from payments.channel_close import CLOSE_VBYTES
from payments.channel_close_plan import FEERATE_SAT_KVB_MIN, ClosePolicy
from payments.channel_errors import DepositTooSmall, FundingNotFound
from payments.channel_keys import NONCE_BYTES, payee_key, public_bytes
from payments.channel_script import Contract, parse_channel_id
from payments.errors import NodeUnavailable
from payments.money import Sat
from payments.outputs import OutPoint
from payments.payout import fee_of
from payments.ports import Clock, Store, Transaction
from payments.transaction import parse_transaction
from payments.watcher import Watcher

FEERATE_BLOCKS = 6
FEERATE_UNKNOWN_SAT_KVB = 10_000
"""Where the node has seen too little to estimate."""
FEERATE_HELD_S = 60
DEPOSIT_IN_CLOSE_FEES = 2
"""A deposit is at least so many close fees, or the fee would be the most of it."""
LOOKS = 20
LOOK_AGAIN_S = 0.25
"""So often and so far apart the node is asked while the watcher is a block behind it."""


class ChannelOpening:
    """`policy`: of the closes for which new channels set a fee aside."""

    def __init__(
        self,
        *,
        node: Bitcoind,
        store: Store,
        watcher: Watcher,
        seed: bytes,
        network: str,
        life_blocks: int,
        deposit_min_sat: Sat,
        contracts_max: int,
        policy: ClosePolicy,
        clock: Clock,
    ) -> None:
        self._node = node
        self._store = store
        self._watcher = watcher
        self._seed = seed
        self._network = network
        self._life_blocks = life_blocks
        self._deposit_min_sat = deposit_min_sat
        self._contracts_max = contracts_max
        self._policy = policy
        self._clock = clock
        self._feerate_sat_kvb = 0
        self._feerate_at = 0

    def payee(self, nonce: bytes) -> PrivateKey:
        """The payee's key of the channels whose terms have this nonce."""
        return payee_key(self._seed, nonce)

    async def terms(self) -> ChannelTerms:
        """Fresh ones. Nothing is written. Raises NodeUnavailable."""
        tip = await self._store.read(chain_facts.tip)
        if tip is None:
            raise NodeUnavailable("the chain was not read yet: try again when the server has caught up")
        nonce = secrets.token_bytes(NONCE_BYTES)
        close_fee_sat = fee_of(CLOSE_VBYTES, await self.feerate_sat_kvb())
        return ChannelTerms(
            network=self._network,
            nonce=nonce,
            payee_key=public_bytes(self.payee(nonce)),
            expiry_height=tip.height + self._life_blocks,
            close_fee_sat=close_fee_sat,
            deposit_min_sat=Sat(max(self._deposit_min_sat, DEPOSIT_IN_CLOSE_FEES * close_fee_sat)),
            issued_height=tip.height,
        )

    async def feerate_sat_kvb(self) -> int:
        """What a close pays now, for which new channels set its fee aside. Raises NodeUnavailable."""
        if self._policy.feerate_sat_kvb:
            return self._policy.feerate_sat_kvb
        now = self._clock()
        if abs(now - self._feerate_at) >= FEERATE_HELD_S:
            estimate = await self._node.estimate_feerate(FEERATE_BLOCKS)
            wanted = FEERATE_UNKNOWN_SAT_KVB if estimate is None else estimate
            self._feerate_sat_kvb = max(FEERATE_SAT_KVB_MIN, min(wanted, self._policy.feerate_max_sat_kvb))
            self._feerate_at = now
        return self._feerate_sat_kvb

    async def announce(self, terms: ChannelTerms, payer_key: bytes, change_script_pubkey: bytes) -> Contract:
        """Watch for deposits on these terms from now on; after that the address may be told.

        Raises NetworkForeign, ChannelTermsStale, ExpiryTooNear, PayerKeyInvalid, ChangeScriptRefused.
        """
        tip_height = await self._store.read(chain_facts.tip_height)
        check_terms(terms, network=self._network, tip_height=tip_height)
        contract = terms.contract(payer_key, change_script_pubkey)
        keep = partial(
            channel_store.announce,
            contract=contract,
            nonce=terms.nonce,
            now=self._clock(),
            contracts_max=self._contracts_max,
        )
        await self._store.write(keep)
        self._watcher.watch(contract.script_pubkey, None)
        return contract

    async def adopt(
        self, terms: ChannelTerms, payer_key: bytes, change_script_pubkey: bytes, channel_id: str
    ) -> None:
        """Have the channel of this deposit recorded, whoever saw it first.

        Raises as `announce`, and OutpointMalformed, FundingNotFound, DepositTooSmall, NodeUnavailable.
        """
        outpoint = parse_channel_id(channel_id)
        contract = await self.announce(terms, payer_key, change_script_pubkey)
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(LOOK_AGAIN_S)
            for known in await self._store.read(partial(channel_store.load_all, channel_ids=[channel_id])):
                channel = known.channel
                _check_deposit(channel.contract == contract, channel.capacity_sat, terms, channel_id)
                return
            found = await self._payment(outpoint, contract, terms)
            if found is not None:
                payment, height, best_hash = found
                record = partial(
                    _record, payment=payment, height=height, best_hash=best_hash, now=self._clock()
                )
                await self._store.write(record)
        # The chain did not stand still for one look, or newly mined coins cannot be spent yet.
        raise FundingNotFound(channel_id)

    async def _payment(
        self, outpoint: OutPoint, contract: Contract, terms: ChannelTerms
    ) -> tuple[PayingTransaction, int | None, str] | None:
        """The transaction that pays the contract there, its height, and the tip of which that is true.

        None: the chain moved while we looked. Raises FundingNotFound, DepositTooSmall.
        """
        output = await self._node.unspent_output(outpoint)
        if output is None or output.coinbase:
            raise FundingNotFound(str(outpoint))
        _check_deposit(
            output.script_pubkey == contract.script_pubkey, output.amount_sat, terms, str(outpoint)
        )
        if output.confirmations:
            best = await self._node.block_header(output.best_hash)
            if best is None:
                return None
            height = best.height - output.confirmations + 1
            block_hash = await self._node.block_hash(height)
            raw = block_hash and await self._node.transaction_in_block(outpoint.txid, block_hash)
        else:
            height = None
            raw = (await self._node.raw_transactions([outpoint.txid]))[outpoint.txid]
        if not raw:
            return None
        parsed = await asyncio.to_thread(parse_transaction, raw)
        payment = PayingTransaction(
            txid=parsed.txid,
            raw=raw,
            inputs=parsed.inputs,
            outputs=tuple(
                PaidOutput(one.vout, one.amount_sat, one.script_pubkey, None)
                for one in parsed.outputs
                if one.script_pubkey == contract.script_pubkey
            ),
            coinbase=parsed.coinbase,
        )
        return payment, height, output.best_hash


async def _record(
    tx: Transaction, *, payment: PayingTransaction, height: int | None, best_hash: str, now: int
) -> None:
    """Nothing, unless the watcher is at the very block of which the node spoke.

    Were it behind, it would find this deposit in a block it has not read yet; were it ahead, a reorg might
    have taken the deposit out of the chain, and nobody would ever say so.
    """
    tip = await chain_facts.tip(tx)
    if tip is not None and tip.hash == best_hash:
        await chain_store.add_payment(tx, payment, height=height, first_seen_at=now, prefetch_fit=False)


def _check_deposit(fits: bool, amount_sat: Sat, terms: ChannelTerms, channel_id: str) -> None:
    """Raises FundingNotFound, DepositTooSmall."""
    if not fits:
        raise FundingNotFound(channel_id)
    if amount_sat < terms.deposit_min_sat:
        raise DepositTooSmall(amount_sat, min_sat=terms.deposit_min_sat)
