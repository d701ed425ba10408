"""The doctor's questions about hosted sales: do the books add up, and can the wallet be used?"""

from collections.abc import AsyncIterator

from bitcache import reconciling
from bitcache.doctor import Finding, Verdict
from bitcache.services import Services
from payments import books, payable, reconcile_read
from payments.addresses import normalise_descriptor
from payments.errors import DescriptorInvalid, NodeMisconfigured, NodeRefused, NodeUnavailable
from payments.ports import Transaction

OLD_S = 2 * reconciling.EVERY_S
ACCOUNTS_NAMED_MAX = 3


async def check_books(services: Services) -> AsyncIterator[Finding]:
    """The ledger, whatever was sold; the rest only where sales are, or were, hosted."""
    yield await services.database.read(_ledger_finding)
    enabled = services.hosted.enabled
    if not enabled and not await services.database.read(payable.hosted_descriptors):
        return
    yield await _reconciliation_finding(services)
    stopped = await services.database.read(payable.stopped)
    if stopped is not None:
        yield Finding("payouts", Verdict.WARNING, "nothing is paid out", _sentence(stopped))
    if enabled:
        yield await _wallet_finding(services)
    if services.signer is not None:
        yield await _signer_finding(services)


async def _ledger_finding(tx: Transaction) -> Finding:
    wrong = await books.wrong_balances(tx)
    sum_msat = await reconcile_read.ledger_sum_msat(tx)
    if not wrong and not sum_msat:
        return Finding("books", Verdict.OK, "every balance is what its history says; all sum to zero")
    named = ", ".join(sorted(wrong)[:ACCOUNTS_NAMED_MAX])
    more = f" and {len(wrong) - ACCOUNTS_NAMED_MAX} more" if len(wrong) > ACCOUNTS_NAMED_MAX else ""
    found = [f"balances that are not what their history says: {named}{more}"] if wrong else []
    found += [f"all balances together are {sum_msat:,} msat, not zero"] if sum_msat else []
    return Finding(
        "books",
        Verdict.WRONG,
        "; ".join(found),
        "This is a bug, or somebody wrote to the database. Pay nothing out, keep a backup, and report it.",
    )


async def _reconciliation_finding(services: Services) -> Finding:
    found = await services.database.read(reconciling.latest)
    if found is None:
        return Finding(
            "reconciliation",
            Verdict.WARNING,
            "ledger and wallet were never compared",
            "The running server does so once a day; `bitcache reconcile` does so now.",
        )
    age_h = max(0, services.clock() - found.at) // 3_600
    if not found.explained:
        return Finding(
            "reconciliation",
            Verdict.WRONG,
            f"{age_h} h ago ledger and wallet differed by {found.difference_sat:,} sat that nobody explained",
            "`bitcache reconcile` looks again and says what each difference is and what to do.",
        )
    if services.clock() - found.at > OLD_S:
        return Finding(
            "reconciliation",
            Verdict.WARNING,
            f"ledger and wallet were last compared {age_h} h ago",
            "The running server does so once a day, and its log says why it could not; `bitcache reconcile` "
            "does so now.",
        )
    return Finding("reconciliation", Verdict.OK, f"every satoshi was explained {age_h} h ago")


async def _wallet_finding(services: Services) -> Finding:
    config = services.config
    try:
        await normalise_descriptor(services.node, config.hosted.descriptor, config.network)
    except DescriptorInvalid as exc:
        return Finding("hosted wallet", Verdict.WRONG, "its descriptor cannot be used", _sentence(str(exc)))
    except (NodeUnavailable, NodeMisconfigured, NodeRefused) as exc:
        return Finding("hosted wallet", Verdict.WARNING, "the node cannot be asked", str(exc))
    return Finding("hosted wallet", Verdict.OK, "our node can read it")


async def _signer_finding(services: Services) -> Finding:
    assert services.signer is not None, "asked only where there is one"
    name = services.signer.name
    try:
        if await services.signer.exists():
            return Finding("payout wallet", Verdict.OK, f"{name!r} is on the node")
    except NodeMisconfigured as exc:
        return Finding("payout wallet", Verdict.WRONG, f"{name!r} cannot sign", _sentence(str(exc)))
    except (NodeUnavailable, NodeRefused) as exc:
        return Finding("payout wallet", Verdict.WARNING, "the node cannot be asked", str(exc))
    return Finding(
        "payout wallet",
        Verdict.WRONG,
        f"the node has no wallet {name!r}",
        "Create or restore it there (`createwallet`, `restorewallet`), correct `wallet` under [hosted], or "
        "leave it empty and sign elsewhere.",
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."
