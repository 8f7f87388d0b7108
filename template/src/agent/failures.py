"""What stands in for a model that fails: how long it may take, and what is heard when nothing can speak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import numpy as np
from livekit import rtc

T = TypeVar("T")


class Patience:
    """How long the next part of a stream may take, in seconds.

    One that has begun counts until the stream ends. One that has not begun counts from each `begin` to the next part.
    """

    def __init__(self, seconds: float, *, begun: bool = True) -> None:
        self.seconds = seconds
        self._to_the_end = False
        self._until: float | None = None
        self._waiting: asyncio.Timeout | None = None
        if begun:
            self.begin(to_the_end=True)

    def begin(self, *, to_the_end: bool = False) -> None:
        """Count from now, until the next part or until the stream ends."""
        self._to_the_end = self._to_the_end or to_the_end
        self._until = asyncio.get_running_loop().time() + self.seconds
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._until)

    async def next_of(self, stream: AsyncGenerator[T, None]) -> T:
        """The stream's next part. Raises TimeoutError, StopAsyncIteration, and what the stream raises."""
        try:
            async with asyncio.timeout_at(self._until) as self._waiting:
                part = await anext(stream)
        except TimeoutError as error:
            if self._waiting is not None and self._waiting.expired():
                raise TimeoutError(f"nothing for {self.seconds:g} s") from error
            raise
        finally:
            self._waiting = None
        self._until = None
        if self._to_the_end:
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
