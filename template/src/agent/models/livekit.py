"""Models of LiveKit Inference: one key for all of them, that of the LiveKit Cloud project.

Who speaks, and whether they have finished, is decided on this machine, and said explicitly: left to itself the SDK asks
the cloud in `dev`, also where the keys belong to a server of one's own.
"""

from __future__ import annotations

from livekit.agents import inference

from agent.models import Models, ModelsUnavailable
from agent.settings import Settings


def build(settings: Settings) -> Models:
    """Build the models without connecting to anything; raises ModelsUnavailable, above all where keys are missing.

    The SDK takes the keys from the environment: LIVEKIT_API_KEY and LIVEKIT_API_SECRET, or the same names with
    LIVEKIT_INFERENCE in front where the server's own keys are not those of a LiveKit Cloud project.
    """
    try:
        return Models(
            llm=inference.LLM(settings.llm_model),
            stt=inference.STT(settings.stt_model, language=settings.stt_language),
            tts=inference.TTS(settings.tts_model, voice=settings.tts_voice),
            vad=inference.VAD(model="silero"),
            turn_handling={
                "turn_detection": inference.TurnDetector(version="v1-mini"),
                "interruption": {"mode": "vad"},
                # thinks as soon as the caller may have finished, speaks only once they surely have
                "preemptive_generation": {"enabled": True, "preemptive_tts": False},
            },
        )
    except ValueError as error:
        raise ModelsUnavailable(
            f"LiveKit Inference: {error}; set the keys of a LiveKit Cloud project, or AGENT_MODELS=scripted"
        ) from error
