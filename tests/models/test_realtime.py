"""The stand-in's realtime endpoint: its events are OpenAI's, and the SDK's plugin talks to it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, function_tool, llm, utils
from livekit.plugins import openai
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from agent.models.scripted import SAMPLE_RATE, hum
from tests.support.openai_server import MODELS, Kind, OpenAIServer, openai_server

EVENTS: TypeAdapter[RealtimeServerEvent] = TypeAdapter(RealtimeServerEvent)
PATIENCE = 60
SAMPLES = hum("When are you open?")
SILENCE = bytes(2 * SAMPLE_RATE)
SEARCH = {
    "type": "function",
    "name": "search_knowledge",
    "description": "Look something up.",
    "parameters": {"type": "object", "properties": {"question": {"type": "string"}}},
}


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIServer]:
    async with openai_server() as started, utils.http_context.open():
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


# ---------------------------------------------------------------------- the protocol


class Talk:
    """A connection; every event that comes is held against OpenAI's own types."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, type_: str, **rest: Any) -> None:
        await self.socket.send_json({"type": type_, "event_id": f"my {type_}", **rest})

    async def until(self, type_: str) -> list[dict[str, Any]]:
        """The next events, to the first of this type."""
        events: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE):
            while not events or events[-1]["type"] != type_:
                event = json.loads(await self.socket.receive_str())
                EVENTS.validate_python(event)
                events.append(event)
        return events

    async def speak(self, samples: bytes) -> None:
        """Send sound, in pieces of 100 ms."""
        for at in range(0, len(samples), 4800):
            sound = base64.b64encode(samples[at : at + 4800]).decode()
            await self.send("input_audio_buffer.append", audio=sound)


@asynccontextmanager
async def connected(server: OpenAIServer, **session: Any) -> AsyncIterator[Talk]:
    url = f"{server.url}/realtime?model={MODELS['realtime']}"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        talk = Talk(socket)
        await talk.until("session.created")
        await talk.send("session.update", session={"type": "realtime", **session})
        await talk.until("session.updated")
        yield talk


def text(role: str, words: str, **rest: Any) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {
        "type": "message",
        "role": role,
        "content": [{"type": kind, "text": words}],
        **rest,
    }


def audio_of(events: list[dict[str, Any]]) -> bytes:
    sounds = [e["delta"] for e in events if e["type"] == "response.output_audio.delta"]
    return b"".join(base64.b64decode(sound) for sound in sounds)


async def test_a_written_question_gets_a_spoken_answer_with_its_words(
    server: OpenAIServer,
) -> None:
    async with connected(server) as talk:
        await talk.send("conversation.item.create", item=text("user", "hello"))
        await talk.until("conversation.item.done")
        await talk.send("response.create", response={"metadata": {"client_event_id": "mine"}})
        events = await talk.until("response.done")
    said = "Hello! What would you like to know?"
    kind = "response.output_audio_transcript.delta"
    assert "".join(e["delta"] for e in events if e["type"] == kind) == said
    assert audio_of(events) == hum(said)
    response = events[-1]["response"]
    assert (response["status"], response["metadata"]) == ("completed", {"client_event_id": "mine"})
    assert response["output"][0]["content"][0]["transcript"] == said


async def test_a_written_answer_has_no_sound(server: OpenAIServer) -> None:
    async with connected(server, output_modalities=["text"]) as talk:
        await talk.send("response.create", response={"instructions": 'Say "Welcome!", please.'})
        events = await talk.until("response.done")
    assert audio_of(events) == b""
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Welcome!"


async def test_a_tool_is_called_and_its_result_is_spoken(server: OpenAIServer) -> None:
    async with connected(server, tools=[SEARCH]) as talk:
        await talk.send("conversation.item.create", item=text("user", "Are you open?"))
        await talk.send("response.create")
        call = (await talk.until("response.done"))[-1]["response"]["output"][0]
        assert (call["type"], call["name"]) == ("function_call", "search_knowledge")
        assert json.loads(call["arguments"]) == {"question": "Are you open?"}
        result = {"type": "function_call_output", "call_id": call["call_id"]}
        result["output"] = "From our documents, for what the caller has just said:\n\n[1] a\nYes."
        await talk.send("conversation.item.create", item=result)
        await talk.send("response.create")
        answer = (await talk.until("response.done"))[-1]["response"]["output"][0]
        assert answer["content"][0]["transcript"] == "Yes."


async def test_a_spoken_turn_is_found_transcribed_and_answered(server: OpenAIServer) -> None:
    server.words.append("hello")
    async with connected(server, audio={"input": {"transcription": {"model": "x"}}}) as talk:
        await talk.speak(SILENCE + SAMPLES + SILENCE)
        events = await talk.until("response.done")
    kinds = [event["type"] for event in events]
    order = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "response.done",
    ]
    assert [kind for kind in kinds if kind in order][:5] == order[:5]
    started, stopped = (event for event in events if event["type"] in order[:2])
    spoken = len(SAMPLES) / 2 / SAMPLE_RATE
    assert 500 <= started["audio_start_ms"] <= 1000
    assert stopped["audio_end_ms"] / 1000 == pytest.approx(1 + spoken + 0.5, abs=0.3)
    assert audio_of(events) == hum("Hello! What would you like to know?")


async def test_who_speaks_into_an_answer_interrupts_it(server: OpenAIServer) -> None:
    server.words += ["hello", "stop"]
    server.script = lambda *_: "This goes on " + "and on " * 200
    async with connected(server) as talk:
        await talk.speak(SAMPLES + SILENCE)
        await talk.until("response.output_audio.delta")
        await talk.speak(SAMPLES)
        events = await talk.until("response.done")
    assert events[-1]["response"]["status"] == "cancelled"
    assert events[-1]["response"]["status_details"]["reason"] == "turn_detected"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_a_client_may_detect_turns_by_itself(server: OpenAIServer) -> None:
    server.words.append("thank you")
    async with connected(server, audio={"input": {"turn_detection": None}}) as talk:
        await talk.speak(SAMPLES + SILENCE)
        await talk.send("input_audio_buffer.commit")
        committed = (await talk.until("input_audio_buffer.committed"))[-1]
        item = (await talk.until("conversation.item.done"))[-1]["item"]
        assert (item["id"], item["role"]) == (committed["item_id"], "user")


async def test_transcription_alone_is_never_answered(server: OpenAIServer) -> None:
    """As speech-to-text asks for it."""
    server.words.append("hello")
    url = f"{server.url}/realtime?intent=transcription"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        talk = Talk(socket)
        heard = {"transcription": {"model": "whisper-tiny"}}
        session = {"type": "transcription", "audio": {"input": heard}}
        await talk.send("session.update", session=session)
        await talk.speak(SAMPLES + SILENCE)
        kind = "conversation.item.input_audio_transcription.completed"
        assert (await talk.until(kind))[-1]["transcript"] == "hello"


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "nonsense"}, "invalid_value"),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        ({"type": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id"),
        ({"type": "session.update", "session": {}}, "missing_required_parameter"),
        (
            {"type": "conversation.item.create", "item": text("user", "x", id="known")},
            "item_create_duplicate_item_id",
        ),
        (
            {"type": "conversation.item.create", "item": text("user", "x", id="x" * 33)},
            "string_above_max_length",
        ),
    ],
)
async def test_what_the_protocol_does_not_have_is_an_error(
    server: OpenAIServer, event: dict[str, Any], code: str
) -> None:
    async with connected(server) as talk:
        item = text("user", "hello", id="known")
        await talk.send("conversation.item.create", item=item)
        await talk.until("conversation.item.done")
        await talk.send(event.pop("type"), **event)
        error = (await talk.until("error"))[-1]["error"]
        assert error["code"] == code
        assert error["event_id"].startswith("my ")
        # and the connection goes on
        await talk.send("response.create")
        await talk.until("response.done")


# ---------------------------------------------------------------------- the SDK's plugin


class Plugin:
    """A session of the SDK's realtime model, and what it tells of."""

    def __init__(self) -> None:
        options = APIConnectOptions(max_retry=0, timeout=5)
        model = openai.realtime.RealtimeModel(model=MODELS["realtime"], conn_options=options)
        self.session = model.session()
        self.told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        for name in (
            "error",
            "generation_created",
            "input_speech_started",
            "input_speech_stopped",
            "input_audio_transcription_completed",
        ):
            self.session.on(name, lambda event, name=name: self.told.put_nowait((name, event)))

    async def tells(self, name: str) -> Any:
        """Wait for an event of this name."""
        async with asyncio.timeout(PATIENCE):
            while True:
                kind, event = await self.told.get()
                if kind == name:
                    return event

    async def speak(self, samples: bytes) -> None:
        """What the caller says."""
        for at in range(0, len(samples), 4800):
            part = samples[at : at + 4800]
            self.session.push_audio(rtc.AudioFrame(part, SAMPLE_RATE, 1, len(part) // 2))


@pytest_asyncio.fixture
async def plugin(server: OpenAIServer) -> AsyncIterator[Plugin]:
    started = Plugin()
    yield started
    # after a failure it raises what has failed
    await asyncio.gather(started.session.aclose(), return_exceptions=True)


async def said(generation: llm.GenerationCreatedEvent) -> tuple[str, bytes]:
    """The words and the sound of a generation."""
    words, sound = "", b""
    async for message in generation.message_stream:
        words += "".join([part async for part in message.text_stream])
        sound += b"".join([bytes(frame.data) async for frame in message.audio_stream])
    return words, sound


async def test_the_plugin_greets_hears_and_answers(server: OpenAIServer, plugin: Plugin) -> None:
    greeting = await plugin.session.generate_reply(instructions='Say exactly: "Hello there!"')
    assert await said(greeting) == ("Hello there!", hum("Hello there!"))
    server.words.append("Thank you.")
    await plugin.speak(SAMPLES + SILENCE)
    await plugin.tells("input_speech_started")
    await plugin.tells("input_speech_stopped")
    while not (heard := await plugin.tells("input_audio_transcription_completed")).is_final:
        pass
    assert heard.transcript == "Thank you."
    answer = await plugin.tells("generation_created")
    assert (await said(answer))[0] == "You are welcome."
    assert [item.text_content for item in plugin.session.chat_ctx.messages()][1] == "Thank you."


@function_tool
async def search_knowledge(question: str) -> str:
    """Look something up.

    Args:
        question: What is asked.
    """
    return ""


async def test_the_plugin_calls_tools_and_carries_a_conversation_over(
    server: OpenAIServer, plugin: Plugin
) -> None:
    conversation = llm.ChatContext.empty()
    conversation.add_message(role="system", content="The caller's name is Ann.")
    conversation.add_message(role="assistant", content="Hello!")
    conversation.add_message(role="user", content="Are you open?")
    await plugin.session.update_chat_ctx(conversation)
    await plugin.session.update_tools([search_knowledge])
    await plugin.session.update_instructions("Be brief.")
    generation = await plugin.session.generate_reply()
    (call,) = [call async for call in generation.function_stream]
    assert (call.name, call.arguments) == ("search_knowledge", '{"question": "Are you open?"}')
    conversation = plugin.session.chat_ctx.copy()
    output = "From our documents, for what the caller has just said:\n\n[1] a\nYes."
    conversation.insert(
        llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output=output, is_error=False)
    )
    await plugin.session.update_chat_ctx(conversation)
    assert (await said(await plugin.session.generate_reply()))[0] == "Yes."
    assert [asked.body["error"] for asked in server.asked if "error" in asked.body] == []


@pytest.mark.parametrize("kind", ["401", "429", "500"])
async def test_the_plugin_is_refused(server: OpenAIServer, kind: Kind) -> None:
    server.fault("realtime", kind)
    plugin = Plugin()
    error = await plugin.tells("error")
    assert isinstance(error.error, APIError)
    assert not error.recoverable
    await asyncio.gather(plugin.session.aclose(), return_exceptions=True)


@pytest.mark.parametrize(("kind", "goes_on"), [("401", False), ("429", True), ("500", True)])
async def test_a_response_fails_in_an_open_session(
    server: OpenAIServer, plugin: Plugin, kind: Kind, goes_on: bool
) -> None:
    await server.wait_asked("realtime", "session.update")
    server.fault("realtime", kind, times=1)
    generation = await plugin.session.generate_reply()
    error = await plugin.tells("error")
    assert error.recoverable == goes_on
    assert await said(generation) == ("", b"")
    if goes_on:
        assert (await said(await plugin.session.generate_reply()))[0].startswith("Hello!")


async def test_a_connection_that_is_cut_ends_the_answer(
    server: OpenAIServer, plugin: Plugin
) -> None:
    await server.wait_asked("realtime", "session.update")
    server.fault("realtime", "cut")
    generation = await plugin.session.generate_reply(instructions='Say "A long sentence, is it?"')
    _, sound = await said(generation)
    assert (await plugin.tells("error")).error is not None
    whole = hum("A long sentence, is it?")
    assert 0 < len(sound) < len(whole)
    assert np.array_equal(
        np.frombuffer(sound, "<i2"), np.frombuffer(whole, "<i2")[: len(sound) // 2]
    )
