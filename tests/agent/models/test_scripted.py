"""The models that settings choose, built without a network; the keyless ones in a conversation."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, ChatMessage, RunResult, function_tool, tts
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities

from agent.models import Models, ModelsUnavailable, models_of
from agent.models.scripted import SAMPLE_RATE, ScriptedLLM, ScriptedTTS, best_sentences, hum
from agent.settings import load_settings

HOURS = """[opening-hours.md] Opening hours
The workshop is open from nine to five. On Saturdays it closes at *one*. \
Bring your [receipt](https://example.com).

[prices.md] Prices
A new chain is 30 euros."""
NOTHING_FOUND = "Nothing in the documents answers that."


def chosen(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Models:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    return models_of(load_settings())


def session_of(models: Models) -> AgentSession[None]:
    options: dict[str, Any] = {
        "llm": models.llm,
        "stt": models.stt,
        "tts": models.tts,
        "vad": models.vad,
    }
    return AgentSession(turn_handling=models.turn_handling, **options)


class Desk(Agent):
    """An agent with our tools and an owner's; `passages` are the contents of its documents."""

    def __init__(self, passages: str | None = HOURS) -> None:
        async def search_knowledge(question: str) -> str:
            """Look something up."""
            return passages or ""

        tools = [function_tool(search_knowledge)] if passages else []
        super().__init__(instructions="You answer the phone.", tools=[*tools])

    @function_tool
    async def end_call(self) -> None:
        """End the call."""

    @function_tool
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


class Ear(AudioOutput):
    """Hears what the agent says, at once."""

    def __init__(self) -> None:
        super().__init__(
            label="ear", capabilities=AudioOutputCapabilities(pause=True), sample_rate=SAMPLE_RATE
        )
        self.heard = b""

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self.heard:
            self.on_playback_started(created_at=0)
        self.heard += bytes(frame.data)

    def flush(self) -> None:
        super().flush()
        self.on_playback_finished(
            playback_position=len(self.heard) / 2 / SAMPLE_RATE, interrupted=False
        )

    def clear_buffer(self) -> None:
        pass


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AgentSession[None]]:
    async with session_of(chosen(monkeypatch, AGENT_MODELS="scripted")) as session:
        yield session


async def said(session: AgentSession[None], words: str) -> list[str]:
    """The replies to a caller's words: sentences, and the tools that were called."""
    result: RunResult[None] = await session.run(user_input=words)
    items = [event.item for event in result.events if event.type != "agent_handoff"]
    return [
        f"{item.name}({item.arguments})" if item.type == "function_call" else str(item.text_content)
        for item in items
        if item.type in ("function_call", "message")
    ]


# ---------------------------------------------------------------------- which models


@pytest.mark.parametrize("mode", ["0", "1"], ids=["start", "dev"])
async def test_livekit_models_are_built_offline_without_a_warning_or_anything_deprecated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    keys = {
        "LIVEKIT_API_KEY": "devkey",
        "LIVEKIT_API_SECRET": "a secret of at least thirty-two bytes",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = chosen(monkeypatch, AGENT_MODELS="livekit", LIVEKIT_DEV_MODE=mode, **keys)
        session = session_of(models)
    await session.aclose()

    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ] == []
    assert models.llm.model == load_settings().llm_model
    assert models.stt is not None
    assert models.tts is not None
    assert models.vad is not None
    # not the cloud's
    detection = models.turn_handling["turn_detection"]
    assert getattr(detection, "model", None) == "turn-detector-v1-mini"


async def test_livekit_models_without_keys_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelsUnavailable, match=r"LIVEKIT_API_KEY.*AGENT_MODELS=scripted"):
        chosen(monkeypatch, AGENT_MODELS="livekit")


def test_models_that_the_project_was_made_without_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "agent.models.livekit", None)

    with pytest.raises(
        ModelsUnavailable, match=r"no agent\.models\.livekit; choose from .*scripted"
    ):
        chosen(monkeypatch, AGENT_MODELS="livekit")


# ---------------------------------------------------------------------- a scripted conversation


async def test_a_question_is_looked_up_by_a_real_tool_call_and_answered_from_the_best_passage(
    session: AgentSession[None],
) -> None:
    await session.start(Desk())

    assert await said(session, "When do you close on Saturday?") == [
        'search_knowledge({"question": "When do you close on Saturday?"})',
        "On Saturdays it closes at one. Bring your receipt.",
    ]


@pytest.mark.parametrize(
    ("passages", "answer"),
    [
        (NOTHING_FOUND, NOTHING_FOUND),
        ("The documents cannot be searched: say so.", "I cannot look that up at the moment."),
    ],
)
async def test_what_cannot_be_looked_up_is_said(
    session: AgentSession[None], passages: str, answer: str
) -> None:
    await session.start(Desk(passages))

    assert (await said(session, "What is a chain?"))[1:] == [answer]


async def test_without_documents_a_question_is_repeated(session: AgentSession[None]) -> None:
    await session.start(Desk(None))

    answer = "I heard: What is a chain. I have no documents to look things up in."
    assert await said(session, "What is a chain?") == [answer]


@pytest.mark.parametrize("words", ["Goodbye!", "OK, bye.", "please hang up"])
async def test_a_caller_who_says_goodbye_ends_the_call(
    session: AgentSession[None], words: str
) -> None:
    await session.start(Desk())

    assert await said(session, words) == ["end_call({})"]


async def test_small_talk_is_answered_without_the_documents(session: AgentSession[None]) -> None:
    await session.start(Desk())

    assert await said(session, "Hello there!") == ["Hello! What would you like to know?"]
    assert await said(session, "Thank you very much.") == ["You are welcome."]


async def test_any_tool_can_be_called_by_name(session: AgentSession[None]) -> None:
    await session.start(Desk())

    assert await said(session, '/tool add {"a": 1, "b": 2}') == ['add({"a": 1, "b": 2})', "3"]
    assert await said(session, "/tool subtract") == ["There is no tool called subtract."]


async def test_a_reply_that_nobody_asked_for_is_a_greeting(session: AgentSession[None]) -> None:
    await session.start(Desk())
    handle = session.generate_reply(instructions="Greet the caller.")
    await handle.wait_for_playout()

    assert [item.text_content for item in handle.chat_items if isinstance(item, ChatMessage)] == [
        "Hello! How can I help you?"
    ]


async def test_words_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    models = chosen(monkeypatch, AGENT_MODELS="scripted")
    async with (
        session_of(models) as session,
        ScriptedLLM().chat(chat_ctx=session.history) as stream,
    ):
        chunks = [chunk.delta.content async for chunk in stream if chunk.delta]

    assert chunks == ["Hello! ", "How ", "can ", "I ", "help ", "you?"]


@pytest.mark.parametrize(
    ("passage", "question", "answer"),
    [
        ("We repair bikes. We sell none.", "do you sell bikes", "We repair bikes. We sell none."),
        (
            "- Tyres: 20 euros\n- Chains: 30 euros\n- Bells: 5 euros",
            "a chain?",
            "Chains: 30 euros. Bells: 5 euros.",
        ),
        (
            "First.\n\nThe **key** is `under` the mat.",
            "where is the key",
            "The key is under the mat.",
        ),
        ("", "anything", NOTHING_FOUND),
    ],
)
def test_the_sentences_that_share_most_words_with_the_question_are_read(
    passage: str, question: str, answer: str
) -> None:
    assert best_sentences(passage, question) == answer


# ---------------------------------------------------------------------- a scripted voice


async def test_a_conversation_without_a_microphone_is_heard_and_warns_of_nothing(
    session: AgentSession[None], caplog: pytest.LogCaptureFixture
) -> None:
    session.output.audio = ear = Ear()
    await session.start(Desk())
    await session.say("Welcome.")
    await said(session, "When do you close on Saturday?")

    assert loudness(ear.heard) > 500
    assert ear.heard.startswith(hum("Welcome."))
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ] == []


async def test_a_sentence_of_ten_words_takes_about_as_long_as_a_quick_speaker() -> None:
    async with tts.StreamAdapter(tts=ScriptedTTS()).stream() as stream:
        stream.push_text("Our workshop is open from nine to five every day.")
        stream.end_input()
        seconds = sum([audio.frame.duration async for audio in stream])

    assert 0.8 < seconds < 2


@pytest.mark.parametrize("text", ["Hello.", "...", "12", "日本語", "e", "rhythm", ""])
def test_every_text_has_its_own_sound(text: str) -> None:
    assert loudness(hum(text)) > 100
    assert hum(text) == hum(text)
    assert len(hum(text)) % 2 == 0


def loudness(pcm: bytes) -> float:
    return float(np.abs(np.frombuffer(pcm, "<i2").astype(float)).mean())
