"""What is said of requests that the HTTP parser cannot read: what kind of trouble, never their words.

Its errors quote the line they stumble over, and that line may be an Authorization header.
"""

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from bitcache.api.answer_headers import OUR_NAME, SECURITY_HEADERS
from bitcache.api.problems import PROBLEMS, problem_response
from bitcache.errors import RequestInvalid

logger = logging.getLogger("bitcache.http")
"""For aiohttp's server in place of its own."""


def refusal(status: int) -> web.Response:
    """The answer in place of aiohttp's, which quotes too, and names its own and Python's version."""
    if status < 500:
        unread = RequestInvalid(
            "This is not HTTP/1.1. Look at the request's first line, headers and framing."
        )
        response = problem_response(PROBLEMS["bad-request"], unread)
    else:
        response = problem_response(PROBLEMS["internal-error"])
    response.headers.update({**SECURITY_HEADERS, "Server": OUR_NAME})
    response.force_close()
    return response


class _WithoutQuotes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | RequestPayloadError):
            record.msg, record.args = "a request could not be read: %s", (type(error).__name__,)
            record.exc_info = record.exc_text = None
            # Anybody can send nonsense: nothing is wrong here.
            record.levelno, record.levelname = logging.INFO, "INFO"
        elif str(record.msg).startswith("Error handling request"):
            # Its argument is the client's address.
            record.msg, record.args = "a request could not be answered", ()
        return True


logger.addFilter(_WithoutQuotes())
