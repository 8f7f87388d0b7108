"""What fails or hangs is asked with a deadline, and then left alone for a while.

Nothing here needs the SDK, which commands do without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from agent import is_own_cancellation

T = TypeVar("T")


class Unanswered(Exception):
    """Why there is no answer; the sentence quotes nobody, so it may be logged."""


class Late(Unanswered):
    """There was no answer in time."""


class LeftAlone(Unanswered):
    """Nothing was asked, because the last attempt failed a moment ago."""


async def within(seconds: float, answer: Awaitable[T], of: str) -> T:
    """The answer; raises Late after so many seconds, Unanswered if a library cancels its own."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        raise Late(f"no answer from {of} within {seconds:g} s") from error
    except asyncio.CancelledError as error:
        if is_own_cancellation():
            raise
        raise Unanswered(f"{of} cancelled its own answer") from error


class CircuitBreaker:
    """Leaves what has failed alone for a while, so that not every call waits for it in vain.

    A job process lives for one call: what it learns reaches the next call through `file`, which
    all processes of a machine share. Without a file nothing is ever left alone: that is for what
    only this machine uses, where one late answer says nothing about the next. A late answer opens
    the breaker, and so does any error of `opened_by`.
    """

    def __init__(
        self,
        of: str,
        file: Path | None,
        *,
        opened_by: tuple[type[Exception], ...] = (),
        seconds: float = 5.0,
    ) -> None:
        self._of, self._file, self._seconds = of, file, seconds
        self._opened_by: tuple[type[Exception], ...] = (Late, *opened_by)
        # so that the file is not looked for after every use
        self._works = False
        # for this process, where the file cannot be written
        self._until = 0.0

    async def ask(self, question: Callable[[], Awaitable[T]], seconds: float) -> T:
        """What the question answers within so many seconds.

        Raises LeftAlone while the breaker is open, Late, and whatever the question raises.
        """
        if self.open:
            raise LeftAlone(f"{self._of} did not answer a moment ago")
        try:
            answer = await within(seconds, question(), self._of)
        except self._opened_by:
            self.failed()
            raise
        self.worked()
        return answer

    @property
    def open(self) -> bool:
        """Whether it failed a moment ago; once the time is over, the next one may try."""
        if self._file is None:
            return False
        now = time.time()
        try:
            failed = self._file.stat().st_mtime
        except OSError:
            return now < self._until
        return now < self._until or 0 <= now - failed < self._seconds

    def failed(self) -> None:
        """Leave it alone from now on."""
        self._works = False
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
        except OSError:
            self._until = time.time() + self._seconds

    def worked(self) -> None:
        """Let it be asked again."""
        if self._works or self._file is None:
            return
        self._works, self._until = True, 0.0
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
