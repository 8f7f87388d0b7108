"""Models of LiveKit Inference: one key pair for all of them, that of the LiveKit Cloud project."""

from __future__ import annotations

from livekit.agents import NOT_GIVEN, inference
from livekit.agents.inference.llm import min_reasoning_effort

from agent.models import Models, ModelsUnavailable
from agent.models.turns import turn_handling_of
from agent.settings import Settings


def build(settings: Settings) -> Models:
    """Build the models without connecting; raises ModelsUnavailable, such as for missing keys.

    The SDK takes the keys from the environment: LIVEKIT_API_KEY and LIVEKIT_API_SECRET, or the same
    names with LIVEKIT_INFERENCE in front where the server's keys are not a LiveKit Cloud project's.
    """
    # callers wait while a model thinks, and some refuse tools meanwhile
    effort = min_reasoning_effort(settings.llm_model)
    try:
        return Models(
            llm=inference.LLM(
                settings.llm_model,
                extra_kwargs={} if effort is None else {"reasoning_effort": effort},
            ),
            stt=inference.STT(settings.stt_model, language=settings.stt_language),
            tts=inference.TTS(settings.tts_model, voice=settings.voice or NOT_GIVEN),
            vad=inference.VAD(model="silero"),
            turn_handling=turn_handling_of(settings),
        )
    except ValueError as error:
        raise ModelsUnavailable(
            f"LiveKit Inference: {error}; set the keys of a LiveKit Cloud project,"
            " or AGENT_MODELS=scripted"
        ) from error
