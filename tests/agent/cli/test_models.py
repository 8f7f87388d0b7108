"""`doctor`, `start` and `chat` and the models: what each says of a key, a name or a server."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import ModuleType
from typing import Any

import pytest
from livekit.agents import APIConnectOptions, llm
from livekit.plugins import openai

from agent.cli import models as asked
from agent.cli.chat import Chat, with_models
from agent.cli.checks import Finding, check_models
from agent.cli.models import ask_stt, model_findings
from agent.conversation import CallAgent
from agent.conversation.fallback import alternatives
from agent.models import Models, models_of
from agent.settings import Settings
from agent.transport import Caller
from tests.support.openai_server import (
    ENDPOINTS,
    MODELS,
    Endpoint,
    Kind,
    OpenAIServer,
    openai_server,
)

NAMES: dict[Endpoint, tuple[str, str]] = {
    "chat": ("LLM", MODELS["chat"]),
    "transcriptions": ("STT", MODELS["transcriptions"]),
    "speech": ("TTS", MODELS["speech"]),
}


def on_own_server(models: str) -> Settings:
    """Settings with a server that has no LiveKit Inference."""
    given = {"models": models, "livekit_url": "ws://127.0.0.1:7880", "livekit_api_key": "devkey"}
    return Settings.model_validate(given)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[OpenAIServer]:
    """A server beside the command, which has its own event loop."""
    ready, over = Future[OpenAIServer](), threading.Event()

    async def serve() -> None:
        async with openai_server() as server:
            ready.set_result(server)
            await asyncio.to_thread(over.wait)

    serving = threading.Thread(target=lambda: asyncio.run(serve()))
    serving.start()
    yield ready.result(10)
    over.set()
    serving.join()


@pytest.fixture
def server(shared_server: OpenAIServer) -> Iterator[OpenAIServer]:
    shared_server.asked.clear()
    yield shared_server
    shared_server.refuses_by_event = False
    for endpoint in ENDPOINTS:
        shared_server.mend(endpoint)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an answer takes its time."""
    monkeypatch.setattr(asked, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(asked, "ONCE", APIConnectOptions(max_retry=0, timeout=60.0))


def selfhosted(server: OpenAIServer, **changes: Any) -> Settings:
    """Settings of a project whose models are all on this server."""
    settings: dict[str, Any] = {
        "models": "selfhosted",
        **{f"{part}_url": server.url for part in ("llm", "stt", "tts")},
        **{f"{kind.lower()}_model": model for kind, model in NAMES.values()},
    }
    return Settings(**{**settings, **changes})


def owners(monkeypatch: pytest.MonkeyPatch, persona: type[CallAgent]) -> None:
    """The owner's persona."""
    module = ModuleType("agent.persona")
    module.__dict__.update(Persona=persona)
    monkeypatch.setitem(sys.modules, "agent.persona", module)


def test_models_that_answer_are_asked_one_cheap_question_each(server: OpenAIServer) -> None:
    assert model_findings(selfhosted(server), "fail") == []

    questions = {one.endpoint: one.body for one in server.asked}
    assert len(server.asked) == len(questions) == 3
    assert questions["speech"]["input"] == "Yes."
    assert [message["role"] for message in questions["chat"]["messages"]] == ["user"]


@pytest.mark.parametrize("endpoint", NAMES)
def test_a_refused_key_is_found_and_not_repeated(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.fault(endpoint, "401")
    kind, model = NAMES[endpoint]

    [found] = model_findings(selfhosted(server, llm_key="sk-secret-key"), "warn")

    assert found.level == "fail"
    assert found.what.startswith(f"{kind} {model} of 127.0.0.1:")
    assert found.sentence.endswith(f"refuses the key (401): correct AGENT_{kind}_KEY")
    assert "secret" not in found.sentence


@pytest.mark.parametrize("endpoint", NAMES)
def test_a_model_that_the_server_does_not_know_is_found(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    kind, _ = NAMES[endpoint]

    [found] = model_findings(selfhosted(server, **{f"{kind.lower()}_model": "nobody"}), "warn")

    assert found.level == "fail"
    assert "The model `nobody` does not exist" in found.what
    voice = " or AGENT_TTS_VOICE" if kind == "TTS" else ""
    assert found.cure == f"correct AGENT_{kind}_MODEL{voice} or AGENT_{kind}_URL"


def test_a_voice_that_would_be_mute_is_found(server: OpenAIServer) -> None:
    server.fault("speech", "garbage")

    [found] = model_findings(selfhosted(server), "warn")

    assert found.level == "fail"
    assert "gives no sound" in found.what


def test_a_language_model_that_says_nothing_is_found(server: OpenAIServer) -> None:
    server.fault("chat", "garbage")

    [found] = model_findings(selfhosted(server), "warn")

    assert (found.level, found.what.endswith("answers nothing")) == ("fail", True)


@pytest.mark.parametrize("kind", ["429", "500", "hang", "silent"])
@pytest.mark.parametrize("endpoint", NAMES)
def test_what_may_pass_fails_for_doctor_and_is_a_warning_at_start(
    server: OpenAIServer, endpoint: Endpoint, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("hang", "silent"):
        monkeypatch.setattr(asked, "ANSWER_SECONDS", 1.0)
    server.fault(endpoint, kind)
    settings, (part, _) = selfhosted(server), NAMES[endpoint]
    failed = check_models(settings)
    warned = check_models(settings, unreachable="warn")

    # on a busy machine the others may be late too
    assert [found.level for found in failed if found.what.startswith(part)] == ["fail"]
    assert [found.level for found in warned if found.what.startswith(part)] == ["warn"]


def test_a_server_that_is_not_there_is_named(server: OpenAIServer) -> None:
    [found] = model_findings(selfhosted(server, stt_url="http://127.0.0.1:1/v1"), "fail")

    refused = "STT whisper-tiny of 127.0.0.1:1 cannot be asked (ConnectionRefusedError: "
    assert found.sentence.startswith(refused)
    assert found.cure == "start its server, or correct AGENT_STT_URL"


def test_a_key_that_cannot_be_sent_is_not_shown(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Persona(CallAgent):
        @classmethod
        def models(cls, settings: Settings) -> Models:
            model = openai.LLM(model=MODELS["chat"], base_url=server.url, api_key="sk-secret\n")
            turns = models_of(settings.model_copy(update={"models": "scripted"})).turn_handling
            return Models(model, None, None, None, turns)

    owners(monkeypatch, Persona)

    [found] = model_findings(Settings(models="livekit"), "fail")

    assert "Illegal header value" in found.what
    assert "sk-secret" not in found.sentence


def test_the_sdk_adds_no_record_of_its_own(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault("speech", "garbage")
    before = logging.getLogger("livekit").level

    model_findings(selfhosted(server), "fail")

    assert [one for one in caplog.records if one.name.startswith("livekit")] == []
    assert logging.getLogger("livekit").level == before


def test_those_that_stand_in_are_asked_too(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Persona(CallAgent):
        @classmethod
        def models(cls, settings: Settings) -> Models:
            first, second = (
                openai.LLM(model=name, base_url=server.url, api_key="key")
                for name in (MODELS["chat"], "nobody")
            )
            models = models_of(settings.model_copy(update={"models": "scripted"}))
            adapter = llm.FallbackAdapter([first, second])
            return Models(adapter, None, None, None, models.turn_handling)

    owners(monkeypatch, Persona)

    [found] = model_findings(Settings(models="livekit"), "fail")

    assert len(server.asked) == 2
    assert found.what.startswith("LLM nobody of 127.0.0.1:")
    # there is no setting that would correct it
    assert found.cure == "correct its model's name"


def test_a_personas_models_are_asked_and_no_others(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []

    class Persona(CallAgent):
        @classmethod
        def models(cls, settings: Settings) -> Models:
            chosen.append(settings.models)
            return models_of(selfhosted(server))

    owners(monkeypatch, Persona)
    assert model_findings(on_own_server("livekit"), "fail") == []
    assert {one.endpoint for one in server.asked} == set(NAMES)
    server.asked.clear()
    assert model_findings(on_own_server("scripted"), "fail") == []
    assert (chosen, server.asked) == (["livekit"], [])


def realtime(server: OpenAIServer, **changes: Any) -> Settings:
    """Settings of a project whose realtime model is on this server."""
    settings = {"models": "realtime", "realtime_url": server.url, "realtime_key": "sk-secret-key"}
    return Settings.model_validate({**settings, **changes})


def test_a_realtime_model_that_answers_is_asked_for_a_word(server: OpenAIServer) -> None:
    assert model_findings(realtime(server), "fail") == []

    assert len(server.requests("realtime", "connect")) == 1
    assert len(server.requests("realtime", "response.create")) == 1
    assert {one.key for one in server.asked} == {"sk-secret-key"}


@pytest.mark.parametrize("by_event", [True, False], ids=["as OpenAI", "as other servers"])
@pytest.mark.parametrize(
    ("kind", "model", "said"),
    [
        ("401", MODELS["realtime"], r"refuses the key \(401\): correct AGENT_REALTIME_KEY"),
        (None, "nobody", r"refuses \(.+\): correct AGENT_REALTIME_MODEL or AGENT_REALTIME_URL"),
    ],
)
def test_a_realtime_server_that_refuses_is_found(
    server: OpenAIServer, kind: Kind | None, model: str, said: str, by_event: bool
) -> None:
    server.refuses_by_event = by_event
    if kind is not None:
        server.fault("realtime", kind)

    [found] = model_findings(realtime(server, realtime_model=model), "warn")

    assert found.level == "fail"
    assert found.what.startswith(f"REALTIME {model} of 127.0.0.1:")
    assert re.search(f"{said}$", found.sentence)
    assert "secret" not in found.sentence
    assert ("The model `nobody` does not exist" in found.what) == (by_event and kind is None)


@pytest.mark.parametrize("kind", ["429", "500", "hang", "silent", "cut", "garbage"])
def test_a_realtime_server_that_may_answer_later_is_a_warning_at_start(
    server: OpenAIServer, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("hang", "silent"):
        monkeypatch.setattr(asked, "ANSWER_SECONDS", 1.0)
    server.fault("realtime", kind)

    assert [found.level for found in check_models(realtime(server))] == ["fail"]
    assert [found.level for found in check_models(realtime(server), unreachable="warn")] == ["warn"]


@pytest.mark.parametrize("kind", ["401", "429", "500", "silent"])
def test_a_realtime_model_that_fails_its_reply_is_found(
    server: OpenAIServer, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "silent":
        monkeypatch.setattr(asked, "ANSWER_SECONDS", 1.0)
    # that is, once the connection is there
    server.fault("realtime", kind, after=1)

    [found] = model_findings(realtime(server), "warn")

    assert found.level == ("fail" if kind == "401" else "warn")


def test_a_realtime_server_that_is_not_there_is_named(server: OpenAIServer) -> None:
    there = realtime(server, realtime_url="http://127.0.0.1:1/v1")
    [found] = model_findings(there, "fail")

    assert found.sentence.startswith("REALTIME gpt-realtime-2.1 of 127.0.0.1:1 cannot be asked (")
    assert found.cure == "start its server, or correct AGENT_REALTIME_URL"


def test_a_personas_realtime_model_is_asked_too(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Persona(CallAgent):
        @classmethod
        def models(cls, settings: Settings) -> Models:
            return models_of(realtime(server))

    owners(monkeypatch, Persona)
    server.fault("realtime", "401")

    [found] = model_findings(Settings(models="livekit"), "warn")

    assert found.sentence.endswith("refuses the key (401): correct its key")


def test_an_error_of_a_personas_is_reported_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Persona(CallAgent):
        @classmethod
        def models(cls, settings: Settings) -> Models:
            raise KeyError("MY_VOICE")

    owners(monkeypatch, Persona)

    [found] = model_findings(Settings(models="livekit"), "fail")

    assert found.level == "fail"
    assert found.what == "your persona's models cannot be built: KeyError"
    assert found.cure.startswith("'MY_VOICE' (test_models.py, line ")


def test_inference_with_keys_of_its_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def findings() -> list[Finding]:
        return asked.inference_elsewhere(on_own_server("livekit"))

    assert [found.level for found in findings()] == ["warn"]
    monkeypatch.setenv("LIVEKIT_INFERENCE_API_KEY", "key")
    assert findings() == []


async def test_a_streaming_recogniser_is_asked_and_let_go(server: OpenAIServer) -> None:
    """Those of Deepgram and LiveKit Inference are; here the adapter of one that is not."""
    from livekit.agents import inference, stt

    (recogniser,) = alternatives(models_of(selfhosted(server)).stt)
    streaming = stt.StreamAdapter(stt=recogniser, vad=inference.VAD(model="silero"))
    assert streaming.capabilities.streaming

    async with asyncio.timeout(60):
        await ask_stt(streaming)


async def test_a_chat_with_a_realtime_model_leaves_no_connection_open(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = realtime(server, knowledge="none", memory_url="none")
    chat = Chat(settings, Caller("ann"), "")

    assert await chat.start()
    assert await chat.say("Thank you.") == "You are welcome."
    assert await chat.close() == ""

    gc.collect()
    assert [one for one in caplog.messages if "Unclosed" in one] == []


def test_chat_answers_by_a_script_where_the_models_lack_something(
    server: OpenAIServer, capsys: pytest.CaptureFixture[str]
) -> None:
    there = selfhosted(server)
    missing = selfhosted(server, tts_url="")

    assert with_models(there) is there
    assert with_models(missing).models == "scripted"
    said = capsys.readouterr().err
    assert said.startswith("AGENT_TTS_URL is missing: ")
    assert said.endswith("so a script answers from your documents (AGENT_MODELS=scripted).\n")
    # nobody is asked before the conversation needs it
    assert server.asked == []
