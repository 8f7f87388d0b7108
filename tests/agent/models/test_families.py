"""Each family of models is built from the settings, without a network, and turn taking with it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
from livekit.agents import (
    NOT_GIVEN,
    AgentSession,
    APIConnectOptions,
    function_tool,
    inference,
    llm,
    stt,
    tts,
    utils,
)
from livekit.plugins import cartesia, deepgram, openai

from agent.models import KEYLESS, MODELS, Models, ModelsUnavailable, models_of
from agent.settings import Settings
from tests.support.openai_server import openai_server
from tests.support.templates import CHOICES

KEYS = {
    "LIVEKIT_API_KEY": "devkey",
    "LIVEKIT_API_SECRET": "a secret of at least thirty-two bytes",
    "OPENAI_API_KEY": "sk-of-openai",
    "DEEPGRAM_API_KEY": "key-of-deepgram",
    "CARTESIA_API_KEY": "key-of-cartesia",
}
SERVERS = {
    "llm_url": "http://llm.test/v1",
    "stt_url": "http://stt.test/v1",
    "tts_url": "http://tts.test/v1",
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENT_MODELS", raising=False)
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


def built(models: str, **changes: Any) -> Models:
    return models_of(Settings(models=models, **changes))  # type: ignore[arg-type]


def test_every_answer_has_its_module_and_every_other_module_needs_no_keys() -> None:
    assert set(CHOICES["models"]) | KEYLESS <= MODELS.keys()


@pytest.mark.parametrize("models", CHOICES["models"])
@pytest.mark.parametrize("mode", ["0", "1"], ids=["start", "dev"])
async def test_a_session_of_each_family_warns_of_nothing(
    models: str, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LIVEKIT_DEV_MODE", mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = built(models, **SERVERS)
        # without the language model, to whose server the session would connect at once
        session = AgentSession[None](
            stt=made.stt or NOT_GIVEN,
            tts=made.tts or NOT_GIVEN,
            vad=made.vad,
            turn_handling=made.turn_handling,
        )
    await session.aclose()

    warned = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert warned == []


# ---------------------------------------------------------------------- thinking


@function_tool
async def opening_hours() -> str:
    """When the shop is open."""
    return "nine to five"


@pytest.mark.parametrize(
    ("models", "changes", "effort"),
    [
        # the default, which OpenAI lets call functions with this effort only
        ("livekit", {}, "none"),
        ("providers", {}, "none"),
        ("livekit", {"llm_model": "openai/gpt-6.1-sol"}, "low"),
        ("providers", {"llm_model": "openai/gpt-6.1-sol"}, "low"),
        # it stands in for one that fails: nobody has that
        ("providers", {"llm_model": "openai/nobodys", "llm_fallback": "openai/gpt-6-luna"}, "none"),
        # names of which the SDK does not know whether they think
        ("livekit", {"llm_model": "google/gemini-2.5-flash"}, None),
        ("providers", {"llm_model": "openai/gpt-4.1-mini"}, None),
        ("selfhosted", {"llm_model": "llama3.1"}, None),
    ],
)
async def test_a_model_that_can_think_is_asked_for_the_least_of_it(
    models: str, changes: dict[str, str], effort: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = llm.ChatContext.empty()
    conversation.add_message(role="user", content="hello")
    async with openai_server() as server, utils.http_context.open():
        server.models |= {"gpt-6-luna", "openai/gpt-6-luna", "gpt-6.1-sol", "openai/gpt-6.1-sol"}
        server.models |= {"google/gemini-2.5-flash", "gpt-4.1-mini"}
        monkeypatch.setenv("LIVEKIT_INFERENCE_URL", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        model = built(models, **{**SERVERS, "llm_url": server.url}, **changes).llm
        assert isinstance(model, llm.LLM)
        once = APIConnectOptions(max_retry=0, timeout=5)
        await model.chat(chat_ctx=conversation, tools=[opening_hours], conn_options=once).collect()
        await model.aclose()

        asked = server.requests("chat")[-1].body
    assert asked["tools"]
    assert asked.get("reasoning_effort") == effort


def test_who_takes_no_effort_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def __init__(self, *, model: str) -> None:
            self.model = model

    monkeypatch.setattr(deepgram, "LLM", Plain, raising=False)

    assert built("providers", llm_model="deepgram/gpt-6-luna").llm.model == "gpt-6-luna"


# ---------------------------------------------------------------------- providers


def test_providers_are_openai_deepgram_and_cartesia_unless_others_are_named() -> None:
    made = built("providers")

    assert isinstance(made.llm, openai.LLM)
    assert isinstance(made.stt, deepgram.STT)
    assert isinstance(made.tts, cartesia.TTS)
    assert (made.llm.model, made.stt.model, made.tts.model) == (
        *("gpt-6-luna", "nova-3", "sonic-3"),
    )
    assert made.tts._opts.voice == Settings.model_fields["tts_voice"].default


@pytest.mark.parametrize(
    ("changes", "part", "kind", "model"),
    [
        ({"llm_model": "openai/gpt-5.6-luna"}, "llm", openai.LLM, "gpt-5.6-luna"),
        ({"stt_model": "openai/whisper-1"}, "stt", openai.STT, "whisper-1"),
        ({"stt_model": "cartesia/ink-whisper"}, "stt", cartesia.STT, "ink-whisper"),
        ({"tts_model": "openai/tts-1", "tts_voice": "ash"}, "tts", openai.TTS, "tts-1"),
        # its voices are models
        ({"tts_model": "deepgram/aura-2-luna-en"}, "tts", deepgram.TTS, "aura-2-luna-en"),
    ],
)
def test_each_is_replaced_by_one_setting(
    changes: dict[str, str], part: str, kind: type[Any], model: str
) -> None:
    made: Any = getattr(built("providers", **changes), part)

    assert (type(made), made.model) == (kind, model)


@pytest.mark.parametrize(
    ("language", "heard", "spoken"), [("multi", "multi", "en"), ("de", "de", "de")]
)
def test_callers_are_heard_and_answered_in_their_language(
    language: str, heard: str, spoken: str
) -> None:
    made = built("providers", stt_language=language)

    assert isinstance(made.stt, deepgram.STT)
    assert isinstance(made.tts, cartesia.TTS)
    assert (made.stt._opts.language, made.tts._opts.language) == (heard, spoken)


@pytest.mark.parametrize(("language", "detects"), [("multi", True), ("de", False)])
def test_who_does_not_know_deepgrams_word_detects_the_language(
    language: str, detects: bool
) -> None:
    made = built("providers", stt_model="openai/whisper-1", stt_language=language).stt

    assert isinstance(made, openai.STT)
    assert made._opts.detect_language == detects
    assert made._opts.languages == ([] if detects else ["de"])


def test_one_that_stands_in_is_asked_when_the_first_fails() -> None:
    made = built(
        "providers",
        llm_fallback="openai/gpt-5.6-luna",
        stt_fallback="openai/whisper-1",
        tts_fallback="openai/tts-1:ash",
    )

    assert isinstance(made.llm, llm.FallbackAdapter)
    assert isinstance(made.stt, stt.FallbackAdapter)
    assert isinstance(made.tts, tts.FallbackAdapter)
    assert [one.model for one in made.llm._llm_instances] == ["gpt-6-luna", "gpt-5.6-luna"]
    first, second = made.tts._tts_instances
    assert isinstance(first, cartesia.TTS)
    assert isinstance(second, openai.TTS)
    assert second._opts.voice == "ash"
    # words are streamed, although the second recogniser takes whole recordings
    assert made.stt.capabilities.streaming


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llm_model": "gpt-5.6-luna"}, r"AGENT_LLM_MODEL is 'gpt-5.6-luna': write provider/model"),
        ({"stt_model": "nobody/x"}, r"AGENT_STT_MODEL=nobody/x .*`uv add livekit-plugins-nobody`"),
        ({"llm_fallback": "cartesia/x"}, r"AGENT_LLM_FALLBACK=cartesia/x: the plugin has no LLM"),
        (
            {"tts_model": "deepgram/aura-2-luna-en", "tts_voice": "luna"},
            r"AGENT_TTS_MODEL=deepgram/aura-2-luna-en: the plugin takes no voice",
        ),
    ],
)
def test_what_cannot_be_built_is_one_sentence(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ModelsUnavailable, match=said):
        built("providers", **changes)


@pytest.mark.parametrize("key", ["OPENAI_API_KEY", "DEEPGRAM_API_KEY", "CARTESIA_API_KEY"])
def test_a_missing_key_is_named(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(key)

    with pytest.raises(ModelsUnavailable, match=rf"{key}.*put its key into \.env\.local"):
        built("providers")


# ---------------------------------------------------------------------- selfhosted


def test_each_model_is_asked_at_its_own_server_with_its_own_key() -> None:
    made = built(
        "selfhosted", **SERVERS, llm_key="llm-key", stt_key="stt-key", tts_voice="af_heart"
    )

    parts = (made.llm, made.stt, made.tts)
    assert [part._client.base_url.host for part in parts if part] == [  # type: ignore[union-attr]
        *("llm.test", "stt.test", "tts.test")
    ]
    # never the key of OpenAI, which is in this environment
    assert [part._client.api_key for part in parts if part] == [  # type: ignore[union-attr]
        *("llm-key", "stt-key", "not-needed")
    ]
    assert isinstance(made.tts, openai.TTS)
    assert (made.tts._opts.voice, made.tts._opts.response_format) == ("af_heart", "wav")


@pytest.mark.parametrize("missing", SERVERS)
def test_a_missing_server_is_named(missing: str) -> None:
    with pytest.raises(ModelsUnavailable, match=f"AGENT_{missing.upper()} is missing"):
        built("selfhosted", **{**SERVERS, missing: ""})


# ---------------------------------------------------------------------- realtime


def test_a_realtime_model_is_alone_and_takes_turns_by_itself() -> None:
    made = built("realtime", realtime_model="gpt-realtime-2.1-mini", realtime_voice="cedar")

    assert isinstance(made.llm, openai.realtime.RealtimeModel)
    assert (made.llm.model, made.llm._opts.voice) == ("gpt-realtime-2.1-mini", "cedar")
    assert (made.stt, made.tts, made.vad) == (None, None, None)
    assert made.turn_handling == {"turn_detection": "realtime_llm"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "sk-of-openai"),
        ({"realtime_key": "theirs"}, "theirs"),
        ({"realtime_url": "http://rt.test/v1", "realtime_key": "theirs"}, "theirs"),
        # never the key of OpenAI, which is in this environment
        ({"realtime_url": "http://rt.test/v1"}, "not-needed"),
    ],
)
def test_a_realtime_server_gets_its_own_key(changes: dict[str, str], key: str) -> None:
    made = built("realtime", **changes).llm

    assert isinstance(made, openai.realtime.RealtimeModel)
    assert made._opts.api_key == key
    host = "rt.test" if "realtime_url" in changes else "api.openai.com"
    assert made.provider == host


def test_a_realtime_model_without_a_key_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")

    with pytest.raises(ModelsUnavailable, match=r"OPENAI_API_KEY.*\.env\.local"):
        built("realtime")


# ---------------------------------------------------------------------- the voice


def test_a_voice_that_was_not_chosen_is_not_given_to_another_provider() -> None:
    assert Settings().voice == Settings.model_fields["tts_voice"].default
    assert Settings(tts_model="elevenlabs/eleven_flash_v2_5").voice == ""
    assert Settings(tts_model="elevenlabs/x", tts_voice="theirs").voice == "theirs"


# ---------------------------------------------------------------------- turn taking


def hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiveKit Cloud runs this agent."""
    monkeypatch.setenv("LIVEKIT_REMOTE_EOT_URL", "https://eot.test")


@pytest.mark.parametrize("models", [one for one in CHOICES["models"] if one != "realtime"])
@pytest.mark.parametrize(
    ("on_cloud", "model", "mode"),
    [(False, "turn-detector-v1-mini", "vad"), (True, "turn-detector-v1", "adaptive")],
    ids=["own machine", "LiveKit Cloud"],
)
def test_turns_are_taken_as_is_best_where_the_agent_runs(
    models: str, on_cloud: bool, model: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_cloud:
        hosted(monkeypatch)
    # not a reason to ask the cloud, as the SDK has it
    monkeypatch.setenv("LIVEKIT_DEV_MODE", "1")
    handling = built(models, **SERVERS).turn_handling

    detection = handling["turn_detection"]
    assert isinstance(detection, inference.TurnDetector)
    assert detection.model == model
    assert handling["interruption"] == {"mode": mode}


@pytest.mark.parametrize("on_cloud", [False, True])
def test_what_is_set_is_so_wherever_the_agent_runs(
    on_cloud: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_cloud:
        hosted(monkeypatch)
    local = built("livekit", turn_detection="local", interruptions="vad").turn_handling
    cloud = built("livekit", turn_detection="cloud", interruptions="adaptive").turn_handling

    assert getattr(local["turn_detection"], "model", "") == "turn-detector-v1-mini"
    assert getattr(cloud["turn_detection"], "model", "") == "turn-detector-v1"
    assert local["interruption"] == {"mode": "vad"}
    assert cloud["interruption"] == {"mode": "adaptive"}
    for mode in ("vad", "stt"):
        assert built("livekit", turn_detection=mode).turn_handling["turn_detection"] == mode
    assert built("livekit", interruptions="off").turn_handling["interruption"] == {"enabled": False}


def test_the_cloud_detector_without_keys_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIVEKIT_API_KEY")

    with pytest.raises(ModelsUnavailable, match=r"LIVEKIT_API_KEY.*AGENT_TURN_DETECTION=local"):
        built("providers", turn_detection="cloud")


@pytest.mark.parametrize(
    ("changes", "delays"),
    [
        ({}, (0.3, 2.5)),
        ({"turn_detection": "vad"}, (0.5, 3.0)),
        ({"min_endpointing_seconds": 0.2, "max_endpointing_seconds": 4}, (0.2, 4.0)),
    ],
)
async def test_a_pause_ends_a_turn_after_as_long_as_the_settings_say(
    changes: dict[str, Any], delays: tuple[float, float]
) -> None:
    session = AgentSession[None](turn_handling=built("livekit", **changes).turn_handling)
    endpointing = session.options.endpointing
    await session.aclose()

    assert (endpointing["min_delay"], endpointing["max_delay"]) == delays
