"""Payment channels: what is asked of their payee, apart from the bytes they pay for.

    GET  /channels/terms       on what a channel is opened now
    POST /channels/deposits    the address of one, which is watched from then on
    POST /channels             open, pay without bytes, close: `Authorization: Payment`, intent `session`
    POST /channels/mine        all channels of who has their key
    POST /channels/refund      send what takes a deposit back after its expiry

Who looks at the chain knows the id of a channel once it is closed: nothing here is told to who knows only it.
"""

from aiohttp import hdrs

from bitcache.api.routing import Answer, Auth, Call, Header, Route
from bitcache.api.wire_channels import (
    ChannelRefundRequest,
    ChannelRefundView,
    ChannelTermsView,
    ChannelView,
    DepositRequest,
    DepositView,
    OwnChannelsRequest,
    OwnChannelsView,
)
from bitcache.channel_desk import ChannelDesk
from bitcache.payment_scheme import CredentialInvalid
from bitcache.session_auth import CloseAction, receipt_header, session_credential
from payments.channel_errors import ChannelsOff
from payments.channel_script import parse_channel_id

RECEIPT = Header("Payment-Receipt", "what the channel has signed away, and what of it was charged")
TERMS_PROBLEMS = (
    "channels-off",
    "channel-terms-stale",
    "expiry-too-near",
    "network-foreign",
    "payer-key-invalid",
    "change-script-refused",
    "credential-invalid",
    "too-many-requests",
    "node-offline",
)
PAYING_PROBLEMS = (
    *TERMS_PROBLEMS,
    "channels-elsewhere",
    "outpoint-malformed",
    "funding-not-found",
    "deposit-too-small",
    "channel-not-found",
    "channel-closed",
    "channel-suspended",
    "confirmations-needed",
    "unconfirmed-cap-reached",
    "voucher-signature-invalid",
    "voucher-over-deposit",
    "voucher-dust-change",
    "voucher-short",
    "voucher-stale",
    "retries-exhausted",
)


async def terms(call: Call) -> Answer:
    return Answer(200, await _desk(call).terms())


async def announce(call: Call) -> Answer:
    asked = call.body(DepositRequest)
    view = await _desk(call).announce(
        asked.challenge, asked.payer_key, asked.change_script, client=call.client
    )
    return Answer(200, view)


async def use(call: Call) -> Answer:
    """202 once a channel is to be closed; else 200 with a receipt."""
    desk = _desk(call)
    credential = session_credential(call.http.headers.get(hdrs.AUTHORIZATION))
    if credential is None:
        raise CredentialInvalid("send `Authorization: Payment` with a challenge of intent session")
    action = await desk.action(credential)
    if isinstance(action, CloseAction):
        return Answer(202, await desk.close(action, client=call.client))
    paid = await desk.pay(action, None, client=call.client)
    receipt = receipt_header(paid.channel_id, paid.balance, now=call.services.clock())
    return Answer(200, await desk.view(paid.channel_id), {RECEIPT.name: receipt})


async def own(call: Call) -> Answer:
    asked = call.body(OwnChannelsRequest)
    found = await _desk(call).own(asked.payer_key, asked.at, asked.signature, client=call.client)
    return Answer(200, OwnChannelsView(channels=found))


async def refund(call: Call) -> Answer:
    asked, desk = call.body(ChannelRefundRequest), _desk(call)
    parse_channel_id(asked.channel_id)
    txid = await desk.refund(asked.channel_id, asked.transaction, client=call.client)
    return Answer(202, ChannelRefundView(txid=txid))


def _desk(call: Call) -> ChannelDesk:
    """Raises ChannelsOff."""
    channels = call.services.channels
    if channels is None:
        raise ChannelsOff
    return channels.desk


ROUTES = (
    Route(
        method="GET",
        path="/channels/terms",
        handler=terms,
        operation_id="getChannelTerms",
        summary="On what a payment channel is opened now; nothing is kept of it",
        responses={200: ChannelTermsView},
        problems=("channels-off", "node-offline"),
    ),
    Route(
        method="POST",
        path="/channels/deposits",
        handler=announce,
        operation_id="announceDeposit",
        summary="The address of a channel, watched from then on, and what came to it; asked again to wait",
        request=DepositRequest,
        responses={200: DepositView},
        problems=TERMS_PROBLEMS,
    ),
    Route(
        method="POST",
        path="/channels",
        handler=use,
        operation_id="useChannel",
        summary="Open a channel, pay into it without bytes, or have it closed",
        responses={200: ChannelView, 202: ChannelView},
        problems=(*PAYING_PROBLEMS, "close-refused"),
        auth=Auth.PAYMENT,
        request_headers=(Header("Authorization", "`Payment ...`, intent `session`"),),
        response_headers=(RECEIPT,),
    ),
    Route(
        method="POST",
        path="/channels/mine",
        handler=own,
        operation_id="listOwnChannels",
        summary="All channels of who proves to have their key, each with a record that the payee signs",
        request=OwnChannelsRequest,
        responses={200: OwnChannelsView},
        problems=("channels-off", "payer-key-invalid", "proof-refused", "too-many-requests"),
    ),
    Route(
        method="POST",
        path="/channels/refund",
        handler=refund,
        operation_id="refundChannel",
        summary="Send the payer's refund of a channel after its expiry",
        request=ChannelRefundRequest,
        responses={202: ChannelRefundView},
        problems=(
            "channels-off",
            "outpoint-malformed",
            "channel-not-found",
            "channel-refund-refused",
            "too-many-requests",
            "node-offline",
        ),
    ),
)
