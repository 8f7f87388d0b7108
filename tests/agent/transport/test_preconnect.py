"""Words from before the agent has joined, with the SDK's readers, frames, tracks and decoders."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from livekit import rtc
from livekit.agents import AgentSession
from livekit.agents.voice.io import AudioInput
from livekit.protocol.models import AudioTrackFeature

from agent.transport import preconnect
from agent.transport.preconnect import AUDIO, PRE_CONNECT_TOPIC, PreConnectBuffer

Pcm = npt.NDArray[np.int16]
MICROPHONE = rtc.TrackSource.SOURCE_MICROPHONE
ANNOUNCED = [AudioTrackFeature.TF_PRECONNECT_BUFFER]


class Room(rtc.EventEmitter[str]):
    """Handles streams like rtc.Room: one handler a topic, called with readers and identities."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, Any] = {}
        self.bytes: dict[str, Any] = {}

    def register_text_stream_handler(self, topic: str, handler: Any) -> None:
        if topic in self.texts:
            raise ValueError(f"text stream handler for topic {topic!r} already set")
        self.texts[topic] = handler

    def register_byte_stream_handler(self, topic: str, handler: Any) -> None:
        if topic in self.bytes:
            raise ValueError(f"byte stream handler for topic {topic!r} already set")
        self.bytes[topic] = handler

    def unregister_text_stream_handler(self, topic: str) -> None:
        self.texts.pop(topic, None)

    def unregister_byte_stream_handler(self, topic: str) -> None:
        self.bytes.pop(topic, None)

    def types(self, text: str, identity: str = "caller") -> Reader:
        """A participant sends a text."""
        reader = Reader([text[:3], text[3:]])
        self.texts["lk.chat"](reader, identity)
        return reader

    def sends(
        self,
        data: bytes,
        mime: str = "application/octet-stream",
        identity: str = "caller",
        **about: str,
    ) -> Reader:
        """A participant's front end sends its recording, in any chunks."""
        attributes = {
            "trackId": "TR_mic",
            "sampleRate": str(AUDIO.sample_rate),
            "channels": "1",
        } | about
        reader = Reader(
            [data[at : at + 1501] for at in range(0, len(data), 1501)], mime, attributes
        )
        self.bytes[PRE_CONNECT_TOPIC](reader, identity)
        return reader

    def publishes(
        self, track: Any = None, features: list[Any] | None = None, identity: str = "caller"
    ) -> None:
        """A participant publishes a microphone."""
        self.emit(
            "track_subscribed",
            track or Microphone().track,
            Publication(features or []),
            Somebody(identity),
        )


class Reader:
    """A stream as it arrives; `more` is awaited before its end."""

    def __init__(
        self, chunks: list[Any], mime: str = "text/plain", attributes: dict[str, str] | None = None
    ) -> None:
        self.info = rtc.ByteStreamInfo("id", mime, "topic", 0, None, attributes or {}, "name")
        self.more = asyncio.Event()
        self.more.set()
        self.closed = False
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[Any]:
        for chunk in self._chunks[:-1]:
            yield chunk
        await self.more.wait()
        for chunk in self._chunks[-1:]:
            yield chunk

    def close(self) -> None:
        self.closed = True


@dataclass
class Publication:
    audio_features: list[Any]
    sid: str = "TR_mic"
    source: Any = MICROPHONE


@dataclass
class Somebody:
    identity: str


class Microphone:
    """A real track with sound from here."""

    def __init__(self) -> None:
        self._source = rtc.AudioSource(AUDIO.sample_rate, 1)
        self.track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)

    async def speak(self, pcm: bytes) -> None:
        await self._source.capture_frame(rtc.AudioFrame(pcm, AUDIO.sample_rate, 1, len(pcm) // 2))
        await self._source.wait_for_playout()


@dataclass
class LiveAudio(AudioInput):
    """A session's input from RoomIO: the live frames."""

    frames: list[rtc.AudioFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(label="live")

    async def __anext__(self) -> rtc.AudioFrame:
        if not self.frames:
            raise StopAsyncIteration
        return self.frames.pop(0)


# one frame that is said when the session listens
LIVE = np.full(AUDIO.sample_rate // 20, 7777, "<i2").tobytes()


def listening(words: PreConnectBuffer, live: Pcm | None = None) -> AgentSession[Any]:
    """A session that was started inside `handed_over`, before its first frame."""
    session: AgentSession[Any] = AgentSession(vad=None, turn_handling={"turn_detection": "manual"})
    with words.handed_over(session, "caller"):
        pcm = LIVE if live is None else live.tobytes()
        session.input.audio = LiveAudio(list(preconnect._frames(pcm)))
    return session


async def heard(session: AgentSession[Any]) -> bytes:
    assert session.input.audio is not None
    return b"".join([bytes(frame.data) async for frame in session.input.audio])


def assert_heard(everything: bytes, recording: bytes) -> None:
    """The recording, then silence until the session listens, then the live words."""
    between = everything.removeprefix(recording).removesuffix(LIVE)
    assert len(between) == len(everything) - len(recording) - len(LIVE)
    assert not any(between)


def ramp(seconds: float) -> bytes:
    """Samples that differ from their neighbours, so that losses, doubles and moves are visible."""
    return (np.arange(int(AUDIO.sample_rate * seconds)) % 5000).astype("<i2").tobytes()


def voice(seconds: float) -> Pcm:
    """Sound that is nowhere like itself, in the band of speech."""
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(at(seconds)))
    hertz = np.fft.rfftfreq(at(seconds), 1 / AUDIO.sample_rate)
    spectrum[(hertz < 200) | (hertz > 3_000)] = 0
    samples = np.fft.irfft(spectrum, at(seconds))
    said: Pcm = (3_000 * samples / samples.std()).astype("<i2")
    return said


def at(seconds: float) -> int:
    """A place in a recording."""
    return round(seconds * AUDIO.sample_rate)


def tone(seconds: float, rate: int) -> Pcm:
    return (8000 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype("<i2")


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
async def words(room: Room, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PreConnectBuffer]:
    # nobody greets
    monkeypatch.setattr(preconnect, "GREETING_BEGINS_SECONDS", 0.0)
    words = PreConnectBuffer(cast(rtc.Room, room))
    yield words
    await words.close()


# ---------------------------------------------------------------------- texts


async def test_texts_typed_before_the_session_listens_are_kept_in_their_order(
    room: Room, words: PreConnectBuffer
) -> None:
    slow = room.types("the first one")
    slow.more.clear()
    room.types("the second one")
    listening(words)
    slow.more.set()

    assert await words.texts("caller") == ["the first one", "the second one"]


async def test_what_others_type_is_not_taken_for_the_callers(
    room: Room, words: PreConnectBuffer
) -> None:
    room.types("let me in", identity="somebody else")
    room.types("hello there")
    listening(words)

    assert await words.texts("caller") == ["hello there"]


async def test_quick_texts_come_in_the_order_in_which_they_were_sent(
    room: Room, words: PreConnectBuffer
) -> None:
    room.types("an early one")
    listening(words)
    slow = room.types("the first one")
    slow.more.clear()
    room.types("the second one")
    room.types("of somebody else", identity="somebody else")
    room.types("the third one")
    typed = words.typed("caller")
    first = asyncio.ensure_future(anext(typed))
    await asyncio.sleep(0)
    slow.more.set()

    assert [await first, await anext(typed), await anext(typed)] == [
        "the first one",
        "the second one",
        "the third one",
    ]
    assert await words.texts("caller") == ["an early one"]


async def test_of_what_the_caller_types_in_the_call_nothing_is_cut_off(
    room: Room, words: PreConnectBuffer
) -> None:
    listening(words)
    sent = ["x" * 2 * preconnect.MAX_CHARACTERS, *map(str, range(2 * preconnect.MAX_TEXTS))]
    for text in sent:
        room.types(text)
    typed = words.typed("caller")

    assert [await anext(typed) for _ in sent] == sent


async def test_a_text_that_never_ends_does_not_hold_up_the_next(
    room: Room, words: PreConnectBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconnect, "TEXT_SECONDS", 0.0)
    listening(words)
    room.types("this one never comes").more.clear()
    typed = words.typed("caller")
    lost = asyncio.ensure_future(anext(typed))
    await asyncio.wait([lost], timeout=0)
    monkeypatch.setattr(preconnect, "TEXT_SECONDS", 60.0)
    room.types("this one does")

    assert await lost == "this one does"


async def test_a_text_that_never_ends_is_waited_for_only_so_long(
    room: Room, words: PreConnectBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    room.types("this one never comes").more.clear()
    room.types("this one does")
    listening(words)

    assert await words.texts("caller", within=0) == ["this one does"]
    assert "did not arrive" in caplog.text


async def test_a_flood_of_texts_is_cut_off(room: Room, words: PreConnectBuffer) -> None:
    room.types("x" * 10 * preconnect.MAX_CHARACTERS)
    readers = [room.types(f"text {number}") for number in range(2 * preconnect.MAX_TEXTS)]
    strangers = [
        room.types("hello", identity=f"stranger {number}")
        for number in range(2 * preconnect.MAX_PEOPLE)
    ]
    # otherwise they would stay subscribed as long as the process lives
    closed_unread = (readers[-1].closed, strangers[-1].closed)
    listening(words)
    texts = await words.texts("caller")

    assert closed_unread == (True, True)
    assert len(texts) == preconnect.MAX_TEXTS
    assert len(texts[0]) == preconnect.MAX_CHARACTERS


# ---------------------------------------------------------------------- audio


async def test_a_recording_is_heard_before_the_live_words(
    room: Room, words: PreConnectBuffer
) -> None:
    room.sends(ramp(0.52))
    room.publishes(features=ANNOUNCED)

    assert_heard(await heard(listening(words)), ramp(0.52))


async def test_a_recording_that_comes_after_the_session_has_started_still_goes_first(
    room: Room, words: PreConnectBuffer
) -> None:
    room.publishes(features=ANNOUNCED)
    session = listening(words)
    hearing = asyncio.create_task(heard(session))
    room.sends(ramp(0.3))

    assert_heard(await hearing, ramp(0.3))


async def test_a_microphone_that_is_switched_on_after_the_session_started_brings_its_recording(
    room: Room, words: PreConnectBuffer
) -> None:
    hearing = asyncio.create_task(heard(listening(words)))
    room.sends(ramp(0.3))
    room.publishes(features=ANNOUNCED)

    assert_heard(await hearing, ramp(0.3))


async def test_words_between_the_recording_and_the_session_are_heard(
    room: Room, words: PreConnectBuffer
) -> None:
    microphone, said = Microphone(), ramp(0.3)[::-1]
    room.sends(ramp(0.1))
    room.publishes(microphone.track, ANNOUNCED)
    await microphone.speak(said)
    everything = await heard(listening(words))

    assert everything.startswith(ramp(0.1))
    # a track begins and ends in silence, and may cut a frame there
    assert said[960:-960] in everything
    assert everything.endswith(LIVE)


@pytest.mark.parametrize("milliseconds", [60, 100, 450])
@pytest.mark.parametrize("pause", [0, 200])
async def test_what_a_recording_and_live_sound_share_is_heard_once(
    room: Room, words: PreConnectBuffer, milliseconds: int, pause: int
) -> None:
    said, end, begin = voice(2), at(1), at(1 - milliseconds / 1000 - pause / 1000)
    said[end - at(pause / 1000) : end] = 0
    hearing = asyncio.create_task(heard(listening(words, said[begin:])))
    room.sends(said[:end].tobytes())
    room.publishes(features=ANNOUNCED)

    assert await hearing == said.tobytes()


@pytest.mark.parametrize("milliseconds", [0, 20, 150])
async def test_of_a_recording_and_live_sound_that_share_nothing_all_is_heard(
    room: Room, words: PreConnectBuffer, milliseconds: int
) -> None:
    said, begin = voice(2), at(1 + milliseconds / 1000)
    hearing = asyncio.create_task(heard(listening(words, said[begin:])))
    room.sends(said[: at(1)].tobytes())
    room.publishes(features=ANNOUNCED)

    assert await hearing == np.concatenate([said[: at(1)], said[begin:]]).tobytes()


async def test_a_shared_stretch_is_found_in_a_browsers_recording(
    room: Room, words: PreConnectBuffer
) -> None:
    said = voice(2)
    hearing = asyncio.create_task(heard(listening(words, said[at(0.7) :])))
    recorded = encode(said[: at(1)].repeat(2), "webm", "libopus")
    room.sends(recorded, "audio/webm;codecs=opus", sampleRate="48000")
    room.publishes(features=ANNOUNCED)
    everything = np.frombuffer(await hearing, "<i2")

    # a coder begins late; from there on all is in its place, before the seam and after it
    assert len(everything) == pytest.approx(len(said), abs=at(0.03))
    assert np.corrcoef(everything, said[-len(everything) :])[0, 1] > 0.9


async def test_nothing_is_lost_or_doubled_when_the_session_begins_to_listen(
    room: Room, words: PreConnectBuffer
) -> None:
    microphone, said = Microphone(), voice(2)
    room.publishes(microphone.track)
    # what the session hears begins before our own recording of the same track ends
    listener = rtc.AudioStream.from_track(track=microphone.track, sample_rate=AUDIO.sample_rate)
    speaking = asyncio.create_task(microphone.speak(said.tobytes()))
    spoken = 0.0
    async for event in listener:
        spoken += event.frame.duration if any(event.frame.data) else 0.0
        if spoken > 0.5:
            break
    everything = await heard(listening(words, said[at(0.3) :]))
    await listener.aclose()
    await speaking

    # a track begins in silence, and may cut a frame there
    assert everything.lstrip(b"\0")[-2 * at(1.9) :] == said[at(0.1) :].tobytes()
    assert len(everything) <= 2 * at(2.5)


async def test_a_caller_without_a_recording_is_not_kept_waiting(
    room: Room, words: PreConnectBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    room.publishes()
    session = listening(words)

    assert_heard(await heard(session), b"")
    assert not caplog.records


async def test_the_recording_of_somebody_else_is_not_taken_for_the_callers(
    room: Room, words: PreConnectBuffer
) -> None:
    room.sends(ramp(0.2), identity="somebody else")
    room.sends(ramp(0.1))
    room.publishes(features=ANNOUNCED)

    assert_heard(await heard(listening(words)), ramp(0.1))


async def test_an_announced_recording_that_never_comes_costs_no_live_word(
    room: Room,
    words: PreConnectBuffer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preconnect, "RECORDING_SECONDS", 0.01)
    room.publishes(features=ANNOUNCED)

    assert_heard(await heard(listening(words)), b"")
    assert "did not come" in caplog.text


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 1), (48_000, 2), (16_000, 1)])
async def test_a_recording_of_a_phone_is_brought_to_the_rate_of_the_session(
    room: Room, words: PreConnectBuffer, rate: int, channels: int
) -> None:
    samples = np.repeat(tone(0.5, rate), channels)
    # half a sample too much
    room.sends(samples.tobytes() + b"\0", sampleRate=str(rate), channels=str(channels))
    room.publishes(features=ANNOUNCED)
    everything = np.trim_zeros(
        np.frombuffer((await heard(listening(words))).removesuffix(LIVE), "<i2")
    )

    assert abs(len(everything) - AUDIO.sample_rate // 2) <= 240
    assert pitch(everything) == pytest.approx(440, abs=10)


@pytest.mark.parametrize(
    ("mime", "container", "codec"),
    [
        ("audio/webm;codecs=opus", "webm", "libopus"),
        ("audio/ogg", "ogg", "libopus"),
        ("video/mp4", "mp4", "aac"),
    ],
    ids=["Chrome", "Firefox", "Safari"],
)
async def test_a_recording_of_a_browser_is_decoded(
    room: Room, words: PreConnectBuffer, mime: str, container: str, codec: str
) -> None:
    room.sends(encode(tone(0.5, 48_000), container, codec), mime, sampleRate="48000")
    room.publishes(features=ANNOUNCED)
    everything = np.trim_zeros(
        np.frombuffer((await heard(listening(words))).removesuffix(LIVE), "<i2")
    )

    assert len(everything) / AUDIO.sample_rate == pytest.approx(0.5, abs=0.05)
    assert pitch(everything) == pytest.approx(440, abs=10)


@pytest.mark.parametrize("about", [{"channels": "six"}, {"sampleRate": "1"}, {"channels": "0"}])
async def test_a_recording_that_cannot_be_read_is_a_warning_and_no_more(
    room: Room, words: PreConnectBuffer, caplog: pytest.LogCaptureFixture, about: dict[str, str]
) -> None:
    room.sends(ramp(0.1), **about)
    room.publishes(features=ANNOUNCED)

    assert_heard(await heard(listening(words)), b"")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_of_a_recording_that_is_too_long_the_newest_is_kept(
    room: Room, words: PreConnectBuffer
) -> None:
    room.sends(ramp(12))
    room.publishes(features=ANNOUNCED)

    assert_heard(await heard(listening(words)), ramp(12)[-preconnect.MAX_KEPT :])


@pytest.mark.parametrize("greeting", ["ends", "goes on", "never begins"])
async def test_a_recording_is_heard_after_the_greeting(
    room: Room, words: PreConnectBuffer, monkeypatch: pytest.MonkeyPatch, greeting: str
) -> None:
    if greeting != "ends":
        monkeypatch.setattr(preconnect, "ECHO_SECONDS", 0.0)
    monkeypatch.setattr(
        preconnect, "GREETING_BEGINS_SECONDS", 0.0 if greeting == "never begins" else 60.0
    )
    room.sends(ramp(0.1))
    room.publishes(features=ANNOUNCED)
    session = listening(words)
    hearing = asyncio.create_task(heard(session))
    if greeting != "never begins":
        # an agent is listening before it begins to speak; a second is longer than all else takes
        session._update_agent_state("listening")
        too_early, _ = await asyncio.wait([hearing], timeout=1)
        session._update_agent_state("speaking")
        assert not too_early
    if greeting == "ends":
        too_early, _ = await asyncio.wait([hearing], timeout=1)
        session._update_agent_state("listening")
        assert not too_early

    assert_heard(await hearing, ramp(0.1))


async def test_closing_leaves_nothing_in_the_room_and_nothing_running(room: Room) -> None:
    before = asyncio.all_tasks()
    words = PreConnectBuffer(cast(rtc.Room, room))
    room.types("never comes").more.clear()
    room.sends(ramp(0.1)).more.clear()
    room.publishes(features=ANNOUNCED)
    await words.close()

    assert not room.texts
    assert not room.bytes
    assert asyncio.all_tasks() == before


def pitch(samples: Pcm) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * AUDIO.sample_rate / len(samples))


def encode(samples: Pcm, container: str, codec: str) -> bytes:
    """A browser's recording of samples at 48 kHz; MP4 in fragments, because streams cannot seek."""
    file = io.BytesIO()
    options = (
        {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if container == "mp4" else {}
    )
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        size = 1024 if codec == "aac" else 960
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", 48_000, size)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(piece):
                output.mux(packet)
    return file.getvalue()
