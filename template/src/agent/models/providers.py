"""Models of providers of your choice, by the SDK's plugins and with a key of each.

A model is named `provider/model`, such as `deepgram/nova-3`: any provider for which LiveKit has a
plugin (`uv add livekit-plugins-NAME`). Its key is the plugin's own variable, such as
DEEPGRAM_API_KEY in `.env.local`.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, Literal

from livekit.agents import inference, llm, stt, tts
from livekit.agents.inference.llm import min_reasoning_effort

from agent import one_line
from agent.models import Models, ModelsUnavailable
from agent.models.turns import turn_handling_of
from agent.settings import Settings

# what plugins call the same thing, the usual name first
NAMES = {
    "model": ("model", "model_id", "model_name"),
    "language": ("language", "languages", "language_code"),
    "voice": ("voice", "voice_id", "voice_name", "speaker"),
}


def build(settings: Settings) -> Models:
    """Build the models without connecting; raises ModelsUnavailable, such as for a missing key."""
    vad = inference.VAD(model="silero")
    llms, stts, ttss = llms_of(settings), stts_of(settings), ttss_of(settings)
    return Models(
        # each fails within its share of AGENT_REPLY_SECONDS: another one is quicker than a retry
        llm=llms[0] if len(llms) == 1 else llm.FallbackAdapter(llms),
        stt=stts[0] if len(stts) == 1 else stt.FallbackAdapter(stts, vad=vad, max_retry_per_stt=0),
        tts=ttss[0] if len(ttss) == 1 else tts.FallbackAdapter(ttss, max_retry_per_tts=0),
        vad=vad,
        turn_handling=turn_handling_of(settings),
    )


def llms_of(settings: Settings) -> list[llm.LLM[Any]]:
    """The language model, and the one that stands in for it."""
    named = {"AGENT_LLM_MODEL": settings.llm_model, "AGENT_LLM_FALLBACK": settings.llm_fallback}
    return [_make("LLM", setting, name) for setting, name in named.items() if name]


def stts_of(settings: Settings) -> list[stt.STT[Any]]:
    """What recognises the caller's words, and what stands in for it."""
    named = {"AGENT_STT_MODEL": settings.stt_model, "AGENT_STT_FALLBACK": settings.stt_fallback}
    spoken = settings.stt_language
    return [_make("STT", setting, name, language=spoken) for setting, name in named.items() if name]


def ttss_of(settings: Settings) -> list[tts.TTS[Any]]:
    """The voice, and the one that stands in for it, which has its own name: `model:voice`."""
    spoken = settings.stt_language
    voices = [
        _make("TTS", "AGENT_TTS_MODEL", settings.tts_model, voice=settings.voice, language=spoken)
    ]
    if name := settings.tts_fallback:
        model, _, voice = name.partition(":")
        voices.append(_make("TTS", "AGENT_TTS_FALLBACK", model, voice=voice, language=spoken))
    return voices


def _make(kind: Literal["LLM", "STT", "TTS"], setting: str, name: str, **wanted: str) -> Any:
    """One model of a plugin; raises ModelsUnavailable."""
    provider, slash, model = name.partition("/")
    if not (provider and slash and model):
        raise ModelsUnavailable(
            f"{setting} is {name!r}: write provider/model, such as openai/gpt-6-luna"
        )
    module = f"livekit.plugins.{provider.replace('-', '_')}"
    try:
        maker = getattr(import_module(module), kind)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModelsUnavailable(
            f"{setting}={name} needs the plugin of {provider}:"
            f" `uv add livekit-plugins-{provider.replace('_', '-')}`"
        ) from error
    except AttributeError as error:
        raise ModelsUnavailable(f"{setting}={name}: the plugin has no {kind}") from error
    takes = inspect.signature(maker).parameters
    given: dict[str, Any] = {}
    # callers wait while a model thinks, and some refuse tools meanwhile; the plugin says so of some
    # names only
    if "reasoning_effort" in takes and (effort := min_reasoning_effort(model)):
        given["reasoning_effort"] = effort
    if wanted.get("language") == "multi" and (kind, provider) != ("STT", "deepgram"):
        # Deepgram's word: others detect the language by themselves, or when they are told to
        del wanted["language"]
        if "detect_language" in takes:
            given["detect_language"] = True
    for what, value in {"model": model, **wanted}.items():
        called = next((one for one in NAMES[what] if one in takes), None)
        if called and value:
            given[called] = value
        elif value and what != "language":
            raise ModelsUnavailable(
                f"{setting}={name}: the plugin takes no {what}, so leave {value!r} out"
            )
    try:
        return maker(**given)
    except Exception as error:
        raise ModelsUnavailable(
            f"{setting}={name}: {one_line(error)}; put its key into .env.local"
        ) from error
