"""The server as one process: every task in one task group, the HTTP site among them.

An unreachable node is a state, not an error: the server starts and serves without it. Only a bug ends the
process.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from bitcache import config as configuration
from bitcache.api import parser_log
from bitcache.api.connection import Site
from bitcache.api.connections import Connections, count_max
from bitcache.api.middleware import add_headers, guard
from bitcache.api.routing import SERVICES, add_routes
from bitcache.api.table import ROUTES
from bitcache.channel_operations import unsettled
from bitcache.channels import Channels
from bitcache.config import Config
from bitcache.db.engine import DATABASE_TROUBLE
from bitcache.errors import ConfigInvalid, ListenRefused, WrongNetwork
from bitcache.role import Role
from bitcache.services import Services, open_services
from bitcache.setup import prepare_database
from payments.errors import NodeMisconfigured, NodeUnavailable
from payments.node_fitness import CHAIN_OF_NETWORK

log = logging.getLogger(__name__)

DRAIN_S = 30
"""How long answers under way may take to end at shutdown."""
HEADER_BYTES_MAX = 16 * 1024
HEADERS_MAX = 64
LINGER_S = 10
"""So long the rest of a refused body is read on, or its sender would not hear the refusal."""
READ_BUFFER_BYTES = 512 * 1024
"""Of a body, before its sender is paused: more pauses cost more than the memory."""


def make_app(services: Services) -> web.Application:
    """The HTTP application. Its routes set their own limits on bodies."""
    app = web.Application(middlewares=[guard])
    app[SERVICES] = services
    app.on_response_prepare.append(add_headers)
    add_routes(app, ROUTES)
    return app


async def serve(config: Config, *, role: Role = Role.ALL, ready: Callable[[], None] = lambda: None) -> None:
    """Run until SIGINT or SIGTERM, then finish what is under way. `ready` is called once it serves."""
    configuration.check_channels(config)
    for warning in configuration.warnings(config):
        log.warning("%s", warning)
    async with open_services(config, with_channels=role is not Role.WATCHER) as services:
        await prepare_database(config, services.database)
        if not config.metered_sales and await services.database.read(unsettled):
            raise ConfigInvalid(
                "[channels]: some payment channels are not closed, or their close is not deep yet, and "
                "nobody would see to them: set `enabled = true`, and `descriptor` under [hosted]. "
                "`bitcache channels close --all` closes them; `bitcache channels list` shows what is left."
            )
        with _stop_on_signals(services.stopping):
            await run(services, role=role, ready=ready)


async def run(services: Services, *, role: Role = Role.ALL, ready: Callable[[], None] = lambda: None) -> None:
    """Run every loop of `role` until `services.stopping` is set."""
    await services.feed.start()
    try:
        await _run_tasks(services, role, ready)
    except* (WrongNetwork, ListenRefused) as group:
        raise group.exceptions[0] from None


async def _run_tasks(services: Services, role: Role, ready: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(services.feed.run()), tasks.create_task(services.grants.run())]
        if role is not Role.WEB:
            loops.append(tasks.create_task(_watch(services)))
            loops.append(tasks.create_task(_check_network(services)))
            loops.append(tasks.create_task(services.sweep.run()))
            loops.append(tasks.create_task(services.payout_runner.run()))
            loops.append(tasks.create_task(services.reconciling.run()))
            if services.channel_bookkeeping is not None:
                loops.append(tasks.create_task(services.channel_bookkeeping.run()))
        if role is Role.WATCHER:
            ready()
            await services.stopping.wait()
        else:
            loops.append(tasks.create_task(services.views.run()))
            if services.channels is not None:
                loops.append(tasks.create_task(services.channels.registry.run()))
                loops.append(tasks.create_task(_close_channels(services.channels)))
            limits = services.config.limits
            connections = Connections(
                limits,
                services.config.proxies,
                count_max=count_max(limits.connections),
                monotonic=services.monotonic,
            )
            loops.append(tasks.create_task(connections.run()))
            loops.append(tasks.create_task(services.streams.run()))
            async with _site(services, connections):
                ready()
                await services.stopping.wait()
                services.streams.end()
        for loop in loops:
            loop.cancel()


async def _watch(services: Services) -> None:
    """Follow the node for ever. A database that takes nothing for a while, its disk being full, ends nothing.

    Meanwhile the heartbeat grows old, so no invoice is given; what is paid can be downloaded.
    """
    node = services.config.node
    while True:
        try:
            await services.watcher.run(
                events_endpoint=node.zmq_sequence_url, poll_interval_s=node.poll_interval_s
            )
        except* DATABASE_TROUBLE as group:
            log.error("what the node sees could not be written down: %s", group.exceptions[0])
        await asyncio.sleep(node.poll_interval_s)


async def _close_channels(channels: Channels) -> None:
    """As `_watch`: closes that wait are found again."""
    while True:
        try:
            await channels.closer.run()
        except DATABASE_TROUBLE as trouble:
            log.error("closes of channels could not be written down: %s", trouble)


async def _check_network(services: Services) -> None:
    """Refuse to go on with a node of another chain, as soon as it answers. Raises WrongNetwork."""
    wanted = services.config.network
    while True:
        try:
            chain = (await services.node.chain_info()).chain
        except (NodeUnavailable, NodeMisconfigured):
            await asyncio.sleep(services.config.node.poll_interval_s)
            continue
        if chain != CHAIN_OF_NETWORK[wanted]:
            raise WrongNetwork(
                f"The bitcoin node is on {chain}, the configuration says network = {wanted!r}. "
                "Point rpc_url at the right node, or change `network`."
            )
        return


@asynccontextmanager
async def _site(services: Services, connections: Connections) -> AsyncIterator[None]:
    """Take requests inside the `async with`; at its end take no more and let those under way finish."""
    config = services.config
    runner = web.AppRunner(make_app(services), shutdown_timeout=DRAIN_S)
    await runner.setup()
    site = Site(
        runner,
        connections,
        config.listen_host,
        config.listen_port,
        access_log=None,
        logger=parser_log.logger,
        keepalive_timeout=config.limits.idle_s,
        read_bufsize=READ_BUFFER_BYTES,
        max_line_size=HEADER_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
        max_headers=HEADERS_MAX,
        lingering_time=LINGER_S,
        # Bodies are taken as they come (`bodies.read_piece`): unpacking one that is broken leaves its
        # connection without a word for ten seconds, and a small one may unpack to anything.
        auto_decompress=False,
    )
    try:
        await _listen(site, config)
        yield
    finally:
        await runner.cleanup()


async def _listen(site: Site, config: Config) -> None:
    try:
        await site.start()
    except OSError as exc:
        raise ListenRefused(
            f"Cannot listen on {config.listen} ({exc.strerror}). Is another server running there? "
            "Stop it, or change `listen`."
        ) from exc


@contextmanager
def _stop_on_signals(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
