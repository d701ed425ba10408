"""Signatures that leave part of a transaction open: anybody who sees it could put in what they like. Pure.

Sources: BIP66 (how ECDSA signatures are written, the type behind them), BIP341 and BIP342 (Schnorr).
"""

from collections.abc import Iterator, Sequence

from bitcoin.core import CTransaction
from bitcoin.core.script import CScript, CScriptInvalidError

SIGHASH_ALL = 0x01
"""All inputs and all outputs. A Schnorr signature without this byte says the same."""
DER_SEQUENCE = 0x30
DER_BYTES = range(9, 74)
SCHNORR_BYTES = 64
ANNEX = 0x50
CONTROL_BLOCK = 0xC0
CONTROL_BLOCK_BYTES, PATH_NODE_BYTES = 33, 32


def open_inputs(raw: bytes) -> list[int]:
    """The inputs, counted from 0, with a signature that is not for all inputs and all outputs.

    `raw` is a transaction that can be read.
    """
    transaction = CTransaction.deserialize(raw)
    witnesses = transaction.wit.vtxinwit
    found = []
    for n, spent in enumerate(transaction.vin):
        stack = [bytes(item) for item in witnesses[n].scriptWitness.stack] if n < len(witnesses) else []
        if any(kind != SIGHASH_ALL for kind in _hash_types(_pushes(spent.scriptSig), stack)):
            found.append(n)
    return found


def _hash_types(pushes: Sequence[bytes], stack: Sequence[bytes]) -> Iterator[int]:
    for item in (*pushes, *stack):
        if len(item) in DER_BYTES and item[0] == DER_SEQUENCE and item[1] == len(item) - 3:
            yield item[-1]
    for item in _taproot_arguments(stack):
        if len(item) == SCHNORR_BYTES + 1:
            yield item[-1]


def _taproot_arguments(stack: Sequence[bytes]) -> Sequence[bytes]:
    """What may be Schnorr signatures: the only item, by key; all but the script and its path, by script."""
    if len(stack) > 1 and stack[-1][:1] == bytes([ANNEX]):
        stack = stack[:-1]
    if len(stack) == 1:
        return stack
    if not stack:
        return ()
    block = stack[-1]
    is_control_block = (
        len(block) >= CONTROL_BLOCK_BYTES
        and (len(block) - CONTROL_BLOCK_BYTES) % PATH_NODE_BYTES == 0
        and block[0] & 0xFE == CONTROL_BLOCK
    )
    return stack[:-2] if is_control_block else ()


def _pushes(script_sig: CScript) -> list[bytes]:
    try:
        return [part for part in script_sig if isinstance(part, bytes)]
    except CScriptInvalidError:
        return []  # no node would take it
