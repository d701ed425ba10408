"""What the operator runs on the server's machine: `init`, `serve`, `account`.

The server itself is imported inside the commands: those of a buyer must not wait for it.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache import config_file, log
from bitcache.cli.common import read_text, show_count
from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.role import Role

if TYPE_CHECKING:
    from bitcache.accounts import Account, IssuedToken
    from payments.ports import Transaction

app = typer.Typer()
account_app = typer.Typer(
    help="Sellers' accounts on this server.",
    epilog="Example: bitcache account create --help",
    no_args_is_help=True,
)
app.add_typer(account_app, name="account")


OPERATORS_LABEL = "made by the operator"


class NetworkName(StrEnum):
    MAINNET = "mainnet"
    SIGNET = "signet"
    TESTNET4 = "testnet4"
    REGTEST = "regtest"


@app.command(epilog="Example: bitcache init /srv/bitcache --network signet")
@expected_errors
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The data folder to make.")] = DATA_FOLDER,
    network: Annotated[NetworkName, typer.Option(help="The chain your node follows.")] = NetworkName.MAINNET,
    channels: Annotated[
        bool, typer.Option("--channels", help="Sell per chunk too: make a channel seed, turn channels on.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Make a data folder: a commented configuration, a master key, a database."""
    from bitcache import setup

    run(setup.initialise(folder, network=network.value, channels=channels))
    path = folder / CONFIG_FILE_NAME
    if json_output:
        made = {"data_folder": str(folder), "config": str(path), "network": network.value}
        print_json(made | {"channels": channels})
        return
    print_text(f"Made {path}. Read it, then run: bitcache serve --data {folder}")
    say("Back up master.key apart from the database: without it nothing that was sold opens.")
    if channels:
        say("Back up channel.seed apart from the database: without it no channel can be closed.")
        say("Channels are on, and need hosted sales: set `descriptor` under [hosted] before you serve.")


@app.command(epilog="Example: bitcache serve --data /srv/bitcache")
@expected_errors
def serve(
    data: DataFolder = DATA_FOLDER,
    role: Annotated[
        Role, typer.Option(help="What this process does: answer requests, follow the node, or both.")
    ] = Role.ALL,
    json_output: JsonFlag = False,
) -> None:
    """Run the server until it is told to stop (Ctrl-C or SIGTERM)."""
    from bitcache import app as server

    settings = config_file.load(data)
    log.set_up(log_format=settings.log_format, level=settings.log_level)

    def ready() -> None:
        if json_output:
            print_json({"listen": settings.listen, "public_url": settings.public_url, "role": role.value})
        else:
            print_text(f"Bitcache listens on http://{settings.listen}, known as {settings.public_url}")
        sys.stdout.flush()

    run(server.serve(settings, role=role, ready=ready))


@account_app.command("create", epilog='Example: bitcache account create "Ada\'s music" --data /srv/bitcache')
@expected_errors
def account_create(
    name: Annotated[str, typer.Argument(help="Shown to buyers.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Open an account and print its token, this once."""
    issued = run(_create_account(config_file.load(data), name))
    if json_output:
        print_json(_token_facts(issued))
    else:
        _print_token(issued)


@account_app.command(
    "token", epilog='Example: bitcache account token "Ada\'s music" --revoke-others --data /srv/bitcache'
)
@expected_errors
def account_token(
    name: Annotated[str, typer.Argument(help="Name of the account, from `account list`.")],
    revoke_others: Annotated[
        bool, typer.Option("--revoke-others", help="Make all its other tokens invalid: one was stolen.")
    ] = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Print a new token of an account whose tokens are lost, this once."""
    issued, revoked = run(_issue_token(config_file.load(data), name, revoke_others=revoke_others))
    if json_output:
        print_json({**_token_facts(issued), "revoked": revoked})
        return
    if revoke_others:
        say(f"Revoked {show_count(revoked, 'other token')}.")
    _print_token(issued)


@account_app.command(
    "password", epilog='Example: bitcache account password "Ada\'s music" --data /srv/bitcache'
)
@expected_errors
def account_password(
    name: Annotated[str, typer.Argument(help="Name of the account, from `account list`.")],
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", help="A file with the password; else you are asked."),
    ] = None,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Set the password of a seller who lost it. They are signed out everywhere; their tokens stay valid."""
    settings = config_file.load(data)
    account_id = run(_set_password(settings, name, _new_password(password_file)))
    if json_output:
        print_json({"account_id": account_id})
    else:
        say("The password is set. Ask the seller to change it on the account page.")


@account_app.command("list", epilog="Example: bitcache account list --data /srv/bitcache")
@expected_errors
def account_list(data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False) -> None:
    """List the accounts and what they store."""
    found = run(_list_accounts(config_file.load(data)))
    if json_output:
        print_json(
            [
                {
                    "account_id": account.id,
                    "name": account.name,
                    "created_at": account.created_at,
                    "bytes_stored": account.bytes_stored,
                }
                for account in found
            ]
        )
        return
    for account in found:
        print_text(f"{account.id}  {account.bytes_stored:>16,} bytes  {printable(account.name)}")


async def _create_account(settings: Config, name: str) -> IssuedToken:
    from bitcache import accounts
    from bitcache.services import now
    from bitcache.setup import open_database

    async def made(tx: Transaction) -> IssuedToken:
        account_id = await accounts.register(tx, name=name, now=now())
        return await accounts.issue_token(tx, account_id, label=OPERATORS_LABEL, now=now())

    async with open_database(settings) as database:
        return await database.write(made)


async def _issue_token(settings: Config, name: str, *, revoke_others: bool) -> tuple[IssuedToken, int]:
    """The token, and how many others were revoked."""
    from bitcache import accounts
    from bitcache.services import now
    from bitcache.setup import open_database

    async def issued(tx: Transaction) -> tuple[IssuedToken, int]:
        account_id = await accounts.id_of_name(tx, name)
        if account_id is None:
            raise CommandFailed(f"There is no account {name!r}. `bitcache account list` shows all.")
        revoked = await accounts.revoke_all_tokens(tx, account_id, now=now()) if revoke_others else 0
        return await accounts.issue_token(tx, account_id, label=OPERATORS_LABEL, now=now()), revoked

    async with open_database(settings) as database:
        return await database.write(issued)


def _new_password(file: Path | None) -> str:
    """From the file, from a person, or from standard input. Raises UsageWrong, CommandFailed."""
    if file is not None:
        return read_text(None, file, what="password")
    if not sys.stdin.isatty():
        return read_text("-", None, what="password")
    password = getpass("New password: ")
    if getpass("Once more: ") != password:
        raise CommandFailed("The two are not the same. Run the command again.")
    return password


async def _set_password(settings: Config, name: str, password: str) -> str:
    """The account's id."""
    from bitcache import accounts, passwords
    from bitcache.services import now
    from bitcache.setup import open_database

    fault = passwords.fault_of(password, name=name)
    if fault is not None:
        raise CommandFailed(
            f"A password has {passwords.LENGTH_MIN} to {passwords.LENGTH_MAX} characters and is not the name."
        )
    password_hash = await passwords.Passwords().hashed(password)

    async def reset(tx: Transaction) -> str:
        account_id = await accounts.id_of_name(tx, name)
        if account_id is None:
            raise CommandFailed(f"There is no account {name!r}. `bitcache account list` shows all.")
        await passwords.reset(tx, account_id, password_hash, now=now())
        return account_id

    async with open_database(settings) as database:
        return await database.write(reset)


async def _list_accounts(settings: Config) -> list[Account]:
    from bitcache import accounts
    from bitcache.setup import open_database

    async with open_database(settings) as database:
        return await database.read(accounts.list_all)


def _token_facts(issued: IssuedToken) -> dict[str, object]:
    return {"account_id": issued.account_id, "token_id": issued.token_id, "token": issued.token}


def _print_token(issued: IssuedToken) -> None:
    say("Give this token to the seller; it is not shown again. They sign in with `bitcache login`:")
    print_text(issued.token)
