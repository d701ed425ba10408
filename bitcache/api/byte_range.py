"""Which bytes a GET asks for (RFC 9110, section 14). Pure.

One range is served. What cannot be read is ignored, as the RFC wants: a malformed Range, another unit, or
several ranges at once give the whole file with 200. Only a well-formed range without a single byte in the
file is an error.
"""

import re
from typing import NamedTuple

from bitcache.errors import RangeNotChunks, RangeUnsatisfiable
from payments.channel import UNITS_PER_REQUEST_MAX
from storage.stream import CHUNK_SIZE_BYTES

HEADER_LENGTH_MAX = 100

_ONE_RANGE = re.compile(r"bytes=[ \t]*(?P<first>[0-9]{0,19})-(?P<last>[0-9]{0,19})[ \t]*", re.IGNORECASE)


class ByteRange(NamedTuple):
    first: int
    length: int
    partial: bool
    """Answered 206 with Content-Range, even where it is the whole file."""


def requested_range(
    range_header: str | None, if_range: str | None, *, etag: str, size_bytes: int
) -> ByteRange:
    """The bytes to send of a file of `size_bytes` (> 0) whose strong ETag is `etag`, quotes included.

    If-Range with anything but that ETag means "the whole file, if it changed": a weak tag never matches,
    and a date neither, as no Last-Modified is ever given. Raises RangeUnsatisfiable.
    """
    whole = ByteRange(0, size_bytes, partial=False)
    if range_header is None or len(range_header) > HEADER_LENGTH_MAX:
        return whole
    if if_range is not None and if_range.strip() != etag:
        return whole
    match = _ONE_RANGE.fullmatch(range_header.strip())
    if match is None or (not match["first"] and not match["last"]):
        return whole
    if not match["first"]:
        return _suffix(int(match["last"]), size_bytes)
    first = int(match["first"])
    last = int(match["last"]) if match["last"] else size_bytes - 1
    if match["last"] and last < first:
        return whole  # not a range at all
    if first >= size_bytes:
        raise RangeUnsatisfiable(size_bytes)
    return ByteRange(first, min(last, size_bytes - 1) - first + 1, partial=True)


def chunk_range(range_header: str | None, if_range: str | None, *, etag: str, size_bytes: int) -> ByteRange:
    """The bytes to send where every started chunk costs: 1 to 8 whole chunks, or none.

    What would be ignored elsewhere is refused: nobody is charged for more than they named. Without a Range it
    is the whole file, if that is not too long. Raises RangeNotChunks.
    """
    chosen = ByteRange(0, size_bytes, partial=False)
    if range_header is not None:
        changed = if_range is not None and if_range.strip() != etag
        match = _ONE_RANGE.fullmatch(range_header.strip()) if len(range_header) <= HEADER_LENGTH_MAX else None
        if changed or match is None or not match["first"]:
            raise RangeNotChunks(size_bytes)
        first = int(match["first"])
        end = min(int(match["last"]) + 1, size_bytes) if match["last"] else size_bytes
        chosen = ByteRange(first, end - first, partial=True)
    end = chosen.first + chosen.length
    aligned = chosen.first % CHUNK_SIZE_BYTES == 0 and (end == size_bytes or end % CHUNK_SIZE_BYTES == 0)
    if not aligned or not 0 < chosen.length <= UNITS_PER_REQUEST_MAX * CHUNK_SIZE_BYTES:
        raise RangeNotChunks(size_bytes)
    return chosen


def content_range(chosen: ByteRange, size_bytes: int) -> str:
    """Value of Content-Range for a 206."""
    return f"bytes {chosen.first}-{chosen.first + chosen.length - 1}/{size_bytes}"


def _suffix(length: int, size_bytes: int) -> ByteRange:
    if length == 0:
        raise RangeUnsatisfiable(size_bytes)
    length = min(length, size_bytes)
    return ByteRange(size_bytes - length, length, partial=True)
