"""The chunked ciphertext: sizes and places, one chunk, whole files, and everything that must be refused."""

import io
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import stream
from storage.errors import (
    ChunkAuthenticationFailed,
    ChunkSizeWrong,
    CiphertextTruncated,
    HeaderInvalid,
    SecretSizeWrong,
    SizeImpossible,
)
from storage.stream import (
    CHUNK_SIZE_BYTES,
    FIRST_CHUNK_PLAINTEXT_BYTES,
    HEADER_SIZE_BYTES,
    NEXT_CHUNK_PLAINTEXT_BYTES,
    TAG_SIZE_BYTES,
    ContentCipher,
)

FILE_KEY = bytes(range(32))
TWO_FULL = FIRST_CHUNK_PLAINTEXT_BYTES + NEXT_CHUNK_PLAINTEXT_BYTES
THREE_FULL = TWO_FULL + NEXT_CHUNK_PLAINTEXT_BYTES
EDGE_SIZES = [
    0,
    1,
    FIRST_CHUNK_PLAINTEXT_BYTES - 1,
    FIRST_CHUNK_PLAINTEXT_BYTES,
    FIRST_CHUNK_PLAINTEXT_BYTES + 1,
    TWO_FULL,
    THREE_FULL,
    (5 << 20) + 123,
]

plaintext_sizes = st.one_of(
    st.integers(0, stream.PLAINTEXT_SIZE_MAX_BYTES),
    st.integers(0, 5 << 20),
    # Around a boundary between chunks.
    st.builds(
        lambda chunks, offset: max(0, chunks * NEXT_CHUNK_PLAINTEXT_BYTES - HEADER_SIZE_BYTES + offset),
        st.integers(0, stream.CHUNK_COUNT_MAX - 1),
        st.integers(-2, 2),
    ),
)


def pattern(size_bytes: int) -> bytes:
    """Bytes without a period that divides a chunk, so that a swap or shift shows."""
    return (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]


def sealed(plaintext: bytes, *, associated_data: bytes = stream.CONTENT_INFO) -> bytearray:
    sink = io.BytesIO()
    stream.encrypt(FILE_KEY, io.BytesIO(plaintext), sink, associated_data=associated_data)
    return bytearray(sink.getvalue())


def opened(ciphertext: bytes | bytearray, *, associated_data: bytes = stream.CONTENT_INFO) -> bytes:
    sink = io.BytesIO()
    stream.decrypt(FILE_KEY, io.BytesIO(ciphertext), sink, associated_data=associated_data)
    return sink.getvalue()


class Trickle:
    """A source as a pipe is one (at most `step` bytes a read), or a sink that takes as little at a time."""

    def __init__(self, content: bytes = b"", *, step: int) -> None:
        self.buffer = io.BytesIO(content)
        self.step = step

    def read(self, size: int) -> bytes:
        return self.buffer.read(min(size, self.step))

    def write(self, piece: memoryview) -> int:
        return self.buffer.write(piece[: self.step])


# Sizes and places


@pytest.mark.parametrize("size_bytes", EDGE_SIZES)
def test_the_announced_size_is_the_real_one(size_bytes: int) -> None:
    ciphertext = sealed(pattern(size_bytes))

    assert len(ciphertext) == stream.ciphertext_size(size_bytes)
    assert stream.plaintext_size(len(ciphertext)) == size_bytes


@given(plaintext_sizes)
def test_sizes_are_one_to_one(size_bytes: int) -> None:
    assert stream.plaintext_size(stream.ciphertext_size(size_bytes)) == size_bytes


@given(st.integers(-5, 5 << 20) | st.integers(0, stream.CIPHERTEXT_SIZE_MAX_BYTES + 5))
def test_a_ciphertext_length_is_possible_or_refused(length: int) -> None:
    try:
        size_bytes = stream.plaintext_size(length)
    except SizeImpossible:
        return
    assert stream.ciphertext_size(size_bytes) == length


@pytest.mark.parametrize(
    "length",
    [-1, 0, 55, CHUNK_SIZE_BYTES + 1, CHUNK_SIZE_BYTES + 16, 3 * CHUNK_SIZE_BYTES + 16, (1 << 52) + 1],
)
def test_impossible_ciphertext_lengths(length: int) -> None:
    with pytest.raises(SizeImpossible):
        stream.plaintext_size(length)
    with pytest.raises(SizeImpossible):
        stream.chunk_count(length)


@pytest.mark.parametrize("size_bytes", [-1, stream.PLAINTEXT_SIZE_MAX_BYTES + 1])
def test_impossible_plaintext_sizes(size_bytes: int) -> None:
    with pytest.raises(SizeImpossible):
        stream.ciphertext_size(size_bytes)


@given(plaintext_sizes, st.integers(0, stream.CHUNK_COUNT_MAX))
def test_spans_tile_the_file(size_bytes: int, near: int) -> None:
    ciphertext_bytes = stream.ciphertext_size(size_bytes)
    count = stream.chunk_count(ciphertext_bytes)
    index = min(near, count - 1)
    offset, length = stream.chunk_span(index, ciphertext_bytes)
    plain_offset, plain_length = stream.plaintext_span(index, ciphertext_bytes)

    assert offset == index * CHUNK_SIZE_BYTES
    assert 1 <= length <= CHUNK_SIZE_BYTES
    assert plain_offset + plain_length <= size_bytes
    if index + 1 < count:
        assert stream.chunk_span(index + 1, ciphertext_bytes)[0] == offset + length
        assert stream.plaintext_span(index + 1, ciphertext_bytes)[0] == plain_offset + plain_length
    else:
        assert offset + length == ciphertext_bytes
        assert plain_offset + plain_length == size_bytes


@pytest.mark.parametrize("index", [-1, 1])
def test_no_span_outside_the_file(index: int) -> None:
    with pytest.raises(IndexError):
        stream.chunk_span(index, 56)
    with pytest.raises(IndexError):
        stream.plaintext_span(index, 56)


# One chunk at a time


@pytest.mark.parametrize("size_bytes", EDGE_SIZES)
def test_chunks_in_any_order_make_the_same_file(size_bytes: int) -> None:
    plaintext = pattern(size_bytes)
    cipher = ContentCipher(FILE_KEY, stream.new_header())
    ciphertext = bytearray(stream.ciphertext_size(size_bytes))
    count = stream.chunk_count(len(ciphertext))
    for index in reversed(range(count)):
        plain_at, plain_length = stream.plaintext_span(index, len(ciphertext))
        at, length = stream.chunk_span(index, len(ciphertext))
        piece = plaintext[plain_at : plain_at + plain_length]
        chunk = cipher.seal_chunk(index, piece, last=index == count - 1)
        into = bytearray(CHUNK_SIZE_BYTES)

        assert cipher.seal_chunk_into(index, piece, into, last=index == count - 1) == length
        assert into[:length] == chunk
        assert cipher.open_chunk(index, chunk, last=index == count - 1) == piece
        ciphertext[at : at + length] = chunk

    assert opened(ciphertext) == plaintext


def test_sealing_depends_on_nothing_but_key_header_and_place() -> None:
    header = stream.new_header()
    first = ContentCipher(FILE_KEY, header).seal_chunk(0, b"same", last=True)

    assert ContentCipher(FILE_KEY, header).seal_chunk(0, b"same", last=True) == first
    assert ContentCipher(FILE_KEY, stream.new_header()).seal_chunk(0, b"same", last=True) != first


def test_headers_are_fresh_and_marked() -> None:
    headers = {stream.new_header() for _ in range(100)}

    assert len(headers) == 100
    assert {(header[0], len(header)) for header in headers} == {(0x28, 40)}


@pytest.mark.parametrize("header", [b"", b"\x28" * 39, b"\x28" * 41, b"\x27" + b"\x28" * 39])
def test_bad_headers(header: bytes) -> None:
    with pytest.raises(HeaderInvalid):
        ContentCipher(FILE_KEY, header)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_bad_file_keys(length: int) -> None:
    with pytest.raises(SecretSizeWrong):
        ContentCipher(bytes(length), stream.new_header())


@pytest.mark.parametrize(
    ("index", "length", "last"),
    [
        (0, FIRST_CHUNK_PLAINTEXT_BYTES + 1, True),
        (0, FIRST_CHUNK_PLAINTEXT_BYTES - 1, False),
        (1, NEXT_CHUNK_PLAINTEXT_BYTES + 1, True),
        (1, NEXT_CHUNK_PLAINTEXT_BYTES - 1, False),
        (1, 0, True),
    ],
)
def test_plaintext_that_does_not_fit_its_chunk(index: int, length: int, last: bool) -> None:
    cipher = ContentCipher(FILE_KEY, stream.new_header())
    with pytest.raises(ChunkSizeWrong) as refused:
        cipher.seal_chunk(index, bytes(length), last=last)
    assert refused.value.chunk_index == index
    with pytest.raises(ChunkSizeWrong):
        cipher.seal_chunk_into(index, bytes(length), bytearray(2 * CHUNK_SIZE_BYTES), last=last)


@pytest.mark.parametrize(
    ("index", "length", "last"),
    [(0, 55, True), (1, 16, True), (1, 17, False), (0, CHUNK_SIZE_BYTES + 1, True), (0, 56, False)],
)
def test_ciphertext_that_cannot_be_that_chunk(index: int, length: int, last: bool) -> None:
    cipher = ContentCipher(FILE_KEY, stream.new_header())
    with pytest.raises(ChunkSizeWrong):
        cipher.open_chunk(index, bytes(length), last=last)


@pytest.mark.parametrize("index", [-1, stream.CHUNK_COUNT_MAX])
def test_indexes_that_no_nonce_can_hold(index: int) -> None:
    with pytest.raises(SizeImpossible):
        ContentCipher(FILE_KEY, stream.new_header()).seal_chunk(index, b"x", last=True)


def test_a_failed_open_leaves_no_unauthenticated_byte() -> None:
    cipher = ContentCipher(FILE_KEY, stream.new_header())
    chunk = bytearray(cipher.seal_chunk(0, b"attack at dawn", last=True))
    chunk[-1] ^= 1
    plaintext = bytearray(CHUNK_SIZE_BYTES)

    with pytest.raises(ChunkAuthenticationFailed):
        cipher.open_chunk_into(0, chunk, plaintext, last=True)
    assert not any(plaintext)


def test_a_chunk_of_another_file_under_the_same_key() -> None:
    ours, other = (ContentCipher(FILE_KEY, stream.new_header()) for _ in range(2))

    with pytest.raises(HeaderInvalid):
        ours.open_chunk(0, other.seal_chunk(0, b"x", last=True), last=True)
    with pytest.raises(ChunkAuthenticationFailed):
        ours.open_chunk(1, other.seal_chunk(1, b"x", last=True), last=True)


# Whole files


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(EDGE_SIZES) | st.integers(0, 3 << 20), st.sampled_from([1 << 20, 300_000, 65_536, 7_919])
)
def test_short_reads_and_writes_change_nothing(size_bytes: int, step: int) -> None:
    plaintext = pattern(size_bytes)
    ciphertext, result = Trickle(step=step), Trickle(step=step)

    stream.encrypt(FILE_KEY, cast(BinaryIO, Trickle(plaintext, step=step)), cast(BinaryIO, ciphertext))
    source = Trickle(ciphertext.buffer.getvalue(), step=step)
    stream.decrypt(FILE_KEY, cast(BinaryIO, source), cast(BinaryIO, result))

    assert len(ciphertext.buffer.getvalue()) == stream.ciphertext_size(size_bytes)
    assert result.buffer.getvalue() == plaintext


class Starved:
    """A non-blocking stream with nothing to give and no room."""

    def read(self, _size: int) -> None: ...

    def write(self, _piece: memoryview) -> None: ...


def test_non_blocking_streams_are_an_error_not_an_end() -> None:
    starved = cast(BinaryIO, Starved())
    with pytest.raises(BlockingIOError):
        stream.encrypt(FILE_KEY, starved, io.BytesIO())
    with pytest.raises(BlockingIOError):
        stream.encrypt(FILE_KEY, io.BytesIO(b"x"), starved)


@pytest.mark.parametrize("at", [0, 1, 33, 40, 41, 2000, CHUNK_SIZE_BYTES - 1, CHUNK_SIZE_BYTES, -17, -16, -1])
def test_every_flipped_bit_is_found(at: int) -> None:
    ciphertext = sealed(pattern(FIRST_CHUNK_PLAINTEXT_BYTES + 100))
    ciphertext[at] ^= 0x10

    expected = HeaderInvalid if at == 0 else ChunkAuthenticationFailed
    with pytest.raises(expected) as refused:
        opened(ciphertext)
    if isinstance(refused.value, ChunkAuthenticationFailed):
        assert refused.value.chunk_index == (0 if 0 < at < CHUNK_SIZE_BYTES else 1)


@pytest.mark.parametrize(
    ("kept_bytes", "chunk_index"),
    [
        (0, 0),
        (39, 0),
        (55, 0),
        (CHUNK_SIZE_BYTES, 0),
        (CHUNK_SIZE_BYTES + 16, 1),
        (2 * CHUNK_SIZE_BYTES, 1),
    ],
)
def test_truncation_is_named(kept_bytes: int, chunk_index: int) -> None:
    ciphertext = sealed(pattern(TWO_FULL + 1000))
    with pytest.raises(CiphertextTruncated) as refused:
        opened(ciphertext[:kept_bytes])
    assert refused.value.chunk_index == chunk_index


@pytest.mark.parametrize("cut_bytes", [1, 16, 500, 999])
def test_truncation_inside_a_chunk(cut_bytes: int) -> None:
    ciphertext = sealed(pattern(TWO_FULL + 1000))
    with pytest.raises(ChunkAuthenticationFailed) as refused:
        opened(ciphertext[:-cut_bytes])
    assert refused.value.chunk_index == 2


@pytest.mark.parametrize("size_bytes", [0, 1, FIRST_CHUNK_PLAINTEXT_BYTES, TWO_FULL])
@pytest.mark.parametrize("appended", [b"\0", bytes(16), bytes(17), bytes(CHUNK_SIZE_BYTES)])
def test_appended_bytes(size_bytes: int, appended: bytes) -> None:
    with pytest.raises(ChunkAuthenticationFailed):
        opened(sealed(pattern(size_bytes)) + appended)


def test_swapped_chunks() -> None:
    ciphertext = sealed(pattern(THREE_FULL))
    one, two = (
        slice(CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES),
        slice(2 * CHUNK_SIZE_BYTES, 3 * CHUNK_SIZE_BYTES),
    )
    ciphertext[one], ciphertext[two] = ciphertext[two], ciphertext[one]

    with pytest.raises(ChunkAuthenticationFailed) as refused:
        opened(ciphertext)
    assert refused.value.chunk_index == 1


def test_a_dropped_middle_chunk() -> None:
    ciphertext = sealed(pattern(THREE_FULL))
    del ciphertext[CHUNK_SIZE_BYTES : 2 * CHUNK_SIZE_BYTES]
    with pytest.raises(ChunkAuthenticationFailed):
        opened(ciphertext)


def test_wrong_associated_data() -> None:
    with pytest.raises(ChunkAuthenticationFailed):
        opened(sealed(b"x", associated_data=b"another use"))
    assert opened(sealed(b"x", associated_data=b""), associated_data=b"") == b"x"


def test_wrong_key() -> None:
    with pytest.raises(ChunkAuthenticationFailed):
        stream.decrypt(bytes(32), io.BytesIO(sealed(b"x")), io.BytesIO())


def test_only_authentic_bytes_reach_the_sink() -> None:
    plaintext = pattern(TWO_FULL)
    ciphertext = sealed(plaintext)
    ciphertext[CHUNK_SIZE_BYTES + TAG_SIZE_BYTES] ^= 1
    sink = io.BytesIO()

    with pytest.raises(ChunkAuthenticationFailed):
        stream.decrypt(FILE_KEY, io.BytesIO(ciphertext), sink)
    assert sink.getvalue() == plaintext[:FIRST_CHUNK_PLAINTEXT_BYTES]
