"""A parcel paid per chunk onto the disk: each request carries the voucher that pays for its chunks.

The release secret comes with every answer. It is proven before anything is decrypted, and with the very first
chunk: whoever serves a wrong one has been paid for that chunk alone.
"""

import functools
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.chunk_files import ChunkSink
from bitcache.client.download import ParcelDownload
from bitcache.client.errors import PriceRose, ServerAnswerWrong, ServerProblem
from bitcache.client.link import Link
from bitcache.client.meter import CHUNKS_PER_REQUEST, Meter, Ticket
from bitcache.client.parcel import OpenedParcel, ParcelFile, file_keys
from bitcache.client.progress import Progress
from bitcache.client.retry import CONNECTION_TROUBLE, Pauses, may_pass, unreachable
from bitcache.client.target import Target
from bitcache.client.transfer import ChunkRange, ChunkTransfer, plan_ranges
from bitcache.client.work_folder import WorkFolder
from storage import base64url

RECEIPT_HEADER = "Payment-Receipt"
RELEASE_HEADER = "Bitcache-Release-Secret"
HELD_UP = frozenset({"confirmations-needed", "unconfirmed-cap-reached", "channel-suspended"})
CHANNEL_OVER = frozenset({"channel-closed", "channel-not-found", "expiry-too-near"})
TOO_LITTLE = frozenset({"voucher-short", "voucher-stale"})


class _Receipt(msgspec.Struct, frozen=True, rename="camel"):
    reference: str
    accepted_cumulative: str
    spent_msat: str


class MeteredTransfer(ChunkTransfer):
    """Pays for what it fetches."""

    def __init__(
        self,
        api: ServerApi,
        offer_id: str,
        meter: Meter,
        *,
        on_bytes: Callable[[int], None],
        on_release_secret: Callable[[bytes], None],
    ) -> None:
        """`on_release_secret` raises if it is not the parcel's."""
        super().__init__(api, offer_id, on_bytes=on_bytes)
        self._meter = meter
        self._on_release_secret = on_release_secret

    async def fetch(self, file: ParcelFile, chunks: ChunkRange, sink: ChunkSink) -> bool:
        """Pay for `chunks` and bring them into `sink`. False: the meter stopped.

        Raises FileAltered, ServerAnswerWrong, ServerProblem, ServerUnreachable, PriceRose, ChunksWithheld,
        OSError.
        """
        pauses = Pauses(self._api.retry_for_s)
        first = chunks.first
        while first < chunks.end:
            ticket = await self._meter.reserve(file.file_id, first, chunks.end)
            if ticket is None:
                return False
            try:
                with self._meter.paying():
                    async for index, chunk in self._chunks(
                        file,
                        ticket.first,
                        ticket.end,
                        ticket.authorization,
                        on_answer=functools.partial(self._check_answer, ticket),
                    ):
                        await self.in_thread(sink.put, index, chunk)
                        self._meter.arrived(ticket, file.file_id, index)
                        self._on_bytes(len(chunk))
                        first = index + 1
                        pauses.reset()
            except ServerProblem as problem:
                await self._refused(ticket, problem, pauses)
            except CONNECTION_TROUBLE as exc:
                if not await pauses.wait():
                    raise unreachable(self._api.base_url, exc) from exc
        return True

    async def _refused(self, ticket: Ticket, problem: ServerProblem, pauses: Pauses) -> None:
        """Returns where asking again makes sense. Raises otherwise."""
        if problem.name in HELD_UP:
            await self._meter.hold(ticket.purse, problem.detail)
        elif problem.name in CHANNEL_OVER:
            self._meter.end(ticket.purse)
        elif problem.name in TOO_LITTLE:
            # Everything that was ever asked for is covered by what we sign: either it costs more now, or the
            # server charges twice.
            offer = await self._api.get(f"/offers/{self._offer_id}", wire.OfferView)
            asked_msat = 0 if offer.metered is None else offer.metered.amount_msat
            if asked_msat > self._meter.price_msat:
                raise PriceRose(agreed_msat=self._meter.price_msat, asked_msat=asked_msat) from problem
            raise ServerAnswerWrong(
                f"The server wants more than its price, or charges twice for a chunk: {problem.detail} "
                "Nothing more was signed."
            ) from problem
        elif not may_pass(problem) or not await pauses.wait(problem.retry_after_s):
            raise problem

    def _check_answer(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        try:
            secret = base64url.decode(headers[RELEASE_HEADER])
            receipt = msgspec.json.decode(base64url.decode(headers[RECEIPT_HEADER]), type=_Receipt)
            accepted_sat, spent_msat = int(receipt.accepted_cumulative), int(receipt.spent_msat)
        except (KeyError, ValueError, RecursionError) as exc:
            raise ServerAnswerWrong(
                f"The server's answer to a voucher lacks what belongs to it ({exc})."
            ) from exc
        if receipt.reference != ticket.purse.own.id:
            raise ServerAnswerWrong("The server's receipt is for another channel than the voucher was.")
        self._meter.check_receipt(ticket.purse, accepted_sat=accepted_sat, spent_msat=spent_msat)
        self._on_release_secret(secret)


class MeteredDownload(ParcelDownload):
    """One offer's parcel. Paying raises what `Meter.stopped` may be, PriceRose, ChunksWithheld."""

    def __init__(
        self,
        api: ServerApi,
        link: Link,
        parcel: OpenedParcel,
        target: Target,
        meter: Meter,
        *,
        progress: Progress,
        force: bool = False,
    ) -> None:
        self._meter = meter
        self._secret: bytes | None = None
        transfer = MeteredTransfer(
            api,
            link.offer_id,
            meter,
            on_bytes=progress.advance,
            on_release_secret=self._learn_release_secret,
        )
        super().__init__(
            parcel,
            target,
            transfer,
            name=link.offer_id,
            link_secret=link.link_secret,
            progress=progress,
            force=force,
        )

    async def _release_secret(self, work: WorkFolder, files: Sequence[ParcelFile]) -> bytes:
        """From an earlier run, or bought with one chunk, whose ciphertext is kept."""
        kept = work.read_release_secret()
        if kept is not None:
            self._learn_release_secret(kept)
        if self._secret is None:
            file = self._order(files or self._parcel.files)[0]
            sealed = work.open_sealed(file, await self._transfer.verifier(file))
            try:
                first = self._plan_first(file)
                came = await self._transfer.fetch(file, ChunkRange(first, first + 1), sealed)
            finally:
                sealed.close()
            self._check_all_came(came)
            assert self._secret is not None
            work.keep_release_secret(self._secret)
        return self._secret

    def _order(self, files: Sequence[ParcelFile]) -> Sequence[ParcelFile]:
        """Those with chunks that were paid for and did not come go first: the window is free again then."""
        return sorted(files, key=lambda file: not self._meter.is_owed(file.file_id))

    def _plan(self, file: ParcelFile, missing: Sequence[int]) -> Iterable[ChunkRange]:
        if self._meter.is_owed(file.file_id):
            self._meter.came_before(file.file_id, set(range(file.chunk_count)).difference(missing))
        owed = [index for index in missing if self._meter.outstanding(file.file_id, index)]
        new = sorted(set(missing) - set(owed))
        yield from plan_ranges(owed, range_chunks=CHUNKS_PER_REQUEST)
        yield from plan_ranges(new, range_chunks=CHUNKS_PER_REQUEST)

    def _plan_first(self, file: ParcelFile) -> int:
        chunks = range(file.chunk_count)
        return next((index for index in chunks if self._meter.outstanding(file.file_id, index)), 0)

    def _check_all_came(self, all_came: bool) -> None:
        if not all_came:
            assert self._meter.stopped is not None
            raise self._meter.stopped

    def _learn_release_secret(self, secret: bytes) -> None:
        """Raises ReleaseSecretWrong unless it is the parcel's."""
        if not hmac.compare_digest(secret, self._secret or b""):
            file_keys(self._parcel, link_secret=self._link_secret, release_secret=secret)
            self._secret = secret
