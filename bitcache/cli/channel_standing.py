"""One run of `channel list`: what this computer knows of its channels, and what their servers say."""

from bitcache.api import wire_channels as wire
from bitcache.cli.channel_words import channel_lines, own_facts, view_facts
from bitcache.cli.output import print_json, print_text, printable, say
from bitcache.client import places
from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook, KeptContract, OwnChannel
from bitcache.client.channels import OPEN_STATES, ChannelServer, SeenChannel, reconcile
from bitcache.client.errors import AlreadyRunning, ServerProblem, ServerUnreachable
from bitcache.client.link import check_server

RETRY_FOR_S = 5.0
"""A list is looked at by somebody who waits; what this computer knows is shown without the server, too."""


class List:
    """`await run()` once. `server`: only the channels there. `backup`: show the lines that hold the keys."""

    def __init__(self, server: str | None, *, backup: bool, as_json: bool) -> None:
        self._server = None if server is None else check_server(server)
        self._backup = backup
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())

    async def run(self) -> None:
        views: dict[str, wire.ChannelView] = {}
        contracts = self._book.contracts(self._server)
        for server in dict.fromkeys(contract.server for contract in contracts):
            async with ServerApi(server, retry_for_s=RETRY_FOR_S) as api:
                talk = ChannelServer(api, self._book)
                try:
                    for contract in contracts:
                        if contract.server == server:
                            views |= await self._look(talk, contract)
                except (ServerUnreachable, ServerProblem) as error:
                    self._say(printable(str(error)))
        self._end(contracts, views)

    async def _look(self, talk: ChannelServer, contract: KeptContract) -> dict[str, wire.ChannelView]:
        return {one.own.id: await self._standing(talk, one) for one in await talk.mine(contract)}

    async def _standing(self, talk: ChannelServer, one: SeenChannel) -> wire.ChannelView:
        """Opened, if it only waited for that."""
        if one.view.state not in OPEN_STATES:
            self._book.end(one.own)
            return one.view
        try:
            with self._book.counting(one.own) as count:
                reconcile(one.own, count, one.view, one.record)
            return await talk.open(one.own) if one.view.state == "funded" else one.view
        except AlreadyRunning:
            return one.view  # whoever pays from it just now keeps it in order
        except ServerProblem as problem:
            self._say(f"{one.own.id}: {printable(problem.detail)}")
            return one.view

    def _end(self, contracts: list[KeptContract], views: dict[str, wire.ChannelView]) -> None:
        owns = self._book.channels(self._server)
        empty = [
            contract
            for contract in contracts
            if all(own.contract.payer_key != contract.payer_key for own in owns)
        ]
        if self._as_json:
            print_json(
                {
                    "channels": [self._facts(own, views.get(own.id)) for own in owns],
                    "awaiting_deposit": [
                        {
                            "server": contract.server,
                            "address": contract.address,
                            "expiry_height": contract.expiry_height,
                            **self._backup_facts(contract),
                        }
                        for contract in empty
                    ],
                }
            )
            return
        if not owns and not empty:
            say("No channels yet. Open one: bitcache channel open SERVER --deposit 20000sat --change ADDRESS")
        for own in owns:
            for line in channel_lines(own, self._book.glance(own), views.get(own.id)):
                print_text(line)
            self._print_backup(own.contract)
        for contract in empty:
            print_text(f"{contract.address}\n  {printable(contract.server)}  no deposit there yet")
            self._print_backup(contract)
        if empty:
            say("Paid, and not seen after a minute? bitcache channel found TXID:N --amount SATS")

    def _facts(self, own: OwnChannel, view: wire.ChannelView | None) -> dict[str, object]:
        count = self._book.glance(own)
        return {
            **own_facts(own, count),
            **self._backup_facts(own.contract),
            "server_view": None if view is None else view_facts(view),
        }

    def _backup_facts(self, contract: KeptContract) -> dict[str, str]:
        return {"backup": contract.backup_line} if self._backup else {}

    def _print_backup(self, contract: KeptContract) -> None:
        if self._backup:
            print_text(f"  {contract.backup_line}")

    def _say(self, words: str) -> None:
        if not self._as_json:
            say(words)
