"""What payers do with channels, whatever they buy: terms, deposits, vouchers, closes, refunds. Shell."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from msgspec import structs

from bitcache import session_auth
from bitcache.api.wire_channels import (
    ChallengeView,
    ChannelRecordView,
    ChannelTermsView,
    ChannelView,
    DepositView,
    OwnChannelView,
)
from bitcache.channel_views import channel_views, close_fee_sat, exposure_view
from bitcache.config import Config
from bitcache.errors import ProofRefused
from bitcache.node_state import node_state
from bitcache.payment_scheme import METHOD, Challenge, Credential, EchoedChallenge
from bitcache.rate_limits import Limits
from bitcache.session_auth import (
    Action,
    CloseAction,
    OpenAction,
    SessionChallenger,
    SessionRefused,
    VoucherAction,
    octets,
)
from payments import channel_store
from payments.bitcoind import Bitcoind
from payments.channel import Charge, CloseReason
from payments.channel_close import check_refund
from payments.channel_errors import (
    ChangeScriptRefused,
    ChannelNotFound,
    CloseRefused,
    PayerKeyInvalid,
    RefundRefused,
    SignatureInvalid,
    VoucherDustChange,
    VoucherOverDeposit,
    VoucherShort,
)
from payments.channel_keys import public_key, sign, verified_der
from payments.channel_opening import ChannelOpening
from payments.channel_record import ChannelRecord
from payments.channel_registry import ChannelRegistry, Paid
from payments.errors import NodeUnavailable
from payments.money import Msat
from payments.ports import Clock, Store, Transaction
from payments.segwit_address import address_of

PROOF_AGE_S_MAX = 300
CHALLENGED = (SignatureInvalid, VoucherOverDeposit, VoucherDustChange, VoucherShort)
"""Refusals that another voucher would answer: they come with a challenge."""


class ChannelDesk:
    """For who opens channels, pays with them, and gets back what is left."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        node: Bitcoind,
        registry: ChannelRegistry,
        opening: ChannelOpening,
        challenger: SessionChallenger,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._config = config
        self._exposure = config.channels.exposure
        self._store = store
        self._node = node
        self._registry = registry
        self._opening = opening
        self._challenger = challenger
        self._limits = limits
        self._clock = clock

    # Terms

    async def challenge(self, *, price_msat: Msat | None = None) -> Challenge:
        """Fresh terms, for an offer with its price of a chunk. Nothing is written. Raises NodeUnavailable."""
        terms = await self._opening.terms()
        return self._challenger.challenge(terms, price_msat=price_msat, now=self._clock())

    async def invitation(self, *, price_msat: Msat) -> Challenge:
        """A challenge for who may have no channel yet. Raises NodeUnavailable, also while nobody would see a
        deposit.
        """
        await self._check_node()
        return await self.challenge(price_msat=price_msat)

    async def terms(self) -> ChannelTermsView:
        """Fresh terms. Nothing is written. Raises NodeUnavailable, also while nobody would see a deposit."""
        await self._check_node()
        terms = await self._opening.terms()
        challenge = self._challenger.challenge(terms, price_msat=None, now=self._clock())
        return ChannelTermsView(
            challenge=ChallengeView(
                id=challenge.id,
                realm=challenge.realm,
                method=METHOD,
                intent=challenge.intent,
                request=challenge.request,
                expires=challenge.expires,
            ),
            network=terms.network,
            payee_key=terms.payee_key.hex(),
            expiry_height=terms.expiry_height,
            close_fee_sat=terms.close_fee_sat,
            deposit_min_sat=terms.deposit_min_sat,
            tip_height=terms.issued_height,
            feerate_sat_kvb=await self._opening.feerate_sat_kvb(),
            exposure=exposure_view(self._exposure),
        )

    # Deposits and opening

    async def announce(
        self, challenge: ChallengeView, payer_key: str, change_script: str, *, client: str
    ) -> DepositView:
        """The address of a contract, watched from now on, and what has come to it.

        Raises CredentialInvalid, PayerKeyInvalid, ChangeScriptRefused, NetworkForeign, ChannelTermsStale,
        ExpiryTooNear, TooManyRequests, ChannelsElsewhere; NodeUnavailable if nobody would see a deposit.
        """
        terms = self._challenger.terms(EchoedChallenge(**structs.asdict(challenge)))
        contract = terms.contract(
            octets(payer_key, PayerKeyInvalid()), octets(change_script, ChangeScriptRefused())
        )
        known = await self._store.read(lambda tx: channel_store.contract_of(tx, contract.script_pubkey))
        # Whoever asks whether the deposit has come asks often, and costs a look.
        if known is None or known[0] != contract:
            self._limits.channel_contracts.check(client)
            await self._check_node()
            await self._opening.announce(terms, contract.payer_key, contract.change_script_pubkey)
        _, views = await self._seen(lambda tx: channel_store.of_script(tx, contract.script_pubkey))
        return DepositView(
            address=address_of(contract.script_pubkey, self._config.network),
            script_pubkey=contract.script_pubkey.hex(),
            channels=views,
        )

    async def action(self, credential: Credential, *, price_msat: Msat | None = None) -> Action:
        """What a credential says. Raises as `SessionChallenger.action`, with SessionRefused in place of
        SignatureInvalid.
        """
        async with self._challenging(price_msat):
            return self._challenger.action(credential)

    async def pay(
        self,
        action: OpenAction | VoucherAction,
        charge: Charge | None,
        *,
        client: str,
        price_msat: Msat | None = None,
    ) -> Paid:
        """Take what was signed away, and charge to it. Durable when it returns.

        Raises SessionRefused, TooManyRequests, and what `ChannelRegistry.pay` and `ChannelOpening.adopt`
        raise.
        """
        async with self._challenging(price_msat):
            paid = None
            if isinstance(action, OpenAction):
                paid = await self._open(action, client)
            if paid is None or charge is not None:
                paid = await self._registry.pay(action.voucher, charge)
            return paid

    async def _open(self, action: OpenAction, client: str) -> Paid:
        """With the first voucher; a channel that is open stays so."""
        channel_id = action.voucher.channel_id
        # What was asked for when the buyer paid: the operator may ask for more by now.
        deposit_min_sat = action.terms.deposit_min_sat
        try:
            return await self._registry.open(channel_id, action.voucher, deposit_min_sat=deposit_min_sat)
        except ChannelNotFound:
            # Nobody announced it, or the deposit is on its way to us: our node is asked.
            self._limits.invoices.check(client)
            await self._opening.adopt(action.terms, action.payer_key, action.change_script_pubkey, channel_id)
        return await self._registry.open(channel_id, action.voucher, deposit_min_sat=deposit_min_sat)

    # Looking

    async def view(self, channel_id: str) -> ChannelView:
        """Raises ChannelNotFound."""

        async def one(tx: Transaction) -> list[ChannelRecord]:
            return [await channel_store.load(tx, channel_id)]

        _, views = await self._seen(one)
        return views[0]

    async def own(self, payer_key: str, at: int, signature: str, *, client: str) -> list[OwnChannelView]:
        """All channels of a payer who proves to be that, each with a record that the payee signs.

        Raises TooManyRequests, PayerKeyInvalid, ProofRefused.
        """
        self._limits.claims.check(client)
        compressed = octets(payer_key, PayerKeyInvalid())
        if abs(self._clock() - at) > PROOF_AGE_S_MAX:
            raise ProofRefused("`at` is not the time now. Set the clock right, and sign again.")
        try:
            proof = session_auth.proof_digest(self._challenger.realm, at)
            verified_der(public_key(compressed), proof, octets(signature, SignatureInvalid()))
        except SignatureInvalid as exc:
            raise ProofRefused("The signature is not the key's own over this server and time.") from exc
        records, views = await self._seen(lambda tx: channel_store.of_payer(tx, compressed))
        return [
            OwnChannelView(
                **structs.asdict(view),
                change_script=record.channel.contract.change_script_pubkey.hex(),
                record=self._record(record),
            )
            for record, view in zip(records, views, strict=True)
        ]

    # Closing

    async def close(self, action: CloseAction, *, client: str) -> ChannelView:
        """Cooperative: the payer signs a fee of today. It is closed by the loop that closes channels.

        Raises SessionRefused, CloseRefused, ChannelNotFound, ChannelClosed,
        ChannelsElsewhere, TooManyRequests, NodeUnavailable.
        """
        self._limits.claims.check(client)
        async with self._challenging(None):
            record = await self._store.read(lambda tx: channel_store.load(tx, action.channel_id))
            least_sat = close_fee_sat(record, await self._opening.feerate_sat_kvb())
            most_sat = record.channel.contract.close_fee_sat
            if least_sat is None:
                raise CloseRefused(
                    f"A close takes much more now than the {most_sat:,} sat that were set aside for it. Ask "
                    "again when it takes less; before the channel expires it is closed in any case."
                )
            if not least_sat <= action.agreed.fee_sat <= most_sat:
                raise CloseRefused(
                    f"A close takes {least_sat:,} sat of network fee now, and at most {most_sat:,} sat."
                )
            await self._registry.ask_close(action.channel_id, CloseReason.PAYER, action.agreed)
        return await self.view(action.channel_id)

    async def refund(self, channel_id: str, transaction: str, *, client: str) -> str:
        """Send the payer's refund; its txid. Raises TooManyRequests, ChannelNotFound, RefundRefused,
        NodeUnavailable.
        """
        self._limits.claims.check(client)
        raw = octets(transaction, RefundRefused("A transaction is sent in lower-case hex."))
        record = await self._store.read(lambda tx: channel_store.load(tx, channel_id))
        txid = check_refund(raw, record.channel)
        broadcast = await self._node.send_raw_transaction(raw)
        if not broadcast.is_there:
            raise RefundRefused(f"The bitcoin node does not take it: {broadcast.message}.")
        return txid

    async def _check_node(self) -> None:
        state = await self._store.read(lambda tx: node_state(tx, self._clock()))
        if state.trouble is not None:
            raise NodeUnavailable(state.trouble)

    async def _seen(
        self, found: Callable[[Transaction], Awaitable[list[ChannelRecord]]]
    ) -> tuple[list[ChannelRecord], list[ChannelView]]:
        feerate_sat_kvb = await self._feerate_sat_kvb()

        async def look(tx: Transaction) -> tuple[list[ChannelRecord], list[ChannelView]]:
            records = await found(tx)
            return records, await channel_views(
                tx, records, exposure=self._exposure, feerate_sat_kvb=feerate_sat_kvb
            )

        return await self._store.read(look)

    async def _feerate_sat_kvb(self) -> int | None:
        try:
            return await self._opening.feerate_sat_kvb()
        except NodeUnavailable:
            return None

    def _record(self, record: ChannelRecord) -> ChannelRecordView:
        text = session_auth.record_json(
            channel_id=record.id,
            accepted_sat=record.balance.accepted_sat,
            signature=record.balance.signature,
            spent_msat=record.balance.spent_msat,
            state=record.state.value,
            at=self._clock(),
        )
        signature = sign(self._opening.payee(record.nonce), session_auth.record_digest(text))
        return ChannelRecordView(json=text.decode(), signature=signature.hex())

    @asynccontextmanager
    async def _challenging(self, price_msat: Msat | None) -> AsyncIterator[None]:
        """Refusals of a voucher come with fresh terms, at the price of now."""
        try:
            yield
        except CHALLENGED as exc:
            raise SessionRefused(exc, await self.challenge(price_msat=price_msat)) from exc
