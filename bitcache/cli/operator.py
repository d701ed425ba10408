"""What the operator runs on the server's machine: `init`, `serve`, `account`.

The server itself is imported inside the commands: those of a buyer must not wait for it.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache import config
from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.output import JsonFlag, expected_errors, print_json, print_text, printable, run, say
from bitcache.config import Config
from bitcache.role import Role

if TYPE_CHECKING:
    from bitcache.accounts import Account, IssuedToken
    from payments.ports import Transaction

app = typer.Typer()
account_app = typer.Typer(help="Sellers' accounts on this server.", no_args_is_help=True)
app.add_typer(account_app, name="account")


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
    json_output: JsonFlag = False,
) -> None:
    """Make a data folder: a commented configuration, a master key, a database."""
    from bitcache import setup

    run(setup.initialise(folder, network=network.value))
    path = folder / config.CONFIG_FILE_NAME
    if json_output:
        print_json({"data_folder": str(folder), "config": str(path), "network": network.value})
        return
    print_text(f"Made {path}. Read it, then run: bitcache serve --data {folder}")
    say("Back up master.key apart from the database: without it nothing that was sold opens.")


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

    settings = config.load(data)
    _log_to_stderr()

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
    issued = run(_create_account(config.load(data), name))
    if json_output:
        print_json({"account_id": issued.account_id, "token_id": issued.token_id, "token": issued.token})
        return
    say("Give this token to the seller; it is not shown again. They sign in with `bitcache login`:")
    print_text(issued.token)


@account_app.command("list", epilog="Example: bitcache account list --data /srv/bitcache")
@expected_errors
def account_list(data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False) -> None:
    """List the accounts and what they store."""
    found = run(_list_accounts(config.load(data)))
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
    from bitcache.db.engine import Database
    from bitcache.db.migrate import upgrade
    from bitcache.services import now

    async def made(tx: Transaction) -> IssuedToken:
        account_id = await accounts.register(tx, name=name, now=now())
        return await accounts.issue_token(tx, account_id, label="made by the operator", now=now())

    database = Database(settings.database)
    try:
        await upgrade(database)
        return await database.write(made)
    finally:
        await database.close()


async def _list_accounts(settings: Config) -> list[Account]:
    from bitcache import accounts
    from bitcache.db.engine import Database
    from bitcache.db.migrate import upgrade

    database = Database(settings.database)
    try:
        await upgrade(database)
        return await database.read(accounts.list_all)
    finally:
        await database.close()


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # They say at INFO what our own lines say, and at DEBUG what must not be logged.
    for chatty in ("aiohttp", "alembic", "sqlalchemy", "aiosqlite"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
