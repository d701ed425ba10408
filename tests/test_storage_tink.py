"""Our ciphertext is Tink's: the real `tink` package opens what we seal and seals what we open.

Tink is given the same 32-byte key as a RAW keyset of type AES256_GCM_HKDF_1MB.
"""

import io

import pytest
import tink
from tink import secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from storage import stream
from storage.errors import ChunkAuthenticationFailed
from storage.stream import CHUNK_SIZE_BYTES, CONTENT_INFO

from .test_storage_stream import EDGE_SIZES, FILE_KEY, opened, pattern, sealed


@pytest.fixture(scope="module")
def primitive() -> streaming_aead.StreamingAead:
    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, key_value=FILE_KEY)
    key.params.ciphertext_segment_size = CHUNK_SIZE_BYTES
    key.params.derived_key_size = 32
    key.params.hkdf_hash_type = common_pb2.HashType.SHA256
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add(
        key_id=1, status=tink_pb2.KeyStatusType.ENABLED, output_prefix_type=tink_pb2.OutputPrefixType.RAW
    )
    entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
    entry.key_data.value = key.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class Unclosed(io.BytesIO):
    """Tink closes the sink it wrote to; the bytes must outlive that."""

    def close(self) -> None: ...


def sealed_by_tink(
    primitive: streaming_aead.StreamingAead, plaintext: bytes, associated_data: bytes
) -> bytes:
    sink = Unclosed()
    with primitive.new_encrypting_stream(sink, associated_data) as writer:
        writer.write(plaintext)
    return sink.getvalue()


def opened_by_tink(
    primitive: streaming_aead.StreamingAead, ciphertext: bytes | bytearray, associated_data: bytes
) -> bytes:
    with primitive.new_decrypting_stream(io.BytesIO(ciphertext), associated_data) as reader:
        plaintext: bytes = reader.read()
    return plaintext


@pytest.mark.parametrize("size_bytes", EDGE_SIZES)
def test_tink_opens_what_we_seal(primitive: streaming_aead.StreamingAead, size_bytes: int) -> None:
    plaintext = pattern(size_bytes)
    assert opened_by_tink(primitive, sealed(plaintext), CONTENT_INFO) == plaintext


@pytest.mark.parametrize("size_bytes", EDGE_SIZES)
def test_we_open_what_tink_seals(primitive: streaming_aead.StreamingAead, size_bytes: int) -> None:
    plaintext = pattern(size_bytes)
    ciphertext = sealed_by_tink(primitive, plaintext, CONTENT_INFO)

    assert len(ciphertext) == stream.ciphertext_size(size_bytes)
    assert opened(ciphertext) == plaintext


@pytest.mark.parametrize("size_bytes", EDGE_SIZES)
def test_both_make_the_same_bytes_under_one_header(
    primitive: streaming_aead.StreamingAead, size_bytes: int
) -> None:
    plaintext = pattern(size_bytes)
    ciphertext = sealed_by_tink(primitive, plaintext, CONTENT_INFO)
    cipher = stream.ContentCipher(FILE_KEY, ciphertext[: stream.HEADER_SIZE_BYTES])
    count = stream.chunk_count(len(ciphertext))
    spans = [stream.plaintext_span(index, len(ciphertext)) for index in range(count)]
    chunks = [
        cipher.seal_chunk(index, plaintext[at : at + length], last=index == count - 1)
        for index, (at, length) in enumerate(spans)
    ]

    assert b"".join(chunks) == ciphertext


def test_both_bind_the_associated_data(primitive: streaming_aead.StreamingAead) -> None:
    with pytest.raises(ChunkAuthenticationFailed):
        opened(sealed_by_tink(primitive, b"x", b"another use"))
    with pytest.raises(tink.TinkError):
        opened_by_tink(primitive, sealed(b"x"), b"another use")
