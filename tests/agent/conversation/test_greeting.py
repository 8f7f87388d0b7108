"""Before the conversation: a long greeting, a question of consent, and what may not hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, AgentTask, function_tool
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from livekit.agents.voice.room_io import RoomOptions

from agent import entrypoint
from agent.conversation import CallAgent, CallTask
from agent.lifecycle import Call, Reason, Step
from agent.memory import Profile
from agent.settings import load_settings
from agent.transport import Caller
from template.tests.talk import FakeTransport, talk

PATIENCE = 60.0


async def ended_call(transport: FakeTransport) -> Call:
    """A call that has begun, ended by itself, and been closed."""
    call = Call(transport, load_settings())
    transport.arrive()
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(PATIENCE):
        await call.wait_ended()
        await call.wait_closed()
    return call


class Persona(CallAgent):
    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be kind.")


class Consent(CallTask[bool]):
    """Asks whether the call may be recorded."""

    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Ask whether the call may be recorded.")

    async def on_enter(self) -> None:
        await self.session.say("May we record this call?")

    @function_tool
    async def answer(self, yes: bool) -> None:
        """Take the answer.

        Args:
            yes: Whether it may.
        """
        self.complete(yes)


class PlainConsent(AgentTask[bool]):
    """The same, as the SDK's documentation writes it."""

    def __init__(self, call: Call) -> None:
        super().__init__(instructions="Ask whether the call may be recorded.")

    on_enter = Consent.on_enter
    answer = Consent.answer


class AsksInWelcome(Persona):
    kind: type[Consent] | type[PlainConsent] = Consent
    agreed: bool | None = None

    async def welcome(self, profile: Profile | None) -> None:
        self.agreed = await self.kind(self.call)
        if self.agreed:
            await super().welcome(profile)
        else:
            await self.session.say("Then we had better not talk.")
            await self.call.hang_up()


class AsksPlainly(AsksInWelcome):
    kind = PlainConsent


class AsksOnEnter(Persona):
    """Where the SDK's documentation has it."""

    agreed: bool | None = None

    async def on_enter(self) -> None:
        self.agreed = await Consent(self.call)


ASKING = [AsksInWelcome, AsksPlainly, AsksOnEnter]


@pytest.fixture(autouse=True)
async def no_error_in_a_handler(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """The SDK only logs what is raised in an event's handler."""
    yield
    assert "failed to emit event" not in caplog.text


def cast(monkeypatch: pytest.MonkeyPatch, kind: type[Persona]) -> list[Any]:
    made: list[Any] = []

    def build(call: Call) -> CallAgent:
        made.append(kind(call))
        return made[-1]  # type: ignore[no-any-return]

    monkeypatch.setattr(entrypoint, "build_persona", build)
    return made


def deadline_of(call: Call) -> float | None:
    """When the step has to be done; None while the deadline does not count."""
    assert call.steps.deadline is not None
    return call.steps.deadline.when()


@pytest.mark.parametrize("kind", ASKING)
async def test_the_caller_is_asked_before_the_greeting_and_may_think(
    kind: type[Persona], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = cast(monkeypatch, kind)
    async with talk(asks_first=True) as call:
        assert call.said == ["May we record this call?"]
        assert call.call.steps.current is Step.GREET
        assert deadline_of(call.call) is None
        said = await call.say('/tool answer {"yes": true}')
        assert said == "Hello! How can I help you?"
        assert agents[0].agreed is True
        assert await call.call.wait_greeted()
        assert await call.say("Thank you.") == "You are welcome."
        assert call.reason is None


async def test_a_test_that_does_not_know_of_the_question_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cast(monkeypatch, AsksInWelcome)
    with pytest.raises(AssertionError, match="asks before it greets"):
        async with talk():
            pass


async def test_who_says_no_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cast(monkeypatch, AsksInWelcome)
    async with talk(asks_first=True) as call:
        await call.say('/tool answer {"yes": false}')
        await call.ended()
        assert call.said[-2:] == ["Then we had better not talk.", "Goodbye!"]
        assert call.reason == Reason.AGENT_HUNG_UP


@pytest.mark.parametrize("kind", ASKING)
async def test_who_hangs_up_instead_of_an_answer_frees_the_worker(
    kind: type[Persona], monkeypatch: pytest.MonkeyPatch
) -> None:
    cast(monkeypatch, kind)
    async with talk(asks_first=True) as call:
        call.transport.leave()
        await call.ended()
        assert call.reason == Reason.CALLER_LEFT
        assert call.said == ["May we record this call?"]
        assert ("session", "ok") in call.call.closed


@pytest.mark.parametrize("kind", ASKING)
async def test_a_worker_that_stops_within_the_question_says_goodbye_once(
    kind: type[Persona], monkeypatch: pytest.MonkeyPatch
) -> None:
    cast(monkeypatch, kind)
    async with talk(asks_first=True) as call:
        assert call.call.session is not None
        await call.call.session.aclose()
        await call.ended()
        assert call.reason == Reason.WORKER_STOPPED
        assert ["I have to go now" in words for words in call.said] == [False, True]
        assert ("session", "ok") in call.call.closed


async def test_the_answer_may_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = cast(monkeypatch, AsksInWelcome)
    async with talk(asks_first=True) as call:
        await call.transport.type('/tool answer {"yes": true}')
        assert await call.call.wait_greeted()
        assert agents[0].agreed is True
        assert call.said[-1] == "Hello! How can I help you?"


async def test_a_call_that_ends_before_its_greeting_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def recall(call: Call) -> Profile | None:
        await asyncio.Event().wait()
        return None

    class Leaves(Persona):
        async def on_enter(self) -> None:
            transport.leave()

    cast(monkeypatch, Leaves)
    monkeypatch.setattr(entrypoint, "recall", recall)
    transport = FakeTransport()
    call = await ended_call(transport)
    assert ("session", "ok") in call.closed


async def test_an_error_in_on_enter_costs_no_greeting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Mistaken(Persona):
        async def on_enter(self) -> None:
            raise ValueError("an owner's mistake")

    cast(monkeypatch, Mistaken)
    async with talk() as call:
        assert call.said == ["Hello! How can I help you?"]
        assert "on_enter failed: ValueError: an owner's mistake" in caplog.text


# ---------------------------------------------------------------------- speaking is not hanging


class Voice(AudioOutput):
    """Plays what it is given for as long as the test lets it."""

    def __init__(self) -> None:
        super().__init__(
            label="voice", capabilities=AudioOutputCapabilities(pause=False), sample_rate=24_000
        )
        self.speaks, self.is_over = asyncio.Event(), asyncio.Event()
        self._playing: set[asyncio.Task[None]] = set()

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        if not self.speaks.is_set():
            self.on_playback_started(created_at=time.time())
        self.speaks.set()
        await super().capture_frame(frame)

    def flush(self) -> None:
        super().flush()
        task = asyncio.create_task(self._play())
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)

    async def _play(self) -> None:
        await self.is_over.wait()
        self.on_playback_finished(playback_position=1.0, interrupted=False)

    def clear_buffer(self) -> None:
        self.is_over.set()


class SpokenTransport(FakeTransport):
    """A caller who hears."""

    def __init__(self, *, limited: bool = False) -> None:
        super().__init__(limited=limited)
        self.voice = Voice()

    async def start(
        self, session: AgentSession[None], agent: Agent, caller: Caller, options: RoomOptions
    ) -> None:
        session.output.audio = self.voice
        await super().start(session, agent, caller, options)


class LongWinded(Persona):
    async def welcome(self, profile: Profile | None) -> None:
        await self.session.say("A very long notice that the law requires.")
        await self.session.say("And another one.")
        await super().welcome(profile)


class Hanging(LongWinded):
    async def welcome(self, profile: Profile | None) -> None:
        await self.session.say("One moment.")
        await asyncio.Event().wait()


async def spoken(
    monkeypatch: pytest.MonkeyPatch, kind: type[Persona]
) -> tuple[SpokenTransport, Call]:
    """A call in which the agent speaks, and goes on for as long as the test lets it."""
    cast(monkeypatch, kind)
    transport = SpokenTransport()
    transport.arrive()
    call = Call(transport, load_settings())
    await call.start(entrypoint.run_call)
    async with asyncio.timeout(PATIENCE):
        await transport.voice.speaks.wait()
        await until_speaking(call)
    assert deadline_of(call) is None
    return transport, call


async def until_speaking(call: Call) -> None:
    """Wait until the session knows it too."""
    assert call.session is not None
    spoke = asyncio.Event()
    call.session.on("agent_state_changed", lambda _: spoke.set())
    while call.session.agent_state != "speaking":
        await spoke.wait()
        spoke.clear()


async def test_a_greeting_may_be_as_long_as_it_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    transport, call = await spoken(monkeypatch, LongWinded)
    transport.voice.is_over.set()
    assert await call.wait_greeted(), call.reason
    transport.leave()
    await call.wait_closed()
    assert call.reason == Reason.CALLER_LEFT


async def test_what_hangs_after_it_has_spoken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    transport, call = await spoken(monkeypatch, Hanging)
    monkeypatch.setattr(Step.GREET, "seconds", 0.05)
    transport.voice.is_over.set()
    async with asyncio.timeout(PATIENCE):
        await call.wait_ended()
        await call.wait_closed()
    assert call.reason == Reason.error(6, Step.GREET.title)
