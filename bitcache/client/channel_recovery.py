"""A channel out of its backup line: paid from again with the server's help."""

import time

from bitcache.client.channel_book import ChannelBook, KeptContract
from bitcache.client.channels import ChannelServer, SeenChannel, reconcile
from bitcache.client.errors import DepositUnproven, ServerAnswerWrong
from payments.channel_script import parse_backup_line


async def recovered(
    talk: ChannelServer, book: ChannelBook, base_url: str, backup_line: str
) -> list[SeenChannel]:
    """The channels of this key, kept from now on.

    By the contract that the book has; else only those that the server proves, by a contract of its word.
    Raises BackupLineInvalid, ServerAnswerWrong, DepositUnproven.
    """
    offered = await talk.terms()
    backup = parse_backup_line(backup_line, offered.terms.network)
    seen, unproven = [], None
    for view in (await talk.ask_mine(backup.payer, offered.challenge.realm)).channels:
        contract = book.contract(backup.payer.public_key.format().hex()) or KeptContract(
            server=base_url,
            network=offered.terms.network,
            challenge=offered.challenge,
            payer_secret=backup.payer.secret.hex(),
            payee_key=backup.payee_key.hex(),
            expiry_height=backup.expiry_height,
            change_script=view.change_script,
            close_fee_sat=view.close_fee_sat,
            created_at=int(time.time()),
            recovered=True,
        )
        try:
            one = talk.seen(contract, view)
        except ValueError as exc:
            raise ServerAnswerWrong(f"The server's change script cannot be read ({exc}).") from exc
        except DepositUnproven as error:
            unproven = error
            continue
        with book.counting(one.own) as count:
            reconcile(one.own, count, view, one.record)
        seen.append(one)
    if unproven is not None and not seen:
        raise unproven
    return seen
