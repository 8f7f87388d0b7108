"""Whether something that has failed is left alone for a while; no part of the SDK, which commands do without."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


class CircuitBreaker:
    """Whether something that has failed is left alone for a while, so that not every call waits for it in vain.

    A job process lives for one call: what it learns reaches the next call through a file, which all of a machine share.
    """

    def __init__(self, file: Path, seconds: float = 5.0) -> None:
        self._file, self._seconds = file, seconds
        self._well = False  # so that the file is not looked for after every use
        self._until = 0.0  # for this process, should the file be one that cannot be written

    @property
    def open(self) -> bool:
        """Whether it failed a moment ago; once the time is over, the next one may try."""
        now = time.time()
        try:
            failed = self._file.stat().st_mtime
        except OSError:
            return now < self._until
        return now < self._until or 0 <= now - failed < self._seconds

    def failed(self) -> None:
        """Leave it alone from now on."""
        self._well = False
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
        except OSError:
            self._until = time.time() + self._seconds

    def worked(self) -> None:
        """Ask again whenever there is something to ask."""
        if self._well:
            return
        self._well, self._until = True, 0.0
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
