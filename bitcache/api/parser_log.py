"""What the HTTP parser says of requests it cannot read: what kind of trouble, never their words.

Its errors quote the line they stumble over, and that line may be an Authorization header.
"""

import logging

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

logger = logging.getLogger("bitcache.http")
"""For aiohttp's server in place of its own."""


class _WithoutQuotes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | RequestPayloadError):
            record.msg, record.args = "a request could not be read: %s", (type(error).__name__,)
            record.exc_info = record.exc_text = None
            # Anybody can send nonsense: nothing is wrong here.
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


logger.addFilter(_WithoutQuotes())
