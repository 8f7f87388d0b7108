"""Calls with a model that hears, thinks and speaks, by the plugin's own client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import numpy as np
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import Agent, AgentSession, function_tool
from livekit.agents.llm import RealtimeModel
from livekit.agents.voice import io
from livekit.agents.voice.room_io import RoomOptions

from agent import entrypoint
from agent.conversation import CallAgent, CallTask
from agent.knowledge import FOUND, Passage
from agent.lifecycle import Call, Reason, Step
from agent.memory import Profile
from agent.models import ModelsUnavailable, models_of
from agent.models.scripted import SAMPLE_RATE, hum
from agent.settings import load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport, Talk, talk
from tests.support.openai_server import Kind, OpenAIServer, openai_server

pytest.importorskip("livekit.plugins.openai")

PATIENCE = 30.0
TONES = 1.5  # seconds of them


class Ears(io.AudioOutput):
    """What the caller hears: how many seconds of each sentence, as fast as it comes."""

    def __init__(self) -> None:
        capabilities = io.AudioOutputCapabilities(pause=False)
        super().__init__(label="ears", capabilities=capabilities, sample_rate=SAMPLE_RATE)
        self.heard: list[float] = []
        self.news = asyncio.Event()
        self._seconds = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._seconds:
            self.on_playback_started(created_at=time.time())
        self._seconds += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._seconds:
            self.heard.append(round(self._seconds, 2))
            self.on_playback_finished(playback_position=self._seconds, interrupted=False)
            self._seconds = 0.0
            self.news.set()

    def clear_buffer(self) -> None:
        self.flush()


class Mouth(io.AudioInput):
    """What the caller says: a hum for words, then a second of silence."""

    def __init__(self) -> None:
        super().__init__(label="mouth")
        self._frames = asyncio.Queue[rtc.AudioFrame]()

    async def __anext__(self) -> rtc.AudioFrame:
        return await self._frames.get()

    def say(self, words: str) -> None:
        sound = np.frombuffer(hum(words) + bytes(2 * SAMPLE_RATE), "<i2")
        for at in range(0, len(sound), 480):
            frame = sound[at : at + 480]
            self._frames.put_nowait(rtc.AudioFrame(frame.tobytes(), SAMPLE_RATE, 1, len(frame)))


class VoiceTransport(FakeTransport):
    """A call with sound; limited, so that its silence is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.ears, self.mouth = Ears(), Mouth()

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        session.output.audio, session.input.audio = self.ears, self.mouth
        # or it hears nothing during the first three seconds in which it speaks
        session._aec_warmup_remaining = 0
        await super().start(session, agent, caller, options)


class Voiced(Talk):
    """A call in the hands of a test, spoken."""

    transport: VoiceTransport

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.call.wait_ended()
            await self.call.wait_closed()

    async def wait_heard(self, *seconds: float) -> None:
        """Wait until the last that the caller has heard took so long."""
        async with asyncio.timeout(PATIENCE):
            while tuple(self.transport.ears.heard[-len(seconds) :]) != seconds:
                self.transport.ears.news.clear()
                await self.transport.ears.news.wait()

    async def wait_said(self, *sentences: str) -> None:
        """Wait until the agent has said these, after all it said before."""
        assert self.call.session is not None
        changed = asyncio.Event()
        self.call.session.on("conversation_item_added", lambda _: changed.set())
        async with asyncio.timeout(PATIENCE):
            while tuple(self.said[-len(sentences) :]) != sentences:
                await changed.wait()
                changed.clear()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as started:
        yield started


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> type[CallAgent]:
    """Replaces the owner's persona, whose words may change."""

    class Persona(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="Be brief.")

        @function_tool
        async def hours(self) -> str:
            """Tell the opening hours."""
            return "From nine to five."

    monkeypatch.setattr(entrypoint, "build_persona", Persona)
    return Persona


@asynccontextmanager
async def calling(
    server: OpenAIServer, *, asks_first: bool = False, **changes: object
) -> AsyncIterator[Voiced]:
    """A call with the server's realtime model, after its greeting or what it asks before."""
    given = {
        "models": "realtime",
        "realtime_url": server.url,
        "memory_url": "none",
        "knowledge": "none",
        **changes,
    }
    transport = VoiceTransport()
    call = Call(transport, load_settings().model_copy(update=given))
    transport.arrive()
    await call.start(entrypoint.run_call)
    try:
        await (call.wait_for_turn() if asks_first else call.wait_greeted())
        yield Voiced(call, transport)
    finally:
        transport.leave()
        async with asyncio.timeout(PATIENCE):
            await call.wait_ended()
            await call.wait_closed()
        if call.session is not None and isinstance(model := call.session.llm, RealtimeModel):
            await model.aclose()  # a job does it, which there is none of


def late_after(call: Call, seconds: float) -> None:
    """Let a reply be late after so many seconds; on a busy machine a good one takes its time."""
    call.settings = call.settings.model_copy(update={"reply_seconds": seconds})


async def test_it_greets_hears_uses_a_tool_and_says_goodbye(
    server: OpenAIServer, kind: type[CallAgent]
) -> None:
    async with calling(server) as call:
        assert call.said == ["Hello! How can I help you?"]
        server.words.append("/tool hours {}")
        call.transport.mouth.say("When are you open?")
        await call.wait_said("From nine to five.")
        server.words.append("goodbye")
        call.transport.mouth.say("goodbye")
        await call.wait_said("Goodbye!")
        await call.ended()
        assert call.reason == Reason.AGENT_HUNG_UP
        assert call.said == ["Hello! How can I help you?", "From nine to five.", "Goodbye!"]
        assert len(call.transport.ears.heard) == 3
    updates = server.requests("realtime", "session.update")
    turns = [u.body["session"].get("audio", {}).get("input", {}) for u in updates]
    assert not any(turn.get("turn_detection", "on") is None for turn in turns)


class Documents:
    """One fact, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def search(self, question: str, limit: int = 3) -> list[Passage]:
        return []

    async def look_up(self, question: str, before: str = "") -> str:
        self.asked.append(question)
        return f"{FOUND}\n\n[hours.md] Opening hours\nOn Saturday we close at one."


@pytest.fixture
def documents(monkeypatch: pytest.MonkeyPatch) -> Documents:
    found = Documents()
    monkeypatch.setattr(entrypoint, "open_knowledge", lambda *_: nullcontext(found))
    return found


async def test_one_that_the_persona_brings_is_the_only_voice_and_takes_its_own_turns(
    monkeypatch: pytest.MonkeyPatch, server: OpenAIServer
) -> None:
    class Persona(CallAgent):
        def __init__(self, call: Call) -> None:
            model = models_of(call.settings.model_copy(update={"models": "realtime"})).llm
            super().__init__(call, instructions="Be brief.", llm=model)

    monkeypatch.setattr(entrypoint, "build_persona", Persona)
    async with calling(server, models="scripted") as call:
        assert call.said == ["Hello! How can I help you?"]
        server.words.append("hello")
        call.transport.mouth.say("hello")
        await call.wait_said("Hello! What would you like to know?")
    assert len(server.requests("realtime", "response.create")) == 1


@pytest.mark.parametrize("lookup", ["before", "tool"])
async def test_it_looks_documents_up_by_the_tool_and_says_what_they_say(
    server: OpenAIServer,
    kind: type[CallAgent],
    documents: Documents,
    lookup: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with calling(server, knowledge_lookup=lookup) as call:
        server.words.append("When do you close on Saturday?")
        call.transport.mouth.say("When do you close on Saturday?")
        await call.wait_said("On Saturday we close at one.")
    assert documents.asked == ["When do you close on Saturday?"]
    assert ("documents are looked up by a tool" in caplog.text) is (lookup == "before")


async def test_another_agent_takes_over_and_knows_what_was_said(
    monkeypatch: pytest.MonkeyPatch, server: OpenAIServer, documents: Documents
) -> None:
    class Kitchen(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="You are the kitchen.")

        async def on_enter(self) -> None:
            await self.session.say("This is the kitchen.")

    class Persona(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="Be brief.")

        @function_tool
        async def kitchen(self) -> Agent:
            """Hand over to the kitchen."""
            return Kitchen(self.call)

    monkeypatch.setattr(entrypoint, "build_persona", Persona)
    async with calling(server) as call:
        server.words.append("/tool kitchen {}")
        call.transport.mouth.say("The kitchen, please.")
        await call.wait_said("This is the kitchen.")
        server.words.append("When do you close on Saturday?")
        call.transport.mouth.say("When do you close on Saturday?")
        await call.wait_said("On Saturday we close at one.")
        server.words.append("goodbye")
        call.transport.mouth.say("goodbye")
        await call.wait_said("Goodbye!")
        await call.ended()
        assert call.reason == Reason.AGENT_HUNG_UP


async def test_a_question_before_the_greeting_is_asked_and_answered(
    monkeypatch: pytest.MonkeyPatch, server: OpenAIServer
) -> None:
    class Consent(CallTask[bool]):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="Ask for consent.")

        async def on_enter(self) -> None:
            await self.session.say("May we record this call?")

        @function_tool
        async def agreed(self) -> None:
            """The caller agrees."""
            self.complete(True)

    class Persona(CallAgent):
        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="Be brief.")

        async def welcome(self, profile: Profile | None) -> None:
            assert await Consent(self.call)
            await super().welcome(profile)

    monkeypatch.setattr(entrypoint, "build_persona", Persona)
    async with calling(server, asks_first=True) as call:
        await call.wait_said("May we record this call?")
        server.words.append("/tool agreed {}")
        call.transport.mouth.say("Yes.")
        await call.wait_said("Hello! How can I help you?")
        assert await call.call.wait_greeted()


async def test_a_silence_is_asked_about_once_and_ends_the_call(
    server: OpenAIServer, kind: type[CallAgent]
) -> None:
    async with calling(server, max_silence_seconds=0.5) as call:
        await call.ended()
        assert call.reason == Reason.TOO_SILENT
        assert call.said[1:] == [
            "Are you still there?",
            "I cannot hear you, so I am hanging up now. Goodbye!",
        ]
        assert len(call.transport.ears.heard) == 3


async def test_a_typed_line_is_answered_aloud(server: OpenAIServer, kind: type[CallAgent]) -> None:
    async with calling(server) as call:
        await call.transport.type("/tool hours {}")
        await call.wait_said("From nine to five.")
        assert len(call.transport.ears.heard) == 2


# those that break the connection, and are over when the next one is made
BREAKING: set[Kind] = {"hang", "silent", "cut"}


@pytest.mark.parametrize("fault", ["429", "500", *sorted(BREAKING)])
async def test_a_reply_that_fails_is_tones_and_the_next_one_is_a_reply(
    server: OpenAIServer, kind: type[CallAgent], caplog: pytest.LogCaptureFixture, fault: Kind
) -> None:
    async with calling(server, reply_seconds=PATIENCE) as call:
        if fault in ("hang", "silent"):
            late_after(call.call, 1)
        server.fault("realtime", fault, times=1)
        server.words.append("/tool hours {}")
        call.transport.mouth.say("When are you open?")
        await call.wait_heard(TONES)
        late_after(call.call, PATIENCE)
        server.mend("realtime")
        if fault in BREAKING:
            await server.wait_asked("realtime", "connect", count=2)
        server.words.append("/tool hours {}")
        call.transport.mouth.say("When are you open?")
        await call.wait_said("From nine to five.")
        assert call.reason is None
    assert "realtime model failed: " in caplog.text


@pytest.mark.parametrize(("fault", "cause"), [("401", "response failed"), ("garbage", "JSON")])
async def test_a_failure_for_good_ends_the_call_in_tones_and_says_why(
    server: OpenAIServer,
    kind: type[CallAgent],
    caplog: pytest.LogCaptureFixture,
    fault: Kind,
    cause: str,
) -> None:
    async with calling(server) as call:
        server.fault("realtime", fault)
        server.words.append("/tool hours {}")
        call.transport.mouth.say("When are you open?")
        await call.ended()
        assert call.reason == Reason.error(7, Step.STAY.title)
        assert call.transport.ears.heard[1:] == [TONES]
        assert ("session", "ok") in call.call.closed
    (said,) = [record.message for record in caplog.records if "step 7" in record.message]
    assert "realtime model failed" in said
    assert cause in said


async def test_the_third_failure_in_a_row_ends_the_call(
    server: OpenAIServer, kind: type[CallAgent]
) -> None:
    async with calling(server) as call:
        server.fault("realtime", "500")
        for failures in (1, 2, 3):
            server.words.append("/tool hours {}")
            call.transport.mouth.say("When are you open?")
            await call.wait_heard(*[TONES] * failures)
        await call.ended()
        assert call.reason == Reason.error(7, Step.STAY.title)
        # two apologies and the goodbye
        assert call.transport.ears.heard[1:] == [TONES] * 3


@pytest.mark.parametrize("fault", ["401", "500", "garbage", "hang", "silent", "cut"])
async def test_a_model_that_cannot_be_reached_is_tones_and_the_reason_says_so(
    server: OpenAIServer, kind: type[CallAgent], caplog: pytest.LogCaptureFixture, fault: Kind
) -> None:
    server.fault("realtime", fault)
    async with calling(server, reply_seconds=1) as call:
        await call.ended()
        assert (call.reason or "").startswith("error in step")
        assert set(call.transport.ears.heard) == {TONES}
    assert "realtime model" in caplog.text


async def test_a_greeting_that_the_network_loses_is_said_again(
    server: OpenAIServer, kind: type[CallAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Persona(kind):  # type: ignore[misc, valid-type]
        def sorry(self) -> str:
            late_after(self.call, PATIENCE)
            return str(super().sorry())

    monkeypatch.setattr(entrypoint, "build_persona", Persona)
    server.fault("realtime", "silent", times=1)
    async with calling(server, reply_seconds=0.5) as call:
        server.mend("realtime")
        await call.wait_said("Hello! How can I help you?")
        assert call.transport.ears.heard[0] == TONES


async def test_in_text_it_is_written_what_it_would_say(
    server: OpenAIServer, kind: type[CallAgent]
) -> None:
    async with talk(models="realtime", realtime_url=server.url, knowledge="none") as call:
        assert call.said == ["Hello! How can I help you?"]
        assert await call.say("/tool hours {}") == "From nine to five."


def test_a_missing_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelsUnavailable, match="put OPENAI_API_KEY into"):
        models_of(load_settings().model_copy(update={"models": "realtime"}))


async def test_another_server_does_not_get_the_key_of_openai(
    monkeypatch: pytest.MonkeyPatch, server: OpenAIServer, kind: type[CallAgent]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with calling(server):
        pass
    assert {asked.key for asked in server.asked} == {"not-needed"}
