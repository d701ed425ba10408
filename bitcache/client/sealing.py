"""One part of a file, encrypted for sending: 8 chunks and their digests. Blocks; call it in threads."""

import os

from bitcache.client.errors import SourceRefused
from bitcache.client.sources import Source, check_same
from bitcache.client.upload_state import FileState, UploadState
from storage import stream
from storage.digests import chunk_digest
from storage.ports import PART_SIZE_BYTES
from storage.stream import ContentCipher

PART_CHUNKS = PART_SIZE_BYTES // stream.CHUNK_SIZE_BYTES


class SourceDiffers(Exception):
    """A chunk that may have been sent encrypts to other bytes now: the file needs fresh keys."""


def seal_part(
    state: UploadState, source: Source, file: FileState, descriptor: int, part_no: int
) -> tuple[memoryview, bytes]:
    """(ciphertext, digests) of part `part_no`; the digests are on record when this returns.

    Raises SourceDiffers, SourceRefused (the file changed just now).
    """
    cipher = ContentCipher(file.file_key, file.header)
    cipher_bytes = stream.ciphertext_size(source.size_bytes)
    chunks = range(part_no * PART_CHUNKS, min((part_no + 1) * PART_CHUNKS, stream.chunk_count(cipher_bytes)))
    last_chunk = stream.chunk_count(cipher_bytes) - 1
    # A fresh one each time: the network may hold on to the last one a little longer.
    part = memoryview(bytearray(min(PART_SIZE_BYTES, cipher_bytes - part_no * PART_SIZE_BYTES)))
    plaintext = memoryview(bytearray(stream.NEXT_CHUNK_PLAINTEXT_BYTES))
    digests = bytearray()
    at = 0
    for index in chunks:
        offset, length = stream.plaintext_span(index, cipher_bytes)
        _read_exactly(source, descriptor, plaintext[:length], offset)
        end = at + cipher.seal_chunk_into(index, plaintext[:length], part[at:], last=index == last_chunk)
        digests += chunk_digest(part[at:end])
        at = end
    check_same(source, descriptor)
    recorded = state.digests(file, part_no)
    if recorded is None:
        state.record_digests(file, part_no, bytes(digests))
    elif recorded != digests:
        raise SourceDiffers
    return part, bytes(digests)


def part_count(cipher_bytes: int) -> int:
    return -(-cipher_bytes // PART_SIZE_BYTES)


def _read_exactly(source: Source, descriptor: int, buffer: memoryview, offset: int) -> None:
    filled = 0
    while filled < len(buffer):
        count = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        if count == 0:
            raise SourceRefused(str(source.file), "it became shorter; run the command again")
        filled += count
