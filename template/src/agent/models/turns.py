"""Turn taking: what tells that a caller has finished, and what may cut the agent off.

Each is set explicitly. By default the SDK asks the cloud in `dev`, even where the keys belong to a
self-hosted server, and then behaves otherwise in production.
"""

from __future__ import annotations

from livekit.agents import TurnHandlingOptions, inference
from livekit.agents.utils import is_hosted
from livekit.agents.voice.turn import (
    EndpointingOptions,
    InterruptionOptions,
    TurnDetectionMode,
)

from agent.models import ModelsUnavailable
from agent.settings import Settings


def turn_handling_of(settings: Settings) -> TurnHandlingOptions:
    """Turn taking as the settings choose it; raises ModelsUnavailable."""
    return {
        "turn_detection": _detection(settings),
        "endpointing": _endpointing(settings),
        "interruption": _interruption(settings),
        # the reply is generated once the caller may have finished, and spoken only when they
        # certainly have: a reply that the caller talks over costs tokens, but no voice
        "preemptive_generation": {"enabled": True, "preemptive_tts": False},
    }


def _detection(settings: Settings) -> TurnDetectionMode:
    """What tells that a caller has finished."""
    chosen = settings.turn_detection
    if chosen == "vad" or chosen == "stt":
        return chosen
    # Both models listen to how something is said, in 14 languages, and need no text: they answer in
    # the pause itself. The cloud's is better, and only for agents that LiveKit Cloud hosts: others
    # would have it in a month's first calls, and then no longer.
    if chosen == "cloud" or (chosen == "auto" and is_hosted()):
        try:
            return inference.TurnDetector(version="v1")
        except ValueError as error:
            raise ModelsUnavailable(
                f"AGENT_TURN_DETECTION=cloud: {error}; set the keys of a LiveKit Cloud project,"
                " or AGENT_TURN_DETECTION=local"
            ) from error
    return inference.TurnDetector(version="v1-mini")


def _endpointing(settings: Settings) -> EndpointingOptions:
    """How long a pause may be; what is not set is the SDK's, which suits the detection."""
    options: EndpointingOptions = {}
    # what every answer waits for, so the first thing to lower; lower cuts off those who think
    if settings.min_endpointing_seconds:
        options["min_delay"] = settings.min_endpointing_seconds
    # what only a doubtful pause waits for, so it costs little to raise
    if settings.max_endpointing_seconds:
        options["max_delay"] = settings.max_endpointing_seconds
    return options


def _interruption(settings: Settings) -> InterruptionOptions:
    """What may cut the agent off."""
    chosen = settings.interruptions
    if chosen == "off":
        return {"enabled": False}
    # Any sound of half a second cuts the agent off at once, and it goes on if no words follow. The
    # adaptive model lets "mhm" pass, for a question to the cloud while both speak.
    adaptive = chosen == "adaptive" or (chosen == "auto" and is_hosted())
    return {"mode": "adaptive" if adaptive else "vad"}
