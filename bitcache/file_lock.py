"""One process at a time: a lock on an open file or folder, which ends with the process that holds it."""

import fcntl


def lock_or_refuse(descriptor: int, refusal: Exception) -> None:
    """Lock what is open as `descriptor` until it is closed. Raises `refusal` if another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise refusal from exc
