"""`bitcache` with another wall clock: the program itself, whose `time.time` adds the seconds in a file.

    CLOCK_FILE=path python -m tests.drill.clocked_serve serve --data DIR

It is what libfaketime does, without a library of the system. Monotonic clocks go on as they are, as they do
when a machine's time is set.
"""

import os
import time
from pathlib import Path

LOOK_EVERY_S = 0.1
real_time = time.time


class Clock:
    """The system's time and the seconds that the file says, looked up every `LOOK_EVERY_S`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ahead_s = 0.0
        self._looked_at = float("-inf")

    def __call__(self) -> float:
        if time.monotonic() - self._looked_at > LOOK_EVERY_S:
            self._ahead_s = float(self._path.read_text() or 0)
            self._looked_at = time.monotonic()
        return real_time() + self._ahead_s


if __name__ == "__main__":
    # Before anything is imported that may keep the function.
    time.time = Clock(Path(os.environ["CLOCK_FILE"]))

    from bitcache.cli.main import main

    main()
