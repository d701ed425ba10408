"""One run of `channel open`: figures, the refund's backup, the address, and what comes to it."""

import asyncio
import shlex
from dataclasses import dataclass

from bitcache.api import wire_channels as wire
from bitcache.cli.channel_words import view_facts
from bitcache.cli.common import confirm, show_count, show_sat, tell_event
from bitcache.cli.output import UsageWrong, console, print_json, print_text, printable, say
from bitcache.cli.payment_words import amount_lines, deposit_uri, qr_lines
from bitcache.client import places
from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook, KeptContract, OwnChannel
from bitcache.client.channel_terms import Figures, OfferedTerms, check_network, figures
from bitcache.client.channels import ChannelServer
from bitcache.client.errors import ServerProblem, WalletRefused
from bitcache.client.purses import NOT_OPENED
from bitcache.client.wallets import BitcoindWallet, WalletAddress
from payments.money import Sat
from payments.segwit_address import script_pubkey_of
from payments.transaction import parse_transaction

POLL_S = 1.0


@dataclass(frozen=True)
class Deposit:
    """What a wallet is to pay."""

    invoice_id: str
    address: str | None
    due_sat: int


class Open:
    """`await run()` once."""

    def __init__(
        self,
        server: str,
        *,
        deposit_sat: Sat,
        change_address: str,
        wallet: WalletAddress | None,
        wait: bool,
        yes: bool,
        as_json: bool,
    ) -> None:
        self._server = server
        self._deposit_sat = deposit_sat
        self._change_address = change_address
        self._wallet = wallet
        self._wait = wait
        self._yes = yes
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())

    async def run(self) -> None:
        """Raises ChannelTermsRefused, AddressInvalid, WalletRefused, and as ChannelServer's calls."""
        async with ServerApi(self._server) as api:
            talk = ChannelServer(api, self._book)
            offered = await talk.terms()
            check_network(offered, self._change_address)
            script_pubkey_of(self._change_address, offered.terms.network)  # a typing error, before any figure
            costs = figures(offered, self._deposit_sat)
            self._show_figures(offered, costs)
            contract = talk.agree(offered, self._change_address)
            # Whoever pays must already hold what takes the deposit back; the server hears of it after that.
            self._show_backup(contract)
            await talk.announce(contract)
            self._show_address(contract)
            paid = None if self._wallet is None else await self._pay(self._wallet, contract)
            opened = await self._opened(talk, contract, paid) if self._wait else []
        self._end(contract, opened)

    def _show_figures(self, offered: OfferedTerms, costs: Figures) -> None:
        if self._as_json:
            tell_event(
                "terms",
                network=offered.terms.network,
                deposit_sat=costs.deposit_sat,
                funding_fee_sat=costs.funding_fee_sat,
                close_fee_sat=costs.close_fee_sat,
                fee_percent=costs.fee_percent,
                low_fee_deposit_sat=costs.low_fee_deposit_sat,
                spendable_sat=costs.spendable_sat,
                refund_height=costs.refund_height,
                refund_days=costs.refund_days,
            )
            return
        say(f"Channel to {printable(self._server)} on {offered.terms.network}; it pays the operator's server")
        say("        for the chunks of all its sellers")
        say(f"Deposit {show_sat(costs.deposit_sat)}, of which {show_sat(costs.spendable_sat)} can be spent")
        say(
            f"Fees    about {show_sat(costs.funding_fee_sat)} to pay in, and at most "
            f"{show_sat(costs.close_fee_sat)} to close, set aside: {costs.fee_percent} % of the deposit"
        )
        if self._deposit_sat < costs.low_fee_deposit_sat:
            say(f"        from a deposit of {show_sat(costs.low_fee_deposit_sat)} on they are under 10 %")
        say(
            f"Refund  from block {costs.refund_height:,} on, in about "
            f"{show_count(costs.refund_days, 'day')}, whatever the server does"
        )
        say(f"Change  what is left goes to {printable(self._change_address)}")

    def _show_backup(self, contract: KeptContract) -> None:
        if self._as_json:
            tell_event("backup", backup=contract.backup_line)
            return
        say("\nBackup, one line. It holds your key: keep it, and keep it secret. This computer has it, too.")
        say(contract.backup_line)

    def _show_address(self, contract: KeptContract) -> None:
        uri = deposit_uri(contract.address, self._deposit_sat)
        if self._as_json:
            tell_event("address", address=contract.address, amount_sat=self._deposit_sat, uri=uri)
            return
        say("")
        for line in amount_lines(self._deposit_sat, contract.address, uri):
            say(line)
        if console.is_terminal:
            for line in qr_lines(uri):
                say(line)
        say("Another deposit to the same address is another channel with the same backup.")

    async def _pay(self, where: WalletAddress, contract: KeptContract) -> str:
        """The outpoint of the deposit."""
        if not self._yes and not confirm(
            f"Pay {show_sat(self._deposit_sat)} and the fee to {contract.address}?"
        ):
            raise WalletRefused(
                f"Nothing was paid. Answer y, add --yes, or pay to {contract.address} by hand."
            )
        wallet = BitcoindWallet(where, contract.network)
        deposit = Deposit(contract.payer_key, contract.address, self._deposit_sat)
        payment = await wallet.prepare(deposit, self._book.payment_path(contract.payer_key))
        await wallet.broadcast(payment)
        if self._as_json:
            tell_event("paid", txid=payment.txid, amount_sat=payment.amount_sat, fee_sat=payment.fee_sat)
        else:
            say(f"Paid {show_sat(payment.amount_sat)} and {show_sat(payment.fee_sat)} fee: {payment.txid}")
        outputs = parse_transaction(bytes.fromhex(payment.transaction)).outputs
        (vout,) = (one.vout for one in outputs if one.script_pubkey == contract.script_pubkey)
        return f"{payment.txid}:{vout}"

    async def _opened(
        self, talk: ChannelServer, contract: KeptContract, paid: str | None
    ) -> list[tuple[OwnChannel, wire.ChannelView]]:
        """The channels of the deposits that came, as soon as one has. `paid`: one of which we know."""
        if not self._as_json:
            say("Waiting for the deposit. `bitcache channel list` goes on if you stop here.")
        told = ""
        while True:
            opened = []
            deposits = {own.id: own.kept.capacity_sat for own in await talk.announce(contract)}
            if paid is not None:
                deposits.setdefault(paid, self._deposit_sat)
            for channel_id, capacity_sat in deposits.items():
                try:
                    opened.append(await talk.found(contract, channel_id, capacity_sat))
                except ServerProblem as problem:
                    if problem.name not in NOT_OPENED:
                        raise
                    if str(problem) != told and not self._as_json:
                        say(printable(problem.detail))
                    told = str(problem)
            if opened:
                return opened
            await asyncio.sleep(POLL_S)

    def _end(self, contract: KeptContract, opened: list[tuple[OwnChannel, wire.ChannelView]]) -> None:
        if self._as_json:
            print_json(
                {
                    "server": contract.server,
                    "network": contract.network,
                    "address": contract.address,
                    "amount_sat": self._deposit_sat,
                    "uri": deposit_uri(contract.address, self._deposit_sat),
                    "backup": contract.backup_line,
                    "expiry_height": contract.expiry_height,
                    "channels": [view_facts(view) for _, view in opened],
                }
            )
            return
        for own, view in opened:
            _show_opened(own, view)
        if not opened:
            print_text(contract.address)
            say(f"Once it is paid: bitcache channel list {shlex.quote(contract.server)}")


class Found:
    """`await run()` once: a deposit that its payer knows of. `address`: of its contract, if several wait."""

    def __init__(self, channel_id: str, *, amount_sat: Sat, address: str | None, as_json: bool) -> None:
        self._channel_id = channel_id
        self._amount_sat = amount_sat
        self._address = address
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())

    async def run(self) -> None:
        """Raises OutpointMalformed, DepositUnproven, UsageWrong, and as ChannelServer's calls."""
        contract = self._contract()
        async with ServerApi(contract.server) as api:
            own, view = await ChannelServer(api, self._book).found(
                contract, self._channel_id, self._amount_sat
            )
        if self._as_json:
            print_json({"channels": [view_facts(view)]})
        else:
            _show_opened(own, view)

    def _contract(self) -> KeptContract:
        paid = {own.contract.payer_key for own in self._book.channels()}
        fit = [
            contract
            for contract in self._book.contracts()
            if (contract.address == self._address if self._address else contract.payer_key not in paid)
        ]
        if len(fit) != 1:
            raise UsageWrong(
                "Say to which address it was paid: --address, as `bitcache channel open` showed it. Those "
                "without a deposit are in `bitcache channel list`."
            )
        return fit[0]


def _show_opened(own: OwnChannel, view: wire.ChannelView) -> None:
    print_text(own.id)
    all_now = view.payable_sat_max >= own.channel.paid_sat_max
    say(
        f"Open, with {show_count(view.confirmations, 'confirmation')}: it pays up to "
        f"{show_sat(min(view.payable_sat_max, own.channel.paid_sat_max))} now"
        + ("." if all_now else ", and more with each block.")
    )
