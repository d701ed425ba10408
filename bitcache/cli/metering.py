"""`get` of what is sold per chunk: price and channel shown, asked once, then a meter that runs along."""

import shlex
import time
from contextlib import ExitStack

from bitcache.api import wire
from bitcache.cli.common import (
    RichProgress,
    confirm,
    refuse_to_ask,
    show_count,
    show_sat,
    show_size,
    tell_event,
)
from bitcache.cli.output import console, print_json, print_text, printable, say
from bitcache.cli.price_words import show_msat
from bitcache.client import places
from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook
from bitcache.client.channel_terms import low_fee_deposit_sat
from bitcache.client.channels import ChannelServer
from bitcache.client.errors import (
    ChannelMissing,
    ClientError,
    PriceRose,
    ServerAnswerWrong,
    SpendingLimitReached,
    WalletRefused,
)
from bitcache.client.link import Link
from bitcache.client.meter import Meter
from bitcache.client.metered_download import MeteredDownload
from bitcache.client.parcel import OpenedParcel
from bitcache.client.purses import Purse, open_purses
from bitcache.client.target import Target
from payments.channel_errors import ChannelError
from payments.channel_script import CHANGE_SAT_MIN
from payments.money import MSAT_PER_SAT, Msat, Sat, sat_rounded_up


class MeteredGet:
    """`await run()` once."""

    def __init__(
        self,
        api: ServerApi,
        link: Link,
        offer: wire.OfferView,
        parcel: OpenedParcel,
        target: Target,
        *,
        spend_max_sat: Sat | None,
        wait: bool,
        yes: bool,
        force: bool,
        as_json: bool,
    ) -> None:
        assert offer.metered is not None
        refuse_to_ask(yes=yes, json_output=as_json, why=" to pay")
        self._api = api
        self._link = link
        self._offer = offer
        self._price_msat = offer.metered.amount_msat
        self._parcel = parcel
        self._target = target
        self._spend_max_msat = None if spend_max_sat is None else spend_max_sat * MSAT_PER_SAT
        self._wait = wait
        self._yes = yes
        self._force = force
        self._as_json = as_json
        self._book = ChannelBook(places.channels_folder())
        self._server = ChannelServer(api, self._book)

    async def run(self) -> None:
        """Raises ChannelMissing, SpendingLimitReached, PriceRose, and as `MeteredDownload.run`."""
        file_ids = [file.file_id for file in self._parcel.files]
        with ExitStack() as stack:
            purses = await open_purses(stack, self._server, self._book, self._api.base_url, file_ids)
            self._check_price(purses)
            to_pay_msat = self._to_pay_msat(purses)
            await self._check_left(purses, to_pay_msat)
            self._ask(purses, to_pay_msat)
            progress = MeterProgress(as_json=self._as_json)
            meter = progress.meter = Meter(
                self._server,
                purses,
                price_msat=self._price_msat,
                spend_max_msat=self._spend_max_msat,
                wait=self._wait,
                tell=self._tell,
            )
            download = MeteredDownload(
                self._api,
                self._link,
                self._parcel,
                self._target,
                meter,
                progress=progress,
                force=self._force,
            )
            try:
                with progress:
                    paths = await download.run()
            except SpendingLimitReached as limit:
                self._end_at_limit(meter, limit)
                raise
            except BaseException:
                self._say_meter(meter)
                raise
        self._say_meter(meter)
        if self._as_json:
            files = [
                {"path": str(path), "size_bytes": file.plain_bytes}
                for path, file in zip(paths, self._parcel.files, strict=True)
            ]
            print_json({**self._facts(meter), "status": "done", "files": files})
            return
        for path in paths:
            print_text(printable(str(path)))
        say("Downloaded, verified and decrypted.")

    def _check_price(self, purses: list[Purse]) -> None:
        """Raises PriceRose, ServerAnswerWrong."""
        assert self._offer.metered is not None
        chunks = sum(file.chunk_count for file in self._parcel.files)
        if chunks * self._price_msat > self._offer.metered.whole_msat:
            raise ServerAnswerWrong(
                f"The whole costs {show_msat(self._offer.metered.whole_msat)}, says the server, and its "
                f"{show_count(chunks, 'chunk')} come to {show_msat(chunks * self._price_msat)}. Nothing was "
                "paid."
            )
        if self._yes and self._spend_max_msat is None:
            # Nobody looks at the price: the one that was agreed to first holds.
            agreed_msat = max(
                (purse.count.price_msat_max(file.file_id) for purse in purses for file in self._parcel.files),
                default=0,
            )
            if 0 < agreed_msat < self._price_msat:
                raise PriceRose(agreed_msat=agreed_msat, asked_msat=self._price_msat)

    def _to_pay_msat(self, purses: list[Purse]) -> Msat:
        """What is not paid yet, less what --max-spend forbids."""
        unpaid = sum(
            not any(purse.count.is_asked(file.file_id, index) for purse in purses)
            for file in self._parcel.files
            for index in range(file.chunk_count)
        )
        whole_msat = unpaid * self._price_msat
        return Msat(whole_msat if self._spend_max_msat is None else min(whole_msat, self._spend_max_msat))

    async def _check_left(self, purses: list[Purse], to_pay_msat: Msat) -> None:
        """Raises ChannelMissing, which says what to open."""
        needed_sat = sat_rounded_up(to_pay_msat)
        left_sat = sum(purse.left_sat for purse in purses)
        # Those that can pay all of it go first.
        purses.sort(key=lambda purse: purse.left_sat < needed_sat)
        if needed_sat <= left_sat:
            return
        deposit_sat, low_fee_sat = needed_sat, 0
        try:
            offered = await self._server.terms()
            deposit_sat = Sat(needed_sat + offered.terms.close_fee_sat + CHANGE_SAT_MIN)
            deposit_sat = max(deposit_sat, offered.terms.deposit_min_sat)
            low_fee_sat = low_fee_deposit_sat(offered)
        except (ClientError, ChannelError):
            pass  # without its terms what we say is less exact
        there = (
            f"Your channels of this server have {show_sat(left_sat)} left; {show_sat(needed_sat)} are due."
            if purses
            else f"You have no open channel of this server; {show_sat(needed_sat)} are due."
        )
        low = f" From {show_sat(low_fee_sat)} on, fees are under 10 % of it." if low_fee_sat else ""
        limit = " Or set --max-spend." if left_sat else ""
        raise ChannelMissing(
            f"{there} Open one, with a deposit of {show_sat(deposit_sat)} or more: bitcache channel open "
            f"{shlex.quote(self._api.base_url)} --deposit {deposit_sat}sat --change ADDRESS.{low}{limit}"
        )

    def _ask(self, purses: list[Purse], to_pay_msat: Msat) -> None:
        whole = self._offer.metered
        assert whole is not None
        if not self._as_json:
            say(f"Whole   {show_msat(whole.whole_msat)} for {show_count(whole.chunks, 'chunk')} of 1 MiB")
            say("Goes to the operator of the server, who owes it to the seller, as each chunk comes")
            if to_pay_msat != whole.whole_msat:
                paid = self._spend_max_msat is None
                say(f"To pay  {show_msat(to_pay_msat)}{': the rest was paid before' if paid else ' at most'}")
        if not to_pay_msat:
            return
        purse = purses[0]
        if not self._as_json:
            say(f"Channel {purse.own.id}, {show_sat(purse.left_sat)} left")
        if not self._yes and not confirm(f"Pay up to {show_msat(to_pay_msat)} from it?"):
            raise WalletRefused("Nothing was paid. Answer y, or add --yes.")

    def _end_at_limit(self, meter: Meter, limit: SpendingLimitReached) -> None:
        self._say_meter(meter)
        if self._as_json:
            tell_event("stopped", reason=str(limit), **_meter_facts(meter))

    def _say_meter(self, meter: Meter) -> None:
        if self._as_json:
            tell_event("meter", **_meter_facts(meter))
        else:
            say(meter_words(meter))

    def _tell(self, words: str) -> None:
        if self._as_json:
            tell_event("channel", words=words)
        else:
            say(words)

    def _facts(self, meter: Meter) -> dict[str, object]:
        return {
            "title": self._parcel.metadata.title,
            "metered": {**_meter_facts(meter), "channels": [purse.own.id for purse in meter.purses]},
        }


class MeterProgress(RichProgress):
    """The bar of a download, with what it costs in front of it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__(as_json=as_json)
        self.meter: Meter | None = None
        self._started_at = time.monotonic()

    def start(self, what: str, total_bytes: int) -> None:
        super().start(what, total_bytes)
        self._started_at = time.monotonic()

    def advance(self, length_bytes: int) -> None:
        if self.meter is None or self._task is None:
            return  # the one chunk that brought the key, which the bar counts once it is there
        self._bar.update(self._task, description=meter_words(self.meter))
        super().advance(length_bytes)

    def _tell(self) -> None:
        assert self.meter is not None
        if self._as_json:
            rate = self._done_bytes / max(time.monotonic() - self._started_at, 0.001)
            tell_event(
                "meter",
                bytes=self._done_bytes,
                of_bytes=self._total_bytes,
                bytes_per_s=round(rate),
                **_meter_facts(self.meter),
            )
            return
        done = f"{show_size(self._done_bytes)} of {show_size(self._total_bytes)}"
        console.print(f"{self._what}: {done}; {meter_words(self.meter)}", markup=False)


def meter_words(meter: Meter) -> str:
    """30 chunks, 300 sat paid, 18,700 sat left."""
    chunks = show_count(meter.chunks, "chunk")
    return f"{chunks}, {show_msat(meter.spent_msat)} paid, {show_sat(meter.left_sat)} left"


def _meter_facts(meter: Meter) -> dict[str, object]:
    return {"chunks": meter.chunks, "spent_msat": meter.spent_msat, "left_sat": meter.left_sat}
