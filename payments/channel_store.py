"""Contracts and channels as rows, and where the chain has their deposits. No decisions, no money.

A contract is a script that a payer asked us to watch; each deposit to it is a channel. What was decided of a
channel is in its row; where its funding is, and what spent it, is what the watcher wrote of transactions.

A payer may send before they ask: such a deposit is found when the channel is opened, not by the watcher.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, Select, delete, exists, func, insert, select, update

from payments import chain_facts
from payments.chain_facts import PaidOutput
from payments.channel import Balance, ChannelState, CloseReason
from payments.channel_errors import ChangeScriptRefused, ChannelNotFound
from payments.channel_record import Agreed, ChannelRecord
from payments.channel_script import CHANGE_SAT_MIN, Channel, Contract
from payments.money import Msat, Sat
from payments.outputs import OutPoint, Presence
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import channel_contracts, channels, paying_inputs, paying_transactions

DEPOSIT_SAT_MIN = CHANGE_SAT_MIN
"""Smaller outputs are not recorded: no node would relay their refund, and whoever sends a contract a thousand
of them would have a thousand channels."""
DEPOSITS_PER_CONTRACT_MAX = 100
"""More are not recorded: whoever has the key takes them back with the refund of each."""
OF_PAYER_MAX = 200
"""So many channels of one key are told of, under however many contracts: clients make a key for each."""
LIVE = (ChannelState.FUNDED, ChannelState.OPEN, ChannelState.CLOSING)


async def announce(
    tx: Transaction, contract: Contract, *, nonce: bytes, now: int, contracts_max: int
) -> None:
    """Keep a contract from now on: every block that is recorded after this commit is read for it.

    Announced again, it stays as it is. Of the contracts that never had a deposit the newest `contracts_max`
    are kept. Raises ChangeScriptRefused if the same keys were announced with another change script.
    """
    known = await contract_of(tx, contract.script_pubkey)
    if known is not None:
        # Whoever signs over another change script signs nothing that fits.
        if known[0] != contract:
            raise ChangeScriptRefused(
                "These keys were announced with another change script before: use that one, or new terms."
            )
        return
    await tx.execute(
        insert(channel_contracts).values(
            script_pubkey=contract.script_pubkey,
            seq=await newest_seq(tx) + 1,
            nonce=nonce,
            payer_key=contract.payer_key,
            payee_key=contract.payee_key,
            expiry_height=contract.expiry_height,
            change_script_pubkey=contract.change_script_pubkey,
            close_fee_sat=contract.close_fee_sat,
            announced_at=now,
        )
    )
    unpaid = ~exists().where(channels.c.script_pubkey == channel_contracts.c.script_pubkey)
    seq = channel_contracts.c.seq
    too_many = select(seq).where(unpaid).order_by(seq.desc()).limit(1).offset(contracts_max)
    oldest_kept = await tx.scalar(too_many)
    if oldest_kept is not None:
        await tx.execute(delete(channel_contracts).where(unpaid, seq <= oldest_kept))


async def contract_of(tx: Transaction, script_pubkey: bytes) -> tuple[Contract, bytes] | None:
    """The contract with this script, and the nonce of its terms."""
    chosen = select(channel_contracts).where(channel_contracts.c.script_pubkey == script_pubkey)
    row = (await tx.execute(chosen)).one_or_none()
    return None if row is None else (_contract(row), row.nonce)


async def newest_seq(tx: Transaction) -> int:
    """Of the contract that was announced, or had a deposit, last; 0 while there is none."""
    return int(await tx.scalar(select(func.max(channel_contracts.c.seq))) or 0)


async def record_deposit(tx: Transaction, txid: str, output: PaidOutput, first_seen_at: int) -> bool:
    """Keep an output to the script of a contract as a channel; False: there is no such contract, or it has
    many already, or the output is too small, or newly mined coins, which cannot be spent for 100 blocks and
    vanish with their block.

    Its transaction is recorded in `paying_transactions` already.
    """
    if output.amount_sat < DEPOSIT_SAT_MIN or await contract_of(tx, output.script_pubkey) is None:
        return False
    funding = select(paying_transactions.c.coinbase).where(paying_transactions.c.txid == txid)
    if await tx.scalar(funding):
        return False
    of_contract = select(func.count()).where(channels.c.script_pubkey == output.script_pubkey)
    if (await tx.execute(of_contract)).scalar_one() >= DEPOSITS_PER_CONTRACT_MAX:
        return False
    await tx.execute(
        insert(channels).values(
            id=str(OutPoint(txid, output.vout)),
            txid=txid,
            vout=output.vout,
            script_pubkey=output.script_pubkey,
            capacity_sat=output.amount_sat,
            seen_at=first_seen_at,
            state=ChannelState.FUNDED,
            accepted_sat=0,
            spent_msat=0,
        )
    )
    # Whoever reads a block just now reads it again, for what spends the deposit.
    await tx.execute(
        update(channel_contracts)
        .where(channel_contracts.c.script_pubkey == output.script_pubkey)
        .values(seq=await newest_seq(tx) + 1)
    )
    return True


async def load(tx: Transaction, channel_id: str) -> ChannelRecord:
    """Raises ChannelNotFound."""
    found = await load_all(tx, [channel_id])
    if not found:
        raise ChannelNotFound(channel_id)
    return found[0]


async def load_all(tx: Transaction, channel_ids: Iterable[str]) -> list[ChannelRecord]:
    """Those of these that there are, by id."""
    found: list[ChannelRecord] = []
    for some in portions(channel_ids):
        found += await _records(tx, _channels().where(channels.c.id.in_(some)))
    return found


async def live(tx: Transaction) -> list[ChannelRecord]:
    """All that are not closed, by id."""
    return await _records(tx, _channels().where(channels.c.state.in_(LIVE)))


async def all_ids(tx: Transaction) -> list[str]:
    """Of every channel there ever was."""
    return list((await tx.scalars(select(channels.c.id).order_by(channels.c.id))).all())


async def of_payer(tx: Transaction, payer_key: bytes) -> list[ChannelRecord]:
    """The newest OF_PAYER_MAX, whatever became of them, the first seen first."""
    of_key = _channels().where(channel_contracts.c.payer_key == payer_key)
    newest = of_key.order_by(None).order_by(channels.c.seen_at.desc(), channels.c.id).limit(OF_PAYER_MAX)
    found = await _records(tx, newest)
    return sorted(found, key=lambda record: (record.seen_at, record.id))


async def of_script(tx: Transaction, script_pubkey: bytes) -> list[ChannelRecord]:
    """Deposits under one contract, whatever became of them, the first seen first."""
    found = await _records(tx, _channels().where(channels.c.script_pubkey == script_pubkey))
    return sorted(found, key=lambda record: (record.seen_at, record.id))


async def spends_of(tx: Transaction, channel_ids: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Channel id -> what spent its deposit in a block of the active chain: txid and height."""
    found: dict[str, tuple[str, int]] = {}
    for some in portions(channel_ids):
        rows = await tx.execute(
            select(channels.c.id, paying_transactions.c.txid, paying_transactions.c.height)
            .select_from(channels)
            .join(paying_inputs, chain_facts.spends_deposit())
            .join(paying_transactions, paying_transactions.c.txid == paying_inputs.c.txid)
            .where(channels.c.id.in_(some), paying_transactions.c.presence == Presence.BLOCK)
        )
        found |= {row.id: (row.txid, row.height) for row in rows.all()}
    return found


async def scripts_after(tx: Transaction, seq: int) -> tuple[list[bytes], int]:
    """The scripts of contracts that were announced, or had a deposit, since, and the newest `seq`."""
    chosen = select(channel_contracts.c.script_pubkey, channel_contracts.c.seq)
    rows = (await tx.execute(chosen.where(channel_contracts.c.seq > seq))).all()
    return [row.script_pubkey for row in rows], max((row.seq for row in rows), default=seq)


async def scripts_among(tx: Transaction, script_pubkeys: Iterable[bytes]) -> set[bytes]:
    """Those of these scripts that are a contract's."""
    found: set[bytes] = set()
    for some in portions(script_pubkeys):
        of_these = channel_contracts.c.script_pubkey.in_(some)
        found |= set((await tx.scalars(select(channel_contracts.c.script_pubkey).where(of_these))).all())
    return found


async def outpoints_among(tx: Transaction, outpoints: Iterable[OutPoint]) -> set[OutPoint]:
    """Those of these outpoints that are a channel's deposit."""
    found: set[OutPoint] = set()
    for some in portions(str(outpoint) for outpoint in outpoints):
        rows = await tx.execute(select(channels.c.txid, channels.c.vout).where(channels.c.id.in_(some)))
        found |= {OutPoint(row.txid, row.vout) for row in rows.all()}
    return found


async def deposits_to(tx: Transaction, script_pubkeys: Iterable[bytes]) -> set[OutPoint]:
    """Every one there ever was."""
    found: set[OutPoint] = set()
    for some in portions(script_pubkeys):
        of_these = channels.c.script_pubkey.in_(some)
        rows = await tx.execute(select(channels.c.txid, channels.c.vout).where(of_these))
        found |= {OutPoint(row.txid, row.vout) for row in rows.all()}
    return found


async def watched_outpoints(tx: Transaction, *, spent_above: int) -> list[OutPoint]:
    """Every deposit that no block at most so high has spent: a reorg can bring the others back."""
    spent = (
        exists()
        .where(chain_facts.spends_deposit())
        .where(
            paying_transactions.c.txid == paying_inputs.c.txid,
            paying_transactions.c.presence == Presence.BLOCK,
            paying_transactions.c.height <= spent_above,
        )
    )
    rows = await tx.execute(select(channels.c.txid, channels.c.vout).where(~spent))
    return [OutPoint(row.txid, row.vout) for row in rows.all()]


def _channels() -> Select[Any]:
    return (
        select(
            channels,
            channel_contracts.c.nonce,
            channel_contracts.c.payer_key,
            channel_contracts.c.payee_key,
            channel_contracts.c.expiry_height,
            channel_contracts.c.change_script_pubkey,
            channel_contracts.c.close_fee_sat,
            paying_transactions.c.presence,
            paying_transactions.c.height,
            paying_transactions.c.conflict_height,
        )
        .join(channel_contracts, channel_contracts.c.script_pubkey == channels.c.script_pubkey)
        .outerjoin(paying_transactions, paying_transactions.c.txid == channels.c.txid)
        .order_by(channels.c.id)
    )


async def _records(tx: Transaction, chosen: Select[Any]) -> list[ChannelRecord]:
    contracts: dict[bytes, Contract] = {}
    found = []
    for row in (await tx.execute(chosen)).all():
        if row.script_pubkey not in contracts:
            contracts[row.script_pubkey] = _contract(row)
        found.append(_record(row, contracts[row.script_pubkey]))
    return found


def _record(row: Row[Any], contract: Contract) -> ChannelRecord:
    agreed = None
    if row.agreed_signature is not None:
        agreed = Agreed(Sat(row.agreed_paid_sat), Sat(row.agreed_fee_sat), row.agreed_signature)
    return ChannelRecord(
        channel=Channel(contract, OutPoint(row.txid, row.vout), Sat(row.capacity_sat)),
        nonce=row.nonce,
        state=ChannelState(row.state),
        balance=Balance(Sat(row.accepted_sat), row.signature, Msat(row.spent_msat)),
        close_reason=None if row.close_reason is None else CloseReason(row.close_reason),
        close_asked_at=row.close_asked_at,
        agreed=agreed,
        funding=Presence.MISSING if row.presence is None else Presence(row.presence),
        funding_height=row.height,
        funding_lost_height=row.conflict_height,
        seen_at=row.seen_at,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        trouble=row.trouble,
    )


def _contract(row: Row[Any]) -> Contract:
    return Contract(
        payer_key=row.payer_key,
        payee_key=row.payee_key,
        expiry_height=row.expiry_height,
        change_script_pubkey=row.change_script_pubkey,
        close_fee_sat=Sat(row.close_fee_sat),
    )
