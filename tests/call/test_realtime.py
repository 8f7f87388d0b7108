"""Calls of a rendered project with a realtime model, on a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from livekit import rtc

from agent.models.scripted import SAMPLE_RATE, hum
from tests.call.scene import ALL_STEPS, OPENED, Scene, cut_off, new_room, scene
from tests.call.test_ends import until
from tests.support.caller import PATIENCE, Caller
from tests.support.ends import ENDS, End, ends
from tests.support.openai_server import Kind, OpenAIServer, openai_server
from tests.support.projects import PAIRS, Answers, Project
from tests.support.server import LiveKit

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROJECT = next(one for one in PAIRS if one.models == "realtime")
# what a rendered project opens; the pool is the troubled owner's
OWN = [name for name in OPENED if name != "pool"]
REPLY_SECONDS = 3
LATE = f"nothing for {REPLY_SECONDS} s"
QUESTION, FACT = "When are you open on Saturday?", "Saturday"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as started:
        yield started


@pytest.fixture
def model(server: OpenAIServer) -> Iterator[OpenAIServer]:
    """The server, whose faults are over when the test is."""
    yield server
    server.mend("realtime")
    server.words.clear()
    server.refuses_by_event = False


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(
    projects: dict[Answers, Project], livekit: LiveKit, server: OpenAIServer
) -> AsyncIterator[Scene]:
    settings: dict[str, Any] = {
        "AGENT_MODELS": "realtime",
        "AGENT_REALTIME_URL": server.url,
        "AGENT_REPLY_SECONDS": str(REPLY_SECONDS),
    }
    async with scene(projects[PROJECT], livekit, **settings) as started:
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


@asynccontextmanager
async def hears_tones(caller: Caller) -> AsyncIterator[None]:
    """They come meanwhile: three times a quarter of a second."""
    before = caller.loud_seconds
    yield
    await until(lambda: caller.loud_seconds >= before + 0.6)


def said_of(stage: Scene, room: str) -> str:
    """What the log says of the model in this call."""
    messages = [str(record.get("message")) for record in stage.running.of(room)]
    return "\n".join(one for one in messages if "realtime model failed: " in one)


@ends("realtime-fails", "realtime-hangs")
async def test_a_reply_that_fails_is_tones_and_the_next_one_is_a_reply(
    end: End, stage: Scene, model: OpenAIServer
) -> None:
    hangs = end.name == "realtime-hangs"
    cause = LATE if hangs else "response failed"
    await reply_fails(end, "silent" if hangs else "500", cause, stage, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cause"),
    [("429", "rate_limit_exceeded"), ("hang", LATE), ("cut", "closed unexpectedly")],
)
async def test_a_reply_that_fails_otherwise_is_tones_too(
    kind: Kind, cause: str, stage: Scene, model: OpenAIServer
) -> None:
    end = ENDS["realtime-hangs" if cause == LATE else "realtime-fails"]
    await reply_fails(end, kind, cause, stage, model)


async def reply_fails(end: End, kind: Kind, cause: str, stage: Scene, model: OpenAIServer) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        async with hears_tones(caller):
            model.fault("realtime", kind, times=1)
            await caller.write(QUESTION)
            await caller.hear_text_with("cannot answer that")
        model.mend("realtime")
        await caller.ask(QUESTION, FACT)
    await stage.expect(end, room, opened=OWN)
    assert cause in said_of(stage, room)


@ends("realtime-fails-for-good")
async def test_a_model_that_fails_for_good_is_tones_and_the_reason_says_so(
    end: End, stage: Scene, model: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        async with hears_tones(caller):
            model.fault("realtime", "401")
            await caller.write(QUESTION)
            await caller.hear_text_with("something went wrong")
            await cut_off(caller)
    await stage.expect(end, room, opened=OWN)
    assert "invalid_api_key" in said_of(stage, room)


async def test_a_key_that_is_refused_as_openai_does_is_named(
    stage: Scene, model: OpenAIServer
) -> None:
    room = new_room()
    model.refuses_by_event = True
    model.fault("realtime", "401")
    async with stage.caller(room) as caller, hears_tones(caller):
        await cut_off(caller)
    assert (await stage.running.ended(room))["reason"].startswith("error in step")
    assert "invalid_api_key" in said_of(stage, room)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("401", "401, message="),
        # which of the two comes depends on how far its tries get in the time that a step has
        pytest.param(
            "cut", "OpenAI Realtime API|due to session reconnection", marks=pytest.mark.slow
        ),
        pytest.param("silent", LATE, marks=pytest.mark.slow),
    ],
)
async def test_a_call_whose_model_is_not_reached_is_tones_and_the_log_says_why(
    kind: Kind, cause: str, stage: Scene, model: OpenAIServer
) -> None:
    room = new_room()
    model.fault("realtime", kind)
    async with stage.caller(room) as caller, hears_tones(caller):
        await cut_off(caller, PATIENCE)
    record = await stage.running.ended(room)
    assert record["reason"].startswith("error in step")
    assert re.search(cause, said_of(stage, room))
    assert {outcome for _, outcome in stage.running.closed(room)} == {"ok"}
    await stage.running.free()


async def test_a_line_that_breaks_while_nobody_speaks_costs_nothing(
    stage: Scene, model: OpenAIServer
) -> None:
    room = new_room()
    async with stage.caller(room) as caller:
        await stage.step(room, 6)
        connections = len(model.requests("realtime", "connect"))
        model.drop()
        await model.wait_asked("realtime", "connect", count=connections + 1)
        await caller.ask(QUESTION, FACT)
    await stage.expect(ENDS["leaves-listening"], room, opened=OWN)
