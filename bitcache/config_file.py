"""The server's configuration: `bitcache.toml` in the data folder, overridden by BITCACHE_* variables.

`[node] rpc_url` is BITCACHE_NODE_RPC_URL. Secrets may also come from a file, named by the variable with _FILE
added.
Unknown keys are errors: a misspelt limit must not silently be the default.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bitcache.config import CONFIG_FILE_NAME, SECTIONS, Config, HostedConfig, known_keys, section_of
from bitcache.errors import ConfigInvalid

VARIABLE_PREFIX = "BITCACHE_"
SECRETS = frozenset({"database_url", "invite_codes", "node_rpc_password", "hosted_wallet_passphrase"})
# Variables of the command line and the client, which share the prefix.
FOREIGN_VARIABLES = frozenset(
    {"BITCACHE_DATA", "BITCACHE_PAY", "BITCACHE_SERVER", "BITCACHE_TOKEN", "BITCACHE_TOKEN_FILE"}
)
FEE_PERCENT_WRONG = (
    '`fee_percent` under [hosted] is a part of each sale, in quotes: from "0" to "100", with at most four '
    'digits after the point, such as "2.5".'
)
_DATABASE_URL = re.compile(r"(sqlite[+]aiosqlite:///|postgresql[+]asyncpg://)[^\s]")


def load(data_folder: Path, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration of the server in `data_folder`. Raises ConfigInvalid."""
    path = data_folder / CONFIG_FILE_NAME
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError as exc:
        raise ConfigInvalid(
            f"There is no {path}. Run `bitcache init {data_folder}`, or give the right folder with --data."
        ) from exc
    except (ValueError, RecursionError) as exc:
        # Whatever is wrong with the text: TOML's own errors are ValueErrors, and so are those of its numbers.
        raise ConfigInvalid(f"{path} is not valid TOML: {exc}.") from exc
    variables = os.environ if environment is None else environment
    return parse(document, data_folder=data_folder, variables=variables)


def parse(
    document: Mapping[str, Any], *, data_folder: Path, variables: Mapping[str, str] | None = None
) -> Config:
    """A checked configuration from a parsed TOML document and environment variables. Raises ConfigInvalid."""
    _refuse_unknown(_flatten(document), "the configuration")
    values: dict[str, Any] = {**document, "data_folder": str(data_folder)}
    values |= {section: dict(document.get(section, {})) for section in SECTIONS}
    for key, text in _overrides(variables or {}).items():
        section, name = section_of(key)
        target = values[section] if section else values
        target[name] = _items(text) if key in {"invite_codes", "trusted_proxies"} else text
    try:
        config = msgspec.convert(values, Config, strict=False, dec_hook=_path)
    except (msgspec.ValidationError, UnicodeEncodeError) as exc:
        if "hosted.fee_percent" in str(exc):
            raise ConfigInvalid(FEE_PERCENT_WRONG) from exc
        raise ConfigInvalid(f"The configuration is not usable: {exc}.") from exc
    _check(config)
    return config


def _flatten(document: Mapping[str, Any]) -> list[str]:
    keys = [key for key in document if key not in SECTIONS]
    for name in SECTIONS:
        section = document.get(name, {})
        if not isinstance(section, Mapping):
            raise ConfigInvalid(
                f"`{name}` is a section: write [{name}] on a line of its own, its keys below it."
            )
        keys += [f"{name}_{key}" for key in section]
    return keys


def _overrides(variables: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, text in variables.items():
        if not variable.startswith(VARIABLE_PREFIX) or variable in FOREIGN_VARIABLES:
            continue
        key = variable.removeprefix(VARIABLE_PREFIX).lower()
        secret = key.removesuffix("_file")
        if key.endswith("_file") and secret in SECRETS:
            found[secret] = _secret_from(variable, Path(text))
        else:
            _refuse_unknown([key], f"the environment ({variable})")
            found[key] = text
    return found


def _secret_from(variable: str, path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigInvalid(f"{variable} names {path}, which cannot be read: {exc}.") from exc


def _refuse_unknown(keys: list[str], where: str) -> None:
    known = known_keys()
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ConfigInvalid(f"Unknown key `{key}` in {where}.{hint}")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _is_address(public_url: str) -> bool:
    try:
        url = urlsplit(public_url)
        _ = url.port
    except ValueError:
        return False
    named = url.scheme in {"http", "https"} and url.hostname
    return bool(named) and not url.query and not url.fragment


def _path(expected: type, value: object) -> Any:
    if expected is Path:
        return Path(str(value))
    raise NotImplementedError(expected)


def _check(config: Config) -> None:
    host, colon, port = config.listen.rpartition(":")
    if not (colon and host and re.fullmatch("[0-9]{1,5}", port) and int(port) < 65_536):
        raise ConfigInvalid(f"`listen` is {config.listen!r}; write HOST:PORT, such as 127.0.0.1:8421.")
    if not _is_address(config.public_url):
        raise ConfigInvalid(
            f"`public_url` is {config.public_url!r}; write the address people use, such as https://x.org."
        )
    if config.public_url.endswith("/"):
        raise ConfigInvalid("`public_url` must not end with a slash: links are made by appending to it.")
    try:
        _ = config.proxies
    except ValueError as exc:
        raise ConfigInvalid(
            f"`trusted_proxies`: {exc}; give addresses or networks such as 10.0.0.0/8."
        ) from exc
    prefix = config.accel_redirect_prefix
    if prefix and not re.fullmatch("(/[A-Za-z0-9_-]+)+", prefix):
        raise ConfigInvalid(
            f"`accel_redirect_prefix` is {prefix!r}; write an internal location such as /bitcache-blobs."
        )
    if prefix and not config.trusted_proxies:
        raise ConfigInvalid("`accel_redirect_prefix` needs `trusted_proxies`: the address of that nginx.")
    if config.regtest_wallet_url and config.network != "regtest":
        raise ConfigInvalid('`regtest_wallet_url` is for network = "regtest" alone: remove it.')
    if 0 < config.limits.work_bits_max < config.limits.work_bits_min:
        raise ConfigInvalid("[limits]: `work_bits_max` is less than `work_bits_min`: correct one of them.")
    if not _DATABASE_URL.match(config.database):
        # Not repeated: it may hold a password.
        raise ConfigInvalid(
            "`database_url` is no address of a database: write postgresql+asyncpg://user@host/name, or leave "
            "it out for SQLite."
        )
    node_url = urlsplit(config.node.rpc_url)
    if node_url.scheme not in {"http", "https"} or not node_url.hostname or "@" in node_url.netloc:
        raise ConfigInvalid(
            "`node.rpc_url` is the node's address alone, such as http://127.0.0.1:8332: user and password go "
            "into `rpc_user` and `rpc_password`."
        )
    if config.node.rpc_user and not config.node.rpc_password:
        raise ConfigInvalid("`node.rpc_user` needs `node.rpc_password` (or BITCACHE_NODE_RPC_PASSWORD_FILE).")
    _check_hosted(config.hosted)
    if config.registration == "invite" and not config.invite_codes:
        raise ConfigInvalid("`registration` is invite, but `invite_codes` is empty: give at least one code.")


def _check_hosted(hosted: HostedConfig) -> None:
    if hosted.wallet and not hosted.descriptor:
        raise ConfigInvalid(
            "[hosted]: `wallet` signs payouts of hosted sales, and `descriptor`, to which those are paid, is "
            "empty: give the public descriptor of that wallet, or remove `wallet`."
        )
    if hosted.wallet_passphrase and not hosted.wallet:
        raise ConfigInvalid("[hosted]: `wallet_passphrase` is of no wallet: give `wallet`, or remove it.")
    if hosted.feerate_sat_vb > hosted.feerate_max_sat_vb:
        raise ConfigInvalid("[hosted]: `feerate_sat_vb` is above `feerate_max_sat_vb`: correct one of them.")
