"""A wallet to click: a page of its own that pays a BIP321 URI with worthless coins, in every way there is.

The payment page links to it (`regtest_wallet_url`). It pays all, too little or too much, replaces its last
payment by one to itself, mines a block, and takes the last block out of the chain.
"""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal, InvalidOperation
from urllib.parse import parse_qs, urlencode, urlsplit

from aiohttp import web

from regtest.errors import RegtestError
from regtest.processes import free_ports
from regtest.wallet import OutsideWallet, Payment
from regtest.world import RegtestWorld

SAT_PER_BTC = 100_000_000
BTC_MAX = 21_000_000
FEERATE_SAT_VB = 20
REPLACING_FEERATE_SAT_VB = 60

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Play wallet</title>
<style>body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 2rem auto; padding: 0 1rem }}
button {{ font: inherit; padding: .6rem 1rem; margin: .3rem .3rem .3rem 0; cursor: pointer }}
code {{ overflow-wrap: anywhere }}</style>
<h1>Play wallet</h1>
<p>Regtest coins: worthless, and enough of them. The payment page beside this one follows by itself.</p>
{said}
<p><strong>{amount_sat} sat</strong> to <code>{address}</code></p>
<form method="post" action="/?{query}">
{buttons}
</form>
</html>
"""
DEEDS = {
    "pay": "Pay exactly",
    "half": "Pay half",
    "more": "Pay 2,000 sat more",
    "replace": "Replace the last payment by one to myself",
    "mine": "Mine a block",
    "reorg": "Take the last block out of the chain",
}


class PlayWallet:
    """`await start()`, then `url` is the page. `await close()` last."""

    def __init__(self, world: RegtestWorld, wallet: OutsideWallet) -> None:
        self._world = world
        self._wallet = wallet
        self._runner: web.AppRunner | None = None
        self._last: Payment | None = None
        self.port = free_ports(1)[0]
        self.url = f"http://localhost:{self.port}/"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/", self._show)
        app.router.add_post("/", self._do)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _show(self, request: web.Request) -> web.Response:
        return _page(request.query)

    async def _do(self, request: web.Request) -> web.Response:
        # Only its own page may press its buttons, even here.
        if request.headers.get("Origin") not in (None, self.url.rstrip("/")):
            raise web.HTTPForbidden
        deed = str((await request.post()).get("deed", ""))
        try:
            address, amount_sat = parse_uri(request.query.get("uri", ""))
            said = await self._deed(deed, address, amount_sat)
        except (RegtestError, ValueError) as exc:
            said = f"That did not work: {exc}"
        return _page(request.query, said)

    async def _deed(self, deed: str, address: str, amount_sat: int) -> str:
        deeds: dict[str, Callable[[], Awaitable[str]]] = {
            "pay": lambda: self._pay(address, amount_sat),
            "half": lambda: self._pay(address, amount_sat // 2),
            "more": lambda: self._pay(address, amount_sat + 2_000),
            "replace": self._replace,
            "mine": self._mine,
            "reorg": self._reorg,
        }
        if deed not in deeds:
            raise ValueError("press one of the buttons")
        return await deeds[deed]()

    async def _pay(self, address: str, amount_sat: int) -> str:
        self._last = await self._wallet.pay([(address, amount_sat)], feerate_sat_vb=FEERATE_SAT_VB)
        return f"Paid {amount_sat:,} sat: {self._last.txid}"

    async def _replace(self) -> str:
        if self._last is None:
            raise ValueError("pay first")
        value_sat = sum(coin.value_sat for coin in self._last.inputs)
        mine = await self._wallet.new_address()
        replacement = await self._wallet.pay(
            [(mine, value_sat // 2)], feerate_sat_vb=REPLACING_FEERATE_SAT_VB, inputs=self._last.inputs
        )
        return f"Replaced by {replacement.txid}, which pays me."

    async def _mine(self) -> str:
        (block,) = await self._world.mine()
        return f"Mined {block}"

    async def _reorg(self) -> str:
        await self._world.reorg(1, keep_transactions=False)
        return "The last block is out of the chain; its payments wait for another one."


def parse_uri(uri: str) -> tuple[str, int]:
    """(address, sat) of a BIP321 URI. Raises ValueError."""
    parts = urlsplit(uri)
    try:
        amount_btc = Decimal(parse_qs(parts.query)["amount"][0])
        possible = 0 < amount_btc <= BTC_MAX
    except (KeyError, InvalidOperation) as exc:
        raise ValueError("open this page from a payment page: it hands over address and amount") from exc
    amount_sat = int(amount_btc * SAT_PER_BTC) if possible else 0
    if parts.scheme != "bitcoin" or not parts.path or amount_sat == 0:
        raise ValueError("open this page from a payment page: it hands over address and amount")
    return parts.path, amount_sat


def _page(query: Mapping[str, str], said: str = "") -> web.Response:
    uri = query.get("uri", "")
    try:
        address, amount_sat = parse_uri(uri)
    except ValueError as exc:
        address, amount_sat, said = "nobody", 0, said or str(exc)
    buttons = "\n".join(
        f'<button name="deed" value="{deed}">{html.escape(words)}</button>' for deed, words in DEEDS.items()
    )
    text = PAGE.format(
        said=f'<p role="status">{html.escape(said)}</p>' if said else "",
        amount_sat=f"{amount_sat:,}",
        address=html.escape(address),
        query=html.escape(urlencode({"uri": uri})),
        buttons=buttons,
    )
    return web.Response(text=text, content_type="text/html")
