"""Wallets of people in the regtest world: an independent payer, and wallets of the outside node.

BitWallet pays with the `bit` library, which shares no code with ours or with the node: offline P2PKH keys,
coins chosen by hand, absolute fees. It cannot pay to taproot; OutsideWallet can, and it is also what a seller
holds: a wallet the server never sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bit import PrivateKeyTestnet
from bit.network.meta import Unspent
from bit.transaction import calc_txid

from regtest.errors import RegtestError
from regtest.node import RegtestNode, btc, sat
from regtest.world import MINER, RegtestWorld

# Smallest P2PKH output a node relays; change below it goes to the fee.
DUST_P2PKH_SAT = 546
SPLIT_FEE_SAT_PER_COIN = 200
DescriptorKind = Literal["wpkh", "tr", "sh(wpkh", "pkh"]


class CoinsMissing(RegtestError):
    """The wallet has no coins for this payment: fund it first."""


@dataclass(frozen=True)
class Coin:
    """An output that a wallet can spend."""

    txid: str
    vout: int
    value_sat: int


@dataclass(frozen=True)
class Payment:
    """A signed transaction. Pass its `inputs` to `pay` again to replace or double-spend it."""

    txid: str
    raw: str
    inputs: tuple[Coin, ...]
    change: Coin | None


class BitWallet:
    """One key of the `bit` library. Start with `await BitWallet.create(world)`."""

    def __init__(self, world: RegtestWorld) -> None:
        self._world = world
        self._key = PrivateKeyTestnet()
        self._payments: list[Payment] = []
        self.address: str = self._key.address
        self.coins: list[Coin] = []

    @classmethod
    async def create(
        cls, world: RegtestWorld, *, coin_sat: int = 10_000_000, coin_count: int = 1
    ) -> BitWallet:
        wallet = cls(world)
        await wallet.fund(coin_sat=coin_sat, coin_count=coin_count)
        return wallet

    async def fund(self, *, coin_sat: int = 10_000_000, coin_count: int = 1) -> None:
        """Get `coin_count` confirmed coins of `coin_sat` each from the miner. Mines a block."""
        # One coin from the miner, split here: forty sends would take the node's wallet seconds.
        split_fee_sat = SPLIT_FEE_SAT_PER_COIN * coin_count if coin_count > 1 else 0
        whole_sat = coin_sat * coin_count + split_fee_sat
        txid = await self._world.faucet(self.address, whole_sat, confirmations=0)
        known = await self._world.outside.rpc("gettransaction", txid, wallet=MINER, verbose=True)
        vout = next(
            output["n"]
            for output in known["decoded"]["vout"]
            if output["scriptPubKey"].get("address") == self.address
        )
        whole = Coin(txid, vout, whole_sat)
        if coin_count == 1:
            self.coins.append(whole)
        else:
            outputs = [(self.address, coin_sat)] * coin_count
            split = await self.pay(outputs, fee_sat=split_fee_sat, inputs=[whole])
            self.coins += [Coin(split.txid, index, coin_sat) for index in range(coin_count)]
        await self._world.mine()

    async def pay(
        self,
        outputs: Sequence[tuple[str, int]],
        *,
        fee_sat: int = 1_000,
        inputs: Sequence[Coin] | None = None,
        broadcast: bool = True,
    ) -> Payment:
        """Pay (address, sat) pairs from `inputs`, or from coins of the wallet's choice, oldest first.

        Spending the `inputs` of an earlier payment again replaces it, if the fee is high enough for the node.
        Raises CoinsMissing, RpcRefused (the node does not want it).
        """
        if fee_sat < 1:
            raise ValueError("bit asks the internet for a fee when it is given none")
        needed_sat = sum(value_sat for _, value_sat in outputs) + fee_sat
        chosen = tuple(inputs) if inputs is not None else self._choose(needed_sat)
        change_sat = sum(coin.value_sat for coin in chosen) - needed_sat
        if change_sat < 0:
            raise CoinsMissing(f"{-change_sat} sat are missing in the coins chosen for this payment")
        if 0 < change_sat < DUST_P2PKH_SAT:
            fee_sat += change_sat
            change_sat = 0
        raw: str = self._key.create_transaction(
            [(address, value_sat, "satoshi") for address, value_sat in outputs],
            fee=fee_sat,
            absolute_fee=True,
            unspents=[
                Unspent(coin.value_sat, 1, self._key.scriptcode.hex(), coin.txid, coin.vout)
                for coin in chosen
            ],
            replace_by_fee=True,
        )
        txid: str = calc_txid(raw)
        change = Coin(txid, len(outputs), change_sat) if change_sat else None
        payment = Payment(txid=txid, raw=raw, inputs=chosen, change=change)
        if broadcast:
            await self.send(payment)
        return payment

    async def send(self, payment: Payment, *, node: RegtestNode | None = None) -> None:
        """Broadcast through `node`, by default the outside; what it spends is no longer among our coins."""
        await (node or self._world.outside).rpc("sendrawtransaction", payment.raw)
        spent = set(payment.inputs)
        replaced = [earlier for earlier in self._payments if spent.intersection(earlier.inputs)]
        gone = spent | {earlier.change for earlier in replaced}
        self.coins = [coin for coin in self.coins if coin not in gone]
        if payment.change is not None and payment.change not in self.coins:
            self.coins.append(payment.change)
        self._payments.append(payment)

    def _choose(self, needed_sat: int) -> tuple[Coin, ...]:
        chosen: list[Coin] = []
        for coin in self.coins:
            if sum(one.value_sat for one in chosen) >= needed_sat:
                break
            chosen.append(coin)
        return tuple(chosen)


class OutsideWallet:
    """A fresh wallet of the outside node. Start with `await OutsideWallet.create(world, "seller")`."""

    def __init__(self, node: RegtestNode, name: str) -> None:
        self._node = node
        self.name = name

    @classmethod
    async def create(cls, world: RegtestWorld, name: str) -> OutsideWallet:
        """`name` must be new in this world."""
        await world.outside.rpc("createwallet", name, load_on_startup=True)
        return cls(world.outside, name)

    @classmethod
    async def create_multisig(
        cls, world: RegtestWorld, name: str, *, signers: Sequence[OutsideWallet], threshold: int
    ) -> OutsideWallet:
        """A watching wallet `wsh(sortedmulti(threshold, ...))` over the wpkh keys of `signers`."""
        keys = []
        for signer in signers:
            descriptor = await signer.descriptor("wpkh")
            keys.append(descriptor.removeprefix("wpkh(").split(")")[0])
        bare = f"wsh(sortedmulti({threshold},{','.join(keys)}))"
        described = await world.outside.rpc("getdescriptorinfo", bare)
        await world.outside.rpc(
            "createwallet", name, disable_private_keys=True, blank=True, load_on_startup=True
        )
        wallet = cls(world.outside, name)
        await wallet.rpc(
            "importdescriptors",
            [{"desc": described["descriptor"], "timestamp": "now", "active": True, "range": [0, 999]}],
        )
        return wallet

    async def rpc(self, method: str, *params: Any, **named: Any) -> Any:
        """Any wallet call, for what is not wrapped here."""
        return await self._node.rpc(method, *params, wallet=self.name, **named)

    async def descriptor(self, kind: DescriptorKind | Literal["wsh"] = "wpkh") -> str:
        """The public ranged receive descriptor of this kind, with checksum."""
        listed = await self.rpc("listdescriptors")
        for entry in listed["descriptors"]:
            if entry["desc"].startswith(kind) and entry["active"] and not entry["internal"]:
                return str(entry["desc"])
        raise RegtestError(f"{self.name} has no {kind} descriptor")

    async def new_address(
        self, kind: Literal["bech32", "bech32m", "p2sh-segwit", "legacy"] = "bech32"
    ) -> str:
        return str(await self.rpc("getnewaddress", address_type=kind))

    async def received_sat(self, address: str, *, confirmations: int = 0) -> int:
        """All that ever came to `address`, also if it was spent since."""
        return sat(await self.rpc("getreceivedbyaddress", address, confirmations))

    async def balance_sat(self, *, confirmations: int = 1) -> int:
        """What the wallet can spend, or 0 confirmations: what it will when all confirms."""
        balances = (await self.rpc("getbalances"))["mine"]
        confirmed = await self.rpc("getbalance", "*", max(confirmations, 1))
        return sat(confirmed if confirmations else balances["trusted"] + balances["untrusted_pending"])

    async def pay(
        self,
        outputs: Sequence[tuple[str, int]],
        *,
        feerate_sat_vb: int = 5,
        inputs: Sequence[Coin] | None = None,
    ) -> Payment:
        """Pay (address, sat) pairs, any kind of address, each once, from confirmed coins, and broadcast."""
        options: dict[str, Any] = {"minconf": 1}
        if inputs is not None:
            options = {
                "inputs": [{"txid": coin.txid, "vout": coin.vout} for coin in inputs],
                "add_inputs": False,
            }
        sent = await self.rpc(
            "send",
            outputs=[{address: btc(value_sat)} for address, value_sat in outputs],
            fee_rate=feerate_sat_vb,
            options=options,
        )
        return await self._payment(sent["txid"])

    async def bump(self, payment: Payment, *, feerate_sat_vb: int) -> Payment:
        """Replace by the same payment at a higher feerate."""
        bumped = await self.rpc("bumpfee", payment.txid, {"fee_rate": feerate_sat_vb})
        return await self._payment(bumped["txid"])

    async def _payment(self, txid: str) -> Payment:
        known = await self.rpc("gettransaction", txid, verbose=True)
        inputs = []
        for spent in known["decoded"]["vin"]:
            parent = await self.rpc("gettransaction", spent["txid"], verbose=True)
            value = parent["decoded"]["vout"][spent["vout"]]["value"]
            inputs.append(Coin(spent["txid"], spent["vout"], sat(value)))
        return Payment(txid=txid, raw=known["hex"], inputs=tuple(inputs), change=None)
