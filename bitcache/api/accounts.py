"""Sellers: registration, tokens, and the wallet they are paid into."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from msgspec import UNSET

from bitcache import accounts, events, payout_plans, payout_targets, payout_wallet
from bitcache.accounts import Account, IssuedToken
from bitcache.api.routing import Answer, Auth, Call, Route
from bitcache.api.wire import (
    AccountPatch,
    AccountRequest,
    AccountView,
    PayoutPlanView,
    PayoutPreview,
    PayoutPreviewRequest,
    PendingWallet,
    Settlement,
    TokenRequest,
    TokenView,
    WalletView,
)
from bitcache.errors import HostedSalesOff, TokenInvalid, ValueRefused
from bitcache.payout_targets import Target
from bitcache.payout_views import plan_view
from bitcache.payout_wallet import SettlementChanged
from bitcache.rate_limits import ALL
from bitcache.services import Services
from payments.addresses import PayoutDescriptor, normalise_descriptor
from payments.descriptors import DescriptorUsage
from payments.errors import NodeMisconfigured, NodeUnavailable
from payments.ports import Transaction

SETTLEMENT_NOTES: Mapping[Settlement, str] = {
    "direct": "Buyers pay your own wallet. The server never holds your money.",
    "hosted": (
        "New invoices are paid to the operator's wallet. The operator holds the money, owes it to you less "
        "the fee, and pays it out; if the operator loses it or keeps it, it is gone. Buyers are told. "
        "Invoices that exist stay as they were made."
    ),
}


async def register(call: Call) -> Answer:
    """Takes no Idempotency-Key: nobody is known yet to whom the kept answer, a token, would belong."""
    services, asked = call.services, call.body(AccountRequest)
    services.limits.accounts.check(call.client)
    accounts.check_registration(services.config, asked.invite)
    services.limits.accounts_in_total.check(ALL)

    async def made(tx: Transaction) -> IssuedToken:
        now = services.clock()
        account_id = await accounts.register(tx, name=asked.name, now=now)
        return await accounts.issue_token(tx, account_id, label="registration", now=now)

    return Answer(201, _token_view(await services.database.write(made)))


async def issue_token(call: Call) -> Answer | web.StreamResponse:
    if call.seller.session_id is not None:
        # Whoever stole what lasts 15 minutes would make of it what lasts for ever.
        raise TokenInvalid("A token of the pages makes no other. Make one on the page /account.")
    label, now = call.body(TokenRequest).label, call.services.clock()

    async def make(tx: Transaction) -> Answer:
        issued = await accounts.issue_token(tx, call.seller.account_id, label=label, now=now)
        return Answer(201, _token_view(issued))

    return await call.create(make)


async def revoke_token(call: Call) -> Answer:
    async def revoked(tx: Transaction) -> None:
        await accounts.revoke_token(
            tx, call.seller.account_id, call.path("token_id"), now=call.services.clock()
        )

    await call.services.database.write(revoked)
    return Answer(204)


async def show(call: Call) -> Answer:
    return Answer(200, await account_view(call.services, call.seller.account_id))


async def change(call: Call) -> Answer:
    await change_account(call.services, call.seller.account_id, call.body(AccountPatch))
    return Answer(200, await account_view(call.services, call.seller.account_id))


async def change_account(services: Services, account_id: str, asked: AccountPatch) -> None:
    """All of what is asked, or nothing.

    Raises HostedSalesOff, DescriptorInvalid, ValueRefused, NameTaken, NodeUnavailable.
    """
    if asked.settlement == "hosted" and not services.hosted.enabled:
        raise HostedSalesOff
    descriptor, target = None, None
    if asked.payout_descriptor is not UNSET:
        # The node is asked before the transaction: nobody's writes wait for it.
        descriptor = await normalise_descriptor(
            services.node, asked.payout_descriptor, services.config.network
        )
    if asked.payout_address is None:
        target = payout_targets.WALLET
    elif asked.payout_address is not UNSET:
        address, network = asked.payout_address, services.config.network
        target = await payout_targets.read_address(services.node, address, network)

    async def changed(tx: Transaction) -> None:
        if asked.name is not UNSET:
            await accounts.rename(tx, account_id, name=asked.name)
        await _change_payout(services, tx, account_id, descriptor, asked)
        await _change_hosted(services, tx, account_id, target, asked)

    await services.database.write(changed)


async def preview_payout(call: Call) -> Answer:
    """For the seller to compare with the wallet before anything is stored."""
    text = call.body(PayoutPreviewRequest).payout_descriptor
    return Answer(200, await payout_preview(call.services, call.seller.account_id, text))


async def payout_preview(services: Services, account_id: str, text: str) -> PayoutPreview:
    """What setting this wallet would do. Raises DescriptorInvalid, NodeUnavailable."""
    descriptor = await normalise_descriptor(services.node, text, services.config.network)

    async def look(tx: Transaction) -> int:
        now = services.clock()
        return await payout_wallet.takes_effect_at(
            tx,
            services.descriptors,
            account_id,
            descriptor,
            delay_s=services.config.payout_change_delay_s,
            now=now,
        )

    derived = await services.addresses.first_addresses(descriptor)
    return PayoutPreview(
        descriptor=descriptor.text,
        first_addresses=[one.address for one in derived],
        note=descriptor.note,
        effective_at=await services.database.read(look),
    )


async def _change_payout(
    services: Services,
    tx: Transaction,
    account_id: str,
    descriptor: PayoutDescriptor | None,
    asked: AccountPatch,
) -> None:
    now = services.clock()
    start_index = 0 if asked.start_index is UNSET else asked.start_index
    if descriptor is not None:
        await payout_wallet.set_descriptor(
            tx,
            services.descriptors,
            account_id,
            descriptor,
            start_index=start_index,
            delay_s=services.config.payout_change_delay_s,
            now=now,
        )
    elif asked.start_index is not UNSET:
        await payout_wallet.raise_next_index(
            tx, services.descriptors, account_id, start_index=start_index, now=now
        )
    if asked.gap_limit is not UNSET:
        await payout_wallet.set_gap_limit(
            tx,
            services.descriptors,
            account_id,
            asked.gap_limit,
            descriptor_id=descriptor.id if descriptor else None,
            now=now,
        )


async def _change_hosted(
    services: Services, tx: Transaction, account_id: str, target: Target | None, asked: AccountPatch
) -> None:
    config, now = services.config, services.clock()
    if target is not None:
        await payout_targets.set_target(tx, account_id, target, delay_s=config.payout_change_delay_s, now=now)
    if asked.settlement is not UNSET and await accounts.set_settlement(tx, account_id, asked.settlement):
        if (
            asked.settlement == "hosted"
            and (await payout_targets.targets(tx, account_id, now=now)).current is None
        ):
            # The first target counts at once: whoever stole a token later could name it, and be paid.
            raise ValueRefused(
                "First say where earnings are paid out to: an address with `bitcache payout address` "
                "(`payout_address`), or a wallet with `bitcache payout set` (`payout_descriptor`).",
                field="settlement",
            )
        told = SettlementChanged(settlement=asked.settlement)
        await events.append(tx, topic=payout_wallet.TOPIC, subject=account_id, payload=told, now=now)
    await payout_plans.set_plan(
        tx,
        config,
        account_id,
        threshold_sat=asked.payout_threshold_sat,
        every=asked.payout_every,
        now=now,
    )


def _token_view(issued: IssuedToken) -> TokenView:
    return TokenView(token_id=issued.token_id, token=issued.token, account_id=issued.account_id)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the database has about an account's money."""

    account: Account
    plan: PayoutPlanView
    descriptor: PayoutDescriptor | None
    usage: DescriptorUsage | None
    pending: PendingWallet | None


async def account_view(services: Services, account_id: str) -> AccountView:
    """The account as its seller sees it. Raises NotFound."""

    async def look(tx: Transaction) -> _Kept:
        now = services.clock()
        account = await accounts.load(tx, account_id)
        plan = await plan_view(tx, account_id, now=now)
        wallet = await payout_wallet.wallet(tx, account_id, now=now)
        change = await payout_wallet.pending(tx, account_id, now=now)
        descriptor, usage, pending = None, None, None
        if wallet is not None:
            descriptor = await services.descriptors.load(tx, wallet.descriptor_id)
            usage = await services.descriptors.usage(tx, wallet.descriptor_id)
        if change is not None:
            text = (await services.descriptors.load(tx, change.descriptor_id)).text
            pending = PendingWallet(descriptor=text, effective_at=change.effective_at)
        return _Kept(account, plan, descriptor, usage, pending)

    kept = await services.database.read(look)
    account, config = kept.account, services.config
    return AccountView(
        account_id=account.id,
        name=account.name,
        created_at=account.created_at,
        bytes_stored=account.bytes_stored,
        bytes_max=account.bytes_allowed(config),
        price_floor_sat=config.price_floor_sat,
        payout=await _wallet_view(services, kept),
        pending_wallet=kept.pending,
        settlement=account.settlement,
        settlement_note=SETTLEMENT_NOTES[account.settlement],
        hosted_available=services.hosted.enabled,
        metered_available=config.metered_sales,
        fee_percent=config.hosted.fee_percent,
        fee_sat=config.hosted.fee_sat,
        payout_plan=kept.plan,
    )


async def _wallet_view(services: Services, kept: _Kept) -> WalletView | None:
    if kept.descriptor is None or kept.usage is None:
        return None
    usage, pending = kept.usage, kept.pending
    return WalletView(
        descriptor=kept.descriptor.text,
        first_addresses=await _first_addresses(services, kept.descriptor),
        next_index=usage.next_index,
        highest_index_used=usage.highest_index_used,
        unused_streak=usage.unused_streak,
        gap_limit=usage.gap_limit,
        advice=payout_wallet.gap_limit_advice(usage),
        pending_descriptor=pending.descriptor if pending else None,
        pending_until=pending.effective_at if pending else None,
    )


async def _first_addresses(services: Services, descriptor: PayoutDescriptor) -> list[str]:
    """To compare with one's wallet; none while the node is away."""
    try:
        return [derived.address for derived in await services.addresses.first_addresses(descriptor)]
    except (NodeUnavailable, NodeMisconfigured):
        return []


ROUTES = (
    Route(
        method="POST",
        path="/accounts",
        handler=register,
        operation_id="createAccount",
        summary="Open an account, where the operator allows it; the token is shown this once",
        request=AccountRequest,
        responses={201: TokenView},
        problems=("registration-closed", "invite-invalid", "name-taken", "too-many-requests"),
    ),
    Route(
        method="POST",
        path="/tokens",
        handler=issue_token,
        operation_id="createToken",
        summary="One more token of the account; it is shown this once",
        request=TokenRequest,
        responses={201: TokenView},
        auth=Auth.SELLER,
        idempotent=True,
    ),
    Route(
        method="DELETE",
        path="/tokens/{token_id}",
        handler=revoke_token,
        operation_id="revokeToken",
        summary="Revoke a token of the account at once",
        responses={204: None},
        problems=("not-found",),
        auth=Auth.SELLER,
    ),
    Route(
        method="GET",
        path="/account",
        handler=show,
        operation_id="getAccount",
        summary="The account: bytes stored, who is paid for its sales, its wallet and the plan of payouts",
        responses={200: AccountView},
        auth=Auth.SELLER,
    ),
    Route(
        method="PATCH",
        path="/account",
        handler=change,
        operation_id="updateAccount",
        summary="Rename the account, set its wallet, choose who is paid for new sales, plan payouts",
        request=AccountPatch,
        responses={200: AccountView},
        problems=("descriptor-invalid", "hosted-sales-off", "name-taken", "node-offline"),
        auth=Auth.SELLER,
    ),
    Route(
        method="POST",
        path="/account/payout-preview",
        handler=preview_payout,
        operation_id="previewPayout",
        summary="The first addresses of a wallet, before it is set; nothing is stored",
        request=PayoutPreviewRequest,
        responses={200: PayoutPreview},
        problems=("descriptor-invalid", "node-offline"),
        auth=Auth.SELLER,
    ),
)
