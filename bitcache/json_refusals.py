"""Why a JSON document was not taken, in words for whoever sent it. Pure.

msgspec quotes the name of an unknown member, however long, and a name may be a misplaced secret: no more of
it is given back than tells a typing error.
"""

import re

NAME_CHARACTERS_MAX = 40
CHARACTERS_MAX = 300
"""Of everything: a name may hold the marks that quote it."""
_QUOTED = re.compile(rf"`(?P<start>[^`]{{{NAME_CHARACTERS_MAX}}})[^`]+`")


def refusal_words(exc: Exception) -> str:
    """What a decoder complains of, names cut short."""
    words = _QUOTED.sub(r"`\g<start>...`", str(exc))
    return words[:CHARACTERS_MAX] or "it is nested too deeply"
