"""The server of tests/support/openai_server speaks OpenAI's protocol: its own client says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionChunk

from agent.knowledge import FOUND
from agent.models.scripted import SAMPLE_RATE, hum
from tests.support.openai_server import ENDPOINTS, MODELS, OpenAIServer, openai_server
from tests.support.openai_server.audio import wav_of

PASSAGE = f"{FOUND}\n\n[1] opening-hours.md\nOn Saturday we are open from 9 to 13."
QUESTION = "Are you open on Saturday?"
SEARCH: Any = {
    "type": "function",
    "function": {
        "name": "search_knowledge",
        "description": "Look something up.",
        "parameters": {
            "type": "object",
            "properties": {"question": {"type": "string"}},
            "required": ["question"],
            "additionalProperties": False,
        },
        # the SDK's plugin asks for it
        "strict": True,
    },
}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as started:
        yield started


@pytest_asyncio.fixture
async def client(server: OpenAIServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=server.url, api_key="sk-test", max_retries=0
    ) as connected:
        yield connected


# ---------------------------------------------------------------------- what it answers


async def test_it_lists_its_models_and_knows_no_others(
    server: OpenAIServer, client: openai.AsyncOpenAI
) -> None:
    assert {model.id async for model in client.models.list()} == set(MODELS.values())
    assert (await client.models.retrieve("llama3.1")).id == "llama3.1"
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        await client.models.retrieve("llama9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await complete(client, model="llama9")


async def complete(client: openai.AsyncOpenAI, *said: Any, **options: Any) -> Any:
    """A chat completion of what was said."""
    messages = said or ({"role": "user", "content": "hello"},)
    options = {"model": MODELS["chat"], **options}
    return await client.chat.completions.create(messages=messages, **options)


async def test_it_answers_with_the_passage_of_a_system_message(client: openai.AsyncOpenAI) -> None:
    answer = await complete(
        client,
        {"role": "system", "content": "You are friendly."},
        {"role": "system", "content": PASSAGE},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    )
    assert answer.choices[0].message.content == "On Saturday we are open from 9 to 13."
    assert answer.choices[0].finish_reason == "stop"


async def test_it_streams_word_by_word_and_reports_usage_if_asked(
    client: openai.AsyncOpenAI,
) -> None:
    stream = await complete(client, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(words(chunks)) == "Hello! What would you like to know?"
    assert len(words(chunks)) == 7
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    stream = await complete(client, stream=True, stream_options={"include_usage": True})
    *chunks, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage.total_tokens == 15
    assert chunks[-1].choices[0].finish_reason == "stop"


def words(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [text for chunk in chunks for c in chunk.choices if (text := c.delta.content)]


async def test_it_calls_the_search_tool_and_answers_by_its_result(
    client: openai.AsyncOpenAI,
) -> None:
    asked = {"role": "user", "content": QUESTION}
    answer = await complete(client, asked, tools=[SEARCH])
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "search_knowledge",
        {"question": QUESTION},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": PASSAGE}
    answer = await complete(client, asked, message.model_dump(), result, tools=[SEARCH])
    assert answer.choices[0].message.content == "On Saturday we are open from 9 to 13."


async def test_a_history_that_is_cut_between_a_call_and_its_result_is_refused(
    client: openai.AsyncOpenAI,
) -> None:
    asked = {"role": "user", "content": QUESTION}
    function = {"name": "search_knowledge", "arguments": "{}"}
    call = {
        "role": "assistant",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "call_1", "content": PASSAGE}
    with pytest.raises(openai.BadRequestError, match="must be followed by tool messages"):
        await complete(client, asked, call, asked)
    with pytest.raises(openai.BadRequestError, match="must be a response to a preceding"):
        await complete(client, asked, result)


async def test_it_speaks_in_wav_and_in_plain_samples(client: openai.AsyncOpenAI) -> None:
    async def spoken(**options: Any) -> Any:
        return await client.audio.speech.create(
            model=MODELS["speech"], voice="af_heart", input="Hello there!", **options
        )

    assert (await spoken(response_format="pcm")).content == hum("Hello there!")
    answer = await spoken(response_format="wav", extra_body={"stream_format": "sse"})
    assert answer.content == wav_of(hum("Hello there!"))
    assert answer.response.headers["Content-Type"] == "audio/wav"
    with pytest.raises(openai.BadRequestError, match="ask for wav or pcm"):
        await spoken()


async def test_it_hears_what_the_test_has_put_in(
    server: OpenAIServer, client: openai.AsyncOpenAI
) -> None:
    async def heard(sound: bytes, **options: Any) -> Any:
        return await client.audio.transcriptions.create(
            model=MODELS["transcriptions"], file=("file.wav", sound, "audio/wav"), **options
        )

    server.words += ["When are you open?", "Thank you."]
    sound = wav_of(hum("When are you open?"))
    assert (await heard(sound)).text == "When are you open?"
    verbose = await heard(sound, response_format="verbose_json", language="en")
    assert (verbose.text, verbose.segments[0].text) == ("Thank you.", "Thank you.")
    assert server.asked[-1].body["language"] == "en"
    assert server.asked[-1].file == sound
    server.ears = lambda file: f"{len(file)} bytes"
    assert await heard(sound, response_format="text") == f"{len(sound)} bytes"
    with pytest.raises(openai.BadRequestError, match="too short"):
        await heard(wav_of(bytes(2 * SAMPLE_RATE // 20)))
    with pytest.raises(openai.BadRequestError, match="corrupted"):
        await heard(b"no sound")


async def test_texts_about_one_thing_have_vectors_that_are_alike(
    client: openai.AsyncOpenAI,
) -> None:
    # the client asks for base64, unless it is told otherwise
    for options in ({}, {"encoding_format": "float"}):
        answer = await client.embeddings.create(
            model=MODELS["embeddings"],
            input=["my dog", "a poodle", "a refund"],
            **options,  # type: ignore[arg-type]
        )
        dog, poodle, refund = (row.embedding for row in answer.data)
        assert dog == poodle != refund


async def test_what_was_asked_is_known(server: OpenAIServer, client: openai.AsyncOpenAI) -> None:
    await complete(client)
    asked = await server.wait_asked("chat")
    assert (asked.key, asked.body["messages"][0]["content"]) == ("sk-test", "hello")
    assert server.environment == {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-test"}


# ---------------------------------------------------------------------- how it fails

ASK: dict[str, tuple[str, dict[str, Any]]] = {
    "models": ("models", {}),
    "chat": (
        "chat/completions",
        {
            "model": MODELS["chat"],
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
        },
    ),
    "transcriptions": ("audio/transcriptions", {"model": MODELS["transcriptions"]}),
    "speech": (
        "audio/speech",
        {
            "model": MODELS["speech"],
            "voice": "x",
            "input": "Hello there!",
            "response_format": "pcm",
        },
    ),
    "embeddings": ("embeddings", {"model": MODELS["embeddings"], "input": "x"}),
}


def ask(http: aiohttp.ClientSession, endpoint: str) -> Any:
    """Ask an endpoint, without a client that knows the protocol."""
    path, body = ASK[endpoint]
    if endpoint == "models":
        return http.get(path)
    if endpoint == "transcriptions":
        form = aiohttp.FormData(body)
        form.add_field("file", wav_of(hum("hello")), filename="file.wav")
        return http.post(path, data=form)
    return http.post(path, json=body)


@pytest.mark.parametrize("endpoint", [name for name in ENDPOINTS if name != "realtime"])
async def test_every_endpoint_fails_as_it_is_ordered(server: OpenAIServer, endpoint: Any) -> None:
    async with aiohttp.ClientSession(server.url + "/") as http:
        for kind, status, code in (
            ("401", 401, "invalid_api_key"),
            ("429", 429, "rate_limit_exceeded"),
            ("500", 500, None),
        ):
            server.fault(endpoint, kind, retry_after=7)  # type: ignore[arg-type]
            async with ask(http, endpoint) as answer:
                assert answer.status == status
                assert (await answer.json())["error"]["code"] == code
                assert answer.headers.get("Retry-After") == ("7" if kind == "429" else None)
        server.fault(endpoint, "garbage")
        async with ask(http, endpoint) as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
        server.fault(endpoint, "cut")
        async with ask(http, endpoint) as answer:
            assert await answer.content.readany()
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        server.fault(endpoint, "silent")
        async with ask(http, endpoint) as answer:
            assert answer.status == 200
            reading = asyncio.ensure_future(answer.read())
            assert not reading.done()
            server.mend(endpoint)
            with pytest.raises(aiohttp.ClientPayloadError):
                await reading
        server.fault(endpoint, "hang")
        before = len(server.requests(endpoint))
        hanging = asyncio.ensure_future(ask(http, endpoint))
        await server.wait_asked(endpoint, count=before + 1)
        assert not hanging.done()
        hanging.cancel()
        server.mend(endpoint)
        async with ask(http, endpoint) as answer:
            assert answer.status == 200
            assert await answer.read()


async def test_a_fault_may_last_for_some_requests_only(
    server: OpenAIServer, client: openai.AsyncOpenAI
) -> None:
    server.fault("chat", "429", times=2)
    for _ in range(2):
        with pytest.raises(openai.RateLimitError):
            await complete(client)
    await complete(client)
    # OpenAI's client comes back when it is told to
    server.fault("chat", "500", times=1)
    await complete(client.with_options(max_retries=1))
    assert len(server.requests("chat")) == 5
