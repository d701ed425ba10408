"""Is this service fit to take money? Each check says what it found and, if that is wrong, how to mend it."""

import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from sqlalchemy import text

from bitcache.config import Config, browsers_decrypt_at, missing_cookie_file
from bitcache.damage import damaged_files
from bitcache.db import migrate
from bitcache.errors import DatabaseDamaged, MasterKeyUnusable
from bitcache.master_key import read_master_key
from bitcache.services import Services
from payments import chain_facts, channel_store, restores, unassigned
from payments.bitcoind import Bitcoind
from payments.errors import BlockUnavailable, NodeMisconfigured, NodeRefused, NodeUnavailable
from payments.node_fitness import NodeInfo, fitness
from payments.ports import Transaction
from payments.rescan import fetch_pruned

CLOCK_OFFSET_S_MAX = 60
RECOMPUTE_BATCH = 200
FILES_NAMED_MAX = 10
FAULTS_NAMED_MAX = 3


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    verdict: Verdict
    words: str
    """What was found."""
    mend: str = ""
    """What to do about it; empty when it is well."""


def check_master_key(config: Config) -> Finding:
    try:
        read_master_key(config.master_key)
    except MasterKeyUnusable as exc:
        return Finding("master key", Verdict.WRONG, "unusable", str(exc))
    return Finding("master key", Verdict.OK, f"{config.master_key}, for its owner alone")


def check_public_url(config: Config) -> Finding:
    if browsers_decrypt_at(config.public_url):
        return Finding("public_url", Verdict.OK, config.public_url)
    return Finding(
        "public_url",
        Verdict.WARNING,
        f"{config.public_url} is neither https nor localhost",
        "Put a proxy with a certificate before the server and set `public_url` to its https address: "
        "browsers decrypt nowhere else.",
    )


def check_disk(config: Config) -> Finding:
    folder = _existing(config.blobs)
    free_bytes = shutil.disk_usage(folder).free
    words = f"{free_bytes / 2**30:.1f} GiB free at {config.blobs}"
    if free_bytes <= config.disk_reserve_bytes:
        return Finding(
            "disk",
            Verdict.WRONG,
            words,
            f"Uploads are refused below the reserve of {config.disk_reserve_bytes / 2**30:.1f} GiB: "
            "free some space, or lower `disk_reserve_bytes`.",
        )
    return Finding("disk", Verdict.OK, words)


async def check_database(services: Services) -> Finding:
    try:
        differences = await migrate.differences(services.database)
        damage = await services.database.read(_sqlite_damage) if services.database.is_sqlite else []
    except DatabaseDamaged:
        damage = ["it is no database at all"]
    except Exception as exc:  # whatever driver: it cannot be used
        return Finding(
            "database",
            Verdict.WRONG,
            f"cannot be read: {type(exc).__name__}",
            f"See that {services.database.url!r} exists and may be opened.",
        )
    if damage:
        return Finding(
            "database",
            Verdict.WRONG,
            f"its file is damaged: {'; '.join(damage)}",
            "Stop the server and look at the disk's health. Restore your backup with `bitcache restore`: it "
            "finds what was paid since. Without one, copy the file and try `sqlite3 FILE .recover`.",
        )
    if differences:
        return Finding(
            "database",
            Verdict.WRONG,
            "its tables are not those of this version",
            "Start the server once: it migrates the database.",
        )
    return Finding("database", Verdict.OK, f"{services.database.url.get_backend_name()}, up to date")


async def _sqlite_damage(tx: Transaction) -> list[str]:
    """SQLite's own words for the first few faults in its file; none for a whole one."""
    found = list(await tx.scalars(text(f"PRAGMA quick_check({FAULTS_NAMED_MAX})")))
    return [] if found == ["ok"] else [" ".join(fault.split()) for fault in found]


async def check_node(services: Services) -> AsyncIterator[Finding]:
    """All that concerns the bitcoin node; only the first finding when it does not answer."""
    config, node = services.config, services.node
    if (cookie := missing_cookie_file(config)) is not None:
        yield Finding(
            "node",
            Verdict.WRONG,
            f"its cookie file {cookie} is not there, or not for this user",
            "Start the node, which writes it, or correct `rpc_cookie_file` under [node]: it is in the node's "
            "data folder, on other chains than mainnet one folder deeper (`signet/.cookie`).",
        )
        return
    try:
        info = await node.node_info()
        network = await node.network_info()
    except (NodeUnavailable, NodeMisconfigured, NodeRefused) as exc:
        yield Finding("node", Verdict.WRONG, f"no answer from {config.node.rpc_url}", str(exc))
        return
    verdict = fitness(info, services.clock(), config.network)
    words = f"{network.user_agent} on {info.chain.chain}, block {info.chain.blocks}"
    yield (
        Finding("node", Verdict.OK, words)
        if verdict.usable
        else Finding("node", Verdict.WRONG, words, verdict.words)
    )
    yield _clock_finding(network.time_offset_s)
    yield await _rest_finding(node, info)
    yield await _events_finding(node, config)
    yield await _wallets_finding(node)
    yield await _pruning_finding(services, info)


async def check_watcher(services: Services) -> Finding:
    state = await services.database.read(chain_facts.watcher_state_of)
    if state is None:
        return Finding("watcher", Verdict.WARNING, "has never run", "Start the server: bitcache serve")
    age_s = services.clock() - state.beat_at
    if state.trouble is not None:
        return Finding("watcher", Verdict.WRONG, f"in trouble {age_s} s ago", state.trouble)
    if age_s > chain_facts.OUTAGE_S_MIN:
        return Finding(
            "watcher", Verdict.WARNING, f"last ran {age_s} s ago", "Start the server: bitcache serve"
        )
    return Finding("watcher", Verdict.OK, f"ran {age_s} s ago")


async def check_files(services: Services) -> Finding:
    """Those found damaged before, by a scrub or by a buyer. Nothing is read."""
    damaged = await services.database.read(damaged_files)
    if not damaged:
        return Finding("files", Verdict.OK, "none is known to be damaged")
    named = ", ".join(file.file_id for file in damaged[:FILES_NAMED_MAX])
    more = f" and {len(damaged) - FILES_NAMED_MAX} more" if len(damaged) > FILES_NAMED_MAX else ""
    return Finding(
        "files",
        Verdict.WRONG,
        f"{len(damaged)} damaged: {named}{more}",
        f"They are not sold. Put them back from your backup into {services.config.blobs}, then let "
        "`bitcache doctor --scrub --file ID` look at each again; look at the disk's health too.",
    )


async def rescan(services: Services) -> int:
    """Have the node fetch pruned blocks that were never scanned; how many. The server's watcher scans them.

    Raises PeersHaveNotBlock, and what the node raises.
    """
    scanned_height = await services.database.read(restores.searched_above)
    if scanned_height is None:
        return 0
    return len([height async for height in fetch_pruned(services.node, scanned_height=scanned_height)])


async def recompute(services: Services) -> tuple[int, int]:
    """Derive every invoice's status and bookings again from the facts; (invoices, those that changed).

    Those of channels too, however deep their end is.
    """
    ids = await services.database.read(services.registry.all_ids)
    changed = 0
    for start in range(0, len(ids), RECOMPUTE_BATCH):
        batch = ids[start : start + RECOMPUTE_BATCH]
        changed += await services.database.write(partial(_recompute, services=services, ids=batch))
    changed += await services.database.write(partial(unassigned.book, now=services.clock()))
    if services.channel_bookkeeping is not None:
        follow = services.channel_bookkeeping.follower.follow_these
        ever = await services.database.read(channel_store.all_ids)
        for start in range(0, len(ever), RECOMPUTE_BATCH):
            some = ever[start : start + RECOMPUTE_BATCH]
            await services.database.write(partial(follow, channel_ids=some, now=services.clock()))
    return len(ids), changed


async def _recompute(tx: Transaction, *, services: Services, ids: list[str]) -> int:
    return await services.registry.refresh(tx, ids, now=services.clock())


def _clock_finding(offset_s: int) -> Finding:
    if abs(offset_s) > CLOCK_OFFSET_S_MAX:
        return Finding(
            "clock",
            Verdict.WARNING,
            f"{-offset_s:+d} s against the node's peers",
            "Deadlines are judged by it: turn on time synchronisation (NTP).",
        )
    return Finding("clock", Verdict.OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


async def _rest_finding(node: Bitcoind, info: NodeInfo) -> Finding:
    try:
        await node.raw_block(info.chain.best_hash)
    except (NodeMisconfigured, BlockUnavailable, NodeUnavailable) as exc:
        return Finding("REST", Verdict.WRONG, "blocks cannot be had", str(exc))
    return Finding("REST", Verdict.OK, "serves blocks")


async def _events_finding(node: Bitcoind, config: Config) -> Finding:
    published = [note.address for note in await node.zmq_notifications() if note.type == "pubsequence"]
    if not published:
        return Finding(
            "ZMQ",
            Verdict.WARNING,
            "the node publishes no `sequence` events: payments are seen only at the next poll",
            "Set `zmqpubsequence=tcp://127.0.0.1:28332` in its bitcoin.conf and restart it.",
        )
    if config.node.zmq_sequence_url is None:
        return Finding(
            "ZMQ",
            Verdict.WARNING,
            "the node publishes events, and this service does not listen",
            f'Set `zmq_sequence_url = "{published[0]}"` under [node].',
        )
    return Finding("ZMQ", Verdict.OK, config.node.zmq_sequence_url)


async def _wallets_finding(node: Bitcoind) -> Finding:
    wallets = await node.loaded_wallets()
    if wallets:
        return Finding(
            "wallets",
            Verdict.WARNING,
            f"the node has {len(wallets)} open: blocks are heard of later, and money lies on this machine",
            "Set `disablewallet=1` in its bitcoin.conf, or keep wallets on another node.",
        )
    return Finding("wallets", Verdict.OK, "none open on the node")


async def _pruning_finding(services: Services, info: NodeInfo) -> Finding:
    scanned = await services.database.read(chain_facts.tip)
    lowest = info.chain.prune_height
    if lowest is not None and scanned is not None and scanned.height + 1 < lowest:
        return Finding(
            "pruning",
            Verdict.WRONG,
            f"the node keeps blocks from {lowest}, the last one scanned here is {scanned.height}",
            "`bitcache doctor --rescan` has the node fetch those in between from its peers. Give it more to "
            "keep (`prune` in its bitcoin.conf).",
        )
    return Finding("pruning", Verdict.OK, "no block is missing")


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
