"""Our node's calls about partially signed transactions. None of them needs a wallet, or `-txindex`.

Errors as in `bitcoind`. Source: Bitcoin Core's RPC help; BIP174.
"""

from collections.abc import Sequence
from decimal import Decimal

from msgspec import Struct, field

from payments import bitcoind_coins
from payments.bitcoind import Bitcoind, octets_of, sat_of
from payments.bitcoind_coins import Descriptors, UnspentScan, ranges_of
from payments.errors import NodeRefused, PreviousTransactionMissing, PsbtIncomplete, PsbtInvalid
from payments.money import Sat
from payments.outputs import OutPoint
from payments.psbt import WHAT_TO_GIVE, transaction_in, unsigned_psbt
from payments.transaction import parse_transaction

ERRORS_TOLD_MAX = 5
CALL_S_MAX = 120.0
"""For what the node derives or checks in bulk."""
RPC_DESERIALIZATION_ERROR = -22


class PsbtNode:
    """These calls of one node, on its connections."""

    def __init__(self, node: Bitcoind) -> None:
        self._rpc = node.rpc

    async def psbt_of(self, unsigned: bytes, descriptors: Descriptors) -> str:
        """The PSBT, base64, of an unsigned transaction, ready to sign: coins, scripts, key origins.

        `descriptors` tell how inputs are signed, and which outputs are our own change. The transactions that
        made the coins are included where the node has them. Coins that only the mempool spends are fine.
        Raises TransactionMalformed, CoinsSpent, PreviousTransactionMissing (coins that are not segwit, on a
        node that has pruned their blocks).
        """
        transaction = parse_transaction(unsigned)
        coins = await bitcoind_coins.coins_at(self._rpc, transaction.inputs)
        previous = await bitcoind_coins.previous_transactions(self._rpc, coins)
        bare = unsigned_psbt(unsigned, previous, outputs=len(transaction.outputs))
        psbt = await self._rpc.call(
            "utxoupdatepsbt", bare, ranges_of(descriptors), answer=str, timeout_s=CALL_S_MAX
        )
        analysis = await self._analysis(psbt)
        unknown = [
            outpoint
            for outpoint, one in zip(transaction.inputs, analysis.inputs, strict=True)
            if not one.has_utxo
        ]
        if unknown:
            raise PreviousTransactionMissing(unknown)
        return psbt

    async def vsize_vbytes(self, psbt: str) -> int:
        """Size of the transaction once it is signed, with signatures as long as Bitcoin Core makes them.

        Others make some of them a byte longer: half a percent of the whole at most. The PSBT must tell how
        each input is signed, as that of `psbt_of` does with the right descriptors. Raises PsbtInvalid.
        """
        analysis = await self._analysis(psbt)
        if analysis.estimated_vsize is None:
            raise PsbtInvalid(
                analysis.error
                or "the PSBT does not tell how its inputs are signed: name the descriptors that own its coins"
            )
        return analysis.estimated_vsize

    async def finalize(self, psbt: str) -> bytes:
        """The final transaction of a signed PSBT, base64. Compare it with what was asked for before use.

        Signatures that a signer has made final are not checked here: `signatures_wrong` does. Raises
        PsbtInvalid, PsbtIncomplete.
        """
        transaction_in(psbt)
        try:
            final = await self._rpc.call(
                "finalizepsbt", "".join(psbt.split()), answer=_FinalWire, timeout_s=CALL_S_MAX
            )
        except NodeRefused as exc:
            raise psbt_refusal(exc) from exc
        if not final.complete:
            raise PsbtIncomplete(await self.unsigned_inputs(final.psbt))
        return octets_of(final.hex)

    async def unsigned_inputs(self, psbt: str) -> tuple[int, ...]:
        """Which inputs are not final, counted from 0. Raises PsbtInvalid."""
        analysis = await self._analysis(psbt)
        return tuple(n for n, one in enumerate(analysis.inputs) if not one.is_final)

    async def signatures_wrong(self, raw: bytes) -> str | None:
        """By what input, in the node's words, a transaction is not signed; None if it is, whatever it pays.

        A coin that the node does not know, or that a block has spent, is said too: nothing can be checked.
        """
        signed = await self._rpc.call(
            # Signing with no keys at all checks what is there.
            "signrawtransactionwithkey",
            raw.hex(),
            [],
            answer=_SignedWire,
            timeout_s=CALL_S_MAX,
        )
        if signed.complete:
            return None
        told = signed.errors[:ERRORS_TOLD_MAX]
        return (
            "; ".join(f"input {one.txid}:{one.vout}: {one.error}" for one in told) or "the node says no more"
        )

    async def scan_unspent(self, descriptors: Descriptors) -> UnspentScan:
        """All unspent outputs of these descriptors in the chain: takes minutes on mainnet.

        Raises NodeUnavailable while the node scans for somebody else.
        """
        return await bitcoind_coins.scan_unspent(self._rpc, descriptors)

    async def mempool_spenders(self, outpoints: Sequence[OutPoint]) -> dict[OutPoint, str]:
        """Outpoint -> txid of the mempool's transaction that spends it, where there is one."""
        return await bitcoind_coins.mempool_spenders(self._rpc, outpoints)

    async def payees_of(self, raw: bytes) -> list[tuple[str | None, Sat]]:
        """(address, or None for a script that has none; amount) of each output of a transaction."""
        decoded = await self._rpc.call("decoderawtransaction", raw.hex(), answer=_DecodedWire)
        return [(output.script_pubkey.address, sat_of(output.value)) for output in decoded.vout]

    async def _analysis(self, psbt: str) -> "_AnalysisWire":
        try:
            return await self._rpc.call("analyzepsbt", psbt, answer=_AnalysisWire, timeout_s=CALL_S_MAX)
        except NodeRefused as exc:
            raise psbt_refusal(exc) from exc


def psbt_refusal(refusal: NodeRefused) -> Exception:
    """PsbtInvalid, if that is why the node refused a call with a PSBT; else the refusal itself."""
    if refusal.code != RPC_DESERIALIZATION_ERROR:
        return refusal
    return PsbtInvalid(f"the node cannot read the PSBT ({refusal.message}): {WHAT_TO_GIVE}")


class _ScriptWire(Struct, frozen=True):
    address: str | None = None


class _OutputWire(Struct, frozen=True):
    value: Decimal
    script_pubkey: _ScriptWire = field(name="scriptPubKey")


class _DecodedWire(Struct, frozen=True):
    vout: Sequence[_OutputWire]


class _InputWire(Struct, frozen=True):
    has_utxo: bool
    is_final: bool


class _AnalysisWire(Struct, frozen=True):
    inputs: Sequence[_InputWire] = ()
    estimated_vsize: int | None = None
    error: str = ""


class _FinalWire(Struct, frozen=True):
    complete: bool
    psbt: str = ""
    hex: str = ""


class _ErrorWire(Struct, frozen=True):
    txid: str
    vout: int
    error: str


class _SignedWire(Struct, frozen=True):
    complete: bool
    errors: Sequence[_ErrorWire] = ()
