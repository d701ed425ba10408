"""A payer's talk with the server of a channel. What the server says is checked against what was signed here.

Nothing is signed on the server's word: addresses are computed here, a close is signed only for a fee that
was set aside and an amount that was signed before, and a higher `accepted` is believed only with our own
signature.
"""

import time
from dataclasses import dataclass

import msgspec
from coincurve import PrivateKey

from bitcache.api import wire_channels as wire
from bitcache.api.wire import Request
from bitcache.canonical_json import CanonicalValue, canonical_json
from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook, KeptContract, OwnChannel
from bitcache.client.channel_count import ChannelCount
from bitcache.client.channel_terms import OfferedTerms, check_network, read_terms
from bitcache.client.errors import CloseQuoteRefused, DepositUnproven, ServerAnswerWrong
from bitcache.session_auth import proof_digest, record_digest
from payments.channel_errors import ChannelError, SignatureInvalid
from payments.channel_keys import public_key, sign, verified_der
from payments.channel_script import CHANGE_SAT_MIN
from payments.money import MSAT_PER_SAT, Sat
from payments.segwit_address import script_pubkey_of
from storage import base64url

OPEN_STATES = frozenset({"funded", "open"})


@dataclass(frozen=True)
class Quote:
    """A cooperative close that we agree to."""

    paid_sat: Sat
    fee_sat: Sat
    change_sat: Sat
    """What comes back."""


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    channel_id: str
    accepted_cumulative: str
    signature: str
    spent_msat: str


class ChannelServer:
    """One server. Calls raise ServerProblem, ServerUnreachable, ServerAnswerWrong."""

    def __init__(self, api: ServerApi, book: ChannelBook) -> None:
        self._api = api
        self._book = book

    async def terms(self) -> OfferedTerms:
        """Raises ChannelTermsRefused."""
        return read_terms(await self._api.get("/channels/terms", wire.ChannelTermsView))

    def agree(self, offered: OfferedTerms, change_address: str) -> KeptContract:
        """A new key on these terms, durably kept; the server has not heard of it.

        Raises ChannelTermsRefused, AddressInvalid, ChangeScriptRefused.
        """
        terms = offered.terms
        check_network(offered, change_address)
        kept = KeptContract(
            server=self._api.base_url,
            network=terms.network,
            challenge=offered.challenge,
            payer_secret=PrivateKey().secret.hex(),
            payee_key=terms.payee_key.hex(),
            expiry_height=terms.expiry_height,
            change_script=script_pubkey_of(change_address, terms.network).hex(),
            close_fee_sat=terms.close_fee_sat,
            created_at=int(time.time()),
        )
        _ = kept.contract  # refuses what no channel can be made of
        self._book.keep_contract(kept)
        return kept

    async def announce(self, contract: KeptContract) -> list[OwnChannel]:
        """The deposits that the server sees at the contract's address, from now on watched. Repeatable.

        Raises ServerAnswerWrong if the server would watch another address than ours.
        """
        request = wire.DepositRequest(
            challenge=contract.challenge, payer_key=contract.payer_key, change_script=contract.change_script
        )
        answer = await self._api.post("/channels/deposits", request, wire.DepositView, repeatable=True)
        if answer.address != contract.address or answer.script_pubkey != contract.script_pubkey.hex():
            raise ServerAnswerWrong(
                f"The server names the address {answer.address} for this channel, and it is "
                f"{contract.address}. Do not pay, and tell its operator."
            )
        return [self._own(contract, view) for view in answer.channels]

    async def open(self, own: OwnChannel) -> wire.ChannelView:
        """With a voucher of 0, if it is not open already."""
        return await self._act(own, "open", 0)

    async def found(
        self, contract: KeptContract, channel_id: str, capacity_sat: int
    ) -> tuple[OwnChannel, wire.ChannelView]:
        """Open the deposit that its payer knows of, though the server may not have seen it come.

        Raises DepositUnproven, OutpointMalformed; ServerProblem if it is not there, or of another amount.
        """
        if contract.recovered:
            raise DepositUnproven(channel_id)
        view = await self.open(OwnChannel.of(contract, channel_id, capacity_sat))
        return self._book.add(contract, channel_id, capacity_sat), view

    async def voucher(self, own: OwnChannel, cumulative_sat: int) -> wire.ChannelView:
        """The server holds a voucher of at least so much afterwards."""
        return await self._act(own, "voucher", cumulative_sat)

    async def mine(self, contract: KeptContract) -> list["SeenChannel"]:
        """All channels of this payer's key, as the server has them, each with what it proves of them."""
        answer = await self.ask_mine(contract.payer, contract.challenge.realm)
        found = []
        for view in answer.channels:
            try:
                found.append(self.seen(contract, view))
            except DepositUnproven:
                continue  # only a refund takes it back
        return found

    def seen(self, contract: KeptContract, view: wire.OwnChannelView) -> "SeenChannel":
        """Kept from now on. Raises ServerAnswerWrong, DepositUnproven."""
        if not contract.recovered:
            own = self._own(contract, view)
        else:
            known = self._book.known(contract, view.channel_id)
            own = known or OwnChannel.of(contract, view.channel_id, view.capacity_sat)
        check_view(own, view)
        record = read_record(own, view.record)
        if contract.recovered:
            # What was signed is capacity, change and change script: the close fee may be a lie, so that what
            # the server calls paid is, too, but no change is ever signed that is lower than this one less
            # what is newly bought. Over a drained deposit nothing was signed but its capacity.
            proven = record is not None and record.accepted_sat < own.channel.paid_sat_max
            if proven:
                self._book.keep_contract(contract)
            own = self._book.add(contract, own.id, own.channel.capacity_sat, proven=proven)
        return SeenChannel(own, view, record)

    async def ask_mine(self, payer: PrivateKey, realm: str) -> wire.OwnChannelsView:
        at = int(time.time())
        proof = wire.OwnChannelsRequest(
            payer_key=payer.public_key.format().hex(),
            at=at,
            signature=sign(payer, proof_digest(realm, at)).hex(),
        )
        return await self._api.post("/channels/mine", proof, wire.OwnChannelsView, repeatable=True)

    async def close(self, own: OwnChannel, quote: Quote) -> wire.ChannelView:
        """Sign what `close_quote` agreed to."""
        signature = own.channel.sign(own.contract.payer, quote.paid_sat, quote.fee_sat)
        payload: dict[str, CanonicalValue] = {
            "action": "close",
            "channelId": own.id,
            "closeFee": str(quote.fee_sat),
            "cumulativeAmount": str(quote.paid_sat),
            "signature": signature.hex(),
        }
        return await self._post(own, payload)

    async def refund(self, channel_id: str, raw: bytes) -> None:
        """Have the server send it to the network. Raises ServerProblem with the node's words."""
        request = wire.ChannelRefundRequest(channel_id=channel_id, transaction=raw.hex())
        await self._api.post("/channels/refund", request, wire.ChannelRefundView, repeatable=True)

    async def _act(self, own: OwnChannel, action: str, cumulative_sat: int) -> wire.ChannelView:
        payload: dict[str, CanonicalValue] = {
            "action": action,
            "channelId": own.id,
            "cumulativeAmount": str(cumulative_sat),
            "signature": own.signed(cumulative_sat).hex(),
        }
        if action == "open":
            payload |= {"changeScript": own.contract.change_script, "payerKey": own.contract.payer_key}
        view = await self._post(own, payload)
        if view.accepted_sat < cumulative_sat:
            raise ServerAnswerWrong(
                f"The server was given a voucher for {cumulative_sat:,} sat and says it has one for "
                f"{view.accepted_sat:,} sat."
            )
        return view

    async def _post(self, own: OwnChannel, payload: dict[str, CanonicalValue]) -> wire.ChannelView:
        header = credential(own.contract.challenge, payload)
        view = await self._api.post(
            "/channels", Request(), wire.ChannelView, repeatable=True, authorization=header
        )
        check_view(own, view)
        return view

    def _own(self, contract: KeptContract, view: wire.ChannelView) -> OwnChannel:
        return self._book.add(contract, view.channel_id, view.capacity_sat)


@dataclass(frozen=True)
class Record:
    """What the server proves of a channel: our own signature over `accepted_sat`."""

    accepted_sat: Sat
    spent_msat: int


@dataclass(frozen=True)
class SeenChannel:
    """One channel as the server has it."""

    own: OwnChannel
    view: wire.ChannelView
    record: Record | None


def voucher_header(own: OwnChannel, cumulative_sat: int) -> str:
    """The value of `Authorization` that pays with a voucher. Raises as `OwnChannel.signed`."""
    return credential(
        own.contract.challenge,
        {
            "action": "voucher",
            "channelId": own.id,
            "cumulativeAmount": str(cumulative_sat),
            "signature": own.signed(cumulative_sat).hex(),
        },
    )


def credential(challenge: wire.ChallengeView, payload: dict[str, CanonicalValue]) -> str:
    """The value of `Authorization: Payment`."""
    echo: dict[str, CanonicalValue] = {name: getattr(challenge, name) for name in challenge.__struct_fields__}
    return f"Payment {base64url.encode(canonical_json({'challenge': echo, 'payload': payload}))}"


def read_record(own: OwnChannel, view: wire.ChannelRecordView | None) -> Record | None:
    """The server's signed record; None before the first voucher. Raises ServerAnswerWrong."""
    if view is None:
        return None
    try:
        document = view.json.encode()
        payee = public_key(own.channel.contract.payee_key)
        verified_der(payee, record_digest(document), bytes.fromhex(view.signature))
        record = msgspec.json.decode(document, type=_Record)
        accepted_sat, spent_msat = Sat(int(record.accepted_cumulative)), int(record.spent_msat)
        if record.channel_id != own.id or not 0 <= spent_msat <= accepted_sat * MSAT_PER_SAT:
            raise ServerAnswerWrong(f"The server's record of channel {own.id} is not of this channel.")
        if not record.signature and accepted_sat == 0:
            return None
        own.channel.verify(accepted_sat, bytes.fromhex(record.signature))
    except (ValueError, RecursionError) as exc:
        raise ServerAnswerWrong(f"The server's record of channel {own.id} cannot be read ({exc}).") from exc
    except ChannelError as exc:
        words = (
            "has a signature that is not yours, or not the server's"
            if isinstance(exc, SignatureInvalid)
            else exc
        )
        raise ServerAnswerWrong(f"The server's record of channel {own.id} {words}.") from exc
    return Record(accepted_sat, spent_msat)


def reconcile(own: OwnChannel, count: ChannelCount, view: wire.ChannelView, record: Record | None) -> None:
    """Take over what was signed and is not in `count` (a power cut, another computer's copy).

    Raises ServerAnswerWrong if the server says that more was signed than it can show.
    """
    proven_sat = record.accepted_sat if record is not None else Sat(0)
    if view.accepted_sat > max(count.signed_sat, proven_sat):
        raise ServerAnswerWrong(
            f"The server says you signed {view.accepted_sat:,} sat on channel {own.id}: you signed "
            f"{count.signed_sat:,} sat, and it shows nothing else. Nothing more is paid on it."
        )
    if record is None:
        return
    # What was charged, and not all that was signed: the difference is still there to be spent. It has become
    # less where chunks that the list had lost were asked for again, and cost nothing.
    unlisted_msat = max(0, record.spent_msat - count.asked_msat)
    if unlisted_msat > count.unlisted_msat or (unlisted_msat < count.unlisted_msat and not count.outstanding):
        count.set_unlisted(unlisted_msat)


def close_quote(own: OwnChannel, count: ChannelCount, view: wire.ChannelView) -> Quote | None:
    """The close that the server asks for, if we owe no less; None if it asks for none. Pure.

    Raises CloseQuoteRefused: with a lower fee the same signature is a voucher for more, so that both numbers
    are bounded, the fee by what was set aside and the amount by what was signed.
    """
    asked = view.close_quote
    if asked is None:
        return None
    close_fee_sat = own.channel.contract.close_fee_sat
    if not 0 <= asked.fee_sat <= close_fee_sat:
        raise CloseQuoteRefused(
            f"The server wants {asked.fee_sat:,} sat for closing, and {close_fee_sat:,} sat were agreed. "
            f"Nothing was signed. {_else_refund(own)}"
        )
    if not 0 <= asked.paid_sat_min <= count.signed_sat:
        raise CloseQuoteRefused(
            f"The server wants {asked.paid_sat_min:,} sat, and you agreed to pay {count.signed_sat:,} sat in "
            f"all. Nothing was signed. {_else_refund(own)}"
        )
    paid_sat, fee_sat = Sat(asked.paid_sat_min), Sat(asked.fee_sat)
    change_sat = own.channel.capacity_sat - fee_sat - paid_sat
    if 0 < change_sat < CHANGE_SAT_MIN:
        # No node relays so small an output: it goes to the network, as far as it was set aside for that.
        if fee_sat + change_sat > close_fee_sat:
            return None
        fee_sat, change_sat = Sat(fee_sat + change_sat), 0
    return Quote(paid_sat, fee_sat, Sat(change_sat))


def _else_refund(own: OwnChannel) -> str:
    return (
        "It can close at what was signed before; else you get the deposit back from block "
        f"{own.contract.expiry_height:,} on: bitcache channel refund {own.id} --to ADDRESS"
    )


def check_view(own: OwnChannel, view: wire.ChannelView) -> None:
    contract = own.channel.contract
    if (view.channel_id, view.capacity_sat, view.expiry_height, view.close_fee_sat) != (
        own.id,
        own.channel.capacity_sat,
        contract.expiry_height,
        contract.close_fee_sat,
    ):
        raise ServerAnswerWrong(f"The server describes channel {own.id} otherwise than it was made.")
    if not 0 <= view.spent_msat <= view.accepted_sat * MSAT_PER_SAT:
        raise ServerAnswerWrong(f"The server says it charged more on channel {own.id} than was ever signed.")
