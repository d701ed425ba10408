"""Segwit addresses: the vectors of BIP173 and BIP350, and every way in which a text is no such address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.channel_errors import AddressInvalid
from payments.segwit_address import CHARACTERS, PREFIXES, address_of, script_pubkey_of

NETWORK_OF_PREFIX = {"bc": "mainnet", "tb": "testnet4"}
# From BIP350, which corrects those of BIP173.
VALID = {
    "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4": "0014751e76e8199196d454941c45d1b3a323f1433bd6",
    "tb1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3q0sl5k7": (
        "00201863143c14c5166804bd19203356da136c985678cd4d27a1b8c6329604903262"
    ),
    "bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y": (
        "5128751e76e8199196d454941c45d1b3a323f1433bd6751e76e8199196d454941c45d1b3a323f1433bd6"
    ),
    "BC1SW50QGDZ25J": "6002751e",
    "bc1zw508d6qejxtdg4y5r3zarvaryvaxxpcs": "5210751e76e8199196d454941c45d1b3a323",
    "tb1qqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesrxh6hy": (
        "0020000000c4a5cad46221b2a187905e5266362b99d5e91c6ce24d165dab93e86433"
    ),
    "tb1pqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesf3hn0c": (
        "5120000000c4a5cad46221b2a187905e5266362b99d5e91c6ce24d165dab93e86433"
    ),
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0": (
        "512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    ),
}
INVALID = {
    "another human-readable part": "tc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq5zuyut",
    "bech32, version 1": "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",
    "bech32, version 2": "tb1z0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqglt7rf",
    "bech32, version 16": "BC1S0XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ54WELL",
    "bech32m, version 0": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh",
    "bech32m, version 0, 32 bytes": "tb1q0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq24jc47",
    "a character that is none, in the checksum": (
        "bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4"
    ),
    "version 17": "BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R",
    "1 byte": "bc1pw5dgrnzv",
    "41 bytes": "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v8n0nx0muaewav253zgeav",
    "version 0 with 16 bytes": "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P",
    "mixed case": "tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq47Zagq",
    "padding of more than 4 bits": "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf",
    "padding that is not zero": "tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vpggkg4j",
    "no data": "bc1gmk9yu",
    "nothing": "",
    "a prefix alone": "bc1",
    "no separator": "bcqw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "a space behind it": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4 ",
    "base58": "1BgGZ9tcN4rm9KBzDn7KprQz87SZ26SAMH",
    # Its lower case is a k.
    "the sign of kelvin": "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7\u212aV8F3T4",
    "91 characters": "bc1p" + "q" * 87,
}
SCRIPTS_REFUSED = {
    "nothing": "",
    "an opcode alone": "00",
    "P2PKH": "76a914" + "00" * 20 + "88ac",
    "P2SH": "a914" + "00" * 20 + "87",
    "OP_RETURN": "6a0401020304",
    "the opcode between OP_0 and OP_1": "5014" + "00" * 20,
    "the opcode behind OP_16": "6114" + "00" * 20,
    "version 0 with 21 bytes": "0015" + "00" * 21,
    "1 byte": "510100",
    "41 bytes": "5129" + "00" * 41,
    "a length that is wrong": "0014" + "00" * 21,
}


@pytest.mark.parametrize("address", VALID)
def test_an_address_of_the_bips_stands_for_its_script(address: str) -> None:
    network = NETWORK_OF_PREFIX[address[:2].lower()]
    assert script_pubkey_of(address, network).hex() == VALID[address]
    assert address_of(bytes.fromhex(VALID[address]), network) == address.lower()


@pytest.mark.parametrize("address", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("network", PREFIXES)
def test_what_is_no_address_is_refused(address: str, network: str) -> None:
    with pytest.raises(AddressInvalid):
        script_pubkey_of(address, network)


@pytest.mark.parametrize("script", SCRIPTS_REFUSED.values(), ids=SCRIPTS_REFUSED)
def test_other_scripts_have_no_segwit_address(script: str) -> None:
    with pytest.raises(AddressInvalid):
        address_of(bytes.fromhex(script), "mainnet")


def test_an_address_of_another_network_is_refused() -> None:
    script = bytes.fromhex("0014" + "11" * 20)
    addresses = {network: address_of(script, network) for network in PREFIXES}
    assert addresses["signet"] == addresses["testnet4"]
    for network, prefix in PREFIXES.items():
        for other, address in addresses.items():
            if PREFIXES[other] == prefix:
                assert script_pubkey_of(address, network) == script
            else:
                with pytest.raises(AddressInvalid, match=f"{prefix}1"):
                    script_pubkey_of(address, network)


programs = st.one_of(
    st.binary(min_size=20, max_size=20).map(lambda program: (0, program)),
    st.binary(min_size=32, max_size=32).map(lambda program: (0, program)),
    st.tuples(st.integers(1, 16), st.binary(min_size=2, max_size=40)),
)
networks = st.sampled_from(sorted(PREFIXES))


@given(programs, networks)
def test_every_witness_program_has_one_address(program: tuple[int, bytes], network: str) -> None:
    version, octets = program
    script = bytes([0x50 + version if version else 0, len(octets)]) + octets
    address = address_of(script, network)
    assert script_pubkey_of(address, network) == script_pubkey_of(address.upper(), network) == script


@given(programs, st.data())
def test_one_to_four_wrong_characters_are_found(program: tuple[int, bytes], data: st.DataObject) -> None:
    version, octets = program
    address = address_of(bytes([0x50 + version if version else 0, len(octets)]) + octets, "mainnet")
    places = data.draw(st.sets(st.integers(3, len(address) - 1), min_size=1, max_size=4))
    characters = list(address)
    for place in places:
        others = CHARACTERS.replace(address[place], "")
        characters[place] = data.draw(st.sampled_from(others))
    with pytest.raises(AddressInvalid):
        script_pubkey_of("".join(characters), "mainnet")


def test_an_address_of_the_old_kind_is_told_which_kind_is_wanted() -> None:
    with pytest.raises(AddressInvalid, match="Give a segwit address of mainnet: it begins with bc1"):
        script_pubkey_of("1BgGZ9tcN4rm9KBzDn7KprQz87SZ26SAMH", "mainnet")
