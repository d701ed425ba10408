"""The doctor's questions about payment channels: can they be closed, and are they closed in time? Is anybody
there to close them, and what did a restore lose?"""

from collections.abc import AsyncIterator
from functools import partial

from sqlalchemy import func, select

from bitcache import channel_operations, channel_seed
from bitcache.backup import key_backed_up_at
from bitcache.config import Config
from bitcache.doctor import Finding, Verdict
from bitcache.services import Services
from payments import books, chain_facts, channel_store, ledger
from payments.channel import FINAL_DEPTH, ChannelState
from payments.channel_close_plan import LAST_BLOCKS
from payments.channel_errors import ChannelSeedUnusable
from payments.channel_store import LIVE
from payments.outputs import block_depth
from payments.ports import Transaction
from payments.tables import channels, restores

CHANNELS_NAMED_MAX = 3


def check_seed(config: Config) -> list[Finding]:
    """Nothing where there are no channels."""
    if not config.channels.enabled:
        return []
    try:
        channel_seed.read_channel_seed(config.channel_seed)
    except ChannelSeedUnusable as exc:
        return [Finding("channel seed", Verdict.WRONG, "unusable", str(exc))]
    if not config.hosted.descriptor:
        return [
            Finding(
                "channel seed",
                Verdict.WRONG,
                "channels are enabled without hosted sales: the server does not start",
                "Set `descriptor` under [hosted], or `enabled = false` under [channels].",
            )
        ]
    return [Finding("channel seed", Verdict.OK, f"{config.channel_seed}, for its owner alone")]


async def check_channels(services: Services) -> list[Finding]:
    """Nothing where there are no channels. `check_seed` found nothing wrong."""
    config = services.config
    if not config.channels.enabled:
        return []
    fingerprint = channel_seed.fingerprint(channel_seed.read_channel_seed(config.channel_seed))
    copied_at = await services.database.read(partial(key_backed_up_at, fingerprint=fingerprint))
    copy = Finding("seed copy", Verdict.OK, f"seed {fingerprint} was copied")
    if copied_at is None:
        copy = Finding(
            "seed copy",
            Verdict.WARNING,
            f"seed {fingerprint} was never copied",
            "Run `bitcache channels seed --copy FILE` and keep the file apart from the backups: without it "
            "no channel can be closed.",
        )
    return [copy, await _closes_finding(services)]


async def check_channel_books(services: Services) -> AsyncIterator[Finding]:
    """Nothing unless something is wrong."""
    checks = [_restored, _unsettled] if services.config.metered_sales else [_nobody_there]
    for check in checks:
        finding = await services.database.read(check)
        if finding is not None:
            yield finding


async def _closes_finding(services: Services) -> Finding:
    found = await services.database.read(channel_operations.figures)
    words = f"{found.open:,} open, {found.closing:,} to be closed"
    if found.blocks_left_min is not None and found.blocks_left_min < LAST_BLOCKS:
        return Finding(
            "channels",
            Verdict.WRONG,
            f"{words}; one of these expires in {max(0, found.blocks_left_min)} blocks",
            "From then on its buyer may take back what was paid. `bitcache channels list` says what is in "
            "the way; `bitcache channels bump` pays the network more.",
        )
    if found.troubled:
        return Finding(
            "channels",
            Verdict.WARNING,
            f"{words}; something is in the way of {found.troubled:,}",
            "`bitcache channels list` says what.",
        )
    return Finding("channels", Verdict.OK, words)


async def _nobody_there(tx: Transaction) -> Finding | None:
    """Channels on a server that has none by its settings."""
    counted = select(func.count(), func.sum(channels.c.accepted_sat)).where(channels.c.state.in_(LIVE))
    count, accepted_sat = (await tx.execute(counted)).one()
    if not count:
        return None
    return Finding(
        "money in channels",
        Verdict.WRONG,
        f"{count:,} channels are not closed yet, {accepted_sat:,} sat were paid in them, and by its settings "
        "this server has none: their buyers can take everything back once they expire",
        "Set `enabled = true` under [channels], and `descriptor` under [hosted], until all are closed.",
    )


async def _restored(tx: Transaction) -> Finding | None:
    """Channels that go on with what a backup knew of them."""
    restored = (await tx.execute(select(restores))).one_or_none()
    if restored is None:
        return None
    older = channels.c.opened_at <= restored.restored_at
    count = await tx.scalar(select(func.count()).where(channels.c.state.in_(LIVE), older))
    if not count:
        return None
    return Finding(
        "money in channels",
        Verdict.WARNING,
        f"{count:,} open channels are older than the restore: what was bought in them between backup and "
        "restore is forgotten, and lost to the sellers; their buyers lose nothing",
        "Buyers may go on with them. `bitcache channels close` closes those that nobody uses any more.",
    )


async def _unsettled(tx: Transaction) -> Finding | None:
    """A closed channel has nothing left once its end is deep: else there is a bug."""
    left = await books.balances_like(tx, ledger.channel(""))
    ids = [account.partition(":")[2] for account in left]
    closed = [one for one in await channel_store.load_all(tx, ids) if one.state is ChannelState.CLOSED]
    spends = await channel_store.spends_of(tx, [one.id for one in closed])
    tip_height = await chain_facts.tip_height(tx)
    ended = {one.id: spends[one.id][1] if one.id in spends else one.funding_lost_height for one in closed}
    wrong = sorted(
        channel_id for channel_id, height in ended.items() if block_depth(height, tip_height) > FINAL_DEPTH
    )
    if not wrong:
        return None
    named = ", ".join(
        f"{channel_id} ({left[ledger.channel(channel_id)]:,} msat)"
        for channel_id in wrong[:CHANNELS_NAMED_MAX]
    )
    return Finding(
        "money in channels",
        Verdict.WRONG,
        f"{len(wrong):,} closed channels are not settled: {named}",
        "Run `bitcache doctor --recompute`. If that does not help, keep a backup, and report it.",
    )
