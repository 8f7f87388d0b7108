"""Known sentences: said at once by a voice that has said them before, and by no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectionError, tts
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions
from livekit.agents.voice import io
from livekit.agents.voice.room_io import RoomOptions

from agent import entrypoint
from agent.conversation import CallAgent, sounds
from agent.conversation.sounds import KeptSounds, Sound, voice_of
from agent.lifecycle import Call
from agent.memory import Profile
from agent.models.scripted import SAMPLE_RATE, ScriptedTTS
from agent.settings import load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport, Talk

GREETING = "Hello! How can I help you?"
GOODBYE = "Goodbye!"


class Voice(ScriptedTTS):
    """A voice that notes what it is asked for."""

    def __init__(self, voice: str = "ann", *, broken: bool = False) -> None:
        super().__init__()
        self.voice, self.broken = voice, broken
        self.asked: list[str] = []

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        self.asked.append(text)
        if self.broken:
            raise APIConnectionError
        return super().synthesize(text, conn_options=conn_options)


class Ears(io.AudioOutput):
    """What the caller hears, sentence by sentence."""

    def __init__(self) -> None:
        capabilities = io.AudioOutputCapabilities(pause=True)
        super().__init__(label="ears", capabilities=capabilities, sample_rate=SAMPLE_RATE)
        self.heard: list[bytes] = []
        self._sound = b""

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self._sound += bytes(frame.data)

    def flush(self) -> None:
        super().flush()
        if self._sound:
            self.heard.append(self._sound)
            seconds = len(self._sound) / 2 / SAMPLE_RATE
            self.on_playback_finished(playback_position=seconds, interrupted=False)
            self._sound = b""

    def clear_buffer(self) -> None:
        self.flush()

    def pause(self) -> None:
        return

    def resume(self) -> None:
        return


class VoiceTransport(FakeTransport):
    def __init__(self) -> None:
        super().__init__(limited=False)
        self.ears = Ears()

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        session.output.audio = self.ears
        await super().start(session, agent, caller, options)


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A worker whose jobs have said nothing yet, and the folder that they share."""
    _next_job(monkeypatch, tmp_path)
    return tmp_path


def _next_job(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    job = KeptSounds()
    job.share(folder)
    monkeypatch.setattr(sounds, "kept", job)


@asynccontextmanager
async def calling(
    monkeypatch: pytest.MonkeyPatch,
    voice: Any,
    profile: Profile | None = None,
    kind: type[CallAgent] | None = None,
) -> AsyncIterator[Talk]:
    """A call with this voice, after its greeting."""

    class Persona(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="", tts=voice)

    async def recall(call: Call) -> Profile | None:
        return profile

    monkeypatch.setattr(entrypoint, "build_persona", kind or Persona)
    monkeypatch.setattr(entrypoint, "recall", recall)
    nothing = {"models": "scripted", "memory_url": "none", "knowledge": "none"}
    transport = VoiceTransport()
    call = Call(transport, load_settings().model_copy(update=nothing))
    transport.arrive()
    await call.start(entrypoint.run_call)
    talking = Talk(call, transport)
    try:
        assert await call.wait_greeted()
        yield talking
    finally:
        await call.hang_up()
        await talking.ended()


def files(folder: Path) -> list[Path]:
    """Those that have not been used for longest first; a call's data is in a folder beside them."""
    sounds = [file for file in folder.iterdir() if file.is_file()]
    return sorted(sounds, key=lambda file: file.stat().st_mtime)


def heard(call: Talk) -> list[bytes]:
    assert isinstance(call.transport, VoiceTransport)
    return call.transport.ears.heard


async def test_the_next_call_says_them_in_the_same_sound_without_asking_the_voice(
    monkeypatch: pytest.MonkeyPatch, worker: Path
) -> None:
    async with calling(monkeypatch, first := Voice()) as one:
        pass
    assert first.asked == ["Hello! How can I help you?", GOODBYE]
    _next_job(monkeypatch, worker)
    async with calling(monkeypatch, second := Voice()) as two:
        await two.say("thank you")
    assert second.asked == ["You are welcome."]
    assert [heard(two)[0], heard(two)[-1]] == heard(one)
    assert two.said == [GREETING, "You are welcome.", GOODBYE]


@pytest.mark.parametrize(
    ("profile", "kept"),
    [({}, True), ({"name": "Ann"}, False), ({"facts": ["Has a dog."]}, False)],
    ids=["nothing is known", "a name", "a fact"],
)
async def test_what_is_said_to_somebody_who_is_known_stays_in_the_call(
    monkeypatch: pytest.MonkeyPatch, worker: Path, profile: Any, kept: bool
) -> None:
    known = Profile("ann", calls=1, last_call=0.0, **profile)
    async with calling(monkeypatch, Voice(), known):
        pass
    assert bool(files(worker)) is kept


async def test_another_voice_says_it_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for voice in (Voice("ann"), Voice("ben")):
        async with calling(monkeypatch, voice):
            pass
        assert GREETING in voice.asked


async def test_a_voice_that_does_not_say_which_it_is_is_always_asked(
    monkeypatch: pytest.MonkeyPatch, worker: Path
) -> None:
    for _ in range(2):
        voice = Voice()
        voice.voice = None  # type: ignore[assignment]
        async with calling(monkeypatch, voice):
            pass
        assert GREETING in voice.asked
    assert not files(worker)


async def test_a_sound_is_kept_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, worker: Path
) -> None:
    async with calling(monkeypatch, Voice(broken=True)):
        pass
    assert not files(worker)


async def test_it_is_said_in_the_ordinary_way_where_nothing_can_be_read_or_written(
    monkeypatch: pytest.MonkeyPatch, worker: Path
) -> None:
    _next_job(monkeypatch, worker / "gone")
    async with calling(monkeypatch, Voice()) as unkept:
        pass
    _next_job(monkeypatch, worker)
    async with calling(monkeypatch, Voice()):
        pass
    assert files(worker)
    for file in files(worker):
        file.write_bytes(b"no sound")
    _next_job(monkeypatch, worker)
    async with calling(monkeypatch, voice := Voice()) as unread:
        pass
    assert voice.asked == [GREETING, GOODBYE]
    assert heard(unkept) == heard(unread)


async def test_words_that_only_begin_alike_are_no_known_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with calling(monkeypatch, Voice()) as call:
        session = call.call.session
        assert session is not None
        token = sounds.saying.set(GREETING)
        try:
            await session.say(f"{GREETING} Or not?")
        finally:
            sounds.saying.reset(token)
        assert len(heard(call)[-1]) > len(heard(call)[0])


async def test_an_owners_tts_node_hears_kept_sounds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(CallAgent):
        """Lets nothing through."""

        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="", tts=Voice())

        async def tts_node(self, text: Any, model_settings: Any) -> AsyncGenerator[Any, None]:
            async for _ in super().tts_node(text, model_settings):
                yield rtc.AudioFrame(bytes(480), SAMPLE_RATE, 1, 240)

    async with calling(monkeypatch, Voice()):
        pass
    async with calling(monkeypatch, Voice(), kind=Deaf) as call:
        assert set(heard(call)[0]) == {0}


async def test_no_more_than_so_many_are_kept_and_the_unused_go_first(worker: Path) -> None:
    sound = Sound(bytes(480), SAMPLE_RATE, 1)
    for number in range(sounds.MOST_SOUNDS):
        await sounds.kept.keep("ann", f"sentence {number}", sound, shared=True)
    assert await sounds.kept.find("ann", "sentence 0") == sound
    await sounds.kept.keep("ann", "one more", sound, shared=True)
    assert len(files(worker)) == sounds.MOST_SOUNDS
    for sentence in ("sentence 0", "one more"):
        assert await sounds.kept.find("ann", sentence) == sound
    assert await sounds.kept.find("ann", "sentence 1") is None


async def test_a_workers_folder_is_gone_with_it() -> None:
    with sounds.shared_folder() as folder:
        assert folder is not None
        assert folder.stat().st_mode & 0o777 == 0o700
        await asyncio.to_thread((folder / "sound").write_bytes, b"")
    assert not folder.exists()


def test_a_voice_is_the_one_that_would_speak_next() -> None:
    ann, ben = Voice("ann"), Voice("ben")
    adapter = tts.FallbackAdapter([ann, ben])
    assert voice_of(adapter) == voice_of(ann) != voice_of(ben)
    adapter._status[0].available = False
    assert voice_of(adapter) == voice_of(ben)
