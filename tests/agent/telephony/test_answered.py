"""Who has answered a call that the agent made, and what is remembered of a machine's words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.agents import ChatContext, ChatMessage, StopResponse, llm

from agent.conversation import CallAgent
from agent.conversation.session import CallSession, build_session
from agent.lifecycle import Reason
from agent.lifecycle.journal import CallOver
from agent.models import Models
from agent.models.scripted import ScriptedLLM, ScriptedTTS
from agent.telephony import answered
from agent.telephony.outbound import callee
from tests.agent.telephony.phones import BERLIN, Calling, calling
from tests.support.room_service import RoomService

KEY = f"tel:{BERLIN}"
MACHINE = "You have reached Ann. Please leave a message after the tone."


class Persona(CallAgent):
    """It wants to know who has answered, and leaves a message."""

    callee_speaks_first = True
    detects_voicemail = True
    message: str | None = "Your bicycle is ready."

    def is_voicemail(self, words: str) -> bool:
        return "leave a message" in words

    def on_voicemail(self) -> str | None:
        return self.message


class Classifier(ScriptedLLM):
    """A model that takes who speaks for what the test says."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def chat(self, **options: Any) -> llm.LLMStream:
        said = f"/tool save_prediction {json.dumps({'label': self._label})}"
        message = ChatMessage(role="user", content=[said])
        return super().chat(**{**options, "chat_ctx": ChatContext(items=[message])})


@asynccontextmanager
async def answering(
    server: RoomService,
    monkeypatch: pytest.MonkeyPatch,
    persona: type[CallAgent] = Persona,
    model: ScriptedLLM | None = None,
) -> AsyncIterator[tuple[Calling, CallAgent, CallSession]]:
    """A call that was answered, in a session without sound."""
    async with calling(server, monkeypatch) as made:
        call = made.call
        call.called, call.caller = BERLIN, callee(BERLIN)
        agent = persona(call, instructions="Be brief.")
        voices = Models(model or ScriptedLLM(), None, ScriptedTTS(), None, {})
        call.session = session = build_session(call, voices, agent)
        await session.start(agent)
        made.memory.identify(KEY)
        try:
            yield made, agent, session
        finally:
            await session.close()
            call.end(Reason.AGENT_HUNG_UP)
            await call.wait_closed()


async def say(agent: CallAgent, words: str) -> None:
    """The callee's turn, as the SDK reports it; it is not answered by itself."""
    message = ChatMessage(role="user", content=[words])
    with pytest.raises(StopResponse):
        await agent.on_user_turn_completed(ChatContext.empty(), message)


def said(session: CallSession) -> list[str]:
    """What the agent has said."""
    spoken = [one for one in session.history.messages() if one.role == "assistant"]
    return [one.text_content or "" for one in spoken]


async def detected(session: CallSession, words: str) -> None:
    """The callee's words, as the SDK's detection gets them."""
    while session._amd is None or not session._amd.started:  # noqa: ASYNC110
        await asyncio.sleep(0)
    session._amd._on_user_speech_started()
    session._amd._on_transcript(words)
    session._amd._on_user_speech_ended(2.0)
    assert session._amd._classifier is not None
    session._amd._classifier.on_end_of_turn()


async def test_a_person_is_heard_first_and_their_words_are_theirs(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(server, monkeypatch) as (made, agent, session):
        hearing = asyncio.create_task(answered.hear_callee(made.call, session, agent))
        await asyncio.sleep(0)
        assert made.memory.key is None
        await say(agent, "Hello, this is Ann.")
        await hearing
        assert made.call.reason is None
        assert [turn.text for turn in made.memory.turns] == ["Hello, this is Ann."]
        assert made.memory.key == KEY
        assert [one.text_content for one in agent.chat_ctx.messages()][-1] == "Hello, this is Ann."
        # from now on turns are answered
        await agent.on_user_turn_completed(
            ChatContext.empty(), ChatMessage(role="user", content=[])
        )


async def test_who_hangs_up_before_the_greeting_has_had_the_call(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(server, monkeypatch) as (made, agent, session):
        hearing = asyncio.create_task(answered.hear_callee(made.call, session, agent))
        await asyncio.sleep(0)
        assert made.memory.key is None
        made.call.end(Reason.CALLER_LEFT)
        hearing.cancel()
        await made.call.wait_closed()
    (record,) = made.memory.records
    assert (record.reason, made.memory.key or "nobody") == (Reason.CALLER_LEFT, KEY)


@pytest.mark.parametrize("message", ["Your bicycle is ready.", None])
async def test_a_machine_gets_the_message_and_nothing_of_it_is_remembered_but_the_call(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, message: str | None
) -> None:
    monkeypatch.setattr(answered, "MACHINE_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(Persona, "message", message)
    async with answering(server, monkeypatch) as (made, agent, session):
        hearing = asyncio.create_task(answered.hear_callee(made.call, session, agent))
        await asyncio.sleep(0)
        await say(agent, MACHINE)
        with pytest.raises(CallOver):
            await hearing
        assert made.call.reason == Reason.VOICEMAIL
        assert said(session) == ([message] if message else [])
        await made.call.wait_closed()
    assert made.memory.turns == []
    (record,) = made.memory.records
    assert (record.reason, made.memory.key) == (Reason.VOICEMAIL, KEY)


async def test_a_machine_is_not_talked_over(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answered, "MACHINE_PAUSE_SECONDS", 0.2)
    async with answering(server, monkeypatch) as (made, agent, session):
        hearing = asyncio.create_task(answered.hear_callee(made.call, session, agent))
        await asyncio.sleep(0)
        await say(agent, MACHINE)
        # it goes on after a breath
        session._update_user_state("speaking")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(hearing), 0.5)
        assert said(session) == []
        session._update_user_state("listening")
        with pytest.raises(CallOver):
            await hearing
        assert said(session) == [Persona.message]


async def test_who_says_nothing_is_greeted(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answered, "FIRST_WORDS_SECONDS", 0.05)
    async with answering(server, monkeypatch) as (made, agent, session):
        await answered.hear_callee(made.call, session, agent)
        assert made.call.reason is None
        assert (made.memory.key, made.memory.turns) == (KEY, [])


async def test_a_persona_that_does_not_ask_waits_for_nobody(
    server: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(server, monkeypatch, CallAgent) as (made, agent, session):
        async with asyncio.timeout(1):
            await answered.hear_callee(made.call, session, agent)
        assert made.memory.key == KEY


@pytest.mark.parametrize(
    ("label", "reason", "words"),
    [
        ("human", None, []),
        ("machine-vm", Reason.VOICEMAIL, [Persona.message]),
        # where no message can be left, none is
        ("machine-unavailable", Reason.VOICEMAIL, []),
        ("machine-ivr", Reason.VOICEMAIL, []),
    ],
)
async def test_the_sdks_detection_decides_where_it_can_be_used(
    server: RoomService,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
    reason: str | None,
    words: list[str],
) -> None:
    monkeypatch.setattr(answered, "_can_detect", lambda call, session: True)
    monkeypatch.setattr(answered, "TURN_END_SECONDS", 0.05)
    model = Classifier(label)
    async with answering(server, monkeypatch, model=model) as (made, agent, session):
        hearing = asyncio.create_task(answered.hear_callee(made.call, session, agent))
        await detected(session, "Hello, this is Ann, what is it?")
        if reason is None:
            await hearing
        else:
            with pytest.raises(CallOver):
                await hearing
        assert made.call.reason == reason
        assert said(session) == words


@pytest.mark.parametrize(("words", "reason"), [("Hello?", None), (MACHINE, Reason.VOICEMAIL)])
async def test_a_model_that_gives_no_opinion_leaves_it_to_the_personas_rule(
    server: RoomService, monkeypatch: pytest.MonkeyPatch, words: str, reason: str | None
) -> None:
    monkeypatch.setattr(answered, "_can_detect", lambda call, session: True)
    monkeypatch.setattr(answered, "DETECTION_SECONDS", 0.3)
    monkeypatch.setattr(answered, "TURN_END_SECONDS", 60)
    monkeypatch.setattr(answered, "MACHINE_PAUSE_SECONDS", 0.05)
    async with answering(server, monkeypatch) as (made, agent, session):
        hearing = asyncio.create_task(answered.hear_callee(made.call, session, agent))
        await detected(session, words)
        # the turn ends a moment after the verdict
        assert session._amd is not None
        over = asyncio.Event()
        session._amd.on("amd_prediction", lambda _: over.set())
        await asyncio.wait_for(over.wait(), 5)
        # … which is waited for, because the words are for the rule, and not to be answered
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(hearing), 0.2)
        await say(agent, words)
        if reason is None:
            await hearing
        else:
            with pytest.raises(CallOver):
                await hearing
        assert made.call.reason == reason


def test_a_script_is_not_asked_who_speaks() -> None:
    session: Any = SimpleNamespace(llm=ScriptedLLM(), vad=object(), stt=object())
    for models, can in (("livekit", True), ("scripted", False), ("local", False)):
        call: Any = SimpleNamespace(settings=SimpleNamespace(models=models))
        assert answered._can_detect(call, session) == can
