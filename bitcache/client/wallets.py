"""Paying an invoice from a bitcoind wallet: once, however often it is asked, and through any crash.

    bitcoind:                                          the local node's default wallet, by its cookie
    bitcoind:http://user:password@host:port/wallet/W   a wallet of any node
    bitcoind:http://host:port/wallet/W?cookie=FILE     the same, with a cookie file

The signed transaction is on disk before it is broadcast; asked again, the same one is broadcast again.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
import msgspec

from bitcache.client.errors import WalletRefused
from bitcache.client.places import only_one, write_private
from payments.money import Sat, btc_from_sat, sat_from_btc

SCHEME = "bitcoind:"
TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 4 << 20

CHAIN_OF_NETWORK = {"mainnet": "main"}
"""bitcoind's names, where they differ from ours."""
_DEFAULTS: Mapping[str, tuple[int, str]] = {
    "main": (8332, ""),
    "testnet4": (48332, "testnet4"),
    "signet": (38332, "signet"),
    "regtest": (18443, "regtest"),
}
_ADDRESS = re.compile(r"[a-zA-Z0-9]{14,100}")
# Errors of sendrawtransaction that mean: it is there already.
_KNOWN_ALREADY = ("already in mempool", "already in block chain", "already in utxo set", "txn-already-known")


class Payable(Protocol):
    """What a wallet pays: an invoice, or the deposit of a channel."""

    @property
    def invoice_id(self) -> str: ...

    @property
    def address(self) -> str | None: ...

    @property
    def due_sat(self) -> int: ...


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A signed payment of an invoice; kept before it is broadcast."""

    invoice_id: str
    address: str
    amount_sat: int
    fee_sat: int
    txid: str
    transaction: str


@dataclass(frozen=True)
class WalletAddress:
    """Where the wallet is. Without `url` the local node of the invoice's network."""

    url: str | None = None
    wallet: str | None = None
    authorization: str | None = field(default=None, repr=False)
    cookie_file: Path | None = None


def parse_wallet(text: str) -> WalletAddress:
    """Raises WalletRefused, whose message holds no password."""
    if not text.startswith(SCHEME):
        raise WalletRefused(
            "Give a wallet as bitcoind: or bitcoind:http://user:password@host:port/wallet/NAME"
        )
    rest = text.removeprefix(SCHEME)
    if not rest:
        return WalletAddress()
    try:
        parts = urlsplit(rest)
        port = parts.port
    except ValueError as exc:
        raise WalletRefused("The wallet's address is no URL; look at its port.") from exc
    wallet = parts.path.removeprefix("/wallet/") if parts.path.startswith("/wallet/") else ""
    if parts.scheme not in {"http", "https"} or not parts.hostname or (parts.path.strip("/") and not wallet):
        raise WalletRefused(
            "The wallet's address is not of the form http://user:password@host:port/wallet/NAME"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    cookie = parse_qs(parts.query).get("cookie")
    user_password = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    if cookie is None and parts.username is None:
        raise WalletRefused("The wallet's address needs user:password@, or ?cookie=FILE at its end.")
    return WalletAddress(
        url=f"{parts.scheme}://{host}:{port or _DEFAULTS['main'][0]}",
        wallet=wallet or None,
        authorization=None if cookie else user_password,
        cookie_file=Path(cookie[0]) if cookie else None,
    )


class BitcoindWallet:
    """A wallet of a bitcoind, for one network."""

    def __init__(self, where: WalletAddress, network: str) -> None:
        """Raises WalletRefused for a network we do not know."""
        chain = CHAIN_OF_NETWORK.get(network, network)
        if chain not in _DEFAULTS:
            raise WalletRefused(f"The invoice is for the network {network}, which this client does not know.")
        self._chain = chain
        port, folder = _DEFAULTS[chain]
        base = where.url or f"http://127.0.0.1:{port}"
        self._url = base + (f"/wallet/{where.wallet}" if where.wallet is not None else "/")
        self._authorization = where.authorization
        self._cookie_file = where.cookie_file or Path.home() / ".bitcoin" / folder / ".cookie"

    async def prepare(self, invoice: Payable, record: Path) -> Payment:
        """The signed payment of what is due, on record and not yet broadcast; the recorded one if there is.

        Raises WalletRefused (wrong network, no money, locked), AlreadyRunning.
        """
        with only_one(record.with_suffix(".lock"), "Paying this invoice"):
            recorded = _recorded(record)
            if recorded is not None:
                return recorded
            chain = (await self._call("getblockchaininfo"))["chain"]
            if chain != self._chain:
                raise WalletRefused(
                    f"The invoice is for {self._chain}, the wallet for {chain}. Nothing was paid."
                )
            payment = await self._sign(invoice)
            write_private(record, msgspec.json.encode(payment))
            return payment

    async def broadcast(self, payment: Payment) -> None:
        """Send the payment to the network; again is harmless. Raises WalletRefused."""
        try:
            await self._call("sendrawtransaction", payment.transaction)
        except WalletRefused as refusal:
            if not any(words in str(refusal).lower() for words in _KNOWN_ALREADY):
                raise

    async def _sign(self, invoice: Payable) -> Payment:
        if invoice.address is None or not _ADDRESS.fullmatch(invoice.address) or invoice.due_sat <= 0:
            raise WalletRefused("There is nothing to pay on this invoice.")
        amount = Decimal(btc_from_sat(Sat(invoice.due_sat)))
        # Locked, so that another payment of this wallet cannot spend the same coins before we broadcast.
        funded = await self._call(
            "walletcreatefundedpsbt", [], [{invoice.address: amount}], 0, {"lockUnspents": True}
        )
        signed = await self._call("walletprocesspsbt", funded["psbt"])
        final = await self._call("finalizepsbt", signed["psbt"])
        if not final.get("complete"):
            raise WalletRefused("The wallet cannot sign the payment alone. Pay by hand to the address shown.")
        decoded = await self._call("decoderawtransaction", final["hex"])
        return Payment(
            invoice_id=invoice.invoice_id,
            address=invoice.address,
            amount_sat=invoice.due_sat,
            fee_sat=sat_from_btc(funded["fee"]),
            txid=decoded["txid"],
            transaction=final["hex"],
        )

    async def _call(self, method: str, *params: object) -> Any:
        """The result of one call. Raises WalletRefused, with the node's words."""
        body = json.dumps({"id": 0, "method": method, "params": params}, default=_exact).encode()
        credentials = base64.b64encode(self._credentials().encode()).decode()
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
                answer = await response.content.read(ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise WalletRefused(f"The wallet's node does not answer ({exc}). Is it running?") from exc
        if status in {401, 403}:
            raise WalletRefused("The wallet's node does not accept these credentials.")
        try:
            document = json.loads(answer, parse_float=Decimal)
            error, result = document["error"], document["result"]
        except (ValueError, KeyError, TypeError) as exc:
            raise WalletRefused(
                f"The wallet's node answered {status} with something else than JSON-RPC."
            ) from exc
        if error is not None:
            raise WalletRefused(f"The wallet refuses {method}: {error.get('message', error)}")
        return result

    def _credentials(self) -> str:
        if self._authorization is not None:
            return self._authorization
        try:
            return self._cookie_file.read_text(encoding="ascii").strip()
        except OSError as exc:
            raise WalletRefused(
                f"The cookie {self._cookie_file} cannot be read ({exc.strerror}). Start the node, or give "
                "bitcoind:http://user:password@host:port/wallet/NAME"
            ) from exc


def _recorded(record: Path) -> Payment | None:
    try:
        return msgspec.json.decode(record.read_bytes(), type=Payment)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as exc:
        raise WalletRefused(
            f"The record {record} of this payment is damaged. See in the wallet whether it was made."
        ) from exc


def _exact(amount: object) -> str:
    if isinstance(amount, Decimal):
        return f"{amount:.8f}"
    raise TypeError(f"{amount!r} is no amount")
