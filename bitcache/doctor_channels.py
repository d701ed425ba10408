"""The doctor's questions about payment channels: can they be closed, and are they closed in time?"""

from functools import partial

from bitcache import channel_operations, channel_seed
from bitcache.backup import key_backed_up_at
from bitcache.config import Config
from bitcache.doctor import Finding, Verdict
from bitcache.services import Services
from payments.channel_close_plan import LAST_BLOCKS
from payments.channel_errors import ChannelSeedUnusable


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
