"""Configuration: defaults, TOML, environment, secrets from files, and words for every mistake."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from bitcache.config import SECTIONS, Config, known_keys, section_of, warnings
from bitcache.config_file import load, parse
from bitcache.errors import AlreadyInitialised, ConfigInvalid, MasterKeyUnusable
from bitcache.master_key import read_master_key
from bitcache.setup import config_text, initialise
from payments.bitcoind import Bitcoind
from payments.errors import NodeMisconfigured

FOLDER = Path("data")


def parsed(text: str = "", **variables: str) -> Config:
    return parse(tomllib.loads(text), data_folder=FOLDER, variables=variables)


def test_the_template_is_the_defaults_of_its_network() -> None:
    config = parsed(config_text("regtest"))
    defaults = Config(data_folder=FOLDER, network="regtest", node=config.node)
    assert config == defaults
    assert config.node.rpc_url == "http://127.0.0.1:18443"
    assert config.node.rpc_cookie_file == "~/.bitcoin/regtest/.cookie"


def test_the_template_names_every_key_with_its_default() -> None:
    text = config_text("mainnet")
    bare = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
        for line in text.splitlines()
        if not line.startswith("# ") or line.split(" = ")[0].removeprefix("# ") in _names()
    )
    document = tomllib.loads(bare)
    sections = {f"{name}_{key}" for name in SECTIONS for key in document.get(name, {})}
    assert set(document) - set(SECTIONS) | sections == set(known_keys())
    defaults = Config(data_folder=FOLDER)
    for key, value in document.items():
        if key not in SECTIONS:
            shown = tuple(value) if isinstance(value, list) else value
            assert getattr(defaults, key) == shown, key


def _names() -> set[str]:
    return {section_of(key)[1] for key in known_keys()}


def test_variables_override_the_file() -> None:
    config = parsed(
        'price_floor_sat = 5\n[node]\nrpc_url = "http://a:1"',
        BITCACHE_PRICE_FLOOR_SAT="7",
        BITCACHE_NODE_RPC_URL="http://b:2",
        BITCACHE_TRUSTED_PROXIES="10.0.0.0/8, 127.0.0.1",
        BITCACHE_PREFETCH_ALLOWED="false",
        BITCACHE_TOKEN="the client's own",
        BITCACHE_PAY="bitcoind:",
        HOME="/nowhere",
    )
    assert config.price_floor_sat == 7
    assert config.node.rpc_url == "http://b:2"
    assert config.trusted_proxies == ("10.0.0.0/8", "127.0.0.1")
    assert config.prefetch_allowed is False


def test_secrets_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    config = parsed('[node]\nrpc_user = "a"', BITCACHE_NODE_RPC_PASSWORD_FILE=str(tmp_path / "password"))
    assert config.node.rpc_password == "hunter2"
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        parsed(BITCACHE_DATABASE_URL_FILE=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pric_floor_sat = 1", "Did you mean `price_floor_sat`"),
        ("[node]\nrpc_urll = 'x'", "Did you mean `node_rpc_url`"),
        ("node = 'x'", "write \\[node\\]"),
        ("network = 'main'", "network"),
        ("price_floor_sat = -1", "price_floor_sat"),
        ("price_floor_sat = 1.5", "price_floor_sat"),
        ("listen = 'nowhere'", "HOST:PORT"),
        ("listen = '127.0.0.1:70000'", "HOST:PORT"),
        ("public_url = 'ftp://x'", "public_url"),
        ("public_url = 'https://x/'", "slash"),
        ("trusted_proxies = ['ten']", "trusted_proxies"),
        ("registration = 'invite'", "invite_codes"),
        ("[node]\nrpc_user = 'a'", "rpc_password"),
        ("paid_retention_days = 0", "paid_retention_days"),
        ("database_url = 'postgresql+asyncpg//u:hunter2@h/x'", "database_url"),
        ("database_url = 'mysql://u:hunter2@h/x'", "database_url"),
        ("database_url = 'sqlite:///x'", "database_url"),
        ("[node]\nrpc_url = 'http://u:hunter2@127.0.0.1:8332'", "rpc_user"),
        ("[node]\nrpc_url = '127.0.0.1:8332'", "rpc_url"),
        ("[hosted]\nwallet = 'hosted'", "`descriptor`"),
        ("[hosted]\ndescriptor = 'wpkh(x)'\nwallet_passphrase = 'hunter2'", "`wallet_passphrase` is of no"),
        ("[hosted]\nfeerate_sat_vb = 101", "`feerate_max_sat_vb`"),
        ("[hosted]\nfee_percent = 2.5", "in quotes"),
        ("[hosted]\nfee_percent = '101'", 'such as "2.5"'),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words) as refusal:
        parsed(text)
    assert "hunter2" not in str(refusal.value)


def test_a_misspelt_variable_is_named() -> None:
    with pytest.raises(ConfigInvalid, match="Did you mean `public_url`"):
        parsed(BITCACHE_PUBLIC_URLL="http://x")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="bitcache init"):
        load(tmp_path, {})
    (tmp_path / "bitcache.toml").write_text("= nonsense")
    with pytest.raises(ConfigInvalid, match="not valid TOML"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("url", "count"), [("https://x.org", 0), ("http://localhost:1", 0), ("http://x.org", 1)]
)
def test_plain_http_is_warned_of(url: str, count: int) -> None:
    assert len(warnings(parsed(f"public_url = '{url}'"))) == count


def test_a_cookie_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    cookie = tmp_path / ".cookie"
    config = parsed(f"[node]\nrpc_cookie_file = '{cookie}'")
    assert [str(cookie) in warning for warning in warnings(config)] == [True]
    cookie.touch()
    assert warnings(config) == []


@pytest.mark.parametrize(
    ("sign_in", "words"),
    [
        ({}, "nothing says how to sign in"),
        ({"user": "a"}, "nothing says how to sign in"),
        ({"user": "a", "password": "b", "cookie_file": FOLDER / ".cookie"}, "not both"),
    ],
)
def test_how_to_sign_in_to_the_node_is_said_once(sign_in: dict[str, Any], words: str) -> None:
    with pytest.raises(NodeMisconfigured, match=words):
        Bitcoind("http://127.0.0.1:1", **sign_in)


async def test_initialise_makes_private_files_and_overwrites_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    await initialise(folder, network="regtest")
    for name in ("bitcache.toml", "master.key", "bitcache.db"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name
    key = read_master_key(folder / "master.key")
    with pytest.raises(AlreadyInitialised):
        await initialise(folder, network="regtest")
    (folder / "bitcache.toml").unlink()
    with pytest.raises(AlreadyInitialised):
        await initialise(folder, network="regtest")
    assert read_master_key(folder / "master.key") == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_master_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(bytes(32))
    path.chmod(mode)
    with pytest.raises(MasterKeyUnusable, match="chmod 600"):
        read_master_key(path)


def test_a_damaged_or_missing_master_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    with pytest.raises(MasterKeyUnusable, match="backup"):
        read_master_key(path)
    path.write_bytes(bytes(31))
    path.chmod(0o600)
    with pytest.raises(MasterKeyUnusable, match="31 bytes"):
        read_master_key(path)
