"""Models of LiveKit Inference: one key pair for all of them, that of the LiveKit Cloud project.

Turn detection runs on this machine, and is set explicitly: by default the SDK asks the cloud in
`dev`, even where the keys belong to a self-hosted server.
"""

from __future__ import annotations

from livekit.agents import inference

from agent.models import Models, ModelsUnavailable
from agent.settings import Settings


def build(settings: Settings) -> Models:
    """Build the models without connecting; raises ModelsUnavailable, such as for missing keys.

    The SDK takes the keys from the environment: LIVEKIT_API_KEY and LIVEKIT_API_SECRET, or the same
    names with LIVEKIT_INFERENCE in front where the server's keys are not a LiveKit Cloud project's.
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
                # the reply is generated once the caller may have finished, and spoken only when
                # they certainly have
                "preemptive_generation": {"enabled": True, "preemptive_tts": False},
            },
        )
    except ValueError as error:
        raise ModelsUnavailable(
            f"LiveKit Inference: {error}; set the keys of a LiveKit Cloud project,"
            " or AGENT_MODELS=scripted"
        ) from error
