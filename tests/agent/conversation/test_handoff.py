"""What the first agent of a call knows, has and owes, those that take over do too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import Agent, AgentTask, function_tool
from livekit.agents.llm import ChatContext

from agent import entrypoint
from agent.conversation import CallAgent, CallTask
from agent.lifecycle import Call, Reason
from agent.memory import Profile, Turn
from agent.memory.scratch import store_of
from agent.models.scripted import ScriptedLLM
from template.tests.talk import Talk, index, talk

EARLIER = Turn("long ago", "1", "user", "My bicycle is red.", 10.0)
CUT_OFF = [
    Turn("before", "1", "user", "I want a table for two.", 100.0),
    Turn("before", "2", "assistant", "At what time?", 101.0),
]
ADA = Profile("ann", 1, 100.0, [EARLIER], name="Ada", facts=["Likes tea."])
CUT = Profile("ann", 2, 100.0, [EARLIER, *CUT_OFF], name="Ada", resumed=True)


class Desk(CallAgent):
    """Hands over in every way that there is."""

    def __init__(self, call: Call, **options: Any) -> None:
        super().__init__(call, instructions="Be the desk.", **options)

    @function_tool
    async def to_kitchen(self) -> Agent:
        """Hand over as the SDK's documentation does."""
        return Kitchen(self.call, chat_ctx=self.chat_ctx.copy(exclude_instructions=True))

    @function_tool
    async def to_cellar(self) -> tuple[Agent, str]:
        """Hand over without a thought."""
        return Kitchen(self.call), "The cellar listens."

    @function_tool
    async def to_nobody(self) -> Agent:
        """Hand over to somebody who is to know nothing of what was said."""
        return Kitchen(self.call, chat_ctx=ChatContext.empty())

    @function_tool
    async def to_stranger(self) -> Agent:
        """Hand over to an agent that is no CallAgent."""
        return Stranger()

    @function_tool
    async def quietly(self) -> None:
        """Hand over without returning anything."""
        self.session.update_agent(Kitchen(self.call))

    @function_tool
    async def back(self) -> Agent:
        """Hand over and come back."""
        return Kitchen(self.call, desk=self)


class Kitchen(CallAgent):
    """Takes over; overrides what the SDK's examples override."""

    def __init__(self, call: Call, desk: Agent | None = None, **options: Any) -> None:
        super().__init__(call, instructions="Be the kitchen.", **options)
        self.desk = desk

    async def on_enter(self) -> None:
        await self.session.say("This is the kitchen.")

    def goodbye(self, reason: str) -> str:
        return "The kitchen closes."

    @function_tool
    async def to_desk(self) -> Agent:
        """Hand back to the agent from which the call came."""
        assert self.desk is not None
        return self.desk


class Failing(ScriptedLLM):
    """Fails where the caller says so."""

    def chat(self, *, chat_ctx: ChatContext, **others: Any) -> Any:
        if "break" in (chat_ctx.messages()[-1].text_content or ""):
            raise OSError("no model")
        return super().chat(chat_ctx=chat_ctx, **others)


class Stranger(Agent):
    """No CallAgent."""

    def __init__(self) -> None:
        super().__init__(instructions="Be strange.", llm=Failing())
        self.cancelled = asyncio.Event()

    @function_tool
    async def hang(self) -> str:
        """Never answer."""
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return "never"


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> list[Profile | None]:
    """What is known of the caller."""
    known: list[Profile | None] = [ADA]

    async def recall(call: Call) -> Profile | None:
        return known[-1]

    # or every question has a note that nothing was looked up
    monkeypatch.setenv("AGENT_KNOWLEDGE", "none")
    monkeypatch.setattr(entrypoint, "recall", recall)
    monkeypatch.setattr(entrypoint, "build_persona", Desk)
    return known


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the language model was asked last, as one text."""
    contexts: list[str] = []
    chat = ScriptedLLM.chat

    def recorded(self: ScriptedLLM, *, chat_ctx: ChatContext, **others: Any) -> Any:
        lines = [f"{message.role}: {message.text_content}" for message in chat_ctx.messages()]
        contexts.append("\n".join(lines))
        return chat(self, chat_ctx=chat_ctx, **others)

    monkeypatch.setattr(ScriptedLLM, "chat", recorded)
    return contexts


def agent_of(call: Talk) -> Agent:
    assert call.call.session is not None
    return call.call.session.current_agent


@pytest.mark.parametrize("way", ["to_kitchen", "to_cellar", "quietly"])
async def test_who_takes_over_knows_the_caller_and_what_was_said(
    way: str, profile: list[Profile | None], asked: list[str]
) -> None:
    async with talk() as call:
        await call.say("My roof leaks.")
        await call.say(f"/tool {way} {{}}")
        assert type(agent_of(call)) is Kitchen
        await call.say("Thank you.")
    told = asked[-1]
    assert told.startswith("system: Be the kitchen.\nsystem: For your information")
    for words in ("Ada", "Likes tea.", "My bicycle is red.", "user: My roof leaks."):
        assert told.count(words) == 1 + (words == "Ada"), told
    # the greeting by name is the second
    assert told.index("Welcome back, Ada!") < told.index("My roof leaks.")
    assert told.endswith("assistant: This is the kitchen.\nuser: Thank you.")
    assert call.said[-1] == "You are welcome."


@pytest.mark.parametrize("way", ["to_kitchen", "to_cellar"])
async def test_a_call_that_was_cut_off_is_known_once_to_who_takes_over(
    way: str, profile: list[Profile | None], asked: list[str]
) -> None:
    profile.append(CUT)
    async with talk() as call:
        await call.say(f"/tool {way} {{}}")
        await call.say("Thank you.")
    told = asked[-1]
    lines = "user: I want a table for two.\nassistant: At what time?\n"
    assert told.count(lines) == 1
    assert told.count("My bicycle is red.") == 1
    assert told.index(lines) < told.index("Sorry, Ada, we were cut off.")


async def test_who_is_given_a_conversation_keeps_to_it(
    profile: list[Profile | None], asked: list[str]
) -> None:
    async with talk() as call:
        await call.say("My roof leaks.")
        await call.say("/tool to_nobody {}")
        await call.say("Thank you.")
    told = asked[-1]
    assert "roof" not in told
    # who the caller is, every agent of a call knows
    assert "Likes tea." in told


async def test_who_takes_over_again_knows_what_was_said_meanwhile(
    profile: list[Profile | None], asked: list[str]
) -> None:
    async with talk() as call:
        await call.say("My roof leaks.")
        await call.say("/tool back {}")
        await call.say("My cellar is wet.")
        await call.say("/tool to_desk {}")
        await call.say("Thank you.")
    told = asked[-1]
    assert told.startswith("system: Be the desk.\nsystem: For your information")
    for words in ("Likes tea.", "user: My roof leaks.", "user: My cellar is wet."):
        assert told.count(words) == 1, told
    assert told.index("My roof leaks.") < told.index("My cellar is wet.")


@pytest.mark.parametrize("way", ["to_cellar", "to_stranger"])
async def test_who_takes_over_has_the_documents_and_the_memory(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", Desk)
    await index("# Hours\n\nWe open at ten.")
    kept = f"scratch:{tmp_path}"
    async with talk(memory_url=kept) as call:
        await call.say(f"/tool {way} {{}}")
        # or the tool's words would be looked up, too
        await call.say("Hello.")
        run = await call.run("When do you open?")
        # looked up before the reply, by no tool
        assert [event.type for event in run.events] == ["message"]
        await call.say("/tool remember_caller {}")
        knows_how = "Nothing was kept" in call.said[-1]
        assert knows_how == (way == "to_cellar")
        settings = call.call.settings
    profile = await store_of(settings).recall("ann")
    assert profile is not None
    said = [turn.text for turn in profile.turns]
    assert said[said.index("When do you open?") + 1] == "We open at ten."


async def test_who_takes_over_says_goodbye_and_has_the_tools_of_every_agent(
    profile: list[Profile | None],
) -> None:
    async with talk() as call:
        await call.say("/tool to_cellar {}")
        assert "end_call" in [tool.id for tool in agent_of(call).tools]
        await call.call.hang_up()
        await call.ended()
        assert call.said[-1] == "The kitchen closes."


async def test_who_takes_over_has_the_models_that_the_persona_was_given(
    profile: list[Profile | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = ScriptedLLM(), ScriptedLLM()
    monkeypatch.setattr(
        entrypoint, "build_persona", lambda call: Desk(call, llm=own, stt=None, vad=None)
    )
    async with talk() as call:
        await call.say("/tool to_cellar {}")
        kitchen = agent_of(call)
        assert (kitchen.llm, kitchen.stt, kitchen.vad) == (own, None, None)
        assert Kitchen(call.call, llm=other).llm is other
        # only the first one's
        assert Kitchen(call.call).llm is own


async def test_an_agent_that_is_no_call_agent_has_deadlines_and_a_goodbye(
    profile: list[Profile | None], caplog: pytest.LogCaptureFixture
) -> None:
    async with talk(tool_seconds=0.5) as call:
        await call.say("/tool to_stranger {}")
        stranger = agent_of(call)
        assert isinstance(stranger, Stranger)
        assert type(stranger).__name__ == "Stranger"
        assert "write `class Stranger(CallAgent)`" in caplog.text
        await call.say("/tool hang {}")
        assert "No answer within 0.5 s" in call.tool_output("hang")
        assert stranger.cancelled.is_set()
        assert "I am sorry, I cannot answer" in await call.say("break")
        assert await call.say("Thank you.") == "You are welcome."
        await call.call.hang_up()
        await call.ended()
        assert call.said[-1] == "Goodbye!"
        assert call.reason == Reason.AGENT_HUNG_UP


@pytest.mark.parametrize("tool", ["to_quiet", "to_stranger", "ask"])
async def test_who_takes_over_says_the_sentences_of_the_persona(
    tool: str, profile: list[Profile | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Polite(Desk):
        def goodbye(self, reason: str) -> str:
            return f"Au revoir: {super().goodbye(reason)}"

        def sorry(self) -> str:
            return "Pardon."

        def still_there(self) -> str:
            return "Hello?"

        def cannot_hear(self) -> str:
            return "What?"

        @function_tool
        async def to_quiet(self) -> Agent:
            """Hand over."""
            return CallAgent(self.call, instructions="")

        @function_tool
        async def ask(self) -> str:
            """Ask."""
            return await Size(self.call, instructions="")

    monkeypatch.setattr(entrypoint, "build_persona", Polite)
    async with talk() as call:
        await call.say(f"/tool {tool} {{}}")
        agent = agent_of(call)
        assert isinstance(agent, CallAgent)
        assert not isinstance(agent, Polite)
        assert [agent.sorry(), agent.still_there(), agent.cannot_hear()] == [
            "Pardon.",
            "Hello?",
            "What?",
        ]
        await call.call.hang_up()
        await call.ended()
        assert call.said[-1] == "Au revoir: Goodbye!"


async def test_a_bare_agent_is_taken_in_too(profile: list[Profile | None]) -> None:
    async with talk() as call:
        assert call.call.session is not None
        call.call.session.update_agent(Agent(instructions="Be bare."))
        await call.say("Thank you.")
        assert call.said[-1] == "You are welcome."
        await call.call.hang_up()
        await call.ended()
        assert call.said[-1] == "Goodbye!"


# ---------------------------------------------------------------------- a question with an answer


class Size(CallTask[str]):
    """Asks for a size."""

    async def on_enter(self) -> None:
        await self.session.say("Small or large?")

    @function_tool
    async def choose(self, size: str) -> None:
        """Take the size.

        Args:
            size: Which one.
        """
        self.complete(size)


class Plain(AgentTask[str]):
    """The same, not written for a call."""

    def __init__(self) -> None:
        super().__init__(instructions="Ask.")

    on_enter = Size.on_enter
    choose = Size.choose


class Shop(Desk):
    @function_tool
    async def order(self) -> str:
        """Order."""
        return f"Ordered {await Size(self.call, instructions='Ask.')}."

    @function_tool
    async def order_plainly(self) -> str:
        """Order."""
        return f"Ordered {await Plain()}."


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, profile: list[Profile | None]) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", Shop)


@pytest.mark.parametrize("tool", ["order", "order_plainly"])
async def test_a_tool_may_ask_something(tool: str, shop: None, asked: list[str]) -> None:
    async with talk() as call:
        await call.say("My roof leaks.")
        assert await call.say(f"/tool {tool} {{}}") == "Small or large?"
        # the caller may think for longer than a tool may take
        assert [tool.deadline.when() for tool in call.call.tools._running] == [None]
        assert isinstance(agent_of(call), AgentTask)
        assert await call.say("/tool nothing {}") == "There is no tool called nothing."
        knows = "Likes tea." in asked[-1] and "My roof leaks." in asked[-1]
        assert knows == (tool == "order")
        said = await call.say('/tool choose {"size": "large"}')
        # the task is over, and has nothing to add
        assert said == "Ordered large."
        assert type(agent_of(call)) is Shop
        assert "user: /tool nothing" in asked[-1]
        assert asked[-1].count("Likes tea.") == 1


@pytest.mark.parametrize("tool", ["order", "order_plainly"])
async def test_a_call_that_ends_within_a_question_has_one_goodbye(tool: str, shop: None) -> None:
    async with talk() as call:
        await call.say(f"/tool {tool} {{}}")
        await call.call.hang_up()
        await call.ended()
        assert call.said[-2:] == ["Small or large?", "Goodbye!"]
        assert ("session", "ok") in call.call.closed


@pytest.fixture(autouse=True)
async def no_error_in_a_handler(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """The SDK only logs what is raised in an event's handler."""
    yield
    assert "failed to emit event" not in caplog.text
