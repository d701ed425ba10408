"""Which server a seller is signed in to, and with which token. Kept in one file of mode 0600."""

from pathlib import Path

import msgspec

from bitcache.client.errors import NotSignedIn
from bitcache.client.link import check_server
from bitcache.client.places import write_private

TOKEN_PREFIX = "bcs_"  # noqa: S105  # not a secret


class Credentials(msgspec.Struct, frozen=True):
    server: str
    token: str


def check_token(text: str) -> str:
    """`text` without white space around. Raises NotSignedIn if it cannot be a seller's token."""
    token = text.strip()
    if not token.startswith(TOKEN_PREFIX) or not token.isascii() or not token.isprintable() or " " in token:
        raise NotSignedIn(f"This is not an access token; one begins with {TOKEN_PREFIX}. Copy it again.")
    return token


def save(folder: Path, credentials: Credentials) -> None:
    write_private(_path(folder), msgspec.json.encode(credentials))


def load(folder: Path) -> Credentials:
    """Raises NotSignedIn."""
    try:
        credentials = msgspec.json.decode(_path(folder).read_bytes(), type=Credentials)
        return Credentials(check_server(credentials.server), check_token(credentials.token))
    except FileNotFoundError as exc:
        raise NotSignedIn("Nobody is signed in. Run: bitcache login https://your.server") from exc
    except msgspec.DecodeError as exc:
        raise NotSignedIn(f"{_path(folder)} is damaged. Run: bitcache login https://your.server") from exc


def _path(folder: Path) -> Path:
    return folder / "credentials.json"
