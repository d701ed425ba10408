"""The doctor's questions about backups: is there a copy of the master key, and how far has a restore come?"""

from bitcache import backup_manifest, unassigned_money
from bitcache.backup import key_backed_up_at
from bitcache.doctor import Finding, Verdict
from bitcache.services import Services
from bitcache.unassigned_money import UnassignedMoney
from payments import restores
from payments.bitcoind import Bitcoind
from payments.errors import NodeMisconfigured, NodeRefused, NodeUnavailable
from payments.ports import Transaction


async def check_key_backup(services: Services) -> Finding:
    fingerprint = backup_manifest.fingerprint(services.sealer)
    if await services.database.read(lambda tx: key_backed_up_at(tx, fingerprint)) is None:
        return Finding(
            "key copy",
            Verdict.WARNING,
            f"key {fingerprint} was never copied",
            "Run `bitcache backup-key FILE` and keep the file apart from the backups: without it nothing "
            "sold can be opened.",
        )
    return Finding("key copy", Verdict.OK, f"key {fingerprint} was copied")


async def check_restore(services: Services) -> list[Finding]:
    """Nothing, if this database was never restored."""

    async def read(tx: Transaction) -> tuple[bool, UnassignedMoney, int | None, bool]:
        waiting = await restores.searches(tx)
        return (
            await restores.is_restored(tx),
            await unassigned_money.listed(tx),
            await restores.searched_above(tx),
            any(search.from_height is None for search in waiting),
        )

    restored, money, searched_above, undecided = await services.database.read(read)
    if not restored:
        return []
    return [
        await _search_finding(services.node, money, searched_above, undecided=undecided),
        Finding(
            "unassigned money",
            Verdict.OK,
            f"{money.confirmed_sat:,} sat confirmed for invoices that were lost: see `bitcache unassigned`",
        ),
    ]


async def _search_finding(
    node: Bitcoind, money: UnassignedMoney, searched_above: int | None, *, undecided: bool
) -> Finding:
    waiting = len(money.searching)
    if not waiting:
        return Finding("restore", Verdict.OK, "the addresses in use were found")
    words = f"{waiting} of the sellers' wallets give no new addresses"
    if undecided:
        return Finding("restore", Verdict.WRONG, words, f"The backup knew no block to search from. {_DECIDE}")
    try:
        pruned_below = (await node.chain_info()).prune_height or 0
    except (NodeUnavailable, NodeMisconfigured, NodeRefused):
        pruned_below = 0
    if searched_above is not None and searched_above + 1 < pruned_below:
        return Finding(
            "restore",
            Verdict.WRONG,
            words,
            f"The node has pruned blocks from {searched_above + 1} on, which show the addresses in use: "
            f"`bitcache doctor --rescan` has it fetch them. {_DECIDE}",
        )
    return Finding(
        "restore",
        Verdict.WARNING,
        words,
        "The running server searches the blocks since the backup for addresses in use: wait for it.",
    )


_DECIDE = (
    "Or decide where a seller's addresses go on, above all that were handed out: "
    "`bitcache account start-index NAME INDEX`, for hosted sales `bitcache payouts start-index INDEX`."
)
