"""Opening an account with a name and a password, where the operator allows it.

GET  /sign-up
POST /sign-up
"""

from collections.abc import Mapping

from aiohttp import web

from bitcache import accounts, passwords, sessions
from bitcache.errors import InviteInvalid, NameTaken, RegistrationClosed, TooManyRequests, ValueRefused
from bitcache.rate_limits import ALL
from bitcache.sessions import Opened
from bitcache.web.sign_in import entered
from bitcache.web.visit import Visit, later, page_route
from payments.ports import Transaction

PATH = "/sign-up"
SIGN_UP_FORM = "sign-up"
FIRST_PLACE = "/account"


async def show_sign_up(visit: Visit) -> web.Response:
    if visit.services.config.registration == "closed":
        raise RegistrationClosed
    return _page(visit)


async def sign_up(visit: Visit) -> web.Response:
    fields, _ = await visit.form(SIGN_UP_FORM)
    name, password = " ".join(fields.get("name", "").split()), fields.get("password", "")
    wrong = _faults(name, password)
    if wrong:
        return _page(visit, typed=fields, wrong=wrong, status=422)
    services, now = visit.services, visit.now()
    try:
        services.limits.accounts.check(visit.call.client)
        accounts.check_registration(services.config, fields.get("invite", "").strip())
        services.limits.accounts_in_total.check(ALL)
        password_hash = await services.passwords.hashed(password)

        async def opening(tx: Transaction) -> Opened:
            account_id = await accounts.register(tx, name=name, now=now)
            await passwords.keep(tx, account_id, password_hash, instead_of=None)
            return await sessions.open_session(tx, account_id, token_id=None, now=now)

        response = await entered(visit, opening, wanted=FIRST_PLACE)
    except TooManyRequests as exc:
        return later(_page(visit, typed=fields, wrong={"form": "sign_in_often"}, status=429), exc)
    except InviteInvalid:
        return _page(visit, typed=fields, wrong={"invite": "invite_wrong"}, status=403)
    except NameTaken:
        return _page(visit, typed=fields, wrong={"name": "name_taken"}, status=409)
    except ValueRefused:
        return _page(visit, typed=fields, wrong={"name": "name_bad"}, status=422)
    assert response is not None, "a new account refuses nobody"
    return response


def _faults(name: str, password: str) -> dict[str, str]:
    """What can be said without asking anybody, as keys of the catalogue by field. Pure."""
    wrong = {}
    if not 1 <= len(name) <= accounts.NAME_LENGTH_MAX:
        wrong["name"] = "name_bad"
    fault = passwords.fault_of(password, name=name)
    if fault is not None:
        wrong["password"] = f"password_{fault.value}"
    return wrong


def _page(
    visit: Visit,
    *,
    typed: Mapping[str, str] | None = None,
    wrong: Mapping[str, str] | None = None,
    status: int = 200,
) -> web.Response:
    typed = typed or {}
    fields = {
        "name": typed.get("name", ""),
        "invite": typed.get("invite", ""),
        "wrong": wrong or {},
        "by_invite": visit.services.config.registration == "invite",
        "password_length_min": passwords.LENGTH_MIN,
        "password_length_max": passwords.LENGTH_MAX,
    }
    return visit.page("sign_up.html", fields, form=SIGN_UP_FORM, status=status)


ROUTES = (
    page_route("GET", PATH, show_sign_up, "Open an account", back="/"),
    page_route("POST", PATH, sign_up, "Open an account", back=PATH),
)
