"""Links and receipts: where the parcel is, before the `#`; the secrets that never reach the server, after it.

    link     {public_url}/d/{offer_id}#1.{link_secret}
    receipt  {public_url}/r/{invoice_id}#1.{claim_secret}.{link_secret}

Secrets are 32 bytes as base64url without padding; the leading 1 is the version.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from bitcache.client.errors import LinkInvalid
from storage import base64url
from storage.keys import SECRET_SIZE_BYTES

VERSION = "1"
LENGTH_MAX = 4096

_ID = re.compile(r"[a-z2-7]{26}")
# A query after the id means nothing: pages carry the language there, and chat programs put marks of theirs.
_LOCATION = re.compile(r"(?P<base>.*)/(?P<kind>[dr])/(?P<id>[^/?]*)(?:\?[^/]*)?")


@dataclass(frozen=True)
class Link:
    """An offer and the secret that opens its description. `server` has no trailing slash."""

    server: str
    offer_id: str
    link_secret: bytes

    def __str__(self) -> str:
        return f"{self.server}/d/{self.offer_id}#{VERSION}.{base64url.encode(self.link_secret)}"

    def __repr__(self) -> str:
        return f"Link({self.server}/d/{self.offer_id})"


@dataclass(frozen=True)
class Receipt:
    """An invoice, the secret that claims what it bought, and the one that opens the description."""

    server: str
    invoice_id: str
    claim_secret: bytes
    link_secret: bytes

    def __str__(self) -> str:
        secrets = f"{base64url.encode(self.claim_secret)}.{base64url.encode(self.link_secret)}"
        return f"{self.server}/r/{self.invoice_id}#{VERSION}.{secrets}"

    def __repr__(self) -> str:
        return f"Receipt({self.server}/r/{self.invoice_id})"


def parse(text: str) -> Link | Receipt:
    """A link or a receipt, whichever `text` is. Raises LinkInvalid, whose message never holds a secret."""
    text = text.strip()
    if len(text) > LENGTH_MAX:
        raise LinkInvalid(f"A link has at most {LENGTH_MAX} characters. Copy the link alone.")
    location, hash_sign, fragment = text.partition("#")
    server, kind, identifier = _parse_location(location)
    what = "link" if kind == "d" else "receipt"
    if not fragment:
        whom = "ask the seller for the whole link" if kind == "d" else "look for the whole receipt"
        cut = "The part after # is missing" if not hash_sign else "There is nothing after the #"
        raise LinkInvalid(f"{cut}: {whom}, and put it in quotes: the shell may cut it.")
    version, *secrets = fragment.split(".")
    if version != VERSION:
        raise LinkInvalid(
            f"The part after # does not begin with {VERSION}.: the {what} is damaged, or of a newer Bitcache."
        )
    expected = 1 if kind == "d" else 2
    if len(secrets) != expected:
        raise LinkInvalid(
            f"A {what} has {expected} secret{'s' * (expected > 1)} after #{VERSION}. "
            f"and this one has {len(secrets)}: copy the whole {what} again."
        )
    decoded = [_parse_secret(what, secret) for secret in secrets]
    if kind == "d":
        return Link(server, identifier, decoded[0])
    return Receipt(server, identifier, decoded[0], decoded[1])


def check_server(url: str) -> str:
    """`url` as the address of a server, without trailing slash. Raises LinkInvalid."""
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise LinkInvalid("This is not a web address. Give one like https://files.example.org") from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise LinkInvalid("A server's address begins with https:// (or http:// on your own machine).")
    if parts.username is not None or parts.password is not None:
        raise LinkInvalid("The address holds a user name or password; leave out everything up to the @.")
    if set(url) & set("?#\\") or any(character.isspace() for character in url) or not url.isascii():
        raise LinkInvalid("A server's address has no spaces, ?, #, backslashes or letters beyond a to z.")
    return url


def _parse_location(location: str) -> tuple[str, str, str]:
    match = _LOCATION.fullmatch(location)
    if match is None:
        raise LinkInvalid("This is neither a link (.../d/...#1...) nor a receipt (.../r/...#1...).")
    server = check_server(match["base"])
    if not _ID.fullmatch(match["id"]):
        raise LinkInvalid(f"The part after /{match['kind']}/ is not 26 characters of a to z and 2 to 7.")
    return server, match["kind"], match["id"]


def _parse_secret(what: str, text: str) -> bytes:
    try:
        secret = base64url.decode(text)
    except ValueError as exc:
        raise LinkInvalid(f"A secret after # is damaged: copy the whole {what} again.") from exc
    if len(secret) != SECRET_SIZE_BYTES:
        raise LinkInvalid(
            f"A secret after # has {len(secret)} bytes instead of {SECRET_SIZE_BYTES}: "
            f"characters were lost or added. Copy the whole {what} again."
        )
    return secret
