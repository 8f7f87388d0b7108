"""A call is recorded, both sides in one file, and only after its caller has been told so."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, tts
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities
from livekit.agents.voice.room_io import RoomOptions

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call
from agent.models.scripted import ScriptedTTS, hum
from agent.reports import recordings
from agent.settings import Settings, load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport

RATE = 24_000
NOTICE = "We record this call."


class Microphone(AudioInput):
    """A caller who hums without a pause."""

    last: Microphone

    def __init__(self) -> None:
        super().__init__(label="a microphone")
        self._next = time.monotonic()
        self.frames, self.enough, self.heard = 0, 1_000_000, asyncio.Event()
        Microphone.last = self

    async def __anext__(self) -> rtc.AudioFrame:
        self._next += 0.05
        self.frames += 1
        if self.frames >= self.enough:
            self.heard.set()
        await asyncio.sleep(max(0.0, self._next - time.monotonic()))
        count = RATE // 20
        hum = (3000 * np.sin(np.arange(count) * 0.05)).astype(np.int16)
        return rtc.AudioFrame(hum.tobytes(), RATE, 1, count)


class Speaker(AudioOutput):
    """Plays what the agent says, in no time."""

    def __init__(self) -> None:
        capabilities = AudioOutputCapabilities(pause=False)
        super().__init__(
            label="a speaker", capabilities=capabilities, next_in_chain=None, sample_rate=RATE
        )
        self._seconds = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._seconds:
            self.on_playback_started(created_at=time.time())
        self._seconds += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._seconds:
            self.on_playback_finished(playback_position=self._seconds, interrupted=False)
            self._seconds = 0.0

    def clear_buffer(self) -> None:
        return


class Transport(FakeTransport):
    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        session.input.audio, session.output.audio = Microphone(), Speaker()
        await session.start(agent)


class FailingTTS(ScriptedTTS):
    voice = "none"

    def synthesize(self, text: str, **options: Any) -> Any:
        raise OSError("no voice")


class BreakingTTS(ScriptedTTS):
    """Says the beginning of every sentence."""

    voice = "broken"

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _Breaking(tts=self, input_text=text, conn_options=conn_options)


class _Breaking(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id="1", sample_rate=RATE, num_channels=1, mime_type="audio/pcm"
        )
        output_emitter.push(hum(self._input_text[:9]))
        output_emitter.flush()
        raise OSError("the line to the voice broke")


class Persona(CallAgent):
    recorded_at_welcome: bool | None = None
    voice: type[ScriptedTTS] = ScriptedTTS

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="", tts=self.voice())

    def recording_notice(self) -> str:
        return NOTICE

    async def welcome(self, profile: Any) -> None:
        type(self).recorded_at_welcome = self.call.recording is not None
        await super().welcome(profile)
        if self.call.recording:  # until a second of the caller has been heard
            microphone = Microphone.last
            microphone.enough = microphone.frames + 20
            await microphone.heard.wait()


class Mute(Persona):
    voice = FailingTTS


class Breaking(Persona):
    voice = BreakingTTS


async def called(persona: type[Persona], settings: Settings, monkeypatch: Any) -> Call:
    """A call that has greeted and is over."""
    monkeypatch.setattr(entrypoint, "build_persona", persona)
    transport = Transport()
    call = Call(transport, settings)
    transport.arrive()
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(60):
        assert await call.wait_greeted()
        transport.leave()
        await call.wait_closed()
    return call


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings().model_copy(update={"record": "audio", "data_dir": tmp_path})


def channels(file: Path) -> np.ndarray[Any, Any]:
    with av.open(str(file)) as opened:
        frames = [frame.to_ndarray() for frame in opened.decode(audio=0)]
    return np.concatenate(frames, axis=1)


async def test_both_sides_are_recorded_after_the_notice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = await called(Persona, settings, monkeypatch)
    assert Persona.recorded_at_welcome
    (file,) = recordings.folder_of(settings).glob("*.ogg")
    assert call.report().recording == str(file)
    caller, agent = channels(file)
    assert np.abs(caller).max() > 0.01
    assert np.abs(agent).max() > 0.01
    assert call.report().said[0].text == NOTICE
    assert ("recording", "ok") in call.closed
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("persona", [Mute, Breaking])
async def test_nothing_is_recorded_when_the_notice_could_not_be_said(
    persona: type[Persona],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    call = await called(persona, settings, monkeypatch)
    assert call.recording is None
    assert not recordings.folder_of(settings).exists()
    assert "the call is not recorded: its caller could not be told so" in caplog.text


async def test_without_the_setting_nobody_is_told_and_nothing_recorded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = settings.model_copy(update={"record": "none"})
    call = await called(Persona, off, monkeypatch)
    assert call.recording is None
    assert not recordings.folder_of(settings).exists()
    assert NOTICE not in [said.text for said in call.report().said]


async def test_recordings_of_a_caller_are_forgotten_and_old_ones_deleted(
    settings: Settings,
) -> None:
    ann, ben, old = (
        recordings.prepare(settings, call, [who])
        for call, who in (("1", "ann"), ("../2", "ben"), ("3", "cat"))
    )
    assert {file.parent for file in (ann, ben, old)} == {recordings.folder_of(settings)}
    recordings.finish(old)
    assert await recordings.forget(settings, ["ann", "tel:+49"]) == 1
    days = settings.memory_days * 86_400
    os.utime(old.with_suffix(".ogg"), (time.time() - days - 60,) * 2)
    await recordings.tidy(settings)
    left = {file for file in recordings.folder_of(settings).iterdir() if file.name != ".lock"}
    assert left == {ben, ben.with_suffix(".json")}
    assert "ben" not in ben.with_suffix(".json").read_text()


async def test_what_a_killed_call_leaves_is_a_recording_when_no_call_can_write_it(
    settings: Settings,
) -> None:
    left = recordings.prepare(settings, "1", ["ann"])
    await recordings.tidy(settings)
    assert left.exists()
    os.utime(left, (time.time() - settings.max_call_seconds - 3700,) * 2)
    await recordings.tidy(settings)
    assert recordings.file_of(settings, "1").exists()
