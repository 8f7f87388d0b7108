"""The models of a conversation, and the table of modules that build them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from livekit.agents import TurnHandlingOptions, llm, stt, tts, vad

from agent.settings import Settings

# "module:factory"; of those with keys or servers, only the chosen one is rendered
MODELS = {
    "livekit": "agent.models.livekit:build",
    "providers": "agent.models.providers:build",
    "selfhosted": "agent.models.selfhosted:build",
    "realtime": "agent.models.realtime:build",
    "scripted": "agent.models.scripted:build",
    "local": "agent.models.local:build",
}
# they need no keys, so tests and first steps choose them, whatever models the persona has
KEYLESS = frozenset({"scripted", "local"})


@dataclass(frozen=True)
class Models:
    """What a session listens, thinks and speaks with; None for what it does without."""

    llm: llm.LLM[Any] | llm.RealtimeModel
    stt: stt.STT[Any] | None
    tts: tts.TTS[Any] | None
    vad: vad.VAD | None
    turn_handling: TurnHandlingOptions


class ModelsUnavailable(Exception):
    """The models that the settings choose cannot be built: which, and what to do."""


def models_of(settings: Settings) -> Models:
    """Build the models that the settings choose, without any network; raises ModelsUnavailable."""
    module, factory = MODELS[settings.models].split(":")
    try:
        build = getattr(import_module(module), factory)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        there = [name for name, path in MODELS.items() if find_spec(path.split(":")[0])]
        raise ModelsUnavailable(
            f"AGENT_MODELS is {settings.models!r}, but this project has no {module};"
            f" choose from {', '.join(there)}"
        ) from error
    models: Models = build(settings)
    return models
