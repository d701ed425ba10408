"""What a seller runs about the goods: `upload`, `parcels`, `rm`."""

from pathlib import Path
from typing import Annotated

import typer

from bitcache.api import wire
from bitcache.cli.common import RichProgress, confirm, seller_api, show_count, show_size, show_time
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    YesFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.cli.terms import (
    MSAT_PER_SAT,
    ConfirmationCount,
    Expiry,
    MaxDownloads,
    Metered,
    PrefetchFlag,
    Price,
    check_answerable,
    check_metered,
    check_payable,
    for_parcel,
    offer_request,
)
from bitcache.client import listing, places
from bitcache.client.receipts import ParcelBook
from bitcache.client.sources import collect
from bitcache.client.upload import Description, Upload, make_offer, state_name
from bitcache.client.upload_state import UploadState
from storage.metadata import PREVIEW_SIZE_MAX_BYTES, Preview, preview_media_type
from storage.stream import chunk_count, ciphertext_size

app = typer.Typer()


@app.command(
    "upload",
    epilog="Example: bitcache upload holiday/ --price 5000sat --title 'Holiday pictures' --expires 30d",
)
@expected_errors
def upload(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, or folders, sold together.")],
    price: Price = None,
    metered: Metered = None,
    title: Annotated[str | None, typer.Option(help="What the buyer sees. Default: the first name.")] = None,
    note: Annotated[str, typer.Option(help="More words for the buyer.")] = "",
    preview: Annotated[Path | None, typer.Option(help="A small picture: png, jpeg or webp.")] = None,
    confirmations: ConfirmationCount = 1,
    prefetch: PrefetchFlag = False,
    expires: Expiry = None,
    max_downloads: MaxDownloads = None,
    meterable: Annotated[
        bool, typer.Option("--meterable", help="May be sold per chunk later; never sent before it is paid.")
    ] = False,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Encrypt files here, upload them as one parcel, offer it, and print the link.

    Stopped at any moment, the same command goes on where it was. The server never sees names or contents.
    """
    terms = offer_request(
        price=price,
        metered=metered,
        confirmations=confirmations,
        prefetch=prefetch,
        expires=expires,
        max_downloads=max_downloads,
    )
    check_answerable(metered=terms.metered is not None, yes=yes, as_json=json_output)
    sources = collect(paths)
    ciphertext_bytes = [ciphertext_size(source.size_bytes) for source in sources]
    description = Description(
        title=title if title is not None else paths[0].resolve().name,
        note=note,
        preview=None if preview is None else _read_preview(preview),
    )

    async def send() -> None:
        async with seller_api() as api:
            # Before hours of uploading, not after.
            account = await api.get("/account", wire.AccountView)
            check_payable(account, terms.price)
            if terms.metered is not None:
                chunks = sum(map(chunk_count, ciphertext_bytes))
                check_metered(account, yes=yes, price=terms.metered, chunks=chunks)
            name = state_name(api.base_url, paths)
            folder = places.uploads_folder()
            with (
                places.only_one(folder / f"{name}.lock", "This upload"),
                RichProgress(as_json=json_output) as progress,
            ):
                state = UploadState(folder / f"{name}.db")
                try:
                    upload = Upload(
                        api,
                        state,
                        sources,
                        description,
                        meterable=meterable or terms.metered is not None,
                        progress=progress,
                    )
                    parcel_id = await upload.run()
                    book = ParcelBook(places.parcels_folder())
                    kept = book.keep(api.base_url, parcel_id, state.link_secret, title=description.title)
                    offer = await make_offer(api, for_parcel(terms, parcel_id))
                    report = {
                        "link": str(kept.link(offer.offer_id)),
                        "offer_id": offer.offer_id,
                        "parcel_id": parcel_id,
                        "files_count": len(sources),
                        "size_bytes": sum(source.size_bytes for source in sources),
                        "ciphertext_bytes": sum(ciphertext_bytes),
                        "price_sat": offer.price.amount_msat // MSAT_PER_SAT if offer.price else None,
                        "metered": offer.metered,
                    }
                    # The link is out before the state that could make it again is gone.
                    _print_upload(report, as_json=json_output)
                    state.remove()
                finally:
                    state.close()

    run(send())


@app.command("parcels", epilog="Example: bitcache parcels --json")
@expected_errors
def parcels(json_output: JsonFlag = False) -> None:
    """List your parcels, newest first."""

    async def ask() -> tuple[str, list[wire.ParcelView]]:
        async with seller_api() as api:
            return api.base_url, await listing.parcels(api)

    server, items = run(ask())
    if json_output:
        print_json(items)
        return
    book = ParcelBook(places.parcels_folder())
    for parcel in items:
        kept = book.get(server, parcel.parcel_id)
        print_text(
            f"{parcel.parcel_id}  {show_time(parcel.created_at)}  {show_size(parcel.size_bytes):>10}  "
            f"{show_count(parcel.files_count, 'file')}  {show_count(len(parcel.offers), 'offer')}  "
            f"{parcel.state}" + (f"  {printable(kept.title)}" if kept else "")
        )


@app.command("rm", epilog="Example: bitcache rm PARCEL_ID --yes")
@expected_errors
def rm(
    parcel_id: Annotated[str, typer.Argument(metavar="PARCEL", help="Id of the parcel, from `parcels`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete a parcel: its offers close, and its bytes go as soon as no buyer has a right to them."""
    if not yes and not confirm(f"Delete parcel {parcel_id} and close its offers?"):
        raise CommandFailed("Nothing was deleted. Answer y, or add --yes.")

    async def delete() -> None:
        async with seller_api() as api:
            await api.delete(f"/parcels/{parcel_id}")

    run(delete())
    if json_output:
        print_json({"deleted": parcel_id})
    else:
        print_text(f"Deleted {parcel_id}.")


def _print_upload(report: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    print_text(str(report["link"]))
    say("Give this link to buyers, whole and in quotes. It is kept on this computer: bitcache offers")


def _read_preview(path: Path) -> Preview:
    with path.open("rb") as file:
        image = file.read(PREVIEW_SIZE_MAX_BYTES + 1)
    media_type = preview_media_type(image)
    if media_type is None:
        raise CommandFailed(f"{path} is no png, jpeg or webp picture. Convert it, or leave out --preview.")
    if len(image) > PREVIEW_SIZE_MAX_BYTES:
        raise CommandFailed(f"{path} is larger than 256 KiB. Make the picture smaller.")
    return Preview(media_type=media_type, image=image)
