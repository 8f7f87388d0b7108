"""Calls of a rendered project with a realtime model, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from livekit import rtc

from agent.models.scripted import SAMPLE_RATE, hum
from tests.call.scene import ALL_STEPS, Scene, cut_off, new_room, scene
from tests.support.caller import Caller
from tests.support.ends import End, ends
from tests.support.openai_server import OpenAIServer, openai_server
from tests.support.projects import PAIRS, Project, render
from tests.support.server import LiveKit
from tests.support.templates import CONFIG, Template

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif("models" not in CONFIG, reason="no project can choose it yet"),
]

QUESTION, FACT = "When are you open on Saturday?", "Saturday"


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("realtime") / "project"
    made = render(template, folder, PAIRS[0], models="realtime")
    made.install()
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def model() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(project: Project, livekit: LiveKit, model: OpenAIServer) -> AsyncIterator[Scene]:
    settings: dict[str, Any] = {
        "AGENT_MODELS": "realtime",
        "AGENT_REALTIME_URL": model.url,
        "AGENT_REPLY_SECONDS": "3",
    }
    async with scene(project, livekit, **settings) as started:
        yield started


class Speaker:
    """A caller's microphone: hums what is said, and is silent in between."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=200)
        self._said = asyncio.Queue[bytes]()

    async def switch_on(self) -> None:
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self._caller.room.local_participant.publish_track(track, options)
        self._caller.keep(self._stream())

    def say(self, words: str) -> None:
        self._said.put_nowait(hum(words))

    async def _stream(self) -> None:
        sound, step = b"", 2 * SAMPLE_RATE // 50
        while True:
            if not sound and not self._said.empty():
                sound = self._said.get_nowait()
            piece, sound = sound[:step].ljust(step, b"\0"), sound[step:]
            await self._source.capture_frame(rtc.AudioFrame(piece, SAMPLE_RATE, 1, step // 2))


async def test_a_spoken_question_is_answered_from_the_documents_and_the_caller_is_known_again(
    stage: Scene, model: OpenAIServer
) -> None:
    for greeting in ("Hello", "Welcome back"):
        room = new_room()
        async with stage.caller(room, identity="ann") as caller:
            speaker = Speaker(caller)
            await speaker.switch_on()
            assert (await caller.hear_text()).startswith(greeting)
            await caller.hear_sound()
            await stage.step(room, 6)
            model.words.append(QUESTION)
            speaker.say(QUESTION)
            await caller.hear_text_with(FACT)
            model.words.append("Thank you, goodbye.")
            speaker.say("Thank you, goodbye.")
            await caller.hear_text_with("Goodbye!")
            await cut_off(caller)
        ended = await stage.running.ended(room)
        assert ended["reason"] == "agent hung up"
        assert ended["turns"] == 5
        assert stage.running.steps(room) == ALL_STEPS


async def test_what_is_written_before_the_greeting_is_answered_after_it(stage: Scene) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.agent_here.wait()
        await caller.write(QUESTION)
        assert (await caller.hear_text()).startswith("Hello")
        await caller.hear_text_with(FACT)


@ends("realtime-fails", "realtime-hangs")
async def test_a_reply_that_fails_is_tones_and_the_next_one_is_a_reply(
    end: End, stage: Scene, model: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        assert (await caller.hear_text()).startswith("Hello")
        await stage.step(room, 6)
        model.fault("realtime", "500" if end.name == "realtime-fails" else "silent", times=1)
        await caller.write(QUESTION)
        assert "cannot answer that" in await caller.hear_text()
        await caller.heard_more()
        model.mend("realtime")
        await stage.said(room, "realtime model failed: ")
        await caller.ask(QUESTION, FACT)
    assert (await stage.running.ended(room))["reason"] == end.reason


@ends("realtime-fails-for-good")
async def test_a_model_that_fails_for_good_is_tones_and_the_reason_says_so(
    end: End, stage: Scene, model: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        assert (await caller.hear_text()).startswith("Hello")
        await stage.step(room, 6)
        model.fault("realtime", "401")
        await caller.write(QUESTION)
        assert "something went wrong" in await caller.hear_text()
        await caller.heard_more()
        await cut_off(caller)
    model.mend("realtime")
    assert (await stage.running.ended(room))["reason"] == end.reason
    await stage.said(room, "the realtime model failed: ")
