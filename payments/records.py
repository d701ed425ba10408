"""An invoice as it is kept: the pure invoice with its address, its outputs and its last standing."""

from dataclasses import dataclass

from payments.invoice import Invoice, ReceivedOutput, Standing


@dataclass(frozen=True, slots=True)
class InvoiceRecord:
    """One invoice with everything known of it at the time of the transaction that read it."""

    invoice: Invoice
    subject: str
    """What is sold, in the caller's words: opaque here."""
    frozen: str
    """The caller's copy of what was offered, as JSON: opaque here."""
    claim_hash: bytes
    """SHA-256 of the claim secret, 32 bytes."""
    address: str | None
    """None for a free invoice, which is born settled."""
    script_pubkey: bytes | None
    descriptor_id: str | None
    address_index: int | None
    outputs: tuple[ReceivedOutput, ...]
    """In order of first sight, then outpoint."""
    standing: Standing
    released_at: int | None
    """When the key was first allowed, Unix seconds; kept through suspension."""
    prefetch_fit: bool
    """Every unconfirmed payment had a fair feerate and no unconfirmed parents when first seen."""


@dataclass(frozen=True, slots=True)
class IssuedAddress:
    """An address taken from a descriptor for one invoice, for ever."""

    descriptor_id: str
    index: int
    address: str
    script_pubkey: bytes
