"""What stands in for a failing model: a deadline for its stream, tones when nothing speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import numpy as np
from livekit import rtc

T = TypeVar("T")


class StreamTimeout:
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
        """The stream's next part; raises TimeoutError, StopAsyncIteration, the stream's errors."""
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


async def with_timeout(
    stream: AsyncGenerator[T, None], limit: StreamTimeout
) -> AsyncGenerator[T, None]:
    """The parts of `stream`, each in time; raises TimeoutError and what the stream raises."""
    async with aclosing(stream):
        while True:
            try:
                part = await limit.next_of(stream)
            except StopAsyncIteration:
                return
            yield part


def busy_tones() -> list[rtc.AudioFrame]:
    """Three short tones, as telephone networks play when a call cannot be completed."""
    rate, seconds = 24_000, 0.25
    time = np.arange(int(rate * seconds)) / rate
    wave = 4000 * (np.sin(2 * np.pi * 480 * time) + np.sin(2 * np.pi * 620 * time))
    beep = wave.astype("<i2").tobytes() + bytes(2 * len(time))
    return [rtc.AudioFrame(beep, rate, 1, 2 * len(time)) for _ in range(3)]
