"""The operator's wallet inside our own node, open only while it signs a payout.

An open wallet holds up the node's events, and an unlocked one is a risk: it is closed again whatever happens.
Two processes may sign at once: whoever finds the wallet closed by the other opens it once more.
Source: Bitcoin Core's RPC help.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from msgspec import Struct

from payments.bitcoind import RPC_METHOD_NOT_FOUND, Bitcoind
from payments.bitcoind_psbt import PsbtNode, psbt_refusal
from payments.errors import (
    NodeMisconfigured,
    NodeRefused,
    NodeUnavailable,
    WalletCannotSign,
    WalletLocked,
    WalletNotFound,
    WalletNotLoaded,
)
from payments.psbt import transaction_in

log = logging.getLogger(__name__)

LOAD_S_MAX = 600.0
"""The wallet reads the blocks since it was last open."""
SIGN_S_MAX = 120.0
UNLOCKED_S = 30
"""The node locks the wallet again by itself, should we die."""
ATTEMPTS_MAX = 8
RETRY_S = 0.25

# Bitcoin Core's src/rpc/protocol.h.
RPC_WALLET_ERROR = -4
RPC_WALLET_UNLOCK_NEEDED = -13
RPC_WALLET_PASSPHRASE_INCORRECT = -14
RPC_WALLET_WRONG_ENCRYPTION_STATE = -15
RPC_WALLET_NOT_FOUND = -18
RPC_WALLET_ALREADY_LOADED = -35
NO_SUCH_PATH_REASON = "Path does not exist"


class PayoutWallet:
    """The wallet `name` of this node; `passphrase` if it is encrypted."""

    def __init__(self, node: Bitcoind, name: str, *, passphrase: str | None = None) -> None:
        self.name = name
        self._rpc = node.rpc
        self._psbts = PsbtNode(node)
        self._passphrase = passphrase
        self._turn = asyncio.Lock()

    async def sign(self, psbt: str) -> str:
        """The PSBT, base64, with every input signed.

        The wallet is closed afterwards, also if it was open before.

        Raises PsbtInvalid, WalletNotFound, WalletNotLoaded, WalletLocked, WalletCannotSign (also if it signed
        some of the inputs), NodeMisconfigured (the node runs without wallets), NodeUnavailable.
        """
        transaction_in(psbt)
        async with self._turn:
            for attempts_left in reversed(range(ATTEMPTS_MAX)):
                try:
                    return await self._sign_once("".join(psbt.split()))
                except NodeRefused as exc:
                    if attempts_left == 0 or not self._is_passing(exc):
                        raise self._error(exc) from exc
                await asyncio.sleep(RETRY_S)
        raise AssertionError("the last attempt ends in an answer or an error")

    async def unload_if_left(self) -> bool:
        """Close the wallet if a process that died left it open; whether it was.

        Another process that is signing just now opens it again.
        """
        try:
            if self.name not in await self._rpc.call("listwallets", answer=list[str]):
                return False
        except NodeRefused as exc:
            if exc.code == RPC_METHOD_NOT_FOUND:
                return False
            raise
        await self._unload()
        return True

    async def exists(self) -> bool:
        """Whether the node has it, open or not. Raises NodeMisconfigured, NodeUnavailable."""
        try:
            listed = await self._rpc.call("listwalletdir", answer=_WalletsWire)
        except NodeRefused as exc:
            raise self._error(exc) from exc
        return any(wallet.name == self.name for wallet in listed.wallets)

    async def _sign_once(self, psbt: str) -> str:
        # Never abandoned: a wallet that opens after we gave up would stay open.
        loading = asyncio.ensure_future(self._load())
        try:
            await asyncio.shield(loading)
            await self._unlock()
            signed = await self._rpc.call(
                "walletprocesspsbt", psbt, True, answer=_SignedWire, wallet=self.name, timeout_s=SIGN_S_MAX
            )
        finally:
            await _to_its_end(self._close_after(loading))
        if not signed.complete:
            raise WalletCannotSign(self.name, await self._psbts.unsigned_inputs(signed.psbt))
        return signed.psbt

    async def _load(self) -> None:
        try:
            await self._rpc.call("loadwallet", self.name, answer=dict[str, Any], timeout_s=LOAD_S_MAX)
        except NodeRefused as exc:
            if exc.code == RPC_WALLET_NOT_FOUND:
                # Also what is there and is no wallet.
                absent = NO_SUCH_PATH_REASON in exc.message
                raise (
                    WalletNotFound(self.name) if absent else WalletNotLoaded(self.name, exc.message)
                ) from exc
            if exc.code != RPC_WALLET_ALREADY_LOADED:
                raise

    async def _unlock(self) -> None:
        if self._passphrase is None:
            return
        try:
            await self._rpc.call(
                "walletpassphrase", self._passphrase, UNLOCKED_S, answer=object, wallet=self.name
            )
        except NodeRefused as exc:
            # A passphrase for a wallet that needs none does no harm.
            if exc.code != RPC_WALLET_WRONG_ENCRYPTION_STATE:
                raise

    async def _close_after(self, loading: "asyncio.Future[None]") -> None:
        await asyncio.wait([loading])
        if not loading.cancelled() and isinstance(loading.exception(), WalletNotFound | WalletNotLoaded):
            return
        try:
            await self._unload()
        except (NodeUnavailable, NodeRefused) as exc:
            # What was signed is worth more than a tidy node; the next start closes it.
            log.warning("the payout wallet may still be open in the node: %s", exc)

    async def _unload(self) -> None:
        try:
            await self._rpc.call("unloadwallet", self.name, answer=object)
        except NodeRefused as exc:
            if exc.code not in (RPC_WALLET_NOT_FOUND, RPC_METHOD_NOT_FOUND):
                raise

    def _is_passing(self, refusal: NodeRefused) -> bool:
        """Whether it comes of another process that opens or closes the wallet just now."""
        if refusal.code == RPC_WALLET_UNLOCK_NEEDED:
            return self._passphrase is not None
        return refusal.code in (RPC_WALLET_NOT_FOUND, RPC_WALLET_ERROR)

    def _error(self, refusal: NodeRefused) -> Exception:
        if refusal.code == RPC_METHOD_NOT_FOUND:
            return NodeMisconfigured(
                "the node runs without wallets: take `disablewallet` out of its bitcoin.conf and restart it, "
                "or sign payouts outside"
            )
        if refusal.code in (RPC_WALLET_UNLOCK_NEEDED, RPC_WALLET_PASSPHRASE_INCORRECT):
            return WalletLocked(self.name, passphrase_wrong=self._passphrase is not None)
        if refusal.code == RPC_WALLET_NOT_FOUND:
            return NodeUnavailable(
                f"others keep closing the wallet {self.name!r} while it is to sign: try again later"
            )
        if refusal.code == RPC_WALLET_ERROR:
            return WalletNotLoaded(self.name, refusal.message)
        return psbt_refusal(refusal)


class _WalletWire(Struct, frozen=True):
    name: str


class _WalletsWire(Struct, frozen=True):
    wallets: list[_WalletWire]


class _SignedWire(Struct, frozen=True):
    psbt: str
    complete: bool


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Run it through, also when we are cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
