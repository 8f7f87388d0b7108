"""A caller with a voice and ears: speaks into the room, and understands what the agent says."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from livekit import rtc

from agent.models import local
from tests.support.caller import PATIENCE, Caller

Samples = npt.NDArray[np.int16]

RATE = local.SPOKEN_RATE
LONGEST_SECONDS = 20
# of received silence, after which somebody has stopped speaking and does not only take a breath
QUIET_SECONDS = 0.5
LOUD = 300
# a recogniser writes them either way
COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
DIGITS = {word: str(number) for number, word in enumerate(COUNTED.split())}


def need_speech() -> None:
    """Without the packages of `AGENT_MODELS=local` the test is skipped, and fails under CI."""
    if missing := [name for name in local.GROUP if find_spec(name) is None]:
        reason = f"nobody can speak or hear without {', '.join(missing)}: `make env`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@lru_cache(maxsize=64)
def voice(words: str) -> Samples:
    """The caller's voice, from the first sound to the last."""
    samples = local.speak(words)
    (loud,) = np.nonzero(np.abs(samples) > LOUD)
    return samples[loud[0] : loud[-1] + 1]


def pause(seconds: float) -> Samples:
    """Nothing, for so long."""
    return np.zeros(int(RATE * seconds), np.int16)


def with_breath(samples: Samples, seconds: float) -> Samples:
    """The same, with so long a breath where its longest pause is, such as at a comma."""
    (loud,) = np.nonzero(np.abs(samples) > LOUD)
    longest = int(np.argmax(np.diff(loud)))
    at = (loud[longest] + loud[longest + 1]) // 2
    return np.concatenate([samples[:at], pause(seconds), samples[at:]])


def cough() -> Samples:
    """Two bursts of breath, each with a hoarse tone in it."""
    time_ = np.arange(int(RATE * 0.28)) / RATE
    breath = np.convolve(
        np.random.default_rng(1).standard_normal(len(time_)), np.ones(6) / 6, "same"
    )
    tone = 0.5 * np.sin(2 * np.pi * (180 * time_ - 60 * time_**2))
    burst = 18_000 * np.exp(-14 * time_) * np.minimum(1, 100 * time_) * (breath + tone)
    once = np.concatenate([burst.clip(-32768, 32767).astype(np.int16), pause(0.12)])
    return np.tile(once, 2)


def street(seconds: float) -> Samples:
    """Noise, lower tones louder, as of traffic: clearly to be heard, and nobody speaks."""
    white = np.fft.rfft(np.random.default_rng(2).standard_normal(int(RATE * seconds)))
    pink = np.fft.irfft(white / np.sqrt(np.arange(1, len(white) + 1)))
    return np.asarray(1_000 * pink / pink.std()).clip(-32768, 32767).astype(np.int16)


def plain(text: str) -> list[str]:
    """The words of a sentence; numbers as digits, without anything between them."""
    text = re.sub(r"(?<=\d)[-:.,\s]+(?=\d)", "", text.lower().replace("'", ""))
    return [DIGITS.get(word, word) for word in re.findall(r"[a-z]+|\d+", text)]


def wrong_words(said: str, understood: str) -> int:
    """How many words have to be put in, left out or replaced."""
    row: list[int] = [*range(len(plain(understood)) + 1)]
    for number, word in enumerate(plain(said), 1):
        before, row[0] = row[0], number
        for at, other in enumerate(plain(understood), 1):
            kept = before + (word != other)
            before, row[at] = row[at], min(kept, row[at] + 1, row[at - 1] + 1)
    return row[-1]


class SpeakingCaller(Caller):
    """A caller with a microphone, who keeps what is heard of the agent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._microphone = rtc.AudioSource(RATE, 1, queue_size_ms=1000 * LONGEST_SECONDS)
        # the agent's sound, without its longer pauses
        self._heard = bytearray()
        self._quiet_seconds = QUIET_SECONDS
        # of the agent's sound, from where the caller's last words began: all, and to its last word
        self.seconds_since = self.loud_until = 0.0
        # comes every few milliseconds while the agent is in the room
        self._frame = asyncio.Event()

    def _has_heard(self, frame: rtc.AudioFrame) -> bool:
        loud = super()._has_heard(frame)
        self._quiet_seconds = 0.0 if loud else self._quiet_seconds + frame.duration
        self.seconds_since += frame.duration
        if loud:
            self.loud_until = self.seconds_since
        if not self.is_quiet:
            self._heard += bytes(frame.data)
        self._frame.set()
        return loud

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has been heard for half a second."""
        return self._quiet_seconds >= QUIET_SECONDS

    @property
    def agent_state(self) -> str:
        """What the agent does, such as listening; empty where there is none."""
        for person in self.room.remote_participants.values():
            if person.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
                return person.attributes.get("lk.agent.state", "")
        return ""

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until it has happened."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not happened():
                    self._frame.clear()
                    await self._frame.wait()
        except TimeoutError:
            heard = await asyncio.to_thread(local.transcribe, self.taken())
            raise AssertionError(
                f"it never happened: the agent is {self.agent_state!r} and has understood"
                f" {self.understood[-1:]}; it has been heard to say {heard!r}"
            ) from None

    async def switch_on(self, agent: str, recording: Samples) -> None:
        """Call `agent` with the microphone on, into which this has been said before it came."""
        published = asyncio.Event()
        self.room.on("local_track_published", lambda *_: published.set())
        self.keep(self.speak_early(self._microphone, recording.tobytes()))
        await published.wait()
        await self.server.dispatch(agent, self.room_name)

    async def make(self, *sounds: Samples) -> None:
        """Make these sounds, one after another; returns when the last one has been made."""
        samples = np.concatenate(sounds)
        self.seconds_since = self.loud_until = 0.0
        await self._microphone.capture_frame(
            rtc.AudioFrame(samples.tobytes(), RATE, 1, len(samples))
        )
        await self._microphone.wait_for_playout()

    async def begin_to_hear(self) -> None:
        """Wait until the agent is speaking."""
        await self.until(lambda: self.agent_state == "speaking" and not self.is_quiet)

    async def answer(self, sentences: int = 1) -> Samples:
        """What is heard until the agent has said so much more, and listens."""
        for _ in range(sentences):
            await self.hear_text()
        await self.until(lambda: self.agent_state == "listening" and self.is_quiet)
        return self.taken()

    def taken(self) -> Samples:
        """What has been heard since this was last asked for, without longer pauses."""
        samples = np.frombuffer(bytes(self._heard), np.int16)
        self._heard.clear()
        return samples
