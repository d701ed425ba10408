"""Every word of the pages, in English and French: a module per area, with the same keys and fields in both.

Words that a script needs begin with `js_<area>_` and reach it through `Visit.page(script_words=...)`.
"""

from collections.abc import Mapping

from bitcache.web.words import account, buying, common, dashboard, front, metered, money, selling

_AREAS = (common, front, buying, metered, selling, dashboard, money, account)


def _merged(language: str) -> Mapping[str, str]:
    words: dict[str, str] = {}
    for area in _AREAS:
        added: dict[str, str] = getattr(area, language)
        assert words.keys().isdisjoint(added), words.keys() & added.keys()
        words |= added
    return words


ENGLISH = _merged("ENGLISH")
FRENCH = _merged("FRENCH")
