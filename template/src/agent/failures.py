"""What stands in for what fails: how long it may take, whether to ask again, what is heard when nothing can speak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from livekit import rtc

T = TypeVar("T")


class Patience:
    """How long each part of a stream may take, in seconds, once counting has begun."""

    def __init__(self, seconds: float, *, begun: bool = True) -> None:
        self.seconds = seconds
        self._until: float | None = None
        self._waiting: asyncio.Timeout | None = None
        if begun:
            self.begin()

    def begin(self) -> None:
        """Count from now."""
        self._until = asyncio.get_running_loop().time() + self.seconds
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._until)

    async def next_of(self, stream: AsyncGenerator[T, None]) -> T:
        """The stream's next part. Raises TimeoutError, StopAsyncIteration, and what the stream raises."""
        deadline = asyncio.timeout_at(self._until)
        try:
            async with deadline as self._waiting:
                part = await anext(stream)
        except TimeoutError as error:
            if deadline.expired():
                raise TimeoutError(f"nothing for {self.seconds:g} s") from error
            raise
        finally:
            self._waiting = None
        if self._until is not None:
            self.begin()
        return part


async def in_time(stream: AsyncGenerator[T, None], patience: Patience) -> AsyncGenerator[T, None]:
    """The parts of `stream`, each within `patience`. Raises TimeoutError, and what the stream raises."""
    async with aclosing(stream):
        while True:
            try:
                part = await patience.next_of(stream)
            except StopAsyncIteration:
                return
            yield part


def tones() -> list[rtc.AudioFrame]:
    """Three short tones: what telephone networks play when a call cannot be completed, understood in any language."""
    rate, seconds = 24_000, 0.25
    time = np.arange(int(rate * seconds)) / rate
    wave = 4000 * (np.sin(2 * np.pi * 480 * time) + np.sin(2 * np.pi * 620 * time))
    beep = wave.astype("<i2").tobytes() + bytes(2 * len(time))
    return [rtc.AudioFrame(beep, rate, 1, 2 * len(time)) for _ in range(3)]


class Breaker:
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
