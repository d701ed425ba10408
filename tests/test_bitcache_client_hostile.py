"""The client against a lying server or seller: each lie is refused by name and leaves no file behind."""

import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bitcache.client.errors import (
    FileAltered,
    ParcelAltered,
    ServerAnswerWrong,
    TargetExists,
    TargetUnsafe,
)
from bitcache.client.link import Link
from storage import base64url, keys
from storage.errors import MetadataAuthenticationFailed, MetadataInvalid, PathRefused, ReleaseSecretWrong
from storage.metadata import open_metadata, seal_metadata
from tests.client_shop import Shop, open_shop, tree
from tests.functional_client_crash import bitcache
from tests.hostile_server import Answered, Lie, altered, lying, rewritten, sending_elsewhere

# One honest server and one parcel for all lies.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def link(shop: Shop) -> Link:
    return await shop.sell(shop.files())


@dataclass
class Buyer:
    """One who trusts the wrong server, in an empty folder."""

    shop: Shop
    link: Link
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    async def fetch(self, lies: dict[str, Lie]) -> None:
        """Download through the liar; whatever it raises, no file may be there under its final name."""
        try:
            async with lying(self.shop.server.url, lies) as url:
                await self.shop.fetch(replace(self.link, server=url), self.output)
        finally:
            assert not [path for path in tree(self.folder) if not path.startswith("out/.bitcache-")]


@pytest.fixture
def buyer(shop: Shop, link: Link, tmp_path: Path) -> Buyer:
    return Buyer(shop, link, tmp_path)


def flip_a_bit(octets: bytes) -> bytes:
    middle = len(octets) // 2
    return octets[:middle] + bytes([octets[middle] ^ 1]) + octets[middle + 1 :]


def swap_first_two(document: dict[str, Any]) -> None:
    files = document["files"]
    files[0], files[1] = files[1], files[0]


def positions(document: dict[str, Any]) -> list[int]:
    """Of the two large files of one size."""
    sizes = [file["size_bytes"] for file in document["files"]]
    return [at for at, size in enumerate(sizes) if size == max(sizes)]


def swap_twins(document: dict[str, Any]) -> None:
    first, second = positions(document)
    files = document["files"]
    files[first], files[second] = files[second], files[first]


def swap_keys_of_twins(document: dict[str, Any]) -> None:
    first, second = (document["files"][at] for at in positions(document))
    first["wrapped_key"], second["wrapped_key"] = second["wrapped_key"], first["wrapped_key"]


def point_twins_at_one_file(document: dict[str, Any]) -> None:
    first, second = (document["files"][at] for at in positions(document))
    first["file_id"] = second["file_id"]


def drop_a_file(document: dict[str, Any]) -> None:
    document["files"].pop()


def grow_a_file(document: dict[str, Any]) -> None:
    document["files"][0]["size_bytes"] = 2**43


def change_a_root(document: dict[str, Any]) -> None:
    document["files"][0]["root"] = base64url.encode(bytes(32))


def both(change: Callable[[Any], None]) -> dict[str, Lie]:
    """The lie before paying and after."""
    return {"offer": altered(change), "claim": altered(change)}


@pytest.mark.parametrize(
    ("lies", "kind"),
    [
        pytest.param(both(swap_first_two), "file-size", id="files of two sizes swapped"),
        pytest.param(both(swap_twins), "file-root", id="files of one size swapped"),
        pytest.param(both(drop_a_file), "file-count", id="a file dropped"),
        pytest.param(both(grow_a_file), "file-size", id="a huge size"),
        pytest.param(both(change_a_root), "file-root", id="another root"),
        pytest.param({"claim": altered(swap_twins)}, "file-root", id="swapped only after paying"),
        pytest.param(
            {"offer": altered(lambda offer: offer.update(offer_id="a" * 26))}, "offer", id="another offer"
        ),
        pytest.param(
            {"buy": altered(lambda invoice: invoice.update(price_sat=9))}, "price", id="another price"
        ),
        pytest.param(
            {"buy": altered(lambda invoice: invoice.update(parcel_id="a" * 26))}, "offer", id="another parcel"
        ),
    ],
)
async def test_what_differs_from_the_description_is_refused(
    buyer: Buyer, lies: dict[str, Lie], kind: str
) -> None:
    with pytest.raises(ParcelAltered) as refusal:
        await buyer.fetch(lies)
    assert refusal.value.kind == kind


@pytest.mark.parametrize(
    ("lies", "kind"),
    [
        pytest.param({"content": rewritten(flip_a_bit)}, "DigestMismatch", id="a bit flipped in a chunk"),
        pytest.param({"digests": rewritten(flip_a_bit)}, "RootMismatch", id="a bit flipped in the digests"),
        pytest.param(
            {"claim": altered(swap_keys_of_twins)} | {"offer": altered(swap_keys_of_twins)},
            "KeyUnwrapFailed",
            id="wrapped keys swapped",
        ),
        pytest.param(both(point_twins_at_one_file), "RootMismatch", id="another file's bytes and digests"),
    ],
)
async def test_altered_files_are_refused_by_name(buyer: Buyer, lies: dict[str, Lie], kind: str) -> None:
    with pytest.raises(FileAltered) as refusal:
        await buyer.fetch(lies)
    assert refusal.value.kind == kind


async def test_another_release_secret_is_refused(buyer: Buyer) -> None:
    secret = base64url.encode(keys.new_secret())
    with pytest.raises(ReleaseSecretWrong):
        await buyer.fetch({"claim": altered(lambda claim: claim.update(release_secret=secret))})


async def test_altered_metadata_is_refused(buyer: Buyer) -> None:
    def alter(document: dict[str, Any]) -> None:
        document["metadata"] = base64url.encode(flip_a_bit(base64url.decode(document["metadata"])))

    with pytest.raises(MetadataAuthenticationFailed):
        await buyer.fetch({"offer": altered(alter)})


async def test_another_description_after_paying_is_refused(buyer: Buyer) -> None:
    """Server and seller in league: the description is genuine, but not the one that was shown before."""

    def alter(document: dict[str, Any]) -> None:
        metadata = open_metadata(buyer.link.link_secret, base64url.decode(document["metadata"]))
        metadata = type(metadata)(
            title="Something else",
            note=metadata.note,
            preview=metadata.preview,
            files=metadata.files,
            release_commitment=metadata.release_commitment,
            key_check=metadata.key_check,
        )
        document["metadata"] = base64url.encode(seal_metadata(buyer.link.link_secret, metadata))

    with pytest.raises(ParcelAltered) as refusal:
        await buyer.fetch({"claim": altered(alter)})
    assert refusal.value.kind == "description-changed"


def sealed_by_hand(link_secret: bytes, change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    """A seller who seals what `seal_metadata` would not."""

    def alter(document: dict[str, Any]) -> None:
        key, sealed = AESGCM(keys.metadata_key(link_secret)), base64url.decode(document["metadata"])
        description = json.loads(key.decrypt(sealed[:12], sealed[12:], keys.METADATA_INFO))
        change(description)
        nonce = os.urandom(12)
        forged = key.encrypt(nonce, json.dumps(description).encode(), keys.METADATA_INFO)
        document["metadata"] = base64url.encode(nonce + forged)

    return alter


@pytest.mark.parametrize(
    "path",
    ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:evil", "nul.txt", "e\x1b[31mvil", "\u202eevil"],
)
async def test_a_seller_cannot_lead_the_buyer_out_of_the_folder(buyer: Buyer, path: str) -> None:
    def change(description: dict[str, Any]) -> None:
        description["files"][0]["path"] = path

    with pytest.raises(PathRefused):
        await buyer.fetch(both(sealed_by_hand(buyer.link.link_secret, change)))


async def test_a_title_that_commands_the_terminal_is_refused(buyer: Buyer) -> None:
    def change(description: dict[str, Any]) -> None:
        description["title"] = "\x1b]0;owned\x07"

    with pytest.raises(MetadataInvalid):
        await buyer.fetch(both(sealed_by_hand(buyer.link.link_secret, change)))


async def endless(request: web.Request, answered: Answered) -> web.StreamResponse:
    """The right beginning, then more for ever."""
    headers = (
        {"Content-Range": answered.headers["Content-Range"]} if "Content-Range" in answered.headers else {}
    )
    response = web.StreamResponse(status=answered.status, headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(answered.body)
    while True:
        await response.write(bytes(1 << 16))


@pytest.mark.parametrize("kind", ["offer", "claim", "digests", "content"])
async def test_endless_answers_are_cut_off(buyer: Buyer, kind: str) -> None:
    with pytest.raises(ServerAnswerWrong):
        await buyer.fetch({kind: endless})


@pytest.mark.parametrize("kind", ["offer", "claim", "digests", "content"])
async def test_redirects_are_refused_and_no_token_follows_them(buyer: Buyer, kind: str) -> None:
    async with sending_elsewhere(buyer.shop.server.url, kind) as (lies, asked):
        with pytest.raises(ServerAnswerWrong):
            await buyer.fetch(lies)
    assert not asked


async def another_range(request: web.Request, answered: Answered) -> None:
    answered.headers["Content-Range"] = answered.headers["Content-Range"].replace("bytes 0-", "bytes 1-")


async def whole_file_instead(request: web.Request, answered: Answered) -> None:
    answered.status = 200
    answered.headers.pop("Content-Range")
    answered.body += b"more"


async def nothing_there(request: web.Request, answered: Answered) -> None:
    answered.body = answered.body[:-1]


@pytest.mark.parametrize("lie", [another_range, whole_file_instead, nothing_there])
async def test_other_bytes_than_asked_for_are_refused(buyer: Buyer, lie: Lie) -> None:
    with pytest.raises(ServerAnswerWrong):
        await buyer.fetch({"content": lie})


async def test_a_symbolic_link_in_the_target_is_not_followed(buyer: Buyer) -> None:
    outside = buyer.folder / "outside"
    outside.mkdir()
    buyer.output.mkdir()
    (buyer.output / "goods").symlink_to(outside)
    with pytest.raises(TargetUnsafe):
        await buyer.shop.fetch(buyer.link, buyer.output)
    assert not tree(outside)


async def test_a_symbolic_link_as_target_is_not_written_through(buyer: Buyer) -> None:
    outside, goods = buyer.folder / "outside", buyer.output / "goods"
    goods.mkdir(parents=True)
    outside.write_bytes(b"mine")
    (goods / "one.bin").symlink_to(outside)
    with pytest.raises(TargetExists):
        await buyer.shop.fetch(buyer.link, buyer.output)
    await buyer.shop.fetch(buyer.link, buyer.output, force=True)
    assert outside.read_bytes() == b"mine"
    assert tree(goods) == tree(buyer.shop.folder / "goods")


async def test_a_server_that_commands_the_terminal_is_not_obeyed(buyer: Buyer) -> None:
    """The seller's name is the server's word, shown by `get`; so are the words of its problems."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202eevil\r\n"

    async def refuse(request: web.Request, answered: Answered) -> None:
        answered.status = 410
        answered.headers["Content-Type"] = "application/problem+json"
        problem = {"type": f"/problems/{evil}", "title": evil, "status": 410, "detail": evil}
        answered.body = json.dumps(problem).encode()

    lies = {"offer": altered(lambda offer: offer.update(seller_name=evil)), "buy": refuse}
    async with lying(buyer.shop.server.url, lies) as url:
        process = await bitcache(buyer.folder, "get", str(replace(buyer.link, server=url)))
        out, err = await process.communicate()
    assert process.returncode == 1
    assert b"evil" in err
    shown = (out + err).decode()
    assert not set(shown) & set("\x1b\x07\r\u202e")


async def test_the_liar_without_lies_is_honest(buyer: Buyer) -> None:
    """Else the cases above would prove nothing."""
    async with lying(buyer.shop.server.url, {}) as url:
        await buyer.shop.fetch(replace(buyer.link, server=url), buyer.output)
    assert tree(buyer.output / "goods") == tree(buyer.shop.folder / "goods")
