"""How a buyer's channel ends, or comes back: one run of `channel close`, `refund` and `recover` each."""

from bitcache.api import wire_channels as wire
from bitcache.cli.channel_words import channel_lines, own_facts, view_facts
from bitcache.cli.common import confirm, show_count, show_sat
from bitcache.cli.output import CommandFailed, UsageWrong, print_json, print_text, printable, say
from bitcache.cli.price_words import show_msat
from bitcache.client import places
from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook, OwnChannel
from bitcache.client.channel_recovery import recovered
from bitcache.client.channel_refund import Refund as MadeRefund
from bitcache.client.channel_refund import cheap_refund, network_of_address, refund
from bitcache.client.channels import OPEN_STATES, ChannelServer, SeenChannel, close_quote, reconcile
from bitcache.client.errors import ServerAnswerWrong, ServerProblem, ServerUnreachable
from bitcache.client.link import check_server
from payments.channel_errors import ChannelError, OutpointMalformed
from payments.channel_script import Channel, parse_backup_line, parse_channel_id
from payments.money import Sat
from payments.segwit_address import address_of, script_pubkey_of

ASK_FOR_S = 5.0


class Close:
    """`await run()` once. `which`: a channel, a server, or None where there is only one channel."""

    def __init__(self, which: str | None, *, yes: bool, as_json: bool) -> None:
        self._which = which
        self._yes = yes
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())

    async def run(self) -> None:
        """Raises CloseQuoteRefused, AlreadyRunning, CommandFailed, and as ChannelServer's calls."""
        closed = []
        for own in self._chosen():
            async with ServerApi(own.contract.server) as api:
                closed.append(await self._close(ChannelServer(api, self._book), own))
        if self._as_json:
            print_json({"channels": [view_facts(view) for view in closed]})

    def _chosen(self) -> list[OwnChannel]:
        live = [own for own in self._book.channels() if not own.kept.ended]
        if self._which is None:
            if not live:
                raise CommandFailed("You have no open channel.")
            if len(live) != 1:
                raise UsageWrong("Say which channel, or which server: `bitcache channel list` shows them.")
            return live
        if _is_channel_id(self._which):
            return [self._book.channel(self._which)]
        if "://" not in self._which:
            raise _no_channel_id(self._which, "server")
        server = check_server(self._which)
        chosen = [own for own in live if own.contract.server == server]
        if not chosen:
            raise CommandFailed(f"You have no open channel of {server}.")
        return chosen

    async def _close(self, talk: ChannelServer, own: OwnChannel) -> wire.ChannelView:
        with self._book.counting(own) as count:
            one = await _seen(talk, own)
            view = one.view
            if view.state not in OPEN_STATES:
                self._book.end(own)
                self._say(f"{own.id} is {view.state} already.")
                return view
            reconcile(own, count, view, one.record)
            quote = close_quote(own, count, view)
            if quote is None:
                raise CommandFailed(
                    f"The server agrees to no close of {own.id} now. It closes it alone before block "
                    f"{own.contract.expiry_height:,}, with what you signed; if it never does, `bitcache "
                    "channel refund` takes the deposit back from then on. Or try again later."
                )
            change_address = address_of(own.channel.contract.change_script_pubkey, own.contract.network)
            self._say(f"Channel {own.id}: {show_sat(own.channel.capacity_sat)}")
            if count.outstanding:
                self._say(f"  {show_count(count.outstanding, 'chunk')} asked for did not come")
            self._say(f"  {show_sat(quote.paid_sat)} to the server, {show_sat(quote.fee_sat)} network fee")
            self._say(f"  {show_sat(quote.change_sat)} back to {change_address}")
            if not self._yes and not confirm("Close it?"):
                raise CommandFailed("It stays open. Answer y, or add --yes.")
            view = await talk.close(own, quote)
            self._book.end(own)
        if not self._as_json:
            print_text(own.id)
            self._say("The server closes it now; `bitcache channel list` shows the transaction.")
        return view

    def _say(self, words: str) -> None:
        if not self._as_json:
            say(words)


class Refund:
    """`await run()` once. `which`: a channel of this computer, or a backup line."""

    def __init__(
        self,
        which: str,
        *,
        to: str,
        outpoint: str | None,
        amount_sat: Sat | None,
        server: str | None,
        feerate_sat_vb: int | None,
        yes: bool,
        as_json: bool,
    ) -> None:
        if as_json and not yes and feerate_sat_vb is None:
            raise UsageWrong(
                "With --json nobody can be asked: add --yes, or say what it may cost: --feerate."
            )
        self._which = which
        self._to = to
        self._outpoint = outpoint
        self._amount_sat = amount_sat
        self._server = None if server is None else check_server(server)
        self._feerate_sat_vb = feerate_sat_vb
        self._yes = yes
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())

    async def run(self) -> None:
        """Raises AddressInvalid, RefundTooSmall, BackupLineInvalid, ChannelUnknown, CommandFailed."""
        if _is_channel_id(self._which):
            own = self._book.channel(self._which)
            channel, payer, network = own.channel, own.contract.payer, own.contract.network
            server: str | None = own.contract.server
            if self._amount_sat is not None:
                channel = Channel(channel.contract, channel.outpoint, self._amount_sat)
        else:
            if not self._which.strip().startswith("wsh("):
                raise _no_channel_id(self._which, "backup line")
            network = network_of_address(self._to)
            if self._outpoint is None or self._amount_sat is None:
                raise UsageWrong(
                    "With a backup line, say which deposit: --outpoint TXID:N --amount SATS, as your wallet "
                    "or an explorer shows it."
                )
            backup = parse_backup_line(self._which, network)
            payer, server = backup.payer, self._server
            channel = Channel(backup.contract, parse_channel_id(self._outpoint), self._amount_sat)
        script_pubkey = script_pubkey_of(self._to, network)
        if self._feerate_sat_vb is not None:
            made = refund(channel, payer, script_pubkey, feerate_sat_kvb=self._feerate_sat_vb * 1_000)
        else:
            told_sat_kvb = await self._told_sat_kvb(server)
            made = cheap_refund(channel, payer, script_pubkey, told_sat_kvb=told_sat_kvb)
            self._ask(channel, made, told_sat_kvb)
        refusal = await self._send(server, channel.id, made.raw)
        self._end(channel, made, refusal)

    async def _told_sat_kvb(self, server: str | None) -> int | None:
        if server is None:
            return None
        try:
            async with ServerApi(server, retry_for_s=ASK_FOR_S) as api:
                return (await ChannelServer(api, self._book).terms()).feerate_sat_kvb
        except (ServerUnreachable, ServerProblem, ServerAnswerWrong, ChannelError):
            return None

    def _ask(self, channel: Channel, made: MadeRefund, told_sat_kvb: int | None) -> None:
        """Raises CommandFailed."""
        if not self._as_json:
            say(f"Deposit {channel.id}: {show_sat(channel.capacity_sat)}")
            say(f"  {show_sat(made.fee_sat)} network fee, at {made.feerate_sat_kvb / 1_000:g} sat/vB")
            say(f"  {show_sat(made.amount_sat)} to {printable(self._to)}")
            if told_sat_kvb is not None and told_sat_kvb > made.feerate_sat_kvb:
                say(f"  The server calls {told_sat_kvb / 1_000:g} sat/vB usual: to pay more, add --feerate.")
        if not self._yes and not confirm("Take it back?"):
            raise CommandFailed("Nothing was sent. Answer y, add --yes, or say what it may cost: --feerate.")

    async def _send(self, server: str | None, channel_id: str, raw: bytes) -> str | None:
        """None once it is sent; else why it is not."""
        if server is None:
            return "no server was named"
        try:
            async with ServerApi(server, retry_for_s=ASK_FOR_S) as api:
                await ChannelServer(api, self._book).refund(channel_id, raw)
        except ServerProblem as problem:
            return problem.detail or problem.name
        except (ServerUnreachable, ServerAnswerWrong) as error:
            return str(error)
        return None

    def _end(self, channel: Channel, made: MadeRefund, refusal: str | None) -> None:
        """`refusal`: why it was not sent."""
        expiry_height = channel.contract.expiry_height
        if self._as_json:
            print_json(
                {
                    "channel_id": channel.id,
                    "transaction": made.raw.hex(),
                    "fee_sat": made.fee_sat,
                    "amount_sat": made.amount_sat,
                    "sent": refusal is None,
                    "reason": refusal,
                    "expiry_height": expiry_height,
                }
            )
            return
        print_text(made.raw.hex())
        if refusal is None:
            say("Sent. Once a block has it, the deposit is yours again.")
            return
        say(f"Not sent: {printable(refusal)}")
        if "missingorspent" in refusal:
            say("A close spent it, which brings your change, or a refund; or there is no such deposit.")
            return
        if "insufficient fee" in refusal:
            say("A close or a refund of it waits for a block already: let it be, or give more --feerate.")
            return
        say(f"No node takes it before block {expiry_height:,} is there. From then on run this again, or any")
        say("node takes it, unless a close by the server has spent the deposit:")
        say("  bitcoin-cli sendrawtransaction HEX")


class Recover:
    """`await run()` once."""

    def __init__(self, server: str, backup_line: str, *, as_json: bool) -> None:
        self._server = server
        self._backup_line = backup_line
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())

    async def run(self) -> None:
        """Raises BackupLineInvalid, ServerAnswerWrong, CommandFailed, and as ChannelServer's calls."""
        async with ServerApi(self._server) as api:
            talk = ChannelServer(api, self._book)
            seen = await recovered(talk, self._book, api.base_url, self._backup_line)
        if not seen:
            raise CommandFailed(
                "The server knows no channel of this key. From its expiry on, `bitcache channel refund` "
                "takes the deposit back with the same line."
            )
        self._end(seen)

    def _end(self, seen: list[SeenChannel]) -> None:
        if self._as_json:
            print_json({"channels": [own_facts(one.own, self._book.glance(one.own)) for one in seen]})
            return
        for one in seen:
            for line in channel_lines(one.own, self._book.glance(one.own), one.view):
                print_text(line)
        spent_msat = sum(one.view.spent_msat for one in seen)
        say(f"Recovered; {show_msat(spent_msat)} of it were spent. It is saved on this computer now.")


async def _seen(talk: ChannelServer, own: OwnChannel) -> SeenChannel:
    for one in await talk.mine(own.contract):
        if one.own.id == own.id:
            return one
    raise ServerAnswerWrong(f"The server does not know the channel {own.id} any more.")


def _no_channel_id(text: str, other: str) -> UsageWrong:
    return UsageWrong(
        f"{printable(text)!r} is no {other} and no whole channel id: `bitcache channel list` shows those."
    )


def _is_channel_id(text: str) -> bool:
    try:
        parse_channel_id(text)
    except OutpointMalformed:
        return False
    return True
