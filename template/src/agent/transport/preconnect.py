"""What the caller says and writes while the agent is still joining.

Official front ends record the microphone until the agent listens to it, and send that recording as
soon as the agent is in the room; people also type before anybody answers. The SDK hears neither,
because it listens from `session.start` on and the call connects earlier. `PreConnectBuffer`
listens from before the connection and hands over what it heard. Texts it takes to the end of the
call: the SDK's handler answers each when it has been read, so that quick ones overtake one another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import AgentSession, AgentStateChangedEvent
from livekit.agents.types import TOPIC_CHAT, NotGivenOr
from livekit.agents.utils.codecs import AudioStreamDecoder
from livekit.agents.voice.io import AudioInput
from livekit.agents.voice.room_io import AudioInputOptions
from livekit.protocol.models import AudioTrackFeature

log = logging.getLogger("agent.early")
T = TypeVar("T")
Samples = npt.NDArray[np.float64]

# how the session listens; early audio is brought into this form
AUDIO = AudioInputOptions(pre_connect_audio=False)
PRE_CONNECT_TOPIC = "lk.agent.pre-connect-audio-buffer"
# from phones; browsers send containers
RAW = {"", "application/octet-stream", "audio/pcm", "audio/raw", "audio/l16"}

# more than any front end sends; what is beyond is not kept
MAX_PEOPLE = 10
MAX_TEXTS = 20  # of one person
MAX_CHARACTERS = 4_000  # of one text
MAX_TRACKS = 2  # of one person
MAX_RECEIVED = 2_000_000  # bytes of one recording, as it was sent
BYTES_A_SECOND = AUDIO.sample_rate * AUDIO.num_channels * 2
MAX_KEPT = 10 * BYTES_A_SECOND  # of one recording, as it is heard: the newest 10 s

# a microphone that is switched on later than this has said nothing early
MICROPHONE_SECONDS = 10.0
# a text has so long from when it is next until it has arrived
TEXT_SECONDS = 5.0
# how long an announced recording is waited for; live words wait behind it, in order
RECORDING_SECONDS = 3.0

# Two recordings of one voice are joined where they are alike: pieces of the earlier one, in
# milliseconds, are looked for in the later one. Measured on speech that was coded twice: where both
# have the piece 0.9 (half of the time), where only one has it never more than 0.6 and 0.8.
PIECES = {80: 0.7, 40: 0.85}
MOST_PIECES = 25  # the newest that are not silent
SILENT = 30  # of 32768, between neighbours
# the longest stretch that a recording and live sound are expected to share
SHARED_SECONDS = 2.0
# how long two recordings go on side by side, and how much more the later one needs
LAP_SECONDS = 0.25
MORE_SECONDS = 0.15
# a microphone that is on gives a frame every 50 ms, also in silence
FRAME_SECONDS = 1.0
# what an announced recording waits for: the greeting's first sound, and then its end; the SDK
# hears nothing but silence in the first three seconds of what the agent says, for fear of an echo
GREETING_BEGINS_SECONDS = 3.0
ECHO_SECONDS = 3.0


def heard_as(options: NotGivenOr[AudioInputOptions | bool]) -> AudioInputOptions | bool:
    """An owner's audio input, such as one with noise cancellation, in the form of `AUDIO`."""
    if not isinstance(options, AudioInputOptions):
        return AUDIO if options is not False else False
    return replace(
        options,
        sample_rate=AUDIO.sample_rate,
        num_channels=AUDIO.num_channels,
        pre_connect_audio=False,
    )


@dataclass
class Person:
    """What somebody in the room has said so far; nobody knows yet who of them is the caller."""

    texts: list[asyncio.Task[str]] = field(default_factory=list)
    # from when the session is started
    typed: asyncio.Queue[asyncio.Task[str]] = field(default_factory=asyncio.Queue)
    # made by the front end, by track
    recordings: dict[str, asyncio.Future[bytes]] = field(default_factory=dict)
    microphone: asyncio.Future[rtc.RemoteTrackPublication] = field(default_factory=asyncio.Future)
    # made here, from when the front end stops recording until the session listens
    live: Live | None = None

    @property
    def announced(self) -> bool:
        """Whether a recording of the microphone is on its way."""
        return (
            self.microphone.done()
            and int(AudioTrackFeature.TF_PRECONNECT_BUFFER)
            in self.microphone.result().audio_features
        )

    def recording(self, track: str) -> asyncio.Future[bytes]:
        """The recording that belongs to a track, whether it has come or not."""
        return self.recordings.setdefault(track, asyncio.Future())


class PreConnectBuffer:
    """Listens to a room from before it is connected; its maker closes it."""

    def __init__(self, room: rtc.Room) -> None:
        self._room = room
        self._people: dict[str, Person] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._session_listens, self._takes_texts = False, True
        room.register_text_stream_handler(TOPIC_CHAT, self._on_text)
        room.register_byte_stream_handler(PRE_CONNECT_TOPIC, self._on_recording)
        room.on("track_subscribed", self._on_track)

    @contextmanager
    def handed_over(
        self, session: AgentSession[Any], caller: str, *, texts: bool = True
    ) -> Iterator[None]:
        """Start the session inside this, with `AUDIO` as RoomIO's audio input.

        The session then hears the caller's early words first. Await `session.start` directly, not
        in a task of its own: early audio has to be in front of the live audio
        before the session takes the first frame. Without `texts`, these are the session's.
        """
        self._session_listens = True
        if not texts:
            self._leave_texts()
        person = self._people.pop(caller, None) or Person()
        for somebody_else in self._people.values():
            if somebody_else.live:
                self._spawn(somebody_else.live.stop())
        self._people = {caller: person}
        live = self._spawn(person.live.stop(after=LAP_SECONDS)) if person.live else None
        greeted = self._spawn(_greeted(session))
        yield
        if session.input.audio:
            spoken = self._spawn(self._spoken(person, live, greeted, session.input.audio))
            session.input.audio = PreConnectAudio(session.input.audio, spoken)

    async def texts(self, caller: str, within: float = 2.0) -> list[str]:
        """What the caller typed before the session listened, in order.

        A text that is still on its way has `within` seconds to arrive.
        """
        person = self._people.get(caller)
        if not person or not person.texts:
            return []
        _, late = await asyncio.wait(person.texts, timeout=within)
        if late:
            log.warning(
                "a text that the caller sent early did not arrive within %g s and is lost", within
            )
        arrived = [text.result() for text in person.texts if text.done() and not text.cancelled()]
        return [text for text in arrived if text]

    async def typed(self, caller: str) -> AsyncIterator[str]:
        """What the caller types from when the session was started, in order, without an end."""
        typed = self._people[caller].typed
        while True:
            text = await typed.get()
            await asyncio.wait([text], timeout=TEXT_SECONDS)
            if not text.done():
                text.cancel()
                log.warning("a typed text did not arrive within %g s and is lost", TEXT_SECONDS)
            elif not text.cancelled() and (words := text.result()):
                yield words

    async def close(self) -> None:
        """Stop listening; what was not taken is forgotten."""
        self._session_listens = True
        self._leave_texts()
        self._room.unregister_byte_stream_handler(PRE_CONNECT_TOPIC)
        self._room.off("track_subscribed", self._on_track)
        for task in self._tasks:
            task.cancel()
        stopping = [person.live.stop() for person in self._people.values() if person.live]
        await asyncio.gather(*self._tasks, *stopping, return_exceptions=True)

    def _leave_texts(self) -> None:
        """Leave them to the session, which is refused where another handler is registered."""
        if self._takes_texts:
            self._takes_texts = False
            self._room.unregister_text_stream_handler(TOPIC_CHAT)

    def _person(self, identity: str) -> Person | None:
        """Somebody who is heard; None for others in a crowd, or once the caller is known."""
        if (
            not self._session_listens
            and identity not in self._people
            and len(self._people) < MAX_PEOPLE
        ):
            self._people[identity] = Person()
        return self._people.get(identity)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # texts

    def _on_text(self, reader: rtc.TextStreamReader, identity: str) -> None:
        person = self._person(identity)
        if person and self._session_listens:
            person.typed.put_nowait(self._spawn(_read_text(reader)))
        elif person and len(person.texts) < MAX_TEXTS:
            person.texts.append(self._spawn(_read_text(reader, MAX_CHARACTERS)))
        else:
            reader.close()

    # audio

    def _on_recording(self, reader: rtc.ByteStreamReader, identity: str) -> None:
        track = (reader.info.attributes or {}).get("trackId")
        person = self._person(identity)
        if person and track and (track in person.recordings or len(person.recordings) < MAX_TRACKS):
            self._spawn(_read_recording(reader, person.recording(track)))
        else:
            reader.close()

    def _on_track(
        self,
        track: rtc.RemoteTrack,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        person = self._person(participant.identity)
        if not person or publication.source != rtc.TrackSource.SOURCE_MICROPHONE:
            return
        if not person.microphone.done():
            person.microphone.set_result(publication)
            if not self._session_listens:
                person.live = Live(track)

    async def _spoken(
        self,
        person: Person,
        live: asyncio.Task[tuple[bytes, int]] | None,
        greeted: asyncio.Task[None],
        source: AudioInput,
    ) -> bytes:
        """What the caller said early: first what their front end recorded, then what we did.

        With it comes what was taken from the session's own audio, to find what these three share.
        A recording is heard after the greeting, and answered: not instead of it, nor as its echo.
        """
        try:
            async with asyncio.timeout(MICROPHONE_SECONDS):
                publication = await person.microphone
        except TimeoutError:
            return b""
        subscribed = asyncio.get_running_loop().time()
        heard = bytearray()
        if live:
            own, lap = await live
            subscribed = asyncio.get_running_loop().time() - len(own) / BYTES_A_SECOND
            await _take(source, heard, LAP_SECONDS + MORE_SECONDS)
            twice = await asyncio.to_thread(shared, own, bytes(heard))
            if twice is None:
                # silence, mostly: the session has heard the lap as well
                own, twice = own[: len(own) - lap], 0
            await _take(source, heard, twice / BYTES_A_SECOND)
            heard[:twice] = own
        if not person.announced:
            return bytes(heard)
        try:
            async with asyncio.timeout(RECORDING_SECONDS):
                recording = await asyncio.shield(person.recording(publication.sid))
        except TimeoutError:
            log.warning(
                "what the caller said early was announced but did not come within %g s",
                RECORDING_SECONDS,
            )
            return bytes(heard)
        # a recording that has arrived has ended, so that all that live sound shares is on its way
        since = asyncio.get_running_loop().time() - subscribed
        await _take(source, heard, min(since, SHARED_SECONDS) + MORE_SECONDS)
        beginning = bytes(heard[: int(SHARED_SECONDS * BYTES_A_SECOND)])
        twice = await asyncio.to_thread(shared, recording, beginning) or 0
        await _take(source, heard, twice / BYTES_A_SECOND)
        await asyncio.wait([greeted])
        return recording + bytes(heard[twice:])


class Live:
    """A microphone, recorded until the session listens to it."""

    def __init__(self, track: rtc.RemoteTrack) -> None:
        self._stream = rtc.AudioStream.from_track(
            track=track,
            sample_rate=AUDIO.sample_rate,
            num_channels=AUDIO.num_channels,
            frame_size_ms=10,
        )
        self._pcm, self._bytes = bytearray(), 0
        self._task = asyncio.create_task(self._record())

    async def _record(self) -> None:
        async for event in self._stream:
            self._pcm += event.frame.data.cast("B")
            self._bytes += len(event.frame.data.cast("B"))
            del self._pcm[:-MAX_KEPT]

    async def stop(self, after: float = 0.0) -> tuple[bytes, int]:
        """End the recording `after` some seconds: what was said, and how much of it from now on."""
        until_now = self._bytes
        await asyncio.sleep(after)
        await self._stream.aclose()
        await self._task
        return bytes(self._pcm), self._bytes - until_now


class PreConnectAudio(AudioInput):
    """What was said early, then what is said: nothing left out, nothing twice or out of order."""

    def __init__(self, source: AudioInput, early: asyncio.Task[bytes]) -> None:
        super().__init__(label="PreConnectBuffer", source=source)
        self._early = early
        self._frames: deque[rtc.AudioFrame] | None = None

    async def __anext__(self) -> rtc.AudioFrame:
        if self._frames is None:
            await asyncio.wait(
                [self._early]
            )  # which lets a cancelled caller come back, and ask again
            said = b"" if self._early.cancelled() else self._early.result()
            self._frames = deque(_frames(said))
        return self._frames.popleft() if self._frames else await super().__anext__()


async def _greeted(session: AgentSession[Any]) -> None:
    """Wait until the agent has said something, or has taken long to begin or to finish it."""
    begun, over = asyncio.Event(), asyncio.Event()

    def changed(event: AgentStateChangedEvent) -> None:
        if event.new_state == "speaking":
            begun.set()
        elif begun.is_set():
            over.set()

    session.on("agent_state_changed", changed)
    try:
        async with asyncio.timeout(GREETING_BEGINS_SECONDS):
            await begun.wait()
        async with asyncio.timeout(ECHO_SECONDS):
            await over.wait()
    except TimeoutError:
        pass
    finally:
        session.off("agent_state_changed", changed)


async def _take(source: AudioInput, heard: bytearray, seconds: float) -> None:
    """Take frames until so much has been heard in all, or no more is to be had."""
    while len(heard) < seconds * BYTES_A_SECOND:
        try:
            async with asyncio.timeout(FRAME_SECONDS):
                frame = await anext(source)
        except (StopAsyncIteration, TimeoutError):
            return
        heard += frame.data.cast("B")


def shared(earlier: bytes, later: bytes) -> int | None:
    """How many bytes of `later` were said when `earlier` ended; None where they share no sound.

    Both are recordings of one microphone, differently coded, and may share a stretch: the end of
    the earlier one, the beginning of the later one. Where the later one begins after a gap, or all
    that they share is silence, there is nothing to be found.
    """
    # differences between neighbours: a voice's low hum is alike everywhere
    ended, begun = _edges(earlier[-int(SHARED_SECONDS * BYTES_A_SECOND) :]), _edges(later)
    if not len(ended) or not len(begun):
        return None
    for milliseconds, alike in PIECES.items():
        size = AUDIO.sample_rate * milliseconds // 1000
        length = 1 << (len(begun) + size).bit_length()
        spectrum = np.fft.rfft(begun, length)
        power = np.cumsum(np.concatenate([[0.0], begun**2]))
        power = power[size:] - power[:-size]
        looked_for = 0
        for end in range(len(ended), size - 1, -size // 4):
            piece = ended[end - size : end]
            loudness = float(np.sqrt(np.mean(piece**2)))
            if loudness < SILENT or not len(power):
                continue
            product = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, length)), length)
            likeness = product[: len(power)] / (
                loudness * size**0.5 * np.sqrt(np.maximum(power, size * SILENT**2 / 4))
            )
            at = int(np.argmax(likeness))
            if likeness[at] >= alike:
                return 2 * (at + size + len(ended) - end + 1)
            looked_for += 1
            if looked_for == MOST_PIECES:
                break
    return None


def _edges(pcm: bytes) -> Samples:
    return np.diff(np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float64))


async def _read_text(reader: rtc.TextStreamReader, most: int | None = None) -> str:
    text = ""
    try:
        async for chunk in reader:
            text += chunk
            if most is not None and len(text) > most:
                break
    except rtc.StreamError:
        log.info("a text was broken off by its sender")
    finally:
        reader.close()
    return text[:most].strip()


async def _read_recording(reader: rtc.ByteStreamReader, recording: asyncio.Future[bytes]) -> None:
    """Convert what a front end recorded to `AUDIO`'s form; nothing, and a warning, on failure."""
    said = b""
    try:
        received = bytearray()
        async for chunk in reader:
            received += chunk
            if len(received) > MAX_RECEIVED:
                break
        about = reader.info.attributes or {}
        if reader.info.mime_type in RAW:
            said = _convert(
                received, rate=int(about["sampleRate"]), channels=int(about["channels"])
            )
        else:
            said = await _decode(received)
    except (rtc.StreamError, KeyError, ValueError) as error:
        log.warning(
            "what the caller said early cannot be heard: %s %s", type(error).__name__, error
        )
    finally:
        reader.close()
        if not recording.done():
            recording.set_result(said[-MAX_KEPT:])


def _convert(pcm: bytearray, *, rate: int, channels: int) -> bytes:
    """16 bit samples of any rate and any number of channels."""
    if not (8_000 <= rate <= 192_000 and 1 <= channels <= 2):
        raise ValueError(f"a recording of {channels} channels at {rate} Hz")
    samples = np.frombuffer(pcm[: len(pcm) // (2 * channels) * 2 * channels], dtype="<i2").reshape(
        -1, channels
    )
    mono: bytes = samples.mean(axis=1).astype("<i2").tobytes()
    if rate == AUDIO.sample_rate:
        return mono
    resampler = rtc.AudioResampler(rate, AUDIO.sample_rate)
    return b"".join(
        bytes(frame.data) for frame in resampler.push(bytearray(mono)) + resampler.flush()
    )


async def _decode(container: bytearray) -> bytes:
    """WebM, Ogg or MP4, as browsers record."""
    decoder = AudioStreamDecoder(sample_rate=AUDIO.sample_rate, num_channels=AUDIO.num_channels)
    try:
        decoder.push(bytes(container))
        decoder.end_input()
        said = bytearray()
        async for frame in decoder:
            said += frame.data.cast("B")
            del said[:-MAX_KEPT]
        return bytes(said)
    finally:
        await decoder.aclose()


def _frames(pcm: bytes) -> Iterator[rtc.AudioFrame]:
    """Frames as RoomIO makes them; the last one may be shorter."""
    size = AUDIO.sample_rate * AUDIO.frame_size_ms // 1000 * AUDIO.num_channels * 2
    for start in range(0, len(pcm), size):
        data = pcm[start : start + size]
        yield rtc.AudioFrame(
            data, AUDIO.sample_rate, AUDIO.num_channels, len(data) // (2 * AUDIO.num_channels)
        )
