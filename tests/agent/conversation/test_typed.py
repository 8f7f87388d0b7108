"""Lines that a caller types: each is answered, in order, and cuts nothing off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit.agents import function_tool
from livekit.agents.llm import ChatContext

from agent import entrypoint
from agent.conversation import CallAgent
from agent.lifecycle import Call, timeouts
from agent.memory import Profile
from agent.models.scripted import ScriptedLLM
from agent.settings import load_settings
from tests.agent.conversation.test_greeting import SpokenTransport

PATIENCE = 60.0


class Desk(CallAgent):
    def __init__(self, call: Call) -> None:
        super().__init__(call, instructions="Be kind.")
        self.began, self.go_on = asyncio.Event(), asyncio.Event()

    @function_tool
    async def look(self) -> str:
        """Look, until the test has seen enough."""
        self.began.set()
        await self.go_on.wait()
        return "It is there."


class Scene:
    """A greeted call whose caller hears, and types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transport = SpokenTransport(limited=True)
        self.desk: Desk

        def build(call: Call) -> CallAgent:
            self.desk = Desk(call)
            return self.desk

        monkeypatch.setattr(entrypoint, "build_persona", build)
        self.call = Call(self.transport, load_settings().model_copy(update={"knowledge": "none"}))
        self.lines: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        self.transport.arrive()
        self.voice.is_over.set()
        await self.call.start(entrypoint.run_call)
        assert await self.call.wait_greeted()
        self.voice.is_over.clear()
        self.voice.speaks.clear()

    @property
    def voice(self) -> Any:
        return self.transport.voice

    def type(self, line: str) -> None:
        self.lines.append(asyncio.create_task(self.transport.type(line)))

    async def answered(self) -> list[tuple[str, str, bool]]:
        """Who said what after the greeting, and whether it was interrupted."""
        self.voice.is_over.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self.lines)
            assert self.call.session is not None
            await self.call.session.wait_for_idle()
        messages = self.call.session.history.messages()[1:]
        return [(one.role, one.text_content or "", one.interrupted) for one in messages]

    async def texts(self) -> list[str]:
        """What was said after the greeting."""
        return [text for _, text, _ in await self.answered()]

    async def end(self) -> None:
        self.transport.leave()
        async with asyncio.timeout(PATIENCE):
            await self.call.wait_closed()
        assert ("session", "ok") in self.call.closed


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(timeouts, "TYPED_SECONDS", PATIENCE)
    scene = Scene(monkeypatch)
    await scene.begin()
    return scene


async def test_a_line_typed_while_an_answer_is_spoken_does_not_cut_it_off(scene: Scene) -> None:
    scene.type("Thank you.")
    await scene.voice.speaks.wait()
    scene.type("hello")
    assert await scene.answered() == [
        ("user", "Thank you.", False),
        ("assistant", "You are welcome.", False),
        ("user", "hello", False),
        ("assistant", "Hello! What would you like to know?", False),
    ]
    await scene.end()


async def test_a_line_typed_while_the_callers_data_is_loaded_is_answered_after_the_greeting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def welcome(self: Desk, profile: Profile | None) -> None:
        entered.set()
        await go_on.wait()
        await CallAgent.welcome(self, profile)

    monkeypatch.setattr(Desk, "welcome", welcome)
    scene = Scene(monkeypatch)
    scene.transport.arrive()
    scene.voice.is_over.set()
    await scene.call.start(entrypoint.run_call)
    async with asyncio.timeout(PATIENCE):
        await entered.wait()
        scene.type("Thank you.")
        # time in which it could get ahead
        await asyncio.wait(scene.lines, timeout=0.5)
        go_on.set()
        assert await scene.call.wait_greeted()
    assert await scene.texts() == ["Thank you.", "You are welcome."]
    await scene.end()


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the model was asked with, each time."""
    asked: list[list[str]] = []
    chat = ScriptedLLM.chat

    def recorded(self: ScriptedLLM, *, chat_ctx: ChatContext, **others: Any) -> Any:
        asked.append([message.text_content or "" for message in chat_ctx.messages()])
        return chat(self, chat_ctx=chat_ctx, **others)

    monkeypatch.setattr(ScriptedLLM, "chat", recorded)
    return asked


async def test_lines_typed_at_once_are_answered_one_after_another(
    scene: Scene, contexts: list[list[str]]
) -> None:
    for line in ("Thank you.", "hello", "thanks"):
        scene.type(line)
    said = await scene.answered()
    assert [role for role, _, _ in said] == ["user", "assistant"] * 3
    assert [text for role, text, _ in said if role == "user"] == ["Thank you.", "hello", "thanks"]
    assert not any(interrupted for _, _, interrupted in said)
    # the model knows what it has answered before
    assert contexts[-1][-4:] == [
        "You are welcome.",
        "hello",
        "Hello! What would you like to know?",
        "thanks",
    ]
    await scene.end()


async def test_a_line_typed_while_spoken_words_are_answered_knows_that_answer(
    scene: Scene, contexts: list[list[str]]
) -> None:
    session = scene.call.session
    assert session is not None
    # as for words that were heard
    session.generate_reply(user_input="Thank you.")
    await scene.voice.speaks.wait()
    scene.type("hello")
    await scene.answered()
    assert contexts[-1][-3:] == ["Thank you.", "You are welcome.", "hello"]
    await scene.end()


async def test_a_line_waits_for_the_tool_of_the_answer_before_it(scene: Scene) -> None:
    scene.type("/tool look {}")
    await scene.desk.began.wait()
    scene.type("Thank you.")
    await asyncio.sleep(0.1)
    scene.desk.go_on.set()
    assert await scene.texts() == [
        "/tool look {}",
        "It is there.",
        "Thank you.",
        "You are welcome.",
    ]
    await scene.end()


async def test_a_tool_that_takes_long_does_not_keep_a_line_waiting(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "TYPED_SECONDS", 0.05)
    scene.type("/tool look {}")
    await scene.desk.began.wait()
    scene.type("Thank you.")
    assert await scene.texts() == ["/tool look {}", "Thank you.", "You are welcome."]
    scene.desk.go_on.set()
    await scene.end()


async def test_a_line_cuts_off_no_sentence_that_may_not_be_interrupted(scene: Scene) -> None:
    session = scene.call.session
    assert session is not None
    session.say("This has to be said.", allow_interruptions=False)
    await scene.voice.speaks.wait()
    scene.type("Thank you.")
    assert await scene.texts() == [
        "This has to be said.",
        "Thank you.",
        "You are welcome.",
    ]
    await scene.end()


async def test_lines_that_wait_are_dropped_when_the_call_ends(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.type("Thank you.")
    await scene.voice.speaks.wait()
    scene.type("hello")
    await asyncio.sleep(0)
    scene.voice.is_over.set()
    await scene.end()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*scene.lines)
    # nor is anything written after it
    scene.type("hello")
    await asyncio.gather(*scene.lines)
    assert scene.call.turns <= 3


async def test_silence_begins_again_with_a_line(scene: Scene) -> None:
    session = scene.call.session
    assert session is not None
    session._update_user_state("away")
    scene.type("Thank you.")
    await scene.answered()
    assert session.user_state == "listening"
    await scene.end()
