"""CallAgent's parts of every persona: tools that cannot hold a call, a goodbye, a profile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from livekit.agents import (
    AgentSession,
    APIConnectionError,
    ErrorEvent,
    UserInputTranscribedEvent,
    function_tool,
)
from livekit.agents.llm import FunctionCallOutput, Tool, Toolset
from livekit.agents.metrics import STTMetrics
from livekit.agents.stt import STTError

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call, Reason, Step
from agent.memory import CallRecord, Profile, Turn
from agent.memory.call_memory import StoredCallMemory
from agent.models.scripted import ScriptedLLM, ScriptedTTS
from agent.settings import Settings, load_settings
from template.tests.talk import FakeTransport, talk


class Slow(CallAgent):
    """Has slow tools."""

    def __init__(self, call: Call, tools: Sequence[Tool | Toolset] = ()) -> None:
        super().__init__(call, instructions="Be slow.", tools=tools)
        self.began, self.cancelled = asyncio.Event(), asyncio.Event()

    @function_tool
    async def wait(self) -> str:
        """Wait for ever."""
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return "never"

    @function_tool
    async def fail(self) -> str:
        """Raise an error."""
        raise TimeoutError("of its own")


Cast = Callable[[type[CallAgent]], list[CallAgent]]


@pytest.fixture(autouse=True)
def cast(monkeypatch: pytest.MonkeyPatch) -> Cast:
    """Replace the owner's persona, whose words may change; the list gets every agent made."""

    def play(kind: type[CallAgent]) -> list[CallAgent]:
        made: list[CallAgent] = []

        def build(call: Call) -> CallAgent:
            made.append(kind(call))  # type: ignore[call-arg]
            return made[-1]

        monkeypatch.setattr(entrypoint, "build_persona", build)
        return made

    play(Slow)
    return play


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers are remembered, in a SQLite file."""
    pytest.importorskip("agent.memory.sqlite")
    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")
    load_settings.cache_clear()


async def test_a_tool_that_takes_too_long_is_cancelled_and_the_model_learns_it(cast: Cast) -> None:
    agents = cast(Slow)
    async with talk(tool_seconds=0.05) as call:
        await call.say("/tool wait {}")
        assert "No answer within 0.05 s" in call.tool_output("wait")
        (agent,) = agents
        assert isinstance(agent, Slow)
        assert agent.cancelled.is_set()
        assert call.reason is None


async def test_a_tool_is_cancelled_when_the_caller_hangs_up(cast: Cast) -> None:
    agents = cast(Slow)
    async with talk(tool_finish_seconds=0) as call:
        asking = asyncio.create_task(call.say("/tool wait {}"))
        (agent,) = agents
        assert isinstance(agent, Slow)
        await agent.began.wait()
        call.transport.leave()
        await call.ended()
        await asking
        assert agent.cancelled.is_set()
        session = call.call.session
        assert session is not None
        outputs = [
            item.output for item in session.history.items if isinstance(item, FunctionCallOutput)
        ]
        # nothing that a model could answer: no caller is there to hear it
        assert outputs == [""]
    assert ("session", "ok") in call.call.closed


async def test_a_patient_tool_has_no_deadline_but_the_end_of_the_call(cast: Cast) -> None:
    class Patient(Slow):
        patient_tools = frozenset({"wait"})

    agents = cast(Patient)
    async with talk(tool_seconds=0.01) as call:
        asking = asyncio.create_task(call.say("/tool wait {}"))
        (agent,) = agents
        assert isinstance(agent, Slow)
        await agent.began.wait()
        await asyncio.sleep(0.05)
        assert not agent.cancelled.is_set()
        call.transport.leave()
        await call.ended()
        await asking
        assert agent.cancelled.is_set()


async def test_a_session_that_does_not_start_is_an_error_of_that_step(cast: Cast) -> None:
    @function_tool
    async def wait() -> str:
        """Share a name with another tool, which the SDK refuses."""
        return ""

    class Twice(Slow):
        def __init__(self, call: Call) -> None:
            super().__init__(call, tools=[wait])

    cast(Twice)
    line = FakeTransport()
    call = Call(line, load_settings())
    line.arrive()
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(10):
        await call.wait_ended()
        await call.wait_closed()
    assert call.reason == "error in step 5 (start the session)"


async def test_an_error_of_a_tools_own_is_not_taken_for_its_deadline(cast: Cast) -> None:
    cast(Slow)
    async with talk() as call:
        await call.say("/tool fail {}")
        assert "No answer within" not in call.tool_output("fail")
        assert call.reason is None


async def test_the_tools_of_a_toolset_have_the_same_deadline(cast: Cast) -> None:
    class Set(Toolset):
        """Two tools for the price of one."""

        def __init__(self) -> None:
            super().__init__(id="set")

        @function_tool
        async def rest(self) -> str:
            """Rest for ever."""
            await asyncio.Event().wait()
            return "never"

    class WithSet(Slow):
        def __init__(self, call: Call) -> None:
            super().__init__(call, tools=[Set()])

    cast(WithSet)
    async with talk(tool_seconds=0.05) as call:
        await call.say("/tool rest {}")
        assert "No answer within" in call.tool_output("rest")


async def test_an_owners_tool_replaces_ours_of_the_same_name(cast: Cast) -> None:
    class Polite(Slow):
        @function_tool
        async def end_call(self) -> str:
            """Do not end the call."""
            return "Nothing: please stay."

    cast(Polite)
    async with talk() as call:
        await call.say("goodbye")
        assert call.tool_output("end_call") == "Nothing: please stay."
        assert call.reason is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.AGENT_HUNG_UP, "Goodbye!"),
        (Reason.TOO_LONG, "as long as I can"),
        (Reason.TOO_SILENT, "cannot hear you"),
        (Reason.WORKER_STOPPED, "I have to go now"),
        (Reason.error(7, Step.STAY.title), "something went wrong"),
    ],
)
async def test_an_end_that_the_caller_did_not_cause_has_a_last_sentence(
    reason: str, words: str
) -> None:
    async with talk() as call:
        call.call.end(reason)
        await call.ended()
        assert words in call.said[-1]
        assert call.transport.rooms_ended == 1


async def test_a_part_that_fails_to_open_costs_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def broken(settings: Settings, journal: object) -> AsyncIterator[None]:
        raise OSError("no such disk")
        yield

    monkeypatch.setattr(entrypoint, "open_knowledge", broken)
    async with talk() as call:
        assert call.said
    assert "this call goes on without knowledge" in caplog.text


async def test_a_caller_who_left_is_not_spoken_to() -> None:
    async with talk() as call:
        said = call.said
        call.transport.leave()
        await call.ended()
        assert call.said == said


async def test_the_sdk_closing_the_session_is_a_worker_that_stops() -> None:
    async with talk() as call:
        assert call.call.session is not None
        # the SDK does this first to end a job
        await call.call.session.aclose()
        await call.ended()
        assert call.reason == Reason.WORKER_STOPPED
        assert "I have to go now" in call.said[-1]


async def test_a_session_has_the_models_that_the_persona_brings(cast: Cast) -> None:
    thinks = ScriptedLLM()

    class Brings(Slow):
        def __init__(self, call: Call) -> None:
            CallAgent.__init__(self, call, instructions="", llm=thinks)

    cast(Brings)
    async with talk() as call:
        session = call.call.session
        assert session is not None
        # the SDK connects to a session's model, used or not
        assert session.llm is thinks
        assert isinstance(session.tts, ScriptedTTS)


async def test_an_owner_who_shuts_the_session_down_hangs_up() -> None:
    async with talk() as call:
        assert call.call.session is not None
        call.call.session.shutdown()
        await call.ended()
        assert call.reason == Reason.AGENT_HUNG_UP


async def test_what_was_written_early_is_answered_after_the_greeting() -> None:
    line = FakeTransport(limited=False)
    line.early = ["hello"]
    call = Call(line, load_settings())
    line.arrive()
    await call.start(entrypoint.run_call)
    assert await call.wait_greeted()
    assert call.session is not None
    history, added = call.session.history, asyncio.Event()
    call.session.on("conversation_item_added", lambda _: added.set())
    async with asyncio.timeout(60):
        while "hello" not in (texts := [one.text_content for one in history.messages()]):
            await added.wait()
            added.clear()
    assert texts.index("hello") > 0
    line.leave()
    await call.wait_closed()


async def test_silence_is_asked_about_once_and_ends_the_call() -> None:
    line = FakeTransport()
    call = Call(line, load_settings().model_copy(update={"max_silence_seconds": 0.05}))
    line.arrive()
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(20):
        await call.wait_ended()
    assert call.reason == Reason.TOO_SILENT
    await call.wait_closed()
    assert call.session is not None
    said = [m.text_content for m in call.session.history.messages() if m.role == "assistant"]
    assert said.count("Are you still there?") == 1
    assert "cannot hear you" in (said[-1] or "")


async def test_silence_ends_the_call_also_where_asking_about_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: CallAgent) -> str:
        raise ValueError("an owner's mistake")

    monkeypatch.setattr(Slow, "still_there", broken)
    line = FakeTransport()
    call = Call(line, load_settings().model_copy(update={"max_silence_seconds": 0.05}))
    line.arrive()
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(20):
        await call.wait_ended()
        await call.wait_closed()
    assert call.reason == Reason.TOO_SILENT


def speech_to_text_fails(session: AgentSession[None]) -> None:
    cause = APIConnectionError("wrong key")
    error = STTError(timestamp=0, label="stt", error=cause, recoverable=False)
    assert session.llm is not None
    session.emit("error", ErrorEvent(error=error, source=session.llm))


async def test_speech_to_text_that_fails_three_times_in_a_row_ends_the_call() -> None:
    async with talk() as call:
        session = call.call.session
        assert session is not None
        speech_to_text_fails(session)
        speech_to_text_fails(session)
        # somebody was heard in between
        heard = UserInputTranscribedEvent(transcript="hello", is_final=True)
        session.emit("user_input_transcribed", heard)
        speech_to_text_fails(session)
        speech_to_text_fails(session)
        assert call.reason is None
        speech_to_text_fails(session)
        assert call.reason == "error in step 7 (stay for the conversation)"


async def test_every_finished_turn_of_either_side_is_counted() -> None:
    async with talk() as call:
        await call.say("hello")
        # the greeting, the question, the answer
        assert call.call.turns == 3
        assert isinstance(call.call.memory, StoredCallMemory)


async def test_what_a_known_caller_said_before_is_in_the_models_context(cast: Cast) -> None:
    turn = Turn(call="before", item="1", role="user", text="My bicycle is red.", at=0.0)
    profile = Profile(caller="ann", calls=1, last_call=0.0, turns=[turn])
    agents = cast(Slow)
    async with talk():
        (agent,) = agents
        await agent.welcome(profile)
        context = " ".join(str(message.text_content) for message in agent.chat_ctx.messages())
        assert "My bicycle is red." in context


# ---------------------------------------------------------------------- memory


def said_before(*texts: str) -> list[Turn]:
    roles = ["user", "assistant"]
    return [
        Turn("before", str(number), roles[number % 2], text, 100.0 + number)
        for number, text in enumerate(texts)
    ]


async def test_the_model_gets_name_and_facts_as_information(cast: Cast) -> None:
    agents = cast(Slow)
    async with talk():
        (agent,) = agents
        await agent.welcome(Profile("ann", 1, 0.0, name="Ada", facts=["Likes tea."]))
        told = [
            message.text_content or ""
            for message in agent.chat_ctx.messages()
            if message.role == "system"
        ]
        assert "no instruction" in told[-1]
        assert "Ada" in told[-1]
        assert "Likes tea." in told[-1]


async def test_a_caller_is_greeted_by_name(cast: Cast) -> None:
    agents = cast(Slow)
    async with talk() as call:
        (agent,) = agents
        for profile in (Profile("ann", 1, 0.0, name="Ada"), Profile("ann", 1, 0.0)):
            await agent.welcome(profile)
        assert call.said[-2:] == [
            "Welcome back, Ada! How can I help you today?",
            "Welcome back! How can I help you today?",
        ]


async def test_a_call_that_was_cut_off_goes_on_where_it_was(cast: Cast) -> None:
    class Apologetic(Slow):
        def resuming(self, profile: Profile) -> str:
            return f"Back again, {profile.name}?"

    agents = cast(Apologetic)
    earlier = Turn("long ago", "1", "user", "My bicycle is red.", 10.0)
    turns = [earlier, *said_before("I want a table for two.", "At what time?")]
    profile = Profile("ann", 2, 100.0, turns, name="Ada", resumed=True)
    async with talk() as call:
        (agent,) = agents
        await agent.welcome(profile)
        messages = [
            (message.role, message.text_content or "") for message in agent.chat_ctx.messages()
        ]
        place = messages.index(("user", "I want a table for two."))
        assert messages[place + 1] == ("assistant", "At what time?")
        told = [text for role, text in messages if role == "system"][-1]
        assert "My bicycle is red." in told
        assert "table for two" not in told
        assert call.said[-1] == "Back again, Ada?"
        # the two greetings: restored turns are not said again
        assert call.call.turns == 2


async def test_a_caller_who_dropped_and_calls_again_resumes(cast: Cast, remembering: None) -> None:
    async with talk(rejoin_seconds=0) as call:
        await call.say("I want a table for two.")
        call.transport.drop()
        await call.ended()
    agents = cast(Slow)
    async with talk() as call:
        assert call.said == ["Sorry, we were cut off. Where were we?"]
        messages = [
            (message.role, message.text_content) for message in agents[-1].chat_ctx.messages()
        ]
        assert ("user", "I want a table for two.") in messages
    async with talk() as call:
        # the last call has ended normally
        assert call.said == ["Welcome back! How can I help you today?"]
    async with talk(resume_seconds=0, rejoin_seconds=0) as call:
        call.transport.drop()
        await call.ended()
    async with talk(resume_seconds=0) as call:
        assert call.said == ["Welcome back! How can I help you today?"]


async def test_what_the_caller_says_of_themselves_is_known_in_the_next_call(
    cast: Cast, remembering: None
) -> None:
    async with talk() as call:
        await call.say('/tool remember_caller {"name": "Ada", "fact": "Likes tea."}')
        assert call.tool_output("remember_caller") == "Noted for the next calls."
        await call.say("/tool remember_caller {}")
        assert "give a name or a fact" in call.tool_output("remember_caller")
    agents = cast(Slow)
    async with talk() as call:
        assert call.said == ["Welcome back, Ada! How can I help you today?"]
        assert "Likes tea." in " ".join(
            str(message.text_content) for message in agents[-1].chat_ctx.messages()
        )
    async with talk("guest-17") as call:
        assert call.said == ["Hello! How can I help you?"]
        await call.say('/tool remember_caller {"name": "Bob"}')
        assert "do not promise" in call.tool_output("remember_caller")


async def test_a_name_is_greeted_as_it_was_told_with_its_joiners(
    cast: Cast, remembering: None
) -> None:
    async with talk() as call:
        await call.say('/tool remember_caller {"name": "\u0645\u06cc\u200c\u0646\u0627"}')
    async with talk() as call:
        assert call.said == [
            "Welcome back, \u0645\u06cc\u200c\u0646\u0627! How can I help you today?"
        ]


async def test_the_call_after_two_simultaneous_calls_gets_every_word_once(
    cast: Cast, remembering: None
) -> None:
    async with talk() as first:
        await first.say("I want a table for two.")
        assert isinstance(first.call.memory, StoredCallMemory)
        assert await first.call.memory.queue.flush(5)
        agents = cast(Slow)
        async with talk() as second:
            # the first one has not ended yet
            assert second.said == ["Sorry, we were cut off. Where were we?"]
            messages = [
                (message.role, message.text_content or "")
                for message in agents[-1].chat_ctx.messages()
            ]
            assert ("user", "I want a table for two.") in messages
            for call, text in (
                (second, "My bicycle is red."),
                (first, "At seven."),
                (second, "It is parked outside."),
            ):
                await call.say(text)
                assert isinstance(call.call.memory, StoredCallMemory)
                assert await call.call.memory.queue.flush(5)
            agents = cast(Slow)
            async with talk():
                messages = [
                    (message.role, message.text_content or "")
                    for message in agents[-1].chat_ctx.messages()
                ]
    told = [text for role, text in messages if role == "system"][-1]
    said = ["I want a table for two.", "At seven.", "My bicycle is red.", "It is parked outside."]
    assert [told.count(f"user: {text}") for text in said] == [1, 1, 0, 0]
    # those of the call that is resumed
    assert [text for role, text in messages if role == "user"] == said[2:]


async def test_nothing_can_be_noted_without_a_memory(cast: Cast) -> None:
    agents = cast(Slow)
    async with talk(memory_url="none"):
        assert "remember_caller" not in [tool.id for tool in agents[-1].tools]
    async with talk(memory_url="sqlite"):
        assert "remember_caller" in [tool.id for tool in agents[-1].tools]


async def test_the_record_of_a_call_counts_its_goodbye_whatever_was_opened_after_the_session(
    monkeypatch: pytest.MonkeyPatch, cast: Cast
) -> None:
    @asynccontextmanager
    async def late() -> AsyncIterator[None]:
        yield

    class Opens(Slow):
        @function_tool
        async def open_late(self) -> str:
            """Open a resource in the middle of the call."""
            await self.call.open("late", late())
            return "It is open."

    cast(Opens)
    records: list[CallRecord] = []
    monkeypatch.setattr(StoredCallMemory, "add_call", lambda self, record: records.append(record))
    async with talk() as call:
        await call.say("/tool open_late {}")
        await call.call.hang_up()
        await call.ended()
        assert call.said[-1] == "Goodbye!"
        assert [record.turns for record in records] == [call.call.turns]


async def test_the_record_of_a_call_says_what_its_models_were_used_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records: list[CallRecord] = []
    monkeypatch.setattr(StoredCallMemory, "add_call", lambda self, record: records.append(record))
    async with talk() as call:
        await call.say("hello")
        session = call.call.session
        assert session is not None
        for _ in range(2):
            session._usage_collector.collect(
                STTMetrics(
                    label="ears",
                    request_id="",
                    timestamp=0,
                    duration=0,
                    audio_duration=1.3,
                    streamed=True,
                )
            )
    (record,) = records
    assert record.usage["stt_audio_seconds"] == 3
    assert 0 not in record.usage.values()
