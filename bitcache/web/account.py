"""A seller's account: the wallet they are paid into, API tokens, the password, where they are signed in.

    GET  /account
    POST /account/wallet                     what the wallet would be: addresses to compare; nothing is stored
    POST /account/wallet/set                 from the page that showed them
    POST /account/gap                        how many unused addresses the wallet bridges
    POST /account/tokens                     a new token, shown on the answer and never again
    POST /account/tokens/{token_id}/revoke
    POST /account/password
    POST /account/sign-out-everywhere

A form that is refused comes back with the words next to it and everything that was typed but passwords.
"""

import re
from collections.abc import Mapping

from aiohttp import web

from bitcache import accounts, passwords, payout_wallet, sessions
from bitcache.accounts import ListedToken, Seller
from bitcache.api.accounts import account_view, payout_preview
from bitcache.api.wire import WalletView
from bitcache.errors import TooManyRequests, ValueRefused
from bitcache.node_state import node_state
from bitcache.passwords import Known
from bitcache.payout_wallet import GAP_LIMIT_HEADROOM, GAP_LIMITS, is_gap_near
from bitcache.sessions import ListedSession
from bitcache.web.seller_visit import seller_route
from bitcache.web.sign_in import SELLER_FORM, signed_out
from bitcache.web.visit import Visit, later
from payments.addresses import normalise_descriptor
from payments.errors import DescriptorInvalid, NodeMisconfigured, NodeUnavailable
from payments.ports import Transaction

PAGE = "/account"
DESCRIPTOR_LENGTH_MAX = 4_000
START_INDEX_MAX = 2_000_000_000
_START_INDEX = re.compile("[0-9]{1,10}")
_GAP_LIMIT = re.compile("[0-9]{1,5}")


class WalletRefused(Exception):
    """The form for a wallet cannot be used; `key` is of the catalogue, `detail` in the node's own words."""

    def __init__(self, key: str, detail: str = "") -> None:
        super().__init__(key)
        self.key = key
        self.detail = detail


async def account_page(visit: Visit, seller: Seller) -> web.Response:
    return await _page(visit, seller)


async def preview_wallet(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    try:
        text, start_index = _wallet_fields(fields)
        preview = await payout_preview(visit.services, seller.account_id, text)
    except (WalletRefused, DescriptorInvalid, NodeUnavailable, NodeMisconfigured) as exc:
        return await _wallet_refused(visit, seller, fields, exc)
    shown = {
        "place": PAGE,
        "preview": preview,
        "start_index": start_index,
        "at_once": preview.effective_at <= visit.now(),
    }
    return visit.page("account_wallet.html", shown, form=SELLER_FORM)


async def set_wallet(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    services, config = visit.services, visit.services.config
    try:
        text, start_index = _wallet_fields(fields)
        descriptor = await normalise_descriptor(services.node, text, config.network)
    except (WalletRefused, DescriptorInvalid, NodeUnavailable, NodeMisconfigured) as exc:
        return await _wallet_refused(visit, seller, fields, exc)
    await services.database.write(
        lambda tx: payout_wallet.set_descriptor(
            tx,
            services.descriptors,
            seller.account_id,
            descriptor,
            start_index=start_index,
            delay_s=config.payout_change_delay_s,
            now=visit.now(),
        )
    )
    return visit.redirect(PAGE)


async def set_gap_limit(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    text = fields.get("gap_limit", "").strip()
    if not _GAP_LIMIT.fullmatch(text) or int(text) not in GAP_LIMITS:
        return await _page(visit, seller, typed=fields, wrong={"gap_limit": "gap_limit_bad"}, status=422)
    services, now = visit.services, visit.now()
    await services.database.write(
        lambda tx: payout_wallet.set_gap_limit(
            tx, services.descriptors, seller.account_id, int(text), now=now
        )
    )
    return visit.redirect(PAGE)


async def make_token(visit: Visit, seller: Seller) -> web.Response:
    fields, _ = await visit.form(SELLER_FORM)
    label = fields.get("label", "").strip()
    try:
        issued = await visit.services.database.write(
            lambda tx: accounts.issue_token(tx, seller.account_id, label=label, now=visit.now())
        )
    except ValueRefused:
        return await _page(visit, seller, typed=fields, wrong={"label": "label_bad"}, status=422)
    return await _page(visit, seller, new_token=issued.token)


async def revoke_token(visit: Visit, seller: Seller) -> web.Response:
    await visit.form(SELLER_FORM)
    token_id = visit.call.path("token_id")
    await visit.services.database.write(
        lambda tx: accounts.revoke_token(tx, seller.account_id, token_id, now=visit.now())
    )
    return visit.redirect(PAGE)


async def set_password(visit: Visit, seller: Seller) -> web.Response:
    """The first needs no other: who holds a token may do everything else already."""
    fields, _ = await visit.form(SELLER_FORM)
    services, now = visit.services, visit.now()
    known = await services.database.read(lambda tx: passwords.known_of(tx, seller.account_id))
    password = fields.get("new_password", "")
    try:
        wrong = await _password_faults(visit, seller, known, fields.get("current_password", ""), password)
    except TooManyRequests as exc:
        often = {"current_password": "sign_in_often"}
        return later(await _page(visit, seller, wrong=often, status=429), exc)
    if wrong:
        return await _page(visit, seller, wrong=wrong, status=422)
    password_hash = await services.passwords.hashed(password)

    async def kept(tx: Transaction) -> bool:
        if not await passwords.keep(tx, seller.account_id, password_hash, instead_of=known.password_hash):
            return False
        await sessions.end_all(tx, seller.account_id, now=now, except_session_id=seller.session_id)
        return True

    if not await services.database.write(kept):
        return await _page(visit, seller, wrong={"new_password": "password_raced"}, status=409)
    return await _page(visit, seller, told="password_is_set")


async def sign_out_everywhere(visit: Visit, seller: Seller) -> web.Response:
    await visit.form(SELLER_FORM)
    await visit.services.database.write(lambda tx: sessions.end_all(tx, seller.account_id, now=visit.now()))
    return signed_out(visit)


async def _password_faults(
    visit: Visit, seller: Seller, known: Known, current: str, password: str
) -> dict[str, str]:
    """Keys of the catalogue by field. Raises TooManyRequests."""
    fault = passwords.fault_of(password, name=seller.name)
    if fault is not None:
        return {"new_password": f"password_{fault.value}"}
    if known.password_hash is None:
        return {}
    # Counted as signing in is: a browser left open must not be the place to guess.
    visit.services.limits.sign_ins_by_name.check(seller.account_id)
    checked = await visit.services.passwords.check(current, known.password_hash)
    return {} if checked.right else {"current_password": "password_current_wrong"}


def _wallet_fields(fields: Mapping[str, str]) -> tuple[str, int]:
    """(descriptor or extended key, first index to use). Raises WalletRefused."""
    text = fields.get("descriptor", "").strip()
    start = fields.get("start_index", "0").strip() or "0"
    if not 1 <= len(text) <= DESCRIPTOR_LENGTH_MAX:
        raise WalletRefused("wallet_missing")
    if not _START_INDEX.fullmatch(start) or int(start) > START_INDEX_MAX:
        raise WalletRefused("start_index_bad")
    return text, int(start)


async def _wallet_refused(
    visit: Visit, seller: Seller, fields: Mapping[str, str], exc: Exception
) -> web.Response:
    match exc:
        case WalletRefused():
            key, detail, status = exc.key, exc.detail, 422
        case DescriptorInvalid():
            key, detail, status = "wallet_bad", str(exc), 422
        case _:
            key, detail, status = "wallet_node_offline", "", 503
    wrong = {"start_index" if key == "start_index_bad" else "descriptor": key}
    return await _page(visit, seller, typed=fields, wrong=wrong, detail=detail, status=status)


async def _page(
    visit: Visit,
    seller: Seller,
    *,
    typed: Mapping[str, str] | None = None,
    wrong: Mapping[str, str] | None = None,
    detail: str = "",
    new_token: str = "",
    told: str = "",
    status: int = 200,
) -> web.Response:
    """`told`: a key that says what was done; `detail`: what the node says of a wallet, in its own words."""
    services, now = visit.services, visit.now()
    account = await account_view(services, seller.account_id)

    async def read(tx: Transaction) -> tuple[list[ListedToken], list[ListedSession], Known, bool]:
        return (
            await accounts.list_tokens(tx, seller.account_id),
            await sessions.list_live(tx, seller.account_id, now=now),
            await passwords.known_of(tx, seller.account_id),
            (await node_state(tx, now)).online,
        )

    tokens, live, known, node_online = await services.database.read(read)
    fields = {
        "place": PAGE,
        "seller": seller,
        "account": account,
        "gap": _gap(account.payout),
        "gap_limits": GAP_LIMITS,
        "node_online": node_online,
        "tokens": tokens,
        "sessions": live,
        "has_password": known.password_hash is not None,
        "password_length_min": passwords.LENGTH_MIN,
        "password_length_max": passwords.LENGTH_MAX,
        "typed": typed or {},
        "wrong": wrong or {},
        "detail": detail,
        "new_token": new_token,
        "told": told,
    }
    return visit.page("account.html", fields, form=SELLER_FORM, status=status)


def _gap(payout: WalletView | None) -> dict[str, int] | None:
    """The numbers for advice on the wallet's gap limit; None while none is needed. Pure."""
    if payout is None or payout.highest_index_used is None:
        return None
    if not is_gap_near(payout.unused_streak, payout.gap_limit):
        return None
    return {
        "count": payout.unused_streak,
        "bridged": payout.gap_limit,
        "limit": payout.unused_streak + GAP_LIMIT_HEADROOM,
        "last": payout.highest_index_used + GAP_LIMIT_HEADROOM,
    }


ROUTES = (
    seller_route("GET", PAGE, account_page, "A seller's account"),
    seller_route("POST", f"{PAGE}/wallet", preview_wallet, "What a wallet would be", back=PAGE),
    seller_route("POST", f"{PAGE}/wallet/set", set_wallet, "Be paid into a wallet", back=PAGE),
    seller_route("POST", f"{PAGE}/gap", set_gap_limit, "What the wallet bridges", back=PAGE),
    seller_route("POST", f"{PAGE}/tokens", make_token, "A new token", back=PAGE),
    seller_route("POST", f"{PAGE}/tokens/{{token_id}}/revoke", revoke_token, "Revoke a token", back=PAGE),
    seller_route("POST", f"{PAGE}/password", set_password, "Set the password", back=PAGE),
    seller_route(
        "POST", f"{PAGE}/sign-out-everywhere", sign_out_everywhere, "Sign out everywhere", back=PAGE
    ),
)
