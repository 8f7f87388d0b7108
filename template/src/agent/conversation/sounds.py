"""The sound of known sentences, made once: greeting, goodbye, "are you still there?".

A voice takes a few hundred milliseconds to its first sound, and is paid by the letter. What one
call has said word for word, the next one of the same worker says at once. Nothing is made that
nobody was going to hear.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import tempfile
import wave
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import tts

# the longest that is kept, and how many: a goodbye of four seconds has 200 kB
MOST_SECONDS = 30.0
MOST_SOUNDS = 64
FRAME_SECONDS = 0.02

# what is being said word for word; the SDK's task that says it inherits this
saying: ContextVar[str | None] = ContextVar("saying", default=None)


@dataclass(frozen=True)
class Sound:
    """16 bit samples of a whole sentence."""

    samples: bytes
    rate: int
    channels: int

    def frames(self) -> Iterator[rtc.AudioFrame]:
        """The sound in pieces, so that it can be interrupted."""
        width = 2 * self.channels
        step = int(self.rate * FRAME_SECONDS) * width
        for at in range(0, len(self.samples), step):
            piece = self.samples[at : at + step]
            yield rtc.AudioFrame(piece, self.rate, self.channels, len(piece) // width)


class KeptSounds:
    """Sounds by voice and sentence: of this process, and of all jobs of its worker."""

    def __init__(self) -> None:
        self._here: dict[str, Sound] = {}
        self._folder: Path | None = None

    def share(self, folder: Path | None) -> None:
        """Have them in common with the other jobs of a worker."""
        self._folder = folder

    async def find(self, voice: str, sentence: str) -> Sound | None:
        key = _key(voice, sentence)
        if (sound := self._here.get(key)) is not None:
            return sound
        return await asyncio.to_thread(_read, self._folder / key) if self._folder else None

    async def keep(self, voice: str, sentence: str, sound: Sound, *, shared: bool) -> None:
        """Keep it for this process or, if it is `shared`, for every job of the worker."""
        key = _key(voice, sentence)
        if shared and self._folder is not None:
            # if it cannot be written, the next call makes it again
            with suppress(OSError):
                await asyncio.to_thread(_write, self._folder / key, sound)
            return
        self._here[key] = sound
        while len(self._here) > MOST_SOUNDS:
            del self._here[next(iter(self._here))]


kept = KeptSounds()


class Recording:
    """What a voice says of a sentence that is known; of other words, nothing."""

    def __init__(self, model: Any, sentence: str | None) -> None:
        self._model, self._sentence = model, sentence
        self._voice = voice_of(model) if sentence else None
        self._frames: list[rtc.AudioFrame] = []

    async def made_before(self) -> Sound | None:
        """The sound of this sentence in this voice, if it has been made."""
        if self._sentence is None or self._voice is None:
            return None
        return await kept.find(self._voice, self._sentence)

    def add(self, frame: rtc.AudioFrame) -> None:
        if self._voice is not None:
            self._frames.append(frame)

    async def keep(self, *, shared: bool) -> None:
        """Keep it: the voice has said all of the sentence."""
        formats = {(frame.sample_rate, frame.num_channels) for frame in self._frames}
        seconds = sum(frame.duration for frame in self._frames)
        if self._sentence is None or self._voice is None or len(formats) != 1:
            return
        # a fallback adapter's first voice may have failed meanwhile, and another one spoken
        if seconds > MOST_SECONDS or voice_of(self._model) != self._voice:
            return
        ((rate, channels),) = formats
        samples = b"".join(bytes(frame.data) for frame in self._frames)
        await kept.keep(self._voice, self._sentence, Sound(samples, rate, channels), shared=shared)


@contextmanager
def shared_folder() -> Iterator[Path | None]:
    """A folder for the jobs of a worker, gone with it; None where no file can be written."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="agent-sounds-"))  # only its owner may read it
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def voice_of(model: Any) -> str | None:
    """What makes a voice this one and no other; None if that cannot be told.

    All of LiveKit's plugins have their voice among their options; another model can say which voice
    it is by an attribute `voice`.
    """
    if isinstance(model, tts.FallbackAdapter):
        # private, as `_opts`; the template's canary tells when they change
        model = model._next_instance()
    if isinstance(model, tts.StreamAdapter):
        model = model._wrapped_tts
    voice, options = getattr(model, "voice", None), getattr(model, "_opts", None)
    if voice is None and options is None:
        return None
    # a tokenizer is no part of a voice, and its address is another one in every process
    described = re.sub(r"<livekit\.agents\.tokenize\S* object at 0x\w+>", "", repr(options))
    return f"{model.label} {model.provider} {model.model} {voice} {described}"


async def known_sentence(text: AsyncIterable[str]) -> tuple[str | None, AsyncIterable[str]]:
    """The sentence that is said word for word, if `text` is that; and the text, to be read again.

    The SDK leaves out markup and emojis before.
    """
    if (sentence := saying.get()) is None:
        return None, text
    parts = [part async for part in text]
    same = _letters("".join(parts)) == _letters(sentence)
    return sentence if same else None, _each(parts)


async def _each(parts: list[str]) -> AsyncIterator[str]:
    for part in parts:
        yield part


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


def _key(voice: str, sentence: str) -> str:
    # the options of a voice may hold an API key
    return hashlib.sha256(f"{voice}\0{sentence}".encode()).hexdigest()


def _read(file: Path) -> Sound | None:
    try:
        with file.open("rb") as read_from, wave.open(read_from, "rb") as sound:
            samples = sound.readframes(sound.getnframes())
            read = Sound(samples, sound.getframerate(), sound.getnchannels())
        file.touch()  # the one that was not used for longest makes room
    except (OSError, wave.Error, EOFError):
        return None
    return read


def _write(file: Path, sound: Sound) -> None:
    others = sorted(file.parent.glob("*"), key=lambda other: other.stat().st_mtime)
    for oldest in others[: max(0, len(others) + 1 - MOST_SOUNDS)]:
        oldest.unlink(missing_ok=True)
    # at once, for jobs that read it meanwhile
    half = file.with_suffix(f".{os.getpid()}")
    with half.open("wb") as written, wave.open(written, "wb") as writing:
        writing.setnchannels(sound.channels)
        writing.setsampwidth(2)
        writing.setframerate(sound.rate)
        writing.writeframes(sound.samples)
    half.replace(file)
