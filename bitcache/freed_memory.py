"""Freed memory is kept for the next body that comes, not handed back to the system and asked for again.

asyncio receives into fresh buffers of 256 KiB. glibc gives the memory of each back as soon as it is freed,
and the system clears every page of the next: three quarters of what it costs to read a body.
"""

import ctypes

# Names and numbers of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 32 << 20
"""Free memory at the end of the heap before any of it goes back."""
LARGE_BYTES = 1 << 20
"""Of this size and more are buffers that live long: the system's own pages, which go back at once."""


def keep_freed_memory() -> None:
    """For the whole process. Does nothing where the C library has no such knob, such as musl or macOS."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
