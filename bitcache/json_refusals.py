"""Why a JSON document was not taken, in words for whoever sent it. Pure.

msgspec quotes the name of an unknown member, however long, and a name may be a misplaced secret: no more of
it is given back than tells a typing error.
"""

import re

NAME_CHARACTERS_MAX = 40
CHARACTERS_MAX = 300
"""Of everything: a name may hold the marks that quote it."""
# Pair by pair: what stands between two quoted words is not quoted.
_QUOTED = re.compile(r"`([^`]*)`")


def refusal_words(exc: Exception) -> str:
    """What a decoder complains of, names cut short."""
    words = _QUOTED.sub(lambda match: f"`{_short(match[1])}`", str(exc))
    return words[:CHARACTERS_MAX] or "it is nested too deeply"


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS_MAX else f"{name[:NAME_CHARACTERS_MAX]}..."
