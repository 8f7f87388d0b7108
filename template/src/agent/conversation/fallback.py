"""What stands in for a failing model: a deadline for what it gives, its substitute, tones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from livekit import rtc
from livekit.agents import APITimeoutError, llm, stt, tts

log = logging.getLogger("agent.call")
T = TypeVar("T")


class EmptyReply(Exception):
    """A language model has ended its reply, and there was nothing in it."""


def is_reply(chunk: object) -> bool:
    """Whether a part of a reply has words or a tool call; usage and flushes have neither."""
    if isinstance(chunk, llm.ChatChunk):
        return chunk.has_response()
    return isinstance(chunk, str) and bool(chunk.strip())


def has_words(chunk: object) -> bool:
    """Whether a part of a reply can be said."""
    text = chunk.delta and chunk.delta.content if isinstance(chunk, llm.ChatChunk) else chunk
    return isinstance(text, str) and bool(text.strip())


class StreamTimeout:
    """How long each part of a stream may take, in seconds, once counting has begun."""

    def __init__(self, seconds: float, *, begun: bool = True) -> None:
        self.seconds = seconds
        self.first = seconds  # the part before which nothing has come
        self.heard = self.expired = False
        self._until: float | None = None
        self._waiting: asyncio.Timeout | None = None
        if begun:
            self.begin()

    def allow(self, seconds: float) -> None:
        """Give the first part so long; from now, if counting has begun."""
        self.first = seconds
        if self._until is not None:
            self.begin()

    def begin(self) -> None:
        """Count from now."""
        seconds = self.seconds if self.heard else self.first
        self._until = asyncio.get_running_loop().time() + seconds
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._until)

    async def next_of(self, stream: AsyncGenerator[T, None]) -> T:
        """The stream's next part; raises TimeoutError, StopAsyncIteration, the stream's errors."""
        deadline = asyncio.timeout_at(self._until)
        try:
            async with deadline as self._waiting:
                part = await anext(stream)
        except TimeoutError as error:
            self.expired = deadline.expired()
            if self.expired:
                seconds = self.seconds if self.heard else self.first
                raise TimeoutError(f"nothing for {seconds:g} s") from error
            raise
        finally:
            self._waiting = None
        self.heard = True
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


async def with_substitutes(
    model: object,
    ask: Callable[[], AsyncGenerator[T, None]],
    limit: StreamTimeout,
    extra: Mapping[str, Any],
) -> AsyncGenerator[T, None]:
    """What `ask` yields, each part in time; raises what `with_timeout` does.

    The SDK's fallback adapters turn to their next model when one fails, after retries of 10 s each
    and more; for one that hangs they wait for ever. Here the time is shared out: an adapter's model
    that says nothing within its share is skipped, and the next one is asked. `limit` has to count
    by the time at which the rest of the input is known.
    """
    left = limit.seconds
    while True:
        asked, others = _asked(model), _others(model)
        share = left / (others + 1)
        limit.allow(share)
        try:
            async with aclosing(with_timeout(ask(), limit)) as parts:
                async for part in parts:
                    yield part
            return
        except TimeoutError:
            if limit.heard or not limit.expired or not others:
                raise
        left -= share
        # it may have failed meanwhile, and the adapter has turned to the next by itself
        if asked is _asked(model) and asked is not None:
            asked.available = False
            sentence = "a fallback adapter's model said nothing for %.3g s: the next one is asked"
            log.warning(sentence, share, extra=extra)


# What these three read is private; the template's canary tells when it changes.


def alternatives(model: object) -> list[Any]:
    """The models of a fallback adapter; of any other model itself, of none nothing."""
    match model:
        case llm.FallbackAdapter():
            return list(model._llm_instances)
        case stt.FallbackAdapter():
            return list(model._stt_instances)
        case tts.FallbackAdapter():
            return list(model._tts_instances)
    return [] if model is None else [model]


def _asked(model: object) -> Any | None:
    """The status of the model that a fallback adapter asks next; None for any other model."""
    if isinstance(model, llm.FallbackAdapter):
        return model._status[model._llm_instances.index(model._next_instance())]
    if isinstance(model, tts.FallbackAdapter):
        return model._status[model._tts_instances.index(model._next_instance())]
    return None


def _others(model: object) -> int:
    """How many more models a fallback adapter could ask."""
    if not isinstance(model, llm.FallbackAdapter | tts.FallbackAdapter):
        return 0
    return max(0, sum(one.available for one in model._status) - 1)


def limit_recognition(ears: object, seconds: float) -> None:
    """Let speech-to-text that takes an utterance as a whole fail if it is late with its words.

    Until then the caller hears nothing, and a plugin may wait for half a minute, four times. An
    adapter with a substitute has a deadline of its own.
    """
    while isinstance(ears, stt.StreamAdapter):
        ears = ears.wrapped_stt
    if not isinstance(ears, stt.STT) or isinstance(ears, stt.FallbackAdapter):
        return
    # it may be shared by the agents of a call
    if ears.capabilities.streaming or "_recognize_impl" in vars(ears):
        return
    recognize = ears._recognize_impl

    async def in_time(*args: Any, **options: Any) -> stt.SpeechEvent:
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await recognize(*args, **options)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise APITimeoutError(f"nothing for {seconds:g} s", retryable=False) from error

    # the method of an object, because there is no other place where all plugins can be reached
    ears._recognize_impl = in_time  # type: ignore[method-assign]


def busy_tones() -> list[rtc.AudioFrame]:
    """Three short tones, as telephone networks play when a call cannot be completed."""
    rate, seconds = 24_000, 0.25
    time = np.arange(int(rate * seconds)) / rate
    wave = 4000 * (np.sin(2 * np.pi * 480 * time) + np.sin(2 * np.pi * 620 * time))
    beep = wave.astype("<i2").tobytes() + bytes(2 * len(time))
    return [rtc.AudioFrame(beep, rate, 1, 2 * len(time)) for _ in range(3)]
