"""The SDK's OpenAI plugin, as a self-hosted project uses it, against the stand-in server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, APIStatusError, function_tool, llm, utils
from livekit.plugins import openai

from agent.models.scripted import SAMPLE_RATE, hum
from tests.support.openai_server import MODELS, Kind, OpenAIServer, openai_server

ONCE = APIConnectOptions(max_retry=0, timeout=1)
TWICE = APIConnectOptions(max_retry=1, timeout=1, retry_interval=0)


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIServer]:
    async with openai_server() as started, utils.http_context.open():
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


@function_tool
async def search_knowledge(question: str) -> str:
    """Look something up.

    Args:
        question: What is asked.
    """
    return ""


async def ask(
    words: str = "hello", tools: list[llm.Tool] | None = None, options: Any = ONCE
) -> llm.CollectedResponse:
    """What the plugin's language model says to a caller's words."""
    conversation = llm.ChatContext.empty()
    conversation.add_message(role="user", content=words)
    model = openai.LLM(model=MODELS["chat"])
    return await model.chat(chat_ctx=conversation, tools=tools, conn_options=options).collect()


async def test_the_language_model_streams_and_calls_tools(server: OpenAIServer) -> None:
    reply = await ask()
    assert reply.text == "Hello! What would you like to know?"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 15
    reply = await ask("Are you open?", [search_knowledge])
    (call,) = reply.tool_calls
    assert (call.name, call.arguments) == ("search_knowledge", '{"question": "Are you open?"}')
    asked = server.requests("chat")[-1].body
    assert asked["stream_options"] == {"include_usage": True}
    assert asked["tools"][0]["function"]["strict"] is True


@pytest.mark.parametrize("events", [False, True], ids=["sound", "events"])
@pytest.mark.parametrize("form", ["wav", "pcm"])
async def test_the_voice_speaks(server: OpenAIServer, form: str, events: bool) -> None:
    server.speech_events = events
    frame = await say(form)
    assert frame.sample_rate == SAMPLE_RATE
    # the SDK ends plain samples with a moment of silence
    assert bytes(frame.data).rstrip(b"\0") == hum("Hello there!").rstrip(b"\0")


async def say(form: str = "wav", options: Any = ONCE) -> rtc.AudioFrame:
    """What the plugin's voice makes of a text."""
    voice = openai.TTS(model=MODELS["speech"], voice="af_heart", response_format=form)
    return await voice.synthesize("Hello there!", conn_options=options).collect()


async def hear(options: Any = ONCE) -> str:
    """What the plugin's speech-to-text hears."""
    ears = openai.STT(model=MODELS["transcriptions"])
    sound = hum("When are you open?")
    frame = rtc.AudioFrame(sound, SAMPLE_RATE, 1, len(sound) // 2)
    event = await ears.recognize([frame], conn_options=options)
    return event.alternatives[0].text


async def test_speech_to_text_hears(server: OpenAIServer) -> None:
    server.words.append("When are you open?")
    assert await hear() == "When are you open?"
    assert server.asked[-1].body["language"] == "en"


@pytest.mark.parametrize("kind", ["401", "429", "500"])
async def test_a_refusal_reaches_the_agent_as_what_it_is(server: OpenAIServer, kind: Kind) -> None:
    for endpoint, call in (("chat", ask), ("speech", say), ("transcriptions", hear)):
        server.fault(endpoint, kind)  # type: ignore[arg-type]
        with pytest.raises(APIStatusError) as caught:
            await call(options=ONCE)
        assert caught.value.status_code == int(kind)
        assert caught.value.retryable == (kind != "401")


async def test_a_fault_that_passes_is_not_noticed(server: OpenAIServer) -> None:
    server.words.append("hello")
    for endpoint, call in (("chat", ask), ("speech", say), ("transcriptions", hear)):
        server.fault(endpoint, "429", times=1)  # type: ignore[arg-type]
        await call(options=TWICE)
        assert len(server.requests(endpoint)) == 2  # type: ignore[arg-type]


async def test_an_answer_that_breaks_off_is_an_error(server: OpenAIServer) -> None:
    for endpoint, call in (("chat", ask), ("speech", say), ("transcriptions", hear)):
        server.fault(endpoint, "cut")  # type: ignore[arg-type]
        with pytest.raises(APIError):
            await call(options=ONCE)
