"""The channel seed file: 32 random bytes that only their owner can read. The keys of all channels follow.

Who has it can close the operator's channels with what their buyers signed, and nothing else: alone it spends
nothing. Without it no channel can be closed, and every deposit goes back whole after its expiry.
"""

import hashlib
import os
import stat
from pathlib import Path

from bitcache.master_key import create_private
from payments.channel_errors import ChannelSeedUnusable
from payments.channel_keys import SEED_BYTES

FINGERPRINT_TAG = b"bitcache/v1/channel-seed-fingerprint"
FINGERPRINT_BYTES = 8


def read_channel_seed(path: Path) -> bytes:
    """The 32 bytes of the seed file. Raises ChannelSeedUnusable, also if others could have read it."""
    try:
        mode = path.stat().st_mode
        seed = path.read_bytes()
    except FileNotFoundError as exc:
        raise ChannelSeedUnusable(
            f"There is no channel seed {path}. If this server ever had channels, put your copy back: without "
            "it none of them can be closed. Else run `bitcache channels seed`, which makes one."
        ) from exc
    except OSError as exc:
        raise ChannelSeedUnusable(
            f"The channel seed {path} cannot be read ({exc.strerror}). See that it is a file of the server's "
            "user."
        ) from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ChannelSeedUnusable(f"Others can read the channel seed. Run: chmod 600 {path}")
    if len(seed) != SEED_BYTES:
        raise ChannelSeedUnusable(
            f"The channel seed {path} is {len(seed)} bytes, not {SEED_BYTES}. Put your copy back."
        )
    return seed


def write_channel_seed(path: Path) -> None:
    """A fresh seed, for its owner alone. Never overwrites: channels made with the old one need it.

    Raises ChannelSeedUnusable if something is there already.
    """
    _create(path, os.urandom(SEED_BYTES))


def copy_channel_seed(seed: bytes, path: Path) -> None:
    """A copy for keeping, for its owner alone. Raises ChannelSeedUnusable, as `write_channel_seed`."""
    _create(path, seed)


def fingerprint(seed: bytes) -> str:
    """Tells seeds apart; from it nobody learns anything about the seed."""
    return hashlib.sha256(FINGERPRINT_TAG + seed).hexdigest()[: 2 * FINGERPRINT_BYTES]


def _create(path: Path, seed: bytes) -> None:
    try:
        create_private(path, seed)
    except FileExistsError as exc:
        raise ChannelSeedUnusable(
            f"{path} is there already and was not touched: channels may depend on it. Nothing was changed."
        ) from exc
    except OSError as exc:
        raise ChannelSeedUnusable(
            f"{path} cannot be written ({exc.strerror or type(exc).__name__}). Name a new file, in a folder "
            "that is there."
        ) from exc
