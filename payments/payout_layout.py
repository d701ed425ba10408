"""How the payouts of a batch lie in its transaction: places, amounts, fees. Pure."""

from collections.abc import Sequence

from payments.batch_store import Batch, Version
from payments.money import Sat
from payments.payout import Payout, Share, split_fee
from payments.payout_transaction import Payee, differences, output_vbytes


def change_of(batch: Batch) -> Payee | None:
    """Its change output, the same in every version."""
    if batch.change_script_pubkey is None:
        return None
    return Payee(batch.change_sat, batch.change_script_pubkey)


def shares_at(
    members: Sequence[Payout], fee_sat: Sat, vsize_vbytes: int, change: Payee | None
) -> list[Share]:
    """What each gets when the batch pays this fee, in the order of the outputs.

    Those stand sorted by script: nothing tells which one is the change.
    """
    outputs = [(payout.amount_sat, output_vbytes(payout.script_pubkey)) for payout in members]
    fees = split_fee(fee_sat, outputs, vsize_vbytes=vsize_vbytes)
    places = _places(members, change)
    shares = [
        Share(payout.id, places[payout.id], Sat(payout.amount_sat - fee), fee)
        for payout, fee in zip(members, fees, strict=True)
    ]
    return sorted(shares, key=lambda share: share.vout)


def payees_of(members: Sequence[Payout], shares: Sequence[Share], change: Payee | None) -> list[Payee]:
    """The outputs in their order."""
    scripts = {payout.id: payout.script_pubkey for payout in members}
    payees = {share.vout: Payee(share.arrives_sat, scripts[share.payout_id]) for share in shares}
    return [payees.get(vout) or _present(change) for vout in range(len(members) + (change is not None))]


def _places(members: Sequence[Payout], change: Payee | None) -> dict[str, int]:
    keys = [(payout.script_pubkey, payout.id) for payout in members]
    if change is not None:
        keys.append((change.script_pubkey, ""))
    return {payout_id: vout for vout, (_, payout_id) in enumerate(sorted(keys))}


def _present(change: Payee | None) -> Payee:
    assert change is not None, "the one place that no payout has is the change's"
    return change


def matching_version(batch: Batch, raw: bytes) -> Version | None:
    """The version of which `raw` differs in its signatures alone. Raises TransactionMalformed."""
    return next((one for one in reversed(batch.versions) if not differences(one.unsigned, raw)), None)
