"""Every fault of a model server, in calls: the caller hears something, and the log says the cause.

The project's models are the SDK's OpenAI plugin; the server is tests/support/openai_server.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from livekit import rtc

from agent.models.scripted import SAMPLE_RATE, hum
from tests.call.scene import OPENED, Scene, cut_off, new_room, scene
from tests.call.test_ends import until
from tests.support.caller import Caller
from tests.support.ends import ENDS, End, ends
from tests.support.openai_server import Kind, OpenAIServer, openai_server
from tests.support.projects import PAIRS, Project, render
from tests.support.server import LiveKit
from tests.support.templates import ROOT, Template

pytestmark = pytest.mark.asyncio(loop_scope="session")

# longer than the SDK's retries of a refusal take, so that the log has the refusal and no timeout
REPLY_SECONDS = 7
# between two times that a caller says something
PAUSE_SECONDS = 5
# what a rendered project opens; the pool is the troubled owner's
OWN = [name for name in OPENED if name != "pool"]
QUESTION = "Where can I park my bicycle?"
ANOTHER = "What does a puncture cost?"


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = render(template, tmp_path_factory.mktemp("served") / "front-desk", PAIRS[0])
    project.run("uv", "add", "--quiet", "livekit-plugins-openai>=1.8.9,<1.9")
    persona = ROOT / "tests" / "support" / "served" / "persona.py"
    shutil.copy(persona, project.path / "src" / "agent" / "persona.py")
    project.install()
    return project


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def started(project: Project, livekit: LiveKit) -> AsyncIterator[tuple[Scene, OpenAIServer]]:
    async with openai_server() as server:
        quick = {"AGENT_REPLY_SECONDS": str(REPLY_SECONDS)}
        environment: dict[str, Any] = {**server.environment, **quick}
        async with scene(project, livekit, **environment) as stage:
            yield stage, server


@pytest.fixture
def stage(started: tuple[Scene, OpenAIServer]) -> Scene:
    return started[0]


@pytest.fixture
def server(started: tuple[Scene, OpenAIServer]) -> OpenAIServer:
    """The server, with no fault."""
    server = started[1]
    for endpoint in ("chat", "speech", "transcriptions"):
        server.mend(endpoint)
    server.asked.clear()
    server.words.clear()
    return server


class Microphone:
    """A caller's: silent, unless they speak."""

    def __init__(self, caller: Caller) -> None:
        self._source = rtc.AudioSource(SAMPLE_RATE, 1)
        self._caller, self._sound = caller, b""
        self._silent = asyncio.Event()

    async def open(self) -> None:
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self._caller.room.local_participant.publish_track(track, options)
        self._caller.keep(self._send())

    async def say(self, words: str, server: OpenAIServer) -> None:
        """Say it until the server is asked what it was: on a busy machine sound gets lost."""
        count = len(server.requests("transcriptions")) + 1
        asked = asyncio.ensure_future(server.wait_asked("transcriptions", count=count))
        while not asked.done():
            self._sound = hum(words) + bytes(2 * SAMPLE_RATE * PAUSE_SECONDS)
            self._silent.clear()
            silent = asyncio.ensure_future(self._silent.wait())
            await asyncio.wait([asked, silent], return_when=asyncio.FIRST_COMPLETED)
            silent.cancel()
        self._sound = b""
        await asked

    async def _send(self) -> None:
        size = 2 * SAMPLE_RATE // 50
        while True:
            frame, self._sound = self._sound[:size].ljust(size, b"\0"), self._sound[size:]
            await self._source.capture_frame(rtc.AudioFrame(frame, SAMPLE_RATE, 1, size // 2))
            if not self._sound:
                self._silent.set()


# what the log says of each fault
LATE = f"nothing for {REPLY_SECONDS} s"
CAUSES: dict[Kind, str] = {
    "401": "Incorrect API key provided",
    "429": "Rate limit reached",
    "500": "The server had an error",
    "hang": LATE,
    "silent": LATE,
    "cut": "peer closed connection",
}


def faults(*kinds: Kind, garbage: str = "", quick: Kind | None = None) -> pytest.MarkDecorator:
    """Run a test with these faults, and what the log says of each; all but `quick` are slow."""
    causes = {kind: CAUSES[kind] for kind in kinds} | ({"garbage": garbage} if garbage else {})
    rows = [
        pytest.param(kind, cause, id=kind, marks=() if kind == quick else pytest.mark.slow)
        for kind, cause in causes.items()
    ]
    return pytest.mark.parametrize(("kind", "cause"), rows)


async def test_a_call_is_heard_thought_over_and_spoken_by_the_server(
    stage: Scene, server: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await caller.hear_text_with("help")
        microphone = Microphone(caller)
        await microphone.open()
        server.words.append(QUESTION)
        await microphone.say(QUESTION, server)
        await caller.hear_text_with("bicycle")
    await stage.expect(ENDS["leaves-listening"], room, opened=OWN)


@faults(*CAUSES)
async def test_a_server_that_fails_the_language_model(
    kind: Kind, cause: str, stage: Scene, server: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        server.fault("chat", kind)
        await caller.ask(QUESTION, "I am sorry, I cannot answer")
        server.mend("chat")
        await caller.ask(ANOTHER, "euros")
    ends = {"hang": "llm-hangs", "silent": "llm-hangs", "cut": "llm-breaks-off"}
    await stage.expect(ENDS[ends.get(kind, "llm-fails")], room, opened=OWN)
    assert logged(stage, room, "language model failed", cause)


@ends("llm-is-empty")
async def test_a_web_page_instead_of_a_reply_is_no_silence(
    end: End, stage: Scene, server: OpenAIServer
) -> None:
    """For the plugin it is a reply without a word."""
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        server.fault("chat", "garbage")
        await caller.ask(QUESTION, "I am sorry, I cannot answer")
        server.mend("chat")
        await caller.ask(ANOTHER, "euros")
    await stage.expect(end, room, opened=OWN)
    assert logged(stage, room, "language model failed", "neither words nor a tool call")


@faults(*CAUSES, garbage="no audio frames were pushed", quick="429")
async def test_a_server_that_fails_the_voice(
    kind: Kind, cause: str, stage: Scene, server: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        before = caller.loud_seconds
        server.fault("speech", kind)
        await caller.write(QUESTION)
        await stage.said(room, "text-to-speech failed")
        # three times a quarter of a second
        await until(lambda: caller.loud_seconds >= before + 0.6)
        server.mend("speech")
        await caller.ask(ANOTHER, "euros")
    end = "tts-hangs" if kind in ("hang", "silent") else "tts-fails"
    await stage.expect(ENDS[end], room, opened=OWN)
    assert logged(stage, room, "text-to-speech failed", cause)


@faults("401", "429", "500", "silent", "cut", garbage="'str' object has no attribute 'text'")
async def test_a_server_that_fails_speech_to_text(
    kind: Kind, cause: str, stage: Scene, server: OpenAIServer
) -> None:
    await cannot_hear(ENDS["stt-fails"], kind, cause, stage, server)


@ends("stt-hangs")
async def test_speech_to_text_that_hangs_is_spoken_of(
    end: End, stage: Scene, server: OpenAIServer
) -> None:
    await cannot_hear(end, "hang", LATE, stage, server)


async def cannot_hear(end: End, kind: Kind, cause: str, stage: Scene, server: OpenAIServer) -> None:
    """A caller speaks, is not understood, is told so, and is understood when the fault is over."""
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        microphone = Microphone(caller)
        await microphone.open()
        server.fault("transcriptions", kind)
        await microphone.say(QUESTION, server)
        await caller.hear_text_with("I cannot hear you at the moment")
        server.mend("transcriptions")
        server.words.append(ANOTHER)
        await microphone.say(ANOTHER, server)
        await caller.hear_text_with("euros")
    await stage.expect(end, room, opened=OWN)
    assert logged(stage, room, "speech-to-text failed", cause)


@pytest.mark.slow
async def test_speech_to_text_that_a_server_refuses_three_times_ends_the_call(
    stage: Scene, server: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        microphone = Microphone(caller)
        await microphone.open()
        server.fault("transcriptions", "401")
        for _ in range(2):
            await microphone.say(QUESTION, server)
            await caller.hear_text_with("I cannot hear you at the moment")
        await microphone.say(QUESTION, server)
        await caller.hear_text_with("something went wrong")
        await cut_off(caller)
    await stage.expect(ENDS["stt-fails-for-good"], room, opened=OWN)


def logged(stage: Scene, room: str, *words: str) -> bool:
    """Whether one line of the call's log has all these words."""
    said = [str(record["message"]) for record in stage.running.of(room)]
    return any(all(word in message for word in words) for message in said)
