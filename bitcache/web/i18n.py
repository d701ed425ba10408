"""Which language a page speaks, and its words in it; the words are in `words/`."""

import re
from collections.abc import Mapping

from bitcache.web.words import ENGLISH, FRENCH

DEFAULT_LANGUAGE = "en"
LANGUAGES: Mapping[str, str] = {"en": "English", "fr": "Français"}

CATALOGUE: Mapping[str, Mapping[str, str]] = {"en": ENGLISH, "fr": FRENCH}

_ACCEPTED = re.compile(
    r"\s*([a-z]{1,8})(?:-[a-z0-9]{1,8})*\s*(?:;\s*q=([01](?:\.[0-9]{0,3})?))?\s*", re.IGNORECASE
)
_ACCEPTED_MAX = 20


class Words:
    """The catalogue in one language: `words.key`, `words("key", field=...)`."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._catalogue = CATALOGUE[language]

    def __call__(self, key: str, **fields: object) -> str:
        return self._catalogue[key].format(**fields)

    def __contains__(self, key: str) -> bool:
        return key in self._catalogue

    def starting(self, prefixes: tuple[str, ...]) -> dict[str, str]:
        """Those whose keys begin with one of `prefixes`, fields and all, for a script."""
        return {key: text for key, text in self._catalogue.items() if prefixes and key.startswith(prefixes)}


def chosen_language(wish: str | None, accept_language: str | None) -> str:
    """What `?lang=` asks for, else the best of Accept-Language (RFC 9110) that we speak, else English."""
    if wish is not None and wish in LANGUAGES:
        return wish
    best, best_weight = DEFAULT_LANGUAGE, 0.0
    for part in (accept_language or "").split(",")[:_ACCEPTED_MAX]:
        match = _ACCEPTED.fullmatch(part)
        if match is None:
            continue
        language, weight = match[1].lower(), float(match[2] or 1)
        if language in LANGUAGES and weight > best_weight:
            best, best_weight = language, weight
    return best
