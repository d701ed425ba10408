"""What can go wrong with encrypted files. One class per thing a caller would do differently.

Whatever a caller needs to act is an attribute; the message says what to do next. No message holds a key.
"""


class StorageError(Exception):
    """Root of the tree: everything this package raises on bad input, bad bytes or a bad disk."""


# Sizes and keys: the caller passed something that cannot be right.


class SecretSizeWrong(StorageError):
    """A key or secret is not 32 bytes long: it was cut or damaged when it was copied."""

    def __init__(self, name: str, *, length_bytes: int) -> None:
        super().__init__(
            f"The {name} must be 32 bytes but is {length_bytes}. Copy the whole link or receipt again."
        )
        self.name = name
        self.length_bytes = length_bytes


class SizeImpossible(StorageError):
    """No file can have this size: negative, too large, or a ciphertext length that no plaintext gives."""

    def __init__(self, size_bytes: int, reason: str) -> None:
        super().__init__(f"A file of {size_bytes} bytes cannot exist: {reason}.")
        self.size_bytes = size_bytes


class ChunkSizeWrong(StorageError):
    """A chunk, or the plaintext of one, does not have the length its place in the file demands."""

    def __init__(self, chunk_index: int, *, length_bytes: int, expected: str) -> None:
        super().__init__(
            f"Chunk {chunk_index} has {length_bytes} bytes where {expected} belong. Send it whole."
        )
        self.chunk_index = chunk_index
        self.length_bytes = length_bytes


# Ciphertext that cannot be believed.


class HeaderInvalid(StorageError):
    """The first 40 bytes are not the header of this format, or not the header that the key belongs to."""


class ChunkAuthenticationFailed(StorageError):
    """A chunk is not what was encrypted: altered, moved, of another file, or opened with the wrong key."""

    def __init__(self, chunk_index: int) -> None:
        super().__init__(
            f"Chunk {chunk_index} is not the one that was encrypted. Download it again, or report it."
        )
        self.chunk_index = chunk_index


class CiphertextTruncated(StorageError):
    """The ciphertext ends before its last chunk does."""

    def __init__(self, chunk_index: int) -> None:
        super().__init__(f"The file ends too early, in or after chunk {chunk_index}. Download the rest.")
        self.chunk_index = chunk_index


class DigestMismatch(StorageError):
    """A chunk does not have the SHA-256 that the list of digests gives for it."""

    def __init__(self, chunk_index: int, *, expected: bytes, actual: bytes) -> None:
        super().__init__(
            f"Chunk {chunk_index} has SHA-256 {actual.hex()}, not {expected.hex()}. Send or fetch it again."
        )
        self.chunk_index = chunk_index
        self.expected = expected
        self.actual = actual


class DigestsInvalid(StorageError):
    """A list of digests is empty, not cut at 32 bytes, or not as long as the file has chunks."""


class RootMismatch(StorageError):
    """The list of digests is not the one whose root was announced: the file was swapped or altered."""

    def __init__(self, *, expected: bytes, actual: bytes) -> None:
        super().__init__(
            f"The root of the digests is {actual.hex()}, not {expected.hex()}. This is another file."
        )
        self.expected = expected
        self.actual = actual


# Keys that do not open what they should.


class KeyUnwrapFailed(StorageError):
    """A wrapped file key does not open under this parcel key, or belongs to another file."""


class ReleaseSecretWrong(StorageError):
    """The release secret handed out is not the one the seller committed to, or does not go with this link."""


# Metadata and paths.


class MetadataInvalid(StorageError):
    """The metadata breaks a rule of the format; `reason` names the field and the rule."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The parcel's description is not valid: {reason}.")
        self.reason = reason


class MetadataAuthenticationFailed(StorageError):
    """The sealed metadata does not open with this link: altered, another parcel's, or the link is damaged."""


class PathRefused(StorageError):
    """A path cannot be part of a parcel. `path` may hold anything: never print it raw."""

    def __init__(self, path: str, reason: str) -> None:
        shown = path if len(path) <= 80 else path[:79] + "…"
        super().__init__(f"The path {shown!a} is refused: {reason}. Rename the file.")
        self.path = path
        self.reason = reason


# Blob stores.


class FileIdInvalid(StorageError):
    """A file id is not 26 lower-case base32 characters. Nothing was looked up."""


class BlobMissing(StorageError):
    """No finished blob (or, when finishing, no started one) has this id."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"File {file_id} is not stored here. Check the id, or upload it again.")
        self.file_id = file_id


class BlobIncomplete(StorageError):
    """A blob was to be finished at a size its parts do not add up to."""

    def __init__(self, file_id: str, *, size_bytes: int, stored_bytes: int) -> None:
        super().__init__(
            f"File {file_id} should have {size_bytes} bytes but has {stored_bytes}. Send the missing parts."
        )
        self.file_id = file_id
        self.size_bytes = size_bytes
        self.stored_bytes = stored_bytes


class PartConflict(StorageError):
    """Other bytes are stored for this part and were acknowledged: they never change."""

    def __init__(self, file_id: str, part_no: int) -> None:
        super().__init__(
            f"Part {part_no} of file {file_id} is stored with other bytes. Two encryptions under one key "
            "would give both away: start a new file with a new key."
        )
        self.file_id = file_id
        self.part_no = part_no


class PartSizeWrong(StorageError):
    """A part is empty or longer than 8 MiB, or its number is out of range."""

    def __init__(self, part_no: int, *, length_bytes: int) -> None:
        super().__init__(
            f"Part {part_no} with {length_bytes} bytes: a part has 1 to 8,388,608 bytes. Cut it anew."
        )
        self.part_no = part_no
        self.length_bytes = length_bytes


class RangeOutside(StorageError):
    """A range is empty or reaches beyond the blob."""

    def __init__(self, *, offset: int, length: int, size_bytes: int) -> None:
        super().__init__(f"Bytes {offset} to {offset + length} are not in a file of {size_bytes} bytes.")
        self.offset = offset
        self.length = length
        self.size_bytes = size_bytes


class DiskFull(StorageError):
    """The disk or a quota is full, or the reserve would be touched. What was acknowledged is safe."""

    def __init__(self, *, free_bytes: int | None = None, reserve_bytes: int | None = None) -> None:
        detail = (
            "" if free_bytes is None else f" ({free_bytes} bytes free, {reserve_bytes or 0} kept in reserve)"
        )
        super().__init__(f"The disk is full{detail}. Free some space, then go on where the upload stopped.")
        self.free_bytes = free_bytes
        self.reserve_bytes = reserve_bytes


class StoreUnavailable(StorageError):
    """The disk takes nothing, for another reason than its size. What was acknowledged is safe."""

    def __init__(self) -> None:
        super().__init__(
            "The server's disk does not work at the moment. What was acknowledged is safe, what was just "
            "sent was not kept: tell the operator, and try again later."
        )
