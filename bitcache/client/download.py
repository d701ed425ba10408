"""A paid parcel onto the disk: claim, fetch in parallel, verify, decrypt, and name the files only then.

Kill it at any moment and start it again: chunks that arrived are proven and kept (`chunk_files`). Where the
policy gives the bytes before the key, ciphertext flows into the work folder until the key comes.
"""

import asyncio
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.chunk_files import PlainFile, SealedFile, is_genuine
from bitcache.client.errors import PaymentPending, PaymentWithdrawn, ServerProblem, SpaceMissing, TargetExists
from bitcache.client.filling import fill
from bitcache.client.grant import Grant
from bitcache.client.invoices import follow
from bitcache.client.link import Receipt
from bitcache.client.parcel import OpenedParcel, ParcelFile, check_unchanged, file_keys, open_parcel
from bitcache.client.progress import Progress
from bitcache.client.target import Target
from bitcache.client.transfer import ChunkRange, ChunkTransfer, Transfer, plan_ranges
from bitcache.client.work_folder import WorkFolder
from storage import base64url

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class ParcelDownload(ABC):
    """One parcel into one target: `await run()` once. How its bytes and key are paid is a subclass's."""

    def __init__(
        self,
        parcel: OpenedParcel,
        target: Target,
        transfer: ChunkTransfer,
        *,
        name: str,
        link_secret: bytes,
        progress: Progress,
        force: bool = False,
    ) -> None:
        """`name` tells this download from others into the same target."""
        self._parcel = parcel
        self._target = target
        self._transfer: ChunkTransfer = transfer
        self._name = name
        self._link_secret = link_secret
        self._force = force
        self._progress = progress

    async def run(self) -> list[Path]:
        """The final places of the files, all whole and verified.

        Raises TargetExists, TargetUnsafe, SpaceMissing, AlreadyRunning; what paying raises;
        ParcelAltered, FileAltered, storage's ReleaseSecretWrong; ServerProblem, ServerUnreachable, OSError.
        """
        try:
            with WorkFolder(self._target, self._name) as work:
                await self._run(work)
        except OSError as exc:
            if exc.errno in _DISK_FULL:
                raise self._space_missing(self._parcel.plain_bytes) from exc
            raise
        finally:
            self._transfer.close()
        return [self._target.shown(file.path) for file in self._parcel.files]

    async def _run(self, work: WorkFolder) -> None:
        files = [file for file in self._parcel.files if not work.is_placed(file)]
        self._target.check_room(sum(work.bytes_to_come(file) for file in files))
        there = [] if self._force else [file for file in files if self._is_there(file)]
        release_secret = await self._release_secret(work, files)
        keys = file_keys(self._parcel, link_secret=self._link_secret, release_secret=release_secret)
        for file in there:
            await self._transfer.in_thread(self._check_same, file, keys[file.position])
            files.remove(file)
        await self._fetch_plain(work, [file for file in files if not work.is_whole(file)], keys)
        for file in files:
            self._target.place(work.descriptor, work.whole_name(file), file.path, force=self._force)
        work.remove()

    def _is_there(self, file: ParcelFile) -> bool:
        """Whether a file is at its place that may be what we were to put there. Raises TargetExists."""
        descriptor = self._target.open_there(file.path, size_bytes=file.plain_bytes)
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def _check_same(self, file: ParcelFile, file_key: bytes) -> None:
        """Raises TargetExists unless the file at its place is the seller's, byte for byte.

        A run that was killed once all files had their names left nothing else to know it by.
        """
        descriptor = self._target.open_there(file.path, size_bytes=file.plain_bytes)
        try:
            if descriptor is None or not is_genuine(descriptor, file, file_key):
                raise TargetExists(str(self._target.shown(file.path)))
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @abstractmethod
    async def _release_secret(self, work: WorkFolder, files: Sequence[ParcelFile]) -> bytes:
        """The release secret, as soon as there is one. `files` are those that are not in their places."""

    def _order(self, files: Sequence[ParcelFile]) -> Sequence[ParcelFile]:
        return files

    def _plan(self, file: ParcelFile, missing: Sequence[int]) -> Iterable[ChunkRange]:
        return plan_ranges(missing)

    def _check_all_came(self, all_came: bool) -> None:
        """Raises the reason why chunks were left out."""
        assert all_came

    async def _fetch_plain(self, work: WorkFolder, files: list[ParcelFile], keys: tuple[bytes, ...]) -> None:
        async def open_plain(file: ParcelFile) -> PlainFile:
            verifier = await self._transfer.verifier(file)
            return await self._transfer.in_thread(work.open_plain, file, keys[file.position], verifier)

        async def finish(file: ParcelFile, plain: PlainFile) -> None:
            await self._transfer.in_thread(plain.finish)
            work.mark_whole(file)

        self._progress.start("decrypted", sum(file.cipher_bytes for file in files))
        all_came = await fill(
            self._order(files),
            self._transfer,
            open_sink=open_plain,
            on_full=finish,
            progress=self._progress,
            plan=self._plan,
        )
        self._check_all_came(all_came)

    def _space_missing(self, needed_bytes: int) -> SpaceMissing:
        return SpaceMissing(
            needed_bytes=needed_bytes,
            free_bytes=self._target.free_bytes(),
            folder=str(self._target.folder),
        )


class Download(ParcelDownload):
    """What a receipt paid for. `on_invoice` hears of the payment meanwhile.

    Paying raises PaymentPending, PaymentWithdrawn.
    """

    def __init__(
        self,
        api: ServerApi,
        receipt: Receipt,
        offer_id: str,
        parcel: OpenedParcel,
        target: Target,
        *,
        progress: Progress,
        on_invoice: Callable[[wire.InvoiceView], None],
        force: bool = False,
    ) -> None:
        self._api = api
        self._receipt = receipt
        self._on_invoice = on_invoice
        self._grant = Grant(api, receipt)
        super().__init__(
            parcel,
            target,
            Transfer(api, offer_id, self._grant, on_bytes=progress.advance),
            name=receipt.invoice_id,
            link_secret=receipt.link_secret,
            progress=progress,
            force=force,
        )

    async def _release_secret(self, work: WorkFolder, files: Sequence[ParcelFile]) -> bytes:
        """As soon as the policy gives it; ciphertext flows meanwhile if it may."""
        claim = await self._claim()
        if claim.release_secret is not None:
            return base64url.decode(claim.release_secret)
        if not claim.bytes_allowed:
            return await self._key_comes()
        key = asyncio.create_task(self._key_comes())
        ciphertext = asyncio.create_task(self._prefetch(work))
        try:
            await asyncio.wait({key, ciphertext}, return_when=asyncio.FIRST_COMPLETED)
            if not key.done():
                await ciphertext
            return await key
        finally:
            key.cancel()
            ciphertext.cancel()
            await asyncio.gather(key, ciphertext, return_exceptions=True)

    async def _key_comes(self) -> bytes:
        async for invoice in follow(self._api, self._receipt.invoice_id):
            self._on_invoice(invoice)
            if invoice.key_allowed:
                claim = await self._claim()
                if claim.release_secret is not None:
                    return base64url.decode(claim.release_secret)
            if invoice.status in {"expired", "cancelled"}:
                raise PaymentPending("The invoice ended before the payment was complete. Keep the receipt.")
        raise AssertionError("an invoice is followed without end")

    async def _claim(self) -> wire.ClaimView:
        claim = await self._grant.renew()
        claimed = open_parcel(self._receipt.link_secret, files=claim.files, sealed_metadata=claim.metadata)
        check_unchanged(self._parcel, claimed)
        return claim

    async def _prefetch(self, work: WorkFolder) -> None:
        """Ciphertext of all files into the work folder; ends early where the server wants more money."""

        async def open_sealed(file: ParcelFile) -> SealedFile:
            verifier = await self._transfer.verifier(file)
            return await self._transfer.in_thread(work.open_sealed, file, verifier)

        async def nothing(file: ParcelFile, sealed: SealedFile) -> None:
            pass

        self._progress.start("encrypted", self._parcel.cipher_bytes)
        files = [file for file in self._parcel.files if not (work.is_placed(file) or work.is_whole(file))]
        try:
            await fill(files, self._transfer, open_sink=open_sealed, on_full=nothing, progress=self._progress)
        except (PaymentWithdrawn, ServerProblem):
            return  # the invoice, which we follow meanwhile, tells what happened
